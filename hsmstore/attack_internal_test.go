package hsmstore

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// The attacks on replication, each with all that an attacker with the user PINs of
// both tokens and every blob of a ceremony has. All of them have worked against a
// weaker form of the flow; here each must fail, for ever.

type stage struct {
	source, target *token
	pins           map[*token]string
	soPINs         map[*token]string
	key            keyObject
}

// newStage makes two tokens in this process, with a replicable key on the first.
func newStage(t *testing.T, algorithm string) *stage {
	t.Helper()
	cfg, err := WriteSoftHSMConf(t.TempDir(), "m")
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"source", "target"} {
		if err := InitToken(t.Context(), cfg, label); err != nil {
			t.Fatal(err)
		}
	}
	k, v, _ := strings.Cut(cfg.Env[0], "=")
	t.Setenv(k, v)
	pin, err := cfg.PIN()
	check(t, err)
	soPIN, err := cfg.SOPIN()
	check(t, err)
	s := &stage{pins: map[*token]string{}, soPINs: map[*token]string{}}
	s.key = keyObject{Name: "ca", Purpose: audit.PurposeIssuer, Algorithm: algorithm, Subject: []byte{0x30, 0}, Replicable: true}
	s.key.Act = admin.GenerateKeyAct(s.key.Name, s.key.Purpose.String(), s.key.Algorithm, s.key.Subject)
	rand.Read(s.key.ID[:])
	ctx, err := crypto11.Configure(&crypto11.Config{Path: cfg.Module, TokenLabel: "source", Pin: pin, MaxSessions: 4})
	check(t, err)
	born, err := (&ceremony{}).bearWith(ctx, s.key)
	check(t, err)
	s.key.SPKI = born.SPKI
	check(t, ctx.Close())

	m := pkcs11.New(cfg.Module)
	check(t, m.Initialize())
	t.Cleanup(func() { m.Finalize(); m.Destroy() })
	open := func(label string) *token {
		slot, _, err := slotOf(m, label, "")
		check(t, err)
		session, err := m.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		check(t, err)
		tok := &token{m: m, session: session, slot: slot, user: noUser}
		s.pins[tok], s.soPINs[tok] = pin, soPIN
		return tok
	}
	s.source, s.target = open("source"), open("target")
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *stage) user(t *testing.T, tok *token) {
	t.Helper()
	check(t, tok.login(pkcs11.CKU_USER, s.pins[tok]))
}
func (s *stage) so(t *testing.T, tok *token) {
	t.Helper()
	check(t, tok.login(pkcs11.CKU_SO, s.soPINs[tok]))
}

// refused demands that a module said no.
func refused(t *testing.T, what string, err error, want ...pkcs11.Error) {
	t.Helper()
	if err == nil {
		t.Errorf("ATTACK WORKED: %s", what)
		return
	}
	for _, w := range want {
		if err == w {
			return
		}
	}
	if len(want) > 0 {
		t.Errorf("%s: refused with %v, expected %v", what, err, want)
	}
}

func weakPrivate(typ uint, change ...*pkcs11.Attribute) []*pkcs11.Attribute {
	base := []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_KEY_TYPE, typ), attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true), attr(pkcs11.CKA_EXTRACTABLE, true),
		attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_DERIVE, false)}
	for _, c := range change {
		for i := range base {
			if base[i].Type == c.Type {
				if base[i] = c; c.Value == nil {
					base = append(base[:i], base[i+1:]...)
				}
				break
			}
		}
	}
	return base
}

func TestExtractionAttacks(t *testing.T) {
	for _, algorithm := range []string{"P-256", "P-384", "RSA-2048"} {
		t.Run(algorithm, func(t *testing.T) { extractionAttacks(t, newStage(t, algorithm)) })
	}
}

