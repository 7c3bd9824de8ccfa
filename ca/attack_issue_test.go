package ca_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// parseTBS reads a TBSCertificate by wrapping it into a certificate with an empty signature.
func parseTBS(t testing.TB, tbs []byte) *x509.Certificate {
	t.Helper()
	alg := unhex(t, "300a06082a8648ce3d040302") // ecdsa-with-SHA256
	var out builder
	seq(&out, func(b *builder) { b.AddBytes(tbs); b.AddBytes(alg); b.AddASN1BitString([]byte{0}) })
	c, err := x509.ParseCertificate(out.BytesOrPanic())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAttack_CA_14(t *testing.T) {
	h := home(t)
	issuer := func(g *admin.Grant, spec ca.IssuerSpec) func() error {
		return func() error { _, err := h.authority.PrepareIssuer(context.Background(), g, spec); return err }
	}
	change := func(f func(*ca.IssuerSpec)) ca.IssuerSpec { s := spareSpec; f(&s); return s }
	if r := h.refuses(t, "below pathLen 0", issuer(h.grant, change(func(s *ca.IssuerSpec) { s.Parent = "issuing" })), ca.IssuerUnavailable); !strings.Contains(r.Detail, "pathLen") {
		t.Error(r)
	}
	for what, s := range map[string]ca.IssuerSpec{
		"leaf profile":              change(func(s *ca.IssuerSpec) { s.Profile = "tls-server" }),
		"profile root below a root": change(func(s *ca.IssuerSpec) { s.Profile = "root" }),
		"profile issuing on itself": change(func(s *ca.IssuerSpec) { s.Parent = "spare" }),
		"name that exists":          change(func(s *ca.IssuerSpec) { s.Name = "issuing" }),
		"name with a path":          change(func(s *ca.IssuerSpec) { s.Name = "../x" }),
		"no name":                   change(func(s *ca.IssuerSpec) { s.Name = "" }),
		"long name":                 change(func(s *ca.IssuerSpec) { s.Name = strings.Repeat("x", 65) }),
		"key of another issuer":     change(func(s *ca.IssuerSpec) { s.KeyName, s.Subject = "issuing", issuingSubject }),
		"key of another purpose":    change(func(s *ca.IssuerSpec) { s.KeyName = "checkpoint-m1" }),
		"subject of another key":    change(func(s *ca.IssuerSpec) { s.Subject = rootSubject }),
	} {
		h.refuses(t, what, issuer(h.grant, s), ca.BadProfile)
	}
	h.refuses(t, "no such parent", issuer(h.grant, change(func(s *ca.IssuerSpec) { s.Parent = "nobody" })), ca.NotFound)
	h.untouched(t, func() {
		for what, g := range map[string]*admin.Grant{"no grant": nil, "empty grant": {}, "other acts": h.grant} {
			if err := issuer(g, spareSpec)(); !errors.Is(err, admin.ErrNotGranted) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := issuer(h.grant, change(func(s *ca.IssuerSpec) { s.KeyName = "nothing" }))(); !errors.Is(err, hsmstore.ErrNoKey) {
			t.Error(err)
		}
	})
	// After 16 years of 20 the root no longer covers an issuing CA of 5.
	late := h.another(t, "issuing", func() time.Time { return h.now().AddDate(16, 0, 0) }, h.db)
	h.refuses(t, "outlives its issuer", func() error {
		_, err := late.PrepareIssuer(context.Background(), h.grant, spareSpec)
		return err
	}, ca.IssuerUnavailable)
}

func TestAttack_CA_15(t *testing.T) {
	h := home(t)
	issuing := must(x509.ParseCertificate(must(h.authority.IssuerCertificate("issuing"))))
	for what, now := range map[string]time.Time{
		"leaf would outlive it": issuing.NotAfter.Add(-90*24*time.Hour + 6*time.Minute), "ended": issuing.NotAfter.Add(time.Second), "not begun": issuing.NotBefore.Add(-time.Second),
		"long ended": time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "long before": time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		a := h.another(t, "issuing", func() time.Time { return now }, h.db)
		h.refuses(t, what, func() error {
			_, err := a.Prepare(context.Background(), ca.Request{Profile: "tls-server", CSR: good()})
			return err
		}, ca.IssuerUnavailable)
	}
	at := issuing.NotAfter.Add(-90*24*time.Hour + 4*time.Minute)
	a := h.another(t, "issuing", func() time.Time { return at }, h.db)
	if _, err := a.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()}); err != nil {
		t.Error("the last one that fits:", err)
	}
	h.refuses(t, "no such issuer", func() error {
		_, err := h.another(t, "nobody", h.now, h.db).Prepare(context.Background(), ca.Request{Profile: "tls-server", CSR: good()})
		return err
	}, ca.NotFound)

	// An issuer that is revoked issues nothing any more: not what was prepared before,
	// not on a node that learns of it later, not after a restart.
	odd, other := h.odd(t), h.odd(t)
	prepared, err := odd.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
	if err != nil {
		if already := new(ca.Refusal); errors.As(err, &already) && strings.Contains(already.Detail, "revoked") {
			t.Skip("revoked by an earlier run of this test in the same house")
		}
		t.Fatal(err)
	}
	serial := hex.EncodeToString(must(x509.ParseCertificate(must(odd.IssuerCertificate("odd")))).SerialNumber.Bytes())
	if err := odd.Revoke(t.Context(), ca.RevokeRequest{Issuer: "root", Serial: serial, Reason: ca.CessationOfOperation}); err != nil {
		t.Fatal(err)
	}
	h.refuses(t, "prepared before", func() error { _, err := odd.Issue(context.Background(), prepared, ca.Projections{}); return err }, ca.IssuerUnavailable)
	if err := other.FreshCRLs(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, a := range map[string]*ca.Authority{"same node": odd, "another node": other, "after a restart": h.another(t, "odd", h.now, h.db)} {
		h.refuses(t, what, func() error {
			_, err := a.Prepare(context.Background(), ca.Request{Profile: "tls-server", CSR: good()})
			return err
		}, ca.IssuerUnavailable)
	}
}

// border shows one issuer as another certificate of the same key would be.
type border struct {
	ca.Storage
	name string
	der  []byte
}

func (b border) Issuers(ctx context.Context) ([]ca.IssuerRecord, error) {
	recs, err := b.Storage.Issuers(ctx)
	for i := range recs {
		if recs[i].Name == b.name {
			recs[i].DER = b.der
		}
	}
	return recs, err
}

// lasting is storage in which the issuing CA is valid from 2040 to 2070.
func (h *house) lasting(t testing.TB) ca.Storage {
	t.Helper()
	k, err := h.hsm.Key("issuing")
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), RawSubject: k.Subject(), NotBefore: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2070, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1, 2, 3}}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "somebody"}}
	return border{h.db, "issuing", must(x509.CreateCertificate(nil, tmpl, parent, k.Public(), ecKey()))}
}

