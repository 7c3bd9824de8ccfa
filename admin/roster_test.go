package admin_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
)

const (
	rpID   = "ca.example"
	origin = "https://ca.example"
)

// authenticator is a passkey in software.
type authenticator struct {
	key crypto.Signer
	admin.Passkey
}

func newAuthenticator(key crypto.Signer) authenticator {
	id := make([]byte, 16)
	rand.Read(id)
	return authenticator{key, admin.Passkey{ID: id, SPKI: must(x509.MarshalPKIXPublicKey(key.Public())), Label: "phone"}}
}

func p256() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// client is what a browser says about an assertion.
type client struct {
	Type        string `json:"type"`
	Challenge   string `json:"challenge"`
	Origin      string `json:"origin"`
	CrossOrigin bool   `json:"crossOrigin"`
}

// assert signs a challenge; edit may change what is said before it is signed.
func (a authenticator) assert(challenge [32]byte, edit func(c *client, data []byte)) admin.Assertion {
	c := client{Type: "webauthn.get", Challenge: base64.RawURLEncoding.EncodeToString(challenge[:]), Origin: origin}
	rp := sha256.Sum256([]byte(rpID))
	data := append(rp[:], 0x05, 0, 0, 0, 1)
	if edit != nil {
		edit(&c, data)
	}
	out := admin.Assertion{AuthenticatorData: data, ClientDataJSON: must(json.Marshal(c))}
	out.Signature = a.sign(out)
	return out
}

func (a authenticator) sign(of admin.Assertion) []byte {
	sum := sha256.Sum256(of.ClientDataJSON)
	message := append(slices.Clone(of.AuthenticatorData), sum[:]...)
	opts := crypto.SignerOpts(crypto.SHA256)
	if _, ok := a.key.(ed25519.PrivateKey); ok {
		return must(a.key.Sign(rand.Reader, message, crypto.Hash(0)))
	}
	digest := sha256.Sum256(message)
	return must(a.key.Sign(rand.Reader, digest[:], opts))
}

func (a authenticator) vote(d admin.Decision, proposal []byte) []byte {
	return a.assert(admin.ApprovalDigest(d, proposal), nil).Encode()
}

func TestAssertion(t *testing.T) {
	challenge := sha256.Sum256([]byte("x"))
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, key := range map[string]crypto.Signer{"ES256": p256(), "EdDSA": ed, "RS256": must(rsa.GenerateKey(rand.Reader, 2048))} {
		a := newAuthenticator(key)
		if err := a.Passkey.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		back, err := admin.DecodeAssertion(a.assert(challenge, nil).Encode())
		if err == nil {
			err = back.Verify(a.SPKI, rpID, []string{origin}, challenge)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, other := newAuthenticator(p256()), newAuthenticator(p256())
	for name, c := range map[string]struct {
		make func() admin.Assertion
		says string
	}{
		"another challenge": {func() admin.Assertion { return a.assert(sha256.Sum256([]byte("y")), nil) }, "something else"},
		"another origin": {func() admin.Assertion {
			return a.assert(challenge, func(c *client, _ []byte) { c.Origin = "https://evil.example" })
		}, "origin"},
		"framed by others": {func() admin.Assertion { return a.assert(challenge, func(c *client, _ []byte) { c.CrossOrigin = true }) }, "origin"},
		"a new credential": {func() admin.Assertion {
			return a.assert(challenge, func(c *client, _ []byte) { c.Type = "webauthn.create" })
		}, "of type"},
		"another RP":        {func() admin.Assertion { return a.assert(challenge, func(_ *client, d []byte) { d[0] ^= 1 }) }, "another relying party"},
		"user not verified": {func() admin.Assertion { return a.assert(challenge, func(_ *client, d []byte) { d[32] = 1 }) }, "verify its user"},
		"user not there":    {func() admin.Assertion { return a.assert(challenge, func(_ *client, d []byte) { d[32] = 4 }) }, "verify its user"},
		"another key": {func() admin.Assertion {
			x := a.assert(challenge, nil)
			x.Signature = other.sign(x)
			return x
		}, "does not verify"},
		"short data": {func() admin.Assertion {
			x := a.assert(challenge, nil)
			x.AuthenticatorData = x.AuthenticatorData[:36]
			return x
		}, "another relying party"},
		"a member twice": {func() admin.Assertion {
			x := a.assert(challenge, nil)
			x.ClientDataJSON = fmt.Appendf(nil, `{"type":"x",%s`, x.ClientDataJSON[1:])
			x.Signature = a.sign(x)
			return x
		}, "no proper JSON"},
		"no JSON": {func() admin.Assertion { x := a.assert(challenge, nil); x.ClientDataJSON = []byte("{"); return x }, "no proper JSON"},
	} {
		if err := c.make().Verify(a.SPKI, rpID, []string{origin}, challenge); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %q", name, err, c.says)
		}
	}
}

func FuzzDecodeAssertion(f *testing.F) {
	f.Add(admin.Assertion{AuthenticatorData: make([]byte, 37), ClientDataJSON: []byte(`{}`), Signature: []byte{1}}.Encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := admin.DecodeAssertion(b)
		if err != nil {
			return
		}
		if !slices.Equal(a.Encode(), b) {
			t.Errorf("%x has two encodings", b)
		}
		if a.Verify([]byte{1}, rpID, []string{origin}, [32]byte{}) == nil {
			t.Error("it verifies without a key")
		}
	})
}

