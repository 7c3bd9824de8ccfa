package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"chancery/admin"
)

// A server that lies about a proposal is found out before anything is signed.
func TestApprovalCheckDoesNotBelieveTheServer(t *testing.T) {
	params := []byte(`{"algorithm":"P-256","name":"k1","purpose":"document"}`)
	make1 := func(acts []string, parameters []byte) *approvalView {
		p := admin.Terms{}.Draft(admin.GenerateKey, acts, parameters, admin.AdminToken, time.Now(), 0)
		raw, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return &approvalView{ID: admin.ProposalID(admin.ProposalHash(raw)), State: admin.Pending, Action: p.Action, Acts: p.Acts, Requester: p.Requester, Parameters: parameters, Proposal: raw, Quorum: 2}
	}
	honest := []string{"generate-key k1 document P-256"}
	a := make1(honest, params)
	p, err := a.check(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := a.print(&out, p); err != nil || !strings.Contains(out.String(), "would      generate-key k1 document P-256\n") {
		t.Errorf("%s %v", out.String(), err)
	}
	for name, c := range map[string]struct {
		view *approvalView
		edit func(*approvalView)
	}{
		"other bytes":            {make1(honest, params), func(a *approvalView) { a.Proposal = make1(honest, params).Proposal }},
		"cut bytes":              {make1(honest, params), func(a *approvalView) { a.Proposal = a.Proposal[1:] }},
		"other parameters":       {make1(honest, params), func(a *approvalView) { a.Parameters = json.RawMessage(strings.Replace(string(params), "k1", "k2", 1)) }},
		"no parameters":          {make1(honest, params), func(a *approvalView) { a.Parameters = nil }},
		"kinder acts shown":      {make1(honest, params), func(a *approvalView) { a.Acts = []string{"nothing much"} }},
		"other action shown":     {make1(honest, params), func(a *approvalView) { a.Action = "rest" }},
		"other requester":        {make1(honest, params), func(a *approvalView) { a.Requester = "officer:ada" }},
		"acts beyond parameters": {make1(append(honest, admin.SignRootAct("evil")), params), func(*approvalView) {}},
		"acts of another key":    {make1([]string{"generate-key k2 document P-256"}, params), func(*approvalView) {}},
		"refused parameters":     {make1(honest, []byte(`{"algorithm":"P-256","name":"k1","purpose":"issuer"}`)), func(*approvalView) {}},
	} {
		id := c.view.ID
		c.edit(c.view)
		if _, err := c.view.check(id); code(err) != exitVerify {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"generate-key k1": "generate-key k1",
		"a\x1b[2Jb":       `"a\x1b[2Jb"`,
		"safe\u202eevil":  `"safe\u202eevil"`,
		"\u0430da":        `"\u0430da"`,
		`say "yes"`:       `say "yes"`,
	} {
		if got := visible(in); got != want {
			t.Errorf("%q is shown as %s", in, got)
		}
	}
}

// A server that says that what a change adds was there before: the digest of the first
// roster has no passkeys, so that it would still be the one that the proposal names.
func TestAttack_HSM_11_HiddenChange(t *testing.T) {
	var now admin.Roster
	now.Quorum = 2
	for _, name := range []string{"ada", "bob"} {
		k, err := admin.NewOfficerKey(name)
		if err != nil {
			t.Fatal(err)
		}
		o, err := k.Officer()
		if err != nil {
			t.Fatal(err)
		}
		now.Officers = append(now.Officers, o)
	}
	next := now.Successor()
	next.RPID, next.Origins = "ca.example", []string{"https://ca.example"}
	evil, err := admin.NewOfficerKey("evil")
	if err != nil {
		t.Fatal(err)
	}
	o, err := evil.Officer()
	if err != nil {
		t.Fatal(err)
	}
	next.Officers[0].Passkeys = []admin.Passkey{{ID: []byte{1}, SPKI: o.SPKI}}
	parameters, err := admin.ChangeParameters(now, next)
	if err != nil {
		t.Fatal(err)
	}
	lie := next
	lie.Version = 0
	if lie.Digest() != now.Digest() {
		t.Fatal("the digests differ")
	}
	for name, said := range map[string]admin.Roster{"the truth": now, "a lie": lie, "another one": next} {
		a := approvalView{Action: admin.ChangeRoster, Parameters: parameters, inForce: &said}
		var out bytes.Buffer
		err := a.printRoster(&out)
		if shown := strings.Contains(out.String(), "passkey of officer ada") || strings.Contains(out.String(), "the whole roster"); name == "a lie" && (err == nil || code(err) != exitVerify) || name != "a lie" && (err != nil || !shown) {
			t.Errorf("%s: %v\n%s", name, err, out.String())
		}
	}
}
