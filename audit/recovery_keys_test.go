package audit_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"os"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/dbstore"
)

// lateKey is a checkpoint key of a member that joined later.
type lateKey struct {
	private ed25519.PrivateKey
	spki    []byte
}

func newLateKey(t *testing.T) lateKey {
	t.Helper()
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return lateKey{private, spki}
}

// born writes its birth.
func (k lateKey) born(t *testing.T, l *audit.Ledger) uint64 {
	t.Helper()
	var f audit.Fields
	f.Bytes(audit.TagSPKI, k.spki)
	f.Hash(audit.TagKey, sha256.Sum256(k.spki))
	f.Uint8(audit.TagPurpose, uint8(audit.PurposeCheckpoint))
	f.Hash(audit.TagGrant, [32]byte{7})
	a, err := l.Append(context.Background(), audit.Event(audit.OpKeyGenerate, f))
	if err != nil {
		t.Fatal(err)
	}
	return a.Index
}

// note is a checkpoint of some tree that it alone has signed.
func (k lateKey) note(origin string, size uint64) string {
	body := audit.Head{Size: size}.Body(origin)
	id := sha256.Sum256(append([]byte(origin+"\n\x01"), k.spki[len(k.spki)-32:]...))
	return string(body) + "\n— " + origin + " " + base64.StdEncoding.EncodeToString(append(id[:4:4], ed25519.Sign(k.private, body)...)) + "\n"
}

