package hsmstore

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"chancery/audit"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// binding is what a key is bound to: its purpose and issuer name since its birth
// (CKA_LABEL, CKA_SUBJECT of an object that cannot be modified), and the place
// where it is.
type binding struct {
	purpose  audit.Purpose
	ident    []byte // AlgorithmIdentifier DER of its signatures
	subject  []byte // Name DER; issuer keys only
	spkiHash [32]byte
	origin   string // checkpoint origin; checkpoint keys only
	ledger   audit.LedgerID
	serial   string // token serial number; "": any (the store's own check, before the member is chosen)
}

// kind is the kind of a message, as told from its bytes alone.
type kind uint8

const (
	kindCertificate kind = iota + 1
	kindCRL
	kindOCSP
	kindAttributes // CMS signed attributes of a document or of code
	kindTimestamp  // CMS signed attributes over a TSTInfo
	kindCheckpoint
	kindProbe
	kindProof
	kindSecret
)

// parsed is what the parser found out.
type parsed struct {
	kind   kind
	serial []byte // of kindCertificate: INTEGER octets without a leading zero
	size   uint64 // of kindCheckpoint
}

// allows is the whole policy: what each purpose may sign besides the key proof.
// A purpose that is not here signs nothing.
var allows = map[audit.Purpose]func(*binding, []byte) (parsed, error){
	audit.PurposeIssuer:     parseIssuer,
	audit.PurposeOCSP:       parseOCSP,
	audit.PurposeCode:       func(_ *binding, m []byte) (parsed, error) { return parseAttributes(m, false) },
	audit.PurposeDocument:   func(_ *binding, m []byte) (parsed, error) { return parseAttributes(m, false) },
	audit.PurposeTimestamp:  func(_ *binding, m []byte) (parsed, error) { return parseAttributes(m, true) },
	audit.PurposeCheckpoint: parseCheckpoint,
	audit.PurposeProbe:      parseProbe,
	audit.PurposeSecret:     parseSecret,
}

// inspect parses a message by the purpose of the key. Whatever it does not know
// is refused; every error wraps ErrRefused and says what was expected.
func (b *binding) inspect(message []byte) (parsed, error) {
	parse, ok := allows[b.purpose]
	if !ok {
		return parsed{}, fmt.Errorf("%w: keys of purpose %s sign nothing", ErrRefused, b.purpose)
	}
	var p parsed
	var err error
	if bytes.HasPrefix(message, []byte(proofMagic)) {
		p, err = parseProof(b, message)
	} else {
		p, err = parse(b, message)
	}
	if err != nil {
		return parsed{}, fmt.Errorf("%w: %s key: %v", ErrRefused, b.purpose, err)
	}
	return p, nil
}

// sequence opens the one outer element of a message and leaves no octet behind it.
func sequence(message []byte, tag cbasn1.Tag) (cryptobyte.String, bool) {
	in := cryptobyte.String(message)
	var body cryptobyte.String
	ok := in.ReadASN1(&body, tag) && in.Empty()
	return body, ok
}

// parseIssuer takes a TBSCertificate (RFC 5280 §4.1.2) or a TBSCertList
// (§5.1.2). They differ in their first octets: [0] version against INTEGER 1.
func parseIssuer(b *binding, message []byte) (parsed, error) {
	body, ok := sequence(message, cbasn1.SEQUENCE)
	if !ok {
		return parsed{}, fmt.Errorf("not one DER SEQUENCE (a TBSCertificate or TBSCertList is expected)")
	}
	if body.PeekASN1Tag(versionTag) {
		return parseTBSCertificate(b, body)
	}
	return parseTBSCertList(b, body)
}

var versionTag = cbasn1.Tag(0).Constructed().ContextSpecific()

