package console_test

import (
	"regexp"
	"testing"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

// WEB-06: who may see one key is not told how many there are.
func TestAttack_WEB_06_Count(t *testing.T) {
	f := filled(t)
	f.keys = append(f.keys, hsmstore.KeyInfo{KeyRecord: hsmstore.KeyRecord{Name: "release", Purpose: audit.PurposeCode, State: hsmstore.KeyUsable, SPKI: []byte("release")}})
	f.board.change(func(r *admin.Roster) {
		r.Officers[4].Roles = []admin.Assignment{{Role: admin.CryptoOfficer, Key: "release"}}
	})
	v := f.as(t, "eve")
	for _, path := range []string{"/console/", "/console/live"} {
		body := v.get(path).Body.String()
		m := regexp.MustCompile(`(?s)href="/console/keys"><span class="label">[^<]*</span><b>([^<]*)</b>`).FindStringSubmatch(body)
		if m == nil || m[1] != "1" {
			t.Errorf("ATTACK WORKED: %s shows the number of all keys: %q", path, m)
		}
	}
}
