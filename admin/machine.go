package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/audit"
)

// MachineKind is how a machine shows who it is.
type MachineKind string

// The kinds of machines.
const (
	MachineToken       MachineKind = "token"       // a bearer token (RFC 6750)
	MachineCertificate MachineKind = "certificate" // a TLS client certificate of this CA (RFC 8446 §4.4.2)
)

// Machine is a program's access: roles that end by themselves.
type Machine struct {
	ID       string // 16 hex digits
	Name     string // 1 to 63 of a-z, 0-9, '.', '_', '-'
	Kind     MachineKind
	Secret   [32]byte // SHA-256 of the token's secret, or of the certificate's SPKI
	Issuer   [32]byte // of a certificate: SHA-256 of the SPKI of its issuer
	Roles    []Assignment
	Owner    string // requester who made it; it can do no more than they can give
	Created  time.Time
	Expires  time.Time
	LastUsed time.Time // to the minute; zero: never
	Revoked  time.Time // zero: not
}

// PutMachine stores a machine with its OpMachine leaf. A certificate that another machine
// that is not revoked has is audit.ErrExists, and so is the name of one that has access.
type PutMachine struct{ Machine }

// RevokeMachine ends a machine with its OpMachine leaf; one that is revoked already, or not
// there, is audit.ErrConflict.
type RevokeMachine struct {
	ID string
	At time.Time
}

// TouchMachine notes a use; it has no leaf.
type TouchMachine struct {
	ID string
	At time.Time
}

// Projection marks the types as audit.Projection; dbstore carries them out.
func (PutMachine) Projection()    {}
func (RevokeMachine) Projection() {}
func (TouchMachine) Projection()  {}

// MachineStorage reads what the projections wrote. Package dbstore implements it.
type MachineStorage interface {
	// Machine finds one by its ID; none is audit.ErrNotFound.
	Machine(ctx context.Context, id string) (Machine, error)
	// MachineByCertificate finds the one that is not revoked; none is audit.ErrNotFound.
	MachineByCertificate(ctx context.Context, issuer, spki [32]byte) (Machine, error)
	// Machines lists those that have access longest first, then those that are revoked, newest
	// first, at most limit.
	Machines(ctx context.Context, limit int) ([]Machine, error)
	// LiveMachines lists those that are not revoked and expire after a moment.
	LiveMachines(ctx context.Context, at time.Time) ([]Machine, error)
}

// Machines is where machines get and lose access.
type Machines struct {
	Ledger  EnrolmentLedger
	Storage MachineStorage
	Board   *Board
	// TokenOver tells whether the admin token is refused: what it made ends with it.
	TokenOver func(context.Context) bool
	Now       func() time.Time // nil: time.Now

	mu      sync.Mutex
	touched map[string]time.Time
}

// MaxMachineLife bounds the access of a machine.
const MaxMachineLife = 366 * 24 * time.Hour

// maxMachines bounds those that have access, and a list; of more, the oldest are left out.
const maxMachines = 1000

// ErrUnknownMachine is the one answer to whoever shows no access that is good, whatever is
// wrong with it.
var ErrUnknownMachine = errors.New("no such access, or it has ended")

func (m *Machines) now() time.Time {
	if m.Now != nil {
		return m.Now()
	}
	return time.Now()
}

// tokenPrefix marks our tokens, for scanners of leaked secrets.
const tokenPrefix = "chy_"

// ByToken is the principal of a token. ErrUnknownMachine, or errors of the storage.
func (m *Machines) ByToken(ctx context.Context, token string) (Principal, error) {
	id, secret, ok := strings.Cut(strings.TrimPrefix(token, tokenPrefix), "_")
	if !ok || !strings.HasPrefix(token, tokenPrefix) || len(id) != 16 || len(secret) != 64 {
		return Principal{}, ErrUnknownMachine
	}
	one, err := m.Storage.Machine(ctx, id)
	if err != nil && !errors.Is(err, audit.ErrNotFound) {
		return Principal{}, fmt.Errorf("reading a machine: %w", err)
	}
	sum := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(sum[:], one.Secret[:]) != 1 || err != nil || one.Kind != MachineToken {
		return Principal{}, ErrUnknownMachine
	}
	return m.principal(ctx, one)
}

