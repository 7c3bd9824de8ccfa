package console_test

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"chancery/ca"
	"chancery/web/console"
)

// axe is axe-core (MPL-2.0), see VENDOR; only tests use it.
//
//go:embed testdata/axe.min.js
var axe string

// tab is one browser context with its own cookies that collects everything that a
// console of a developer would show in red.
type tab struct {
	ctx context.Context
	mu  sync.Mutex
	bad []string
}

// chromium starts one real browser; without one the test is skipped, but not in CI.
func chromium(t *testing.T) context.Context {
	t.Helper()
	path := os.Getenv("CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path == "" {
			path, _ = exec.LookPath(name)
		}
	}
	if path == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("CI needs Chromium: apt install chromium fonts-noto-cjk")
		}
		t.Skip("no Chromium found: apt install chromium fonts-noto-cjk, or set CHROMIUM")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("no-first-run", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true))
	alloc, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(stop)
	root, stop := chromedp.NewContext(alloc)
	t.Cleanup(stop)
	if err := chromedp.Do(root, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	return root
}

func newTab(t *testing.T, browser context.Context, lang string) *tab {
	t.Helper()
	ctx, stop := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(stop)
	tb := &tab{ctx: ctx}
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil { // the tab lives as long as the context of its first act
		t.Fatal(err)
	}
	red := func(format string, args ...any) {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		tb.bad = append(tb.bad, fmt.Sprintf(format, args...))
	}
	err := chromedp.Listen(ctx, func(ev any) {
		switch e := ev.(type) {
		case *cdplog.EventEntryAdded: // violations of the content security policy, too
			if e.Entry.Level == "error" || e.Entry.Level == "warning" {
				red("%s %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL)
			}
		case *runtime.EventExceptionThrown:
			red("exception: %s %v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception)
		case *runtime.EventConsoleAPICalled:
			if e.Type == "error" || e.Type == "warning" {
				for _, a := range e.Args {
					red("console: %s %s", a.Value, a.Description)
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	call(t, ctx, cdplog.Enable, cdp.Empty{})
	call(t, ctx, runtime.Enable, cdp.Empty{})
	call(t, ctx, network.Enable, network.EnableParams{})
	call(t, ctx, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: network.Headers{"Accept-Language": lang}})
	return tb
}

func call[P, R any](t *testing.T, ctx context.Context, c cdp.Command[P, R], p P) {
	t.Helper()
	ctx, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	if _, err := chromedp.Call(ctx, c, p); err != nil {
		t.Fatal(err)
	}
}

func (tb *tab) do(t *testing.T, a ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, stop := context.WithTimeout(tb.ctx, 20*time.Second)
	defer stop()
	if err := chromedp.Do(ctx, a...); err != nil {
		after, stop := context.WithTimeout(tb.ctx, 3*time.Second)
		defer stop()
		page, _ := chromedp.Run(after, chromedp.OuterHTML("main"))
		t.Fatalf("%v\nred: %v\npage: %.3000s", err, tb.bad, page)
	}
}

func get[T any](t *testing.T, tb *tab, a chromedp.Action[T]) T {
	t.Helper()
	ctx, stop := context.WithTimeout(tb.ctx, 20*time.Second)
	defer stop()
	v, err := chromedp.Run(ctx, a)
	if err != nil {
		t.Fatalf("%v\nred: %v", err, tb.bad)
	}
	return v
}

func (tb *tab) clean(t *testing.T) {
	t.Helper()
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if len(tb.bad) > 0 {
		t.Errorf("the browser complains:\n%s", strings.Join(tb.bad, "\n"))
	}
}

func until(js string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		_, err := chromedp.Poll[bool](js)(ctx, tg)
		return err
	})
}

func look(scheme string, width, height int64) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		if _, err := chromedp.EmulateViewport(width, height)(ctx, tg); err != nil {
			return err
		}
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		return err
	})
}

// loaded waits until a page's script has run.
const loaded = `document.documentElement.dataset.ready === ''`

func (tb *tab) open(t *testing.T, url string) {
	t.Helper()
	tb.do(t, chromedp.Navigate(url), chromedp.WaitVisible("#main"), until(loaded))
}

func (tb *tab) signIn(t *testing.T, base string) {
	t.Helper()
	tb.do(t, chromedp.Navigate(base+"/test/session?as=ada"), chromedp.WaitVisible("#sign-out"), until(loaded))
}

// withSessions adds a door for tests to a console: it makes a session without a passkey.
func (f *fixture) withSessions(t *testing.T) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", f.handler)
	mux.HandleFunc("/test/session", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: console.CookieName, Value: f.session(t, f.cfg.Board, f.cfg.Sessions, r.URL.Query().Get("as")), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
		http.Redirect(w, r, "/console/"+r.URL.Query().Get("to"), http.StatusSeeOther)
	})
	return mux
}

