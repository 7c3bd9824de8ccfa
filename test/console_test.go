package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
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

// consoleOf is where the console of a site is entered.
func consoleOf(s *site) string { return "http://localhost" + port(s.http) + "/console/" }

// enrol has somebody make passkeys with a link in a browser, and returns the proposal that
// puts them on the roster.
func (b *browser) enrol(link string) (proposal string) {
	b.t.Helper()
	b.do(chromedp.Navigate(link), chromedp.WaitVisible("#invitation"), chromedp.WaitEnabled("#make"), chromedp.Click("#make"), chromedp.WaitVisible(`#passkeys[data-count="1"]`))
	b.authenticator(webauthn.AuthenticatorTransportUsb) // a second one, as an authenticator has one passkey for each account
	b.do(chromedp.WaitEnabled("#make"), chromedp.Click("#make"), chromedp.WaitVisible(`#passkeys[data-count="2"]`), chromedp.Click("#finish"), chromedp.WaitVisible("#proposal-id"))
	return b.text("#proposal-id")
}

func (b *browser) signIn(base string) {
	b.t.Helper()
	b.do(chromedp.Navigate(base+"sign-in"), chromedp.WaitEnabled("#sign-in"), chromedp.Click("#sign-in"), chromedp.WaitVisible("#sign-out"))
}

// admitted enrols somebody and has the two officers of dev approve.
func (b *browser) admitted(line commandLine, link string) {
	b.t.Helper()
	id := b.enrol(link)
	for _, name := range []string{"officer-1", "officer-2"} {
		line.run(0, append([]string{"approve", "sign", id}, line.officer(name)...)...)
	}
	eventually(b.t, func() bool { return strings.Contains(line.run(0, "approve", "show", id), ", done") })
}

// linkIn is the enrolment link in what a command printed.
func linkIn(t testing.TB, out string) string {
	t.Helper()
	link := regexp.MustCompile(`http\S+/console/enrol#[0-9a-f]{64}`).FindString(out)
	if link == "" {
		t.Fatalf("no link in\n%s", out)
	}
	return link
}

// TestConsole enrols with the link that dev prints, signs in to the real console in
// Chromium, finds a certificate, revokes it there, and looks for it on the CRL. An error in
// the browser's console fails it.
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
	base := consoleOf(s)
	b := newBrowser(t)
	b.authenticator(webauthn.AuthenticatorTransportInternal)
	b.admitted(commandLine{t, s}, linkIn(t, s.banner))
	b.signIn(base)
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
	b.clean()
}

// TestQuorumInBrowsers: a key is born by two of three officers. One asks in a browser and
// cannot approve; another approves in a second browser; the third votes at the command
// line. What they signed verifies offline. Who left the roster is signed out, and what they
// voted for is dead.
func TestQuorumInBrowsers(t *testing.T) {
	s := newSite(t)
	s.start()
	line := commandLine{t, s}
	base := consoleOf(s)
	alice, bob := newBrowser(t), newBrowser(t)
	for name, b := range map[string]*browser{"alice": alice, "bob": bob} {
		b.authenticator(webauthn.AuthenticatorTransportInternal)
		b.admitted(line, linkIn(t, line.run(0, "officer", "invite", name, "--role", "crypto-officer")))
		b.signIn(base)
	}
	// officer-2 leaves: three are left, of whom two must approve.
	id, _, _ := strings.Cut(line.run(5, "officer", "remove", "officer-2"), " ")
	for _, name := range []string{"officer-1", "officer-2"} {
		line.run(0, append([]string{"approve", "sign", id}, line.officer(name)...)...)
	}
	eventually(t, func() bool { return strings.Contains(line.run(0, "approve", "show", id), ", done") })

	alice.do(chromedp.Navigate(base+"keys/new"), chromedp.WaitVisible("#name"), chromedp.SendKeys("#name", "contracts"), chromedp.Click("#draft"),
		chromedp.WaitEnabled("#ask"), chromedp.Click("#ask"), chromedp.WaitVisible("#vote-rows"))
	alice.do(chromedp.WaitVisible("#own")) // who asks has no vote
	var list struct{ Approvals []struct{ ID string } }
	if err := json.Unmarshal([]byte(line.run(0, "approve", "list", "--json")), &list); err != nil || len(list.Approvals) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	id = list.Approvals[0].ID
	shown := line.run(0, "approve", "show", id)
	bob.do(chromedp.Navigate(base+"approvals/"+id), chromedp.WaitEnabled("#approve"))
	if print := strings.Join(strings.Fields(bob.text("#fingerprint")), " "); !strings.Contains(shown, "fingerprint "+print) || len(print) != 71 {
		t.Errorf("the browser shows %q, the command line\n%s", print, shown)
	}
	bob.do(chromedp.Click("#approve"), chromedp.WaitVisible(`#vote-rows[data-votes="1"]`))
	line.run(0, append([]string{"approve", "sign", id}, line.officer("officer-1")...)...)
	eventually(t, func() bool { return strings.Contains(line.run(0, "approve", "show", id), ", done") })
	if out := line.run(0, "key", "list"); !strings.Contains(out, "contracts") {
		t.Errorf("%s", out)
	}
	if rep := s.auditVerify(); rep.Grants != 4 {
		t.Errorf("%d grants", rep.Grants)
	}

	// bob approves one more, then leaves: his session ends, and his vote is dead.
	waits, _, _ := strings.Cut(line.run(5, "key", "generate", "waits"), " ")
	bob.do(chromedp.Navigate(base+"approvals/"+waits), chromedp.WaitEnabled("#approve"), chromedp.Click("#approve"), chromedp.WaitVisible(`#vote-rows[data-votes="1"]`))
	leave, _, _ := strings.Cut(line.run(5, "officer", "remove", "bob"), " ")
	alice.do(chromedp.Navigate(base+"approvals/"+leave), chromedp.WaitEnabled("#approve"), chromedp.Click("#approve"), chromedp.WaitVisible(`#vote-rows[data-votes="1"]`))
	line.run(0, append([]string{"approve", "sign", leave}, line.officer("officer-1")...)...)
	eventually(t, func() bool { return strings.Contains(line.run(0, "approve", "show", leave), ", done") })
	eventually(t, func() bool { return strings.Contains(line.run(0, "approve", "show", waits), ", cancelled") })
	bob.do(chromedp.Navigate(base+"approvals"), chromedp.WaitVisible("#sign-in"))
	bob.do(chromedp.WaitEnabled("#sign-in"), chromedp.Click("#sign-in"), chromedp.WaitVisible("#problem"))
	alice.do(chromedp.Navigate(base+"officers"), chromedp.WaitVisible("#sign-out"))
	s.auditVerify()
	alice.clean()
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

// authenticator gives the browser a passkey authenticator that verifies its user. Of two with
// the same transport, the browser asks both at once, and the one that has a passkey already
// may answer first.
func (b *browser) authenticator(transport webauthn.AuthenticatorTransport) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, webauthn.Enable, webauthn.EnableParams{}); err != nil {
		b.t.Fatal(err)
	}
	if _, err := chromedp.Call(b.ctx, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
		Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: transport, HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true}}); err != nil {
		b.t.Fatal(err)
	}
}

// clean wants that nothing went wrong in the browser.
func (b *browser) clean() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, bad := range b.bad {
		b.t.Errorf("browser: %s", bad)
	}
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
