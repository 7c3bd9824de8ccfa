package hsmstore_test

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/ocsp"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

// opensslCMAC is AES-256-CMAC by the openssl command.
func opensslCMAC(t *testing.T, key, message []byte) []byte {
	t.Helper()
	cmd := exec.Command("openssl", "mac", "-cipher", fmt.Sprintf("AES-%d-CBC", 8*len(key)), "-macopt", "hexkey:"+hex.EncodeToString(key), "-in", "-", "CMAC")
	cmd.Stdin = strings.NewReader(string(message))
	out, err := cmd.Output()
	must(err)
	b, err := hex.DecodeString(strings.TrimSpace(string(out)))
	must(err)
	return b
}

// importAES brings an AES key in whose value the test knows.
func (c *cluster) importAES(t *testing.T, name, mechanism string, value []byte) (*hsmstore.Key, error) {
	t.Helper()
	i := c.importing(t)
	defer i.Close()
	spec := hsmstore.ImportSpec{Name: name, Purpose: audit.PurposeSecret, Algorithm: "AES-256", Mechanism: mechanism,
		SPKI: hsmstore.CheckInfo([16]byte(opensslCMAC(t, value, []byte("chancery/key-check/v1\n")))), Blob: wrapOctets(t, i, mechanism, value)}
	return i.Finish(t.Context(), granting(spec.Act()), spec)
}

