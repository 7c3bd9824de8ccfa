package hsmstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"chancery/audit"
	"chancery/hsmstore"

	"github.com/miekg/pkcs11"
)

// softokn is the module of NSS: the second vendor of the tests.
var softokn = func() string {
	found, _ := filepath.Glob("/usr/lib/*/libsoftokn3.so")
	return append(found, "")[0]
}()

// newNSS makes an NSS database with a PIN, as a member.
func newNSS(t testing.TB, c *cluster, name string) hsmstore.MemberConfig {
	t.Helper()
	if softokn == "" {
		t.Skip("NSS softokn is not installed: apt-get install libnss3")
	}
	dir := filepath.Join(c.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	reserved := "configdir='sql:" + dir + "' certPrefix='' keyPrefix='' secmod='secmod.db' tokenDescription='" + name + "' dbTokenDescription='" + name + "' cryptoTokenDescription='crypto-" + name + "'"
	const pin = "nss-pin-1234"
	p := pkcs11.New(softokn)
	b := append([]byte(reserved), 0)
	var pins runtime.Pinner
	pins.Pin(&b[0])
	defer pins.Unpin()
	must(p.Initialize(pkcs11.InitializeWithReserved(unsafe.Pointer(&b[0]))))
	slots, err := p.GetSlotList(true)
	must(err)
	for _, s := range slots {
		info, err := p.GetTokenInfo(s)
		must(err)
		t.Logf("slot %d: %q serial %q flags %#x", s, info.Label, info.SerialNumber, info.Flags)
		if info.Label != name {
			continue
		}
		session, err := p.OpenSession(s, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		must(err)
		must(p.Login(session, pkcs11.CKU_SO, ""))
		must(p.InitPIN(session, pin))
	}
	must(p.Finalize())
	p.Destroy()
	return hsmstore.MemberConfig{Name: name, Module: softokn, Reserved: reserved, TokenLabel: name, JournalPath: filepath.Join(c.dir, name+".journal"),
		PIN: func() (string, error) { return pin, nil }, WeakUnwrap: true}
}

// Keys get from SoftHSM into another vendor's module and sign there. NSS ignores unwrap
// templates, which the throw-away key finds out: it joins only if that was accepted.
func TestSecondVendor(t *testing.T) {
	c := newCluster(t)
	nss := newNSS(t, c, "nss")
	spec := hsmstore.KeySpec{Name: "sealing", Purpose: audit.PurposeSecret, Algorithm: "AES-256"}
	sealing, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec)
	must(err)
	secret, err := sealing.Secret(t.Context(), "x", "test")
	must(err)
	strict := nss
	strict.WeakUnwrap = false
	strict.SOPIN = func() (string, error) { return "", nil }
	cand, err := c.store.Inspect(t.Context(), strict)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.store.AddMember(t.Context(), granting(cand.Acts...), strict, nil); err == nil {
		t.Fatal("a module without unwrap templates joined unasked")
	} else {
		t.Logf("refused: %v", err)
	}
	c.join(t, nss)
	for _, m := range []string{"m1", "m2"} {
		if err := c.store.Drain(t.Context(), m, "test", true); err != nil {
			t.Fatal(err)
		}
	}
	if again, err := sealing.Secret(t.Context(), "x", "test"); err != nil || again != secret {
		t.Errorf("another secret in NSS: %v", err)
	}
	for name, req := range map[string]hsmstore.SignRequest{"issuing": issue(t, nil), "document": {Op: audit.OpCMS, Message: attributes(oidData, 32)}} {
		k := c.key(t, name)
		req.Requester = "test"
		if err := once(t.Context(), k, req); err != nil {
			t.Errorf("key %s in NSS alone: %v", name, err)
		}
		if _, err := c.store.SignOn(t.Context(), k, "nss", 5, checkpoint(c.ledger.Origin(), 1, 1)); !errors.Is(err, hsmstore.ErrRefused) {
			t.Errorf("key %s in NSS signed a checkpoint: %v", name, err)
		}
	}
}
