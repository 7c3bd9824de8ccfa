package hsmfault_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/test/hsmfault"

	"github.com/miekg/pkcs11"
)

const pin = "1234"

// TestMain lets the test binary be a second user of a token; see [token.other].
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "other-process" {
		if err := otherProcess(os.Args[2], os.Args[3]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// token is a SoftHSM token behind the module, with a session that is logged in.
type token struct {
	*pkcs11.Ctx
	ctl  *hsmfault.Control
	lib  string
	env  []string
	slot uint
	s    pkcs11.SessionHandle
}

func newToken(t testing.TB) *token {
	t.Helper()
	lib := hsmfault.Build(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	must(t, os.Mkdir(filepath.Join(dir, "tokens"), 0o700))
	must(t, os.WriteFile(conf, []byte("directories.tokendir = "+filepath.Join(dir, "tokens")+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600))
	k := &token{lib: lib, ctl: hsmfault.New(t, filepath.Join(dir, "control"))}
	k.env = append(k.ctl.Env(), "SOFTHSM2_CONF="+conf)
	for _, e := range k.env {
		name, value, _ := strings.Cut(e, "=")
		t.Setenv(name, value)
	}
	k.Ctx = load(t, lib)
	slots, err := k.GetSlotList(true)
	if err != nil || len(slots) == 0 {
		t.Fatal(slots, err)
	}
	must(t, k.InitToken(slots[0], pin, "fault"))
	k.slot = k.find(t)
	k.s = k.open(t)
	must(t, k.Login(k.s, pkcs11.CKU_SO, pin))
	must(t, k.InitPIN(k.s, pin))
	must(t, k.Logout(k.s))
	must(t, k.Login(k.s, pkcs11.CKU_USER, pin))
	k.ctl.ResetCounts()
	return k
}

func load(t testing.TB, lib string) *pkcs11.Ctx {
	t.Helper()
	m := pkcs11.New(lib)
	if m == nil {
		t.Fatal("the module does not load; is SoftHSM installed?")
	}
	t.Cleanup(m.Destroy)
	must(t, m.Initialize())
	t.Cleanup(func() { _ = m.Finalize() })
	return m
}

// find returns the slot of the initialised token.
func (k *token) find(t testing.TB) uint {
	t.Helper()
	slots, err := k.GetSlotList(true)
	must(t, err)
	for _, s := range slots {
		if info, err := k.GetTokenInfo(s); err == nil && info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			return s
		}
	}
	t.Fatal("no initialised token")
	return 0
}

func (k *token) open(t testing.TB) pkcs11.SessionHandle {
	t.Helper()
	s, err := k.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(t, err)
	return s
}

// key is an ECDSA P-256 pair.
type key struct {
	id        string
	pub, priv pkcs11.ObjectHandle
	public    *ecdsa.PublicKey
}

func pair(id string, extractable bool) (public, private []*pkcs11.Attribute) {
	public = []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)),
		pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7})}
	private = []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, extractable), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id))}
	return
}

func mechanism(m uint) []*pkcs11.Mechanism { return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, nil)} }

func (k *token) generate(t testing.TB, id string) key {
	t.Helper()
	public, private := pair(id, true)
	pub, priv, err := k.GenerateKeyPair(k.s, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN), public, private)
	must(t, err)
	return key{id: id, pub: pub, priv: priv}
}

// signer is a key whose public half is known, made before any fault is set.
func (k *token) signer(t testing.TB, id string) key {
	t.Helper()
	p := k.generate(t, id)
	as, err := k.GetAttributeValue(k.s, p.pub, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, nil)})
	must(t, err)
	var point []byte
	if _, err := asn1.Unmarshal(as[0].Value, &point); err != nil {
		t.Fatal(err)
	}
	if p.public, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point); err != nil {
		t.Fatal(err)
	}
	return p
}

// sign signs a digest in the session of the token.
func (k *token) sign(p key, digest []byte) ([]byte, error) { return k.signIn(k.s, p.priv, digest) }

func (k *token) signIn(s pkcs11.SessionHandle, priv pkcs11.ObjectHandle, digest []byte) ([]byte, error) {
	if err := k.SignInit(s, mechanism(pkcs11.CKM_ECDSA), priv); err != nil {
		return nil, fmt.Errorf("C_SignInit: %w", err)
	}
	sig, err := k.Sign(s, digest)
	if err != nil {
		return nil, fmt.Errorf("C_Sign: %w", err)
	}
	return sig, nil
}

func (p key) verify(digest, sig []byte) bool {
	if len(sig) != 64 {
		return false
	}
	return ecdsa.Verify(p.public, digest, new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
}

// good demands one valid signature: the token works.
func (k *token) good(t testing.TB, p key) {
	t.Helper()
	d := digest(t.Name())
	if sig, err := k.sign(p, d); err != nil || !p.verify(d, sig) {
		t.Fatalf("signature %x: %v", sig, err)
	}
}

func (k *token) search(t testing.TB, s pkcs11.SessionHandle, id string) []pkcs11.ObjectHandle {
	t.Helper()
	must(t, k.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id))}))
	found, _, err := k.FindObjects(s, 10)
	must(t, err)
	must(t, k.FindObjectsFinal(s))
	return found
}

// other starts a second process that logs in to the token and then either signs once
// with the key id, or holds a session open until its standard input ends.
func (k *token) other(t testing.TB, job, id string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	c := exec.CommandContext(t.Context(), self, "other-process", job, id)
	c.Env = append(os.Environ(), append(k.env, "HSMFAULT_LIB="+k.lib)...)
	return c
}

func otherProcess(job, id string) error {
	m := pkcs11.New(os.Getenv("HSMFAULT_LIB"))
	if m == nil {
		return errors.New("the module does not load")
	}
	if err := m.Initialize(); err != nil {
		return err
	}
	slots, err := m.GetSlotList(true)
	if err != nil {
		return err
	}
	s, err := m.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return err
	}
	if job == "hold" {
		fmt.Println("open")
		_, err := os.Stdin.Read(make([]byte, 1))
		return err
	}
	if err := m.Login(s, pkcs11.CKU_USER, pin); err != nil {
		return err
	}
	if err := m.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)), pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}); err != nil {
		return err
	}
	found, _, err := m.FindObjects(s, 1)
	if err != nil {
		return err
	}
	if err := m.FindObjectsFinal(s); err != nil {
		return err
	}
	if len(found) == 0 {
		return errors.New("no such key")
	}
	if err := m.SignInit(s, mechanism(pkcs11.CKM_ECDSA), found[0]); err != nil {
		return err
	}
	_, err = m.Sign(s, bytes.Repeat([]byte{1}, 32))
	return err
}

func digest(text string) []byte {
	d := sha256.Sum256([]byte(text))
	return d[:]
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wants demands this return value of PKCS#11.
func wants(t testing.TB, err error, rv uint) {
	t.Helper()
	var got pkcs11.Error
	if !errors.As(err, &got) || got != pkcs11.Error(rv) {
		t.Errorf("got %v, want %v", err, pkcs11.Error(rv))
	}
}
