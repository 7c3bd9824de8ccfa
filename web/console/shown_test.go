package console_test

import (
	"fmt"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/web/console"
)

// WEB-19: a letter that nothing is drawn for makes a second "ada".
func TestAttack_WEB_19_Blank(t *testing.T) {
	for in, want := range map[string]string{"ada\u3164": `ada\u{3164}`, "ada\u115f": `ada\u{115f}`, "\u1160ada": `\u{1160}ada`, "ada\uffa0": `ada\u{ffa0}`, "ada\u2800": `ada\u{2800}`} {
		if got := console.Shown(in, 100); got != want {
			t.Errorf("ATTACK WORKED: %q is shown as %q", in, got)
		}
	}
}

// WEB-19: numbers and lists are shown as they are signed.
func TestAttack_WEB_19_Parameters(t *testing.T) {
	f := busy(t)
	p := f.board.put("officer:bob", "recover-ledger", `{"entries_left":12345678,"list":["a, b","c"],"reason":"x"}`, "x")
	body := f.as(t, "ada").get("/console/approvals/" + p.ID).Body.String()
	for _, want := range []string{">12345678</dd>", ">[&#34;a, b&#34;,&#34;c&#34;]</dd>"} {
		if !strings.Contains(body, want) {
			t.Errorf("ATTACK WORKED: the page does not show %s", want)
		}
	}
}

// WEB-18: whoever asks for many things and cancels them does not hide a request from those
// who decide.
func TestAttack_WEB_18_Hidden(t *testing.T) {
	f := newFixture(t)
	acts := []string{admin.GenerateKeyAct("release", "code", "P-256", nil)}
	hidden := f.board.put("officer:ada", admin.GenerateKey, `{"name":"release"}`, acts...)
	for i := range 200 {
		f.board.put("machine:x/officer:mallory", admin.GenerateKey, fmt.Sprintf(`{"name":"n%d"}`, i), acts...).State = admin.Cancelled
	}
	for officer, tab := range map[string]string{"bob": "waiting", "ada": "mine"} {
		if body := f.as(t, officer).get("/console/approvals?tab=" + tab).Body.String(); !strings.Contains(body, hidden.ID) {
			t.Errorf("ATTACK WORKED: %s does not see what is pending in %q", officer, tab)
		}
	}
}
