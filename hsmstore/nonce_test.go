package hsmstore_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
	"chancery/hsmstore"
	"chancery/test/hsmfault"
	"chancery/test/pgcluster"

	"github.com/miekg/pkcs11"
)

// verifies checks an ECDSA signature with the key's own public half.
func verifies(k *hsmstore.Key, message, sig []byte) bool {
	h := k.Hash().New()
	h.Write(message)
	return ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), h.Sum(nil), sig)
}

// known is a P-256 issuer key whose private half the test knows, so that it can make
// the signatures of an HSM that repeats nonces.
type known struct {
	priv *ecdsa.PrivateKey
	rec  hsmstore.KeyRecord
}

func newKnown() known {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return known{priv, hsmstore.KeyRecord{ID: hsmstore.KeyID{0xee, 1}, Name: "known", Purpose: audit.PurposeIssuer, Algorithm: "P-256", SPKI: marshalSPKI(&priv.PublicKey),
		Subject: name("Issuing CA"), State: hsmstore.KeyUsable}}
}

// into puts the key on a member's token, as one of ours.
func (k *known) into(t *testing.T, m hsmstore.MemberConfig) {
	t.Helper()
	a := pkcs11.NewAttribute
	params := a(pkcs11.CKA_EC_PARAMS, marshal(asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}))
	point, err := k.priv.PublicKey.Bytes()
	must(err)
	value, err := k.priv.Bytes()
	must(err)
	names := []*pkcs11.Attribute{a(pkcs11.CKA_TOKEN, true), a(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC), params, a(pkcs11.CKA_ID, k.rec.ID[:]), a(pkcs11.CKA_LABEL, "chancery:issuer:known"), a(pkcs11.CKA_SUBJECT, k.rec.Subject)}
	inToken(t, m, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		_, err := p.CreateObject(session, append(names[:len(names):len(names)], a(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), a(pkcs11.CKA_PRIVATE, true), a(pkcs11.CKA_SENSITIVE, true), a(pkcs11.CKA_EXTRACTABLE, true),
			a(pkcs11.CKA_WRAP_WITH_TRUSTED, true), a(pkcs11.CKA_SIGN, true), a(pkcs11.CKA_DECRYPT, false), a(pkcs11.CKA_UNWRAP, false), a(pkcs11.CKA_DERIVE, false), a(pkcs11.CKA_VALUE, value), a(pkcs11.CKA_MODIFIABLE, false)))
		must(err)
		_, err = p.CreateObject(session, append(names[:len(names):len(names)], a(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), a(pkcs11.CKA_VERIFY, true), a(pkcs11.CKA_EC_POINT, marshal(point)), a(pkcs11.CKA_MODIFIABLE, false)))
		must(err)
	})
	k.rec.Origin, k.rec.Members = m.Name, append(k.rec.Members, m.Name)
}

