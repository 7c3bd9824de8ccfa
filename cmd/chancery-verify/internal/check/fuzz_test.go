package check_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/cmd/chancery-verify/internal/check"
	"chancery/cmd/chancery-verify/internal/folder"
	"chancery/cmd/chancery-verify/internal/leaf"
)

// laterRoster adds a roster with passkeys and groups to a file of rosters.
func laterRoster(f *testing.F, first []byte) []byte {
	f.Helper()
	b, err := os.ReadFile("../../../../admin/testdata/vectors.json")
	if err != nil {
		f.Fatal(err)
	}
	var vectors struct {
		Rosters   []struct{ Roster json.RawMessage }
		Proposals []struct{ Proposal string }
	}
	if err := json.Unmarshal(b, &vectors); err != nil {
		f.Fatal(err)
	}
	proposal, err := hex.DecodeString(vectors.Proposals[0].Proposal)
	if err != nil {
		f.Fatal(err)
	}
	change := fmt.Sprintf(`,"changes":[{"roster":%s,"leaf":3,"warrant":{"proposal":"%s","votes":[{"spki":"AA==","signature":"AA=="}]}}]}`,
		vectors.Rosters[2].Roster, base64.StdEncoding.EncodeToString(proposal))
	return append(bytes.TrimSuffix(bytes.TrimSpace(first), []byte("}")), change...)
}

