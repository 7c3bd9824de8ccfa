package hsmstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"chancery/admin"
	"chancery/audit"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"
)

// A member's SO PIN can be split among officers, M of N (Shamir's scheme over the
// scalars of P-256, with Feldman's commitments). Nobody ever sees the PIN: it is drawn
// in a ceremony process, which gives each officer a share that only that officer's key
// opens. For a later ceremony M officers open theirs and seal it to the new ceremony
// process, which holds each against its commitment before it tries any C_Login, joins
// them, logs in, and at once changes the PIN: shares that were used open nothing.

// ShareSet is what anyone may see of a split SO PIN.
type ShareSet struct {
	ID          string            `json:"id"` // names this PIN
	Member      string            `json:"member"`
	Serial      string            `json:"serial"` // of the token
	Threshold   int               `json:"threshold"`
	Commitments [][]byte          `json:"commitments"` // to the coefficients, compressed points of P-256
	Boxes       map[string][]byte `json:"boxes"`       // by officer: the share, sealed to the officer's key
}

// hash is SHA-256 of a set, hex: its JSON has one form.
func (s ShareSet) hash() (string, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(b)), nil
}

// officerInfo and ceremonyInfo say what a sealed share is for.
func (s ShareSet) officerInfo() string {
	return "chancery/so-share/v1 officer " + s.Member + " " + s.ID
}
func (s ShareSet) ceremonyInfo() string {
	return "chancery/so-share/v1 ceremony " + s.Member + " " + s.ID
}

// PutShares stores a set: first as the next one, before the PIN is changed, then as
// the current one, which ends the one before it.
type PutShares struct {
	Set     ShareSet
	Current bool
}

// Projection marks it as audit.Projection.
func (PutShares) Projection() {}

// ShareStore reads the sets of a member. next is one whose PIN may have come into
// force when a crash came in between. Both may be nil.
type ShareStore interface {
	Shares(ctx context.Context, member string) (current, next *ShareSet, err error)
}

// OpenFor opens an officer's share and seals it to a ceremony process. It is the
// officer's own machine that does this.
func (s ShareSet) OpenFor(officer *admin.OfficerKey, ceremony []byte) ([]byte, error) {
	box, ok := s.Boxes[officer.Name]
	if !ok {
		return nil, fmt.Errorf("officer %s has no share of the SO PIN of member %s", officer.Name, s.Member)
	}
	plain, err := officer.Unseal(s.officerInfo(), box)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	return admin.SealTo(ceremony, s.ceremonyInfo(), plain)
}

const scalarOctets = 32

// encodeShare is id u8 ‖ value 32.
func encodeShare(id int, v group.Scalar) ([]byte, error) {
	b, err := v.MarshalBinary()
	if err != nil || len(b) != scalarOctets {
		return nil, fmt.Errorf("encoding a share: %w", err)
	}
	return append([]byte{byte(id)}, b...), nil
}

func decodeShare(b []byte) (s secretsharing.Share, err error) {
	if len(b) != 1+scalarOctets || b[0] == 0 {
		return s, errors.New("that is no share")
	}
	s.ID = group.P256.NewScalar().SetUint64(uint64(b[0]))
	s.Value = group.P256.NewScalar()
	return s, s.Value.UnmarshalBinary(b[1:])
}

// verifies holds a share against the commitments.
func (s ShareSet) verifies(share secretsharing.Share) error {
	commitment := make(secretsharing.SecretCommitment, len(s.Commitments))
	for i, b := range s.Commitments {
		commitment[i] = group.P256.NewElement()
		if err := commitment[i].UnmarshalBinary(b); err != nil {
			return fmt.Errorf("commitment %d is damaged", i)
		}
	}
	if s.Threshold < admin.MinQuorum || len(commitment) != s.Threshold || !secretsharing.Verify(uint(s.Threshold-1), share, commitment) {
		return errors.New("it is not a share of this SO PIN")
	}
	return nil
}

// split draws a PIN and splits it among officers.
func split(member, serial string, officers []admin.Officer, threshold int) (ShareSet, string, error) {
	if threshold < admin.MinQuorum || threshold > admin.MaxQuorum || threshold > len(officers) || len(officers) > 255 {
		return ShareSet{}, "", fmt.Errorf("a SO PIN cannot be split %d of %d; M is %d to %d and at most the number of officers", threshold, len(officers), admin.MinQuorum, admin.MaxQuorum)
	}
	secret := group.P256.RandomNonZeroScalar(rand.Reader)
	sharing := secretsharing.New(rand.Reader, uint(threshold-1), secret)
	set := ShareSet{ID: rand.Text(), Member: member, Serial: serial, Threshold: threshold, Boxes: map[string][]byte{}}
	for _, e := range sharing.CommitSecret() {
		b, err := e.MarshalBinaryCompress()
		if err != nil {
			return set, "", err
		}
		set.Commitments = append(set.Commitments, b)
	}
	for i, o := range officers {
		plain, err := encodeShare(i+1, sharing.ShareWithID(group.P256.NewScalar().SetUint64(uint64(i+1))).Value)
		if err != nil {
			return set, "", err
		}
		if set.Boxes[o.Name], err = admin.SealTo(o.SPKI, set.officerInfo(), plain); err != nil {
			return set, "", fmt.Errorf("officer %s: %w", o.Name, err)
		}
		clear(plain)
	}
	pin, err := pinOf(secret)
	return set, pin, err
}

