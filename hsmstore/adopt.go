package hsmstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"chancery/admin"
	"chancery/audit"
)

// AdoptSpec says which key of a token comes into the cluster as it is, and for what.
// A key is found by CKA_ID, by label, or by both.
type AdoptSpec struct {
	Name        string
	Purpose     audit.Purpose
	Algorithm   string   // one of [Algorithms]; for an RSA key it settles the padding
	Subject     []byte   // issuer keys: the subject Name DER of the CA's certificate
	Member      string   // that holds the key, and alone will
	CKAID       []byte   // PKCS#11 CKA_ID
	Label       string   // PKCS#11 CKA_LABEL
	AcceptWeak  []string // what of AdoptReport.Weak is accepted, all of it and nothing else
	Attestation []byte   // the vendor's evidence for the key, as it is, at most 32 KiB; kept in the ledger
	DryRun      bool     // only check
}

// AdoptReport is what is found of a key that may be adopted.
type AdoptReport struct {
	Member     string      `json:"member"`
	Object     TokenObject `json:"object"`
	Algorithms []string    `json:"algorithms"`      // that the key fits; RSA keys fit two
	Weak       []string    `json:"weak,omitempty"`  // weaker than our own keys; officers may accept each by name
	Never      []string    `json:"never,omitempty"` // why the key cannot be adopted at all
	Act        string      `json:"act,omitempty"`   // that a grant must list for [Store.Adopt]; with a spec only
}

// maxAttestation bounds the evidence that goes into a leaf, in octets.
const maxAttestation = 32 << 10

// InspectKey reports what a member's token shows of one private key that is not ours
// yet, and what is weak about it. It only reads. The key is found by CKA_ID, by label,
// or by both; an error says so if none or more than one is found.
func (s *Store) InspectKey(ctx context.Context, member string, ckaID []byte, label string) (AdoptReport, error) {
	report := AdoptReport{Member: member}
	q := objectsRequest{CKAID: ckaID, Label: label}
	if q.all() {
		return report, errors.New("give the CKA_ID or the label of the key on the token")
	}
	objects, err := s.objectsOn(ctx, member, q)
	if err != nil {
		return report, err
	}
	switch len(objects) {
	case 0:
		return report, fmt.Errorf("%w: member %s has no private key with CKA_ID %x, label %q", ErrNoKey, member, ckaID, label)
	case 1:
	default:
		var ids []string
		for _, o := range objects {
			ids = append(ids, fmt.Sprintf("CKA_ID %s label %q", o.CKAID, o.Label))
		}
		return report, fmt.Errorf("member %s has %d private keys that fit; name one by CKA_ID and label: %s", member, len(objects), strings.Join(ids, "; "))
	}
	report.Object = objects[0]
	report.judge()
	return report, nil
}

// judge fills in what follows from the object.
func (r *AdoptReport) judge() {
	o := r.Object
	if strings.HasPrefix(o.Label, "chancery:") {
		r.Never = append(r.Never, fmt.Sprintf("the label %q is one of ours: a key that was born here is not adopted", o.Label))
	}
	pub, err := x509.ParsePKIXPublicKey(o.SPKI)
	switch {
	case len(o.SPKI) == 0:
		r.Never = append(r.Never, "the token has no public half of it: neither a public key object nor a certificate with its CKA_ID; put one of them on the token")
	case err != nil:
		r.Never = append(r.Never, fmt.Sprintf("its public half is not readable: %v", err))
	default:
		for _, a := range algorithms {
			if a.fits(pub) && (len(o.Mechanisms) == 0 || slices.Contains(o.Mechanisms, a.mechanism()[0].Mechanism)) {
				r.Algorithms = append(r.Algorithms, a.name)
			}
		}
		if len(r.Algorithms) == 0 {
			r.Never = append(r.Never, fmt.Sprintf("%s of %d bits is no kind of key that is used here; allowed: %s", o.KeyType, o.Bits, strings.Join(Algorithms(), ", ")))
		}
	}
	for _, w := range weaknesses(o.Attributes, nil) {
		if slices.Contains(acceptable, w) {
			r.Weak = append(r.Weak, w)
		} else {
			r.Never = append(r.Never, w)
		}
	}
	if o.Wrap && slices.Contains(o.Attributes, "DECRYPT=true") {
		r.Weak = append(r.Weak, wrapAndDecrypt)
	}
	if o.Trusted {
		r.Never = append(r.Never, "its public half is a TRUSTED wrapping key: whoever holds the PIN could take other keys out with it")
	}
	slices.Sort(r.Weak)
}