// sign is ECDSA (SEC 1 §4.1.3) with a nonce of our choice; the result is r ‖ s.
func (k *known) sign(nonce *ecdsa.PrivateKey, message []byte) []byte {
	n := elliptic.P256().Params().N
	scalar := func(p *ecdsa.PrivateKey) *big.Int {
		b, err := p.Bytes()
		must(err)
		return new(big.Int).SetBytes(b)
	}
	point, err := nonce.PublicKey.Bytes()
	must(err)
	r := new(big.Int).SetBytes(point[1:33])
	r.Mod(r, n)
	digest := sha256.Sum256(message)
	s := new(big.Int).Mul(r, scalar(k.priv))
	s.Add(s, new(big.Int).SetBytes(digest[:]))
	s.Mul(s, new(big.Int).ModInverse(scalar(nonce), n))
	s.Mod(s, n)
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

// repeat makes two requests whose signatures will have one nonce.
func (k *known) repeat(t *testing.T, ctls ...*hsmfault.Control) (one, two hsmstore.SignRequest) {
	t.Helper()
	nonce, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	one, two = issue(t, nil), issue(t, nil)
	for _, req := range []*hsmstore.SignRequest{&one, &two} {
		digest := sha256.Sum256(req.Message)
		for _, ctl := range ctls {
			ctl.Forge(t, digest[:], k.sign(nonce, req.Message))
		}
	}
	return one, two
}

// faultyKnown is a cluster whose members hold a known key.
func faultyKnown(t *testing.T) (*faulty, known) {
	f, k := copyFaulty(t), newKnown()
	for _, m := range copyOf(f) {
		k.into(t, m)
	}
	f.db.applied = append(f.db.applied, hsmstore.PutKey{KeyRecord: k.rec})
	f.start(t)
	return f, k
}

// copyOf are the members with SoftHSM's own module.
func copyOf(f *faulty) (out []hsmstore.MemberConfig) {
	for _, m := range f.members {
		out = append(out, layout(f.dir, m.Name))
	}
	return out
}

// states are what the ledger says of a key's state.
func (c *cluster) states(name string) (out []string) {
	for i := range c.db.size() {
		l := c.db.leaf(i)
		if n, _ := l.Get(audit.TagKeyName); l.Op == audit.OpKeyState && string(n) == name {
			s, _ := l.Get(audit.TagState)
			out = append(out, string(s))
		}
	}
	return out
}

// An HSM that uses one nonce for two messages: the second signature, which would give
// the private key away together with the first, is not released by any way, its serial
// is revoked, and the key is out of use.
func TestNonceReuse(t *testing.T) {
	f, known := faultyKnown(t)
	one, two := known.repeat(t, f.ctl["m1"], f.ctl["m2"])
	k := f.key(t, "known")
	for range 3 { // one message, one nonce: no harm
		op, err := k.Begin(t.Context(), one)
		must(err)
		sig, err := op.SignMessage(nil, one.Message, k.Hash())
		if err != nil || !verifies(k, one.Message, sig) {
			t.Fatalf("the first message: %v", err)
		}
		if _, err := op.Commit(t.Context(), audit.Done{}); err != nil {
			t.Fatal(err)
		}
	}
	other := issue(t, k)
	waiting, err := k.Begin(t.Context(), other) // begun before, signed after
	must(err)
	ready, err := k.Begin(t.Context(), other) // signed before, committed after
	must(err)
	_, err = ready.SignMessage(nil, other.Message, k.Hash())
	must(err)
	op, err := k.Begin(t.Context(), two)
	must(err)
	sig, err := op.SignMessage(nil, two.Message, k.Hash())
	if !errors.Is(err, hsmstore.ErrUnavailable) || !errors.Is(err, hsmstore.ErrNonceReused) || sig != nil {
		t.Errorf("the second message: %x, %v", sig, err)
	}
	if f.ctl["m1"].Forged()+f.ctl["m2"].Forged() != 4 {
		t.Error("the signatures did not come from the module")
	}
	if _, err := op.Commit(t.Context(), audit.Done{}); err == nil {
		t.Error("the second message was committed")
	}
	if err := op.Close(); err != nil || f.db.closing(op.Index()) != audit.KindOrphan {
		t.Errorf("closed as %v: %v", f.db.closing(op.Index()), err)
	}
	revoked := f.db.orphans()
	if len(revoked) != 1 || string(revoked[0].Serial) != string(two.Serial) {
		t.Errorf("revoked: %+v", revoked)
	}
	if s := f.states("known"); len(s) != 1 || s[0] != "quarantined" {
		t.Errorf("leaves of its state: %v", s)
	}
	if st := k.State(); st != hsmstore.KeyQuarantined {
		t.Errorf("the key is %s", st)
	}
	if _, err := k.Begin(t.Context(), issue(t, k)); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("Begin of a quarantined key: %v", err)
	}
	signed := f.ctl["m1"].Count(hsmfault.Sign) + f.ctl["m2"].Count(hsmfault.Sign)
	if _, err := waiting.SignMessage(nil, other.Message, k.Hash()); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("an operation that had begun: %v", err)
	}
	if n := f.ctl["m1"].Count(hsmfault.Sign) + f.ctl["m2"].Count(hsmfault.Sign); n != signed {
		t.Error("a quarantined key signed")
	}
	if _, err := ready.Commit(t.Context(), audit.Done{}); !errors.Is(err, hsmstore.ErrNonceReused) {
		t.Errorf("an operation that had signed: %v", err)
	}
	must(waiting.Close())
	must(ready.Close())
	if err := once(t.Context(), f.key(t, "issuing"), issue(t, nil)); err != nil {
		t.Errorf("another key: %v", err)
	}
}

