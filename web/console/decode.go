package console

import (
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"chancery/audit"
)

func spkiHash(spki []byte) [32]byte { return sha256.Sum256(spki) }

// fact decodes one field of a leaf for people. What it does not know is shown in hex.
func (v *view) fact(n names, l audit.Leaf, t audit.Tag, value []byte) fact {
	f := fact{Label: v.tagName(t)}
	mono := func(s string) fact { f.Text, f.Mono = foreign(s), true; return f }
	plain := func(s string) fact { f.Text = foreign(s); return f }
	switch t {
	case audit.TagKey:
		if h, ok := l.Hash(t); ok && n.keys[h] != "" {
			f.To = url.Keys()
			return plain(n.keys[h])
		}
	case audit.TagSerial:
		if s := hexText(value); isSerial(s) {
			f.To = url.Certificate(s)
			return mono(s)
		}
	case audit.TagMode:
		if m, _ := l.Uint(t); m == 1 {
			return plain(v.Lang.text("mode.dev"))
		}
		return plain(v.Lang.text("mode.prod"))
	case audit.TagPurpose:
		p, _ := l.Uint(t)
		return plain(v.named("purpose.", audit.Purpose(p).String()))
	case audit.TagTBSLength:
		size, _ := l.Uint(t)
		return plain(v.Lang.text("octets", thousands(size)))
	case audit.TagCovers, audit.TagCRLNumber, audit.TagMaxAttempts, audit.TagCount:
		num, _ := l.Uint(t)
		return plain(thousands(num))
	case audit.TagThisUpdate, audit.TagRevokedAt, audit.TagSince:
		if s, ok := l.Uint(t); ok && s < 1<<40 {
			return plain(time.Unix(int64(s), 0).UTC().Format("2006-01-02 15:04:05") + " UTC")
		}
	case audit.TagReason:
		return plain(v.named("reason.", string(value)))
	case audit.TagDomain, audit.TagRequester, audit.TagNode, audit.TagBuild, audit.TagKeyName, audit.TagMember, audit.TagSerialNumber, audit.TagSource, audit.TagMechanism, audit.TagPrevious, audit.TagRefusal, audit.TagOutcome:
		return plain(string(value))
	case audit.TagAlgorithm:
		return plain(algorithmText(value))
	case audit.TagSPKI:
		h := spkiHash(value)
		return mono("SHA-256 " + hexText(h[:]))
	case audit.TagCheckpointKeys:
		return mono(listText(value, func(b []byte) string { h := spkiHash(b); return "SHA-256 " + hexText(h[:]) }))
	case audit.TagActs, audit.TagAttributes, audit.TagRoles:
		return plain(listText(value, func(b []byte) string { return string(b) }))
	case audit.TagErased:
		if list, ok := (audit.Field{Tag: t, Value: value}).Show().([]string); ok {
			return plain(strings.Join(list, ", "))
		}
	case audit.TagAttempts:
		return plain(groups(value, 2, func(g [][]byte) string { return fmt.Sprintf("%s ×%d", g[0], bigEndian(g[1])) }))
	case audit.TagCounts:
		return plain(groups(value, 4, func(g [][]byte) string {
			return v.Lang.text("counts", g[0], thousands(bigEndian(g[1])), thousands(bigEndian(g[2])))
		}))
	}
	return mono(hexText(value))
}

func (v *view) tagName(t audit.Tag) string {
	key := "tag." + strconv.Itoa(int(t))
	if v.Lang.has(key) {
		return v.Lang.text(key)
	}
	return v.Lang.text("tag.unknown", int(t))
}

// listText writes a list of items with commas, or the raw hex if it is none.
func listText(value []byte, item func([]byte) string) string {
	items, err := audit.ParseList(value)
	if err != nil {
		return hexText(value)
	}
	out := make([]string, len(items))
	for i, it := range items {
		out[i] = item(it)
	}
	return strings.Join(out, ", ")
}

// groups writes a list whose items come in groups of n, the first of which is a text.
func groups(value []byte, n int, group func([][]byte) string) string {
	items, err := audit.ParseList(value)
	if err != nil || len(items)%n != 0 {
		return hexText(value)
	}
	var out []string
	for i := 0; i < len(items); i += n {
		if !utf8.Valid(items[i]) {
			return hexText(value)
		}
		out = append(out, group(items[i:i+n]))
	}
	return strings.Join(out, ", ")
}

func bigEndian(b []byte) uint64 {
	if len(b) > 8 {
		return 0
	}
	var full [8]byte
	copy(full[8-len(b):], b)
	return binary.BigEndian.Uint64(full[:])
}

// algorithmNames are the signature algorithms of the house (RFC 5758 §3.2, RFC 8017 §A.2).
var algorithmNames = map[string]string{
	"1.2.840.10045.4.3.2": "ecdsa-with-SHA256", "1.2.840.10045.4.3.3": "ecdsa-with-SHA384", "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
	"1.2.840.113549.1.1.11": "sha256WithRSAEncryption", "1.2.840.113549.1.1.12": "sha384WithRSAEncryption", "1.2.840.113549.1.1.13": "sha512WithRSAEncryption",
	"1.2.840.113549.1.1.10": "RSASSA-PSS",
}

func algorithmText(der []byte) string {
	var id pkix.AlgorithmIdentifier
	if rest, err := asn1.Unmarshal(der, &id); err != nil || len(rest) > 0 {
		return hexText(der)
	}
	oid := id.Algorithm.String()
	if name, ok := algorithmNames[oid]; ok {
		return name
	}
	return oid
}
