package check

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"sort"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// serialDigest stands for one serial of one issuer.
type digest16 [16]byte

func serialDigest(issuer leaf.Hash, serial []byte) digest16 {
	var b [52]byte
	n := copy(b[:], issuer[:])
	n += copy(b[n:], serial)
	h := leaf.Sum(b[:n])
	return digest16(h[:16])
}

// serialRecord is a serial that was reserved.
type serialRecord struct {
	of     digest16
	intent uint64
	ends   int64 // notAfter of its certificate, seconds since 1970; 0: it is not known
}

// revocation is one, or an orphan's.
type revocation struct {
	of     digest16
	issuer uint16 // number in State.Issuers
	leaf   uint64
	orphan uint64 // of an orphan: its intent + 1
	ends   int64  // of a predecessor's certificate; 0: with its issuer
	by     bool   // a predecessor issued it, or an entry that is lost
}

// recordedCRL is the newest of an issuer that is done.
type recordedCRL struct {
	Leaf   uint64    `json:"leaf"`
	Hash   leaf.Hash `json:"hash"`
	TBS    leaf.Hash `json:"tbs"`
	Number uint64    `json:"number"`
	This   uint64    `json:"this"`
	Covers uint64    `json:"covers"`
}

// scope is what the newest CRL that was intended covers.
type scope struct {
	Number uint64 `json:"number"`
	This   uint64 `json:"this"`
	Covers uint64 `json:"covers"`
}

// crlIntent: numbers, times and what is covered only rise (P4).
func (s *State) crlIntent(index uint64, in *openIntent, l *leaf.Leaf) error {
	number, numbered := l.Uint(leaf.TagCRLNumber)
	if !numbered {
		return bad(index, "the intent names no CRL number")
	}
	in.Numbered, in.Number = true, number
	in.This, _ = l.Uint(leaf.TagThisUpdate)
	in.Covers, _ = l.Uint(leaf.TagCovers)
	last, again := s.Scopes[in.Issuer]
	if again && (number <= last.Number || in.This <= last.This || in.Covers < last.Covers) || in.Covers > index {
		return bad(index, "CRL %d goes back behind CRL %d, or covers what does not exist yet", number, last.Number)
	}
	s.Scopes[in.Issuer] = scope{number, in.This, in.Covers}
	return nil
}

// stateLost is the state of a revocation of a serial whose entry was lost; see recovery.go.
const stateLost = "lost"

// revoke follows a revocation. One of a predecessor's certificate comes with the restore,
// from the predecessor's CRL, or later with the certificate's end.
func (s *State) revoke(index uint64, l *leaf.Leaf) error {
	issuer, ok := l.Hash(leaf.TagIssuer)
	serial := l.Get(leaf.TagSerial)
	if !ok || serial == nil {
		return bad(index, "it revokes nothing")
	}
	r := revocation{of: serialDigest(issuer, serial), issuer: s.issuerNumber(issuer), leaf: index}
	if l.Text(leaf.TagState) == stateLost {
		r.by = true
	} else if source := l.Get(leaf.TagSource); source != nil {
		ends, asked := l.Uint(leaf.TagNotAfter)
		manifest, _ := l.Hash(leaf.TagManifest)
		r.by, r.ends = true, int64(ends)
		switch {
		case !s.Restore.Warranted || s.Restore.Ended != asked:
			return bad(index, "it revokes what a predecessor issued, but no restore is under way, or it has not ended yet")
		case string(source) != s.Restore.origin():
			return bad(index, "it revokes what %.100q issued, leaf 0 names %.100q", source, s.Restore.origin())
		case !asked && manifest != s.Restore.Manifest:
			return bad(index, "it carries a revocation over from another manifest than the officers allowed")
		case !asked:
			s.Restore.Carried++
		}
	}
	s.revoked = append(s.revoked, r)
	return nil
}

// serialsAndCRLs holds, once all entries are read, serials against each other and CRLs
// against the revocations (P4).
func (v *verifier) serialsAndCRLs() error {
	s := v.s
	sort.Slice(s.serials, func(i, j int) bool {
		a, b := &s.serials[i], &s.serials[j]
		if c := bytes.Compare(a.of[:], b.of[:]); c != 0 {
			return c < 0
		}
		return a.intent < b.intent
	})
	var twice *Violation
	for i := 1; i < len(s.serials); i++ {
		if a, b := s.serials[i-1], s.serials[i]; a.of == b.of && (twice == nil || b.intent < twice.Index) {
			twice = &Violation{Index: b.intent, What: "its issuer had given its serial already"}
		}
	}
	if twice != nil {
		return twice
	}
	ends, err := v.orphansEnds()
	if err != nil {
		return err
	}
	sort.SliceStable(s.revoked, func(i, j int) bool { return bytes.Compare(s.revoked[i].of[:], s.revoked[j].of[:]) < 0 })
	for i := range s.revoked {
		r := &s.revoked[i]
		if i == 0 || s.revoked[i-1].of != r.of {
			v.report.Revocations++
		} else if first := s.revoked[i-1]; first.by { // a later reason
			r.by, r.ends = true, first.ends
		}
		known, found := s.find(r.of)
		switch {
		case r.by && r.ends == 0:
			if is, ok := v.issuers[s.Issuers[r.issuer]]; ok {
				r.ends = is.cert.NotAfter.Unix()
			}
		case r.by:
		case !found:
			return bad(r.leaf, "it revokes what was never issued")
		case known.ends != 0:
			r.ends = known.ends
		case r.orphan > 0:
			r.ends = ends[r.orphan-1]
		}
	}
	return v.crls()
}

