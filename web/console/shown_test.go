package console_test

import (
	"strings"
	"testing"

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