// wrapAndDecrypt: the public half wraps what the private half decrypts, so that
// whoever holds the PIN takes any key out that is extractable and not bound to trusted
// keys, as ours are (Clulow 2003). JCA tools make RSA keys so.
const wrapAndDecrypt = "WRAP=true"

// Adopt takes a key that others made into the cluster, in place: it stays on its
// member, its SPKI is pinned, its purpose is bound by the act of the grant, by the
// leaf, and by the worker's own journal. It is usable once it has signed a challenge.
//
// The report is complete also with an error. Errors wrap admin.ErrNotGranted,
// audit.ErrExists, ErrNoKey, ErrUnavailable, ErrWeak.
func (s *Store) Adopt(ctx context.Context, grant *admin.Grant, spec AdoptSpec) (AdoptReport, error) {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return AdoptReport{}, err
	}
	defer unlock()
	report, err := s.InspectKey(ctx, spec.Member, spec.CKAID, spec.Label)
	if err != nil {
		return report, fmt.Errorf("key %q: %w", spec.Name, err)
	}
	if err := s.mayAdopt(spec, &report); err != nil || spec.DryRun {
		return report, err
	}
	if err := grant.Spend(report.Act); err != nil {
		return report, fmt.Errorf("key %q: %w", spec.Name, err)
	}
	m := s.member(spec.Member)
	rec := KeyRecord{Name: spec.Name, Purpose: spec.Purpose, Algorithm: spec.Algorithm, SPKI: report.Object.SPKI, Subject: spec.Subject,
		Origin: spec.Member, Members: []string{spec.Member}, Confined: true, State: KeyBorn, Adopted: report.found(spec)}
	rec.Adopted.Weak = report.Weak
	if k, err := s.anyKey(spec.Name); err == nil {
		rec = k.record() // an adoption that was cut short before the proof
	} else {
		rand.Read(rec.ID[:])
		if rec.Birth, err = s.recordAdoption(ctx, grant, m, rec, report, spec.Attestation); err != nil {
			return report, err
		}
	}
	_, err = s.prove(ctx, grant, []*birth{{spec: KeySpec{Name: spec.Name}, members: []*member{m}, origin: m, rec: rec}})
	return report, err
}

// ErrWeak is wrapped by the refusal of a key whose attributes are weaker than the
// officers have accepted.
var ErrWeak = errors.New("attributes of the key are too weak")