func parseTBSCertificate(b *binding, s cryptobyte.String) (parsed, error) {
	var v, alg, issuer cryptobyte.String
	var version int
	var serial []byte
	if !s.ReadASN1(&v, versionTag) || !v.ReadASN1Integer(&version) || !v.Empty() || version != 2 {
		return parsed{}, fmt.Errorf("TBSCertificate: version must be 3")
	}
	if !s.ReadASN1Integer(&serial) || len(serial) == 0 || len(serial) > 20 || len(serial) == 20 && serial[0] >= 0x80 || bytes.Equal(serial, []byte{0}) {
		return parsed{}, fmt.Errorf("TBSCertificate: serialNumber must be positive and of at most 20 octets")
	}
	if err := readAlgIssuer(b, &s, &alg, &issuer, "TBSCertificate"); err != nil {
		return parsed{}, err
	}
	ext := cbasn1.Tag(3).Constructed().ContextSpecific()
	whole := true
	for range 3 { // validity, subject, subjectPublicKeyInfo
		whole = whole && s.SkipASN1(cbasn1.SEQUENCE)
	}
	if !whole || !s.SkipASN1(ext) || !s.Empty() {
		return parsed{}, fmt.Errorf("TBSCertificate: fields of RFC 5280 §4.1.2 expected, with extensions, without unique ids")
	}
	return parsed{kind: kindCertificate, serial: serial}, nil
}

func parseTBSCertList(b *binding, s cryptobyte.String) (parsed, error) {
	var alg, issuer cryptobyte.String
	var version int
	if !s.ReadASN1Integer(&version) || version != 1 {
		return parsed{}, fmt.Errorf("neither a TBSCertificate nor a TBSCertList of version 2")
	}
	if err := readAlgIssuer(b, &s, &alg, &issuer, "TBSCertList"); err != nil {
		return parsed{}, err
	}
	thisUpdate := skipTime(&s)
	if nextUpdate := skipTime(&s); !thisUpdate || !nextUpdate {
		return parsed{}, fmt.Errorf("TBSCertList: thisUpdate and nextUpdate expected")
	}
	if !s.SkipOptionalASN1(cbasn1.SEQUENCE) || !s.SkipASN1(versionTag) || !s.Empty() {
		return parsed{}, fmt.Errorf("TBSCertList: revokedCertificates and crlExtensions of RFC 5280 §5.1.2 expected")
	}
	return parsed{kind: kindCRL}, nil
}

func skipTime(s *cryptobyte.String) bool {
	if s.PeekASN1Tag(cbasn1.UTCTime) {
		return s.SkipASN1(cbasn1.UTCTime)
	}
	return s.SkipASN1(cbasn1.GeneralizedTime)
}

// readAlgIssuer reads the inner AlgorithmIdentifier, which must be that of the
// key, and the issuer Name, which must be the pinned one, octet by octet.
func readAlgIssuer(b *binding, s, alg, issuer *cryptobyte.String, what string) error {
	if !s.ReadASN1Element(alg, cbasn1.SEQUENCE) || !bytes.Equal(*alg, b.ident) {
		return fmt.Errorf("%s: inner signature algorithm is not the key's own", what)
	}
	if !s.ReadASN1Element(issuer, cbasn1.SEQUENCE) || len(b.subject) == 0 || !bytes.Equal(*issuer, b.subject) {
		return fmt.Errorf("%s: issuer name is not the one that the key is bound to", what)
	}
	return nil
}

