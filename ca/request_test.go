package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/netip"
	"sync"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// must is for what cannot fail in a test's own building.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var (
	oidSAN        = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasic      = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidKeyUsage   = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidEKU        = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidExtRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidChallenge  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
)

var ecKey = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })

// request is a certification request that may be wrong in every way.
type request struct {
	signer  crypto.Signer
	spki    []byte // nil: the signer's
	subject []byte // Name DER; nil: empty
	attrs   [][]byte
	more    []byte // behind the attributes
	tail    []byte // behind the signature, in the outer SEQUENCE
}

type builder = cryptobyte.Builder

func seq(b *builder, f func(*builder)) { b.AddASN1(cbasn1.SEQUENCE, f) }

func (r request) der() []byte {
	if r.signer == nil {
		r.signer = ecKey()
	}
	if r.spki == nil {
		r.spki = must(x509.MarshalPKIXPublicKey(r.signer.Public()))
	}
	if r.subject == nil {
		r.subject = []byte{0x30, 0}
	}
	var info builder
	seq(&info, func(b *builder) {
		b.AddASN1Int64(0)
		b.AddBytes(r.subject)
		b.AddBytes(r.spki)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *builder) {
			for _, a := range r.attrs {
				b.AddBytes(a)
			}
		})
		b.AddBytes(r.more)
	})
	return r.sign(info.BytesOrPanic())
}

// sign makes the request of a CertificationRequestInfo, whatever that is.
func (r request) sign(info []byte) []byte {
	if r.signer == nil {
		r.signer = ecKey()
	}
	alg := asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	if _, ok := r.signer.(*rsa.PrivateKey); ok {
		alg = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	}
	sig := must(crypto.SignMessage(r.signer, rand.Reader, info, crypto.SHA256))
	var out builder
	seq(&out, func(b *builder) {
		b.AddBytes(info)
		seq(b, func(b *builder) {
			b.AddASN1ObjectIdentifier(alg)
			if _, ok := r.signer.(*rsa.PrivateKey); ok {
				b.AddASN1NULL()
			}
		})
		b.AddASN1BitString(sig)
		b.AddBytes(r.tail)
	})
	return out.BytesOrPanic()
}

// attribute is one attribute with one value.
func attribute(id asn1.ObjectIdentifier, value []byte) []byte {
	var out builder
	seq(&out, func(b *builder) {
		b.AddASN1ObjectIdentifier(id)
		b.AddASN1(cbasn1.SET, func(b *builder) { b.AddBytes(value) })
	})
	return out.BytesOrPanic()
}

func extensions(exts ...pkix.Extension) []byte {
	return attribute(oidExtRequest, must(asn1.Marshal(exts)))
}

func ext(id asn1.ObjectIdentifier, value []byte) pkix.Extension {
	return pkix.Extension{Id: id, Value: value}
}

// general is one GeneralName of a primitive kind: 1 e-mail, 2 DNS, 6 URI, 7 IP.
type general struct {
	tag   int
	value string
}

func dns(names ...string) (out []general) {
	for _, n := range names {
		out = append(out, general{2, n})
	}
	return out
}

func ip(addrs ...string) (out []general) {
	for _, a := range addrs {
		out = append(out, general{7, string(netip.MustParseAddr(a).AsSlice())})
	}
	return out
}

func sanValue(names ...general) []byte {
	var out builder
	seq(&out, func(b *builder) {
		for _, n := range names {
			b.AddASN1(cbasn1.Tag(n.tag).ContextSpecific(), func(b *builder) { b.AddBytes([]byte(n.value)) })
		}
	})
	return out.BytesOrPanic()
}

// asking is a request for names, with more extensions.
func asking(names []general, more ...pkix.Extension) request {
	return request{attrs: [][]byte{extensions(append([]pkix.Extension{ext(oidSAN, sanValue(names...))}, more...)...)}}
}

// good is a request without fault.
func good(names ...string) []byte {
	if len(names) == 0 {
		names = []string{"www.lab.example"}
	}
	return asking(dns(names...)).der()
}

func subject(cns ...string) []byte {
	var out builder
	seq(&out, func(b *builder) {
		for _, cn := range cns {
			b.AddASN1(cbasn1.SET, func(b *builder) {
				seq(b, func(b *builder) {
					b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 5, 4, 3})
					b.AddASN1(cbasn1.UTF8String, func(b *builder) { b.AddBytes([]byte(cn)) })
				})
			})
		}
	})
	return out.BytesOrPanic()
}

// with is a request for www.lab.example with the public key spki, signed by another key.
func with(spki []byte) []byte {
	r := asking(dns("www.lab.example"))
	r.spki = spki
	return r.der()
}

func rsaSPKI(n *big.Int, e int64) []byte {
	var key, out builder
	seq(&key, func(b *builder) { b.AddASN1BigInt(n); b.AddASN1Int64(e) })
	seq(&out, func(b *builder) {
		seq(b, func(b *builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1})
			b.AddASN1NULL()
		})
		b.AddASN1BitString(key.BytesOrPanic())
	})
	return out.BytesOrPanic()
}

func otherSPKI(bits []byte, ids ...asn1.ObjectIdentifier) []byte {
	var out builder
	seq(&out, func(b *builder) {
		seq(b, func(b *builder) {
			for _, id := range ids {
				b.AddASN1ObjectIdentifier(id)
			}
		})
		b.AddASN1BitString(bits)
	})
	return out.BytesOrPanic()
}