// pinOf makes 32 characters of 192 random bits from the secret: every HSM takes them.
func pinOf(secret group.Scalar) (string, error) {
	b, err := secret.MarshalBinary()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte("chancery/so-pin/v1\n"), b...))
	return base64.RawURLEncoding.EncodeToString(sum[:24]), nil
}

// joinShares recovers the PIN from shares that were held against their commitments.
func joinShares(threshold int, shares []secretsharing.Share) (string, error) {
	secret, err := secretsharing.Recover(uint(threshold-1), shares)
	if err != nil {
		return "", err
	}
	return pinOf(secret)
}

// Collection is a ceremony that waits for persons: for shares, or for the vendor's
// quorum at the device.
type Collection struct {
	ID      string     `json:"id"`
	Member  string     `json:"member"`
	Key     []byte     `json:"key"` // SPKI of the ceremony process
	Sets    []ShareSet `json:"sets"`
	Have    []string   `json:"have"` // officers whose shares are there
	Expires time.Time  `json:"expires"`
	Device  bool       `json:"device,omitempty"` // it waits at the device, for no shares
	Token   string     `json:"token,omitempty"`  // which device: label and serial number
}

// sharePatience is how long a ceremony waits for its officers.
const sharePatience = 15 * time.Minute

// collections are the ceremonies that wait.
type collections struct {
	mu   sync.Mutex
	open map[string]*collection
}

type collection struct {
	Collection
	proc *ceremonyProcess
	full chan struct{}
	once sync.Once
	dead chan struct{} // the process has ended
	gone sync.Once
	mu   sync.Mutex // one share at a time
	over bool       // the ceremony has its shares; mu
}

// Collecting lists the ceremonies that wait for persons.
func (s *Store) Collecting() []Collection {
	s.collections.mu.Lock()
	defer s.collections.mu.Unlock()
	out := []Collection{}
	for _, c := range s.collections.open {
		one := c.Collection
		one.Have = slices.Clone(c.Have)
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b Collection) int { return bytes.Compare([]byte(a.ID), []byte(b.ID)) })
	return out
}

// GiveShare hands an officer's share, sealed by [ShareSet.OpenFor], to the ceremony
// that waits for it. A share that does not fit its commitment is refused and costs no
// try of the PIN. A caller who hangs up does not end the ceremony of the others.
func (s *Store) GiveShare(ctx context.Context, id, officer, set string, box []byte) error {
	s.collections.mu.Lock()
	c := s.collections.open[id]
	s.collections.mu.Unlock()
	if c == nil || c.Device {
		return fmt.Errorf("%w: no ceremony %q waits for shares; list them: chancery hsm share", ErrNoMember, audit.Text(id, 64))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return fmt.Errorf("%w: ceremony %q has its shares already", ErrNoMember, audit.Text(id, 64))
	}
	var v shareVerdict
	if err := c.proc.do(context.WithoutCancel(ctx), cerShare, givenShare{Set: set, Box: box}, &v); err != nil {
		c.gone.Do(func() { close(c.dead) })
		return err
	}
	if v.Why != "" {
		return fmt.Errorf("%w: officer %s: %s", ErrRefused, audit.Text(officer, 64), v.Why)
	}
	s.collections.mu.Lock()
	holds := slices.ContainsFunc(c.Sets, func(set ShareSet) bool { return set.Boxes[officer] != nil })
	if holds && !slices.Contains(c.Have, officer) {
		c.Have = append(c.Have, officer)
	}
	s.collections.mu.Unlock()
	if v.Enough {
		c.once.Do(func() { close(c.full) })
	}
	return nil
}