func TestAttack_CA_16(t *testing.T) {
	h := home(t)
	st := h.lasting(t)
	const utc, generalized = 0x17, 0x18
	for _, tc := range []struct {
		now         time.Time
		from, until byte
	}{
		{time.Date(2049, 6, 1, 12, 0, 0, 999_999_999, time.UTC), utc, utc},
		{time.Date(2049, 10, 3, 0, 5, 0, 0, time.UTC), utc, utc}, // ends 2049-12-31 23:59:59
		{time.Date(2049, 10, 3, 0, 5, 1, 0, time.UTC), utc, generalized},
		{time.Date(2049, 12, 31, 23, 59, 59, 0, time.FixedZone("far", -12*3600)), generalized, generalized},
		{time.Date(2050, 1, 1, 0, 4, 59, 0, time.UTC), utc, generalized},
		{time.Date(2050, 1, 1, 0, 5, 0, 0, time.UTC), generalized, generalized},
		{time.Date(2048, 2, 29, 0, 0, 0, 0, time.UTC), utc, utc},
		{time.Date(2045, 6, 30, 23, 59, 60, 0, time.UTC), utc, utc}, // a leap second
	} {
		a := h.another(t, "issuing", func() time.Time { return tc.now }, st)
		p, err := a.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
		if err != nil {
			t.Errorf("%v: %v", tc.now, err)
			continue
		}
		c := parseTBS(t, p.TBS())
		if got := c.NotAfter.Sub(c.NotBefore); got != 90*24*time.Hour-time.Second {
			t.Errorf("%v: valid for %v", tc.now, got)
		}
		if want := tc.now.UTC().Truncate(time.Second).Add(-5 * time.Minute); !c.NotBefore.Equal(want) || !p.NotBefore().Equal(want) || !p.NotAfter().Equal(c.NotAfter) {
			t.Errorf("%v: notBefore %v", tc.now, c.NotBefore)
		}
		form := func(at time.Time) []byte {
			if at.Year() >= 2050 {
				return append([]byte{generalized, 15}, at.UTC().Format("20060102150405Z")...)
			}
			return append([]byte{utc, 13}, at.UTC().Format("060102150405Z")...)
		}
		validity := append(form(c.NotBefore), form(c.NotAfter)...)
		i := bytes.Index(p.TBS(), validity)
		if i < 0 || p.TBS()[i] != tc.from || p.TBS()[i+len(form(c.NotBefore))] != tc.until {
			t.Errorf("%v: validity is not encoded as RFC 5280 §4.1.2.5 says: %x", tc.now, p.TBS())
		}
	}
}

