package test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"chancery/audit"
)

// verifier builds chancery-verify once, as make does: without cgo.
var verifier = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(filepath.Dir(chancery), "chancery-verify")
	cmd := exec.Command("go", "build", "-o", bin, "chancery/cmd/chancery-verify")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building chancery-verify: %v\n%s", err, out)
	}
	return bin, err
})

// verified is the report of chancery-verify --json.
type verified struct {
	OK        bool
	Error     string
	Violation *struct {
		Index      uint64
		What, File string
	}
	Origin, Ledger, Root, Succeeds                             string
	Size, From, Intents, Done, Certificates, CRLs, Revocations uint64
	Grants, Checkpoints, Evidence, Openings                    uint64
	Files                                                      []struct{ Index uint64 }
	Notes                                                      []string
	Recoveries                                                 []struct{ Entry, Known uint64 }
}

// verifyExport runs chancery-verify and wants an exit code.
func verifyExport(t testing.TB, want int, args ...string) (v verified) {
	t.Helper()
	bin, err := verifier()
	if err != nil {
		t.Fatal(err)
	}
	out, code := run(t, []string{"PATH=/nonexistent"}, bin, append([]string{"--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("chancery-verify: exit code %d, %v\n%s", code, err, out)
	}
	if code != want || v.OK != (want == 0) || (v.Violation != nil) != (want == 7) {
		t.Errorf("chancery-verify %s: exit code %d, want %d\n%s", strings.Join(args, " "), code, want, out)
	}
	return v
}

// broken wants chancery-verify to name an entry and to say something.
func broken(t testing.TB, index uint64, says string, args ...string) {
	t.Helper()
	v := verifyExport(t, 7, args...)
	if v.Violation != nil && (v.Violation.Index != index || !strings.Contains(v.Violation.What, says)) {
		t.Errorf("entry %d: %s; want entry %d and %q", v.Violation.Index, v.Violation.What, index, says)
	}
}

// TestExport makes a CA, has officers approve a key, issues, signs and revokes, exports
// the ledger, has chancery-verify check it, and changes the export in many ways.
func TestExport(t *testing.T) {
	s := newSite(t)
	s.start()
	at := []string{"--dir", s.dir}
	cli := commandLine{t, s}
	c, token := s.client(), s.token()
	cli.approve(nil, "key", "generate", "contracts", "--purpose", "document", "--algorithm", "P-256")
	out := filepath.Join(t.TempDir(), "export")
	export := func(args ...string) string {
		t.Helper()
		return must(t, nil, chancery, append([]string{"audit", "export", "--dir", s.dir, "--config", s.overlayFile, "--out", out}, args...)...)
	}
	var certs []string // files
	save := func(i issued) string {
		name := filepath.Join(t.TempDir(), i.Serial+".pem")
		if err := os.WriteFile(name, []byte(i.Certificate), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	issue := func(n int) (last issued) {
		t.Helper()
		for k := range n {
			i, err := s.issue(c, token, fmt.Sprintf("host%d.example.com", k))
			if err != nil {
				t.Fatal(err)
			}
			certs, last = append(certs, save(i)), i
		}
		return last
	}
	revoked := issue(3)
	if _, err := s.api(c, token, "POST", "/api/v1/certificates/"+revoked.Serial+"/revoke", map[string]any{"reason": "superseded"}, nil); err != nil {
		t.Fatal(err)
	}
	s.awaitRevoked(revoked.Serial)
	doc := filepath.Join(t.TempDir(), "contract.txt")
	if err := os.WriteFile(doc, []byte("a contract"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, nil, chancery, append([]string{"sign", doc, "--key", "contracts"}, at...)...)

	export()
	first := verifyExport(t, 0, append([]string{out, doc + ".p7s"}, certs...)...)
	if first.Grants != 1 || first.Certificates < 5 || first.Revocations != 1 || first.CRLs != 2 || len(first.Files) != 4 || first.Files[0].Index == 0 || len(first.Notes) > 0 {
		t.Errorf("%+v", first)
	}
	if rep := s.auditVerify(); rep.Ledger != first.Ledger || rep.Origin != first.Origin || rep.Certificates != first.Certificates {
		t.Errorf("audit verify says %+v, chancery-verify %+v", rep, first)
	}
	verifyExport(t, 0, "--ledger", first.Ledger, out)
	broken(t, 0, "another than expected", "--ledger", strings.Repeat("0", 64), out)
	foreignTiles(t, out)

	// Why a certificate exists.
	why := must(t, nil, chancery, append([]string{"audit", "why", certs[2]}, at...)...)
	for _, want := range []string{revoked.Serial, "api:admin-token", "superseded", "key", "checked", "digest"} {
		if !strings.Contains(why, want) {
			t.Errorf("audit why lacks %q:\n%s", want, why)
		}
	}

	stranger := filepath.Join(t.TempDir(), "stranger.pem")
	if err := os.WriteFile(stranger, []byte(foreignCertificate(t, revoked.Serial)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := run(t, nil, chancery, append([]string{"audit", "why", stranger}, at...)...); code != 1 || !strings.Contains(out, "no issuer of this ledger signed it") {
		t.Errorf("audit why of a foreign certificate: %d %s", code, out)
	}
	verifyExport(t, 7, out, stranger)

	// A later export into the same folder, and a verification that goes on.
	state := filepath.Join(t.TempDir(), "state")
	verifyExport(t, 0, "--state", state, out)
	trusted := filepath.Join(t.TempDir(), "checkpoint")
	copyFile(t, filepath.Join(out, "checkpoint"), trusted)
	old := filepath.Join(t.TempDir(), "old")
	copyTree(t, out, old)
	issue(150) // beyond a bundle of 256 entries
	export()
	second := verifyExport(t, 0, "--state", state, "--trusted-checkpoint", trusted, out)
	whole := verifyExport(t, 0, "--trusted-checkpoint", trusted, out)
	if second.From != first.Size || second.Size <= 256 || whole.Size != second.Size || whole.Root != second.Root || whole.Certificates != second.Certificates || whole.Revocations != second.Revocations {
		t.Errorf("incremental %+v\nwhole       %+v", second, whole)
	}
	if v := verifyExport(t, 0, "--state", state, "--trusted-checkpoint", trusted, out); v.From != second.Size { // nothing new
		t.Errorf("%+v", v)
	}
	if _, err := os.Stat(filepath.Join(out, "tile", "entries", fmt.Sprintf("000.p/%d", first.Size))); err == nil {
		t.Error("the partial bundle of the older export is still there")
	}
	newer := filepath.Join(t.TempDir(), "newer")
	copyFile(t, filepath.Join(out, "checkpoint"), newer)
	broken(t, first.Size, "cut off", "--trusted-checkpoint", newer, old)
	broken(t, first.Size, "cut off", "--state", state, old)
	broken(t, first.Size, "cut off", "--state", state, old, certs[0]) // all is read, and held against the earlier run too

	tamperExport(t, out, second.Size, c2spEntry(t, out))
	exportLines(t, s, second.Size)

	// An export that was interrupted is refused, and finished by the next one.
	broke := filepath.Join(t.TempDir(), "broke")
	copyTree(t, out, broke)
	edit(t, broke, "chancery/export.json", func(b []byte) []byte {
		return bytes.Replace(b, []byte(`"complete": true`), []byte(`"complete": false`), 1)
	})
	edit(t, broke, "tile/entries/000", func(b []byte) []byte { b[100] ^= 1; return b })
	verifyExport(t, 1, broke)
	out = broke
	export()
	verifyExport(t, 0, broke)
	if out, code := run(t, nil, chancery, "audit", "export", "--dir", s.dir, "--out", s.dir); code != 1 || !strings.Contains(out, "not empty") {
		t.Errorf("export into another folder: %d %s", code, out)
	}
}

// foreignTiles reads an export with package tlog alone, as any reader of tlog-tiles may.
func foreignTiles(t *testing.T, dir string) {
	t.Helper()
	entry := c2spEntry(t, dir)
	_, origin, keys, err := audit.OpenGenesis(entry(0))
	if err != nil {
		t.Fatal(err)
	}
	key, err := audit.NoteVerifier(origin, keys[0])
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(text, note.VerifierList(key))
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	var root string
	if _, err := fmt.Sscanf(n.Text, origin+"\n%d\n%s\n", &size, &root); err != nil {
		t.Fatal(err)
	}
	hash, err := tlog.ParseHash(root)
	if err != nil {
		t.Fatal(err)
	}
	r := tlog.TileHashReader(tlog.Tree{N: size, Hash: hash}, foreignReader(dir))
	for _, i := range []int64{0, 1, size / 2, size - 1} {
		proof, err := tlog.ProveRecord(size, i, r)
		if err == nil {
			err = tlog.CheckRecord(proof, size, hash, i, tlog.RecordHash(entry(uint64(i))))
		}
		if err != nil {
			t.Errorf("entry %d: %v", i, err)
		}
	}
}

type foreignReader string

func (d foreignReader) Height() int                     { return 8 }
func (d foreignReader) SaveTiles([]tlog.Tile, [][]byte) {}
func (d foreignReader) ReadTiles(want []tlog.Tile) (out [][]byte, err error) {
	for _, w := range want {
		b, err := os.ReadFile(filepath.Join(string(d), "tile", strings.TrimPrefix(w.Path(), "tile/8/"))) // C2SP leaves the height out
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// c2spEntry reads single entries of an export.
func c2spEntry(t *testing.T, dir string) func(uint64) []byte {
	return func(i uint64) []byte {
		t.Helper()
		b, _ := bundleOf(t, dir, i)
		for range i % 256 {
			b = b[2+binary.BigEndian.Uint16(b):]
		}
		return b[2 : 2+binary.BigEndian.Uint16(b)]
	}
}

// bundleOf is the bundle of an entry and its name in the folder.
func bundleOf(t *testing.T, dir string, i uint64) (b []byte, name string) {
	t.Helper()
	name = fmt.Sprintf("tile/entries/%03d", i/256)
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		found, _ := filepath.Glob(filepath.Join(dir, name+".p", "*"))
		if len(found) != 1 {
			t.Fatalf("no bundle %s: %v", name, err)
		}
		name = name + ".p/" + filepath.Base(found[0])
		if b, err = os.ReadFile(found[0]); err != nil {
			t.Fatal(err)
		}
	}
	return b, name
}

// tamperExport changes copies of an export and wants the first bad entry named.
func tamperExport(t *testing.T, dir string, size uint64, entry func(uint64) []byte) {
	fresh := func(t *testing.T) string {
		d := filepath.Join(t.TempDir(), "x")
		copyTree(t, dir, d)
		return d
	}
	split := func(b []byte) (out [][]byte) {
		for len(b) > 0 {
			n := 2 + int(binary.BigEndian.Uint16(b))
			out, b = append(out, b[:n:n]), b[n:]
		}
		return out
	}
	bundle := func(t *testing.T, d string, i uint64, fn func([][]byte) [][]byte) {
		b, name := bundleOf(t, dir, i)
		write(t, d, name, bytes.Join(fn(split(b)), nil))
	}
	var cert, crl uint64 // done entries
	for i := range size {
		l, err := audit.DecodeLeaf(entry(i))
		if err != nil {
			t.Fatal(err)
		}
		if l.Kind == audit.KindDone && l.Op == audit.OpCertificate {
			cert = i
		}
		if l.Kind == audit.KindDone && l.Op == audit.OpCRL {
			crl = i
		}
	}
	records := func(t *testing.T, d string, fn func(index uint64, der []byte) [][]byte) {
		edit(t, d, "chancery/certificates.bin", func(b []byte) (out []byte) {
			for len(b) > 0 {
				n := 12 + int(binary.BigEndian.Uint32(b[8:]))
				for _, r := range fn(binary.BigEndian.Uint64(b), b[:n:n]) {
					out = append(out, r...)
				}
				b = b[n:]
			}
			return out
		})
	}
	const i = 77
	for name, x := range map[string]struct {
		index uint64
		says  string
		do    func(t *testing.T, d string)
	}{
		"an octet of an entry": {i, "hash", func(t *testing.T, d string) {
			bundle(t, d, i, func(e [][]byte) [][]byte { e[i] = flip(e[i]); return e })
		}},
		"an entry deleted": {i, "hash", func(t *testing.T, d string) {
			bundle(t, d, i, func(e [][]byte) [][]byte { return append(e[:i:i], e[i+1:]...) })
		}},
		"two entries swapped": {i, "hash", func(t *testing.T, d string) {
			bundle(t, d, i, func(e [][]byte) [][]byte { e[i], e[i+3] = e[i+3], e[i]; return e })
		}},
		"an entry inserted": {i, "hash", func(t *testing.T, d string) {
			bundle(t, d, i, func(e [][]byte) [][]byte { return append(e[:i:i], append([][]byte{e[3]}, e[i:]...)...) })
		}},
		"an entry twice": {i + 1, "hash", func(t *testing.T, d string) {
			bundle(t, d, i, func(e [][]byte) [][]byte { return append(e[:i+1:i+1], e[i:]...) })
		}},
		"the last entry cut off": {size - 1, "missing", func(t *testing.T, d string) {
			bundle(t, d, size-1, func(e [][]byte) [][]byte { return e[:len(e)-1] })
		}},
		"the last bundle cut off": {size / 256 * 256, "missing", func(t *testing.T, d string) {
			_, name := bundleOf(t, dir, size-1)
			if err := os.Remove(filepath.Join(d, name)); err != nil {
				t.Fatal(err)
			}
		}},
		"an entry behind the last": {size, "behind", func(t *testing.T, d string) {
			bundle(t, d, size-1, func(e [][]byte) [][]byte { return append(e, e[0]) })
		}},
		"an entry and its tile": {0, "", func(t *testing.T, d string) {
			bundle(t, d, i, func(e [][]byte) [][]byte { e[i] = flip(e[i]); return e })
			e := flip(append([]byte{0, 0}, entry(i)...))[2:]
			edit(t, d, "tile/0/000", func(b []byte) []byte { h := tlog.RecordHash(e); copy(b[32*i:], h[:]); return b })
		}},
		"an octet of a tile": {i, "hash", func(t *testing.T, d string) {
			edit(t, d, "tile/0/000", func(b []byte) []byte { b[32*i] ^= 1; return b })
		}},
		"an octet of an upper tile": {0, "tile 1/0", func(t *testing.T, d string) {
			edit(t, d, fmt.Sprintf("tile/1/000.p/%d", size/256), func(b []byte) []byte { b[0] ^= 1; return b })
		}},
		"the checkpoint's root": {size, "not signed", func(t *testing.T, d string) {
			edit(t, d, "checkpoint", func(b []byte) []byte {
				l := bytes.SplitN(b, []byte("\n"), 4)
				l[2][3] ^= 1
				return bytes.Join(l, []byte("\n"))
			})
		}},
		"a certificate added": {3, "names it as its done", func(t *testing.T, d string) {
			records(t, d, func(index uint64, r []byte) [][]byte {
				if index == cert {
					return [][]byte{r, r}
				}
				return [][]byte{r}
			})
			edit(t, d, "chancery/certificates.bin", func(b []byte) []byte {
				extra := append(binary.BigEndian.AppendUint64(nil, 3), b[8:12+binary.BigEndian.Uint32(b[8:])]...)
				return append(extra, b...)
			})
		}},
		"a certificate twice": {cert, "two certificates", func(t *testing.T, d string) {
			records(t, d, func(index uint64, r []byte) [][]byte {
				if index == cert {
					return [][]byte{r, r}
				}
				return [][]byte{r}
			})
		}},
		"a certificate taken away": {cert, "not in the export", func(t *testing.T, d string) {
			records(t, d, func(index uint64, r []byte) [][]byte {
				if index == cert {
					return nil
				}
				return [][]byte{r}
			})
		}},
		"a certificate changed": {cert, "not the one that was recorded", func(t *testing.T, d string) {
			records(t, d, func(index uint64, r []byte) [][]byte {
				if index == cert {
					r[len(r)-1] ^= 1
				}
				return [][]byte{r}
			})
		}},
		"the CRLs taken away": {0, "not in the export", func(t *testing.T, d string) { write(t, d, "chancery/crls.bin", nil) }},
		"a CRL changed":       {crl, "not the one that it records", func(t *testing.T, d string) { edit(t, d, "chancery/crls.bin", lastCRL) }},
		"a quorum of one": {0, "officers or the quorum", func(t *testing.T, d string) {
			edit(t, d, "chancery/roster.json", func(b []byte) []byte {
				return bytes.Replace(b, []byte(`"quorum": 2`), []byte(`"quorum": 1`), 1)
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d := fresh(t)
			x.do(t, d)
			switch v := verifyExport(t, 7, d); {
			case v.Violation == nil:
			case !strings.Contains(v.Violation.What, x.says):
				t.Errorf("entry %d: %s; want %q", v.Violation.Index, v.Violation.What, x.says)
			case x.index > 0 && v.Violation.Index != x.index: // 0: it depends on which checkpoints there are
				t.Errorf("entry %d: %s; want entry %d", v.Violation.Index, v.Violation.What, x.index)
			}
		})
	}
	// A certificate that nobody recorded, and files that are none.
	stray := filepath.Join(t.TempDir(), "stray.pem")
	if err := os.WriteFile(stray, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("0\x03abc")}), 0o600); err != nil {
		t.Fatal(err)
	}
	if v := verifyExport(t, 7, dir, stray); v.Violation != nil && v.Violation.File != stray {
		t.Errorf("%+v", v.Violation)
	}
	verifyExport(t, 1, dir, filepath.Join(dir, "checkpoint"))
	verifyExport(t, 1, filepath.Join(dir, "nothing"))
}

func flip(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }

// lastCRL flips a bit in the last of crls.bin; the order there is that of issuers' names.
func lastCRL(b []byte) []byte {
	first := 4 + int(binary.BigEndian.Uint32(b))
	b[first-1] ^= 1
	return b
}

// exportLines checks the exports for log systems.
func exportLines(t *testing.T, s *site, size uint64) {
	t.Helper()
	args := []string{"audit", "export", "--dir", s.dir, "--config", s.overlayFile, "--format"}
	stdout := func(args ...string) []byte {
		t.Helper()
		out, err := exec.Command(chancery, args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	entry := c2spEntryOf(s, t)
	sc := bufio.NewScanner(bytes.NewReader(stdout(append(args, "jsonl")...)))
	sc.Buffer(nil, 1<<20)
	var n uint64
	for ; sc.Scan(); n++ {
		var l struct {
			Index    uint64
			TreeSize uint64 `json:"tree_size"`
			Time     time.Time
			Kind, Op string
			LeafHash string `json:"leaf_hash"`
			Fields   map[string]any
		}
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		h := sha256.Sum256(append([]byte{0}, entry(n)...))
		if l.Index != n || l.TreeSize < size || l.Time.IsZero() || l.Kind == "" || l.Op == "" || l.LeafHash != hex.EncodeToString(h[:]) {
			t.Fatalf("line %d: %s", n, sc.Text())
		}
		if n == 0 && (l.Kind != "genesis" || l.Fields["mode"] != 1.0 || l.Fields["acts"] == nil) {
			t.Errorf("genesis: %s", sc.Text())
		}
	}
	if n < size {
		t.Errorf("%d lines of %d entries", n, size)
	}
	file := filepath.Join(t.TempDir(), "siem.log")
	must(t, nil, chancery, append(args, "syslog", "--from", "7", "--out", file)...)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rfc5424 := regexp.MustCompile(`^<(110|108)>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \S+ chancery - [a-z-]+ \[chancery@32473 index="\d+" tree_size="\d+"( [a-z_0-9]+="([^"\\\]]|\\["\\\]])*")+\] entry `)
	k := 7
	for l := range strings.Lines(string(b)) {
		if !rfc5424.MatchString(l) || !strings.Contains(l, fmt.Sprintf(`index="%d"`, k)) {
			t.Fatalf("line of entry %d: %s", k, l)
		}
		k++
	}
	if uint64(k) < size {
		t.Errorf("syslog ends at entry %d of %d", k, size)
	}
}

func c2spEntryOf(s *site, t *testing.T) func(uint64) []byte {
	db := s.database()
	head, err := db.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	err = db.Leaves(t.Context(), 0, head.Size, func(_ uint64, b []byte) error { all = append(all, bytes.Clone(b)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return func(i uint64) []byte { return all[i] }
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, dir, name string, b []byte) {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func edit(t testing.TB, dir, name string, fn func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, name, fn(b))
}

// exportVerify has the other implementation check what audit verify has checked.
func (s *site) exportVerify() verified {
	s.t.Helper()
	dir := filepath.Join(s.t.TempDir(), "export")
	must(s.t, nil, chancery, "audit", "export", "--dir", s.dir, "--config", s.overlayFile, "--out", dir)
	return verifyExport(s.t, 0, "--signatures", dir)
}
