package hsmstore

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
)

// AttackBackup does what one can who has a recipient's token, its user PIN, and the whole
// backup. Each attack must fail: the keys come out as strong as they went in, or not at
// all. The KEKs were made by another process, so that their templates came from the token.
func AttackBackup(t *testing.T, cfg MemberConfig, rec RecipientRecord, keys []BackupKey) {
	t.Helper()
	k, v, _ := strings.Cut(cfg.Env[0], "=")
	t.Setenv(k, v)
	pin, err := cfg.PIN()
	check(t, err)
	tok, _, err := openToken(cfg.Module, cfg.Reserved, cfg.TokenLabel, rec.Serial)
	check(t, err)
	defer tok.m.Destroy()
	defer tok.m.Finalize()
	check(t, tok.login(pkcs11.CKU_USER, pin))
	type found struct {
		typ    uint
		handle pkcs11.ObjectHandle
	}
	keks := map[string]found{}
	for _, key := range keys {
		h, err := tok.findKEK(key.KEK)
		check(t, err)
		keks[string(key.KEK.CKAID)] = found{key.KEK.KeyType, h}
	}

	attacker, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	fake := transportImport(attacker.N.Bytes())
	_, err = tok.m.CreateObject(tok.session, fake)
	refused(t, "the user imports a trusted key", err)
	for _, a := range fake {
		if a.Type == pkcs11.CKA_TRUSTED {
			a.Value = []byte{0}
		}
	}
	untrusted, err := tok.m.CreateObject(tok.session, fake)
	check(t, err)
	for id, k := range keks {
		typ, kek := k.typ, k.handle
		for _, a := range []*pkcs11.Attribute{attr(pkcs11.CKA_DECRYPT, true), attr(pkcs11.CKA_ENCRYPT, true), attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_DERIVE, true), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false),
			attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_MODIFIABLE, true), attr(pkcs11.CKA_LABEL, "other"), attr(pkcs11.CKA_UNWRAP_TEMPLATE, []byte{})} {
			refused(t, "changing the KEK", tok.m.SetAttributeValue(tok.session, kek, []*pkcs11.Attribute{a}))
			if a.Type == pkcs11.CKA_LABEL {
				continue // a copy by another name is as strong
			}
			h, err := tok.m.CopyObject(tok.session, kek, []*pkcs11.Attribute{a})
			refused(t, "copying the KEK weaker", err)
			if err == nil {
				_ = tok.m.DestroyObject(tok.session, h)
			}
		}
		// A copy that is allowed keeps the template.
		if h, err := tok.m.CopyObject(tok.session, kek, []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, false)}); err == nil {
			for _, key := range keys {
				if string(key.KEK.CKAID) == id {
					if weak, err := tok.holds(h, ways[key.Way], key.Blob, typ); len(weak) > 0 || err != nil {
						t.Errorf("ATTACK WORKED: a copy of the KEK does not hold %v: %v", weak, err)
					}
				}
			}
			check(t, tok.m.DestroyObject(tok.session, h))
		}
		for _, m := range []uint{pkcs11.CKM_AES_ECB, ckmAESKeyWrap} {
			if err := tok.m.DecryptInit(tok.session, mechanism(m, nil), kek); err == nil {
				_, err = tok.m.Decrypt(tok.session, make([]byte, 16))
				refused(t, "decryption with the KEK", err)
			}
		}
		_, err = tok.m.GetAttributeValue(tok.session, kek, []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)})
		refused(t, "reading the KEK", err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)
		_, err = tok.m.WrapKey(tok.session, oaep(), untrusted, kek)
		refused(t, "wrapping the KEK to the attacker", err, pkcs11.CKR_KEY_NOT_WRAPPABLE)
	}
	for _, key := range keys {
		pub, _, err := parseSPKI(key.SPKI, key.Algorithm)
		check(t, err)
		typ, kek := keyTypeOf(pub), keks[string(key.KEK.CKAID)].handle
		for what, bad := range map[string]*pkcs11.Attribute{
			"SENSITIVE=false": attr(pkcs11.CKA_SENSITIVE, false), "no SENSITIVE": attr(pkcs11.CKA_SENSITIVE, nil),
			"PRIVATE=false": attr(pkcs11.CKA_PRIVATE, false), "WRAP_WITH_TRUSTED=false": attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false), "no WRAP_WITH_TRUSTED": attr(pkcs11.CKA_WRAP_WITH_TRUSTED, nil),
			"DECRYPT": attr(pkcs11.CKA_DECRYPT, true), "UNWRAP": attr(pkcs11.CKA_UNWRAP, true), "DERIVE": attr(pkcs11.CKA_DERIVE, true), "a secret key": attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		} {
			_, err := tok.unwrapBy(kek, ways[key.Way], key.Blob, weakPrivate(typ, bad))
			refused(t, "unwrapping "+key.Name+" with "+what, err, pkcs11.CKR_TEMPLATE_INCONSISTENT)
		}
		for id, other := range keks {
			if id != string(key.KEK.CKAID) {
				_, err := tok.unwrapBy(other.handle, ways[key.Way], key.Blob, weakPrivate(typ))
				refused(t, "unwrapping "+key.Name+" with the KEK of other keys", err)
			}
		}
		// As it should be it comes, and gives nothing away.
		h, err := tok.unwrapBy(kek, ways[key.Way], key.Blob, weakPrivate(typ))
		check(t, err)
		secret := uint(pkcs11.CKA_VALUE)
		if typ == pkcs11.CKK_RSA {
			secret = pkcs11.CKA_PRIVATE_EXPONENT
		}
		_, err = tok.m.GetAttributeValue(tok.session, h, []*pkcs11.Attribute{attr(secret, nil)})
		refused(t, "reading "+key.Name, err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)
		_, err = tok.m.WrapKey(tok.session, oaep(), untrusted, h)
		refused(t, "wrapping "+key.Name+" to the attacker", err)
		known, err := tok.m.CreateObject(tok.session, []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attr(pkcs11.CKA_TOKEN, false),
			attr(pkcs11.CKA_VALUE, bytes.Repeat([]byte{0x41}, 32)), attr(pkcs11.CKA_WRAP, true)})
		check(t, err)
		_, err = tok.m.WrapKey(tok.session, mechanism(ckmAESKeyWrapPad, nil), known, h)
		refused(t, "wrapping "+key.Name+" with a known key", err, pkcs11.CKR_KEY_NOT_WRAPPABLE)
		check(t, tok.m.DestroyObject(tok.session, known))
		check(t, tok.m.DestroyObject(tok.session, h))
	}
}