// Other processes and other nodes find the repetition in the database.
func TestNonceReuseInDatabase(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		nonceInDatabase(t, "sqlite:"+filepath.Join(t.TempDir(), "chancery.db"), false)
	})
	t.Run("postgres", func(t *testing.T) { nonceInDatabase(t, pgcluster.New(t).Database(), true) })
}

// node is a server's part of this package on a real database.
type node struct {
	db     *dbstore.Store
	ledger *audit.Ledger
	store  *hsmstore.Store
	stop   func()
}

func startNode(t *testing.T, url, name string, m hsmstore.MemberConfig) *node {
	t.Helper()
	ctx := context.Background()
	n := &node{}
	var err error
	n.db, err = dbstore.Open(ctx, url)
	must(err)
	n.ledger, err = audit.Open(ctx, n.db, audit.Options{Node: name, Build: "test"})
	must(err)
	run, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); n.ledger.Run(run) }()
	keys, err := n.db.Keys(ctx)
	must(err)
	members, err := n.db.Members(ctx)
	must(err)
	m.JournalPath += "." + name
	n.store, err = hsmstore.Open(ctx, hsmstore.Config{Members: []hsmstore.MemberConfig{m}, Ledger: n.ledger, Keys: keys, Enrolled: members})
	must(err)
	n.stop = func() { n.store.Close(); cancel(); <-ended; n.db.Close() }
	return n
}

func nonceInDatabase(t *testing.T, url string, together bool) {
	ctx := t.Context()
	dir := t.TempDir()
	plain := layout(dir, "m1")
	must(hsmstore.InitToken(ctx, plain, plain.TokenLabel))
	known := newKnown()
	known.into(t, plain)
	ctl := hsmfault.New(t, filepath.Join(dir, "control"))
	ctl.Delegate(plain.Module)
	m := plain
	m.Module, m.Env = hsmfault.Build(t), append(m.Env[:1:1], ctl.Env()...)

	a := startNode(t, url, "n1", m)
	acts := a.store.GenesisActs()
	grant, err := admin.Genesis(a.ledger.Head(), acts)
	must(err)
	must(a.store.Genesis(ctx, grant, audit.Genesis{Random: [32]byte{3}, Dev: true, Domain: "ca.example", Acts: acts}))
	_, err = a.ledger.Append(ctx, audit.Event(audit.OpKeyGenerate, audit.Fields{}), hsmstore.PutKey{KeyRecord: known.rec})
	must(err)
	a.stop()

	a = startNode(t, url, "n1", m)
	one, two := known.repeat(t, ctl)
	k, err := a.store.Key("known")
	must(err)
	must(once(ctx, k, one))
	must(once(ctx, k, one)) // the same message again is no harm
	b, again := a, "n1"
	if together {
		again = "n2"
		b = startNode(t, url, again, m)
		defer a.stop()
	} else {
		a.stop()
		b = startNode(t, url, again, m)
	}
	defer func() { b.stop() }()

	k, err = b.store.Key("known")
	must(err)
	two.Projections = []audit.Projection{ca.ReserveSerial{Issuer: k.SPKIHash(), Serial: two.Serial, NotAfter: time.Unix(2e9, 0)}}
	op, err := k.Begin(ctx, two)
	must(err)
	_, err = op.SignMessage(nil, two.Message, k.Hash())
	must(err) // this process does not know the first one
	if _, err := op.Commit(ctx, audit.Done{}); !errors.Is(err, hsmstore.ErrUnavailable) || !errors.Is(err, hsmstore.ErrNonceReused) {
		t.Errorf("Commit: %v", err)
	}
	must(op.Close())
	if open, err := b.ledger.OpenIntents(ctx); len(open) != 0 || err != nil {
		t.Errorf("open intents: %v %v", open, err)
	}
	if _, revoked, err := b.db.Revocations(ctx, k.SPKIHash(), time.Now()); err != nil || len(revoked) != 1 || string(revoked[0].Serial) != string(two.Serial) {
		t.Errorf("revoked: %v %v", revoked, err)
	}
	if _, err := k.Begin(ctx, issue(t, nil)); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("Begin of a quarantined key: %v", err)
	}
	// Every later start knows it.
	b.stop()
	b = startNode(t, url, again, m)
	if k, err := b.store.Key("known"); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("after a restart: %v %v", k, err)
	}
}