// mayAdopt checks a spec against what was found, and fills in the act.
func (s *Store) mayAdopt(spec AdoptSpec, report *AdoptReport) error {
	if err := (KeySpec{Name: spec.Name, Purpose: spec.Purpose, Algorithm: spec.Algorithm, Subject: spec.Subject}).validate(); err != nil {
		return err
	}
	switch {
	case spec.Purpose == audit.PurposeProbe || spec.Purpose == audit.PurposeCheckpoint || spec.Purpose == audit.PurposeSecret:
		return fmt.Errorf("key %q: keys of %s are born here (or, those of secret, imported), not adopted", spec.Name, spec.Purpose)
	case s.member(spec.Member) != nil && !s.member(spec.Member).holds(spec.Purpose):
		return fmt.Errorf("key %q: member %s has the role %s and holds no keys for %s", spec.Name, spec.Member, s.member(spec.Member).cfg.Role, spec.Purpose)
	case len(spec.Attestation) > maxAttestation:
		return fmt.Errorf("key %q: attestation evidence of %d octets; at most %d fit into the ledger, give its core or a digest", spec.Name, len(spec.Attestation), maxAttestation)
	case len(report.Never) > 0:
		return fmt.Errorf("%w: key %q on member %s can never be adopted: %s; make a new key instead", ErrWeak, spec.Name, spec.Member, strings.Join(report.Never, "; "))
	case !slices.Contains(report.Algorithms, spec.Algorithm):
		return fmt.Errorf("key %q: the key on member %s is not for %s; it fits %s", spec.Name, spec.Member, spec.Algorithm, strings.Join(report.Algorithms, ", "))
	}
	accept := slices.Sorted(slices.Values(spec.AcceptWeak))
	if !slices.Equal(slices.Compact(accept), report.Weak) {
		return fmt.Errorf("%w: key %q on member %s has %s; officers must accept exactly that, accepted is %s. Or change the attributes with the vendor's tool", ErrWeak, spec.Name, spec.Member, listOr(report.Weak, "no weak attribute"), listOr(accept, "nothing"))
	}
	hash := sha256.Sum256(report.Object.SPKI)
	report.Act = admin.AdoptKeyAct(spec.Name, spec.Purpose.String(), spec.Algorithm, spec.Subject, hash, report.Weak...)
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, k := range s.keys {
		unfinished := k.adopted != nil && k.State() == KeyBorn && k.name == spec.Name && k.spkiHash == hash && k.purpose == spec.Purpose && k.alg.name == spec.Algorithm && string(k.subject) == string(spec.Subject)
		if (k.name == spec.Name || k.spkiHash == hash && k.State() != KeyDestroyed) && !unfinished {
			return fmt.Errorf("key %q with SPKI %x is in the cluster: %w", k.name, k.spkiHash[:8], audit.ErrExists)
		}
	}
	return nil
}

func listOr(items []string, none string) string {
	if len(items) == 0 {
		return none
	}
	return strings.Join(items, ", ")
}

// found is how the key is found again: by its CKA_ID, which tools change less than
// labels, and by its label if it has no CKA_ID or the spec needed both.
func (r AdoptReport) found(spec AdoptSpec) *Adopted {
	id, err := hex.DecodeString(r.Object.CKAID)
	if err != nil || len(id) == 0 {
		return &Adopted{Label: r.Object.Label}
	}
	if len(spec.CKAID) > 0 && spec.Label != "" {
		return &Adopted{CKAID: id, Label: r.Object.Label}
	}
	return &Adopted{CKAID: id}
}

// recordAdoption writes the leaf of an adoption and returns its index.
func (s *Store) recordAdoption(ctx context.Context, grant *admin.Grant, m *member, rec KeyRecord, report AdoptReport, attestation []byte) (uint64, error) {
	alg, err := algorithmByName(rec.Algorithm)
	if err != nil {
		return 0, err
	}
	f := s.keyFields(grant, &birth{rec: rec}, m, report.Object.Attributes)
	f.Bytes(audit.TagSPKI, rec.SPKI)
	f.Uint8(audit.TagPurpose, uint8(rec.Purpose))
	f.Bytes(audit.TagAlgorithm, alg.ident)
	if len(report.Weak) > 0 {
		f.List(audit.TagWeak, texts(report.Weak)...)
	}
	if len(attestation) > 0 {
		f.Bytes(audit.TagAttestation, attestation)
	}
	a, err := s.ledger.Append(ctx, audit.Event(audit.OpKeyAdopt, f), PutKey{rec})
	if err != nil {
		return 0, fmt.Errorf("recording the adoption of key %q: %w", rec.Name, err)
	}
	return a.Index, nil
}
