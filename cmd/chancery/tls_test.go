package main

import (
	"context"
	"crypto/x509"
	"os"
	"testing"
	"time"

	"chancery/hsmstore"
)

func TestMain(m *testing.M) {
	hsmstore.RunIfWorker() // the store runs this binary again as its workers
	os.Exit(m.Run())
}

// The server's own certificate is renewed when two thirds of its time are over, by
// the issuing CA, for the same key, and is served from then on.
func TestOwnCertificateRenewsItself(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	log, err := newLog("error")
	if err != nil {
		t.Fatal(err)
	}
	d := &dev{dir: t.TempDir(), https: "127.0.0.1:8443", http: "127.0.0.1:8080"} // nothing listens in this test
	if err := d.writeConfig(); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(d.path("chancery.yaml"), "")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{cfg: cfg, dev: true, log: log}
	defer s.close()
	if err := d.start(ctx, s); err != nil {
		t.Fatal(err)
	}
	own, err := s.ownCertificate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := own.cur.Load()
	aged, leaf := *first, *first.Leaf
	leaf.NotBefore, leaf.NotAfter = time.Now().Add(-61*24*time.Hour), time.Now().Add(29*24*time.Hour)
	aged.Leaf = &leaf
	own.cur.Store(&aged)

	ended := make(chan error, 1)
	go func() { ended <- own.run(ctx, s) }()
	for end := time.Now().Add(20 * time.Second); own.cur.Load() == &aged; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not renewed in 20 s")
		}
	}
	got, err := own.get(nil)
	if err != nil || got.Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 || !own.key.PublicKey.Equal(got.Leaf.PublicKey) {
		t.Errorf("renewed: %v, serial %x; it should be another one for the same key", err, got.Leaf.SerialNumber)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pemCertificates(s.authority.Roots()...))
	between := x509.NewCertPool()
	for _, der := range got.Certificate[1:] {
		between.AppendCertsFromPEM(pemCertificates(der))
	}
	if _, err := got.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "localhost"}); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// The next start takes it from its file.
	if again, err := s.ownCertificate(context.Background()); err != nil || again.cur.Load().Leaf.SerialNumber.Cmp(got.Leaf.SerialNumber) != 0 {
		t.Errorf("loaded again: %v", err)
	}
}
