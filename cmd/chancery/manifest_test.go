package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestManifestFiles(t *testing.T) {
	dir := t.TempDir()
	for i, at := range []string{"20261124T000000Z", "20261125T000000Z"} {
		b := backedUp{Name: "far-" + at + "-0000000" + string(rune('0'+i)), Manifest: []byte("{}"), Proof: []byte("p")}
		if _, err := b.save(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []string{"far-away-20261125T000000Z-00000000.manifest.json", "far-x.manifest.json", "notes"} {
		if err := os.WriteFile(filepath.Join(dir, other), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := manifestsOf(dir, "far")
	if err != nil || len(list) != 2 || !strings.Contains(list[0], "20261124") {
		t.Fatalf("%v %v", list, err)
	}
	if st, err := os.Stat(list[0]); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if _, err := os.Stat(strings.TrimSuffix(list[0], manifestEnding) + proofEnding); err != nil {
		t.Error(err)
	}
	// The name comes from a server: it stays in the folder.
	for _, name := range []string{"../far", "a/b", ".hidden", ""} {
		if _, err := (backedUp{Name: name}).save(dir); err == nil {
			t.Errorf("wrote a manifest called %q", name)
		}
	}
	for _, path := range []string{filepath.Join(dir, "notes"), list[0]} {
		if _, err := readManifest(path); err == nil {
			t.Errorf("read %s", path)
		}
	}
}

func FuzzOpenManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"ledger":"00","genesis":"","roster":{"officers":[],"quorum":2},"keys":[],"issuers":[]}`), []byte("c2sp.org/tlog-proof@v1\nextra \nindex 0\n\n"))
	f.Add([]byte(`{"version":2}`), []byte{})
	f.Fuzz(func(t *testing.T, text, proof []byte) {
		if _, err := openManifest(text, proof); err == nil {
			t.Error("a manifest that no ledger recorded was opened")
		}
	})
}

func FuzzTypedManifest(f *testing.F) {
	f.Add("00112233445566778899aabbccddeeff", "issuing", "issuer", "P-256", []byte{0x30}, 2, []byte{1})
	f.Fuzz(func(t *testing.T, id, name, purpose, algorithm string, spki []byte, way int, blob []byte) {
		m := &openedManifest{}
		m.manifest.Keys = []manifestKey{{ID: id, Name: name, Purpose: purpose, Algorithm: algorithm, SPKI: spki, Way: way, Blob: blob}}
		m.manifest.Issuers = []manifestIssuer{{Name: name, Key: name, Parent: name, Certificate: spki, CRL: blob}}
		if m.typed() == nil {
			t.Error("an issuer without a certificate was taken")
		}
	})
}
