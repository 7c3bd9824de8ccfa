package console_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"

	"chancery/admin"
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
