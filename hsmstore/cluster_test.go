package hsmstore_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

func TestMain(m *testing.M) {
	hsmstore.RunIfWorker()
	if len(os.Args) > 1 && os.Args[1] == "raw-signer" {
		rawSigner()
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "parent" {
		parentProcess()
		os.Exit(0)
	}
	code := m.Run()
	os.RemoveAll(templateDir)
	os.Exit(code)
}

var templateDir string // of the template cluster, if a test made it

// cluster is a store with two SoftHSM members, a ledger and the keys of a small CA.
type cluster struct {
	dir     string
	members []hsmstore.MemberConfig
	db      *memory
	ledger  *audit.Ledger
	store   *hsmstore.Store
	log     *logBuffer
}

var (
	issuerSpec    = hsmstore.KeySpec{Name: "issuing", Purpose: audit.PurposeIssuer, Algorithm: "P-256", Subject: name("Issuing CA")}
	rootSpec      = hsmstore.KeySpec{Name: "root", Purpose: audit.PurposeIssuer, Algorithm: "P-384", Subject: name("Root CA")}
	ocspSpec      = hsmstore.KeySpec{Name: "ocsp", Purpose: audit.PurposeOCSP, Algorithm: "P-256"}
	documentSpec  = hsmstore.KeySpec{Name: "document", Purpose: audit.PurposeDocument, Algorithm: "RSA-2048"}
	timestampSpec = hsmstore.KeySpec{Name: "tsa", Purpose: audit.PurposeTimestamp, Algorithm: "P-256"}
	allSpecs      = []hsmstore.KeySpec{issuerSpec, rootSpec, ocspSpec, documentSpec, timestampSpec}
)

func name(cn string) []byte {
	b, err := asn1.Marshal(pkix.Name{CommonName: cn}.ToRDNSequence())
	if err != nil {
		panic(err)
	}
	return b
}

// template is the one cluster whose keys all tests share: each test works on a
// copy of its tokens, which costs milliseconds where a ceremony costs seconds.
var template = sync.OnceValues(func() (*cluster, error) {
	dir, err := os.MkdirTemp("", "chancery-hsm-test-")
	if err != nil {
		return nil, err
	}
	templateDir = dir
	c := &cluster{dir: dir, db: newMemory(), log: &logBuffer{}}
	ctx := context.Background()
	for _, n := range []string{"m1", "m2"} {
		m, err := hsmstore.WriteSoftHSMConf(dir, n)
		if err != nil {
			return nil, err
		}
		if err := hsmstore.InitToken(ctx, m, m.TokenLabel); err != nil {
			return nil, err
		}
		c.members = append(c.members, m)
	}
	stop, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	acts := c.store.GenesisActs(allSpecs...)
	grant, err := admin.Genesis(c.ledger.Head(), acts)
	if err != nil {
		return nil, err
	}
	if err := c.store.Genesis(ctx, grant, audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "ca.example", Acts: acts}, allSpecs...); err != nil {
		return nil, err
	}
	return c, nil
})

// open opens ledger and store on what c has.
func (c *cluster) open(ctx context.Context, change ...func(*hsmstore.Config)) (stop func(), err error) {
	log := slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.ledger, err = audit.Open(ctx, c.db, audit.Options{Node: "n1", Build: "test", Log: log})
	if err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); c.ledger.Run(run) }()
	cfg := hsmstore.Config{Members: c.members, Ledger: c.ledger, Keys: c.db.keys(), Enrolled: c.db.members(), Log: log}
	for _, f := range change {
		f(&cfg)
	}
	c.store, err = hsmstore.Open(ctx, cfg)
	if err != nil {
		cancel()
		<-ended
		return nil, err
	}
	return func() { c.store.Close(); cancel(); <-ended }, nil
}

// newCluster gives a test its own copy of the template.
func newCluster(t testing.TB, change ...func(*hsmstore.Config)) *cluster {
	t.Helper()
	c := copyCluster(t)
	stop, err := c.open(context.Background(), change...)
	if err != nil {
		t.Fatalf("opening the store: %v\n%s", err, c.log)
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("log:\n%s", c.log)
		}
	})
	return c
}

func copyCluster(t testing.TB) *cluster {
	t.Helper()
	from, err := template()
	if err != nil {
		t.Fatalf("making the template cluster (is SoftHSM installed?): %v", err)
	}
	c := &cluster{dir: t.TempDir(), db: newMemory(), log: &logBuffer{}}
	for _, m := range from.members {
		to := filepath.Join(c.dir, "hsm", m.Name)
		if err := os.CopyFS(to, os.DirFS(filepath.Join(from.dir, "hsm", m.Name))); err != nil {
			t.Fatal(err)
		}
		conf := filepath.Join(to, "softhsm2.conf")
		b, err := os.ReadFile(conf)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(conf, []byte(strings.ReplaceAll(string(b), from.dir, c.dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"pin", "so-pin"} {
			if err := os.Chmod(filepath.Join(to, p), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.members = append(c.members, layout(c.dir, m.Name))
	}
	from.db.mu.Lock()
	c.db.head, c.db.leaves, c.db.applied = from.db.head, append([][]byte(nil), from.db.leaves...), append([]audit.Projection(nil), from.db.applied...)
	from.db.mu.Unlock()
	return c
}

// layout is the configuration of a member that is laid out already.
func layout(dir, member string) hsmstore.MemberConfig {
	m, err := hsmstore.WriteSoftHSMConf(dir, member)
	must(err)
	return m
}

func (c *cluster) key(t testing.TB, name string) *hsmstore.Key {
	t.Helper()
	k, err := c.store.Key(name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// tbs makes a TBSCertificate of the issuer with that name.
func tbs(t testing.TB, issuer string, serial *big.Int) []byte {
	t.Helper()
	lint := lintKey()
	parent := &x509.Certificate{RawSubject: name(issuer), Subject: pkix.Name{CommonName: issuer}}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "leaf"}, DNSNames: []string{"leaf.example"},
		NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(2e9, 0)}, parent, lint.Public(), lint)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert.RawTBSCertificate
}

var lintKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
})

func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

// issue asks for one certificate of the issuing CA, up to Begin.
func issue(t testing.TB, k *hsmstore.Key) hsmstore.SignRequest {
	serial := newSerial()
	return hsmstore.SignRequest{Op: audit.OpCertificate, Message: tbs(t, "Issuing CA", serial), Serial: serial.Bytes(), Requester: "test"}
}

// once takes one certificate through the whole door.
func once(ctx context.Context, k *hsmstore.Key, req hsmstore.SignRequest) error {
	op, err := k.Begin(ctx, req)
	if err != nil {
		return err
	}
	defer op.Close()
	sig, err := op.SignMessage(nil, req.Message, k.Hash())
	if err != nil {
		return err
	}
	_, err = op.Commit(ctx, audit.Done{Artefact: sha256.Sum256(sig)})
	return err
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
