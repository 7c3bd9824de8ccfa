package hsmstore_test

import (
	"bytes"
	"testing"

	"chancery/audit"
	"chancery/hsmstore"

	"golang.org/x/crypto/ocsp"
)

// FuzzInspect feeds the parser that decides what an HSM signs. It must not panic;
// what it lets pass must be one whole message, so that an octet more or less is
// refused; and no message may pass for two purposes, but for code and documents,
// which share a frame, and the key proof, which all keys sign.
func FuzzInspect(f *testing.F) {
	const origin, serial = "ca.example/ledger/0102030405060708", "5e4a00112233"
	ledger := audit.LedgerID{1}
	for _, seed := range [][]byte{
		tbs(f, "Issuing CA", newSerial()), crl(f, "Issuing CA"), responseData(f, ocsp.Good), responseData(f, ocsp.Revoked),
		attributes(oidData, 32), attributes(oidTSTInfo, 64), checkpoint(origin, 7, 1), hsmstore.ProbeText(serial),
		hsmstore.ProofText(ledger, [32]byte{}, serial, [32]byte{7}), {0x30, 0x80, 0, 0}, {0x31, 0}, {},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		passed := 0
		for purpose := range audit.Purpose(12) {
			try := func(m []byte) bool {
				return hsmstore.Inspect(purpose, name("Issuing CA"), origin, ledger, serial, m) == nil
			}
			if !try(message) {
				continue
			}
			if purpose != audit.PurposeCode && !bytes.HasPrefix(message, []byte("chancery/key-proof/v1")) {
				passed++
			}
			if try(append(bytes.Clone(message), 0)) || try(append(bytes.Clone(message), '\n')) || try(message[:len(message)-1]) {
				t.Errorf("%s: %x passes with an octet more or less as well", purpose, message)
			}
		}
		if passed > 1 {
			t.Errorf("%x passes for %d purposes", message, passed)
		}
	})
}