// parseOCSP takes a ResponseData (RFC 6960 §4.2.1).
func parseOCSP(_ *binding, message []byte) (parsed, error) {
	s, ok := sequence(message, cbasn1.SEQUENCE)
	if !ok {
		return parsed{}, fmt.Errorf("not one DER SEQUENCE (a ResponseData is expected)")
	}
	byName, byKey := cbasn1.Tag(1).Constructed().ContextSpecific(), cbasn1.Tag(2).Constructed().ContextSpecific()
	if !s.SkipOptionalASN1(versionTag) || !(s.PeekASN1Tag(byName) && s.SkipASN1(byName) || s.PeekASN1Tag(byKey) && s.SkipASN1(byKey)) {
		return parsed{}, fmt.Errorf("ResponseData: responderID expected")
	}
	var responses cryptobyte.String
	if !s.SkipASN1(cbasn1.GeneralizedTime) || !s.ReadASN1(&responses, cbasn1.SEQUENCE) || responses.Empty() {
		return parsed{}, fmt.Errorf("ResponseData: producedAt and at least one response expected")
	}
	if !s.SkipOptionalASN1(cbasn1.Tag(1).Constructed().ContextSpecific()) || !s.Empty() {
		return parsed{}, fmt.Errorf("ResponseData: nothing but responseExtensions may follow the responses")
	}
	for !responses.Empty() {
		if err := parseSingleResponse(&responses); err != nil {
			return parsed{}, err
		}
	}
	return parsed{kind: kindOCSP}, nil
}

func parseSingleResponse(in *cryptobyte.String) error {
	var single, id, status cryptobyte.String
	var tag cbasn1.Tag
	if !in.ReadASN1(&single, cbasn1.SEQUENCE) || !single.ReadASN1(&id, cbasn1.SEQUENCE) ||
		!id.SkipASN1(cbasn1.SEQUENCE) || !id.SkipASN1(cbasn1.OCTET_STRING) || !id.SkipASN1(cbasn1.OCTET_STRING) || !id.SkipASN1(cbasn1.INTEGER) || !id.Empty() {
		return fmt.Errorf("SingleResponse: certID of RFC 6960 §4.1.1 expected")
	}
	if !single.ReadAnyASN1(&status, &tag) || tag&^0x20 < 0x80 || tag&^0x20 > 0x82 || !single.SkipASN1(cbasn1.GeneralizedTime) {
		return fmt.Errorf("SingleResponse: certStatus and thisUpdate expected")
	}
	if !single.SkipOptionalASN1(versionTag) || !single.SkipOptionalASN1(cbasn1.Tag(1).Constructed().ContextSpecific()) || !single.Empty() {
		return fmt.Errorf("SingleResponse: nothing but nextUpdate and singleExtensions may follow thisUpdate")
	}
	return nil
}

// Object identifiers in CMS signed attributes, as encoded contents.
var (
	oidContentType   = mustHex("2a864886f70d010903")     // RFC 5652 §11.1
	oidMessageDigest = mustHex("2a864886f70d010904")     // RFC 5652 §11.2
	oidTSTInfo       = mustHex("2a864886f70d0109100104") // id-ct-TSTInfo, RFC 3161 §2.4.2
)

