package admin_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// vectors is what testdata/make_vectors.py wrote, which knows nothing of this code.
type vectors struct {
	Policies []struct {
		Quorum, Officers int
		Digest           string
	}
	Parameters []struct{ Given, Canonical, Digest string }
	Proposals  []vector
}

type vector struct {
	Name, Ledger, Action, Parameters string
	Acts                             []string
	Policy, Roster, Requester, Nonce string
	NotBefore                        int64 `json:"not_before"`
	Expires                          int64
	Proposal, Hash, ID, Grant        string
	Approvals, Texts, Votes          []string
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func unhex(s string) []byte    { return must(hex.DecodeString(s)) }
func hash32(s string) [32]byte { return [32]byte(unhex(s)) }

func load(t testing.TB) (v vectors) {
	t.Helper()
	if err := json.Unmarshal(must(os.ReadFile("testdata/vectors.json")), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v vector) proposal() admin.Proposal {
	return admin.Proposal{Ledger: audit.LedgerID(hash32(v.Ledger)), Action: v.Action, Parameters: hash32(v.Parameters), Acts: v.Acts, Policy: hash32(v.Policy),
		Roster: hash32(v.Roster), Requester: v.Requester, Nonce: hash32(v.Nonce), NotBefore: time.Unix(v.NotBefore, 0).UTC(), Expires: time.Unix(v.Expires, 0).UTC()}
}

func TestVectors(t *testing.T) {
	all := load(t)
	for _, p := range all.Policies {
		r := admin.Roster{Officers: make([]admin.Officer, p.Officers), Quorum: p.Quorum}
		if got := r.PolicyDigest(); hex.EncodeToString(got[:]) != p.Digest {
			t.Errorf("policy %d of %d: %x", p.Quorum, p.Officers, got)
		}
	}
	for _, p := range all.Parameters {
		c, err := admin.CanonicalParameters([]byte(p.Given))
		if got := admin.ParametersDigest(c); err != nil || string(c) != p.Canonical || hex.EncodeToString(got[:]) != p.Digest {
			t.Errorf("parameters %s: %s %x %v", p.Given, c, got, err)
		}
	}
	for _, v := range all.Proposals {
		b, err := v.proposal().Encode()
		if err != nil || hex.EncodeToString(b) != v.Proposal {
			t.Errorf("%s: %x %v", v.Name, b, err)
			continue
		}
		back, err := admin.DecodeProposal(b)
		if err != nil || !reflect.DeepEqual(back, v.proposal()) {
			t.Errorf("%s: decoded as %+v %v", v.Name, back, err)
		}
		h := admin.ProposalHash(b)
		if hex.EncodeToString(h[:]) != v.Hash || admin.ProposalID(h) != v.ID {
			t.Errorf("%s: hash %x", v.Name, h)
		}
		for d := range v.Approvals {
			digest := admin.ApprovalDigest(admin.Decision(d), b)
			if hex.EncodeToString(digest[:]) != v.Approvals[d] || string(admin.VoteText(admin.Decision(d), b)) != v.Texts[d] {
				t.Errorf("%s: decision %d: %x", v.Name, d, digest)
			}
		}
		var votes []uint64
		for _, s := range v.Votes {
			votes = append(votes, must(strconv.ParseUint(s, 10, 64)))
		}
		if g := admin.GrantHash(h, votes); hex.EncodeToString(g[:]) != v.Grant {
			t.Errorf("%s: grant %x", v.Name, g)
		}
	}
}

func TestDecodeProposalIsStrict(t *testing.T) {
	good := unhex(load(t).Proposals[0].Proposal)
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, b := range map[string][]byte{
		"empty":            nil,
		"cut":              good[:len(good)-1],
		"without the end":  good[:len(good)-14],
		"trailing octet":   append(bytes.Clone(good), 0),
		"repeated":         append(bytes.Clone(good), good...),
		"unknown tag":      append(bytes.Clone(good), 0, 11, 0, 0, 0, 1, 0),
		"first tag 2":      edit(func(b []byte) []byte { b[1] = 2; return b }),
		"length too long":  edit(func(b []byte) []byte { b[2] = 0xff; return b }),
		"short ledger":     edit(func(b []byte) []byte { b[5] = 31; return slices.Delete(b, 6, 7) }),
		"control in text":  bytes.Replace(good, []byte("generate-key"), []byte("generate\nkey"), 1),
		"no NFC":           bytes.Replace(good, []byte("generate-key"), []byte("generatee\xcc\x81y"), 1),
		"list cut short":   bytes.Replace(good, append([]byte{0, 26}, "generate-key k1"...), append([]byte{0, 27}, "generate-key k1"...), 1),
		"lives no time":    edit(func(b []byte) []byte { copy(b[len(b)-8:], b[len(b)-22:]); return b }),
		"lives eight days": edit(func(b []byte) []byte { binary.BigEndian.PutUint64(b[len(b)-8:], 1790000000+8*86400); return b }),
		"never expires":    edit(func(b []byte) []byte { binary.BigEndian.PutUint64(b[len(b)-8:], 1<<63); return b }),
		"too long":         make([]byte, 17<<10),
	} {
		if bytes.Equal(b, good) {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := admin.DecodeProposal(b); !errors.Is(err, admin.ErrProposal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, j := range []string{``, `{`, `{"a":1,"a":2}`, `{"a":1} {}`, "{\"a\":\"\xff\"}"} {
		if _, err := admin.CanonicalParameters([]byte(j)); err == nil {
			t.Errorf("parameters %q were taken", j)
		}
	}
}

// FuzzDecodeProposal: what is accepted has exactly one encoding.
func FuzzDecodeProposal(f *testing.F) {
	for _, v := range load(f).Proposals {
		f.Add(unhex(v.Proposal))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := admin.DecodeProposal(b)
		if err != nil {
			return
		}
		if again, err := p.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x was read and is written %x, %v", b, again, err)
		}
	})
}

func TestActTexts(t *testing.T) {
	h := hash32("aa" + "bb0000000000000000000000000000000000000000000000000000000000" + "cc")
	hex := "aabb0000000000000000000000000000000000000000000000000000000000cc"
	name := []byte{0x30, 0}
	for got, want := range map[string]string{
		admin.GenerateKeyAct("k", "code", "P-256", nil):           "generate-key k code P-256",
		admin.GenerateKeyAct("k", "code", "P-256", nil, "b", "a"): "generate-key k code P-256 on a,b",
		admin.GenerateKeyAct("k", "code", "P-256", nil, "a,b"):    `generate-key k code P-256 on "\"a,b\""`,
		admin.AdoptKeyAct("k", "code", "P-256", nil, h):           "adopt-key k code P-256 " + hex,
		admin.ImportKeyAct("k", "code", "P-256", nil, h):          "import-key k code P-256 " + hex,
		admin.DestroyKeyAct("k", h):                               "destroy-key k " + hex,
		admin.RepairKeyAct("k", "m"):                              "repair-key k m",
		admin.AddMemberAct("m", "0a1b", ""):                       "add-member m 0a1b",
		admin.AddMemberAct("m", "0a1b", "checkpoint"):             "add-member m 0a1b checkpoint",
		admin.RemoveMemberAct("m", "0a1b"):                        "remove-member m 0a1b",
		admin.RotateSOPINAct("m", 3):                              "rotate-so-pin m 3",
		admin.BackupRecipientAct("r", "0a1b"):                     "backup-recipient r 0a1b",
		admin.RemoveRecipientAct("r", "0a1b"):                     "remove-backup-recipient r 0a1b",
		admin.RetireAct():                                         "retire-cluster",
		admin.BackupAct("r", "0a1b"):                              "backup r 0a1b",
		admin.RestoreAct(h):                                       "restore " + hex,
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if admin.AdoptKeyAct("k", "issuer", "P-256", name, h) == admin.AdoptKeyAct("k", "issuer", "P-256", nil, h) {
		t.Error("the subject is not in the act")
	}
}
