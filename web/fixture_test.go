package web_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json/v2"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
	"chancery/signing"
	"chancery/web"
)

const (
	token      = "6f1c-the-admin-token"
	publicURL  = "https://ca.example:8443"
	publicHTTP = "http://ca.example:8080"
)

// fakeCA returns canned certificates and whatever faults a test injects.
type fakeCA struct {
	mu       sync.Mutex
	certs    map[string]*ca.Certificate
	newest   []*ca.Certificate
	roots    [][]byte
	issuer   []byte
	crl      []byte
	crlNext  time.Time
	asked    ca.Request
	query    ca.Query
	revoked  []ca.RevokeRequest
	refused  []audit.Refusal
	fail     error // of the next calls, if set
	onIssue  func(context.Context)
	onPrepay func()
}

func (f *fakeCA) note(r audit.Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = append(f.refused, r)
}

func (f *fakeCA) Prepare(_ context.Context, r ca.Request) (*ca.Prepared, error) {
	if f.onPrepay != nil {
		f.onPrepay()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = r
	if r.Profile != "tls-server" {
		return nil, &ca.Refusal{Code: ca.BadProfile, Field: "profile", Detail: "there is no such profile; allowed: tls-server"}
	}
	if _, err := x509.ParseCertificateRequest(r.CSR); err != nil {
		return nil, &ca.Refusal{Code: ca.BadCSR, Field: "csr.signature", Detail: "it is none"}
	}
	return &ca.Prepared{}, nil
}

func (f *fakeCA) Issue(ctx context.Context, _ *ca.Prepared, _ ca.Projections) (*ca.Certificate, error) {
	if f.onIssue != nil {
		f.onIssue(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	c := *f.newest[0]
	c.Receipt.Leaf = []byte("the leaf")
	return &c, nil
}

func (f *fakeCA) Revoke(_ context.Context, r ca.RevokeRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	c := f.certs[r.Serial]
	if r.Certificate != nil && bytes.Equal(r.Certificate, pki().old) {
		f.revoked = append(f.revoked, r)
		return nil
	}
	if c == nil {
		return &ca.Refusal{Code: ca.NotFound, Field: "serial", Detail: "there is no such certificate"}
	}
	f.revoked = append(f.revoked, r)
	if c.Revoked != nil {
		return &ca.Refusal{Code: ca.AlreadyRevoked, Field: "serial", Detail: "it is revoked already"}
	}
	c.Revoked = &ca.Revocation{Reason: r.Reason, At: time.Date(2026, 11, 25, 1, 2, 3, 0, time.UTC)}
	return nil
}

func (f *fakeCA) Certificate(_ context.Context, serial string) (*ca.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.certs[serial]
	if !ok {
		return nil, f.Missing(serial)
	}
	copied := *c
	return &copied, nil
}

func (f *fakeCA) Missing(serial string) error {
	return &ca.Refusal{Code: ca.NotFound, Field: "serial", Detail: "no certificate here has the serial " + serial + "; it may be of another CA"}
}

func (f *fakeCA) CertificateByDER(_ context.Context, der []byte) (*ca.Certificate, error) {
	if bytes.Equal(der, pki().old) {
		return &ca.Certificate{Serial: "77", Issuer: "issuing", DER: der, Predecessor: true}, nil
	}
	return nil, &ca.Refusal{Code: ca.NotFound, Field: "certificate", Detail: "this CA did not issue that certificate"}
}
func (f *fakeCA) Certificates(_ context.Context, q ca.Query) ([]*ca.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.query = q
	var out []*ca.Certificate
	for _, c := range f.newest {
		if (q.Before == 0 || c.Done < q.Before) && len(out) < q.Limit {
			out = append(out, c)
		}
	}
	return out, f.fail
}

func (f *fakeCA) CRL(_ context.Context, issuer string) ([]byte, time.Time, error) {
	if issuer != "issuing" {
		return nil, time.Time{}, &ca.Refusal{Code: ca.NotFound, Field: "issuer", Detail: "there is no CRL of it"}
	}
	return f.crl, f.crlNext, f.fail
}

func (f *fakeCA) IssuerCertificate(name string) ([]byte, error) {
	if name != "issuing" && name != "" {
		return nil, &ca.Refusal{Code: ca.NotFound, Field: "issuer", Detail: "there is no such issuer"}
	}
	return f.issuer, nil
}

func (f *fakeCA) Roots() [][]byte { return f.roots }

// fixture is a server over a fakeCA, with everything it wrote to its log.
type fixture struct {
	*web.Server
	ca     *fakeCA
	csr    string
	leaf   string // serial of an end-entity certificate
	sub    string // serial of a CA certificate
	logged *lockedBuffer
	cfg    web.Config
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

var pki = sync.OnceValue(makePKI)

type testPKI struct {
	root, issuing, leaf, old, crl, csr []byte
	crlThis, crlNext                   time.Time
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func makePKI() testPKI {
	key := func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }
	now := time.Now().UTC().Truncate(time.Second)
	rootKey, subKey, leafKey := key(), key(), key()
	tmpl := func(cn string, serial int64, isCA bool) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn}, NotBefore: now, NotAfter: now.Add(24 * time.Hour),
			IsCA: isCA, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature, DNSNames: []string{"www.example.org"}}
	}
	var p testPKI
	rootTmpl, subTmpl := tmpl("root", 1, true), tmpl("issuing", 0x51, true)
	p.root = must(x509.CreateCertificate(rand.Reader, rootTmpl, rootTmpl, rootKey.Public(), rootKey))
	p.issuing = must(x509.CreateCertificate(rand.Reader, subTmpl, must(x509.ParseCertificate(p.root)), subKey.Public(), rootKey))
	sub := must(x509.ParseCertificate(p.issuing))
	p.leaf = must(x509.CreateCertificate(rand.Reader, tmpl("www.example.org", 0x4f2a, false), sub, leafKey.Public(), subKey))
	p.old = must(x509.CreateCertificate(rand.Reader, tmpl("www.example.org", 0x77, false), sub, leafKey.Public(), subKey))
	p.crlThis, p.crlNext = now, now.Add(24*time.Hour)
	p.crl = must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: p.crlThis, NextUpdate: p.crlNext}, sub, subKey))
	p.csr = must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"www.example.org"}}, leafKey))
	return p
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func newFixture(t testing.TB, edit ...func(*web.Config)) *fixture {
	t.Helper()
	p := pki()
	cert := func(serial string, der []byte, done uint64) *ca.Certificate {
		return &ca.Certificate{Serial: serial, Issuer: "issuing", Profile: "tls-server", DER: der, Chain: [][]byte{p.issuing},
			NotBefore: p.crlThis, NotAfter: p.crlNext, Names: []ca.Name{{Kind: ca.DNS, Value: "www.example.org"}}, Requester: "acme:1", Done: done,
			Receipt: audit.Receipt{Origin: "ca.example/ledger/00", Index: done, ProofURL: publicURL + "/api/v1/certificates/" + serial + "/proof"}}
	}
	leaf, second, sub := cert("4f2a", p.leaf, 30), cert("4f2b", p.leaf, 20), cert("51", p.issuing, 10)
	f := &fixture{
		ca: &fakeCA{certs: map[string]*ca.Certificate{"4f2a": leaf, "4f2b": second, "51": sub}, newest: []*ca.Certificate{leaf, second, sub},
			roots: [][]byte{p.root}, issuer: p.issuing, crl: p.crl, crlNext: p.crlNext},
		csr: pemOf("CERTIFICATE REQUEST", p.csr), leaf: "4f2a", sub: "51", logged: &lockedBuffer{},
	}
	f.cfg = web.Config{
		CA: f.ca,
		ACME: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/acme/panic" {
				panic("secret of the handler")
			}
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Saw", r.Method+" "+r.URL.RequestURI())
			io.WriteString(w, `{}`)
		}),
		Console: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			io.WriteString(w, "<p>console</p>")
		}),
		Checkpoint: func(context.Context) (string, error) { return "ca.example/ledger/00\n31\nhash\n\n— sig\n", nil },
		Proof: func(_ context.Context, serial string) ([]byte, error) {
			switch serial {
			case f.leaf:
				return []byte("c2sp.org/tlog-proof@v1\nindex 30\n"), nil
			case "4f2b":
				return nil, web.ErrProofPending
			}
			return nil, f.ca.Missing(serial)
		},
		LeafProof: func(_ context.Context, index uint64) ([]byte, error) {
			switch {
			case index < 30:
				return []byte("c2sp.org/tlog-proof@v1\nindex 7\n"), nil
			case index < 40:
				return nil, web.ErrProofPending
			}
			return nil, audit.ErrNotFound
		},
		Tile: func(_ context.Context, level int, n, w uint64) ([]byte, error) {
			if level > 0 || n > 1234 {
				return nil, audit.ErrNotFound
			}
			return make([]byte, 32*w), nil
		},
		Entries: func(_ context.Context, n, w uint64) ([]byte, error) {
			return []byte(fmt.Sprint(n, " ", w)), nil
		},
		Documents: f.ca,
		Approvals: &fakeBoard{fail: &f.ca.fail},
		HSM:       fakeHSM{fail: &f.ca.fail},
		Backup:    fakeBackup{fail: &f.ca.fail},
		Candidate: func(_ context.Context, name string) (admin.MemberParameters, error) {
			if f.ca.fail != nil {
				return admin.MemberParameters{}, f.ca.fail
			}
			return admin.MemberParameters{Name: name, Serial: "5e71a1", ProbeKey: "probe-" + name, Module: "/usr/lib/vendor.so", Replication: "wrap"}, nil
		},
		Ready:      func(context.Context) error { return nil },
		AdminToken: func(s string) bool { return s == token },
		TokenOver:  func(context.Context) bool { return false },
		Machines:   fakeMachines{fail: &f.ca.fail},
		Officers:   fakeOfficers{fail: &f.ca.fail},
		Issuer:     "issuing",
		Refused:    f.ca.note,
		Erase: func(_ context.Context, _ audit.Selection, reason, _, _ string) (int, error) {
			if reason == "nothing there" {
				return 0, nil
			}
			return 2, f.ca.fail
		},
		PublicURL: publicURL, PublicHTTPURL: publicHTTP,
		Landing: web.Landing{Name: "Example CA", RootFingerprint: "AB:CD", CertbotLine: "certbot certonly --server " + publicURL + "/acme/directory", Issuers: []string{"issuing"}},
		Log:     slog.New(slog.NewTextHandler(f.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, e := range edit {
		e(&f.cfg)
	}
	var err error
	if f.Server, err = web.New(f.cfg); err != nil {
		t.Fatal(err)
	}
	return f
}

// call is one request; the zero value of a field means the usual.
type call struct {
	method, path string
	plain        bool // at the HTTP door
	admin        bool // at the door of client certificates
	noToken      bool
	header       map[string]string
	body         string
}

func (f *fixture) do(c call) *httptest.ResponseRecorder {
	w, _ := f.roundTrip(c)
	return w
}

func (f *fixture) roundTrip(c call) (*httptest.ResponseRecorder, *http.Request) {
	base, h := publicURL, f.HTTPS()
	if c.plain {
		base, h = publicHTTP, f.HTTP()
	}
	if c.admin {
		h = f.Admin()
	}
	if c.method == "" {
		c.method = "GET"
	}
	r := httptest.NewRequest(c.method, base+c.path, strings.NewReader(c.body))
	r.RequestURI = c.path
	if !c.noToken && !c.plain {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if c.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for k, v := range c.header {
		if v == "" {
			r.Header.Del(k)
		} else {
			r.Header.Set(k, v)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w, r
}

func (f *fixture) atAdmin(c call) *httptest.ResponseRecorder {
	c.admin = true
	return f.do(c)
}

func (f *fixture) issueBody() string {
	return string(must(json.Marshal(map[string]string{"csr": f.csr, "profile": "tls-server"})))
}

type problem struct {
	Type, Title, Detail, Instance, Field, Parameter, Part string
	Status                                                int
}

// wantProblem checks that an answer is a problem document of a type, complete and
// true to its status line.
func wantProblem(t *testing.T, w *httptest.ResponseRecorder, status int, slug string) problem {
	t.Helper()
	var p problem
	if ct := w.Header().Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("Content-Type %q, status %d: %s", ct, w.Code, w.Body)
		return p
	}
	if err := json.Unmarshal(w.Body.Bytes(), &p, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Errorf("%v in %s", err, w.Body)
	}
	if w.Code != status || p.Status != status || p.Type != publicURL+"/problems/"+slug {
		t.Errorf("got %d %s, want %d %s: %s", w.Code, p.Type, status, slug, w.Body)
	}
	if p.Title == "" || p.Detail == "" || p.Instance != "urn:uuid:"+w.Header().Get("X-Request-Id") {
		t.Errorf("incomplete problem: %s", w.Body)
	}
	if status == 503 && w.Header().Get("Retry-After") == "" {
		t.Errorf("503 without Retry-After")
	}
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("a problem may be cached")
	}
	return p
}

func decode(t *testing.T, w *httptest.ResponseRecorder) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	return m
}

// SignCMS makes the fake a web.Documents: it knows one key.
func (f *fakeCA) SignCMS(_ context.Context, r signing.Request) (*signing.Signature, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	if r.Key != "document" {
		return nil, fmt.Errorf("%w: %q", signing.ErrNoKey, r.Key)
	}
	return &signing.Signature{CMS: []byte{0x30, 0}, Time: time.Unix(1790000000, 0).UTC(), Receipt: audit.Receipt{Origin: "ca.example/ledger/00", Index: 7, Leaf: []byte{1}, ProofURL: publicURL + "/ledger/proof/7"}}, nil
}

// fakeHSM is a cluster of one member with one key; it fails on command.
type fakeHSM struct{ fail *error }

func (h fakeHSM) Members() []hsmstore.MemberStatus {
	return []hsmstore.MemberStatus{{Name: "alpha", State: hsmstore.Down, Since: time.Unix(1, 0), Err: hsmstore.ErrToken, Serial: "5e71a1", Replication: hsmstore.ReplicateWrap,
		Bad: map[hsmstore.KeyID]string{{1}: "not there"}}}
}
func (h fakeHSM) Keys() []hsmstore.KeyInfo {
	return []hsmstore.KeyInfo{{KeyRecord: hsmstore.KeyRecord{ID: hsmstore.KeyID{1}, Name: "issuing", Purpose: audit.PurposeIssuer, Algorithm: "P-256", SPKI: []byte{0x30}, Origin: "alpha",
		Members: []string{"alpha"}, State: hsmstore.KeyUsable}}}
}
func (h fakeHSM) Drain(context.Context, string, string, bool) error               { return *h.fail }
func (h fakeHSM) Fence(context.Context, string, string) error                     { return *h.fail }
func (h fakeHSM) Admit(context.Context, string, string) error                     { return *h.fail }
func (h fakeHSM) Disable(context.Context, string, string) error                   { return *h.fail }
func (h fakeHSM) Enable(context.Context, string, string) error                    { return *h.fail }
func (h fakeHSM) Describe(context.Context, string, string) error                  { return *h.fail }
func (h fakeHSM) Collecting() []hsmstore.Collection                               { return []hsmstore.Collection{} }
func (h fakeHSM) GiveShare(context.Context, string, string, string, []byte) error { return *h.fail }
func (h fakeHSM) Verify(context.Context) (hsmstore.Drift, error) {
	return hsmstore.Drift{Findings: []hsmstore.Finding{}, Asked: []string{"alpha"}}, *h.fail
}
func (h fakeHSM) Attributes(context.Context, string) ([]hsmstore.MemberAttributes, error) {
	return []hsmstore.MemberAttributes{{Member: "alpha"}}, *h.fail
}
func (h fakeHSM) OpenImport(_ context.Context, member string) (hsmstore.ImportTerms, error) {
	return hsmstore.ImportTerms{Session: "S", Member: member, WrappingKey: []byte{0x30}, Hash: "SHA-1", Mechanisms: []string{"RSA-AES"}}, *h.fail
}
func (h fakeHSM) InspectKey(_ context.Context, member string, _ []byte, _ string) (hsmstore.AdoptReport, error) {
	return hsmstore.AdoptReport{Member: member, Algorithms: []string{"P-256"}}, *h.fail
}

// fakeBackup has one recipient; it fails on command.
type fakeBackup struct{ fail *error }

func (b fakeBackup) Recipients(context.Context) ([]web.BackupRecipient, error) {
	return []web.BackupRecipient{{Name: "far", Serial: "5e71a1", Missing: []string{}}}, *b.fail
}
func (b fakeBackup) Candidate(_ context.Context, name string) (admin.RecipientParameters, error) {
	return admin.RecipientParameters{Name: name, Serial: "5e71a1"}, *b.fail
}
func (b fakeBackup) Manifest(context.Context, string) (web.BackupManifest, error) {
	return web.BackupManifest{Name: "far-1", Manifest: []byte("{}"), Proof: []byte("c2sp")}, *b.fail
}
func (b fakeBackup) Verify(context.Context, string) ([]hsmstore.BackupCheck, error) {
	return []hsmstore.BackupCheck{{Key: "issuing", OK: true}}, *b.fail
}