// parseAttributes takes CMS signed attributes in the form that is signed: a DER
// SET OF Attribute (RFC 5652 §5.4), sorted, with contentType and messageDigest
// once each. contentType must be id-ct-TSTInfo for time-stamps and nothing else
// may use it, so that no document key can forge a time and no time-stamp key can
// sign a document.
func parseAttributes(message []byte, timestamp bool) (parsed, error) {
	set, ok := sequence(message, cbasn1.SET)
	if !ok {
		return parsed{}, fmt.Errorf("not one DER SET (CMS signed attributes are expected)")
	}
	var content, digest, before []byte
	for !set.Empty() {
		var element, attr, oid, values cryptobyte.String
		if !set.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return parsed{}, fmt.Errorf("signed attributes: not a SET OF Attribute")
		}
		if bytes.Compare(before, element) >= 0 {
			return parsed{}, fmt.Errorf("signed attributes: not in DER order, or one twice")
		}
		before = element
		body := element
		if !body.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1(&oid, cbasn1.OBJECT_IDENTIFIER) || !attr.ReadASN1(&values, cbasn1.SET) || values.Empty() || !attr.Empty() {
			return parsed{}, fmt.Errorf("signed attributes: an Attribute is an OID and a SET of values")
		}
		switch {
		case bytes.Equal(oid, oidContentType):
			if content != nil || !values.ReadASN1((*cryptobyte.String)(&content), cbasn1.OBJECT_IDENTIFIER) || !values.Empty() {
				return parsed{}, fmt.Errorf("signed attributes: contentType must be there once with one OID")
			}
		case bytes.Equal(oid, oidMessageDigest):
			if digest != nil || !values.ReadASN1((*cryptobyte.String)(&digest), cbasn1.OCTET_STRING) || !values.Empty() {
				return parsed{}, fmt.Errorf("signed attributes: messageDigest must be there once with one OCTET STRING")
			}
		}
	}
	if n := len(digest); content == nil || n != 32 && n != 48 && n != 64 {
		return parsed{}, fmt.Errorf("signed attributes: contentType and a messageDigest of 32, 48 or 64 octets expected")
	}
	if isTST := bytes.Equal(content, oidTSTInfo); isTST != timestamp {
		return parsed{}, fmt.Errorf("signed attributes: contentType TSTInfo is for time-stamp keys, and for nothing else")
	}
	if timestamp {
		return parsed{kind: kindTimestamp}, nil
	}
	return parsed{kind: kindAttributes}, nil
}

// parseCheckpoint takes the body of a checkpoint of this ledger without extension
// lines (C2SP tlog-checkpoint): origin, decimal size, base64 of 32 octets. That
// sizes only grow is the worker's part, which knows what it has signed.
func parseCheckpoint(b *binding, message []byte) (parsed, error) {
	lines := strings.Split(string(message), "\n")
	if len(lines) != 4 || lines[3] != "" {
		return parsed{}, fmt.Errorf("checkpoint: three lines expected")
	}
	if b.origin == "" || lines[0] != b.origin {
		return parsed{}, fmt.Errorf("checkpoint: origin is not that of this ledger")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return parsed{}, fmt.Errorf("checkpoint: size is no plain decimal number")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != 32 {
		return parsed{}, fmt.Errorf("checkpoint: root hash is not the base64 of 32 octets")
	}
	return parsed{kind: kindCheckpoint, size: size}, nil
}

const probeMagic = "chancery/probe/v1\n"

func probeText(serial string) []byte { return []byte(probeMagic + serial + "\n") }

func parseProbe(b *binding, message []byte) (parsed, error) {
	if b.serial == "" || string(message) != string(probeText(b.serial)) {
		return parsed{}, fmt.Errorf("only the probe text of this token is signed")
	}
	return parsed{kind: kindProbe}, nil
}

const proofMagic = "chancery/key-proof/v1\n"

// proofText is the challenge by which a copy of a key shows that it is there
// (ENCODINGS, key proof). serial is the token's.
func proofText(ledger audit.LedgerID, spkiHash [32]byte, serial string, nonce [32]byte) []byte {
	return fmt.Appendf(nil, "%s%x\n%x\n%s\n%x\n", proofMagic, ledger[:], spkiHash[:], serial, nonce[:])
}

func parseProof(b *binding, message []byte) (parsed, error) {
	lines := strings.Split(string(message), "\n")
	if len(lines) != 6 || lines[5] != "" {
		return parsed{}, fmt.Errorf("key proof: five lines expected")
	}
	nonce, err := hex.DecodeString(lines[4])
	if err != nil || len(nonce) != 32 {
		return parsed{}, fmt.Errorf("key proof: nonce is not the hex of 32 octets")
	}
	serial := b.serial
	if serial == "" {
		serial = lines[3]
	}
	if b.ledger == (audit.LedgerID{}) || string(message) != string(proofText(b.ledger, b.spkiHash, serial, [32]byte(nonce))) {
		return parsed{}, fmt.Errorf("key proof: ledger, key and token must be this ledger, this very key and this very token")
	}
	return parsed{kind: kindProof}, nil
}
