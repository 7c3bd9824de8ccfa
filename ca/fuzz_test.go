package ca_test

import (
	"encoding/asn1"
	"errors"
	"slices"
	"testing"

	"chancery/ca"
)

// FuzzCSR: whatever the octets, reading them ends in a refusal with a field, or in at
// most 100 distinct names in canonical form.
func FuzzCSR(f *testing.F) {
	f.Add(good())
	f.Add(asking(append(dns("*.lab", "xn--bcher-kva.lab"), ip("192.0.2.1", "::1")...), ext(oidBasic, []byte{0x30, 0})).der())
	f.Add(request{subject: subject("a.lab")}.der())
	f.Add(request{signer: rsaKey(), attrs: asking(dns("a.lab")).attrs}.der())
	f.Add(longForm(good(), 3))
	f.Add(nested(200))
	f.Fuzz(func(t *testing.T, der []byte) {
		if at, wrong := ca.StrictDER(der); wrong == "" {
			var v asn1.RawValue
			if rest, err := asn1.Unmarshal(der, &v); err != nil || len(rest) > 0 {
				t.Errorf("taken for DER: %x: %v", der, err)
			}
		} else if at < 0 || at > len(der) {
			t.Errorf("offset %d of %d", at, len(der))
		}
		checkNames(t, der)
	})
}

// FuzzCSRNames is FuzzCSR behind the signature: the request is well formed and signed,
// whatever stands in its subject and in the value of its SAN extension.
func FuzzCSRNames(f *testing.F) {
	f.Add([]byte{0x30, 0}, sanValue(dns("a.lab", "*.xn--bcher-kva.lab")...))
	f.Add(subject("a.lab"), sanValue(append(dns("A.lab"), ip("192.0.2.1", "::1")...)...))
	f.Add(subject("192.0.2.1"), sanValue(general{1, "a@b"}, general{6, "https://a/"}, general{8, "\x2a"}))
	f.Add(subject("a.lab", "b.lab"), nested(9))
	f.Fuzz(func(t *testing.T, name, san []byte) {
		if len(name)+len(san) > 1<<15 {
			return // longer ones are FuzzCSR's
		}
		checkNames(t, request{subject: name, attrs: [][]byte{extensions(ext(oidSAN, san))}}.der())
	})
}

func checkNames(t *testing.T, der []byte) {
	names, err := ca.CSRNames(der)
	if err != nil {
		var r *ca.Refusal
		if !errors.As(err, &r) || r.Field == "" || r.Detail == "" || names != nil {
			t.Errorf("refused with %v", err)
		}
		return
	}
	if len(names) > 100 {
		t.Errorf("%d names", len(names))
	}
	for i, n := range names {
		if again, err := ca.ParseName(n.Kind, n.Value); err != nil || again != n || slices.Contains(names[:i], n) {
			t.Errorf("name %v: %v, %v", n, again, err)
		}
	}
}
