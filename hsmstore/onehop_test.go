package hsmstore_test

import (
	"strings"
	"testing"

	"chancery/audit"
	"chancery/hsmstore"
	"chancery/test/hsmfault"
)

// Where both ends have RSA_AES_KEY_WRAP, keys are copied by one hop: at birth, and to a
// member that joins. Where one end lacks it, the other way is taken. Debian's SoftHSM
// lacks it; the module of test/hsmfault puts it together from what SoftHSM has.
func TestOneHop(t *testing.T) {
	c := copyCluster(t)
	module := hsmfault.Build(t)
	put := func(m hsmstore.MemberConfig, oneHop bool) hsmstore.MemberConfig {
		ctl := hsmfault.New(t, t.TempDir()+"/control")
		ctl.Delegate(m.Module)
		ctl.SetOneHop(oneHop)
		m.Module, m.Env = module, append(m.Env, ctl.Env()...)
		return m
	}
	m3, m4 := put(c.newToken(t, "m3"), true), put(c.newToken(t, "m4"), false)
	for i := range c.members {
		c.members[i] = put(c.members[i], true)
	}
	stop, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	before := c.db.size()
	for _, spec := range []hsmstore.KeySpec{{Name: "ec", Purpose: audit.PurposeDocument, Algorithm: "P-384"}, {Name: "rsa", Purpose: audit.PurposeDocument, Algorithm: "RSA-3072"}, {Name: "aes", Purpose: audit.PurposeSecret, Algorithm: "AES-256"}} {
		if _, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec); err != nil {
			t.Fatalf("%v\n%s", err, c.log)
		}
	}
	c.join(t, m3)
	c.join(t, m4)
	ways := map[string]map[string]int{}
	for i := before; i < c.db.size(); i++ {
		l := c.db.leaf(i)
		if l.Op != audit.OpKeyReplicate {
			continue
		}
		member, _ := l.Get(audit.TagMember)
		mechanism, _ := l.Get(audit.TagMechanism)
		if ways[string(member)] == nil {
			ways[string(member)] = map[string]int{}
		}
		way, _, _ := strings.Cut(string(mechanism), ",")
		ways[string(member)][way]++
	}
	n := len(allSpecs) + 3
	if ways["m2"]["one hop"] != 3 || ways["m3"]["one hop"] != n || ways["m4"]["reverse-KEK"] != n {
		t.Errorf("copied by: %v", ways)
	}
	for _, m := range []string{"m2", "m3", "m4"} {
		for _, key := range []string{"ec", "rsa", "issuing", "aes"} {
			message := attributes(oidData, 32)
			if key == "issuing" {
				message = tbs(t, "Issuing CA", newSerial())
			}
			if key == "aes" {
				message = hsmstore.SecretText("x", 1)
			}
			if _, err := c.store.SignOn(t.Context(), c.key(t, key), m, 7, message); err != nil {
				t.Errorf("key %s on %s: %v", key, m, err)
			}
		}
	}
}
