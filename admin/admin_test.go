package admin_test

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
)

func TestGenesisOnlyWhileEmpty(t *testing.T) {
	if _, err := admin.Genesis(audit.Head{Size: 1}, []string{admin.SignRootAct("root")}); !errors.Is(err, admin.ErrNotGranted) {
		t.Fatalf("grant beside a ledger with a leaf: %v", err)
	}
	if _, err := admin.Genesis(audit.Head{}, nil); !errors.Is(err, admin.ErrNotGranted) {
		t.Fatalf("grant without acts: %v", err)
	}
}

func TestSpendOnce(t *testing.T) {
	act := admin.GenerateKeyAct("root", "issuer", "P-384", []byte{0x30, 0})
	g, err := admin.Genesis(audit.Head{}, []string{act, admin.SignRootAct("root")})
	if err != nil {
		t.Fatal(err)
	}
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if g.Spend(act) == nil {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("spent %d times", won.Load())
	}
	for name, bad := range map[string]*admin.Grant{"nil": nil, "zero": {}, "other act": g} {
		if err := bad.Spend(admin.AddMemberAct("m9", "0001", "")); !errors.Is(err, admin.ErrNotGranted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestActsCannotPassForAnother(t *testing.T) {
	if admin.GenerateKeyAct("a b", "c", "d", nil) == admin.GenerateKeyAct("a", "b", "c d", nil) || admin.SignRootAct("") == "sign-root " {
		t.Fatal("two acts have one text")
	}
}

func TestResumeGenesis(t *testing.T) {
	acts := []string{admin.GenerateKeyAct("a", "issuer", "P-256", []byte{0x30, 0}), admin.SignRootAct("a")}
	g, err := admin.Genesis(audit.Head{}, acts)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "d.example", Acts: acts}.Leaf(time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	again, err := admin.ResumeGenesis(leaf, func(a string) bool { return a == acts[0] })
	if err != nil {
		t.Fatal(err)
	}
	if again.Hash() != g.Hash() || g.Hash() == ([32]byte{}) {
		t.Error("the resumed grant has another name")
	}
	if again.Spend(acts[0]) == nil {
		t.Error("what is done was granted again")
	}
	if err := again.Spend(acts[1]); err != nil {
		t.Error(err)
	}
	leaf.Kind = audit.KindEvent
	if _, err := admin.ResumeGenesis(leaf, nil); err == nil {
		t.Error("an event made a grant")
	}
}

func TestOfficerFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "officers", "ada.pem")
	k, err := admin.NewOfficerKey("ada")
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Save(path); err != nil {
		t.Fatal(err)
	}
	if err := k.Save(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwrote a key: %v", err)
	}
	l, err := admin.LoadOfficerKey("ada", path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := k.Officer()
	b, err2 := l.Officer()
	if err != nil || err2 != nil || !slices.Equal(a.SPKI, b.SPKI) {
		t.Errorf("another key came back: %v %v", err, err2)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.LoadOfficerKey("ada", path); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("read a key that others may read: %v", err)
	}
}

// The vector holds the encoding: a roster's digest stands in leaf 0 for ever.
func TestRosterDigestVector(t *testing.T) {
	a, b := admin.Officer{Name: "ada", SPKI: []byte{1, 2}}, admin.Officer{Name: "bob", SPKI: []byte{3}}
	d := admin.RosterDigest([]admin.Officer{b, a}, 2)
	if d != admin.RosterDigest([]admin.Officer{a, b}, 2) || d == admin.RosterDigest([]admin.Officer{a, b}, 1) {
		t.Error("order matters, or the quorum does not")
	}
	if got := hex.EncodeToString(d[:]); got != rosterVector {
		t.Errorf("digest is %s", got)
	}
}

const rosterVector = "53320a5687ea7da42f21d4c64074d7939a2809bea7bf1512855bc4283a64bc47"