// ByCertificate is the principal of a client certificate, by the SHA-256 of its issuer's
// SPKI and of its own: nothing else in it counts. That it is valid and not revoked is the
// caller's to check. Errors: as of ByToken.
func (m *Machines) ByCertificate(ctx context.Context, issuer, spki [32]byte) (Principal, error) {
	one, err := m.Storage.MachineByCertificate(ctx, issuer, spki)
	if errors.Is(err, audit.ErrNotFound) {
		return Principal{}, ErrUnknownMachine
	}
	if err != nil {
		return Principal{}, fmt.Errorf("reading a machine: %w", err)
	}
	return m.principal(ctx, one)
}

// principal is a machine with those of its roles that its owner can still give.
func (m *Machines) principal(ctx context.Context, one Machine) (Principal, error) {
	now := m.now()
	if !one.Revoked.IsZero() || !one.Expires.After(now) {
		return Principal{}, ErrUnknownMachine
	}
	owner, err := m.owner(ctx, one.Owner)
	if err != nil {
		return Principal{}, err
	}
	p := Principal{Kind: ByMachine, Name: one.Name, Owner: one.Owner}
	for _, a := range one.Roles {
		if owner.mayGive(a) {
			p.Assignments = append(p.Assignments, a)
		}
	}
	if len(p.Assignments) == 0 {
		return Principal{}, ErrUnknownMachine
	}
	m.touch(ctx, one, now)
	return p, nil
}

// owner is who made a machine, as they are now.
func (m *Machines) owner(ctx context.Context, requester string) (Principal, error) {
	if requester == AdminToken {
		if m.TokenOver != nil && m.TokenOver(ctx) {
			return Principal{}, nil
		}
		return Principal{Kind: ByAdminToken}, nil
	}
	rosters, err := m.Board.Rosters(ctx)
	if err != nil {
		return Principal{}, err
	}
	roster := rosters.Current()
	for _, o := range roster.Officers {
		if OfficerRequester(o.Name) == requester {
			return roster.Principal(o), nil
		}
	}
	return Principal{}, nil
}

// machineRoles are those that an administrator gives without having them.
var machineRoles = []Role{RegistrationOfficer, Signer, Auditor}

// mayGive tells whether a principal can give a role to a machine: what they can do
// themselves, and administrators those of [machineRoles].
func (p Principal) mayGive(a Assignment) bool {
	if !p.May(ManageMachines, Resource{}) {
		return false
	}
	if p.administers() && slices.Contains(machineRoles, a.Role) {
		return true
	}
	on := Resource{Issuer: a.Issuer, Profile: a.Profile, Key: a.Key}
	return !slices.ContainsFunc(Permissions(), func(perm Permission) bool { return a.touches(perm) && !p.May(perm, on) })
}

// touch notes a use, at most once a minute. That it cannot be noted refuses nobody.
func (m *Machines) touch(ctx context.Context, one Machine, now time.Time) {
	m.mu.Lock()
	if m.touched == nil || len(m.touched) > 10*maxMachines {
		m.touched = map[string]time.Time{}
	}
	last := m.touched[one.ID]
	due := now.Sub(last) >= time.Minute && now.Sub(one.LastUsed) >= time.Minute
	if due {
		m.touched[one.ID] = now
	}
	m.mu.Unlock()
	if due {
		_ = m.Ledger.Write(ctx, TouchMachine{ID: one.ID, At: now})
	}
}

var machineName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// NewToken makes a token, which is shown only now. Errors: *Refusal, and those of the ledger.
func (m *Machines) NewToken(ctx context.Context, by Principal, name string, roles []Assignment, lifetime time.Duration) (token string, one Machine, err error) {
	secret := randomHex(32)
	one = Machine{Name: name, Kind: MachineToken, Secret: sha256.Sum256([]byte(secret)), Roles: roles}
	one, err = m.put(ctx, by, one, lifetime)
	return tokenPrefix + one.ID + "_" + secret, one, err
}

// AddCertificate lets a client certificate in, by the SHA-256 of its issuer's SPKI and of
// its own. Errors: as of NewToken.
func (m *Machines) AddCertificate(ctx context.Context, by Principal, name string, issuer, spki [32]byte, roles []Assignment, lifetime time.Duration) (Machine, error) {
	return m.put(ctx, by, Machine{Name: name, Kind: MachineCertificate, Secret: spki, Issuer: issuer, Roles: roles}, lifetime)
}

