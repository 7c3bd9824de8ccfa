package console_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	neturl "net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
	"chancery/web/console"
	"chancery/web/console/sessions"
)

const origin = "ca.example/ledger/5f1e0b7a9c3d2e41"

// fakeCA keeps certificates in memory.
type fakeCA struct {
	mu      sync.Mutex
	certs   []*ca.Certificate // oldest first
	asked   []ca.RevokeRequest
	queries []ca.Query
	err     error
	onRead  func()
}

func (f *fakeCA) Certificate(_ context.Context, serial string) (*ca.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onRead != nil {
		f.onRead()
	}
	if f.err != nil {
		return nil, f.err
	}
	for _, c := range f.certs {
		if c.Serial == serial {
			found := *c
			return &found, nil
		}
	}
	return nil, &ca.Refusal{Code: ca.NotFound, Field: "serial", Detail: "no certificate has the serial"}
}

func (f *fakeCA) Certificates(_ context.Context, q ca.Query) ([]*ca.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queries = append(f.queries, q)
	if f.err != nil {
		return nil, f.err
	}
	var out []*ca.Certificate
	for _, c := range slices.Backward(f.certs) {
		fits := q.Name == "" || slices.ContainsFunc(c.Names, func(n ca.Name) bool { return strings.Contains(n.Value, q.Name) })
		if fits && (q.Before == 0 || c.Done < q.Before) && len(out) < q.Limit {
			found := *c
			out = append(out, &found)
		}
	}
	return out, nil
}

func (f *fakeCA) Revoke(_ context.Context, r ca.RevokeRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r)
	if f.err != nil {
		return f.err
	}
	for _, c := range f.certs {
		if c.Serial == r.Serial {
			if c.Revoked != nil {
				return &ca.Refusal{Code: ca.AlreadyRevoked, Field: "serial", Detail: "it is revoked already"}
			}
			c.Revoked = &ca.Revocation{Reason: r.Reason, At: time.Now()}
			return nil
		}
	}
	return &ca.Refusal{Code: ca.NotFound, Field: "serial"}
}

func (f *fakeCA) revocations() []ca.RevokeRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// fakeLedger keeps real leaves in memory.
type fakeLedger struct {
	mu     sync.Mutex
	leaves [][]byte
	rng    []tlog.Hash
	signed uint64 // size of the newest checkpoint
}

func (l *fakeLedger) add(leaf audit.Leaf) uint64 {
	leaf.Ledger = audit.LedgerID{0x5f, 0x1e, 0x0b, 0x7a, 0x9c, 0x3d, 0x2e, 0x41}
	slices.SortFunc(leaf.Fields, func(a, b audit.Field) int { return int(a.Tag) - int(b.Tag) })
	b, err := leaf.Encode()
	if err != nil {
		panic(err)
	}
	return l.addBytes(b)
}

func (l *fakeLedger) addBytes(b []byte) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := audit.LeafHash(b)
	for n := uint64(len(l.leaves)); n&1 == 1; n >>= 1 {
		h = tlog.NodeHash(l.rng[len(l.rng)-1], h)
		l.rng = l.rng[:len(l.rng)-1]
	}
	l.rng = append(slices.Clone(l.rng), h)
	l.leaves = append(l.leaves, b)
	return uint64(len(l.leaves) - 1)
}

func (l *fakeLedger) head() audit.Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return audit.Head{Size: uint64(len(l.leaves)), Range: l.rng}
}

func (l *fakeLedger) entries(_ context.Context, from, to uint64, fn func(uint64, []byte) error) error {
	for i := from; i < to; i++ {
		l.mu.Lock()
		if i >= uint64(len(l.leaves)) {
			l.mu.Unlock()
			return audit.ErrTampered
		}
		b := l.leaves[i]
		l.mu.Unlock()
		if err := fn(i, b); err != nil {
			return err
		}
	}
	return nil
}

func (l *fakeLedger) checkpoint(context.Context) (string, error) {
	if l.signed == 0 {
		return "", audit.ErrNotFound
	}
	root := sha256.Sum256([]byte("root"))
	return fmt.Sprintf("%s\n%d\n%s\n\n\u2014 %s %s\n", origin, l.signed, base64.StdEncoding.EncodeToString(root[:]), origin, base64.StdEncoding.EncodeToString(make([]byte, 75))), nil
}

func (l *fakeLedger) proof(_ context.Context, index uint64) ([]byte, error) {
	if index >= l.signed {
		return nil, fmt.Errorf("%w: no checkpoint covers entry %d yet", audit.ErrNotFound, index)
	}
	return fmt.Appendf(nil, "c2sp.org/tlog-proof@v1\nindex %d\n", index), nil
}

