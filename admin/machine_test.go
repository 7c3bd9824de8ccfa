package admin_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// machines is where machines of a room get access. Its officers are ada and bob by their
// CLI keys, and dan, by a passkey, with the roles.
func (r *room) machines(roles ...admin.Assignment) *admin.Machines {
	r.t.Helper()
	dan := newAuthenticator(p256())
	err := r.change(func(n *admin.Roster) {
		n.RPID, n.Origins = rpID, []string{origin}
		n.Officers = append(n.Officers, admin.Officer{Name: "dan", Passkeys: []admin.Passkey{dan.Passkey}, Roles: roles})
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return &admin.Machines{Ledger: r.ledger, Storage: r.db, Board: r.board, Now: func() time.Time { return time.Unix(r.now.Load(), 0) }}
}

// roles gives dan other roles; none: dan leaves.
func (r *room) roles(roles ...admin.Assignment) {
	r.t.Helper()
	err := r.change(func(n *admin.Roster) {
		i := slices.IndexFunc(n.Officers, func(o admin.Officer) bool { return o.Name == "dan" })
		if n.Officers[i].Roles = roles; len(roles) == 0 {
			n.Officers = slices.Delete(n.Officers, i, i+1)
		}
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func role(rs ...admin.Role) (out []admin.Assignment) {
	for _, one := range rs {
		out = append(out, admin.Assignment{Role: one})
	}
	return out
}

func officer(name string, roles []admin.Assignment) admin.Principal {
	return admin.Principal{Kind: admin.ByOfficer, Name: name, Assignments: roles}
}

// A machine has access from when it is made to when it ends, and each of both is on the ledger.
func TestMachine(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	r.run()
	ctx, adm := t.Context(), role(admin.Administrator)
	m := r.machines(adm...)
	before := r.leaves(audit.OpMachine)
	only := []admin.Assignment{{Role: admin.Signer, Key: "release"}}
	token, one, err := m.NewToken(ctx, officer("dan", adm), "build.ci-1", only, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if len(token) != len("chy_")+16+1+64 || !strings.HasPrefix(token, "chy_"+one.ID+"_") || one.Owner != "officer:dan" || one.Expires.Sub(one.Created) != time.Hour {
		t.Errorf("%s %+v", token, one)
	}
	p, err := m.ByToken(ctx, token)
	if err != nil || p.Kind != admin.ByMachine || p.Requester() != "machine:build.ci-1/officer:dan" || !slices.Equal(p.Assignments, only) {
		t.Fatalf("%+v %v", p, err)
	}
	// Of the secret, only its digest is kept.
	kept := must(r.db.Machine(ctx, one.ID))
	if _, secret, _ := strings.Cut(strings.TrimPrefix(token, "chy_"), "_"); kept.Secret != sha256.Sum256([]byte(secret)) || strings.Contains(fmt.Sprintf("%+v", kept), secret) {
		t.Errorf("%+v", kept)
	}
	// A use is noted at most once a minute.
	at := time.Unix(r.now.Load(), 0).UTC()
	if !kept.LastUsed.Equal(at) {
		t.Errorf("last used %s, want %s", kept.LastUsed, at)
	}
	for _, c := range []struct {
		after int64
		want  time.Time
	}{{59, at}, {1, at.Add(time.Minute)}, {30, at.Add(time.Minute)}} {
		r.now.Add(c.after)
		if _, err := m.ByToken(ctx, token); err != nil {
			t.Fatal(err)
		}
		if got := must(r.db.Machine(ctx, one.ID)).LastUsed; !got.Equal(c.want) {
			t.Errorf("last used %s, want %s", got, c.want)
		}
	}
	if err := m.Revoke(ctx, officer("dan", adm), one.ID, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ByToken(ctx, token); !errors.Is(err, admin.ErrUnknownMachine) {
		t.Errorf("ATTACK WORKED: revoked: %v", err)
	}
	if err := m.Revoke(ctx, officer("dan", adm), one.ID, "test"); !refused(err, admin.Closed, "revoked already") {
		t.Errorf("revoked twice: %v", err)
	}
	if err := m.Revoke(ctx, officer("dan", adm), "0123456789abcdef", "test"); !refused(err, admin.NotFound, "no machine") {
		t.Errorf("one that is not there: %v", err)
	}
	if n := r.leaves(audit.OpMachine) - before; n != 2 {
		t.Errorf("%d entries, want one for its access and one for its end", n)
	}
	// To the second, its time ends.
	token, one, err = m.NewToken(ctx, officer("dan", adm), "build.ci-1", only, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	r.now.Add(59)
	if _, err := m.ByToken(ctx, token); err != nil {
		t.Error(err)
	}
	r.now.Add(1)
	if _, err := m.ByToken(ctx, token); !errors.Is(err, admin.ErrUnknownMachine) {
		t.Errorf("ATTACK WORKED: expired at %s: %v", one.Expires, err)
	}
	r.verify()
}

// No other text is a token, and nothing tells what was wrong with it.
func TestAttack_WEB_06_Tokens(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	r.run()
	ctx, adm := t.Context(), role(admin.Administrator)
	m := r.machines(adm...)
	token, one, err := m.NewToken(ctx, officer("dan", adm), "one", role(admin.Signer), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := m.NewToken(ctx, officer("dan", adm), "two", role(admin.Auditor), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	spki := sha256.Sum256([]byte("k"))
	cert, err := m.AddCertificate(ctx, officer("dan", adm), "three", [32]byte{1}, spki, role(admin.Auditor), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	secret := token[len(token)-64:]
	for name, text := range map[string]string{
		"empty": "", "prefix": "chy_", "id alone": "chy_" + one.ID, "no secret": "chy_" + one.ID + "_", "secret of another": "chy_" + one.ID + "_" + other[len(other)-64:],
		"unknown id": "chy_0123456789abcdef_" + secret, "zeros": "chy_" + one.ID + "_" + strings.Repeat("0", 64), "one digit less": token[:len(token)-1], "one more": token + "0",
		"large letters": "chy_" + one.ID + "_" + strings.ToUpper(secret), "no prefix": strings.TrimPrefix(token, "chy_"), "twice": token + token, "space": " " + token, "line end": token + "\n",
		"digest of the secret": "chy_" + one.ID + "_" + fmt.Sprintf("%x", one.Secret), "wildcard": "chy_%%%%%%%%%%%%%%%%_" + secret, "SQL": "chy_' OR 1=1 OR id='_" + secret,
		"a certificate as a token": "chy_" + cert.ID + "_" + fmt.Sprintf("%x", spki),
	} {
		if p, err := m.ByToken(ctx, text); !errors.Is(err, admin.ErrUnknownMachine) || err != admin.ErrUnknownMachine || p.Kind != "" || len(p.Assignments) > 0 {
			t.Errorf("ATTACK WORKED: %s: %+v %v", name, p, err)
		}
	}
	if _, err := m.ByToken(ctx, token); err != nil {
		t.Errorf("the right one: %v", err)
	}
}

// A client certificate is known by its issuer's key and its own, by both.
func TestMachineCertificate(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	r.run()
	ctx, adm := t.Context(), role(admin.Administrator)
	m := r.machines(adm...)
	issuer, spki := [32]byte{1}, [32]byte{2}
	one, err := m.AddCertificate(ctx, officer("dan", adm), "robot", issuer, spki, role(admin.Auditor), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := m.ByCertificate(ctx, issuer, spki); err != nil || p.Name != "robot" {
		t.Errorf("%+v %v", p, err)
	}
	tok, _, err := m.NewToken(ctx, officer("dan", adm), "token", role(admin.Auditor), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2][32]byte{
		"another issuer": {{3}, spki}, "another key": {issuer, {3}}, "the other way round": {spki, issuer}, "no issuer": {{}, spki}, "nothing": {},
		"a token's secret": {{}, sha256.Sum256([]byte(tok[len(tok)-64:]))},
	} {
		if _, err := m.ByCertificate(ctx, c[0], c[1]); !errors.Is(err, admin.ErrUnknownMachine) {
			t.Errorf("ATTACK WORKED: %s: %v", name, err)
		}
	}
	if _, err := m.AddCertificate(ctx, officer("dan", adm), "second", issuer, spki, role(admin.Signer), time.Hour); !refused(err, admin.Closed, "revoke that first") {
		t.Errorf("one certificate, two machines: %v", err)
	}
	if err := m.Revoke(ctx, officer("dan", adm), one.ID, "renewed"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ByCertificate(ctx, issuer, spki); !errors.Is(err, admin.ErrUnknownMachine) {
		t.Errorf("ATTACK WORKED: revoked: %v", err)
	}
	if _, err := m.AddCertificate(ctx, officer("dan", adm), "second", issuer, spki, role(admin.Signer), time.Hour); err != nil {
		t.Error(err)
	}
}

// Nobody makes a machine that can do more than they could give.
func TestAttack_WEB_07_Machines(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	r.run()
	ctx := t.Context()
	m := r.machines(role(admin.Administrator)...)
	both := role(admin.Administrator, admin.CryptoOfficer)
	limited := []admin.Assignment{{Role: admin.Administrator, Key: "release"}}
	refusedFor := func(name string, by admin.Principal, roles []admin.Assignment, code admin.Code) {
		t.Helper()
		token, _, err := m.NewToken(ctx, by, "robot", roles, time.Hour)
		if !refused(err, code, "") {
			t.Errorf("ATTACK WORKED: %s: %v", name, err)
		}
		if _, err := m.ByToken(ctx, token); !errors.Is(err, admin.ErrUnknownMachine) {
			t.Errorf("ATTACK WORKED: %s: what was refused gives access", name)
		}
	}
	for _, by := range []admin.Principal{
		{}, officer("cyd", role(admin.RegistrationOfficer)), officer("eve", role(admin.Auditor)), officer("fay", limited),
		{Kind: admin.ByMachine, Name: "robot", Owner: "officer:dan", Assignments: both}, {Kind: admin.ByOIDC, Name: "gil", Assignments: both},
	} {
		for _, want := range admin.Roles {
			refusedFor(by.Requester()+" gives "+string(want), by, role(want), admin.NotAllowed)
		}
	}
	// A crypto officer makes machines of that kind, to vote at the command line, and no others.
	bob := officer("bob", role(admin.CryptoOfficer))
	for _, want := range []admin.Role{admin.Administrator, admin.RegistrationOfficer, admin.Signer} {
		refusedFor("a crypto officer gives "+string(want), bob, role(want), admin.NotAllowed)
	}
	_, own, err := m.NewToken(ctx, bob, "bobs", role(admin.CryptoOfficer), time.Hour)
	if err != nil {
		t.Error(err)
	}
	if err := m.Revoke(ctx, officer("fay", role(admin.CryptoOfficer)), own.ID, "x"); !refused(err, admin.NotAllowed, "belongs to officer:bob") {
		t.Errorf("ATTACK WORKED: a crypto officer revokes another's machine: %v", err)
	}
	if err := m.Revoke(ctx, bob, own.ID, "x"); err != nil {
		t.Error(err)
	}
	dan := officer("dan", role(admin.Administrator))
	refusedFor("an administrator makes a crypto officer", dan, role(admin.CryptoOfficer), admin.NotAllowed)
	refusedFor("besides others", dan, role(admin.Signer, admin.CryptoOfficer), admin.NotAllowed)
	refusedFor("one with a limit", dan, []admin.Assignment{{Role: admin.CryptoOfficer, Key: "release"}}, admin.NotAllowed)
	refusedFor("an auditor with another role", dan, role(admin.Auditor, admin.Signer), admin.BadProposal)
	refusedFor("no role", dan, nil, admin.BadProposal)
	refusedFor("a role that there is not", dan, role("root"), admin.BadProposal)
	refusedFor("twice the same", dan, role(admin.Signer, admin.Signer), admin.BadProposal)
	refusedFor("a limit that means nothing", dan, []admin.Assignment{{Role: admin.Signer, Issuer: "issuing"}}, admin.BadProposal)

	for name, lifetime := range map[string]time.Duration{"none": 0, "less": -time.Hour, "a second": time.Second, "for ever": 1 << 62, "two years": 2 * 365 * 24 * time.Hour} {
		if _, _, err := m.NewToken(ctx, dan, "robot", role(admin.Signer), lifetime); !refused(err, admin.BadProposal, "lasts") {
			t.Errorf("lifetime %s: %v", name, err)
		}
	}
	for _, name := range []string{"", "Robot", "a b", "../x", "röbot", "-x", "x/officer:dan", "x\ny", strings.Repeat("x", 64)} {
		if _, _, err := m.NewToken(ctx, dan, name, role(admin.Signer), time.Hour); !refused(err, admin.BadProposal, "name") {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if _, _, err := m.NewToken(ctx, dan, "robot", role(admin.Signer, admin.RegistrationOfficer), time.Hour); err != nil {
		t.Error(err)
	}
	if _, _, err := m.NewToken(ctx, dan, "robot", role(admin.Signer), time.Hour); !refused(err, admin.Closed, "has access already") {
		t.Errorf("the same name: %v", err)
	}
	for _, reason := range []string{"", "x\ny", strings.Repeat("x", 257)} {
		if err := m.Revoke(ctx, dan, must(m.List(ctx))[0].ID, reason); !refused(err, admin.BadProposal, "why") {
			t.Errorf("reason %q: %v", reason, err)
		}
	}
}

// A machine can do no more than its owner may still give, at once, and nothing when its
// owner has left.
func TestAttack_WEB_06_MachineOfWhoLeft(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	r.run()
	ctx := t.Context()
	both := role(admin.Administrator, admin.CryptoOfficer)
	m := r.machines(both...)
	dan := officer("dan", both)
	token, _, err := m.NewToken(ctx, dan, "robot", role(admin.CryptoOfficer, admin.Signer), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.AddCertificate(ctx, dan, "vault", [32]byte{1}, [32]byte{2}, role(admin.CryptoOfficer), time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		owner  []admin.Assignment
		has    []admin.Role
		certIn bool
	}{
		{"as it was made", both, []admin.Role{admin.CryptoOfficer, admin.Signer}, true},
		{"its owner is no crypto officer any more", role(admin.Administrator), []admin.Role{admin.Signer}, false},
		{"is one again", both, []admin.Role{admin.CryptoOfficer, admin.Signer}, true},
		{"is no administrator any more", role(admin.CryptoOfficer), []admin.Role{admin.CryptoOfficer}, true},
		{"is an auditor now", role(admin.Auditor), nil, false},
		{"has left", nil, nil, false},
	} {
		if step.name != "as it was made" {
			r.roles(step.owner...)
		}
		p, err := m.ByToken(ctx, token)
		var has []admin.Role
		for _, a := range p.Assignments {
			has = append(has, a.Role)
		}
		if !slices.Equal(has, step.has) || (len(step.has) == 0) != errors.Is(err, admin.ErrUnknownMachine) {
			t.Errorf("ATTACK WORKED: its owner %s: it has %v, %v", step.name, has, err)
		}
		if _, err := m.ByCertificate(ctx, [32]byte{1}, [32]byte{2}); (err == nil) != step.certIn {
			t.Errorf("ATTACK WORKED: its owner %s: the certificate: %v", step.name, err)
		}
	}
}

// What the admin token made ends with it.
func TestMachineOfTheAdminToken(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	r.run()
	ctx := t.Context()
	m := r.machines(role(admin.Administrator)...)
	token, one, err := m.NewToken(ctx, admin.Principal{Kind: admin.ByAdminToken}, "robot", role(admin.CryptoOfficer), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if one.Owner != admin.AdminToken {
		t.Errorf("owner %q", one.Owner)
	}
	if _, err := m.ByToken(ctx, token); err != nil {
		t.Error(err)
	}
	m.TokenOver = func(context.Context) bool { return true }
	if _, err := m.ByToken(ctx, token); !errors.Is(err, admin.ErrUnknownMachine) {
		t.Errorf("ATTACK WORKED: %v", err)
	}
}

// many is a storage of very many machines.
type many struct {
	admin.MachineStorage
	ended, live int
}

func (m many) Machines(context.Context, int) ([]admin.Machine, error) {
	return slices.Repeat([]admin.Machine{{Name: "old", Revoked: time.Unix(1, 0)}}, m.ended+m.live), nil
}

func (m many) LiveMachines(ctx context.Context, at time.Time) ([]admin.Machine, error) {
	live, err := m.MachineStorage.LiveMachines(ctx, at)
	return append(live, slices.Repeat([]admin.Machine{{Name: "other"}}, m.live)...), err
}

// Machines that have ended stand in nobody's way, however many there were.
func TestManyMachines(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	r.run()
	ctx, adm := t.Context(), role(admin.Administrator)
	m := r.machines(adm...)
	m.Storage = many{MachineStorage: r.db, ended: 5000}
	_, one, err := m.NewToken(ctx, officer("dan", adm), "build", role(admin.Signer), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m.Storage = many{MachineStorage: r.db, live: 1000}
	if _, _, err := m.NewToken(ctx, officer("dan", adm), "more", role(admin.Signer), time.Hour); !refused(err, admin.Closed, "revoke some") {
		t.Errorf("of 1000 that live: %v", err)
	}
	// Nor in the way of their name.
	m.Storage = r.db
	r.now.Store(one.Expires.Unix())
	if _, two, err := m.NewToken(ctx, officer("dan", adm), "build", role(admin.Signer), time.Hour); err != nil || len(must(r.db.LiveMachines(ctx, time.Unix(r.now.Load(), 0)))) != 1 || two.ID == one.ID {
		t.Errorf("the name of one that has expired: %v", err)
	}
}

// Of many who ask at the same time for one name, or with one certificate, one gets it.
func TestMachinesAtOnce(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	r.run()
	ctx, adm := t.Context(), role(admin.Administrator)
	m := r.machines(adm...)
	for name, ask := range map[string]func(i int) error{
		"name": func(int) error {
			_, _, err := m.NewToken(ctx, officer("dan", adm), "build", role(admin.Signer), time.Hour)
			return err
		},
		"certificate": func(i int) error {
			_, err := m.AddCertificate(ctx, officer("dan", adm), fmt.Sprint("robot-", i), [32]byte{1}, [32]byte{2}, role(admin.Auditor), time.Hour)
			return err
		},
	} {
		before := r.leaves(audit.OpMachine)
		errs := make(chan error)
		for i := range 16 {
			go func() { errs <- ask(i) }()
		}
		made := 0
		for range 16 {
			switch err := <-errs; {
			case err == nil:
				made++
			case !refused(err, admin.Closed, "revoke that first"):
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := r.leaves(audit.OpMachine) - before; made != 1 || n != 1 {
			t.Errorf("ATTACK WORKED: one %s: %d machines, %d entries", name, made, n)
		}
	}
	r.verify()
}