// No request carries a validity; what remains are a CA's clock that is wrong and
// templates that are.
func TestAttack_CA_17(t *testing.T) {
	h := home(t)
	st := h.lasting(t)
	for _, now := range []time.Time{{}, time.Unix(0, 0), time.Unix(-1<<40, 0), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2069, 12, 31, 23, 59, 59, 0, time.UTC)} {
		a := h.another(t, "issuing", func() time.Time { return now }, st)
		h.refuses(t, now.String(), func() error {
			_, err := a.Prepare(context.Background(), ca.Request{Profile: "tls-server", CSR: good()})
			return err
		}, ca.IssuerUnavailable)
	}
	for what, change := range map[string]func(*x509.Certificate){
		"negative":      func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(-time.Second) },
		"zero":          func(c *x509.Certificate) { c.NotAfter = c.NotBefore },
		"one second":    func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(time.Second) },
		"year 10000":    func(c *x509.Certificate) { c.NotAfter = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"no end":        func(c *x509.Certificate) { c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) },
		"10 years back": func(c *x509.Certificate) { c.NotBefore = c.NotBefore.AddDate(-10, 0, 0) },
		"fraction":      func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(500 * time.Millisecond) },
	} {
		h.untouched(t, func() {
			p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Reseal(change); err == nil {
				t.Errorf("%s: sealed", what)
			}
		})
	}
}

func TestAttack_CA_22(t *testing.T) {
	const n = 100_000
	seen := make(map[[16]byte]bool, n)
	var ones [128]int
	for range n {
		s := ca.NewSerial()
		if len(s) != 16 || s[0] < 0x40 || s[0] > 0x7f {
			t.Fatalf("serial %x: want 16 octets that are positive without a 17th", s)
		}
		if seen[[16]byte(s)] {
			t.Fatalf("serial %x twice", s)
		}
		seen[[16]byte(s)] = true
		for i := range ones {
			ones[i] += int(s[i/8] >> (7 - i%8) & 1)
		}
	}
	// 126 bits are random: each is one about half of the time (6 sigma are 950).
	for i := 2; i < 128; i++ {
		if d := ones[i] - n/2; d < -950 || d > 950 {
			t.Errorf("bit %d is one in %d of %d serials", i, ones[i], n)
		}
	}
}

// take reserves a serial as another node would.
func (h *house) take(ctx context.Context, serial string, issuer [32]byte) error {
	b, err := hex.DecodeString(serial)
	if err != nil {
		return err
	}
	_, err = h.ledger.Append(ctx, audit.Event(audit.OpConfig, nil), ca.ReserveSerial{Issuer: issuer, Serial: b, NotAfter: h.now()})
	return err
}

func (h *house) spki(t testing.TB, name string) [32]byte {
	t.Helper()
	k, err := h.hsm.Key(name)
	if err != nil {
		t.Fatal(err)
	}
	return k.SPKIHash()
}

