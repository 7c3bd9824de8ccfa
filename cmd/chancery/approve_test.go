package main

import (
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
