package hsmstore_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"math/big"
	"reflect"
	"testing"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
)

func TestSignAndCommit(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	req := issue(t, k)
	req.Projections = []audit.Projection{note{"reserved"}}
	ctx, cancel := context.WithCancel(t.Context())
	op, err := k.Begin(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	defer op.Close()
	sig, err := op.SignMessage(nil, req.Message, k.Hash())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(req.Message)
	if !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Fatal("signature does not verify")
	}
	cancel() // what is signed is committed all the same
	a, err := op.Commit(ctx, audit.Done{Artefact: sha256.Sum256(sig)}, note{"row"})
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Close(); err != nil {
		t.Fatal(err)
	}
	if a.Leaf.Closes != op.Index() || c.db.closing(op.Index()) != audit.KindDone || len(op.Attempts()) != 1 {
		t.Errorf("closed %d as %v after %v", a.Leaf.Closes, c.db.closing(op.Index()), op.Attempts())
	}
	if h, _ := a.Leaf.Hash(audit.TagSignature); h != sha256.Sum256(sig) {
		t.Error("done does not name the signature")
	}
	in := c.db.leaf(op.Index())
	if h, _ := in.Hash(audit.TagTBSHash); h != digest {
		t.Error("the intent does not name the message")
	}
	if h, _ := in.Hash(audit.TagIssuer); h != k.SPKIHash() {
		t.Error("the intent does not name the issuer")
	}
	last := c.db.applied[len(c.db.applied)-3:]
	if seen, ok := last[2].(hsmstore.SeenNonce); last[0] != (note{"reserved"}) || last[1] != (note{"row"}) || !ok || seen.Key != k.SPKIHash() || seen.Message != digest {
		t.Errorf("rows: %v", last)
	}
	if _, err := op.Commit(ctx, audit.Done{}); !errors.Is(err, hsmstore.ErrUsed) {
		t.Errorf("second commit: %v", err)
	}
}

// An Operation is what x509 takes as a signer.
func TestOperationInX509(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "root")
	template := &x509.Certificate{SerialNumber: big.NewInt(77), RawSubject: k.Subject(), NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(2e9, 0), IsCA: true, BasicConstraintsValid: true}
	lint := lint384()
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), lint)
	if err != nil {
		t.Fatal(err)
	}
	dry, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	op, err := k.Begin(t.Context(), hsmstore.SignRequest{Op: audit.OpCertificate, Message: dry.RawTBSCertificate, Serial: []byte{77}})
	if err != nil {
		t.Fatal(err)
	}
	defer op.Close()
	der, err = x509.CreateCertificate(rand.Reader, template, template, k.Public(), op)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
}

func TestOperationSignsOneMessageOnce(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	req := issue(t, k)
	op, err := k.Begin(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	other := tbs(t, "Issuing CA", newSerial())
	if _, err := op.SignMessage(nil, other, k.Hash()); !errors.Is(err, hsmstore.ErrOtherMessage) {
		t.Errorf("other message: %v", err)
	}
	wrong := sha256.Sum256(other)
	if _, err := op.Sign(nil, wrong[:], crypto.SHA256); !errors.Is(err, hsmstore.ErrOtherMessage) {
		t.Errorf("other digest: %v", err)
	}
	if _, err := op.SignMessage(nil, req.Message, crypto.SHA384); !errors.Is(err, hsmstore.ErrOtherMessage) {
		t.Errorf("other hash: %v", err)
	}
	if _, err := op.Commit(t.Context(), audit.Done{}); err == nil {
		t.Error("committed without a signature")
	}
	digest := sha256.Sum256(req.Message)
	if _, err := op.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Errorf("digest of the message: %v", err)
	}
	if _, err := op.SignMessage(nil, req.Message, k.Hash()); !errors.Is(err, hsmstore.ErrUsed) {
		t.Errorf("second use: %v", err)
	}
	if err := op.Close(); err != nil {
		t.Fatal(err)
	}
	if kind := c.db.closing(op.Index()); kind != audit.KindOrphan {
		t.Errorf("signed and not committed was closed as %v", kind)
	}
	o := c.db.orphans()
	if len(o) != 1 || o[0].Intent != op.Index() || o[0].Issuer != k.SPKIHash() || string(o[0].Serial) != string(req.Serial) || time.Since(o[0].At) > time.Minute {
		t.Errorf("orphaned: %+v", o)
	}
}

func TestCloseWithoutSignature(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	ctx, cancel := context.WithCancel(t.Context())
	op, err := k.Begin(ctx, issue(t, k))
	if err != nil {
		t.Fatal(err)
	}
	cancel() // a client that has gone does not leave an open intent
	if err := errors.Join(op.Close(), op.Close()); err != nil {
		t.Fatal(err)
	}
	if kind := c.db.closing(op.Index()); kind != audit.KindFailed || len(c.db.orphans()) != 0 {
		t.Errorf("closed as %v", kind)
	}
	if _, err := op.SignMessage(nil, nil, k.Hash()); err == nil {
		t.Error("a closed operation signs")
	}
}