func TestAttack_CA_23(t *testing.T) {
	h := home(t)
	issuing := h.spki(t, "issuing")
	prepare := func() *ca.Prepared {
		p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// Taken: a new one is drawn, and the whole certificate made and linted anew.
	p := prepare()
	first := p.Serial()
	if err := h.take(t.Context(), first, issuing); err != nil {
		t.Fatal(err)
	}
	signed := h.signatures(t)
	c, err := h.authority.Issue(t.Context(), p, ca.Projections{})
	if err != nil {
		t.Fatal(err)
	}
	cert := must(x509.ParseCertificate(c.DER))
	if c.Serial == first || c.Serial != p.Serial() || hex.EncodeToString(cert.SerialNumber.Bytes()) != c.Serial || h.signatures(t) != signed+1 {
		t.Errorf("serial %s after %s, %d signatures", c.Serial, first, h.signatures(t)-signed)
	}
	// Projections of the caller may name the serial: they are never committed with another.
	p = prepare()
	if err := h.take(t.Context(), p.Serial(), issuing); err != nil {
		t.Fatal(err)
	}
	h.untouched(t, func() {
		mine := ca.PutSetting{Name: "order-" + p.Serial(), Value: []byte(p.Serial())}
		if _, err := h.authority.Issue(t.Context(), p, ca.Projections{Intent: []audit.Projection{mine}}); !errors.Is(err, ca.ErrSerialTaken) {
			t.Errorf("issued beside projections that name another serial: %v", err)
		}
		if _, err := h.db.Setting(t.Context(), mine.Name); !errors.Is(err, audit.ErrNotFound) {
			t.Error("the caller's projection was committed")
		}
	})
	// A random source that only repeats itself ends in an error.
	mend := breakOn[ca.ReserveSerial](t, h, ca.ErrSerialTaken)
	h.untouched(t, func() {
		if _, err := h.authority.Issue(t.Context(), prepare(), ca.Projections{}); !errors.Is(err, ca.ErrSerialTaken) {
			t.Error(err)
		}
	})
	mend()
	// Many nodes take one serial at once: one gets it.
	serial := hex.EncodeToString(ca.NewSerial())
	var wg sync.WaitGroup
	var mu sync.Mutex
	got, refused := 0, 0
	for range 8 {
		wg.Go(func() {
			err := h.take(context.Background(), serial, issuing)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				got++
			} else if errors.Is(err, ca.ErrSerialTaken) {
				refused++
			}
		})
	}
	wg.Wait()
	if got != 1 || refused != 7 {
		t.Errorf("%d got the serial, %d were refused", got, refused)
	}
	if err := h.take(t.Context(), serial, h.spki(t, "root")); err != nil {
		t.Error("the same serial of another issuer:", err)
	}
}

func TestAttack_CA_24(t *testing.T) {
	h := home(t)
	p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
	if err != nil {
		t.Fatal(err)
	}
	tbs := bytes.Clone(p.TBS())
	// A reload in the middle makes another profile of the same name.
	restore := ca.SwapProfile("tls-server", func(p *ca.Profile) { p.Validity, p.KeyUsage = 400*24*time.Hour, x509.KeyUsageCertSign })
	c, err := h.authority.Issue(t.Context(), p, ca.Projections{})
	restore()
	if err != nil {
		t.Fatal(err)
	}
	cert := must(x509.ParseCertificate(c.DER))
	if !bytes.Equal(cert.RawTBSCertificate, tbs) {
		t.Error("signed were other bytes than linted")
	}
	stored, err := h.db.Certificate(t.Context(), h.spki(t, "issuing"), cert.SerialNumber.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	intent, err := h.ledger.Leaf(t.Context(), stored.Intent)
	if err != nil {
		t.Fatal(err)
	}
	if sum, _ := intent.Hash(audit.TagTBSHash); sum != sha256.Sum256(tbs) {
		t.Error("the intent names other bytes")
	}
	found := 0
	for _, m := range h.members {
		recs, err := hsmstore.ReadJournal(m.JournalPath)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			if r.Kind == hsmstore.JournalIntent && r.Number == stored.Intent {
				found++
				if r.SHA256 != sha256.Sum256(tbs) {
					t.Error("the worker signed other bytes")
				}
			}
		}
	}
	if found != 1 {
		t.Errorf("%d signatures under one intent", found)
	}
}