func extractionAttacks(t *testing.T, s *stage) {
	pub, err := x509.ParsePKIXPublicKey(s.key.SPKI)
	check(t, err)
	typ := keyTypeOf(pub)
	aes := []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true)}
	src, dst := s.source, s.target

	// The ceremony, step by step, as the two processes do it; the attacker looks in
	// after each step.
	s.so(t, src)
	transport, modulus, err := src.newTransport(3072)
	check(t, err)
	s.so(t, dst)
	imported, err := dst.importTransport(modulus)
	check(t, err)
	s.user(t, dst)
	kek, kekBlob, err := dst.newKEK(imported, typ, false)
	check(t, err)

	// 1. The KEK at the target cannot become a decryption oracle, and shows nothing.
	for _, a := range []*pkcs11.Attribute{attr(pkcs11.CKA_DECRYPT, true), attr(pkcs11.CKA_ENCRYPT, true), attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false), attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_MODIFIABLE, true)} {
		refused(t, "changing the KEK", dst.m.SetAttributeValue(dst.session, kek, []*pkcs11.Attribute{a}))
		_, err := dst.m.CopyObject(dst.session, kek, []*pkcs11.Attribute{a})
		refused(t, "copying the KEK weaker", err)
	}
	if err := dst.m.DecryptInit(dst.session, mechanism(pkcs11.CKM_AES_ECB, nil), kek); err == nil {
		_, err = dst.m.Decrypt(dst.session, make([]byte, 16))
		refused(t, "AES-ECB decryption with the KEK", err)
	}
	_, err = dst.m.GetAttributeValue(dst.session, kek, []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)})
	refused(t, "reading the KEK", err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)

	// 2. The KEK leaves the target only to the trusted transport key: not to a key
	// of the attacker.
	attacker, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	fake := transportImport(attacker.N.Bytes())
	_, err = dst.m.CreateObject(dst.session, fake)
	refused(t, "the user imports a trusted key", err)
	for _, a := range fake {
		if a.Type == pkcs11.CKA_TRUSTED {
			a.Value = []byte{0}
		}
	}
	untrusted, err := dst.m.CreateObject(dst.session, fake)
	check(t, err)
	_, err = dst.m.WrapKey(dst.session, oaep(), untrusted, kek)
	refused(t, "wrapping the KEK to the attacker", err, pkcs11.CKR_KEY_NOT_WRAPPABLE)

	// 3. At the source, the user can use the transport key while it lives, but what
	// it unwraps only wraps and never shows itself, and is not trusted.
	s.user(t, src)
	for what, bad := range map[string][]*pkcs11.Attribute{
		"decrypts":          {attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_DECRYPT, true)},
		"unwraps":           {attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_UNWRAP, true)},
		"is not sensitive":  {attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_DECRYPT, false)},
		"can be extracted":  {attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_DECRYPT, false)},
		"is trusted (user)": {attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_TRUSTED, true)},
	} {
		_, err := src.m.UnwrapKey(src.session, oaep(), transport, kekBlob, append(aes[:4:4], bad...))
		refused(t, "unwrapping a KEK that "+what, err)
	}

	// The ceremony goes on.
	s.so(t, src)
	wrapping, err := src.takeKEK(transport, kekBlob)
	check(t, err)
	s.user(t, src)
	for _, a := range []*pkcs11.Attribute{attr(pkcs11.CKA_DECRYPT, true), attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_SENSITIVE, false)} {
		refused(t, "changing the KEK at the source", src.m.SetAttributeValue(src.session, wrapping, []*pkcs11.Attribute{a}))
	}
	ca, err := src.theKey(s.key)
	check(t, err)
	blob, err := src.wrapKey(wrapping, ca, ways[0])
	check(t, err)

	// 4. The blob unwraps only to a key as strong as the first.
	for what, bad := range map[string]*pkcs11.Attribute{
		"SENSITIVE=false": attr(pkcs11.CKA_SENSITIVE, false), "no SENSITIVE": attr(pkcs11.CKA_SENSITIVE, nil),
		"PRIVATE=false": attr(pkcs11.CKA_PRIVATE, false), "WRAP_WITH_TRUSTED=false": attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false), "no WRAP_WITH_TRUSTED": attr(pkcs11.CKA_WRAP_WITH_TRUSTED, nil),
		"DECRYPT": attr(pkcs11.CKA_DECRYPT, true), "UNWRAP": attr(pkcs11.CKA_UNWRAP, true), "DERIVE": attr(pkcs11.CKA_DERIVE, true),
		"a secret key": attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
	} {
		_, err := dst.m.UnwrapKey(dst.session, mechanism(ways[0].unwrap, nil), kek, blob, weakPrivate(typ, bad))
		refused(t, "unwrapping the key with "+what, err, pkcs11.CKR_TEMPLATE_INCONSISTENT)
	}

	// The self-test before each copying tells such a target from one that ignores its
	// templates.
	self := append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_KEY_TYPE, typ)}, sessionObject(privateTemplate(KeyID{9}, "self-test", nil, true))...)
	if dst.unwrapsWeakly(kek, ways[0], blob, self) {
		t.Error("a strict target is taken for a weak one")
	}
	known := bytes.Repeat([]byte{0x41}, 32)
	lax, err := dst.m.CreateObject(dst.session, append(aes[:4:4], attr(pkcs11.CKA_VALUE, known), attr(pkcs11.CKA_UNWRAP, true)))
	check(t, err)
	own, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(own)
	check(t, err)
	weak := append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA)}, sessionObject(privateTemplate(KeyID{9}, "self-test", nil, true))...)
	if !dst.unwrapsWeakly(lax, ways[0], wrapPad(t, known, pkcs8), weak) {
		t.Error("a target without an unwrap template is not seen as weak")
	}

	// 5. Nobody but a trusted key wraps the CA key: not one that the attacker knows.
	wrapper := append(aes[:4:4], attr(pkcs11.CKA_VALUE, known), attr(pkcs11.CKA_WRAP, true))
	_, err = src.m.CreateObject(src.session, append(wrapper, attr(pkcs11.CKA_TRUSTED, true)))
	refused(t, "the user imports a trusted AES key", err)
	h, err := src.m.CreateObject(src.session, wrapper)
	check(t, err)
	for _, m := range []uint{ckmAESKeyWrapPad, ckmAESKeyWrap} {
		_, err = src.m.WrapKey(src.session, mechanism(m, nil), h, ca)
		refused(t, "wrapping the key with a known AES key", err, pkcs11.CKR_KEY_NOT_WRAPPABLE)
	}

	// 6. The copy works, and is as strong as the key.
	target := &ceremony{keks: map[uint]pkcs11.ObjectHandle{typ: kek}}
	copied, err := target.unwrapKey(dst, wrappedKey{Key: s.key, Blob: blob})
	check(t, err)
	got, err := dst.snapshot(copied)
	check(t, err)
	check(t, checkSnapshot(got, true))
	for tok, key := range map[*token]pkcs11.ObjectHandle{src: ca, dst: copied} {
		for what, a := range map[string]*pkcs11.Attribute{
			"SENSITIVE=false": attr(pkcs11.CKA_SENSITIVE, false), "WRAP_WITH_TRUSTED=false": attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false), "DECRYPT": attr(pkcs11.CKA_DECRYPT, true),
			"UNWRAP": attr(pkcs11.CKA_UNWRAP, true), "MODIFIABLE": attr(pkcs11.CKA_MODIFIABLE, true), "LABEL": attr(pkcs11.CKA_LABEL, "chancery:document:ca"), "SUBJECT": attr(pkcs11.CKA_SUBJECT, []byte{0x30, 1, 5}),
		} {
			refused(t, "setting "+what, tok.m.SetAttributeValue(tok.session, key, []*pkcs11.Attribute{a}))
		}
		for what, a := range map[string]*pkcs11.Attribute{"SENSITIVE=false": attr(pkcs11.CKA_SENSITIVE, false), "WRAP_WITH_TRUSTED=false": attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false), "MODIFIABLE": attr(pkcs11.CKA_MODIFIABLE, true)} {
			_, err := tok.m.CopyObject(tok.session, key, []*pkcs11.Attribute{a})
			refused(t, "copying with "+what, err)
		}
		secret := uint(pkcs11.CKA_VALUE)
		if typ == pkcs11.CKK_RSA {
			secret = pkcs11.CKA_PRIVATE_EXPONENT
		}
		_, err := tok.m.GetAttributeValue(tok.session, key, []*pkcs11.Attribute{attr(secret, nil)})
		refused(t, "reading the private key", err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)
	}

	// 7. With the KEKs gone nothing unwraps the blobs any more.
	check(t, src.m.DestroyObject(src.session, wrapping))
	check(t, dst.m.DestroyObject(dst.session, kek))
	_, err = dst.m.UnwrapKey(dst.session, mechanism(ways[0].unwrap, nil), kek, blob, weakPrivate(typ))
	refused(t, "unwrapping after the ceremony", err)
}

// wrapPad is RFC 5649 §4.1, outside of any HSM.
func wrapPad(t *testing.T, kek, plain []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(kek)
	check(t, err)
	out := binary.BigEndian.AppendUint32([]byte{0xA6, 0x59, 0x59, 0xA6}, uint32(len(plain)))
	out = append(out, plain...)
	for len(out)%8 != 0 {
		out = append(out, 0)
	}
	n := uint64(len(out)/8 - 1)
	for j := range uint64(6) {
		for i := uint64(1); i <= n; i++ {
			b := append(bytes.Clone(out[:8]), out[i*8:i*8+8]...)
			block.Encrypt(b, b)
			binary.BigEndian.PutUint64(out, binary.BigEndian.Uint64(b)^(n*j+i))
			copy(out[i*8:], b[8:])
		}
	}
	return out
}
