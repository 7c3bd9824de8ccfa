package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	formatslog "github.com/transparency-dev/formats/log"
	formatsnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"chancery/hsmstore"
)

// TestCheckpointOfEveryMember looks at checkpoints and tiles from outside, with nothing but
// packages of others, while members come, go and are away: one valid line is enough, and a
// member that joins brings a line of its own.
func TestCheckpointOfEveryMember(t *testing.T) {
	s := newSite(t)
	s.start()
	cli := commandLine{t, s}
	client, token := s.client(), s.token()
	n := 0
	issue := func() {
		t.Helper()
		n++
		if _, err := s.issue(client, token, fmt.Sprintf("n%d.example.org", n)); err != nil {
			t.Fatal(err)
		}
	}
	issue()
	w := &outsider{t: t, s: s, cli: cli}
	first := w.checkpoint("checkpoint-alpha", "checkpoint-beta")
	w.entries(first)
	if out := strings.Split(cli.run(0, "audit", "keys"), "\n"); len(out) != 3 || !strings.HasPrefix(out[0], first.origin+"+") || !strings.HasSuffix(out[1], "  checkpoint-beta, usable, entry 0") {
		t.Errorf("audit keys:\n%s", strings.Join(out, "\n"))
	}
	folder, state := filepath.Join(t.TempDir(), "export"), filepath.Join(t.TempDir(), "state")
	goOn := func() { // an auditor who goes on from the last time
		t.Helper()
		must(t, nil, chancery, "audit", "export", "--dir", s.dir, "--config", s.overlayFile, "--out", folder)
		verifyExport(t, 0, "--state", state, folder)
	}
	goOn()

	// One is away: its line is missing, and the CA goes on.
	cli.run(0, "hsm", "drain", "beta")
	issue()
	second := w.checkpoint("checkpoint-alpha")
	w.consistent(first, second)
	if out := cli.run(1, "hsm", "drain", "alpha"); !strings.Contains(out, "only one") {
		t.Errorf("draining the last:\n%s", out)
	}
	cli.run(0, "hsm", "admit", "beta")
	issue()
	w.checkpoint("checkpoint-alpha", "checkpoint-beta")

	// A token of its own for checkpoints: no SO PIN, no keys of the CA.
	s.configure("gamma", "    role: checkpoint\n")
	if out := cli.approve(issue, "hsm", "add", "gamma"); !strings.Contains(out, "proved itself") {
		t.Errorf("adding gamma: %s", out)
	}
	issue()
	w.checkpoint("checkpoint-alpha", "checkpoint-beta", "checkpoint-gamma")
	var keys struct {
		Keys []struct {
			Name    string
			Members []string
		}
	}
	if _, err := s.api(client, token, "GET", "/api/v1/keys", nil, &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys.Keys {
		if own := strings.HasSuffix(k.Name, "-gamma"); slices.Contains(k.Members, "gamma") != own {
			t.Errorf("key %s is on %v", k.Name, k.Members)
		}
	}
	cli.approve(nil, "key", "generate", "contracts", "--purpose", "document", "--algorithm", "P-256")
	goOn()

	// Only the late key signs for a while: who knows that its birth is covered by
	// checkpoints of the first keys accepts that, here and at the next start.
	pocket := func(from, to string) {
		t.Helper()
		for _, m := range []string{"alpha", "beta"} {
			if err := os.Rename(filepath.Join(s.dir, "hsm", m, from), filepath.Join(s.dir, "hsm", m, to)); err != nil {
				t.Fatal(err)
			}
		}
	}
	up := func(want int) {
		t.Helper()
		eventually(t, func() bool {
			var list struct{ Members []struct{ State string } }
			if _, err := s.api(client, token, "GET", "/api/v1/hsm/members", nil, &list); err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, m := range list.Members {
				if m.State == "up" {
					n++
				}
			}
			return n == want
		})
	}
	pocket("tokens", "pocket")
	csr, err := newCSR("away.example.org")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { // whoever signs finds out
		resp := s.raw(client, token, "/api/v1/certificates", map[string]string{"csr": csr, "profile": "tls-server"})
		resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	up(1)
	cli.run(0, "hsm", "fence", "beta", "--reason", "its token is gone") // an entry
	w.checkpoint("checkpoint-gamma")
	goOn()
	s.exportVerify()
	pocket("pocket", "tokens")
	up(2)
	cli.run(0, "hsm", "admit", "beta", "--reason", "it is back")
	s.stop()
	s.start()
	client = s.client()
	issue()
	w.checkpoint("checkpoint-alpha", "checkpoint-beta", "checkpoint-gamma")
	s.auditVerify()
	s.exportVerify()

	// A member that leaves takes its key out of the checkpoints.
	cli.run(0, "hsm", "drain", "gamma")
	cli.approve(issue, "hsm", "remove", "gamma")
	issue()
	last := w.checkpoint("checkpoint-alpha", "checkpoint-beta")
	w.consistent(first, last)

	// The officers may bear one more, on one member and on no other.
	more := []string{"key", "generate", "notary", "--purpose", "checkpoint", "--algorithm", "Ed25519"}
	if out := cli.run(2, more...); !strings.Contains(out, "never leaves its member") {
		t.Errorf("a checkpoint key for all members:\n%s", out)
	}
	cli.approve(nil, append(more, "--members", "alpha")...)
	issue()
	w.checkpoint("checkpoint-alpha", "checkpoint-beta", "notary")
	s.auditVerify()
	goOn()
	s.exportVerify()
}

// configure makes a token and names it in the configuration as a member.
func (s *site) configure(name, more string) {
	s.t.Helper()
	m, err := hsmstore.WriteSoftHSMConf(s.dir, name)
	if err != nil {
		s.t.Fatal(err)
	}
	home := filepath.Join(s.dir, "hsm", name)
	pin, so := strings.TrimSpace(s.read("hsm", name, "pin")), strings.TrimSpace(s.read("hsm", name, "so-pin"))
	init := exec.Command("softhsm2-util", "--init-token", "--free", "--label", m.TokenLabel, "--pin", pin, "--so-pin", so)
	init.Env = append(os.Environ(), m.Env...)
	if out, err := init.CombinedOutput(); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	member := fmt.Sprintf("  - name: %s\n    module: %s\n    token: %s\n    pin: file:%s/pin\n%s    env:\n      SOFTHSM2_CONF: %s/softhsm2.conf\nacme:", name, m.Module, m.TokenLabel, home, more, home)
	if err := os.WriteFile(filepath.Join(s.dir, "chancery.yaml"), []byte(strings.Replace(s.read("chancery.yaml"), "acme:", member, 1)), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// outsider reads a ledger over HTTP with golang.org/x/mod and transparency-dev's packages.
type outsider struct {
	t   *testing.T
	s   *site
	cli commandLine
}

// seen is a checkpoint that an outsider has verified.
type seen struct {
	origin string
	size   uint64
	root   []byte
}

func (w *outsider) get(path string) []byte {
	w.t.Helper()
	b, err := w.fetch(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *outsider) fetch(path string) ([]byte, error) {
	req, err := http.NewRequest("GET", "https://"+w.s.https+path, nil)
	if err != nil {
		return nil, err
	}
	if path != "/ledger/checkpoint" {
		req.Header.Set("Authorization", "Bearer "+w.s.token())
	}
	resp, err := w.s.client().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 {
		err = errors.Join(err, fmt.Errorf("%s: status %d %s", path, resp.StatusCode, b))
	}
	return b, err
}

// checkpoint waits for a checkpoint that has just the lines of these keys and is of all that
// was on the ledger, and verifies each line with the verifier key that audit keys prints.
func (w *outsider) checkpoint(names ...string) (out seen) {
	w.t.Helper()
	var keys []struct{ Verifier, Name string }
	if err := json.Unmarshal([]byte(w.cli.run(0, "audit", "keys", "--json")), &keys); err != nil {
		w.t.Fatal(err)
	}
	head, err := w.s.database().Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var text []byte
	var cp *formatslog.Checkpoint
	eventually(w.t, func() bool {
		text = w.get("/ledger/checkpoint")
		cp = &formatslog.Checkpoint{}
		if _, err := cp.Unmarshal(text); err != nil {
			w.t.Fatal(err)
		}
		return cp.Size >= head.Size && strings.Count(string(text), "\n— ") == len(names)
	})
	for _, name := range names {
		i := slices.IndexFunc(keys, func(k struct{ Verifier, Name string }) bool { return k.Name == name })
		if i < 0 {
			w.t.Fatalf("audit keys does not name %s: %+v", name, keys)
		}
		theirs, err := formatsnote.NewVerifier(keys[i].Verifier)
		if err != nil {
			w.t.Fatal(err)
		}
		xmod, err := note.NewVerifier(keys[i].Verifier) // Ed25519, which SoftHSM has
		if err != nil {
			w.t.Fatal(err)
		}
		for _, v := range []note.Verifier{theirs, xmod} {
			if _, _, n, err := formatslog.ParseCheckpoint(text, cp.Origin, v); err != nil || len(n.Sigs) != 1 || len(n.UnverifiedSigs) != len(names)-1 {
				w.t.Errorf("line of %s: %v\n%s", name, err, text)
			}
			bent := append(slices.Clone(text[:len(text)-4]), text[len(text)-3:]...)
			forged := strings.Replace(string(text), fmt.Sprintf("\n%d\n", cp.Size), fmt.Sprintf("\n%d\n", cp.Size+1), 1)
			for _, b := range [][]byte{bent, []byte(forged)} {
				if _, _, n, err := formatslog.ParseCheckpoint(b, cp.Origin, v); err == nil && (len(names) == 1 || string(b) == forged) {
					w.t.Errorf("a forged note is accepted: %+v", n)
				}
			}
		}
	}
	return seen{cp.Origin, cp.Size, cp.Hash}
}

// ReadTiles, Height and SaveTiles make an outsider a tlog.TileReader.
func (w *outsider) Height() int                     { return 8 }
func (w *outsider) SaveTiles([]tlog.Tile, [][]byte) {}
func (w *outsider) ReadTiles(want []tlog.Tile) (out [][]byte, err error) {
	for _, tile := range want {
		b, err := w.fetch("/ledger/tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")) // C2SP leaves the height out
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

func (w *outsider) reader(c seen) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: int64(c.size), Hash: tlog.Hash(c.root)}, w)
}

// entries proves every entry of a checkpoint: the hash that its bundle gives, by tiles that
// package tlog checks, with a proof that transparency-dev's package verifies.
func (w *outsider) entries(c seen) {
	w.t.Helper()
	r := w.reader(c)
	for first := uint64(0); first < c.size; first += 256 {
		width := min(256, c.size-first)
		path := tilePath("entries", first/256, width)
		b := w.get("/ledger/" + path)
		for i := first; i < first+width; i++ {
			n := int(b[0])<<8 | int(b[1])
			entry := b[2 : 2+n]
			b = b[2+n:]
			p, err := tlog.ProveRecord(int64(c.size), int64(i), r)
			if err == nil {
				err = proof.VerifyInclusion(rfc6962.DefaultHasher, i, c.size, rfc6962.DefaultHasher.HashLeaf(entry), raw(p), c.root)
			}
			if err != nil {
				w.t.Errorf("entry %d: %v", i, err)
			}
		}
		if len(b) > 0 {
			w.t.Errorf("%s has %d octets too many", path, len(b))
		}
	}
	if _, err := w.fetch("/ledger/" + tilePath("entries", c.size/256+40, 256)); err == nil {
		w.t.Error("a tile that the ledger does not have is served")
	}
}

// consistent proves that a checkpoint is a prefix of a later one.
func (w *outsider) consistent(a, b seen) {
	w.t.Helper()
	p, err := tlog.ProveTree(int64(b.size), int64(a.size), w.reader(b))
	if err == nil {
		err = proof.VerifyConsistency(rfc6962.DefaultHasher, a.size, b.size, raw(p), a.root, b.root)
	}
	if err != nil {
		w.t.Errorf("%d is no prefix of %d: %v", a.size, b.size, err)
	}
}

func raw[P ~[]tlog.Hash](p P) (out [][]byte) {
	for _, h := range p {
		out = append(out, h[:])
	}
	return out
}