func (m *Machines) put(ctx context.Context, by Principal, one Machine, lifetime time.Duration) (Machine, error) {
	if !machineName.MatchString(one.Name) {
		return one, refuse(BadProposal, "name", "a machine's name is 1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit")
	}
	if lifetime < time.Minute || lifetime > MaxMachineLife {
		return one, refuse(BadProposal, "lifetime", "access of a machine lasts 1m to %s", MaxMachineLife)
	}
	if err := CheckAssignments(one.Roles); err != nil {
		return one, refuse(BadProposal, "roles", "%v", err)
	}
	if len(one.Roles) == 0 || len(one.Roles) > maxRoles {
		return one, refuse(BadProposal, "roles", "name 1 to %d roles; allowed: %v", maxRoles, Roles)
	}
	for _, a := range one.Roles {
		if !by.mayGive(a) {
			return one, refuse(NotAllowed, "roles", "%s cannot give the role %s to a machine: an administrator gives %v, and what they may do themselves", by.Requester(), a, machineRoles)
		}
	}
	now := m.now().UTC().Truncate(time.Second)
	live, err := m.Storage.LiveMachines(ctx, now)
	if err != nil {
		return one, fmt.Errorf("listing machines: %w", err)
	}
	for _, o := range live {
		if o.Name == one.Name {
			return one, refuse(Closed, "name", "machine %s has access already, as %s; take another name, or revoke that first", o.Name, o.ID)
		}
	}
	if len(live) >= maxMachines {
		return one, refuse(Closed, "", "%d machines have access already; revoke some", maxMachines)
	}
	one.ID, one.Owner, one.Created, one.Expires = randomHex(8), by.Requester(), now, now.Add(lifetime.Truncate(time.Second))
	_, err = m.Ledger.Append(ctx, one.event("granted", by, ""), PutMachine{one})
	if errors.Is(err, audit.ErrExists) {
		return one, refuse(Closed, "", "the certificate, or the name, is another machine's already; revoke that first")
	}
	if err != nil {
		return one, fmt.Errorf("recording a machine: %w", err)
	}
	return one, nil
}

// event is the leaf of what became of a machine.
func (one Machine) event(state string, by Principal, reason string) audit.Entry {
	var f audit.Fields
	f.Hash(audit.TagSubject, audit.Digest("machine", append([]byte(one.ID), one.Secret[:]...)))
	f.Text(audit.TagRequester, by.Requester())
	f.Text(audit.TagState, state)
	f.Text(audit.TagReason, reason)
	roles := [][]byte{}
	for _, a := range one.Roles {
		roles = append(roles, []byte(a.String()))
	}
	f.List(audit.TagRoles, roles...)
	f.Uint64(audit.TagExpires, uint64(one.Expires.Unix()))
	return audit.Event(audit.OpMachine, f)
}

// List are all machines that have access, and others of before, newest first.
func (m *Machines) List(ctx context.Context) ([]Machine, error) {
	all, err := m.Storage.Machines(ctx, maxMachines)
	if err != nil {
		return nil, fmt.Errorf("listing machines: %w", err)
	}
	slices.SortStableFunc(all, func(a, b Machine) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// Revoke ends a machine's access at once. Errors: *Refusal, and those of the ledger.
func (m *Machines) Revoke(ctx context.Context, by Principal, id, reason string) error {
	if audit.Text(reason, 256) != reason || reason == "" {
		return refuse(BadProposal, "reason", "say why, in 1 to 256 octets of plain text; it stands in the ledger")
	}
	one, err := m.Storage.Machine(ctx, id)
	if errors.Is(err, audit.ErrNotFound) {
		return refuse(NotFound, "id", "there is no machine with this id")
	}
	if err != nil {
		return fmt.Errorf("reading a machine: %w", err)
	}
	if !by.administers() && one.Owner != by.Requester() {
		return refuse(NotAllowed, "id", "machine %s belongs to %s; its owner or an administrator revokes it", one.Name, one.Owner)
	}
	_, err = m.Ledger.Append(ctx, one.event("revoked", by, reason), RevokeMachine{ID: id, At: m.now()})
	if errors.Is(err, audit.ErrConflict) {
		return refuse(Closed, "id", "machine %s is revoked already", one.Name)
	}
	if err != nil {
		return fmt.Errorf("recording the end of a machine: %w", err)
	}
	return nil
}
