package console_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"

	"chancery/admin"
	"chancery/web/console"
)

// authenticator gives the browser of a tab a virtual authenticator, and returns its id.
func (tb *tab) authenticator(t *testing.T, transport webauthn.AuthenticatorTransport) webauthn.AuthenticatorID {
	t.Helper()
	call(t, tb.ctx, webauthn.Enable, webauthn.EnableParams{})
	got, err := chromedp.Call(tb.ctx, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
		Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: transport, HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true}})
	if err != nil {
		t.Fatal(err)
	}
	return got.AuthenticatorID
}

// enrol makes two passkeys with a link, finishes, and returns the proposal's id.
func (tb *tab) enrol(t *testing.T, link string) string {
	t.Helper()
	tb.authenticator(t, webauthn.AuthenticatorTransportInternal)
	tb.do(t, chromedp.Navigate(link), chromedp.WaitVisible("#invitation"), until(loaded), chromedp.SendKeys("#label", "phone"), chromedp.WaitEnabled("#make"), chromedp.Click("#make"), chromedp.WaitVisible(`#passkeys[data-count="1"]`), until(loaded))
	tb.authenticator(t, webauthn.AuthenticatorTransportUsb)
	tb.do(t, chromedp.SendKeys("#label", "security key"), chromedp.WaitEnabled("#make"), chromedp.Click("#make"), chromedp.WaitVisible(`#passkeys[data-count="2"]`), until(loaded), chromedp.Click("#finish"), chromedp.WaitVisible("#proposal-id"))
	return get(t, tb, chromedp.Text("#proposal-id"))
}

// enter signs in with the passkey of the tab.
func (tb *tab) enter(t *testing.T, base string) {
	t.Helper()
	tb.open(t, base+"/console/")
	tb.do(t, chromedp.WaitEnabled("#sign-in"), chromedp.Click("#sign-in"), chromedp.WaitVisible("#sign-out"), until(loaded))
}

// Somebody makes two passkeys by a link, the officers put them on the roster, and from then
// on that person signs in, steps up and signs out.
func TestBrowserEnrolment(t *testing.T) {
	browser := chromium(t)
	h := newHouse(t)
	tb := newTab(t, browser, "en")
	tb.open(t, h.base+"/console/")
	if !get(t, tb, chromedp.Evaluate[bool](`!!document.getElementById('nobody')`)) {
		t.Error("the sign-in page does not say that nobody can sign in")
	}
	id := tb.enrol(t, h.invite("ada", everything(admin.Auditor)...))
	page := get(t, tb, chromedp.Text("main"))
	if !strings.Contains(page, "chancery approve sign "+id+" --officer officer-1 --key officer-1.pem") {
		t.Errorf("the page does not say how to approve:\n%s", page)
	}
	a := must(h.board.Show(t.Context(), id))
	if got := get(t, tb, chromedp.Text("#proposal-fingerprint")); got != admin.Fingerprint(a.Proposal) {
		t.Errorf("fingerprint %s", got)
	}
	// Before the officers have decided, the passkey is nobody's.
	tb.open(t, h.base+"/console/")
	tb.do(t, chromedp.WaitEnabled("#sign-in"), chromedp.Click("#sign-in"), chromedp.WaitVisible("#problem"))
	tb.bad = slices.DeleteFunc(tb.bad, func(s string) bool { return strings.Contains(s, "401") }) // the browser reports the status
	h.approve(id)
	tb.enter(t, h.base)
	if who := get(t, tb, chromedp.Text("#who")); who != "ada" {
		t.Errorf("signed in as %q", who)
	}
	tb.do(t, chromedp.Click("#sign-out"), chromedp.WaitVisible("#sign-in"))
	tb.open(t, h.base+"/console/officers")
	tb.do(t, chromedp.WaitEnabled("#sign-in"), chromedp.Click("#sign-in"), chromedp.WaitVisible("#roster"))
	if at := get(t, tb, chromedp.Location()); at != h.base+"/console/officers" {
		t.Errorf("sign-in leads to %s", at)
	}
	if n := get(t, tb, chromedp.Evaluate[int](`document.querySelectorAll('.few').length`)); n != 2 {
		t.Errorf("%d officers are told to make passkeys", n)
	}
	tb.clean(t)
}

