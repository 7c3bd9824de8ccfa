package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json/v2"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/audit"
)

// Enrolment is an invitation to make passkeys for an officer, by a link that is used once.
// It changes nothing by itself: the passkeys come into force with a roster that the
// officers decide on.
type Enrolment struct {
	ID       string       // 16 hex digits
	Name     string       // of the officer
	Roles    []Assignment // that the officer shall have; none: those they have
	By       string       // who made the link, as [Principal.Requester] writes it
	Created  time.Time
	Expires  time.Time
	Passkeys []Passkey // made so far
	State    string    // open, done or withdrawn
	Leaf     uint64    // index of the OpEnrol leaf that ended it
}

// The states of an enrolment. They stand in the database.
const (
	EnrolmentOpen      = "open"
	EnrolmentDone      = "done" // its passkeys wait for the officers, or are on the roster
	EnrolmentWithdrawn = "withdrawn"
)

// Lifetimes of an enrolment link.
const (
	DefaultEnrolment = 24 * time.Hour
	MaxEnrolment     = 7 * 24 * time.Hour
)

// maxEnrolments bounds the links that are open at a time.
const maxEnrolments = 100

// PutEnrolment stores an open enrolment with its OpEnrol leaf. Hash is SHA-256 of the
// link's secret.
type PutEnrolment struct {
	Enrolment
	Hash [32]byte
}

// AddPasskey adds a passkey to an enrolment that is open at At; else audit.ErrConflict. A
// credential that an enrolment has already is audit.ErrExists.
type AddPasskey struct {
	ID      string
	Passkey Passkey
	At      time.Time
}

// CloseEnrolment ends an open enrolment with its OpEnrol leaf; one that is not open, or is
// done with another number of passkeys than the leaf names, is audit.ErrConflict.
type CloseEnrolment struct {
	ID       string
	To       string // done or withdrawn
	Passkeys int
}

// Projection marks the types as audit.Projection; dbstore carries them out.
func (PutEnrolment) Projection()   {}
func (AddPasskey) Projection()     {}
func (CloseEnrolment) Projection() {}

// EnrolmentStorage reads what the projections wrote. Package dbstore implements it.
type EnrolmentStorage interface {
	// Enrolment finds one by the SHA-256 of its secret; none is audit.ErrNotFound.
	Enrolment(ctx context.Context, hash [32]byte) (Enrolment, error)
	// Enrolments lists at most limit: first those that are open and live longest, so that
	// none of them is missing, then the newest.
	Enrolments(ctx context.Context, limit int) ([]Enrolment, error)
}

// EnrolmentLedger is what enrolments ask of the ledger; *audit.Ledger is one.
type EnrolmentLedger interface {
	Append(ctx context.Context, e audit.Entry, p ...audit.Projection) (audit.Appended, error)
	Write(ctx context.Context, p ...audit.Projection) error
}

// Enrolments is where officers get their passkeys. RPID and Origins are for a roster that
// has none yet.
type Enrolments struct {
	Ledger  EnrolmentLedger
	Storage EnrolmentStorage
	Board   *Board
	RPID    string
	Origins []string
	Now     func() time.Time // nil: time.Now
}

func (e *Enrolments) now() time.Time {
	if e.Now != nil {
		return e.Now()
	}
	return time.Now()
}

