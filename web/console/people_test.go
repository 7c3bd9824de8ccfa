package console_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"net/http/httptest"

	"chancery/admin"
	"chancery/audit"
	"chancery/web/console"
	"chancery/web/console/sessions"
)

const (
	rpID      = "ca.example"
	rpOrigin  = "https://ca.example:8443"
	linkOfEve = "5ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7"
)

// authenticator is a passkey in software.
type authenticator struct {
	key    *ecdsa.PrivateKey
	handle []byte
	admin.Passkey
}

func newAuthenticator(officer string) *authenticator {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	id := make([]byte, 16)
	rand.Read(id)
	handle := audit.Digest("user", append(fakeLedgerID[:], officer...))
	return &authenticator{key, handle[:], admin.Passkey{ID: id, SPKI: spki, Label: "phone of " + officer}}
}

// said is what may be wrong about an answer.
type said struct {
	typ, challenge, origin, rp string
	cross                      bool
	flags                      byte
	signature                  []byte
}

var b64 = base64.RawURLEncoding

// answer is what a browser sends for a challenge.
func (a *authenticator) answer(challenge []byte, edits ...func(*said)) string {
	s := said{typ: "webauthn.get", challenge: b64.EncodeToString(challenge), origin: rpOrigin, rp: rpID, flags: 5}
	for _, e := range edits {
		e(&s)
	}
	client, _ := json.Marshal(map[string]any{"type": s.typ, "challenge": s.challenge, "origin": s.origin, "crossOrigin": s.cross})
	rp := sha256.Sum256([]byte(s.rp))
	data := append(rp[:], s.flags, 0, 0, 0, 1)
	sum := sha256.Sum256(client)
	digest := sha256.Sum256(append(slices.Clone(data), sum[:]...))
	sig := s.signature
	if sig == nil {
		var err error
		if sig, err = ecdsa.SignASN1(rand.Reader, a.key, digest[:]); err != nil {
			panic(err)
		}
	}
	out, _ := json.Marshal(map[string]any{"id": b64.EncodeToString(a.ID), "rawId": b64.EncodeToString(a.ID), "type": "public-key", "clientExtensionResults": map[string]any{},
		"response": map[string]any{"clientDataJSON": b64.EncodeToString(client), "authenticatorData": b64.EncodeToString(data), "signature": b64.EncodeToString(sig), "userHandle": b64.EncodeToString(a.handle)}})
	return string(out)
}

