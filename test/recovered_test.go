package test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/admin"
	"chancery/audit"
)

// TestVerifyRecovered: chancery-verify believes a recovery only with the officers'
// signatures for just these entries, and excuses kept checkpoints only of what was given up.
func TestVerifyRecovered(t *testing.T) {
	type change struct {
		proposal func(p *admin.Proposal)
		votes    []int // officers
		key      *ecdsa.PrivateKey
		known    uint64 // more than that many entries were known
		common   uint64 // that many entries more are given up
		ungrant  bool   // the lost serial is revoked without the recovery's grant
		grant    bool   // the recovery names another grant
		number   uint64 // of CRLs, from which they go on
		larger   bool   // the auditor keeps a checkpoint of more than was known
		forked   bool   // the newest checkpoint is of other entries
		vouches  bool   // what was given up has a checkpoint that would cover the birth of a new key
	}
	for name, x := range map[string]struct {
		change
		at   int // from the recovery's entry
		says string
	}{
		"all is well":             {change{}, 0, ""},
		"one officer":             {change{votes: []int{1}}, 0, "1 approvals of 2"},
		"one officer twice":       {change{votes: []int{1, 1}}, 0, "there twice"},
		"a stranger":              {change{key: newECDSA(t)}, 0, "not that of an officer"},
		"other entries":           {change{proposal: func(p *admin.Proposal) { p.Acts[0] = p.Acts[0][:20] + "x" + p.Acts[0][21:] }}, 0, "something else"},
		"another act":             {change{proposal: func(p *admin.Proposal) { p.Action = "restore" }}, 0, "something else"},
		"another ledger":          {change{proposal: func(p *admin.Proposal) { p.Ledger[0]++ }}, 0, "another ledger"},
		"a warrant that is over":  {change{proposal: func(p *admin.Proposal) { p.NotBefore, p.Expires = time.Unix(1, 0), time.Unix(2, 0) }}, 0, "not in force"},
		"another grant":           {change{grant: true}, 0, "its grant is not that"},
		"more given up":           {change{known: 3}, 0, "something else"},
		"older ones given up":     {change{common: 3}, 0, "something else"},
		"lost without a grant":    {change{ungrant: true}, 2, "without a grant"},
		"CRL numbers go back":     {change{number: 1}, 1, "go back"},
		"a larger checkpoint":     {change{larger: true}, 4, "cut off"},
		"a key behind a lost one": {change{vouches: true}, 0, "no checkpoint before it covers"},
		"a fork of the newest":    {change{forked: true}, -1, "are not those of the checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newMade(t, nil)
			l.root()
			l.issue(7)
			l.crl(nil)
			spki := sha256.Sum256(spkiOf(t, l.issuerKey))
			at, rng := l.size, append(l.rng[:0:0], l.rng...)
			root := audit.Head{Size: at, Range: rng}.Root()
			// What is lost: entries that no export has any more.
			lost := audit.Head{Size: at, Range: rng}
			known := at + 6
			if x.vouches {
				known = at + 30
			}
			for i := range known - at {
				h := sha256.Sum256([]byte{byte(i)})
				lost = grown(lost, h)
			}
			kept := l.signNote(string(lost.Body(l.origin)))
			if x.larger {
				lost = grown(lost, sha256.Sum256(nil))
				kept = l.signNote(string(lost.Body(l.origin)))
			}
			raw := l.proposal(func(p *admin.Proposal) {
				p.Action, p.Acts = "recover-ledger", []string{admin.RecoverAct(at, root, at, known)}
				if x.proposal != nil {
					x.proposal(p)
				}
			})
			votes := x.votes
			if votes == nil {
				votes = []int{0, 2}
			}
			items := [][]byte{raw}
			hash := audit.Digest("proposal", raw)
			places := hash[:]
			for i, v := range votes {
				key := l.officers[v]
				if x.key != nil {
					key = x.key
				}
				officer := sha256.Sum256(l.roster.Officers[v].SPKI)
				items = append(items, append(officer[:], l.sign(key, 1, raw)...))
				places = binary.BigEndian.AppendUint64(places, uint64(i))
			}
			grant := audit.Digest("grant", places)
			if x.grant {
				grant[0]++
			}
			l.event(audit.OpRecovery, func(f *audit.Fields) {
				f.List(audit.TagWarrant, items...)
				f.Hash(audit.TagGrant, grant)
				f.Uint64(audit.TagKnown, known+x.known)
				f.Uint64(audit.TagCommon, at-x.common)
				f.Bytes(audit.TagCheckpoint, []byte(kept))
				f.Text(audit.TagReason, "the disk died")
			})
			number := uint64(1) << 40
			if x.number > 0 {
				number = x.number
			}
			l.event(audit.OpRecovery, func(f *audit.Fields) {
				f.Hash(audit.TagGrant, grant)
				f.Hash(audit.TagIssuer, spki)
				f.Uint64(audit.TagCRLNumber, number)
				f.Uint64(audit.TagThisUpdate, uint64(l.now.Unix()))
			})
			l.event(audit.OpRevoke, func(f *audit.Fields) {
				f.Hash(audit.TagIssuer, spki)
				f.Bytes(audit.TagSerial, []byte{42})
				f.Text(audit.TagState, "lost")
				if !x.ungrant {
					f.Hash(audit.TagGrant, grant)
				}
			})
			l.number = number
			l.now = l.now.Add(2 * time.Second)
			if x.larger { // fewer entries than the auditor knows
				l.event(audit.OpConfig, func(*audit.Fields) {})
			} else {
				l.crl(nil, 42)
			}
			if x.forked {
				l.rng[0][0]++
			}
			k := newLate(t)
			if x.vouches {
				l.joins(k, l.grantFor("generate-key checkpoint-gamma checkpoint Ed25519 on gamma"))
				if l.size >= known {
					t.Fatalf("%d entries of %d", l.size, known)
				}
				for l.size < known+3 {
					l.later()
				}
			}
			last := l.by(k)
			dir := l.finish()
			if x.vouches {
				write(t, dir, "checkpoint", []byte(last))
			}
			write(t, filepath.Dir(dir), "kept.txt", []byte(kept))
			keep := []string{"--trusted-checkpoint", filepath.Join(filepath.Dir(dir), "kept.txt"), dir}
			switch {
			case x.forked: // whatever was given up, what is shown is what is signed
				if v := verifyExport(t, 7, keep...); v.Violation == nil {
					t.Error("a checkpoint of other entries passes")
				}
			case x.vouches:
				if v := verifyExport(t, 7, keep...); v.Violation == nil || !strings.Contains(v.Violation.What, x.says) {
					t.Errorf("%+v", v.Violation)
				}
			case x.says != "":
				broken(t, at+uint64(x.at), x.says, keep...)
			default:
				v := verifyExport(t, 0, keep...)
				if len(v.Recoveries) != 1 || v.Recoveries[0].Entry != at || v.Recoveries[0].Known != known {
					t.Errorf("%+v", v.Recoveries)
				}
			}
		})
	}
}

// grown is a head with one more entry, of that hash (RFC 6962 §2.1).
func grown(h audit.Head, r tlog.Hash) audit.Head {
	rng := append(h.Range[:0:0], h.Range...)
	for n := h.Size; n&1 == 1; n >>= 1 {
		r = tlog.NodeHash(rng[len(rng)-1], r)
		rng = rng[:len(rng)-1]
	}
	return audit.Head{Size: h.Size + 1, Range: append(rng, r)}
}