// anchor appends a note to the anchor.
func (b *bench) anchor(note string) {
	b.Helper()
	f, err := os.OpenFile(b.path("anchor"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	_, err = f.WriteString(note + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		b.Fatal(err)
	}
}

// A checkpoint that only a key signed whose birth was lost too does not stop the start after
// the recovery that gave it up; any other does.
func TestAnchorOfLostKey(t *testing.T) {
	b := newPredecessor(t)
	b.fill(3)
	b.checkpoint()
	size := b.ledger.Head().Size
	b.recover(size, size+20, b.officers[:2])
	k, origin := newLateKey(t), b.ledger.Origin()
	for _, c := range []struct {
		size uint64
		ok   bool
	}{{size + 5, true}, {size + 20, true}, {size + 21, false}} {
		b.stop()
		b.anchor(k.note(origin, c.size))
		if err := b.open(); (err == nil) != c.ok || err != nil && !errors.Is(err, audit.ErrTampered) {
			t.Errorf("checkpoint of %d entries, %d to %d were given up: %v", c.size, size, size+20, err)
		}
	}
}

// recover writes the leaf of a recovery with the votes of these officers.
func (p *predecessor) recover(common, known uint64, voters []*admin.OfficerKey) {
	p.Helper()
	must(0, p.ledger.Write(context.Background(), admin.PutRoster{History: admin.History{Base: p.roster}}))
	p.recoverBy(common, known, voters)
}

// recoverBy is recover when the officers are stored already.
func (p *predecessor) recoverBy(common, known uint64, voters []*admin.OfficerKey) {
	p.Helper()
	ctx := context.Background()
	head := p.ledger.Head()
	terms := admin.Terms{Ledger: p.ledger.ID(), Roster: p.roster, RosterDigest: p.roster.Digest(), PolicyDigest: p.roster.PolicyDigest()}
	proposal := must(terms.Draft(admin.RecoverLedger, []string{admin.RecoverAct(head.Size, head.Root(), common, known)}, []byte("{}"), admin.AdminToken, time.Now(), time.Hour).Encode())
	w := &admin.Warrant{Proposal: proposal}
	for i, k := range voters {
		w.Votes = append(w.Votes, admin.VoteRecord{Officer: k.Name, SPKI: must(k.Officer()).SPKI, Decision: admin.Approve, Signature: must(k.SignVote(admin.Approve, proposal)), Leaf: uint64(i)})
	}
	var f audit.Fields
	f.List(audit.TagWarrant, w.Evidence()...)
	f.Hash(audit.TagGrant, w.Grant())
	f.Uint64(audit.TagCommon, common)
	f.Uint64(audit.TagKnown, known)
	must(p.ledger.Append(ctx, audit.Event(audit.OpRecovery, f), audit.PutRecovery{}))
}

// The start believes no recovery that a quorum did not sign.
func TestStartWithoutQuorum(t *testing.T) {
	b := newPredecessor(t)
	b.fill(3)
	b.checkpoint()
	size := b.ledger.Head().Size
	b.recover(size, size+20, []*admin.OfficerKey{b.officers[0], b.officers[0]})
	b.stop()
	b.anchor(newLateKey(t).note(b.ledger.Origin(), size+5))
	if err := b.open(); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("a recovery that one officer signed twice lets the ledger start: %v", err)
	}
}

// The start believes a recovery of the officers who were in force then, and no one else's.
func TestStartAfterOfficersChanged(t *testing.T) {
	for what, c := range map[string]struct {
		voters func(b *predecessor) []*admin.OfficerKey
		old    bool // the warrant is of the officers before
		rows   func(c *admin.RosterChange)
		ok     bool
	}{
		"of those in force": {func(b *predecessor) []*admin.OfficerKey { return b.officers[:2] }, false, nil, true},
		"of who left":       {func(b *predecessor) []*admin.OfficerKey { return b.officers[1:] }, false, nil, false},
		"of those before":   {func(b *predecessor) []*admin.OfficerKey { return b.officers[1:] }, true, nil, false},
		"of those whom nobody decided on": {func(b *predecessor) []*admin.OfficerKey { return b.officers[:2] }, false, func(c *admin.RosterChange) {
			c.Warrant.Votes = c.Warrant.Votes[:1]
		}, false},
	} {
		t.Run(what, func(t *testing.T) {
			b := newPredecessor(t)
			before := b.roster
			must(0, b.ledger.Write(t.Context(), admin.PutRoster{History: admin.History{Base: before}}))
			change := b.change(b.ledger.ID())
			if c.rows != nil {
				c.rows(&change)
			}
			var f audit.Fields
			f.Hash(audit.TagGrant, change.Warrant.Grant())
			f.Hash(audit.TagRoster, change.Roster.Digest())
			f.Uint64(audit.TagVersion, 1)
			must(b.ledger.Append(t.Context(), audit.Event(audit.OpRoster, f), admin.PutRosterChange{RosterChange: change}))
			b.fill(3)
			b.checkpoint()
			if b.roster = change.Roster; c.old {
				b.roster = before
			}
			size := b.ledger.Head().Size
			b.recoverBy(size, size+20, c.voters(b))
			b.stop()
			b.anchor(newLateKey(t).note(b.ledger.Origin(), size+5))
			if err := b.open(); (err == nil) != c.ok || err != nil && !errors.Is(err, audit.ErrTampered) {
				t.Errorf("the start: %v", err)
			}
		})
	}
}

// What only a later key has signed shows a loss too, if its birth is left.
func TestLossByLaterKey(t *testing.T) {
	b := newLedger(t)
	k := newLateKey(t)
	birth := k.born(t, b.ledger)
	b.fill(3)
	b.checkpoint()
	size, origin := b.ledger.Head().Size, b.ledger.Origin()
	b.anchor(k.note(origin, size+9))
	b.stop()
	ctx := context.Background()
	db, err := dbstore.Open(ctx, b.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	j, err := audit.OpenJournal(b.path("journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for _, c := range []struct {
		births []uint64
		known  uint64
	}{{nil, size}, {[]uint64{0, birth}, size + 9}} {
		l, err := audit.FindLoss(ctx, db, j, b.path("anchor"), 0, c.births)
		if err != nil || l.Known != c.known || (l.Checkpoint != "") != (c.known > size) {
			t.Errorf("births %v: %d entries are known, want %d: %v", c.births, l.Known, c.known, err)
		}
	}
}