// fixture is a console on fakes, with a clock of its own.
type fixture struct {
	*console.Console
	ca      *fakeCA
	led     *fakeLedger
	members []hsmstore.MemberStatus
	keys    []hsmstore.KeyInfo
	logged  *syncBuffer

	mu      sync.Mutex
	now     time.Time
	board   *fakeBoard
	open    *fakeSessions
	invited *fakeEnrolments
	hosts   *fakeMachines
	signed  []audit.Session
	away    error // of the ledger
	refused []audit.Refusal
	handler http.Handler
	cfg     console.Config
	drawn   atomic.Int64
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

// start is the time of the fixtures that do not follow the real clock.
var start = time.Date(2026, 11, 25, 9, 30, 0, 0, time.UTC)

func (f *fixture) clock() time.Time { f.mu.Lock(); defer f.mu.Unlock(); return f.now }

func (f *fixture) pass(d time.Duration) { f.mu.Lock(); defer f.mu.Unlock(); f.now = f.now.Add(d) }

func (f *fixture) recordSession(_ context.Context, s audit.Session) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away == nil {
		f.signed = append(f.signed, s)
	}
	return f.away
}

// newFixture makes a console on an empty backend.
func newFixture(t testing.TB, edit ...func(*fixture, *console.Config)) *fixture {
	t.Helper()
	f := &fixture{ca: &fakeCA{}, led: &fakeLedger{}, logged: &syncBuffer{}, now: start, board: newFakeBoard(), open: &fakeSessions{rows: map[sessions.ID]sessions.Session{}, spent: map[[32]byte]bool{}}, invited: &fakeEnrolments{}, hosts: &fakeMachines{}}
	cfg := console.Config{
		Certificates:  f.ca,
		Members:       func() []hsmstore.MemberStatus { return f.members },
		Keys:          func() []hsmstore.KeyInfo { return f.keys },
		Ledger:        console.Ledger{Head: f.led.head, Entries: f.led.entries, Checkpoint: f.led.checkpoint, Proof: f.led.proof},
		Board:         f.board,
		Enrolments:    f.invited,
		Machines:      f.hosts,
		Sessions:      f.open,
		Secret:        []byte("0123456789abcdef0123456789abcdef"),
		KeyPurposes:   []audit.Purpose{audit.PurposeCode, audit.PurposeDocument},
		KeyAlgorithms: []string{"P-256", "RSA-3072"},
		Session:       f.recordSession,
		Refused:       func(r audit.Refusal) { f.mu.Lock(); defer f.mu.Unlock(); f.refused = append(f.refused, r) },
		ACMEDirectory: "https://ca.example:8443/acme/directory",
		CertbotLine:   "certbot certonly --standalone --http-01-port 5002 --server https://ca.example:8443/acme/directory -d app.localhost",
		PublicURL:     "https://ca.example:8443",
		Log:           slog.New(slog.NewTextHandler(f.logged, nil)),
		Now:           f.clock,
	}
	for _, e := range edit {
		e(f, &cfg)
	}
	c, err := console.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.Console, f.handler, f.cfg = c, c.Handler(), cfg
	return f
}

// filled is a console with realistic data.
func filled(t testing.TB, edit ...func(*fixture, *console.Config)) *fixture {
	f := newFixture(t, edit...)
	f.fill()
	return f
}

var signer = sync.OnceValues(func() (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Issuing CA G1", Organization: []string{"Example"}}, NotBefore: start.AddDate(-1, 0, 0), NotAfter: start.AddDate(9, 0, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return key, c
})

