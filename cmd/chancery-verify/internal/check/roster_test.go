package check

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"chancery/cmd/chancery-verify/internal/folder"
	"chancery/cmd/chancery-verify/internal/leaf"
)

// The digests of rosters and the votes of passkeys are those of the vectors that package
// admin is tested with.
func TestRosterVectors(t *testing.T) {
	b, err := os.ReadFile("../../../../admin/testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Rosters []struct {
			Name, Digest string
			Roster       folder.Roster
		}
		Assertions []struct {
			Name, SPKI, Challenge, Vote string
			Good                        bool
			RPID                        string `json:"rp_id"`
			Origins                     []string
		}
	}
	if err := json.Unmarshal(b, &all); err != nil || len(all.Rosters) == 0 || len(all.Assertions) == 0 {
		t.Fatalf("%d rosters, %d assertions: %v", len(all.Rosters), len(all.Assertions), err)
	}
	for _, v := range all.Rosters {
		if got := digestOf(v.Roster); got.String() != v.Digest {
			t.Errorf("%s: digest %s", v.Name, got)
		}
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, v := range all.Assertions {
		r := roster{Roster: folder.Roster{RPID: v.RPID, Origins: v.Origins}}
		if err := r.asserted(unhex(v.SPKI), leaf.Hash(unhex(v.Challenge)), unhex(v.Vote)); (err == nil) != v.Good {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
}