// officersEnrolled is a house with people at the console, each in a browser of their own.
func officersEnrolled(t *testing.T, browser func() *tab, names ...string) (*house, map[string]*tab) {
	t.Helper()
	h, tabs := newHouse(t), map[string]*tab{}
	for _, name := range names {
		tb := browser()
		h.approve(tb.enrol(t, h.invite(name, everything(admin.Auditor)...)))
		tb.enter(t, h.base)
		tabs[name] = tb
	}
	return h, tabs
}

// sign presses a button that asks for the passkey, and waits for what follows.
func (tb *tab) sign(t *testing.T, button, then string) {
	t.Helper()
	tb.do(t, chromedp.WaitEnabled(button), chromedp.Click(button), chromedp.WaitVisible(then))
}

// WEB-18: one officer asks for a key and cannot decide it; a page that shows anything else
// than the bytes is not signed; two others approve, each in their own browser; and who is
// removed from the roster is signed out, with their pending votes dead.
func TestAttack_WEB_18_Browser(t *testing.T) {
	browser := chromium(t)
	h, tabs := officersEnrolled(t, func() *tab { return newTab(t, browser, "en") }, "ada", "bob", "cyd")
	ada, bob, cyd := tabs["ada"], tabs["bob"], tabs["cyd"]

	ask := func(tb *tab, key string) string {
		t.Helper()
		tb.open(t, h.base+"/console/keys/new")
		tb.do(t, chromedp.SendKeys("#name", key), chromedp.Click("#draft"), chromedp.WaitVisible("#ask"), until(loaded))
		tb.sign(t, "#ask", "#vote-rows")
		at := get(t, tb, chromedp.Location())
		return at[strings.LastIndex(at, "/")+1:]
	}
	id := ask(ada, "release")
	a := must(h.board.Show(t.Context(), id))
	if a.Asked.Requester != "officer:ada" || a.Asked.Action != admin.GenerateKey || len(a.Signature) == 0 {
		t.Fatalf("asked %+v", a.Asked)
	}
	if get(t, ada, chromedp.Evaluate[bool](`!!document.getElementById('approve') || !document.getElementById('own')`)) {
		t.Error("who asked may press approve")
	}

	// Another value, whichever it is, is refused with a message, and nothing is sent.
	page := h.base + "/console/approvals/" + id
	for what, script := range map[string]string{
		"action":          `document.querySelector('[data-proposal=action]').textContent = 'destroy-key'`,
		"act":             `document.querySelector('[data-proposal=act]').textContent += ' '`,
		"acts":            `document.querySelector('[data-proposal=act]').parentElement.remove()`,
		"requester":       `document.querySelector('[data-proposal=requester]').textContent = 'officer:bob'`,
		"expires":         `document.querySelector('[data-proposal=expires] time').textContent = '2031-01-01 00:00:00 UTC'`,
		"parameters":      `document.querySelector('[data-proposal=parameters]').textContent = '{}'`,
		"json":            `document.querySelector('[data-proposal=parameters]').dataset.hex = '7b7d'`,
		"both":            `{ const p = document.querySelector('[data-proposal=parameters]'); p.textContent = '{}'; p.dataset.hex = '7b7d'; }`,
		"fingerprint":     `document.querySelector('[data-proposal=fingerprint]').textContent = '00000000 '.repeat(8).trim()`,
		"bytes":           `{ const b = document.querySelector('[data-proposal=bytes]'); b.textContent = b.textContent.replace(/.$/, c => c === '0' ? '1' : '0'); }`,
		"a parameter":     `document.querySelector('[data-proposal=parameter]').textContent += 'x'`,
		"parameters less": `document.querySelector('[data-proposal=parameter]').remove()`,
		"no parameters":   `for (const p of document.querySelectorAll('[data-proposal=parameter]')) p.remove()`,
		"short bytes":     `{ const b = document.querySelector('[data-proposal=bytes]'); b.textContent = b.textContent.slice(0, -2); }`,
		"long bytes":      `document.querySelector('[data-proposal=bytes]').textContent += '00'`,
	} {
		bob.open(t, page)
		bob.do(t, eval(script+";0"), chromedp.WaitEnabled("#approve"), chromedp.Click("#approve"), until(`document.getElementById('approve-form').dataset.state === 'differs' && document.querySelector('#approve-form .status').textContent.startsWith('Stopped')`))
		if a := must(h.board.Show(t.Context(), id)); len(a.Votes) != 0 {
			t.Fatalf("%s: a changed page was signed", what)
		}
	}
	bob.open(t, page)
	bob.sign(t, "#approve", `#vote-rows[data-votes="1"]`)
	if get(t, bob, chromedp.Evaluate[bool](`!!document.getElementById('approve') || !document.getElementById('voted')`)) {
		t.Error("who voted may vote again")
	}
	cyd.open(t, h.base+"/console/approvals")
	cyd.do(t, chromedp.WaitVisible(`#proposals[data-rows="1"]`), chromedp.Click("#proposals tbody a"), chromedp.WaitVisible("#vote-rows"), until(loaded))
	cyd.sign(t, "#approve", `#vote-rows[data-votes="2"]`)
	if a := h.settled(id, admin.Done); len(a.Votes) != 2 {
		t.Errorf("%d votes", len(a.Votes))
	}

	// ada asks for another key, bob approves; then the officers remove bob.
	pending := ask(ada, "nightly")
	bob.open(t, h.base+"/console/approvals/"+pending)
	bob.sign(t, "#approve", `#vote-rows[data-votes="1"]`)
	ada.open(t, h.base+"/console/officers")
	ada.do(t, chromedp.Click(`form:has(input[value=bob]) button.danger`), chromedp.WaitVisible("#changes"), until(loaded))
	ada.sign(t, "#ask", "#vote-rows")
	at := get(t, ada, chromedp.Location())
	h.approve(at[strings.LastIndex(at, "/")+1:])
	bob.do(t, chromedp.Navigate(h.base+"/console/approvals"), chromedp.WaitVisible("#sign-in"), until(loaded), chromedp.WaitEnabled("#sign-in"), chromedp.Click("#sign-in"), chromedp.WaitVisible("#problem"))
	bob.bad = slices.DeleteFunc(bob.bad, func(s string) bool { return strings.Contains(s, "401") })
	if a := must(h.board.Show(t.Context(), pending)); a.State != admin.Cancelled {
		t.Errorf("the request with bob's vote is %s", a.State)
	}
	for _, tb := range tabs {
		tb.clean(t)
	}
}

