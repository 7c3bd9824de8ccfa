package hsmstore

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"chancery/admin"

	"github.com/cloudflare/circl/secretsharing"
	"github.com/miekg/pkcs11"
)

// The ceremony's side of shares.go.
const (
	cerShareKey  byte = 60 // []ShareSet -> openedForShares
	cerShare     byte = 61 // givenShare -> shareVerdict
	cerJoin      byte = 62 // nothing -> joined: the shares become the PIN, the SO logs in
	cerNewShares byte = 63 // newShares -> ShareSet
	cerRotate    byte = 64 // nothing: the PIN of the new set comes into force
)

type givenShare struct {
	Set string `json:"set"`
	Box []byte `json:"box"`
}

// shareVerdict: Why is empty if the share is good.
type shareVerdict struct {
	Why    string `json:"why"`
	Enough bool   `json:"enough"`
}

type newShares struct {
	Member    string          `json:"member"`
	Officers  []admin.Officer `json:"officers"`
	Threshold int             `json:"threshold"`
}

// shareState is what a ceremony process knows of shares.
type shareState struct {
	key    *ecdh.PrivateKey
	sets   []ShareSet
	shares [][]secretsharing.Share // by set
	next   string                  // the new PIN
	hash   string                  // of its set
	joined bool                    // the shares opened the token
}

// joined tells which set of shares the PIN in force is of.
type joined struct {
	Set string `json:"set"` // ShareSet.ID
}

// openedForShares says for which sets a ceremony takes shares, sealed to its key.
type openedForShares struct {
	Key  []byte   `json:"key"`  // SPKI DER
	Sets []string `json:"sets"` // their ShareSet.ID
}

// shareKey makes the key that shares are sealed to; it lives as long as the process. A
// set that was not made here is not asked for: whoever writes to the database could have
// split a PIN of his own, and tokens count wrong ones.
func (c *ceremony) shareKey(sets []ShareSet) (out openedForShares, err error) {
	a, err := readAccount(c.open.Account)
	if err != nil {
		return out, err
	}
	var ours []ShareSet
	for _, set := range sets {
		hash, err := set.hash()
		if err != nil {
			return out, err
		}
		if a.split == "" && len(a.drawn) == 0 || hash == a.split || slices.Contains(a.drawn, hash) { // none of either: split by another node
			ours, out.Sets = append(ours, set), append(out.Sets, set.ID)
		}
	}
	if len(ours) == 0 {
		return out, faultf(exitGrant, "%w: the shares of the SO PIN in the database are not those that were made for the token: someone wrote to the database, or an older one was put back; nobody's share was asked for", ErrToken)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return out, err
	}
	if c.share.key, err = k.ECDH(); err != nil {
		return out, err
	}
	c.share.sets, c.share.shares = ours, make([][]secretsharing.Share, len(ours))
	out.Key, err = marshalSPKI(k.Public())
	return out, err
}

// takeShare opens a share and holds it against its commitment.
func (c *ceremony) takeShare(q givenShare) (v shareVerdict, _ error) {
	if c.share.key == nil {
		return v, faultf(exitProtocol, "a share before the key for it")
	}
	if c.share.shares == nil {
		v.Why = "the ceremony has its shares already"
		return v, nil
	}
	v.Why = "it belongs to no split of this SO PIN"
	for i, set := range c.share.sets {
		if set.ID != q.Set {
			continue
		}
		plain, err := admin.Unseal(c.share.key, set.ceremonyInfo(), q.Box)
		if err != nil {
			v.Why = err.Error()
			continue
		}
		s, err := decodeShare(plain)
		clear(plain)
		if err == nil {
			err = set.verifies(s)
		}
		if err != nil {
			v.Why = err.Error()
			continue
		}
		v.Why = ""
		known := false
		for _, old := range c.share.shares[i] {
			known = known || old.ID.IsEqual(s.ID)
		}
		if !known {
			c.share.shares[i] = append(c.share.shares[i], s)
		}
	}
	for i, set := range c.share.sets {
		if len(c.share.shares[i]) < set.Threshold {
			return v, nil
		}
	}
	v.Enough = true // of every set that may be in force
	return v, nil
}