// FuzzRun verifies folders of any content. The entries are sealed as only a CA could:
// leaf 0, hashes, tiles and checkpoint are made here, and what refers to a hash is put
// right, so that what is fuzzed is read and not only refused by its seal. Whatever the
// content, the answer is a report or an error.
func FuzzRun(f *testing.F) {
	seed := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata/small", name))
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	bundles, err := filepath.Glob("testdata/small/tile/entries/000.p/*")
	if err != nil || len(bundles) != 1 {
		f.Fatal("testdata/small has no bundle")
	}
	entries, err := os.ReadFile(bundles[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(entries, seed("chancery/certificates.bin"), seed("chancery/crls.bin"), seed("chancery/issuers.bin"), seed("chancery/orphans.bin"), seed("chancery/roster.json"), seed("chancery/checkpoints"), []byte(`{}`), []byte{}, []byte{})
	record := func(index byte, value string) []byte {
		return append([]byte{0, 0, 0, 0, 0, 0, 0, index, 0, 0, 0, byte(len(value))}, value...)
	}
	f.Add(entries, seed("chancery/certificates.bin"), seed("chancery/crls.bin"), seed("chancery/issuers.bin"), seed("chancery/orphans.bin"), seed("chancery/roster.json"), seed("chancery/checkpoints"), []byte(`{}`),
		record(3, "chancery/evidence/v1\n"), record(3, "\x00\x78"+strings.Repeat("\x00", 35)+"\x01x"))
	f.Add(entries, seed("chancery/certificates.bin"), seed("chancery/crls.bin"), seed("chancery/issuers.bin"), seed("chancery/orphans.bin"), laterRoster(f, seed("chancery/roster.json")), seed("chancery/checkpoints"), []byte(`{}`), []byte{}, []byte{})
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // the same content has the same seal, as fuzzing wants
	f.Fuzz(func(t *testing.T, entries, certs, crls, issuers, orphans, roster, notes, state, evidence, openings []byte) {
		dir := t.TempDir()
		put := func(name string, b []byte) {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		origin, size := seal(t, key, entries, put)
		for name, b := range map[string][]byte{"certificates.bin": certs, "crls.bin": crls, "issuers.bin": issuers, "orphans.bin": orphans, "roster.json": roster, "checkpoints": notes} {
			put("chancery/"+name, b)
		}
		for name, b := range map[string][]byte{"evidence.bin": evidence, "openings.bin": openings} { // which need not be there
			if len(b) > 0 {
				put("chancery/"+name, b)
			}
		}
		put("chancery/export.json", fmt.Appendf(nil, `{"version":1,"complete":true,"origin":%q,"size":%d}`, origin, size))
		fo, err := folder.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer fo.Close()
		opt := check.Options{Signatures: true}
		if s, err := check.DecodeState(state); err == nil {
			opt.State = s
		}
		_, s, err := check.Run(fo, opt)
		var broken *check.Violation
		if errors.As(err, &broken) && broken.What == "" {
			t.Error("a violation without a word")
		}
		if err != nil {
			return
		}
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := check.DecodeState(b)
		if err != nil {
			t.Fatalf("its own state is refused: %v", err)
		}
		if _, _, err := check.Run(fo, check.Options{State: again}); err != nil {
			t.Fatalf("the next run: %v", err)
		}
	})
}

// seal makes a bundle of at most 256 entries with its tile and checkpoint.
func seal(t *testing.T, key ed25519.PrivateKey, entries []byte, put func(string, []byte)) (origin string, size int) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var leaves [][]byte
	for len(leaves) < 256 {
		entry, rest, ok := folder.Next(entries)
		if !ok {
			break
		}
		leaves, entries = append(leaves, bytes.Clone(entry)), rest
	}
	if len(leaves) == 0 {
		leaves = append(leaves, []byte{})
	}
	leaves[0] = genesis(leaves[0], spki)
	id := leaf.Digest("ledger", leaves[0])
	var rng []tlog.Hash
	var hashes, bundle []byte
	of := map[uint64]tlog.Hash{}
	for i, b := range leaves {
		if len(b) >= 71 {
			copy(b[7:], id[:])
		}
		var l leaf.Leaf
		if leaf.Decode(b, &l) == nil {
			if v := l.Get(leaf.TagIntentHash); v != nil { // points into b
				h := of[l.Closes]
				copy(v, h[:])
			}
		}
		h := tlog.RecordHash(b)
		of[uint64(i)] = h
		hashes = append(hashes, h[:]...)
		bundle = append(binary.BigEndian.AppendUint16(bundle, uint16(len(b))), b...)
		n := i
		for ; n&1 == 1; n >>= 1 {
			h = tlog.NodeHash(rng[len(rng)-1], h)
			rng = rng[:len(rng)-1]
		}
		rng = append(rng, h)
	}
	root := rng[len(rng)-1]
	for i := len(rng) - 2; i >= 0; i-- {
		root = tlog.NodeHash(rng[i], root)
	}
	name := "000"
	if len(leaves) < 256 {
		name = fmt.Sprintf("000.p/%d", len(leaves))
	} else {
		put("tile/1/000.p/1", root[:])
	}
	put("tile/entries/"+name, bundle)
	put("tile/0/"+name, hashes)
	origin = fmt.Sprintf("ca.example/ledger/%x", id[:8])
	body := fmt.Sprintf("%s\n%d\n%s\n", origin, len(leaves), base64.StdEncoding.EncodeToString(root[:]))
	keyID := sha256.Sum256(append([]byte(origin+"\n\x01"), key.Public().(ed25519.PublicKey)...))
	put("checkpoint", fmt.Appendf(nil, "%s\n— %s %s\n", body, origin, base64.StdEncoding.EncodeToString(append(keyID[:4:4], ed25519.Sign(key, []byte(body))...))))
	return origin, len(leaves)
}

// genesis is leaf 0 with a zero id: domain and key are set, the rest is kept as it was.
func genesis(b, spki []byte) []byte {
	var l leaf.Leaf
	out := append([]byte("CHL1\x00\x00\x01"), make([]byte, 32+16)...)
	out = append(out, 0, 0, 0, 0, 0, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255)
	fields := []leaf.Field{{Tag: leaf.TagDomain, Value: []byte("ca.example")}, {Tag: leaf.TagCheckpointKeys, Value: append([]byte{0, byte(len(spki))}, spki...)}}
	if leaf.Decode(b, &l) == nil {
		for _, f := range l.Fields {
			if f.Tag > leaf.TagCheckpointKeys {
				fields = append(fields, f)
			}
		}
	}
	for _, f := range fields {
		out = binary.BigEndian.AppendUint16(out, uint16(f.Tag))
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(f.Value))), f.Value...)
	}
	return out
}

// TestSmall verifies the committed export as it is, and goes on from its state.
func TestSmall(t *testing.T) {
	f, err := folder.Open("testdata/small")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, s, err := check.Run(f, check.Options{Signatures: true})
	if err != nil || r.Certificates != 4 || r.Revocations != 2 || r.CRLs != 1 || r.Grants != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(b) { // a state file cut anywhere
		if _, err := check.DecodeState(b[:n]); err == nil {
			t.Fatalf("a state of %d octets is accepted", n)
		}
	}
	again, err := check.DecodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	if next, _, err := check.Run(f, check.Options{State: again}); err != nil || next.From != r.Size || next.Root != r.Root {
		t.Errorf("%+v, %v", next, err)
	}
}