// ExchangeKEK puts another KEK in the place of one, with the user PIN alone: same label and
// CKA_ID, and a twin that decrypts.
func ExchangeKEK(t *testing.T, cfg MemberConfig, serial string, kek BackupKEK) {
	t.Helper()
	k, v, _ := strings.Cut(cfg.Env[0], "=")
	t.Setenv(k, v)
	pin, err := cfg.PIN()
	check(t, err)
	tok, _, err := openToken(cfg.Module, cfg.Reserved, cfg.TokenLabel, serial)
	check(t, err)
	defer tok.m.Destroy()
	defer tok.m.Finalize()
	check(t, tok.login(pkcs11.CKU_USER, pin))
	h, err := tok.findOne([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_ID, kek.CKAID)}, "the KEK")
	check(t, err)
	check(t, tok.m.DestroyObject(tok.session, h))
	base, free := kekTemplate(kek.KeyType)
	defer free()
	var template []*pkcs11.Attribute
	for _, a := range base {
		switch a.Type {
		case pkcs11.CKA_DECRYPT, pkcs11.CKA_MODIFIABLE:
			a = attr(a.Type, true)
		}
		template = append(template, a)
	}
	twin, err := tok.m.GenerateKey(tok.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), template)
	check(t, err)
	_, err = tok.m.CopyObject(tok.session, twin, []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, backupKEKLabel(kek.KeyType)), attr(pkcs11.CKA_ID, kek.CKAID),
		attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_MODIFIABLE, false)})
	check(t, err)
}
