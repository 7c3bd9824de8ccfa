package web_test

import (
	"context"
	"encoding/base64"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/admin"
)

// approvalID is the proposal that the fake board knows.
var approvalID = admin.ProposalID(fakeProposal().Hash)

// fakeBoard knows one proposal and one officer.
type fakeBoard struct {
	fail  *error // of the next calls, if set
	asked admin.Ask
	voted []byte
}

func fakeProposal() *admin.Approval {
	p := admin.Proposal{Action: admin.GenerateKey, Acts: []string{"generate-key k1 code P-256"}, Requester: admin.AdminToken,
		NotBefore: time.Unix(1790000000, 0).UTC(), Expires: time.Unix(1790086400, 0).UTC()}
	raw := must(p.Encode())
	hash := admin.ProposalHash(raw)
	return &admin.Approval{ID: admin.ProposalID(hash), Asked: p, Quorum: 2,
		Record: admin.Record{Hash: hash, Proposal: raw, Parameters: []byte(`{"name":"k1"}`), Leaf: 3, State: admin.Done, Grant: [32]byte{1}, Result: []byte(`{"key":"k1"}`)},
		Votes:  []admin.VoteRecord{{Officer: "ada", Decision: admin.Approve, Signature: []byte{0x30, 0}, Leaf: 4}}}
}

func (b *fakeBoard) one(id string) (*admin.Approval, error) {
	if *b.fail != nil {
		return nil, *b.fail
	}
	if id != approvalID {
		return nil, &admin.Refusal{Code: admin.NotFound, Field: "id", Detail: "there is no proposal with this id"}
	}
	return fakeProposal(), nil
}

func (b *fakeBoard) Terms(context.Context) (admin.Terms, error) {
	return admin.Terms{Roster: fakeRosters().Base}, nil
}

func (b *fakeBoard) Rosters(context.Context) (admin.History, error) { return fakeRosters(), *b.fail }

// cliKey is the CLI key of the officer cyd.
var cliKey = sync.OnceValue(func() *admin.OfficerKey { return must(admin.NewOfficerKey("cyd")) })

func fakeRosters() admin.History {
	return admin.History{Base: admin.Roster{Officers: []admin.Officer{{Name: "ada", SPKI: []byte{1}}, {Name: "bob"}, must(cliKey().Officer())}, Quorum: 2}}
}

// fakeOfficers are enrolments.
type fakeOfficers struct{ fail *error }

func fakeEnrolment(state string) admin.Enrolment {
	at := time.Unix(1790000000, 0).UTC()
	return admin.Enrolment{ID: approvalID, Name: "ada", Roles: []admin.Assignment{{Role: admin.Signer, Key: "release"}}, By: admin.AdminToken, Created: at, Expires: at.Add(time.Hour), State: state}
}

func (o fakeOfficers) Open(_ context.Context, name string, roles []admin.Assignment, by string, _ time.Duration) (string, admin.Enrolment, error) {
	e := fakeEnrolment(admin.EnrolmentOpen)
	e.Name, e.Roles, e.By = name, roles, by
	return "5ec2e7", e, *o.fail
}

func (o fakeOfficers) List(context.Context) ([]admin.Enrolment, error) {
	return []admin.Enrolment{fakeEnrolment(admin.EnrolmentDone)}, *o.fail
}

func (o fakeOfficers) Named(_ context.Context, id string) (admin.Enrolment, error) {
	if *o.fail == nil && id != approvalID {
		return admin.Enrolment{}, &admin.Refusal{Code: admin.NotFound, Field: "id", Detail: "there is no enrolment with this id"}
	}
	return fakeEnrolment(admin.EnrolmentDone), *o.fail
}

func (o fakeOfficers) Withdraw(context.Context, string, string) error { return *o.fail }

func (o fakeOfficers) Parameters(context.Context, admin.Enrolment) ([]byte, error) {
	return []byte(`{"before":"00"}`), *o.fail
}

func (b *fakeBoard) Propose(_ context.Context, a admin.Ask) (*admin.Approval, error) {
	b.asked = a
	if strings.Contains(string(a.Parameters), "issuer") {
		return nil, &admin.Refusal{Code: admin.BadProposal, Field: "parameters", Detail: "no issuer keys here"}
	}
	return b.one(approvalID)
}