// What Begin refuses leaves no intent in the ledger; it is counted there.
func TestBeginRefuses(t *testing.T) {
	c := newCluster(t)
	issuing, document := c.key(t, "issuing"), c.key(t, "document")
	good := issue(t, issuing)
	with := func(change func(*hsmstore.SignRequest)) hsmstore.SignRequest { r := good; change(&r); return r }
	size := c.db.size()
	for what, tc := range map[string]struct {
		key *hsmstore.Key
		req hsmstore.SignRequest
	}{
		"other serial":       {issuing, with(func(r *hsmstore.SignRequest) { r.Serial = []byte{1} })},
		"no serial":          {issuing, with(func(r *hsmstore.SignRequest) { r.Serial = nil })},
		"other operation":    {issuing, with(func(r *hsmstore.SignRequest) { r.Op = audit.OpCRL })},
		"event as operation": {issuing, with(func(r *hsmstore.SignRequest) { r.Op = audit.OpRevoke })},
		"CRL without scope":  {issuing, hsmstore.SignRequest{Op: audit.OpCRL, Message: crl(t, "Issuing CA")}},
		"TBS, document key":  {document, good},
		"code, document key": {document, hsmstore.SignRequest{Op: audit.OpCode, Message: attributes(oidData, 32)}},
	} {
		if _, err := tc.key.Begin(t.Context(), tc.req); !errors.Is(err, hsmstore.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if c.db.size() != size {
		t.Errorf("%d leaves were written", c.db.size()-size)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := c.ledger.RunRefusals(ended); err != nil { // writes what is counted
		t.Fatal(err)
	}
	l, err := c.ledger.Leaf(t.Context(), size)
	if err != nil {
		t.Fatal(err)
	}
	kind, _ := l.Get(audit.TagRefusal)
	if n, _ := l.Uint(audit.TagCount); l.Op != audit.OpRefusals || string(kind) != "hsm:door" || n != 7 {
		t.Errorf("counted %d of %s by a leaf of %s", n, kind, l.Op)
	}
}

// If the ledger cannot be written nothing is signed; if it fails afterwards the
// intent is closed by the next start and the serial goes to revocation.
func TestLedgerFails(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	c.db.set(errors.New("disk full"))
	calls := c.status("m1").Calls + c.status("m2").Calls
	if _, err := k.Begin(t.Context(), issue(t, k)); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("Begin: %v", err)
	}
	if c.status("m1").Calls+c.status("m2").Calls != calls {
		t.Error("an HSM was called")
	}
	c.db.set(nil)

	req := issue(t, k)
	op, err := k.Begin(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := op.SignMessage(nil, req.Message, k.Hash()); err != nil {
		t.Fatal(err)
	}
	if n, err := c.store.Reconcile(t.Context()); n != 0 || err != nil {
		t.Errorf("reconciled %d operations that are alive: %v", n, err)
	}
	c.db.set(errors.New("disk full"))
	if _, err := op.Commit(t.Context(), audit.Done{}); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("Commit: %v", err)
	}
	if err := op.Close(); err == nil {
		t.Error("Close tells nothing")
	}
	c.db.set(nil)
	if n, err := c.store.Reconcile(t.Context()); n != 1 || err != nil {
		t.Errorf("reconciled %d: %v", n, err)
	}
	if o := c.db.orphans(); c.db.closing(op.Index()) != audit.KindOrphan || len(o) != 1 || string(o[0].Serial) != string(req.Serial) {
		t.Errorf("closed as %v with %v", c.db.closing(op.Index()), o)
	}
}

// A projection that does not fit takes the whole commit with it.
func TestCommitConflict(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	req := issue(t, k)
	op, err := k.Begin(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := op.SignMessage(nil, req.Message, k.Hash()); err != nil {
		t.Fatal(err)
	}
	if _, err := op.Commit(t.Context(), audit.Done{}, conflict{}); !errors.Is(err, audit.ErrConflict) {
		t.Errorf("Commit: %v", err)
	}
	if err := op.Close(); err != nil || c.db.closing(op.Index()) != audit.KindOrphan {
		t.Errorf("closed as %v: %v", c.db.closing(op.Index()), err)
	}
}

// Neither Key nor anything that its methods return is a signer.
func TestKeyIsNoSigner(t *testing.T) {
	signer := reflect.TypeFor[crypto.Signer]()
	k := reflect.TypeFor[*hsmstore.Key]()
	if k.Implements(signer) {
		t.Error("Key is a crypto.Signer")
	}
	for i := range k.NumMethod() {
		m := k.Method(i)
		for j := range m.Type.NumOut() {
			if out := m.Type.Out(j); out.Implements(signer) && out != reflect.TypeFor[*hsmstore.Operation]() {
				t.Errorf("%s gives a %v", m.Name, out)
			}
		}
	}
}

func TestCheckpointSigner(t *testing.T) {
	c := newCluster(t)
	s := c.store.CheckpointSigner()
	body := checkpoint(c.ledger.Origin(), 40, 1)
	lines, err := s.SignCheckpoint(t.Context(), body)
	if err != nil || len(lines) != 2 {
		t.Fatalf("%d lines: %v", len(lines), err)
	}
	for i, m := range []string{"m1", "m2"} {
		k := c.key(t, hsmstore.CheckpointKeyName(m))
		if l := lines[i]; l.Err != nil || l.Key != k.Name() || k.Algorithm() != "Ed25519" || !ed25519.Verify(k.Public().(ed25519.PublicKey), body, l.Signature) {
			t.Errorf("line of %s: %+v", m, l)
		}
	}
	k := c.key(t, "checkpoint-m1")
	text := hsmstore.ProofText(c.ledger.ID(), k.SPKIHash(), c.status("m1").Serial, [32]byte{1})
	for what, body := range map[string][]byte{"other origin": checkpoint("x", 41, 1), "key proof": text} {
		if _, err := s.SignCheckpoint(t.Context(), body); !errors.Is(err, hsmstore.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