// certificate issues a real certificate and puts it into the fakes.
func (f *fixture) certificate(subject string, names []ca.Name, requester string, from, to time.Time, isCA bool) *ca.Certificate {
	key, issuer := signer()
	serial := sha256.Sum256(fmt.Appendf(nil, "serial %d %s", len(f.ca.certs), subject))
	serial[0] = serial[0]&0x7f | 0x40
	tmpl := &x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial[:16]), Subject: pkix.Name{CommonName: subject}, NotBefore: from, NotAfter: to, IsCA: isCA, BasicConstraintsValid: true}
	for _, n := range names {
		if n.Kind == ca.DNS && !strings.ContainsFunc(n.Value, func(r rune) bool { return r > '~' || r < ' ' }) {
			tmpl.DNSNames = append(tmpl.DNSNames, n.Value)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, key.Public(), key)
	if err != nil {
		panic(err)
	}
	id := audit.NewOpID()
	in := f.led.add(audit.Leaf{Kind: audit.KindIntent, Op: audit.OpCertificate, ID: id, Time: from, Closes: audit.NoIndex, Fields: []audit.Field{
		{Tag: audit.TagKey, Value: hash(f.spki("issuing"))}, {Tag: audit.TagPurpose, Value: []byte{1}}, {Tag: audit.TagAlgorithm, Value: ecdsaSHA256},
		{Tag: audit.TagTBSHash, Value: hash(der)}, {Tag: audit.TagTBSLength, Value: u64(uint64(len(der) - 80))}, {Tag: audit.TagSerial, Value: serial[:16]},
		{Tag: audit.TagRequester, Value: []byte(audit.Text(requester, 1024))}, {Tag: audit.TagMaxAttempts, Value: []byte{3}}, {Tag: audit.TagNode, Value: []byte("node-1")}}})
	done := f.led.add(audit.Leaf{Kind: audit.KindDone, Op: audit.OpCertificate, ID: id, Time: from.Add(3 * time.Millisecond), Closes: in, Fields: []audit.Field{
		{Tag: audit.TagIntentHash, Value: hash(der)}, {Tag: audit.TagArtefact, Value: hash(der)}, {Tag: audit.TagAttempts, Value: list([]byte("hsm-a"), []byte{0, 0, 0, 1})}}})
	c := &ca.Certificate{Serial: hex.EncodeToString(serial[:16]), Issuer: "issuing", Profile: "tls-server", DER: der, Chain: [][]byte{issuer.Raw}, NotBefore: from, NotAfter: to, Names: names, Requester: requester,
		Done: done, Receipt: audit.Receipt{Origin: origin, Index: done, ProofURL: "https://ca.example:8443/api/v1/certificates/" + hex.EncodeToString(serial[:16]) + "/proof"}}
	f.ca.certs = append(f.ca.certs, c)
	return c
}

var ecdsaSHA256 = func() []byte {
	b, err := asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}})
	if err != nil {
		panic(err)
	}
	return b
}()

func hash(b []byte) []byte { h := sha256.Sum256(b); return h[:] }
func u64(n uint64) []byte  { return binary.BigEndian.AppendUint64(nil, n) }

func list(items ...[]byte) []byte {
	var f audit.Fields
	f.List(audit.TagActs, items...)
	return f[0].Value
}

func (f *fixture) spki(key string) []byte {
	for _, k := range f.keys {
		if k.Name == key {
			return k.SPKI
		}
	}
	return nil
}

