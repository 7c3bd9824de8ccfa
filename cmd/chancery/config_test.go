package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/audit"
)

// The example that the package installs is a configuration that this program takes.
func TestExampleConfig(t *testing.T) {
	c, err := loadChecked("../../deploy/chancery.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.production(); err != nil {
		t.Error(err)
	}
	m, err := c.members()
	if err != nil || len(m) != 1 || m[0].Name != "alpha" || m[0].TokenLabel != "ca-alpha" || m[0].Module == "" {
		t.Errorf("members: %+v, %v", m, err)
	}
	// With what it shows in comments, too.
	b, err := os.ReadFile("../../deploy/chancery.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("# metrics:", "metrics:", "# so_pin:", "so_pin:", "# resolvers:", "resolvers:", "# allow_networks:", "allow_networks:").Replace(string(b))
	c, err = parseConfig("example", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.check(); err != nil || c.Listen.Metrics == "" || len(c.ACME.Validation.Resolvers) != 1 || c.HSM.Members[0].SOPIN == "" {
		t.Errorf("with comments: %+v, %v", c, err)
	}
}

func TestRetainPersonal(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{"": audit.DefaultRetain, "7y": 7 * 365 * day, "90d": 90 * day, "36h": 36 * time.Hour, "100y": 36500 * day,
		"0d": 0, "101y": 0, "y": 0, "7": 0, "1.5y": 0, "-7d": 0, "10m": 0, "7 y": 0, "99999999999999d": 0, "7Y": 0} {
		c := LedgerConfig{RetainPersonal: text}
		if got, err := c.retain(); got != want || (err != nil) != (want == 0) || err != nil && !strings.Contains(err.Error(), "ledger.retain_personal") {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestAnchors(t *testing.T) {
	for _, x := range []struct {
		anchors []string
		file    string
		logs    int
		wrong   string // what the error names
	}{
		{nil, "", 0, ""},
		{[]string{"file:/a"}, "/a", 0, ""},
		{[]string{"syslog:unix:/dev/log", "file:/a", "syslog:tcp:[::1]:514"}, "/a", 2, ""},
		{[]string{"file:/a", "file:/b"}, "", 0, "ledger.anchors[1]: one file"},
		{[]string{"file:"}, "", 0, "ledger.anchors[0]"},
		{[]string{"file:/a", "/b"}, "", 0, "ledger.anchors[1]"},
		{[]string{"syslog:udp:host"}, "", 0, "ledger.anchors[0]"},
	} {
		c := Config{Ledger: LedgerConfig{Anchors: x.anchors}}
		file, logs, err := c.anchors()
		if (err != nil) != (x.wrong != "") || err != nil && !strings.Contains(err.Error(), x.wrong) || file != x.file || len(logs) != x.logs {
			t.Errorf("%q: %q, %d log systems, %v", x.anchors, file, len(logs), err)
		}
	}
}

// P5: no server runs that could read a SO PIN, wherever it stands.
func TestServeRefusesAReadableSOPIN(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "so"), []byte("so-pin-of-alpha\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	t.Setenv("CHANCERY_TEST_SO", "so-pin-of-alpha")
	for source, refused := range map[string]bool{
		"": false, "shares:": false, "device": false,
		"file:" + dir + "/so": true, "file:" + dir + "/none": false,
		"credential:so": true, "credential:none": false,
		"env:CHANCERY_TEST_SO": true, "env:CHANCERY_TEST_NONE": false,
	} {
		var c Config
		c.HSM.Members = []MemberConfig{{Name: "alpha", SOPIN: source}}
		err := c.production()
		if (err != nil) != refused {
			t.Errorf("so_pin %q: %v", source, err)
		}
		if err != nil && (code(err) != exitConfig || !strings.Contains(err.Error(), "hsm.members[0] (alpha)") || strings.Contains(err.Error(), "so-pin-of-alpha")) {
			t.Errorf("so_pin %q: code %d, %v", source, code(err), err)
		}
	}
}

// A SO PIN is one of three things.
func TestSOPINSources(t *testing.T) {
	for source, want := range map[string]string{"shares:": "shares", "device": "device", "file:/none": "file", "": "", "device:": "refused", "devise": "refused"} {
		var c Config
		c.HSM.Members = []MemberConfig{{Name: "alpha", Module: "/m.so", Token: "t", PIN: "file:/none", SOPIN: source}}
		list, err := c.members()
		got := "refused"
		switch {
		case err != nil:
			if !strings.Contains(err.Error(), "hsm.members[0] (alpha): so_pin") || !strings.Contains(err.Error(), "device, opened by the vendor's own quorum") {
				t.Errorf("so_pin %q: %v", source, err)
			}
		case list[0].SplitSO:
			got = "shares"
		case list[0].DeviceSO:
			got = "device"
		case list[0].SOPIN != nil:
			got = "file"
		default:
			got = ""
		}
		if got != want {
			t.Errorf("so_pin %q is %q", source, got)
		}
	}
}

func TestOverlayMergesMapsAndReplacesTheRest(t *testing.T) {
	base := map[string]any{"a": map[string]any{"x": 1, "y": []any{1, 2}}, "b": "old"}
	got := merge(base, map[string]any{"a": map[string]any{"y": []any{3}, "z": 4}, "b": "new"})
	a := got["a"].(map[string]any)
	if a["x"] != 1 || len(a["y"].([]any)) != 1 || a["z"] != 4 || got["b"] != "new" {
		t.Errorf("merged: %v", got)
	}
	if base["b"] != "old" {
		t.Error("the base was changed")
	}
}