// A dangerous act leads through the passkey when the last one is too long ago, and back;
// the session has another id then.
func TestBrowserStepUp(t *testing.T) {
	browser := chromium(t)
	h, tabs := officersEnrolled(t, func() *tab { return newTab(t, browser, "en") }, "ada")
	ada := tabs["ada"]
	path := "/console/certificates/" + h.ca.certs[3].Serial + "/revoke"
	ada.open(t, h.base+path)
	if at := get(t, ada, chromedp.Location()); at != h.base+path {
		t.Errorf("right after the sign-in, revoking leads to %s", at)
	}
	h.exec("UPDATE console_session SET stepped = stepped - 121000000")
	ada.open(t, h.base+path)
	ada.do(t, chromedp.WaitVisible("#step-up"))
	before := ada.session(t, h.base)
	ada.sign(t, "#step-up", "#do-revoke")
	if after := ada.session(t, h.base); after == before || after == "" {
		t.Error("the session has the same id after the step-up")
	}
	if at := get(t, ada, chromedp.Location()); at != h.base+path {
		t.Errorf("the step-up leads to %s", at)
	}
	ada.do(t, until(loaded), eval(`document.getElementById('why').value = 'superseded'`), chromedp.Click("#do-revoke"), chromedp.WaitVisible("#reason"))
	if got := h.ca.revocations(); len(got) != 1 || got[0].Requester != "officer:ada" {
		t.Errorf("asked for %+v", got)
	}
	ada.clean(t)
}

