package admin_test

import (
	"encoding/hex"
	"encoding/json/jsontext"
	"encoding/json/v2"
	"os"
	"testing"

	"chancery/admin"
)

// The digests of rosters and the votes of passkeys are those of a second implementation,
// testdata/make_vectors.py; chancery-verify reads the same file.
func TestRosterVectors(t *testing.T) {
	var all struct {
		Rosters []struct {
			Name   string         `json:"name"`
			Roster jsontext.Value `json:"roster"`
			Digest string         `json:"digest"`
		} `json:"rosters"`
		Assertions []struct {
			Name      string   `json:"name"`
			Good      bool     `json:"good"`
			SPKI      string   `json:"spki"`
			RPID      string   `json:"rp_id"`
			Origins   []string `json:"origins"`
			Challenge string   `json:"challenge"`
			Vote      string   `json:"vote"`
		} `json:"assertions"`
	}
	if err := json.Unmarshal(must(os.ReadFile("testdata/vectors.json")), &all); err != nil || len(all.Rosters) == 0 || len(all.Assertions) == 0 {
		t.Fatalf("%d rosters, %d assertions: %v", len(all.Rosters), len(all.Assertions), err)
	}
	for _, v := range all.Rosters {
		var r admin.Roster
		if err := json.Unmarshal(v.Roster, &r, json.RejectUnknownMembers(true)); err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
		if got := r.Digest(); hex.EncodeToString(got[:]) != v.Digest {
			t.Errorf("%s: digest %x", v.Name, got)
		}
	}
	for _, v := range all.Assertions {
		a, err := admin.DecodeAssertion(unhex(v.Vote))
		if err == nil {
			err = a.Verify(unhex(v.SPKI), v.RPID, v.Origins, hash32(v.Challenge))
		}
		if (err == nil) != v.Good {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
}