// enrolments of a room.
func (r *room) enrolments() *admin.Enrolments {
	return &admin.Enrolments{Ledger: r.ledger, Storage: r.db, Board: r.board, RPID: rpID, Origins: []string{origin}, Now: func() time.Time { return time.Unix(r.now.Load(), 0) }}
}

// change carries a change of the roster out, approved by officers 0 and 1 with CLI keys.
func (r *room) change(edit func(*admin.Roster)) error {
	r.t.Helper()
	now := must(r.board.Rosters(r.t.Context())).Current()
	next := now.Successor()
	edit(&next)
	a, err := r.board.Propose(r.t.Context(), admin.Ask{Action: admin.ChangeRoster, Parameters: must(admin.ChangeParameters(now, next))})
	if err != nil {
		return err
	}
	for i := range 2 {
		if err := r.approve(i, a.ID, a.Proposal); err != nil {
			return err
		}
	}
	r.wait(a.ID, admin.Done)
	return nil
}

func (r *room) ballot(id string, o string, a authenticator, proposal []byte) error {
	_, err := r.board.Vote(r.t.Context(), id, admin.Ballot{Officer: o, Passkey: a.ID, Decision: admin.Approve, Signature: a.vote(admin.Approve, proposal)})
	return err
}

// A link collects passkeys, the officers put them on the roster, and from then on they
// vote; what was pending under the old roster is dead, with its votes.
func TestEnrolment(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	r.run()
	e, ctx := r.enrolments(), t.Context()
	old := r.propose("old")
	if err := r.approve(2, old.ID, old.Proposal); err != nil {
		t.Fatal(err)
	}
	secret, en, err := e.Open(ctx, "dan", []admin.Assignment{{Role: admin.CryptoOfficer}, {Role: admin.Administrator}}, admin.AdminToken, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Find(ctx, strings.Repeat("0", 64)); !refused(err, admin.NotFound, "was used") {
		t.Errorf("a guessed link: %v", err)
	}
	if _, _, err := e.Finish(ctx, secret, 0); !refused(err, admin.BadProposal, "no passkey") {
		t.Errorf("an empty enrolment: %v", err)
	}
	one, two := newAuthenticator(p256()), newAuthenticator(p256())
	for _, a := range []authenticator{one, two} {
		if en, err = e.AddPasskey(ctx, secret, a.Passkey); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.AddPasskey(ctx, secret, one.Passkey); !refused(err, admin.Closed, "made already") {
		t.Errorf("a passkey twice: %v", err)
	}
	en, a, err := e.Finish(ctx, secret, 2)
	if err != nil || a == nil || len(en.Passkeys) != 2 {
		t.Fatalf("%+v %+v %v", en, a, err)
	}
	if _, err := e.Find(ctx, secret); !refused(err, admin.NotFound, "was used") {
		t.Errorf("a used link: %v", err)
	}
	for i := range 2 {
		if err := r.approve(i, a.ID, a.Proposal); err != nil {
			t.Fatal(err)
		}
	}
	r.wait(a.ID, admin.Done)
	h := must(r.board.Rosters(ctx))
	now := h.Current()
	if dan, _ := now.Officer("dan"); now.Version != 1 || len(dan.Passkeys) != 2 || now.RPID != rpID || !now.Enrolled() {
		t.Fatalf("%+v", now)
	}
	if err := h.Check(ctx, r.ledger.Leaf); err != nil {
		t.Error(err)
	}
	// What waited under the old roster is dead.
	if s := r.wait(old.ID, admin.Cancelled); !strings.Contains(s.Reason, "roster") {
		t.Errorf("%+v", s.Reason)
	}
	if err := r.approve(1, old.ID, old.Proposal); !refused(err, admin.Closed, "cancelled") {
		t.Errorf("a vote on it: %v", err)
	}

	r.roster = now // what the executor of the test checks against
	// A passkey and a CLI key decide together; one officer has one vote, with either passkey.
	k := r.propose("k1")
	if err := r.ballot(k.ID, "dan", one, k.Proposal); err != nil {
		t.Fatal(err)
	}
	if err := r.ballot(k.ID, "dan", two, k.Proposal); !refused(err, admin.VoteRefused, "has voted") {
		t.Errorf("a second vote by the other passkey: %v", err)
	}
	if err := r.ballot(k.ID, "ada", two, k.Proposal); !refused(err, admin.VoteRefused, "none of officer ada") {
		t.Errorf("a vote in another's name: %v", err)
	}
	if err := r.approve(0, k.ID, k.Proposal); err != nil {
		t.Fatal(err)
	}
	r.wait(k.ID, admin.Done)

	// A restart knows it, and a database that lost it does not start.
	r.close()
	r.open()
	h = must(r.db.Rosters(ctx))
	if err := h.Check(ctx, r.ledger.Leaf); err != nil || h.Current().Digest() != now.Digest() {
		t.Errorf("after a restart: %v", err)
	}
}

// meddling runs something after each look at an enrolment.
type meddling struct {
	admin.EnrolmentStorage
	then func()
}

func (m *meddling) Enrolment(ctx context.Context, hash [32]byte) (admin.Enrolment, error) {
	en, err := m.EnrolmentStorage.Enrolment(ctx, hash)
	if then := m.then; then != nil {
		m.then = nil
		then()
	}
	return en, err
}

// Somebody else who has the link adds a passkey before it is closed, or while it is: then it
// is not closed, and no passkey comes along that the entry of the ledger does not name.
func TestAttack_WEB_09_PasskeyOfAnother(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	r.run()
	e, ctx := r.enrolments(), t.Context()
	m := &meddling{EnrolmentStorage: r.db}
	e.Storage = m
	secret, en, err := e.Open(ctx, "dan", []admin.Assignment{{Role: admin.CryptoOfficer}}, admin.OfficerRequester("ada"), 0)
	if err != nil {
		t.Fatal(err)
	}
	add := func() {
		t.Helper()
		if _, err := e.AddPasskey(ctx, secret, newAuthenticator(p256()).Passkey); err != nil {
			t.Fatal(err)
		}
	}
	add()
	add() // of another
	if _, _, err := e.Finish(ctx, secret, 1); !refused(err, admin.Closed, "meanwhile") {
		t.Errorf("ATTACK WORKED: finished with a passkey that the person was not shown: %v", err)
	}
	m.then = add
	if _, _, err := e.Finish(ctx, secret, 2); !refused(err, admin.Closed, "meanwhile") {
		t.Errorf("ATTACK WORKED: finished while another passkey came: %v", err)
	}
	if en, err = e.Named(ctx, en.ID); err != nil || en.State != admin.EnrolmentOpen || len(en.Passkeys) != 3 {
		t.Fatalf("%+v %v", en, err)
	}
	if en, _, err = e.Finish(ctx, secret, 3); err != nil || len(en.Passkeys) != 3 {
		t.Fatalf("%+v %v", en, err)
	}
	m.then = nil
	if _, err := e.AddPasskey(ctx, secret, newAuthenticator(p256()).Passkey); err == nil {
		t.Error("ATTACK WORKED: a passkey came after the end")
	}
}

// Passkeys that the officers took off the roster do not come back by their old link.
func TestAttack_WEB_09_UsedLink(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	r.run()
	e, ctx := r.enrolments(), t.Context()
	secret, _, err := e.Open(ctx, "dan", []admin.Assignment{{Role: admin.CryptoOfficer}}, admin.OfficerRequester("ada"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.AddPasskey(ctx, secret, newAuthenticator(p256()).Passkey); err != nil {
		t.Fatal(err)
	}
	en, _, err := e.Finish(ctx, secret, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Parameters(ctx, en); err != nil {
		t.Fatal(err)
	}
	if err := r.change(func(n *admin.Roster) { *n = e.Next(must(r.board.Rosters(ctx)).Current(), en) }); err != nil {
		t.Fatal(err)
	}
	err = r.change(func(n *admin.Roster) {
		n.Officers = slices.DeleteFunc(n.Officers, func(o admin.Officer) bool { return o.Name == "dan" })
	})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := e.Parameters(ctx, en); !refused(err, admin.Closed, "taken off") {
		t.Errorf("ATTACK WORKED: the passkeys of a removed officer are asked for again: %s %v", p, err)
	}
}

// Whoever makes many links cannot hide one that is open behind them: it is listed, counted and
// can be withdrawn.
func TestAttack_WEB_09_HiddenLink(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	e, ctx := r.enrolments(), t.Context()
	_, hidden, err := e.Open(ctx, "ada", nil, admin.OfficerRequester("bob"), admin.MaxEnrolment)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		r.now.Add(1)
		_, en, err := e.Open(ctx, "bob", nil, admin.OfficerRequester("bob"), time.Minute)
		if err == nil {
			err = e.Withdraw(ctx, en.ID, admin.OfficerRequester("bob"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Withdraw(ctx, hidden.ID, admin.AdminToken); err != nil {
		t.Errorf("ATTACK WORKED: a link that is open cannot be withdrawn: %v", err)
	}
}

// An officer who asks by passkey signs the request, and has no vote, nor has a machine's owner.
func TestOwnRequest(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	r.run()
	ctx, dan := t.Context(), newAuthenticator(p256())
	err := r.change(func(n *admin.Roster) {
		n.RPID, n.Origins = rpID, []string{origin}
		n.Officers = append(n.Officers, admin.Officer{Name: "dan", Passkeys: []admin.Passkey{dan.Passkey}, Roles: []admin.Assignment{{Role: admin.CryptoOfficer}}})
	})
	if err != nil {
		t.Fatal(err)
	}
	parameters := []byte(`{"name":"k1"}`)
	p := must(r.board.Terms(ctx)).Draft(testAction, must(testActs(parameters)), parameters, admin.OfficerRequester("dan"), time.Unix(r.now.Load(), 0), 0)
	raw := must(p.Encode())
	ask := admin.Ask{Action: testAction, Parameters: parameters, Officer: "dan", Passkey: dan.ID, Proposal: raw, Signature: dan.vote(admin.Request, raw)}
	forged := ask
	forged.Signature = dan.vote(admin.Approve, raw)
	if _, err := r.board.Propose(ctx, forged); !refused(err, admin.VoteRefused, "something else") {
		t.Errorf("asked with an approval: %v", err)
	}
	if _, err := r.board.Propose(ctx, admin.Ask{Action: testAction, Parameters: parameters, Requester: "officer:dan"}); !refused(err, admin.VoteRefused, "signs what") {
		t.Errorf("asked in an officer's name: %v", err)
	}
	a, err := r.board.Propose(ctx, ask)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ballot(a.ID, "dan", dan, raw); !refused(err, admin.VoteRefused, "others must decide") {
		t.Errorf("own request approved: %v", err)
	}
	m, err := r.board.Propose(ctx, admin.Ask{Action: testAction, Parameters: []byte(`{"name":"k2"}`), Requester: admin.Principal{Kind: admin.ByMachine, Name: "ci", Owner: "officer:dan"}.Requester()})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ballot(m.ID, "dan", dan, m.Proposal); !refused(err, admin.VoteRefused, "others must decide") {
		t.Errorf("an own machine's request approved: %v", err)
	}
}

// Groups are joined by AND, and a number of votes must be by CLI keys.
func TestGroups(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	r.run()
	dan, eve := newAuthenticator(p256()), newAuthenticator(p256())
	co := []admin.Assignment{{Role: admin.CryptoOfficer}}
	err := r.change(func(n *admin.Roster) {
		n.RPID, n.Origins, n.CLI = rpID, []string{origin}, 1
		n.Officers = append(n.Officers, admin.Officer{Name: "dan", Passkeys: []admin.Passkey{dan.Passkey}, Roles: co}, admin.Officer{Name: "eve", Passkeys: []admin.Passkey{eve.Passkey}, Roles: co},
			admin.Officer{Name: "aud", Passkeys: []admin.Passkey{newAuthenticator(p256()).Passkey}, Roles: []admin.Assignment{{Role: admin.Auditor}}})
		n.Groups = []admin.Group{{Name: "security", Quorum: 1, Members: []string{"ada", "dan"}}, {Name: "operations", Quorum: 1, Members: []string{"bob", "eve"}}}
	})
	if err != nil {
		t.Fatal(err)
	}
	r.roster = must(r.board.Rosters(t.Context())).Current()
	pending := func(what string, a *admin.Approval) {
		t.Helper()
		if s := must(r.board.Show(t.Context(), a.ID)); s.State != admin.Pending {
			t.Errorf("%s: it is %s", what, s.State)
		}
	}
	a := r.propose("k1")
	for _, v := range []error{r.ballot(a.ID, "dan", dan, a.Proposal), r.approve(0, a.ID, a.Proposal), r.approve(2, a.ID, a.Proposal)} {
		if v != nil {
			t.Fatal(v)
		}
	}
	pending("three approvals, none of operations", a)
	if err := r.ballot(a.ID, "eve", eve, a.Proposal); err != nil {
		t.Fatal(err)
	}
	r.wait(a.ID, admin.Done)
	b := r.propose("k2")
	if err := errors.Join(r.ballot(b.ID, "dan", dan, b.Proposal), r.ballot(b.ID, "eve", eve, b.Proposal)); err != nil {
		t.Fatal(err)
	}
	pending("both groups, but no CLI key", b)
	if err := r.approve(2, b.ID, b.Proposal); err != nil {
		t.Fatal(err)
	}
	r.wait(b.ID, admin.Done)
	// Both of a group say no: it cannot come to pass any more.
	c := r.propose("k3")
	must(r.board.Vote(t.Context(), c.ID, admin.Ballot{Officer: "bob", Decision: admin.Reject, Signature: must(r.keys[1].SignVote(admin.Reject, c.Proposal))}))
	must(r.board.Vote(t.Context(), c.ID, admin.Ballot{Officer: "eve", Passkey: eve.ID, Decision: admin.Reject, Signature: eve.vote(admin.Reject, c.Proposal)}))
	r.wait(c.ID, admin.Rejected)
}

// What nobody may be able to decide is refused before anybody votes, and a change must
// begin at the roster in force.
func TestRosterRefused(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	r.run()
	k := newAuthenticator(p256())
	co := []admin.Assignment{{Role: admin.CryptoOfficer}}
	for name, c := range map[string]struct {
		edit func(*admin.Roster)
		says string
	}{
		"a policy of one": {func(n *admin.Roster) { n.Quorum = 1 }, "quorum of 1"},
		"too few voters":  {func(n *admin.Roster) { n.Officers = n.Officers[:1] }, "quorum of 2 of 1"},
		"nobody votes": {func(n *admin.Roster) {
			n.Officers[0].Roles[0].Role, n.Officers[1].Roles[0].Role = admin.Auditor, admin.Auditor
		}, "quorum of 2 of 1"},
		"limited crypto officers": {func(n *admin.Roster) { n.Officers[0].Roles[0].Key, n.Officers[1].Roles[0].Key = "k", "k" }, "quorum of 2 of 1"},
		"no role":                 {func(n *admin.Roster) { n.Officers[2].Roles = nil }, "at least one role"},
		"unknown role":            {func(n *admin.Roster) { n.Officers[2].Roles[0].Role = "god" }, "there is no role"},
		"an auditor who acts": {func(n *admin.Roster) {
			n.Officers[2].Roles = append(n.Officers[2].Roles, admin.Assignment{Role: admin.Auditor})
		}, "changes nothing"},
		"no key":               {func(n *admin.Roster) { n.Officers[2].SPKI = nil }, "at least one key"},
		"one key for two":      {func(n *admin.Roster) { n.Officers[2].SPKI = n.Officers[1].SPKI }, "twice"},
		"a name twice":         {func(n *admin.Roster) { n.Officers[2].Name = "ada" }, "twice"},
		"passkeys without rp":  {func(n *admin.Roster) { n.Officers[2].Passkeys = []admin.Passkey{k.Passkey} }, "rp_id"},
		"an IP as rp":          {func(n *admin.Roster) { n.RPID, n.Origins = "127.0.0.1", []string{"https://127.0.0.1"} }, "rp_id"},
		"an origin elsewhere":  {func(n *admin.Roster) { n.RPID, n.Origins = rpID, []string{"https://evil.example"} }, "origin"},
		"an origin in clear":   {func(n *admin.Roster) { n.RPID, n.Origins = rpID, []string{"http://ca.example"} }, "origin"},
		"a group of strangers": {func(n *admin.Roster) { n.Groups = []admin.Group{{Name: "g", Quorum: 1, Members: []string{"eve"}}} }, "no officer who votes"},
		"a group that cannot":  {func(n *admin.Roster) { n.Groups = []admin.Group{{Name: "g", Quorum: 2, Members: []string{"ada"}}} }, "not possible"},
		"a member twice": {func(n *admin.Roster) {
			n.Groups = []admin.Group{{Name: "g", Quorum: 2, Members: []string{"ada", "ada"}}}
		}, "twice"},
		"more CLI votes than keys": {func(n *admin.Roster) { n.CLI = 4 }, "have a CLI key"},
		"a version too many":       {func(n *admin.Roster) { n.Version = 2 }, "the next one has version 1"},
		"a slash in a name": {func(n *admin.Roster) {
			n.Officers = append(n.Officers, admin.Officer{Name: "a/officer:ada", SPKI: must(must(admin.NewOfficerKey("x")).Officer()).SPKI, Roles: co})
		}, "no slash"},
	} {
		if err := r.change(c.edit); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %q", name, err, c.says)
		}
	}
	if r.leaves(audit.OpProposal) != 0 {
		t.Error("something of it was asked for")
	}
	if err := r.change(func(n *admin.Roster) { n.Quorum = 3 }); err != nil {
		t.Fatal(err)
	}
}

// The history of rosters proves itself; whoever writes to the database alone adds nothing
// to it, and takes nothing away.
func TestHSM11ForgedRoster(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	if !strings.HasPrefix(r.url, "sqlite:") {
		t.Skip("writes past the server into a SQLite file")
	}
	r.run()
	if err := r.change(func(n *admin.Roster) { n.Officers = n.Officers[:2] }); err != nil { // cyd leaves
		t.Fatal(err)
	}
	good := must(r.board.Rosters(t.Context()))
	zero, _ := must(r.ledger.Leaf(t.Context(), 0)).Hash(audit.TagRoster)
	stranger := newCollege(2, "eve", "mal")
	for name, edit := range map[string]func(h *admin.History){
		"another roster": func(h *admin.History) { h.Changes[0].Roster.Officers = stranger.roster.Officers },
		"a forged vote":  func(h *admin.History) { h.Changes[0].Warrant.Votes[0].Signature[9] ^= 1 },
		"one vote":       func(h *admin.History) { h.Changes[0].Warrant.Votes = h.Changes[0].Warrant.Votes[:1] },
		"twice":          func(h *admin.History) { h.Changes = append(h.Changes, h.Changes[0]) },
		"another entry":  func(h *admin.History) { h.Changes[0].Leaf = 1 },
		"no entry":       func(h *admin.History) { h.Changes[0].Leaf = 0 },
		"other officers of leaf 0": func(h *admin.History) {
			h.Base = stranger.roster
			h.Changes = nil
		},
	} {
		var h admin.History
		if err := json.Unmarshal(must(json.Marshal(good)), &h); err != nil {
			t.Fatal(err)
		}
		edit(&h)
		if err := h.Check(t.Context(), r.ledger.Leaf); !errors.Is(err, audit.ErrTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after, err := good.CheckChain(zero); err != nil || len(after) != 1 {
		t.Errorf("the good one: %v, %d", err, len(after))
	}
	a := r.propose("k1")
	exec(r, "DELETE FROM roster_change")
	if err := r.approve(2, a.ID, a.Proposal); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("a vote of an officer who left, on a database that was rolled back: %v", err)
	}
}

// The one table gives each role something, and nothing to who has none.
func TestRoles(t *testing.T) {
	has := func(role admin.Role, p admin.Permission) bool {
		return admin.Principal{Kind: admin.ByOfficer, Name: "x", Assignments: []admin.Assignment{{Role: role}}}.May(p, admin.Resource{})
	}
	for _, p := range admin.Permissions() {
		if (admin.Principal{Kind: admin.ByOfficer, Name: "x"}).May(p, admin.Resource{}) || (admin.Principal{}).MaySome(p) {
			t.Errorf("%s without a role", p)
		}
		if reads := strings.HasSuffix(string(p), ".read"); has(admin.Auditor, p) != reads {
			t.Errorf("an auditor and %s: %t", p, has(admin.Auditor, p))
		}
		if !slices.ContainsFunc(admin.Roles, func(r admin.Role) bool { return has(r, p) }) {
			t.Errorf("nobody has %s", p)
		}
		if !(admin.Principal{Kind: admin.ByAdminToken}).May(p, admin.Resource{}) {
			t.Errorf("the admin token lacks %s", p)
		}
	}
	if (admin.Roster{Version: 1}).Votes(admin.Officer{Roles: []admin.Assignment{{Role: admin.Administrator}}}) || has(admin.CryptoOfficer, admin.ManageOfficers) || has(admin.Administrator, admin.SignDocuments) {
		t.Error("duties are not separated")
	}
	limited := admin.Principal{Kind: admin.ByMachine, Name: "x", Assignments: []admin.Assignment{{Role: admin.RegistrationOfficer, Issuer: "issuing", Profile: "tls-server"}, {Role: admin.Signer, Key: "release"}}}
	for _, c := range []struct {
		p    admin.Permission
		on   admin.Resource
		want bool
	}{
		{admin.IssueCertificates, admin.Resource{Issuer: "issuing", Profile: "tls-server"}, true},
		{admin.IssueCertificates, admin.Resource{Issuer: "issuing", Profile: "code"}, false},
		{admin.IssueCertificates, admin.Resource{Issuer: "other", Profile: "tls-server"}, false},
		{admin.IssueCertificates, admin.Resource{}, false},
		{admin.SignDocuments, admin.Resource{Key: "release"}, true},
		{admin.SignDocuments, admin.Resource{Key: "other"}, false},
		{admin.ReadHSM, admin.Resource{}, false},
	} {
		if got := limited.May(c.p, c.on); got != c.want {
			t.Errorf("%s on %+v: %t", c.p, c.on, got)
		}
	}
	everything := []admin.Assignment{{Role: admin.Administrator}, {Role: admin.CryptoOfficer}}
	for kind, denied := range map[admin.PrincipalKind][]admin.Permission{admin.ByOIDC: {admin.Propose, admin.Vote, admin.ManageOfficers, admin.ManageMachines}, admin.ByMachine: {admin.ManageOfficers, admin.ManageMachines}} {
		for _, p := range denied {
			if who := (admin.Principal{Kind: kind, Name: "x", Assignments: everything}); who.May(p, admin.Resource{}) || who.MaySome(p) {
				t.Errorf("%s has %s", kind, p)
			}
		}
	}
	for text, ok := range map[string]bool{"signer,key=release": true, "registration-officer,issuer=issuing,profile=tls-server": true, "auditor": true, "god": false, "signer,key=": false, "signer,key=a,key=b": false, "administrator,key=a": true, "signer,issuer=x": false, "": false} {
		if a, err := admin.ParseAssignment(text); (err == nil) != ok || ok && a.String() != text {
			t.Errorf("%q: %v %v", text, a, err)
		}
	}
}

// slow answers the first question for the rosters only when it is told to.
type slow struct {
	admin.Storage
	held     atomic.Bool
	asked    chan struct{}
	answered chan struct{}
}

func (s *slow) Rosters(ctx context.Context) (admin.History, error) {
	h, err := s.Storage.Rosters(ctx)
	if !s.held.Swap(true) {
		close(s.asked)
		<-s.answered
	}
	return h, err
}

// Who reads the rosters while they change is not told that the database was rolled back.
func TestRosterChangesMeanwhile(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	s := &slow{Storage: r.db, asked: make(chan struct{}), answered: make(chan struct{})}
	r.board = must(admin.NewBoard(admin.Config{Ledger: r.ledger, Storage: s, Rosters: admin.History{Base: r.roster}, Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Unix(r.now.Load(), 0) }, Actions: map[string]admin.Action{testAction: {Acts: testActs, Execute: r.execute}}}))
	read := make(chan error, 1)
	go func() {
		_, err := r.board.Rosters(t.Context())
		read <- err
	}()
	<-s.asked
	r.run()
	if err := r.change(func(n *admin.Roster) { n.Officers = n.Officers[:2] }); err != nil {
		t.Fatal(err)
	}
	close(s.answered)
	if err := <-read; err != nil {
		t.Error(err)
	}
}

// What an act is for is part of what officers sign.
func TestReason(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	with := must(admin.WithReason([]byte(`{"name": "k1"}`), `for "builds" of <2027>`))
	if again := must(admin.WithReason(with, "")); string(again) != string(with) || string(must(admin.WithReason([]byte(`{"name":"k1"}`), ""))) != `{"name":"k1"}` {
		t.Errorf("%s %s", with, again)
	}
	a := must(r.board.Propose(t.Context(), admin.Ask{Action: testAction, Parameters: with}))
	if admin.ParametersDigest(with) != a.Asked.Parameters || !strings.Contains(string(a.Parameters), `for \"builds\" of <2027>`) {
		t.Errorf("%s", a.Parameters)
	}
	for _, bad := range []string{`"a\nb"`, `7`, `"` + strings.Repeat("x", 501) + `"`} {
		_, err := r.board.Propose(t.Context(), admin.Ask{Action: testAction, Parameters: []byte(`{"name":"k1","reason":` + bad + `}`)})
		if !refused(err, admin.BadProposal, "reason") {
			t.Errorf("reason %s: %v", bad, err)
		}
	}
}

// The admin token ends only when somebody is there who lets others in, and that person's
// machine hands in what officers sign who have CLI keys only: else nobody could decide
// anything any more.
func TestNobodyIsLockedOut(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	next := r.roster.Successor()
	next.RPID, next.Origins = rpID, []string{origin}
	phone := newAuthenticator(p256()).Passkey
	for role, administered := range map[admin.Role]bool{admin.Auditor: false, admin.CryptoOfficer: true, admin.RegistrationOfficer: false, admin.Signer: false, admin.Administrator: true} {
		with := next.Successor()
		with.Officers = append(with.Officers, admin.Officer{Name: "cyd", Passkeys: []admin.Passkey{phone}, Roles: []admin.Assignment{{Role: role}}})
		if err := with.Check(); err != nil {
			t.Fatal(err)
		}
		if with.Administered() != administered {
			t.Errorf("a passkey of one %s: %t", role, with.Administered())
		}
	}
	r.run()
	if err := r.change(func(n *admin.Roster) {
		n.RPID, n.Origins = rpID, []string{origin}
		n.Officers = append(n.Officers, admin.Officer{Name: "cyd", Passkeys: []admin.Passkey{phone}, Roles: []admin.Assignment{{Role: admin.Administrator}}})
	}); err != nil {
		t.Fatal(err)
	}
	now := must(r.board.Rosters(t.Context())).Current()
	cyd, _ := now.Officer("cyd")
	m := &admin.Machines{Ledger: r.ledger, Storage: r.db, Board: r.board, TokenOver: func(context.Context) bool { return true }, Now: func() time.Time { return time.Unix(r.now.Load(), 0) }}
	var roles []admin.Permission
	for _, role := range admin.Roles {
		token, _, err := m.NewToken(t.Context(), now.Principal(cyd), "desk-"+string(role), []admin.Assignment{{Role: role}}, time.Hour)
		if err != nil {
			continue
		}
		p := must(m.ByToken(t.Context(), token))
		for _, perm := range admin.Permissions() {
			if p.May(perm, admin.Resource{}) {
				roles = append(roles, perm)
			}
		}
	}
	for _, perm := range []admin.Permission{admin.Propose, admin.ReadApprovals, admin.Vote} {
		if !slices.Contains(roles, perm) {
			t.Errorf("no machine of the only administrator has %s: nobody can hand in what ada and bob sign", perm)
		}
	}
	if now.Votes(cyd) {
		t.Error("an administrator votes")
	}
}

// Whoever changes the rows of an enrolment that is done gets nothing on the roster by it.
func TestAttack_HSM_11_EnrolmentSwapped(t *testing.T) {
	for what, sql := range map[string]string{
		"":                  "",
		"the key":           "UPDATE enrolment_passkey SET spki = x'00'",
		"one more passkey":  "INSERT INTO enrolment_passkey (credential, enrolment, spki, label, made) SELECT x'01', enrolment, x'00', '', 1 FROM enrolment_passkey",
		"the roles":         `UPDATE enrolment SET roles = '[{"role":"administrator"}]'`,
		"the name":          "UPDATE enrolment SET name = 'bob'",
		"the entry":         "UPDATE enrolment SET leaf = 1",
		"another enrolment": "UPDATE enrolment SET id = '0000000000000001'",
	} {
		r := newRoom(t, 2, "ada", "bob")
		if !strings.HasPrefix(r.url, "sqlite:") {
			t.Skip("writes past the server into a SQLite file")
		}
		e := r.enrolments()
		secret, en, err := e.Open(t.Context(), "dan", []admin.Assignment{{Role: admin.CryptoOfficer}}, "officer:ada", 0)
		if err != nil {
			t.Fatal(err)
		}
		must(e.AddPasskey(t.Context(), secret, newAuthenticator(p256()).Passkey))
		if _, _, err := e.Finish(t.Context(), secret, 1); err != nil {
			t.Fatal(err)
		}
		if sql != "" {
			exec(r, "PRAGMA foreign_keys = OFF; "+sql)
		}
		all := must(e.List(t.Context()))
		if _, err := e.Parameters(t.Context(), all[0]); (err == nil) != (sql == "") || len(all) != 1 {
			t.Errorf("%s of %s: %v", what, en.ID, err)
		}
	}
}

// Links of before do not hide one that is open: it can be withdrawn.
func TestEnrolmentsOfBefore(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	e := r.enrolments()
	_, en, err := e.Open(t.Context(), "ada", nil, admin.AdminToken, admin.MaxEnrolment)
	if err != nil {
		t.Fatal(err)
	}
	r.now.Add(60)
	var rows []audit.Projection
	for i := range 200 {
		now := time.Unix(r.now.Load(), 0)
		rows = append(rows, admin.PutEnrolment{Enrolment: admin.Enrolment{ID: fmt.Sprintf("%016x", i), Name: "bob", By: admin.AdminToken, Created: now, Expires: now.Add(time.Hour)}, Hash: [32]byte{byte(i), 1}})
	}
	if err := r.ledger.Write(t.Context(), rows...); err != nil {
		t.Fatal(err)
	}
	if err := e.Withdraw(t.Context(), en.ID, admin.AdminToken); err != nil {
		t.Error(err)
	}
}

// Machines of before, revoked or over, do not keep new ones out, however many there were.
func TestMachinesOfBefore(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	m := &admin.Machines{Ledger: r.ledger, Storage: r.db, Board: r.board, Now: func() time.Time { return time.Unix(r.now.Load(), 0) }}
	by, signer := admin.Principal{Kind: admin.ByAdminToken}, []admin.Assignment{{Role: admin.Signer}}
	old, _, err := m.NewToken(t.Context(), by, "old", signer, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r.now.Add(60)
	var rows []audit.Projection
	for i := range 1000 {
		now := time.Unix(r.now.Load(), 0)
		one := admin.Machine{ID: fmt.Sprintf("%016x", i), Name: fmt.Sprintf("m%d", i), Kind: admin.MachineToken, Roles: signer, Owner: admin.AdminToken, Created: now, Expires: now.Add(time.Hour)}
		rows = append(rows, admin.PutMachine{Machine: one}, admin.RevokeMachine{ID: one.ID, At: now})
	}
	if err := r.ledger.Write(t.Context(), rows...); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.NewToken(t.Context(), by, "old", signer, time.Hour); !refused(err, admin.Closed, "has access already") {
		t.Errorf("a second one of that name: %v", err)
	}
	if _, _, err := m.NewToken(t.Context(), by, "next", signer, time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := m.ByToken(t.Context(), old); err != nil {
		t.Error(err)
	}
	if all := must(m.List(t.Context())); !slices.ContainsFunc(all, func(o admin.Machine) bool { return o.Name == "old" }) {
		t.Error("one that has access is not on the list")
	}
}

// WEB-18: two rosters that are not the same always differ in something that the page shows,
// whatever names and limits hold.
func TestAttack_WEB_18_HiddenDifference(t *testing.T) {
	key := func(name string) admin.Assignment { return admin.Assignment{Role: admin.Signer, Key: name} }
	officers := func(roles ...admin.Assignment) admin.Roster {
		return admin.Roster{Version: 1, Quorum: 2, Officers: []admin.Officer{{Name: "mallory", Roles: roles}}}
	}
	group := func(members ...string) admin.Roster {
		return admin.Roster{Version: 1, Quorum: 2, Groups: []admin.Group{{Name: "night", Quorum: 1, Members: members}}}
	}
	for name, c := range map[string][2]admin.Roster{
		"a vote":             {officers(key("x crypto-officer")), officers(key("x"), admin.Assignment{Role: admin.CryptoOfficer})},
		"a limit less":       {officers(key(`x "y`)), officers(key("x"), key(`"y`))},
		"member of a group":  {group("ada, bob"), group("ada", "bob")},
		"quoted":             {group(`"ada, bob"`), group("ada, bob")},
		"members in a group": {group(`ada", "bob`), group("ada", "bob")},
	} {
		for _, r := range c {
			for _, o := range r.Officers {
				if err := admin.CheckAssignments(o.Roles); err != nil {
					t.Fatal(err)
				}
			}
		}
		if d := c[0].Differences(c[1]); len(d) != 1 || d[0].Before == d[0].After {
			t.Errorf("ATTACK WORKED: %s: the officers are shown %+v", name, d)
		}
	}
	if d := group("ada").Differences(group("bob", "ada")); len(d) != 1 || d[0].After != "1 of ada, bob" {
		t.Errorf("%+v", d)
	}
}

// WEB-19: a label that reads as the hash of another passkey does not stand where officers look
// for the hash.
func TestAttack_WEB_19_Label(t *testing.T) {
	ada, mallory := newAuthenticator(p256()).Passkey, newAuthenticator(p256()).Passkey
	hash := func(k admin.Passkey) string { return fmt.Sprintf("SHA-256 %x", sha256.Sum256(k.SPKI)) }
	mallory.Label = hash(ada)[:64]
	if err := mallory.Check(); err != nil {
		t.Fatal(err)
	}
	before := admin.Roster{Version: 1, Quorum: 2, Officers: []admin.Officer{{Name: "ada", Roles: []admin.Assignment{{Role: admin.CryptoOfficer}}}}}
	next := before.Successor()
	next.Officers[0].Passkeys = []admin.Passkey{mallory}
	if d := before.Differences(next); len(d) != 1 || d[0].After != fmt.Sprintf("%s %q", hash(mallory), mallory.Label) {
		t.Errorf("ATTACK WORKED: %+v", d)
	}
}
