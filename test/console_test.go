package test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
)

// TestConsole makes passkeys with an enrolment link, signs in to the real
// console in Chromium, finds a certificate, revokes
// it there, and looks for it on the CRL. An error in the browser's console fails it.
func TestConsole(t *testing.T) {
	s := newSite(t)
	s.start()
	for i := range 3 {
		if _, err := s.issue(s.client(), s.token(), fmt.Sprintf("other%d.example.lab", i)); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := s.issue(s.client(), s.token(), "teapot.example.lab")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(s.http)
	base := "http://localhost:" + port + "/console/"

	b := newBrowser(t)
	b.signIn(t, s, base)
	b.do(chromedp.Navigate(base+"certificates?q=teapot"), chromedp.WaitVisible("#results [data-rows=\"1\"]"), chromedp.Click("#results tbody a"), chromedp.WaitVisible("#revoke"))
	b.do(chromedp.Click("#revoke"), chromedp.WaitVisible("#serial"))
	if serial := b.text("#serial"); serial != cert.Serial {
		t.Errorf("the page asks about %s, not about %s", serial, cert.Serial)
	}
	b.do(chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		_, err := chromedp.Evaluate[any]("document.getElementById('why').value = 'cessationOfOperation'")(ctx, tg)
		return err
	}), chromedp.Click("#do-revoke"), chromedp.WaitVisible("#reason"))
	s.awaitRevoked(cert.Serial)
	for _, page := range []string{"", "hsm", "keys", "ledger", "approvals", "officers", "machines"} {
		b.do(chromedp.Navigate(base+page), chromedp.WaitVisible("#sign-out"))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, bad := range b.bad {
		t.Errorf("browser: %s", bad)
	}
}

// signIn invites somebody with all roles but the auditor's, makes two passkeys with the link,
// has the officers put them on the roster, and signs in. It returns the link.
func (b *browser) signIn(t *testing.T, s *site, base string) (link string) {
	t.Helper()
	var made struct{ Link string }
	invitation := map[string]any{"name": "ada", "roles": []string{"administrator", "crypto-officer", "registration-officer", "signer"}}
	if status, err := s.api(s.client(), s.token(), "POST", "/api/v1/enrolments", invitation, &made); err != nil || status != 201 {
		t.Fatalf("inviting: %d %v", status, err)
	}
	link = made.Link
	if _, err := chromedp.Call(b.ctx, webauthn.Enable, webauthn.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	for i, transport := range []webauthn.AuthenticatorTransport{webauthn.AuthenticatorTransportInternal, webauthn.AuthenticatorTransportUsb} {
		_, err := chromedp.Call(b.ctx, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
			Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: transport, HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true}})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			b.do(chromedp.Navigate(link), chromedp.WaitVisible("#invitation"))
		}
		b.do(chromedp.WaitEnabled("#make"), chromedp.Click("#make"), chromedp.WaitVisible(fmt.Sprintf(`#passkeys[data-count="%d"]`, i+1)))
	}
	b.do(chromedp.Click("#finish"), chromedp.WaitVisible("#proposal-id"))
	id := b.text("#proposal-id")
	line := commandLine{t, s}
	for _, name := range []string{"officer-1", "officer-2"} {
		line.run(0, "approve", "sign", id, "--officer", name, "--key", filepath.Join(s.dir, "officers", name+".pem"))
	}
	eventually(t, func() bool { return strings.Contains(line.run(0, "approve", "show", id), ", done") })
	b.do(chromedp.Navigate(base), chromedp.WaitEnabled("#sign-in"), chromedp.Click("#sign-in"), chromedp.WaitVisible("#sign-out"))
	return link
}

// browser is one tab of a real Chromium that remembers what went wrong in it.
type browser struct {
	t   testing.TB
	ctx context.Context
	mu  sync.Mutex
	bad []string
}

func newBrowser(t testing.TB) *browser {
	t.Helper()
	path := os.Getenv("CHROMIUM")
	if path == "" {
		var err error
		if path, err = exec.LookPath("chromium"); err != nil {
			t.Fatal("Chromium is not installed: make deps-test installs it")
		}
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("no-first-run", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true))
	alloc, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(stop)
	ctx, stop := chromedp.NewContext(alloc)
	t.Cleanup(stop)
	b := &browser{t: t, ctx: ctx}
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	err := chromedp.Listen(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := ev.(type) {
		case *cdplog.EventEntryAdded:
			if e.Entry.Level == "error" || e.Entry.Level == "warning" {
				b.bad = append(b.bad, fmt.Sprint(e.Entry.Source, " ", e.Entry.Text, " ", e.Entry.URL))
			}
		case *runtime.EventExceptionThrown:
			b.bad = append(b.bad, "exception: "+e.ExceptionDetails.Text)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, cdplog.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, runtime.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *browser) do(a ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, stop := context.WithTimeout(b.ctx, 30*time.Second)
	defer stop()
	if err := chromedp.Do(ctx, a...); err != nil {
		b.t.Fatalf("browser: %v", err)
	}
}

func (b *browser) text(selector string) string {
	b.t.Helper()
	ctx, stop := context.WithTimeout(b.ctx, 30*time.Second)
	defer stop()
	s, err := chromedp.Run(ctx, chromedp.Text(selector))
	if err != nil {
		b.t.Fatalf("browser: %v", err)
	}
	return s
}