// collect gets the SO PIN of a ceremony process by its officers' shares, logs the SO in
// and changes the PIN at once.
func (s *Store) collect(ctx context.Context, cfg MemberConfig, p *ceremonyProcess) error {
	current, next, err := s.cfg.Shares.Shares(ctx, cfg.Name)
	if err != nil {
		return err
	}
	var sets []ShareSet
	for _, set := range []*ShareSet{current, next} {
		if set != nil {
			sets = append(sets, *set)
		}
	}
	if len(sets) == 0 {
		return fmt.Errorf("%w: member %s: so_pin says shares, but its SO PIN was never split; give it as a file once and split it: chancery hsm split-so-pin", ErrPIN, cfg.Name)
	}
	c := &collection{Collection: Collection{ID: rand.Text(), Member: cfg.Name, Sets: sets, Have: []string{}, Expires: time.Now().Add(sharePatience)}, proc: p, full: make(chan struct{}), dead: make(chan struct{})}
	var takes openedForShares
	if err := p.do(ctx, cerShareKey, sets, &takes); err != nil {
		return err
	}
	c.Key = takes.Key
	c.Sets = slices.DeleteFunc(c.Sets, func(set ShareSet) bool { return !slices.Contains(takes.Sets, set.ID) })
	s.collections.add(c)
	s.log.Warn("a ceremony waits for the officers' shares of the SO PIN: chancery hsm share", "member", cfg.Name, "of", sets[0].Threshold)
	defer s.collections.remove(c)
	select {
	case <-c.full:
	case <-c.dead:
		return fmt.Errorf("%w: the ceremony process of member %s ended while officers gave their shares", ErrUnavailable, cfg.Name)
	case <-time.After(sharePatience):
		return fmt.Errorf("%w: member %s: fewer than %d officers gave their shares within %v", ErrPIN, cfg.Name, sets[0].Threshold, sharePatience)
	case <-ctx.Done():
		return ctx.Err()
	}
	s.collections.remove(c)
	c.mu.Lock() // a share that is under way ends first
	defer c.mu.Unlock()
	var in joined
	if err := p.do(ctx, cerJoin, struct{}{}, &in); err != nil {
		return err
	}
	if next != nil && in.Set == next.ID {
		// A crash came after the PIN was changed. Before another one is drawn, which
		// replaces what is next, this one is on record as the one in force.
		if err := s.recordShares(ctx, cfg.Name, *next); err != nil {
			return err
		}
	}
	c.over = true
	threshold := 0 // of the set that opened the token
	for _, set := range sets {
		if set.ID == in.Set {
			threshold = set.Threshold
		}
	}
	return s.rotate(context.WithoutCancel(ctx), cfg.Name, p, threshold)
}

// rotate gives the member a new SO PIN, split anew. The new set is durable before the
// PIN changes: a crash in between leaves both, and the next ceremony tries both.
func (s *Store) rotate(ctx context.Context, member string, p *ceremonyProcess, threshold int) error {
	rosters, err := s.cfg.Rosters(ctx)
	if err != nil {
		return fmt.Errorf("reading the officers who hold shares: %w", err)
	}
	officers := rosters.Current().ShareHolders()
	var set ShareSet
	if err := p.do(ctx, cerNewShares, newShares{Member: member, Officers: officers, Threshold: threshold}, &set); err != nil {
		return err
	}
	if err := s.ledger.Write(ctx, PutShares{Set: set}); err != nil {
		return fmt.Errorf("storing the new shares of member %s: %w", member, err)
	}
	if err := p.do(ctx, cerRotate, struct{}{}, &struct{}{}); err != nil {
		return err
	}
	return s.recordShares(ctx, member, set)
}

// recordShares writes down which set of shares is in force.
func (s *Store) recordShares(ctx context.Context, member string, set ShareSet) error {
	var f audit.Fields
	f.Text(audit.TagReason, "SO PIN changed and split")
	f.Text(audit.TagMember, member)
	f.Text(audit.TagSerialNumber, set.Serial)
	b, err := json.Marshal(set)
	if err != nil {
		return err
	}
	f.Hash(audit.TagSubject, sha256.Sum256(b))
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpMemberState, f), PutShares{Set: set, Current: true}); err != nil {
		return fmt.Errorf("recording the new shares of member %s: %w", member, err)
	}
	return nil
}

// SplitSOPIN changes the SO PIN of a member to one that M of the officers hold in
// shares. It needs the present PIN, or the present shares. The act is
// admin.RotateSOPINAct.
func (s *Store) SplitSOPIN(ctx context.Context, grant *admin.Grant, name string, threshold int) error {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := s.mustBe(name, Up, Out, Down, Suspect)
	if err != nil {
		return err
	}
	if m.cfg.DeviceSO {
		return errDeviceSO(name)
	}
	if s.cfg.Shares == nil || s.cfg.Rosters == nil {
		return fmt.Errorf("%w: there are no officers to split the SO PIN of member %s among", ErrStanding, name)
	}
	act := admin.RotateSOPINAct(name, threshold)
	if err := grant.Spend(act); err != nil {
		return fmt.Errorf("member %s: %w", name, err)
	}
	p, err := startCeremony(s.under(ctx, grant), m.cfg, m.current().Serial, []string{act}, true)
	if err != nil {
		return err
	}
	defer p.end()
	return s.rotate(ctx, name, p, threshold)
}

func (c *collections) add(one *collection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[string]*collection{}
	}
	c.open[one.ID] = one
}

func (c *collections) remove(one *collection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, one.ID)
}
