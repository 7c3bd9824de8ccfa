package ca_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/audit"
	"chancery/ca"
)

// crl is the newest CRL of the issuing CA as its readers see it.
func (h *house) crl(t testing.TB) (l *x509.RevocationList, entries map[string]int) {
	t.Helper()
	der, next, err := h.authority.CRL(t.Context(), "issuing")
	if err != nil {
		t.Fatal(err)
	}
	if l, err = x509.ParseRevocationList(der); err != nil {
		t.Fatal(err)
	}
	issuing := must(x509.ParseCertificate(must(h.authority.IssuerCertificate("issuing"))))
	if err := l.CheckSignatureFrom(issuing); err != nil {
		t.Fatal(err)
	}
	if !l.NextUpdate.Equal(next) {
		t.Errorf("nextUpdate %v, recorded %v", l.NextUpdate, next)
	}
	entries = map[string]int{}
	for _, e := range l.RevokedCertificateEntries {
		entries[hex.EncodeToString(e.SerialNumber.Bytes())] = e.ReasonCode
	}
	return l, entries
}

// fresh makes the CRLs that are due, in a new second.
func (h *house) fresh(t testing.TB) {
	t.Helper()
	h.pass(2 * time.Second)
	if err := h.authority.FreshCRLs(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Revocations, CRLs of one node and CRLs of another, all at once.
func TestAttack_CA_29(t *testing.T) {
	h := home(t)
	h.fresh(t)
	var certs []*ca.Certificate
	for range 12 {
		certs = append(certs, h.issue(t, h.authority, good()))
	}
	start, _ := h.crl(t)
	other := h.another(t, "issuing", h.now, h.db)

	type revoked struct {
		serial string
		by     time.Time // committed by then
	}
	var mu sync.Mutex
	var revocations []revoked
	lists := map[int64]*x509.RevocationList{}
	var wg sync.WaitGroup
	for _, c := range certs {
		wg.Go(func() {
			if err := h.authority.Revoke(context.Background(), ca.RevokeRequest{Serial: c.Serial, Reason: ca.Superseded}); err != nil {
				t.Error(err)
			}
			mu.Lock()
			revocations = append(revocations, revoked{c.Serial, h.now()})
			mu.Unlock()
			h.pass(time.Second)
		})
	}
	for range 2 {
		for _, a := range []*ca.Authority{h.authority, other} {
			wg.Go(func() {
				for range 4 {
					h.pass(time.Second)
					if err := a.FreshCRLs(context.Background()); err != nil && !errors.Is(err, audit.ErrConflict) { // the other node was faster
						t.Error(err)
					}
					l, _ := h.crl(t)
					mu.Lock()
					lists[l.Number.Int64()] = l
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	h.fresh(t)
	last, entries := h.crl(t)
	lists[last.Number.Int64()] = last
	for _, r := range revocations {
		if _, ok := entries[r.serial]; !ok {
			t.Errorf("%s is missing from the last CRL", r.serial)
		}
	}
	before := start
	for n := start.Number.Int64() + 1; n <= last.Number.Int64(); n++ {
		l := lists[n]
		if l == nil {
			continue // nobody looked at that moment, or its commit lost against the other node's
		}
		if !l.ThisUpdate.After(before.ThisUpdate) {
			t.Errorf("CRL %d is of %v, its predecessor %d of %v", n, l.ThisUpdate, before.Number, before.ThisUpdate)
		}
		has := map[string]bool{}
		for _, e := range l.RevokedCertificateEntries {
			has[hex.EncodeToString(e.SerialNumber.Bytes())] = true
		}
		for _, r := range revocations {
			if r.by.Before(l.ThisUpdate) && !has[r.serial] {
				t.Errorf("CRL %d of %v lacks %s, revoked by %v", n, l.ThisUpdate, r.serial, r.by)
			}
		}
		before = l
	}
	if len(lists) < 2 {
		t.Errorf("only %d CRLs were seen", len(lists))
	}
	h.verify(t)
}

// A revocation that commits while a CRL waits for its second is in that CRL.
func TestCRLHoldsWhatCameWhileItWaited(t *testing.T) {
	h := home(t)
	h.fresh(t)
	first, second := h.issue(t, h.authority, good()), h.issue(t, h.authority, good())
	h.revoke(t, first.Serial, ca.Superseded)
	h.fresh(t)
	l, _ := h.crl(t)
	third := h.issue(t, h.authority, good())
	h.revoke(t, third.Serial, ca.Superseded)
	// The clock of this node stands at the last CRL's second, so it waits; while it
	// asks for the time a second time, another revocation commits.
	asked := 0
	waiting := h.another(t, "issuing", func() time.Time {
		if asked++; asked <= 3 {
			return l.ThisUpdate.Add(990 * time.Millisecond)
		}
		if asked == 4 {
			h.revoke(t, second.Serial, ca.Superseded)
		}
		return l.ThisUpdate.Add(2 * time.Second)
	}, onlyIssuer{h.db, "issuing"})
	if err := waiting.FreshCRLs(t.Context()); err != nil {
		t.Fatal(err)
	}
	next, entries := h.crl(t)
	if asked < 4 || !next.ThisUpdate.After(l.ThisUpdate) {
		t.Fatalf("asked %d times, CRL of %v", asked, next.ThisUpdate)
	}
	if _, ok := entries[second.Serial]; !ok {
		t.Error("a revocation that committed before thisUpdate is not in the CRL")
	}
}

// onlyIssuer is storage that shows one issuer.
type onlyIssuer struct {
	ca.Storage
	name string
}

func (o onlyIssuer) Issuers(ctx context.Context) (out []ca.IssuerRecord, err error) {
	recs, err := o.Storage.Issuers(ctx)
	for _, r := range recs {
		if r.Name == o.name {
			r.Parent = r.Name
			out = append(out, r)
		}
	}
	return out, err
}

// An entry stays until a CRL was published whose thisUpdate lies behind the
// certificate's end; one that was intended and lost does not count (RFC 5280 §3.3).
func TestAttack_CA_29_expiry(t *testing.T) {
	h := home(t)
	c := h.issue(t, h.authority, good())
	h.revoke(t, c.Serial, ca.Superseded)
	listed := func() bool { _, entries := h.crl(t); _, ok := entries[c.Serial]; return ok }
	h.fresh(t)
	if !listed() {
		t.Fatal("not listed")
	}
	h.pass(c.NotAfter.Add(-time.Hour).Sub(h.now()))
	h.fresh(t)
	if !listed() {
		t.Fatal("vanished before its end")
	}
	h.pass(24 * time.Hour)
	mend := breakOn[ca.PutCRL](t, h, audit.ErrConflict)
	if err := h.authority.FreshCRLs(t.Context()); !errors.Is(err, audit.ErrConflict) {
		t.Fatal(err)
	}
	mend()
	h.pass(24 * time.Hour)
	h.fresh(t)
	l, _ := h.crl(t)
	if !l.ThisUpdate.After(c.NotAfter) {
		t.Fatalf("CRL of %v, end %v", l.ThisUpdate, c.NotAfter)
	}
	if !listed() {
		t.Error("the first CRL published after the end lacks the entry")
	}
	h.pass(24 * time.Hour)
	h.fresh(t)
	if listed() {
		t.Error("listed for ever")
	}
}

func TestAttack_CA_30(t *testing.T) {
	h := home(t)
	h.fresh(t)
	c := h.issue(t, h.authority, good())
	h.revoke(t, c.Serial, ca.KeyCompromise) // a CRL is due
	for what, back := range map[string]time.Duration{"a day": 24 * time.Hour, "a minute": time.Minute} {
		late := h.another(t, "issuing", func() time.Time { return h.now().Add(-back) }, h.db)
		h.untouched(t, func() {
			if err := late.FreshCRLs(t.Context()); err == nil || !strings.Contains(err.Error(), "clock") {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	// Storage itself refuses a number or a time that does not rise.
	before, _ := h.crl(t)
	issuing := h.spki(t, "issuing")
	for what, scope := range map[string]audit.CRLScope{
		"same number": {Number: before.Number.Uint64(), ThisUpdate: before.ThisUpdate.Add(time.Hour)},
		"same time":   {Number: before.Number.Uint64() + 9, ThisUpdate: before.ThisUpdate},
		"older":       {Number: before.Number.Uint64() - 1, ThisUpdate: before.ThisUpdate.Add(-time.Hour)},
	} {
		if _, err := h.ledger.Append(t.Context(), audit.Event(audit.OpConfig, nil), ca.BeginCRL{Issuer: issuing, Scope: scope}); !errors.Is(err, audit.ErrConflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := h.ledger.Write(t.Context(), ca.PutCRL{Issuer: issuing, Number: before.Number.Uint64() - 1, DER: []byte("old")}); !errors.Is(err, audit.ErrConflict) {
		t.Errorf("an older CRL over a newer one: %v", err)
	}
	h.fresh(t)
	after, entries := h.crl(t)
	if reason, ok := entries[c.Serial]; !ok || reason != int(ca.KeyCompromise) || after.Number.Cmp(before.Number) <= 0 || !after.ThisUpdate.After(before.ThisUpdate) {
		t.Errorf("CRL %v after %v, entry %v", after.Number, before.Number, entries[c.Serial])
	}
	// Nothing changed: nothing is signed.
	h.untouched(t, func() { h.fresh(t) })
}

func TestKeyCompromiseReplacesReasonOnCRL(t *testing.T) {
	h := home(t)
	c := h.issue(t, h.authority, good())
	h.revoke(t, c.Serial, ca.Unspecified)
	h.fresh(t)
	before, entries := h.crl(t)
	if r, ok := entries[c.Serial]; !ok || r != 0 {
		t.Fatalf("reason %d, %v", r, ok)
	}
	h.revoke(t, c.Serial, ca.KeyCompromise)
	h.fresh(t)
	after, entries := h.crl(t)
	if entries[c.Serial] != int(ca.KeyCompromise) {
		t.Errorf("reason %d", entries[c.Serial])
	}
	at := func(l *x509.RevocationList) (at time.Time) {
		for _, e := range l.RevokedCertificateEntries {
			if hex.EncodeToString(e.SerialNumber.Bytes()) == c.Serial {
				at = e.RevocationTime
			}
		}
		return at
	}
	if !at(before).Equal(at(after)) {
		t.Errorf("its date moved from %v to %v", at(before), at(after))
	}
}

// A certificate whose done leaf could not be written exists for nobody: the intent
// is an orphan and the serial is revoked. A certificate that was never signed is not.
func TestAttack_CA_32(t *testing.T) {
	h := home(t)
	h.fresh(t)
	from := h.ledger.Head().Size
	prepare := func() *ca.Prepared {
		p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	orphan := prepare()
	mend := breakOn[ca.PutCertificate](t, h, audit.ErrConflict)
	mine := ca.PutSetting{Name: "done-" + orphan.Serial(), Value: []byte{1}}
	if c, err := h.authority.Issue(t.Context(), orphan, ca.Projections{Done: []audit.Projection{mine}}); err == nil || c != nil {
		t.Fatalf("issued %v although its row cannot be written: %v", c, err)
	}
	mend()
	if _, err := h.db.Setting(t.Context(), mine.Name); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("the caller's row is there: %v", err)
	}
	if _, err := h.authority.Issue(t.Context(), orphan, ca.Projections{}); !errors.Is(err, ca.ErrSpent) {
		t.Errorf("issued again: %v", err)
	}
	// An intent that never reached an HSM: its serial is burned, not revoked.
	gone, cancel := context.WithCancel(t.Context())
	unsigned := prepare()
	mend = breakOn[ca.ReserveSerial](t, h, audit.ErrUnavailable)
	h.untouched(t, func() {
		if _, err := h.authority.Issue(gone, unsigned, ca.Projections{}); !errors.Is(err, audit.ErrUnavailable) {
			t.Errorf("issued although the intent cannot be written: %v", err)
		}
	})
	mend()
	cancel()
	h.untouched(t, func() {
		if _, err := h.authority.Issue(gone, prepare(), ca.Projections{}); !errors.Is(err, context.Canceled) {
			t.Errorf("a client that is gone: %v", err)
		}
	})
	h.fresh(t)
	_, entries := h.crl(t)
	if _, ok := entries[orphan.Serial()]; !ok {
		t.Error("the orphan's serial is not on the CRL")
	}
	if _, ok := entries[unsigned.Serial()]; ok {
		t.Error("a serial that nobody signed is on the CRL")
	}
	var refusal *ca.Refusal
	if _, err := h.authority.Certificate(t.Context(), orphan.Serial()); !errors.As(err, &refusal) || refusal.Code != ca.NotFound {
		t.Errorf("the orphan is a certificate: %v", err)
	}
	if n := h.leaves(t, from); n["certificate orphan"] != 1 || n["certificate intent"] != 1 || n["certificate done"] != 0 || n["certificate failed"] != 0 {
		t.Errorf("leaves %v", n)
	}
	h.verify(t)
}

// Run makes the CRL of a revocation at once, and of an orphan too.
func TestRunMakesCRLs(t *testing.T) {
	h := home(t)
	h.fresh(t)
	c := h.issue(t, h.authority, good())
	p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
	if err != nil {
		t.Fatal(err)
	}
	made := make(chan string, 16)
	watch := func(pr audit.Projection) error {
		if _, ok := pr.(ca.PutCRL); ok {
			select {
			case made <- "crl":
			default:
			}
		}
		return nil
	}
	h.db.fail.Store(&watch)
	stop := background(h.authority.Run)
	defer stop()
	await := func(serial string) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case <-made:
				h.ledger.Write(t.Context()) // behind the commit
				if _, entries := h.crl(t); func() bool { _, ok := entries[serial]; return ok }() {
					return
				}
			case <-deadline:
				t.Fatalf("no CRL with %s within 10 s", serial)
			}
		}
	}
	h.pass(2 * time.Second)
	h.revoke(t, c.Serial, ca.Superseded)
	await(c.Serial)
	lose := func(pr audit.Projection) error {
		if _, ok := pr.(ca.PutCertificate); ok {
			h.db.fail.Store(&watch)
			return audit.ErrConflict
		}
		return nil
	}
	h.pass(2 * time.Second)
	h.db.fail.Store(&lose)
	defer h.db.fail.Store(nil)
	if _, err := h.authority.Issue(t.Context(), p, ca.Projections{}); err == nil {
		t.Fatal("issued")
	}
	await(p.Serial())
}

// An issuer whose CRL the sweeper found wrong signs no certificates, not even one that was
// prepared before; it makes a new CRL and then goes on.
func TestHaltedIssuer(t *testing.T) {
	h := home(t)
	h.fresh(t)
	a := h.authority
	prepared, err := a.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
	if err != nil {
		t.Fatal(err)
	}
	spki := sha256.Sum256(must(x509.ParseCertificate(must(a.IssuerCertificate("issuing")))).RawSubjectPublicKeyInfo)
	before, _ := h.crl(t)
	a.Halt(spki, "its CRL is wrong")
	defer a.Halt(spki, "")
	h.refuses(t, "halted", func() error { return h.prepare(good()) }, ca.IssuerUnavailable)
	h.refuses(t, "prepared before", func() error { _, err := a.Issue(context.Background(), prepared, ca.Projections{}); return err }, ca.IssuerUnavailable)
	h.fresh(t)
	if after, _ := h.crl(t); after.Number.Cmp(before.Number) <= 0 {
		t.Errorf("CRL %v after %v: no new one", after.Number, before.Number)
	}
	a.Halt(spki, "")
	h.issue(t, a, good())
}