// find is the record of a reserved serial; s.serials is sorted.
func (s *State) find(of digest16) (serialRecord, bool) {
	i, ok := slices.BinarySearchFunc(s.serials, of, func(r serialRecord, of digest16) int { return bytes.Compare(r.of[:], of[:]) })
	if !ok {
		return serialRecord{}, false
	}
	return s.serials[i], true
}

// orphansEnds reads when certificates end that may exist and are in nobody's hands. The
// ledger does not say, so that the exporter's word has to do: it decides only whether such
// a serial may already be off a CRL.
func (v *verifier) orphansEnds() (map[uint64]int64, error) {
	out := map[uint64]int64{}
	r, err := v.f.Orphans()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		intent, value, err := r.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if len(value) == 8 {
			out[intent] = int64(binary.BigEndian.Uint64(value))
		}
	}
}

// crls holds the newest CRL of each issuer against the entries.
func (v *verifier) crls() error {
	s := v.s
	for hash, seen := range s.Certified {
		if _, here := v.byHash[hash]; here && seen {
			delete(v.byHash, hash)
		}
	}
	for _, i := range v.byHash {
		return bad(v.newest.size, "the certificate of issuer %.100q is in the export, but no entry records it", i.cert.Subject)
	}
	missing := map[leaf.Hash]recordedCRL{}
	for spki, c := range s.CRLs {
		missing[spki] = c
	}
	r, err := v.f.CRLs()
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		_, der, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		spki, recorded, ok := byHash(missing, leaf.Sum(der))
		if !ok {
			return v.strangeCRL(der)
		}
		delete(missing, spki)
		if err := v.crl(der, spki, recorded); err != nil {
			return err
		}
		v.report.CRLs++
	}
	var first *Violation
	for spki, c := range missing {
		if slices.Contains(v.about.LeftOut, "crl "+spki.String()) {
			v.report.Notes = append(v.report.Notes, "the newest CRL of issuer "+spki.String()+" is left out, as export.json says: it was not checked")
		} else if first == nil || c.Leaf < first.Index {
			first = &Violation{Index: c.Leaf, What: "it records the newest CRL of its issuer, which is not in the export"}
		}
	}
	if first != nil {
		return first
	}
	return nil
}

func byHash(m map[leaf.Hash]recordedCRL, h leaf.Hash) (spki leaf.Hash, c recordedCRL, ok bool) {
	for spki, c := range m {
		if c.Hash == h {
			return spki, c, true
		}
	}
	return spki, c, false
}

// strangeCRL finds the entry that a CRL should be of.
func (v *verifier) strangeCRL(der []byte) error {
	c, err := readCRL(der)
	if err == nil {
		for spki, i := range v.issuers {
			if recorded, ok := v.s.CRLs[spki]; ok && bytes.Equal(i.subject, c.issuer) {
				return bad(recorded.Leaf, "the CRL of its issuer in the export is not the one that it records")
			}
		}
	}
	return bad(v.newest.size, "a CRL in the export is not the newest that is recorded of any issuer")
}

// crl: it is what its intent said, its issuer signed it, and it holds every unexpired
// revocation below the size that it covers, and nothing that was not revoked.
func (v *verifier) crl(der []byte, spki leaf.Hash, recorded recordedCRL) error {
	s := v.s
	c, err := readCRL(der)
	if err != nil {
		return bad(recorded.Leaf, "its CRL: %v", err)
	}
	number := binary.BigEndian.AppendUint64(nil, recorded.Number)
	is, ok := v.issuers[spki]
	switch {
	case leaf.Sum(c.tbs) != recorded.TBS:
		return bad(recorded.Leaf, "its CRL is not what the intent said would be signed")
	case !bytes.Equal(bytes.TrimLeft(c.number, "\x00"), bytes.TrimLeft(number, "\x00")) || c.this != int64(recorded.This):
		return bad(recorded.Leaf, "its CRL has another number or time than the intent")
	case !ok:
		return bad(recorded.Leaf, "the certificate of the CRL's issuer is not in the export")
	case !bytes.Equal(c.issuer, is.subject) || !c.verifiedBy(is.cert):
		return bad(recorded.Leaf, "its CRL is not signed by its issuer")
	}
	var listed []digest16
	if err := c.serials(func(serial []byte) {
		if len(serial) <= 20 {
			listed = append(listed, serialDigest(spki, serial))
		} else {
			listed = append(listed, digest16{})
		}
	}); err != nil {
		return bad(recorded.Leaf, "its CRL: %v", err)
	}
	order := func(a, b digest16) int { return bytes.Compare(a[:], b[:]) }
	slices.SortFunc(listed, order)
	at := s.issuerNumber(spki)
	lacks := ^uint64(0)
	for _, r := range s.revoked {
		if r.issuer != at || r.leaf >= recorded.Covers || r.leaf >= lacks || r.ends != 0 && r.ends < c.this {
			continue
		}
		if _, on := slices.BinarySearchFunc(listed, r.of, order); !on {
			lacks = r.leaf
		}
	}
	if lacks != ^uint64(0) {
		return bad(recorded.Leaf, "its CRL covers the revocation of entry %d and does not list it", lacks)
	}
	for _, of := range listed {
		if _, ok := slices.BinarySearchFunc(s.revoked, of, func(r revocation, of digest16) int { return bytes.Compare(r.of[:], of[:]) }); !ok {
			return bad(recorded.Leaf, "its CRL lists a serial that no entry revokes")
		}
	}
	return nil
}