// An AES-256 key lives like the others: it is born, copied, backed up, proved, checked,
// repaired, disabled and destroyed; and secrets come from it, the same on every member.
func TestSecretKey(t *testing.T) {
	c, tokens := withBackups(t, "far")
	ctx := t.Context()
	rec := c.designate(t, tokens["far"])
	spec := hsmstore.KeySpec{Name: "sealing", Purpose: audit.PurposeSecret, Algorithm: "AES-256"}
	k, err := c.store.GenerateKey(ctx, granting(spec.Act()), spec)
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Members()) != 2 || k.State() != hsmstore.KeyUsable {
		t.Fatalf("it is %s on %v", k.State(), k.Members())
	}
	backed, err := c.store.BackupKeys(ctx, "far")
	must(err)
	checks, err := hsmstore.Rehearse(ctx, tokens["far"], rec, c.ledger.ID(), backed)
	if err != nil || len(checks) != 1 || !checks[0].OK || checks[0].Key != "sealing" {
		t.Errorf("rehearsal: %+v %v", checks, err)
	}
	attributes, err := c.store.Attributes(ctx, "sealing")
	must(err)
	for _, a := range attributes {
		if len(a.Objects) != 1 || a.Objects[0].Class != "secret-key" || a.Objects[0].KeyType != "AES" || !slices.Contains(a.Objects[0].Attributes, "WRAP_WITH_TRUSTED=true") {
			t.Errorf("%+v", a)
		}
	}
	// One label, one secret, whoever makes it; each half is on the ledger.
	before := c.db.size()
	a, err := k.Secret(ctx, "nonces/1", "test")
	must(err)
	leaves := map[audit.Kind]int{}
	for i := before; i < c.db.size(); i++ {
		if l := c.db.leaf(i); l.Op == audit.OpSecret {
			leaves[l.Kind]++
		}
	}
	if leaves[audit.KindIntent] != 2 || leaves[audit.KindDone] != 2 {
		t.Errorf("leaves %v", leaves)
	}
	seen := map[[32]byte]bool{a: true}
	for _, label := range []string{"nonces/2", "nonces"} {
		s, err := k.Secret(ctx, label, "test")
		if err != nil || seen[s] {
			t.Errorf("%s: %x %v", label, s, err)
		}
		seen[s] = true
	}
	for _, m := range []string{"m1", "m2"} {
		for half := range 2 {
			mac, err := c.store.SignOn(ctx, k, m, 7, hsmstore.SecretText("nonces/1", half+1))
			if err != nil || string(mac[:16]) != string(a[16*half:16*half+16]) {
				t.Errorf("half %d on %s: %x %v", half, m, mac, err)
			}
		}
	}
	// It signs nothing else, and no other key gives secrets.
	if _, err := k.Begin(ctx, hsmstore.SignRequest{Op: audit.OpOCSP, Message: responseData(t, ocsp.Good)}); !errors.Is(err, hsmstore.ErrRefused) {
		t.Errorf("it signs OCSP answers: %v", err)
	}
	if _, err := c.store.SignOn(ctx, k, "m1", 7, responseData(t, ocsp.Good)); !errors.Is(err, hsmstore.ErrRefused) {
		t.Errorf("its worker signs OCSP answers: %v", err)
	}
	if _, err := c.key(t, "ocsp").Secret(ctx, "x", "test"); !errors.Is(err, hsmstore.ErrRefused) {
		t.Errorf("an OCSP key gives secrets: %v", err)
	}
	for _, label := range []string{"", "A", "x\n2", strings.Repeat("x", 101)} {
		if _, err := k.Secret(ctx, label, "test"); !errors.Is(err, hsmstore.ErrRefused) {
			t.Errorf("label %q: %v", label, err)
		}
	}
	for _, bad := range []hsmstore.KeySpec{{Name: "x", Purpose: audit.PurposeSecret, Algorithm: "P-256"}, {Name: "x", Purpose: audit.PurposeOCSP, Algorithm: "AES-256"}} {
		if _, err := c.store.GenerateKey(ctx, granting(bad.Act()), bad); err == nil {
			t.Errorf("%s key of %s", bad.Algorithm, bad.Purpose)
		}
	}
	// With the PIN alone it neither encrypts nor wraps, nor does it leave.
	inToken(t, c.members[0], func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		h := findLabel(p, session, pkcs11.CKO_SECRET_KEY, "chancery:secret:sealing")
		iv := make([]byte, 16)
		if err := p.EncryptInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_CBC, iv)}, h); err == nil {
			t.Error("it encrypts")
		}
		if _, err := p.WrapKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(0x210A, nil)}, h, h); err == nil {
			t.Error("it wraps")
		}
		if err := p.SetAttributeValue(session, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true)}); err == nil {
			t.Error("it can be changed")
		}
		if as, err := p.GetAttributeValue(session, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)}); err == nil && len(as[0].Value) > 0 {
			t.Error("its value is shown")
		}
		own, err := p.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
			pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_WRAP, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true)})
		must(err)
		if _, err := p.WrapKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(0x210A, nil)}, own, h); err == nil {
			t.Error("it leaves under a key that is not trusted")
		}
	})
	if found := c.verify(t); found != nil {
		t.Errorf("findings %v", found)
	}
	// Lost on a member: found, repaired from the other.
	destroyObjects(t, c.members[1], pkcs11.CKO_SECRET_KEY, "chancery:secret:sealing")
	if found := c.verify(t); !slices.Equal(found, []string{"absent/sealing/m2"}) {
		t.Errorf("findings %v", found)
	}
	must(c.store.Repair(ctx, granting(admin.RepairKeyAct("sealing", "m2")), "sealing", "m2"))
	// Exchanged by somebody with the PIN: its check value tells.
	destroyObjects(t, c.members[1], pkcs11.CKO_SECRET_KEY, "chancery:secret:sealing")
	plantSecret(t, c.members[1], attributes[0].Objects[0].CKAID, "chancery:secret:sealing")
	if found := c.verify(t); !slices.Equal(found, []string{"unproved/sealing/m2"}) {
		t.Errorf("findings %v", found)
	}
	for range 8 {
		if again, err := k.Secret(ctx, "nonces/1", "test"); err != nil || again != a {
			t.Fatalf("another secret: %v", err)
		}
	}
	must(c.store.Repair(ctx, granting(admin.RepairKeyAct("sealing", "m2")), "sealing", "m2"))
	if found := c.verify(t); found != nil {
		t.Errorf("findings %v", found)
	}
	// A member that joins gets it.
	m3 := c.newToken(t, "m3")
	c.join(t, m3)
	if mac, err := c.store.SignOn(ctx, k, "m3", 7, hsmstore.SecretText("nonces/1", 1)); err != nil || string(mac[:16]) != string(a[:16]) {
		t.Errorf("on m3: %x %v", mac, err)
	}
	// Out of use, and gone.
	must(c.store.Disable(ctx, "sealing", "test"))
	if _, err := k.Secret(ctx, "nonces/1", "test"); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("disabled: %v", err)
	}
	must(c.store.Enable(ctx, "sealing", "test"))
	report, err := c.store.Destroy(ctx, granting(admin.DestroyKeyAct("sealing", k.SPKIHash())), "sealing")
	if err != nil || !slices.Equal(report.Backups, []string{"far"}) || len(report.Copies) != 3 {
		t.Errorf("destroyed: %+v %v", report, err)
	}
	inToken(t, m3, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		if h := findLabel(p, session, pkcs11.CKO_SECRET_KEY, "chancery:secret:sealing"); h != 0 {
			t.Error("a copy is left on m3")
		}
	})
}