// serveFilled serves a filled console as http://localhost, where browsers keep
// __Host- cookies without TLS.
func serveFilled(t *testing.T) (*fixture, string) {
	f := busy(t, func(f *fixture, c *console.Config) { f.now = time.Now().UTC(); c.Dev = true; c.Now = time.Now })
	srv := httptest.NewServer(f.withSessions(t))
	t.Cleanup(srv.Close)
	return f, strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
}

func TestBrowser(t *testing.T) {
	browser := chromium(t)
	f, base := serveFilled(t)

	t.Run("find and revoke", func(t *testing.T) {
		tb := newTab(t, browser, "en")
		c := f.ca.certs[len(f.ca.certs)-1] // tea.corp.example
		tb.signIn(t, base)
		tb.open(t, base+"/console/certificates")
		tb.do(t, until(`document.querySelectorAll('#results tbody tr').length === 50`), eval(`document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '/', bubbles: true}))`), until(`document.activeElement.id === 'q'`), chromedp.SendKeys("#q", "tea.co"),
			until(`document.querySelector('#results table')?.dataset.rows === '1' && location.search === '?q=tea.co'`),
			chromedp.Click(`#results tbody a`), chromedp.WaitVisible("#revoke"), until(loaded))
		if state := get(t, tb, chromedp.Text("#state")); !strings.Contains(state, "Valid") {
			t.Errorf("state %q", state)
		}
		tb.do(t, chromedp.Click("#revoke"), chromedp.WaitVisible("#serial"))
		if serial := get(t, tb, chromedp.Text("#serial")); serial != c.Serial {
			t.Errorf("the confirm page shows %q", serial)
		}
		tb.do(t, eval(`document.getElementById('why').value = 'keyCompromise'`), chromedp.Click("#do-revoke"), chromedp.WaitVisible("#reason"), until(loaded))
		if state := get(t, tb, chromedp.Text("#state")); !strings.Contains(state, "Revoked") {
			t.Errorf("state %q", state)
		}
		if got := f.ca.revocations(); len(got) != 1 || got[0].Serial != c.Serial || got[0].Reason != ca.KeyCompromise {
			t.Errorf("asked for %+v", got)
		}
		tb.clean(t)
	})

	t.Run("live parts", func(t *testing.T) {
		tb := newTab(t, browser, "en")
		tb.signIn(t, base)
		tb.do(t, eval(`document.getElementById('signatures').textContent = 'old'`), until(`document.getElementById('signatures').textContent !== 'old'`))
		// A session that ended elsewhere sends the open page to the sign-in.
		tb.do(t, eval(`fetch('/console/sign-out', {method: 'POST', body: new URLSearchParams(new FormData(document.getElementById('sign-out').form))}) && 0`), chromedp.WaitVisible("#sign-in"))
		tb.clean(t)
	})

	t.Run("Japanese without script", func(t *testing.T) {
		tb := newTab(t, browser, "ja,en;q=0.5")
		call(t, tb.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		tb.do(t, chromedp.Navigate(base+"/console/sign-in"), chromedp.WaitVisible("noscript p"), chromedp.Navigate(base+"/test/session?as=ada"), chromedp.WaitVisible("#sign-out"))
		if h1 := get(t, tb, chromedp.Text("h1")); h1 != "概要" {
			t.Errorf("heading %q", h1)
		}
		tb.do(t, chromedp.Navigate(base+"/console/certificates"), chromedp.SendKeys("#q", "registry"), chromedp.Click(".search button"), chromedp.WaitVisible(`#results [data-rows="11"], #results [data-rows="12"]`),
			chromedp.Click(`.lang [value=en]`), chromedp.WaitVisible(`html[lang=en]`), chromedp.Click("#sign-out"), chromedp.WaitVisible("#sign-in"))
		tb.clean(t)
	})

	t.Run("axe", func(t *testing.T) {
		tb := newTab(t, browser, "en")
		paths := slices.DeleteFunc(f.paths(), func(p string) bool { return strings.HasSuffix(p, "live") })
		check := func(path string) {
			for _, scheme := range []string{"light", "dark"} {
				tb.do(t, look(scheme, 1280, 900))
				tb.axe(t, scheme, base+path)
			}
		}
		check("/console/sign-in")
		check("/console/enrol")
		tb.signIn(t, base)
		for _, p := range paths {
			check(p)
		}
		tb.clean(t)
	})
}

// axe opens a page and has axe-core look at it.
func (tb *tab) axe(t *testing.T, scheme, page string) {
	t.Helper()
	tb.open(t, page)
	tb.do(t, eval(axe+";0"))
	out := get(t, tb, chromedp.Evaluate[string](`axe.run().then(r => JSON.stringify(r.violations.map(v => [v.id, v.impact, v.nodes.length, v.nodes[0].html.slice(0, 200), v.nodes[0].failureSummary])))`, chromedp.EvalAwaitPromise))
	var violations [][]any
	if err := json.Unmarshal([]byte(out), &violations); err != nil {
		t.Fatal(err)
	}
	for _, v := range violations {
		t.Errorf("%s %s: %v", scheme, page, v)
	}
}

// TestScreenshots writes pictures of all pages to the folder CONSOLE_SHOTS, for eyes.
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("CONSOLE_SHOTS")
	if dir == "" {
		t.Skip("CONSOLE_SHOTS names no folder")
	}
	browser := chromium(t)
	f, base := serveFilled(t)
	c, revoked := f.ca.certs[64].Serial, f.ca.certs[72].Serial
	for _, lang := range []string{"en", "ja"} {
		for _, scheme := range []string{"light", "dark"} {
			for _, width := range []int64{1280, 390} {
				tb := newTab(t, browser, lang)
				tb.do(t, look(scheme, width, 860))
				tb.open(t, base+"/console/sign-in")
				shot := func(name string) {
					tb.do(t, chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
						b, err := chromedp.CaptureScreenshot()(ctx, tg)
						if err != nil {
							return err
						}
						return os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%s-%s-%d.png", name, lang, scheme, width)), b, 0o644)
					}))
					if wide := get(t, tb, chromedp.Evaluate[bool](`document.documentElement.scrollWidth > innerWidth`)); wide {
						t.Errorf("%s %s %d is wider than its window", name, lang, width)
					}
				}
				shot("signin")
				tb.signIn(t, base)
				for name, path := range map[string]string{"dashboard": "/console/", "hsm": "/console/hsm", "keys": "/console/keys", "certificates": "/console/certificates", "certificate": "/console/certificates/" + c, "revoked": "/console/certificates/" + revoked,
					"revoke": "/console/certificates/" + c + "/revoke", "approvals": "/console/approvals?tab=history", "proposal": "/console/approvals/" + f.board.proposals[0].ID, "officers": "/console/officers", "invite": "/console/officers/invite", "machines": "/console/machines", "newkey": "/console/keys/new", "stepup": "/console/step-up", "ledger": "/console/ledger", "entry": "/console/ledger/11", "error": "/console/nothing"} {
					tb.open(t, base+path)
					shot(name)
				}
			}
		}
	}
}

func eval(js string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		_, err := chromedp.Evaluate[any](js)(ctx, tg)
		return err
	})
}
