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
	cerShareKey  byte = 60 // []ShareSet -> SPKI that shares are sealed to
	cerShare     byte = 61 // givenShare -> shareVerdict
	cerJoin      byte = 62 // nothing: the shares become the PIN, the SO logs in
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
}

// shareKey makes the key that shares are sealed to; it lives as long as the process.
func (c *ceremony) shareKey(sets []ShareSet) ([]byte, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if c.share.key, err = k.ECDH(); err != nil {
		return nil, err
	}
	c.share.sets, c.share.shares = sets, make([][]secretsharing.Share, len(sets))
	return marshalSPKI(k.Public())
}

// takeShare opens a share and holds it against its commitment.
func (c *ceremony) takeShare(q givenShare) (v shareVerdict, _ error) {
	if c.share.key == nil {
		return v, faultf(exitProtocol, "a share before the key for it")
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
func (c *ceremony) join(struct{}) (none struct{}, err error) {
	err = faultf(exitProtocol, "no shares to join")
	for i, set := range c.share.sets {
		if len(c.share.shares[i]) < set.Threshold {
			continue
		}
		if c.soPIN, err = joinShares(set.Threshold, c.share.shares[i]); err != nil {
			return none, err
		}
		_, err = c.as(pkcs11.CKU_SO)
		var f *fault
		if err == nil || !errors.As(err, &f) || f.code != exitPIN {
			break
		}
	}
	c.share.shares = nil
	return none, err
}

// newShares draws the PIN that is to come.
func (c *ceremony) newShares(q newShares) (set ShareSet, err error) {
	if err := c.maySplit(q); err != nil {
		return set, err
	}
	set, c.share.next, err = split(q.Member, c.serial, q.Officers, q.Threshold)
	return set, err
}

// maySplit holds the grant: the act itself, or any ceremony that used shares up, which then
// does not make fewer enough. Nor does it take the server's word for who gets a share:
// officers of the warrant only.
func (c *ceremony) maySplit(q newShares) error {
	if c.open.Device {
		return errDeviceSO(q.Member)
	}
	if err := c.allowed(admin.RotateSOPINAct(q.Member, q.Threshold)); err != nil {
		if c.share.key == nil {
			return err
		}
		for _, set := range c.share.sets {
			if q.Threshold < set.Threshold {
				return faultf(exitGrant, "%w: %d shares would be enough for the new SO PIN, %d are for the present one", admin.ErrNotGranted, q.Threshold, set.Threshold)
			}
		}
	}
	w := c.open.Warrant
	if w == nil {
		return nil
	}
	for _, o := range q.Officers {
		if !slices.ContainsFunc(w.Roster, func(r admin.Officer) bool { return r.Name == o.Name && bytes.Equal(r.SPKI, o.SPKI) }) {
			return faultf(exitGrant, "%w: %s with that key is no officer of the warrant and gets no share", admin.ErrNotGranted, o.Name)
		}
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
	return none, nil
}