// session is the id of the tab's session.
func (tb *tab) session(t *testing.T, base string) string {
	t.Helper()
	got, err := chromedp.Call(tb.ctx, network.GetCookies, network.GetCookiesParams{URLs: []string{base}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range got.Cookies {
		if c.Name == console.CookieName {
			return c.Value
		}
	}
	return ""
}

// An administrator invites somebody at the console, that person makes passkeys, the
// administrator asks for the roster, and officers decide; then roles and quorum change the
// same way, and a machine gets a token.
func TestBrowserPeople(t *testing.T) {
	browser := chromium(t)
	h, tabs := officersEnrolled(t, func() *tab { return newTab(t, browser, "en") }, "ada")
	ada, bob := tabs["ada"], newTab(t, browser, "ja")
	ada.open(t, h.base+"/console/officers")
	ada.do(t, chromedp.Click("#invite"), chromedp.WaitVisible("#do-invite"), until(loaded), chromedp.SendKeys("#name", "bob"), chromedp.Click("#role-crypto-officer"), chromedp.Click("#do-invite"), chromedp.WaitVisible("#link"))
	link := get(t, ada, chromedp.Text("#link"))
	// bob's link was not made by the admin token: somebody must ask.
	bob.authenticator(t, webauthn.AuthenticatorTransportInternal)
	bob.do(t, chromedp.Navigate(link), chromedp.WaitVisible("#invitation"), until(loaded), until(`location.hash === ''`), chromedp.WaitEnabled("#make"), chromedp.Click("#make"), chromedp.WaitVisible(`#passkeys[data-count="1"]`), until(loaded))
	if h1 := get(t, bob, chromedp.Text("h1")); h1 != "パスキーの作成" {
		t.Errorf("heading %q", h1)
	}
	// The same authenticator is not taken for a second one.
	bob.do(t, chromedp.WaitEnabled("#make"), chromedp.Click("#make"), until(`document.querySelector('form[data-passkey]').dataset.state === 'already'`))
	// One passkey is a choice that must be made.
	bob.do(t, chromedp.Click("#finish"), chromedp.WaitVisible("#problem"), until(loaded), chromedp.Click("#alone"), chromedp.Click("#finish"), chromedp.WaitVisible("p.done"))
	bob.bad = slices.DeleteFunc(bob.bad, func(s string) bool { return strings.Contains(s, "422") })
	bob.do(t, chromedp.Navigate(link), chromedp.WaitVisible("#problem"))
	bob.bad = slices.DeleteFunc(bob.bad, func(s string) bool { return strings.Contains(s, "404") })

	signed := func() string {
		t.Helper()
		ada.do(t, chromedp.WaitVisible("#changes"), until(loaded))
		ada.sign(t, "#ask", "#vote-rows")
		at := get(t, ada, chromedp.Location())
		id := at[strings.LastIndex(at, "/")+1:]
		h.approve(id)
		return id
	}
	ada.open(t, h.base+"/console/officers")
	ada.do(t, chromedp.Click("button.accept"))
	signed()
	bob.enter(t, h.base)
	if who := get(t, bob, chromedp.Text("#who")); who != "bob" {
		t.Errorf("signed in as %q", who)
	}
	if get(t, bob, chromedp.Evaluate[bool](`!!document.querySelector('a[href="/console/certificates/new"], a#invite')`)) {
		t.Error("bob is shown what is not his")
	}
	ada.open(t, h.base+"/console/officers/roles?name=bob")
	ada.do(t, chromedp.Click("#role-signer"), chromedp.Click("#draft"))
	signed()
	ada.open(t, h.base+"/console/officers/quorum")
	ada.do(t, chromedp.SendKeys("#groups", "founders 1: officer-1, officer-2"), chromedp.Click("#draft"))
	signed()
	roster := must(h.board.Rosters(t.Context())).Current()
	if o, _ := roster.Officer("bob"); len(o.Roles) != 2 || len(roster.Groups) != 1 || roster.Groups[0].Quorum != 1 {
		t.Errorf("roster %+v", roster)
	}
	ada.open(t, h.base+"/console/machines/new")
	ada.do(t, chromedp.SendKeys("#name", "builder"), chromedp.Click("#role-signer"), chromedp.Click("#do-token"), chromedp.WaitVisible("#token"))
	if token := get(t, ada, chromedp.Text("#token")); !strings.HasPrefix(token, "chy_") {
		t.Errorf("token %q", token)
	}
	// The pages are good to use for everybody.
	id := h.propose(t)
	for _, path := range []string{"/console/officers", "/console/machines", "/console/approvals/" + id, "/console/approvals?tab=history", "/console/step-up", "/console/officers/invite", "/console/officers/roles?name=bob"} {
		for _, scheme := range []string{"light", "dark"} {
			ada.do(t, look(scheme, 1280, 900))
			ada.axe(t, scheme, h.base+path)
		}
	}
	ada.clean(t)
	bob.clean(t)
}

// propose asks for a key as the admin token does.
func (h *house) propose(t *testing.T) string {
	t.Helper()
	return must(h.board.Propose(t.Context(), admin.Ask{Action: admin.GenerateKey, Parameters: []byte(`{"name":"x","purpose":"code","algorithm":"P-256"}`)})).ID
}