// Open makes a link; its secret is 64 hex digits, and shown only now. roles may be nil for
// somebody who is on the roster. lifetime 0 is [DefaultEnrolment]. Errors: *Refusal, and
// those of the ledger.
func (e *Enrolments) Open(ctx context.Context, name string, roles []Assignment, by string, lifetime time.Duration) (secret string, en Enrolment, err error) {
	if lifetime == 0 {
		lifetime = DefaultEnrolment
	}
	rosters, err := e.Board.Rosters(ctx)
	if err != nil {
		return "", en, err
	}
	now := e.now().UTC().Truncate(time.Second)
	en = Enrolment{ID: randomHex(8), Name: name, Roles: roles, By: by, Created: now, Expires: now.Add(lifetime.Truncate(time.Second)), State: EnrolmentOpen}
	if lifetime < time.Minute || lifetime > MaxEnrolment {
		return "", en, refuse(BadProposal, "lifetime", "a link lives 1m to %s", MaxEnrolment)
	}
	if err := en.check(rosters.Current()); err != nil {
		return "", en, err
	}
	all, err := e.List(ctx)
	if err != nil {
		return "", en, err
	}
	open := slices.DeleteFunc(all, func(o Enrolment) bool { return o.State != EnrolmentOpen || !o.Expires.After(now) })
	if len(open) >= maxEnrolments {
		return "", en, refuse(Closed, "", "%d links are open already; withdraw some", maxEnrolments)
	}
	secret = randomHex(32)
	row := PutEnrolment{Enrolment: en, Hash: sha256.Sum256([]byte(secret))}
	if _, err := e.Ledger.Append(ctx, en.event("opened", by), row); err != nil {
		return "", en, fmt.Errorf("recording an enrolment: %w", err)
	}
	return secret, en, nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// check refuses what could never come on the roster.
func (en Enrolment) check(r Roster) error {
	if _, known := r.Officer(en.Name); !known && len(en.Roles) == 0 {
		return refuse(BadProposal, "roles", "%q is not on the roster: name at least one role; allowed: %v", audit.Text(en.Name, 64), Roles)
	}
	probe := Roster{Version: 1}
	if err := probe.checkOfficer(Officer{Name: en.Name, SPKI: nil, Passkeys: nil, Roles: []Assignment{{Role: Auditor}}}); err != nil && !errors.Is(err, errNoKey) {
		return refuse(BadProposal, "name", "%v", err)
	}
	if err := CheckAssignments(en.Roles); err != nil {
		return refuse(BadProposal, "roles", "%v", err)
	}
	return nil
}

// event is the leaf of what became of an enrolment.
func (en Enrolment) event(state, by string) audit.Entry {
	var f audit.Fields
	f.Hash(audit.TagSubject, audit.Digest("enrolment", []byte(en.ID)))
	f.Text(audit.TagRequester, by)
	f.Text(audit.TagState, state)
	var roles [][]byte
	for _, a := range en.Roles {
		roles = append(roles, []byte(a.String()))
	}
	if len(roles) > 0 {
		f.List(audit.TagRoles, roles...)
	}
	f.Uint64(audit.TagExpires, uint64(en.Expires.Unix()))
	if state == EnrolmentDone {
		var keys [][]byte
		for _, k := range en.Passkeys {
			sum := sha256.Sum256(k.SPKI)
			keys = append(keys, []byte(hex.EncodeToString(sum[:])))
		}
		f.List(audit.TagAttributes, keys...)
	}
	return audit.Event(audit.OpEnrol, f)
}

// Find is the open enrolment of a secret. Errors: *Refusal with NotFound, whatever the
// reason is: who guesses learns nothing.
func (e *Enrolments) Find(ctx context.Context, secret string) (Enrolment, error) {
	en, err := e.Storage.Enrolment(ctx, sha256.Sum256([]byte(secret)))
	if err != nil && !errors.Is(err, audit.ErrNotFound) {
		return Enrolment{}, fmt.Errorf("reading an enrolment: %w", err)
	}
	if err != nil || en.State != EnrolmentOpen || !en.Expires.After(e.now()) {
		return Enrolment{}, refuse(NotFound, "secret", "this link was used, withdrawn, or has expired; ask for a new one")
	}
	return en, nil
}

// AddPasskey keeps a passkey that the person of the link made. Errors: *Refusal, and those
// of the ledger.
func (e *Enrolments) AddPasskey(ctx context.Context, secret string, k Passkey) (Enrolment, error) {
	en, err := e.Find(ctx, secret)
	if err != nil {
		return en, err
	}
	if err := k.Check(); err != nil {
		return en, refuse(BadProposal, "passkey", "%v", err)
	}
	rosters, err := e.Board.Rosters(ctx)
	if err != nil {
		return en, err
	}
	if of, _, taken := rosters.Current().ByPasskey(k.ID); taken {
		return en, refuse(Closed, "passkey", "officer %s has this passkey already", of.Name)
	}
	if len(en.Passkeys) >= 2*2 {
		return en, refuse(Closed, "passkey", "four passkeys are enough for one link")
	}
	err = e.Ledger.Write(ctx, AddPasskey{ID: en.ID, Passkey: k, At: e.now()})
	switch {
	case errors.Is(err, audit.ErrExists):
		return en, refuse(Closed, "passkey", "this passkey was made already")
	case errors.Is(err, audit.ErrConflict):
		return en, refuse(Closed, "", "the link was used meanwhile")
	case err != nil:
		return en, fmt.Errorf("keeping a passkey: %w", err)
	}
	return e.Find(ctx, secret)
}

// Finish closes the link, with as many passkeys as the person saw: when somebody else made
// another, it stays open. If the admin token made it, the change of the roster is asked for
// at once, and the proposal returned; else an administrator asks. Errors: *Refusal, and
// those of the ledger.
func (e *Enrolments) Finish(ctx context.Context, secret string, seen int) (Enrolment, *Approval, error) {
	en, err := e.Find(ctx, secret)
	if err != nil {
		return en, nil, err
	}
	if len(en.Passkeys) == 0 {
		return en, nil, refuse(BadProposal, "passkey", "there is no passkey yet")
	}
	if len(en.Passkeys) != seen {
		return en, nil, refuse(Closed, "passkey", "passkeys were made with this link meanwhile; look at them first")
	}
	if en.Leaf, err = e.close(ctx, en, EnrolmentDone, OfficerRequester(en.Name)); err != nil {
		return en, nil, err
	}
	en.State = EnrolmentDone
	if en.By != AdminToken {
		return en, nil, nil
	}
	a, err := e.Ask(ctx, en)
	return en, a, err
}

// Ask has the admin token ask for the roster with the passkeys of an enrolment.
func (e *Enrolments) Ask(ctx context.Context, en Enrolment) (*Approval, error) {
	parameters, err := e.Parameters(ctx, en)
	if err != nil {
		return nil, err
	}
	return e.Board.Propose(ctx, Ask{Action: ChangeRoster, Parameters: parameters, Requester: AdminToken})
}

// Used tells whether passkeys of the enrolment are on the roster, or were: when the officers
// took them off, a new link brings new ones.
func (en Enrolment) Used(h History) bool {
	on := func(r Roster) bool {
		return slices.ContainsFunc(en.Passkeys, func(k Passkey) bool { _, _, found := r.ByPasskey(k.ID); return found })
	}
	return on(h.Base) || slices.ContainsFunc(h.Changes, func(c RosterChange) bool { return on(c.Roster) })
}

// Parameters are those of [ChangeRoster] for an enrolment that is done, in canonical JSON.
// Errors: *Refusal for one that is used.
func (e *Enrolments) Parameters(ctx context.Context, en Enrolment) ([]byte, error) {
	rosters, err := e.Board.Rosters(ctx)
	if err != nil {
		return nil, err
	}
	if err := e.recorded(ctx, en); err != nil {
		return nil, err
	}
	if en.Used(rosters) {
		return nil, refuse(Closed, "id", "the passkeys of this link are on the roster, or were taken off it; make a new link")
	}
	now := rosters.Current()
	return ChangeParameters(now, e.Next(now, en))
}

// ChangeParameters are those of [ChangeRoster] from one roster to the next, in canonical JSON.
func ChangeParameters(now, next Roster) ([]byte, error) {
	digest := now.Digest()
	j, err := json.Marshal(RosterParameters{Before: hex.EncodeToString(digest[:]), Roster: next}, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	return CanonicalParameters(j)
}

func (e *Enrolments) close(ctx context.Context, en Enrolment, to, by string) (leaf uint64, err error) {
	at, err := e.Ledger.Append(ctx, en.event(to, by), CloseEnrolment{ID: en.ID, To: to, Passkeys: len(en.Passkeys)})
	if errors.Is(err, audit.ErrConflict) {
		return 0, refuse(Closed, "", "the link was used or withdrawn meanwhile, or has another passkey")
	}
	if err != nil {
		return 0, fmt.Errorf("recording an enrolment: %w", err)
	}
	return at.Index, nil
}

// recorded wants the entry that ended an enrolment to name its officer, roles and passkeys:
// whoever changed its rows since gets nothing on the roster.
func (e *Enrolments) recorded(ctx context.Context, en Enrolment) error {
	leaf, err := e.Board.cfg.Ledger.Leaf(ctx, en.Leaf)
	if err != nil {
		return fmt.Errorf("reading the entry of an enrolment: %w", err)
	}
	want := en.event(EnrolmentDone, OfficerRequester(en.Name))
	other := func(f audit.Field) bool {
		v, _ := leaf.Get(f.Tag)
		return !bytes.Equal(v, f.Value)
	}
	if leaf.Op != audit.OpEnrol || len(leaf.Fields) != len(want.Fields) || slices.ContainsFunc(want.Fields, other) {
		return refuse(Closed, "id", "entry %d, which ended this enrolment, has other passkeys or roles: they were changed since; make a new link", en.Leaf)
	}
	return nil
}

// List are the enrolments that are open, and the newest of the others.
func (e *Enrolments) List(ctx context.Context) ([]Enrolment, error) {
	all, err := e.Storage.Enrolments(ctx, 2*maxEnrolments)
	if err != nil {
		return nil, fmt.Errorf("listing enrolments: %w", err)
	}
	slices.SortStableFunc(all, func(a, b Enrolment) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// Named is the enrolment of an ID. Errors: *Refusal with NotFound.
func (e *Enrolments) Named(ctx context.Context, id string) (Enrolment, error) {
	all, err := e.List(ctx)
	if err != nil {
		return Enrolment{}, err
	}
	for _, en := range all {
		if en.ID == id {
			return en, nil
		}
	}
	return Enrolment{}, refuse(NotFound, "id", "there is no enrolment with this id")
}

// Withdraw ends an open link. Errors: *Refusal, and those of the ledger.
func (e *Enrolments) Withdraw(ctx context.Context, id, by string) error {
	en, err := e.Named(ctx, id)
	if err != nil {
		return err
	}
	_, err = e.close(ctx, en, EnrolmentWithdrawn, by)
	return err
}

// RP is the relying party of new passkeys, and the origins from which they sign.
func (e *Enrolments) RP(ctx context.Context) (rpID string, origins []string, err error) {
	rosters, err := e.Board.Rosters(ctx)
	if err != nil {
		return "", nil, err
	}
	if r := rosters.Current(); r.RPID != "" {
		return r.RPID, r.Origins, nil
	}
	return e.RPID, e.Origins, nil
}

// Next is the roster that follows r, with the passkeys and roles of an enrolment.
func (e *Enrolments) Next(r Roster, en Enrolment) Roster {
	r = r.Successor()
	if r.RPID == "" {
		r.RPID, r.Origins = e.RPID, slices.Clone(e.Origins)
	}
	i := slices.IndexFunc(r.Officers, func(o Officer) bool { return o.Name == en.Name })
	if i < 0 {
		i, r.Officers = len(r.Officers), append(r.Officers, Officer{Name: en.Name})
	}
	o := &r.Officers[i]
	for _, k := range en.Passkeys {
		if !slices.ContainsFunc(o.Passkeys, func(have Passkey) bool { return bytes.Equal(have.ID, k.ID) }) {
			o.Passkeys = append(slices.Clip(o.Passkeys), k)
		}
	}
	if len(en.Roles) > 0 {
		o.Roles = slices.Clone(en.Roles)
	}
	return r
}