func (b *fakeBoard) Vote(_ context.Context, id string, v admin.Ballot) (*admin.Approval, error) {
	b.voted = v.Signature
	if v.Officer != "ada" {
		return nil, &admin.Refusal{Code: admin.VoteRefused, Field: "officer", Detail: "no officer of this CA"}
	}
	return b.one(id)
}

func (b *fakeBoard) Cancel(_ context.Context, id string) (*admin.Approval, error) { return b.one(id) }
func (b *fakeBoard) Show(_ context.Context, id string) (*admin.Approval, error)   { return b.one(id) }

func (b *fakeBoard) List(_ context.Context, s admin.State) ([]*admin.Approval, error) {
	if s == "wild" {
		return nil, &admin.Refusal{Code: admin.BadProposal, Field: "state", Detail: "there is no such state"}
	}
	a, err := b.one(approvalID)
	return []*admin.Approval{a}, err
}

// What is asked for reaches the board as it was sent, and what the board says the client.
func TestApprovalRoutes(t *testing.T) {
	f := newFixture(t)
	b := f.cfg.Approvals.(*fakeBoard)
	w := f.do(call{method: "POST", path: "/api/v1/keys", body: `{"name": "k1", "purpose": "code", "algorithm": "P-256", "officer": "ada", "proposal": "AQI=", "signature": "Aw=="}`})
	m := decode(t, w)
	if w.Code != 202 || w.Header().Get("Location") != publicURL+"/api/v1/approvals/"+approvalID || m["id"] != approvalID || !strings.Contains(m["approve"].(string), "chancery approve sign "+approvalID) {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if a := b.asked; a.Action != admin.GenerateKey || string(a.Parameters) != `{"name":"k1","purpose":"code","algorithm":"P-256"}` || a.Officer != "ada" || string(a.Proposal) != "\x01\x02" || string(a.Signature) != "\x03" {
		t.Errorf("asked %+v", a)
	}
	w = f.do(call{path: "/api/v1/approvals/" + approvalID})
	m = decode(t, w)
	if raw, err := base64.StdEncoding.DecodeString(m["proposal"].(string)); err != nil || string(raw) != string(fakeProposal().Proposal) {
		t.Errorf("proposal: %v", err)
	}
	f.do(call{method: "POST", path: "/api/v1/approvals/" + approvalID + "/votes", body: `{"officer": "ada", "decision": "approve", "signature": "MAA="}`})
	if string(b.voted) != "\x30\x00" {
		t.Errorf("signature %x", b.voted)
	}
	for _, c := range []struct {
		path, body, field, parameter, says string
	}{
		{"/api/v1/approvals/" + approvalID + "/votes", `{"officer": "eve", "decision": "approve", "signature": ""}`, "/officer", "", "no officer"},
		{"/api/v1/approvals/" + approvalID + "/votes", `{"officer": "ada", "decision": "request", "signature": ""}`, "/decision", "", "approve, reject"},
		{"/api/v1/approvals/" + approvalID + "/votes", `{"approved": true}`, "/approved", "", "officer, decision, signature"},
		{"/api/v1/keys", `{"id": "x"}`, "/id", "", "name, purpose, algorithm, members, officer, proposal, signature, lifetime"},
		{"/api/v1/keys", `{"name": "k1", "lifetime": 604801}`, "/lifetime", "", "from 1 to 604800"},
		{"/api/v1/keys", `{"name": "k1", "lifetime": "1h"}`, "/lifetime", "", "a whole number"},
		{"/api/v1/approvals/zz/cancel", "", "", "id", "no proposal"},
	} {
		p := decode(t, f.do(call{method: "POST", path: c.path, body: c.body}))
		field, _ := p["field"].(string)
		parameter, _ := p["parameter"].(string)
		if field != c.field || parameter != c.parameter || !strings.Contains(p["detail"].(string), c.says) {
			t.Errorf("%s %s: %v", c.path, c.body, p)
		}
	}
}