// challenge asks the console for one.
func (v *visitor) challenge(t testing.TB, path string) []byte {
	t.Helper()
	w := v.get(path)
	var o struct {
		Challenge        string `json:"challenge"`
		RPID             string `json:"rpId"`
		UserVerification string `json:"userVerification"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &o); err != nil || o.UserVerification != "required" {
		t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
	c, err := b64.DecodeString(o.Challenge)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// signIn signs in with a passkey.
func (v *visitor) signIn(t testing.TB, a *authenticator, edits ...func(*said)) *httptest.ResponseRecorder {
	t.Helper()
	return v.post("/console/sign-in", "assertion", a.answer(v.challenge(t, "/console/sign-in/options"), edits...), "to", "")
}

var fakeLedgerID = audit.LedgerID{0x5f, 0x1e, 0x0b, 0x7a, 0x9c, 0x3d, 0x2e, 0x41}

// passkeys of the people on the rosters of fixtures.
var keyOf = sync.OnceValue(func() map[string]*authenticator {
	out := map[string]*authenticator{}
	for _, name := range []string{"ada", "bob", "cyd", "dan", "eve"} {
		out[name] = newAuthenticator(name)
	}
	return out
})

// fakeBoard has a roster and a proposal in memory.
type fakeBoard struct {
	mu        sync.Mutex
	h         admin.History
	proposals []*admin.Approval
	err       error
	cancelled []string
}

func everything(but ...admin.Role) (out []admin.Assignment) {
	for _, r := range admin.Roles {
		if !slices.Contains(but, r) {
			out = append(out, admin.Assignment{Role: r})
		}
	}
	return out
}

func newFakeBoard() *fakeBoard {
	officer := func(name string, roles ...admin.Assignment) admin.Officer {
		return admin.Officer{Name: name, Roles: roles, Passkeys: []admin.Passkey{keyOf()[name].Passkey}}
	}
	ada := officer("ada", everything(admin.Auditor)...)
	ada.Passkeys = append(ada.Passkeys, admin.Passkey{ID: []byte("second"), SPKI: keyOf()["ada"].SPKI, Label: "vault"})
	bob := officer("bob", admin.Assignment{Role: admin.CryptoOfficer})
	bob.SPKI = keyOf()["eve"].SPKI
	return &fakeBoard{h: admin.History{Base: admin.Roster{Version: 1, Quorum: 2, RPID: rpID, Origins: []string{rpOrigin}, Groups: []admin.Group{{Name: "night", Quorum: 1, Members: []string{"bob"}}}, Officers: []admin.Officer{
		ada, bob, officer("cyd", admin.Assignment{Role: admin.Auditor}), officer("dan", admin.Assignment{Role: admin.RegistrationOfficer, Issuer: "issuing"}), officer("eve", admin.Assignment{Role: admin.Signer})}}}}
}

func (b *fakeBoard) change(edit func(*admin.Roster)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := b.h.Current().Successor()
	edit(&next)
	b.h.Changes = append(slices.Clone(b.h.Changes), admin.RosterChange{Roster: next, Leaf: 3})
}

func (b *fakeBoard) Rosters(context.Context) (admin.History, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.h, b.err
}

func (b *fakeBoard) Terms(ctx context.Context) (admin.Terms, error) {
	h, err := b.Rosters(ctx)
	r := h.Current()
	return admin.Terms{Ledger: fakeLedgerID, Roster: r, RosterDigest: r.Digest(), PolicyDigest: r.PolicyDigest()}, err
}

// List has the newest 200, as the board has.
func (b *fakeBoard) List(_ context.Context, state admin.State) (out []*admin.Approval, err error) {
	for _, a := range slices.Backward(b.proposals) {
		if (state == "" || a.State == state) && len(out) < 200 {
			out = append(out, a)
		}
	}
	return out, b.err
}

func (b *fakeBoard) Show(_ context.Context, id string) (*admin.Approval, error) {
	for _, a := range b.proposals {
		if a.ID == id {
			return a, nil
		}
	}
	return nil, &admin.Refusal{Code: admin.NotFound, Detail: "there is no proposal with this id"}
}

func (b *fakeBoard) Propose(context.Context, admin.Ask) (*admin.Approval, error) {
	return nil, &admin.Refusal{Code: admin.BadProposal, Detail: "not here"}
}

func (b *fakeBoard) Vote(_ context.Context, id string, v admin.Ballot) (*admin.Approval, error) {
	return nil, &admin.Refusal{Code: admin.VoteRefused, Detail: "not here"}
}

func (b *fakeBoard) Cancel(ctx context.Context, id string) (*admin.Approval, error) {
	b.cancelled = append(b.cancelled, id)
	return b.Show(ctx, id)
}

// put adds a pending proposal.
func (b *fakeBoard) put(requester, action, parameters string, acts ...string) *admin.Approval {
	terms, _ := b.Terms(context.Background())
	canonical, err := admin.CanonicalParameters([]byte(parameters))
	if err != nil {
		panic(err)
	}
	p := terms.Draft(action, acts, canonical, requester, start, 0)
	raw, err := p.Encode()
	if err != nil {
		panic(err)
	}
	hash := admin.ProposalHash(raw)
	a := &admin.Approval{Record: admin.Record{Hash: hash, Proposal: raw, Parameters: canonical, Leaf: 0, Expires: p.Expires, State: admin.Pending}, ID: admin.ProposalID(hash), Asked: p, Quorum: 2}
	b.proposals = append(b.proposals, a)
	return a
}

// fakeEnrolments has the invitation of eve.
type fakeEnrolments struct {
	mu   sync.Mutex
	list []admin.Enrolment
}

func (e *fakeEnrolments) Open(_ context.Context, name string, roles []admin.Assignment, by string, _ time.Duration) (string, admin.Enrolment, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if name == "" {
		return "", admin.Enrolment{}, &admin.Refusal{Code: admin.BadProposal, Detail: "no name"}
	}
	en := admin.Enrolment{ID: "00112233445566aa", Name: name, Roles: roles, By: by, Created: start, Expires: start.Add(24 * time.Hour), State: admin.EnrolmentOpen}
	e.list = append(e.list, en)
	return linkOfEve, en, nil
}

func (e *fakeEnrolments) Find(_ context.Context, secret string) (admin.Enrolment, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if secret == linkOfEve && len(e.list) > 0 && e.list[0].State == admin.EnrolmentOpen {
		return e.list[0], nil
	}
	return admin.Enrolment{}, &admin.Refusal{Code: admin.NotFound, Detail: "this link was used"}
}

func (e *fakeEnrolments) AddPasskey(ctx context.Context, secret string, k admin.Passkey) (admin.Enrolment, error) {
	if _, err := e.Find(ctx, secret); err != nil {
		return admin.Enrolment{}, err
	}
	e.list[0].Passkeys = append(e.list[0].Passkeys, k)
	return e.list[0], nil
}

func (e *fakeEnrolments) Finish(ctx context.Context, secret string, seen int) (admin.Enrolment, *admin.Approval, error) {
	if _, err := e.Find(ctx, secret); err != nil {
		return admin.Enrolment{}, nil, err
	}
	e.list[0].State = admin.EnrolmentDone
	return e.list[0], nil, nil
}

func (e *fakeEnrolments) List(context.Context) ([]admin.Enrolment, error) { return e.list, nil }

func (e *fakeEnrolments) Named(_ context.Context, id string) (admin.Enrolment, error) {
	for _, en := range e.list {
		if en.ID == id {
			return en, nil
		}
	}
	return admin.Enrolment{}, &admin.Refusal{Code: admin.NotFound, Detail: "no such enrolment"}
}

func (e *fakeEnrolments) Withdraw(_ context.Context, id, by string) error {
	for i := range e.list {
		if e.list[i].ID == id {
			e.list[i].State = admin.EnrolmentWithdrawn
		}
	}
	return nil
}

func (e *fakeEnrolments) RP(context.Context) (string, []string, error) {
	return rpID, []string{rpOrigin}, nil
}

func (e *fakeEnrolments) Parameters(context.Context, admin.Enrolment) ([]byte, error) {
	return nil, &admin.Refusal{Code: admin.Closed, Detail: "not here"}
}

// fakeMachines keeps machines in memory.
type fakeMachines struct {
	list []admin.Machine
}

func (m *fakeMachines) List(context.Context) ([]admin.Machine, error) { return m.list, nil }

func (m *fakeMachines) NewToken(_ context.Context, by admin.Principal, name string, roles []admin.Assignment, lifetime time.Duration) (string, admin.Machine, error) {
	if name == "" || len(roles) == 0 {
		return "", admin.Machine{}, &admin.Refusal{Code: admin.BadProposal, Detail: "name 1 to 16 roles"}
	}
	one := admin.Machine{ID: hex.EncodeToString([]byte("machine")) + "00", Name: name, Kind: admin.MachineToken, Roles: roles, Owner: by.Requester(), Created: start, Expires: start.Add(lifetime)}
	m.list = append(m.list, one)
	return "chy_" + one.ID + "_secret", one, nil
}

func (m *fakeMachines) Revoke(_ context.Context, by admin.Principal, id, reason string) error {
	for i := range m.list {
		if m.list[i].ID == id {
			m.list[i].Revoked = start
		}
	}
	return nil
}

// fakeSessions keeps sessions as the database does.
type fakeSessions struct {
	mu     sync.Mutex
	rows   map[sessions.ID]sessions.Session
	spent  map[[32]byte]bool
	writes int
	err    error
}

func (s *fakeSessions) Session(_ context.Context, id sessions.ID) (sessions.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.rows[id]
	if !ok && s.err == nil {
		return one, audit.ErrNotFound
	}
	return one, s.err
}

func (s *fakeSessions) Write(_ context.Context, ps ...audit.Projection) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	for _, p := range ps {
		s.writes++
		switch p := p.(type) {
		case sessions.Put:
			delete(s.rows, p.Instead)
			s.rows[p.ID] = p.Session
		case sessions.Rotate:
			one, ok := s.rows[p.From]
			if !ok {
				return audit.ErrConflict
			}
			delete(s.rows, p.From)
			one.Form, one.Stepped, one.Seen = p.Form, p.At, p.At
			s.rows[p.To] = one
		case sessions.Touch:
			if one, ok := s.rows[p.ID]; ok {
				one.Seen = p.At
				s.rows[p.ID] = one
			}
		case sessions.Close:
			delete(s.rows, p.ID)
		case sessions.Spend:
			if s.spent[p.Challenge] {
				return audit.ErrExists
			}
			s.spent[p.Challenge] = true
		}
	}
	return nil
}

func (s *fakeSessions) count() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.rows) }

// holds tells whether the table has a key or a value that spells s.
func (s *fakeSessions) holds(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, one := range s.rows {
		if string(id[:]) == text || hex.EncodeToString(id[:]) == text || one.Form == text {
			return true
		}
	}
	return false
}

var _ console.Sessions = (*fakeSessions)(nil)