// An AES key comes in wrapped by openssl, and its secrets are what openssl computes.
func TestImportSecretKey(t *testing.T) {
	c := newCluster(t)
	for _, name := range []string{"one", "two"} {
		value := make([]byte, 32)
		rand.Read(value)
		k, err := c.importAES(t, name, hsmstore.ImportRSAAES, value)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := k.Secret(t.Context(), "x", "test")
		want := append(opensslCMAC(t, value, hsmstore.SecretText("x", 1)), opensslCMAC(t, value, hsmstore.SecretText("x", 2))...)
		if err != nil || string(got[:]) != string(want) {
			t.Errorf("%s: secret %x, openssl says %x: %v", name, got, want, err)
		}
		if len(k.Members()) != 2 {
			t.Errorf("%s is on %v", name, k.Members())
		}
	}
	// Not the key of its check value; too short.
	i := c.importing(t)
	value := make([]byte, 32)
	spec := hsmstore.ImportSpec{Name: "other", Purpose: audit.PurposeSecret, Algorithm: "AES-256", Mechanism: hsmstore.ImportRSAAES, SPKI: hsmstore.CheckInfo([16]byte{1}), Blob: wrapOctets(t, i, hsmstore.ImportRSAAES, value)}
	if _, err := i.Finish(t.Context(), granting(spec.Act()), spec); !errors.Is(err, hsmstore.ErrImport) {
		t.Errorf("a key of another check value: %v", err)
	}
	i.Close()
	for _, mechanism := range []string{hsmstore.ImportRSAAES, hsmstore.ImportRSAOAEP} {
		if _, err := c.importAES(t, "short", mechanism, value[:16]); err == nil {
			t.Errorf("AES-128 came in by %s", mechanism)
		}
	}
	inToken(t, c.members[0], func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		for _, name := range []string{"other", "short"} {
			if findLabel(p, session, pkcs11.CKO_SECRET_KEY, "chancery:secret:"+name) != 0 {
				t.Errorf("%s is left on the token", name)
			}
		}
	})
}

// plantSecret makes an AES key of that CKA_ID and label, as somebody with the PIN could.
func plantSecret(t *testing.T, m hsmstore.MemberConfig, ckaID, label string) {
	t.Helper()
	id, err := hex.DecodeString(ckaID)
	must(err)
	inToken(t, m, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		var template []*pkcs11.Attribute
		for a, v := range map[uint]bool{pkcs11.CKA_TOKEN: true, pkcs11.CKA_PRIVATE: true, pkcs11.CKA_SENSITIVE: true, pkcs11.CKA_EXTRACTABLE: true, pkcs11.CKA_WRAP_WITH_TRUSTED: true, pkcs11.CKA_SIGN: true,
			pkcs11.CKA_DECRYPT: false, pkcs11.CKA_ENCRYPT: false, pkcs11.CKA_WRAP: false, pkcs11.CKA_UNWRAP: false, pkcs11.CKA_DERIVE: false} {
			template = append(template, pkcs11.NewAttribute(a, v))
		}
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, id), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false))
		_, err := p.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, template)
		must(err)
	})
}

// findLabel is the object of a class and label, or 0.
func findLabel(p *pkcs11.Ctx, session pkcs11.SessionHandle, class uint, label string) pkcs11.ObjectHandle {
	must(p.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}))
	hs, _, err := p.FindObjects(session, 2)
	must(err)
	must(p.FindObjectsFinal(session))
	if len(hs) == 0 {
		return 0
	}
	return hs[0]
}