// join recovers the PIN and logs the SO in. Only when a crash came while the PIN was
// changed are there two sets; then each is tried once.
func (c *ceremony) join(struct{}) (out joined, err error) {
	err = faultf(exitProtocol, "no shares to join")
	for i, set := range c.share.sets {
		if len(c.share.shares[i]) < set.Threshold {
			continue
		}
		if c.soPIN, err = joinShares(set.Threshold, c.share.shares[i]); err != nil {
			return out, err
		}
		_, err = c.as(pkcs11.CKU_SO)
		var f *fault
		if err == nil {
			out.Set, c.share.joined = set.ID, true
			err = c.noteSplit(set)
			break
		}
		if !errors.As(err, &f) || f.code != exitPIN {
			break
		}
	}
	c.share.shares = nil
	return out, err
}

// newShares draws the PIN that is to come.
func (c *ceremony) newShares(q newShares) (set ShareSet, err error) {
	if err := c.maySplit(q); err != nil {
		return set, err
	}
	if set, c.share.next, err = split(q.Member, c.serial, q.Officers, q.Threshold); err != nil {
		return set, err
	}
	if c.share.hash, err = set.hash(); err != nil {
		return set, err
	}
	a, err := readAccount(c.open.Account)
	if err != nil {
		return set, err
	}
	return set, a.add("drawn %s", c.share.hash)
}

// noteSplit notes in the account which set opened the token.
func (c *ceremony) noteSplit(set ShareSet) error {
	hash, err := set.hash()
	if err != nil {
		return err
	}
	a, err := readAccount(c.open.Account)
	if err != nil || a.split == hash {
		return err
	}
	return a.add("split %s", hash)
}

// maySplit holds the grant: the act itself, or any ceremony that used shares up, which then
// does not make fewer enough. Nor does it take the server's word for who gets a share:
// officers of the warrant only.
func (c *ceremony) maySplit(q newShares) error {
	if c.open.Device {
		return errDeviceSO(q.Member)
	}
	if err := c.allowed(admin.RotateSOPINAct(q.Member, q.Threshold)); err != nil {
		if !c.share.joined {
			return err
		}
		for _, set := range c.share.sets {
			if q.Threshold < set.Threshold {
				return faultf(exitGrant, "%w: %d shares would be enough for the new SO PIN, %d are for the present one", admin.ErrNotGranted, q.Threshold, set.Threshold)
			}
		}
	}
	w := c.open.Warrant
	if w == nil { // genesis, or a process that was started only to look
		a, err := readAccount(c.open.Account)
		if err != nil {
			return err
		}
		if a.sealed {
			return faultf(exitGrant, "%w: genesis is over; a new SO PIN needs the officers' warrant", admin.ErrNotGranted)
		}
		return nil
	}
	holders := w.Roster.ShareHolders()
	same := func(a, b admin.Officer) bool { return a.Name == b.Name && bytes.Equal(a.SPKI, b.SPKI) }
	for i, o := range q.Officers {
		if !slices.ContainsFunc(holders, func(r admin.Officer) bool { return same(r, o) }) || slices.ContainsFunc(q.Officers[:i], func(r admin.Officer) bool { return r.Name == o.Name }) {
			return faultf(exitGrant, "%w: %s with that key is no officer of the warrant, or there twice, and gets no share", admin.ErrNotGranted, o.Name)
		}
	}
	if len(q.Officers) != len(holders) {
		return faultf(exitGrant, "%w: the shares are for %d officers, the warrant has %d with a CLI key", admin.ErrNotGranted, len(q.Officers), len(holders))
	}
	return nil
}

// rotate changes the SO PIN (PKCS#11 §5.5, C_SetPIN).
func (c *ceremony) rotate(struct{}) (none struct{}, err error) {
	if c.share.next == "" {
		return none, faultf(exitProtocol, "no new SO PIN was drawn")
	}
	t, err := c.as(pkcs11.CKU_SO)
	if err != nil {
		return none, err
	}
	if err := t.m.SetPIN(t.session, c.soPIN, c.share.next); err != nil {
		return none, classify(fmt.Sprintf("C_SetPIN of the SO of token %s", c.serial), err)
	}
	c.soPIN, c.share.next = c.share.next, ""
	a, err := readAccount(c.open.Account)
	if err != nil {
		return none, err
	}
	return none, a.add("split %s", c.share.hash)
}