// fill makes a house as it may look after some weeks.
func (f *fixture) fill() {
	now := f.now
	f.members = []hsmstore.MemberStatus{
		{Name: "hsm-a", State: hsmstore.Up, Since: now.Add(-73 * time.Hour), Serial: "4e1c0a7d93b25f68", Label: "chancery-a", Starts: 1, Pid: 41223, Calls: 184220, Outstanding: 2, JournalSeq: 184218, JournalHead: [32]byte(hash([]byte("a")))},
		{Name: "hsm-b", State: hsmstore.Up, Since: now.Add(-26 * time.Minute), Serial: "77f0312ecc90ab14", Label: "chancery-b", Starts: 3, Pid: 51877, Calls: 183904, JournalSeq: 183904, JournalHead: [32]byte(hash([]byte("b"))), Err: errors.New("worker ended: signal: killed (missed the deadline of 2s)")},
		{Name: "hsm-c", State: hsmstore.Fenced, Since: now.Add(-4 * time.Hour), Serial: "0b5d8846a1f3720e", Label: "chancery-c", Starts: 2, Calls: 9120, JournalSeq: 9120, JournalHead: [32]byte(hash([]byte("c"))), Err: errors.New("foreign token: 0b5d8846a1f3720e is enrolled, 99aa0000deadbeef is there")},
	}
	all, ab := []string{"hsm-a", "hsm-b", "hsm-c"}, []string{"hsm-a", "hsm-b"}
	at := now.Add(-40 * 24 * time.Hour)
	f.led.add(audit.Leaf{Kind: audit.KindGenesis, Op: audit.OpGenesis, Time: at, Closes: audit.NoIndex, Fields: []audit.Field{{Tag: audit.TagRandom, Value: hash([]byte("r"))}, {Tag: audit.TagMode, Value: []byte{1}}, {Tag: audit.TagDomain, Value: []byte("ca.example")}, {Tag: audit.TagActs, Value: list([]byte("key-generate root"), []byte("key-generate issuing"), []byte("member-add hsm-a"))}}})
	for i, k := range []struct {
		name    string
		purpose audit.Purpose
		alg     string
		members []string
		ready   []string
	}{{"checkpoint", audit.PurposeCheckpoint, "P-256", all, ab}, {"issuing", audit.PurposeIssuer, "P-256", all, ab}, {"ocsp-issuing", audit.PurposeOCSP, "P-256", all, ab}, {"probe-hsm-a", audit.PurposeProbe, "P-256", all[:1], all[:1]}, {"probe-hsm-b", audit.PurposeProbe, "P-256", all[1:2], all[1:2]}, {"probe-hsm-c", audit.PurposeProbe, "P-256", all[2:], nil}, {"release-signing", audit.PurposeCode, "RSA-3072", ab, ab}, {"root", audit.PurposeIssuer, "P-384", all, ab}} {
		spki := []byte("spki of " + k.name)
		birth := f.led.add(audit.Leaf{Kind: audit.KindEvent, Op: audit.OpKeyGenerate, ID: audit.NewOpID(), Time: at.Add(time.Duration(i) * time.Second), Closes: audit.NoIndex, Fields: []audit.Field{
			{Tag: audit.TagKey, Value: hash(spki)}, {Tag: audit.TagPurpose, Value: []byte{byte(k.purpose)}}, {Tag: audit.TagKeyName, Value: []byte(k.name)}, {Tag: audit.TagMember, Value: []byte("hsm-a")}, {Tag: audit.TagSPKI, Value: spki}, {Tag: audit.TagAttributes, Value: list([]byte("SENSITIVE"), []byte("PRIVATE"), []byte("TOKEN"))}}})
		f.keys = append(f.keys, hsmstore.KeyInfo{KeyRecord: hsmstore.KeyRecord{ID: hsmstore.KeyID{byte(i)}, Name: k.name, Purpose: k.purpose, Algorithm: k.alg, SPKI: spki, Origin: k.members[0], Members: k.members, Birth: birth, State: hsmstore.KeyUsable}, Ready: k.ready})
	}
	hosts := []string{"api", "vpn", "build-7", "ldap", "mail", "edge-03", "db-primary", "registry", "grafana", "xn--8pvr4u"}
	for i := range 118 {
		from := now.Add(-time.Duration(120-i) * 8 * time.Hour)
		host := hosts[i%len(hosts)] + ".corp.example"
		names := []ca.Name{{Kind: ca.DNS, Value: host}}
		if i%4 == 0 {
			names = append(names, ca.Name{Kind: ca.DNS, Value: "alt." + host}, ca.Name{Kind: ca.IP, Value: "192.0.2.17"})
		}
		to := from.Add(90 * 24 * time.Hour)
		if i%9 == 3 {
			to = from.Add(time.Duration(35+i%5) * 24 * time.Hour / 4)
		}
		c := f.certificate(host, names, []string{"acme:4821", "api:admin-token", "acme:17"}[i%3], from, to, false)
		if i%13 == 7 {
			c.Revoked = &ca.Revocation{Reason: ca.Superseded, At: from.Add(48 * time.Hour)}
			f.led.add(audit.Leaf{Kind: audit.KindEvent, Op: audit.OpRevoke, ID: audit.NewOpID(), Time: from.Add(48 * time.Hour), Closes: audit.NoIndex, Fields: []audit.Field{{Tag: audit.TagSerial, Value: unhex(c.Serial)}, {Tag: audit.TagRequester, Value: []byte("acme:17")}, {Tag: audit.TagReason, Value: []byte("superseded")}, {Tag: audit.TagRevokedAt, Value: u64(uint64(from.Unix()))}}})
		}
	}
	id := audit.NewOpID()
	in := f.led.add(audit.Leaf{Kind: audit.KindIntent, Op: audit.OpCRL, ID: id, Time: now.Add(-9 * time.Minute), Closes: audit.NoIndex, Fields: []audit.Field{{Tag: audit.TagKey, Value: hash(f.spki("issuing"))}, {Tag: audit.TagCRLNumber, Value: u64(1042)}, {Tag: audit.TagThisUpdate, Value: u64(uint64(now.Unix()))}, {Tag: audit.TagCovers, Value: u64(240)}}})
	f.led.add(audit.Leaf{Kind: audit.KindOrphan, Op: audit.OpCRL, ID: id, Time: now.Add(-8 * time.Minute), Closes: in, Fields: []audit.Field{{Tag: audit.TagIntentHash, Value: hash(nil)}, {Tag: audit.TagReason, Value: []byte("the server was killed while hsm-b signed")}}})
	f.led.add(audit.Leaf{Kind: audit.KindEvent, Op: audit.OpCounts, ID: audit.NewOpID(), Time: now.Add(-5 * time.Minute), Closes: audit.NoIndex, Fields: []audit.Field{{Tag: audit.TagCounts, Value: list([]byte("hsm-a"), u64(720), u64(311), hash([]byte("a")), []byte("hsm-b"), u64(719), u64(12), hash([]byte("b")))}}})
	f.led.signed = f.led.head().Size - 1
	f.certificate("tea.corp.example", []ca.Name{{Kind: ca.DNS, Value: "tea.corp.example"}}, "acme:4821", now.Add(-time.Minute), now.Add(90*24*time.Hour), false)
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// visitor is a browser as far as cookies go.
type visitor struct {
	f       *fixture
	cookies map[string]string
	lang    string
	addr    string
}

func (f *fixture) visitor() *visitor {
	return &visitor{f: f, cookies: map[string]string{}, addr: "192.0.2.7:51000"}
}

// signedIn is a visitor with the session of ada, who has all roles but the auditor's.
func (f *fixture) signedIn(t testing.TB) *visitor { return f.as(t, "ada") }

// as is a visitor with the session of an officer, who signed in just now.
func (f *fixture) as(t testing.TB, officer string) *visitor {
	t.Helper()
	v := f.visitor()
	v.cookies[console.CookieName] = f.session(t, f.cfg.Board, f.cfg.Sessions, officer)
	return v
}

// session opens a session and returns what the browser has of it.
func (f *fixture) session(t testing.TB, board console.Board, into console.Sessions, officer string) string {
	t.Helper()
	h, err := board.Rosters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	now := f.cfg.Now()
	err = into.Write(t.Context(), sessions.Put{ID: sessions.IDOf(secretOf(f.drawn.Add(1))), Session: sessions.Session{Kind: sessions.Officer, Subject: officer, Credential: []byte("x"), Entry: console.EntryDigest(h.Current(), officer),
		Created: now, Seen: now, Stepped: now, Form: secretOf(f.drawn.Add(1)), Op: audit.NewOpID()}})
	if err != nil {
		t.Fatal(err)
	}
	return secretOf(f.drawn.Load() - 1)
}

func secretOf(n int64) string {
	h := sha256.Sum256(fmt.Append(nil, "secret ", n))
	return hex.EncodeToString(h[:])
}

type edit func(*http.Request)

func header(name, value string) edit { return func(r *http.Request) { r.Header.Set(name, value) } }

func (v *visitor) do(method, path string, body string, edits ...edit) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "https://ca.example:8443/", strings.NewReader(body))
	u, err := neturl.ParseRequestURI(path)
	if err != nil {
		panic(err)
	}
	r.URL.Path, r.URL.RawPath, r.URL.RawQuery, r.RequestURI = u.Path, u.RawPath, u.RawQuery, path
	r.RemoteAddr = v.addr
	if v.lang != "" {
		r.Header.Set("Accept-Language", v.lang)
	}
	for name, value := range v.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.Header.Set("Origin", "https://ca.example:8443")
	}
	for _, e := range edits {
		e(r)
	}
	w := httptest.NewRecorder()
	v.f.handler.ServeHTTP(w, r)
	for _, ck := range w.Result().Cookies() {
		if ck.MaxAge < 0 {
			delete(v.cookies, ck.Name)
		} else {
			v.cookies[ck.Name] = ck.Value
		}
	}
	return w
}

func (v *visitor) get(path string, edits ...edit) *httptest.ResponseRecorder {
	return v.do("GET", path, "", edits...)
}

func (v *visitor) post(path string, pairs ...string) *httptest.ResponseRecorder {
	return v.do("POST", path, form(pairs...))
}

func form(pairs ...string) string {
	q := neturl.Values{}
	for i := 0; i < len(pairs); i += 2 {
		q.Add(pairs[i], pairs[i+1])
	}
	return q.Encode()
}

var hidden = regexp.MustCompile(`<input type="hidden" name="([a-z_]+)" value="([^"]*)">`)

// fields are the hidden fields of the last form of a page that has a form token.
func fields(page string) map[string]string {
	out := map[string]string{}
	for _, m := range hidden.FindAllStringSubmatch(page, -1) {
		out[m[1]] = m[2]
	}
	delete(out, "to")
	return out
}

func digest(c *ca.Certificate) string { h := sha256.Sum256(c.DER); return hex.EncodeToString(h[:]) }
