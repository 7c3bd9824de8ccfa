package console_test

import (
	"strings"
	"testing"

	"chancery/admin"
)

// Parameters are shown as they are signed, whatever their kind.
func TestParametersInWords(t *testing.T) {
	f := busy(t)
	a := f.board.put("admin-token", admin.Restore, `{"entries":1000000,"issuers":0,"keys":3,"ledger":"ab","made":"2026-11-25T09:30:00Z","manifest_sha256":"cd","recipient":"far","revocations":12,"serial":"5e","none":null,"list":["a","b"],"odd":[1,"x"]}`, "restore cd")
	page := f.signedIn(t).get("/console/approvals/" + a.ID).Body.String()
	for _, want := range []string{`data-name="entries">1000000<`, `data-name="list">a, b<`, `data-name="odd">[1,&#34;x&#34;]<`, `data-name="none">null<`, `data-name="recipient">far<`, "Restore keys"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}