// Text of a requester is data, never structure.
func TestAttack_CA_27(t *testing.T) {
	h := home(t)
	h.odd(t)
	k, err := h.hsm.Key("odd")
	if err != nil {
		t.Fatal(err)
	}
	cert := must(x509.ParseCertificate(must(h.authority.IssuerCertificate("odd"))))
	if !bytes.Equal(cert.RawSubject, k.Subject()) || cert.Subject.CommonName != oddName || len(cert.DNSNames) != 0 || cert.MaxPathLen != 0 || !cert.MaxPathLenZero {
		t.Errorf("subject %v, names %v", cert.Subject, cert.DNSNames)
	}
	huge := spareSpec
	huge.Subject.CommonName = strings.Repeat("x", 10<<20)
	h.refuses(t, "10 MB", func() error {
		_, err := h.authority.PrepareIssuer(context.Background(), h.grant, huge)
		return err
	}, ca.BadProfile)
	requester := oddName + "\x00\n"
	p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good(), Requester: requester})
	if err != nil {
		t.Fatal(err)
	}
	if tbs := parseTBS(t, p.TBS()); len(tbs.DNSNames) != 1 || len(tbs.Subject.Names) != 0 {
		t.Errorf("names %v", tbs.DNSNames)
	}
	if _, err := h.authority.Issue(t.Context(), p, ca.Projections{}); err != nil {
		t.Errorf("a requester of odd characters: %v", err)
	}
}

func TestAttack_CA_28(t *testing.T) {
	h := home(t)
	a := h.authority
	c := h.issue(t, a, good())
	revoke := func(r ca.RevokeRequest) func() error {
		return func() error { return a.Revoke(context.Background(), r) }
	}
	for what, tc := range map[string]struct {
		req  ca.RevokeRequest
		code ca.Code
	}{
		"unknown serial":  {ca.RevokeRequest{Serial: hex.EncodeToString(ca.NewSerial())}, ca.NotFound},
		"other issuer":    {ca.RevokeRequest{Serial: c.Serial, Issuer: "root"}, ca.NotFound},
		"no such issuer":  {ca.RevokeRequest{Serial: c.Serial, Issuer: "nobody"}, ca.NotFound},
		"no serial":       {ca.RevokeRequest{}, ca.NotFound},
		"upper case":      {ca.RevokeRequest{Serial: strings.ToUpper(c.Serial) + "AA"}, ca.NotFound},
		"no hex":          {ca.RevokeRequest{Serial: "' OR 1=1 --"}, ca.NotFound},
		"zero":            {ca.RevokeRequest{Serial: "00"}, ca.NotFound},
		"leading zero":    {ca.RevokeRequest{Serial: "00" + c.Serial}, ca.NotFound},
		"21 octets":       {ca.RevokeRequest{Serial: strings.Repeat("11", 21)}, ca.NotFound},
		"reason 7":        {ca.RevokeRequest{Serial: c.Serial, Reason: 7}, ca.BadReason},
		"reason 11":       {ca.RevokeRequest{Serial: c.Serial, Reason: 11}, ca.BadReason},
		"reason -1":       {ca.RevokeRequest{Serial: c.Serial, Reason: -1}, ca.BadReason},
		"removeFromCRL":   {ca.RevokeRequest{Serial: c.Serial, Reason: 8}, ca.BadReason},
		"certificateHold": {ca.RevokeRequest{Serial: c.Serial, Reason: ca.CertificateHold}, ca.BadReason},
		"cACompromise":    {ca.RevokeRequest{Serial: c.Serial, Reason: ca.CACompromise}, ca.BadReason},
		"reason 2^40":     {ca.RevokeRequest{Serial: c.Serial, Reason: 1 << 40}, ca.BadReason},
	} {
		h.refuses(t, what, revoke(tc.req), tc.code)
	}
	h.revoke(t, c.Serial, ca.Superseded)
	first, err := a.Certificate(t.Context(), c.Serial)
	if err != nil || first.Revoked == nil || first.Revoked.Reason != ca.Superseded {
		t.Fatalf("%+v, %v", first, err)
	}
	h.pass(time.Hour)
	h.refuses(t, "a second time", revoke(ca.RevokeRequest{Serial: c.Serial, Reason: ca.AffiliationChanged}), ca.AlreadyRevoked)
	h.revoke(t, c.Serial, ca.KeyCompromise)
	h.refuses(t, "after a compromise", revoke(ca.RevokeRequest{Serial: c.Serial, Reason: ca.Superseded}), ca.AlreadyRevoked)
	h.refuses(t, "the compromise again", revoke(ca.RevokeRequest{Serial: c.Serial, Reason: ca.KeyCompromise}), ca.AlreadyRevoked)
	last, err := a.Certificate(t.Context(), c.Serial)
	if err != nil || last.Revoked.Reason != ca.KeyCompromise || !last.Revoked.At.Equal(first.Revoked.At) {
		t.Errorf("%+v, %v", last.Revoked, err)
	}
}
