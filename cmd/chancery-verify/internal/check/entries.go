package check

import (
	"bytes"
	"crypto/x509"
	"errors"
	"io"
	"time"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// issuer is one whose certificate is in the export.
type issuer struct {
	spki, hash leaf.Hash
	subject    []byte
	cert       *x509.Certificate
}

func (v *verifier) readIssuers() error {
	v.issuers, v.byHash = map[leaf.Hash]issuer{}, map[leaf.Hash]*issuer{}
	r, err := v.f.Issuers()
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		_, der, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c, err := x509.ParseCertificate(bytes.Clone(der))
		if err != nil {
			return errors.New("issuers.bin: " + err.Error())
		}
		i := issuer{spki: leaf.Sum(c.RawSubjectPublicKeyInfo), hash: leaf.Sum(der), subject: c.RawSubject, cert: c}
		v.issuers[i.spki], v.byHash[i.hash] = i, &i
	}
}

// nextCertificate reads the next certificate of the export; behind is the index of the
// last. Those that an earlier run has seen are passed over.
func (v *verifier) nextCertificate(behind uint64) (err error) {
	for {
		v.cert.index, v.cert.der, err = v.certs.Next()
		v.cert.any = err == nil
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return bad(behind, "the certificate behind its own: %v", err)
		}
		if v.cert.index < behind || v.cert.index == behind && behind > 0 {
			return bad(v.cert.index, "two certificates of the export name it as their done entry, or they are not in order")
		}
		if v.cert.index >= v.report.From {
			return nil
		}
		behind = v.cert.index
	}
}

// entry follows one entry.
func (v *verifier) entry(index uint64, h leaf.Hash, raw []byte) error {
	var buf [24]leaf.Field
	l := &leaf.Leaf{Fields: buf[:0]}
	if err := leaf.Decode(raw, l); err != nil {
		return bad(index, "%v", err)
	}
	s := v.s
	signs := l.Kind != leaf.Genesis && l.Kind != leaf.Event
	switch {
	case l.Ledger != s.Ledger:
		return bad(index, "it belongs to ledger %s", l.Ledger)
	case (index == 0) != (l.Kind == leaf.Genesis):
		return bad(index, "a genesis is entry 0, and nothing else is")
	case !l.Op.Known():
		return bad(index, "%s is unknown; is this chancery-verify older than the ledger?", l.Op)
	case l.Op.Signs() != signs:
		return bad(index, "%s is no %s", l.Op, l.Kind)
	}
	if time.Duration(s.Last-l.Time)*time.Microsecond > backward {
		s.Counts.Backward++
	}
	s.Last = l.Time
	if err := v.besides(index, l); err != nil {
		return err
	}
	switch l.Kind {
	case leaf.Genesis:
		s.genesis(l)
		return nil
	case leaf.Intent:
		return v.intent(index, h, l)
	case leaf.Event:
		return v.event(index, l)
	}
	return v.closing(index, l)
}

// intent: a key is about to be used.
func (v *verifier) intent(index uint64, h leaf.Hash, l *leaf.Leaf) error {
	s := v.s
	s.Counts.Intents++
	in := openIntent{Hash: h, Op: l.Op, ID: l.ID, Time: l.Time, Entitled: v.entitled, at: -1}
	var okKey, okTBS bool
	in.Key, okKey = l.Hash(leaf.TagKey)
	in.TBS, okTBS = l.Hash(leaf.TagTBSHash)
	in.Length, _ = l.Uint(leaf.TagTBSLength)
	in.Issuer, _ = l.Hash(leaf.TagIssuer)
	in.Grant, _ = l.Hash(leaf.TagGrant)
	in.Serial = bytes.Clone(l.Get(leaf.TagSerial))
	purpose, _ := l.Uint(leaf.TagPurpose)
	switch {
	case s.Retired:
		return bad(index, "it is an intent to sign, after the cluster was retired")
	case !okKey || !okTBS:
		return bad(index, "the intent names no key or nothing to sign")
	case !l.Op.Allows(purpose):
		return bad(index, "a key of purpose %d is not for %s", purpose, l.Op)
	}
	if err := s.key(index, in.Key, purpose); err != nil {
		return err
	}
	if err := s.granted(index, l, false); err != nil {
		return err
	}
	switch l.Op {
	case leaf.OpCertificate:
		if in.Serial == nil || in.Issuer == (leaf.Hash{}) {
			return bad(index, "the intent names no serial or no issuer")
		}
		in.at = len(s.serials)
		s.serials = append(s.serials, serialRecord{of: serialDigest(in.Issuer, in.Serial), intent: index})
	case leaf.OpCRL:
		if err := s.crlIntent(index, &in, l); err != nil {
			return err
		}
	}
	s.Open[index] = in
	return nil
}

// closing: an intent is closed, once, by an entry that names it.
func (v *verifier) closing(index uint64, l *leaf.Leaf) error {
	s := v.s
	in, ok := s.Open[l.Closes]
	if !ok {
		return bad(index, "it closes entry %d, which is no open intent", l.Closes)
	}
	if h, _ := l.Hash(leaf.TagIntentHash); h != in.Hash || in.Op != l.Op || in.ID != l.ID {
		return bad(l.Closes, "entry %d, which closes it, names another intent", index)
	}
	delete(s.Open, l.Closes)
	switch l.Kind {
	case leaf.Failed:
		s.Counts.Failed++
		return nil
	case leaf.Orphan: // whatever may exist is revoked (P3)
		s.Counts.Orphans++
		if in.Op == leaf.OpCertificate {
			s.revoked = append(s.revoked, revocation{of: serialDigest(in.Issuer, in.Serial), issuer: s.issuerNumber(in.Issuer), leaf: index, orphan: l.Closes + 1})
		}
		return nil
	}
	s.Counts.Done++
	artefact, ok := l.Hash(leaf.TagArtefact)
	if _, signed := l.Hash(leaf.TagSignature); !ok || !signed {
		return bad(index, "it records no artefact or no signature")
	}
	if at, ended := s.Destroyed[in.Key]; ended && at < l.Closes {
		return bad(l.Closes, "it signs with a key that entry %d ended", at)
	}
	for _, f := range v.files[artefact] {
		if f.found {
			return &Violation{Index: index, File: f.Name, What: "a second done entry records it"}
		}
		f.found, f.Index = true, index
	}
	switch {
	case l.Op == leaf.OpCRL && in.Numbered:
		s.CRLs[in.Issuer] = recordedCRL{Leaf: index, Hash: artefact, TBS: in.TBS, Number: in.Number, This: in.This, Covers: in.Covers}
	case l.Op == leaf.OpCertificate:
		return v.certificate(index, artefact, in, l)
	}
	return nil
}

// certificate holds the one of the export against its intent and its done entry (P2, P3).
func (v *verifier) certificate(index uint64, artefact leaf.Hash, in openIntent, l *leaf.Leaf) error {
	switch {
	case v.cert.any && v.cert.index < index:
		return bad(v.cert.index, "a certificate of the export names it as its done entry, which it is not")
	case !v.cert.any || v.cert.index > index:
		return bad(index, "it records a certificate that is not in the export")
	}
	der := v.cert.der
	c, err := readCertificate(der)
	if err != nil {
		return bad(index, "its certificate: %v", err)
	}
	signature, _ := l.Hash(leaf.TagSignature)
	switch {
	case leaf.Sum(der) != artefact:
		return bad(index, "its certificate is not the one that was recorded")
	case leaf.Sum(c.tbs) != in.TBS || uint64(len(c.tbs)) != in.Length:
		return bad(index, "its certificate is not what the intent said would be signed")
	case !bytes.Equal(c.serial, in.Serial):
		return bad(index, "its certificate has serial %x, the intent %x", c.serial, in.Serial)
	case in.Entitled > 0 && c.names != in.Entitled:
		return bad(index, "its certificate has %d names, the evidence of the intent entitles to %d", c.names, in.Entitled)
	case leaf.Sum(c.signature) != signature:
		return bad(index, "its certificate has another signature than was recorded")
	}
	name, known := c.issuer, false
	i, ok := v.issuers[in.Issuer]
	if ok {
		name, known = i.subject, true
	} else if leaf.Sum(c.spki) == in.Issuer { // a root that is an issuer no more
		name, known = c.subject, true
	}
	if !known || !bytes.Equal(c.issuer, name) {
		return bad(index, "its certificate is by an issuer that the intent does not name, or whose certificate is not in the export")
	}
	if v.opt.Signatures && (!ok || !c.verifiedBy(i.cert)) {
		return bad(index, "its certificate is not signed by its issuer, or the issuer's certificate is not in the export")
	}
	if c.ca && !v.s.Grants[in.Grant].signsCA() {
		return bad(index, "it is the certificate of a CA, which the officers did not grant")
	}
	v.s.serials[in.at].ends = c.ends
	v.s.issuer(artefact)
	v.s.Counts.Certificates++
	return v.nextCertificate(index)
}

// event: an act without a key.
func (v *verifier) event(index uint64, l *leaf.Leaf) error {
	s := v.s
	key, named := l.Hash(leaf.TagKey)
	state := l.Text(leaf.TagState)
	needs := false // a grant (P7)
	if err := s.role(index, l); err != nil {
		return err
	}
	switch l.Op {
	case leaf.OpProposal, leaf.OpVote, leaf.OpGrant, leaf.OpGrantResult, leaf.OpProposalEnd:
		return v.approval(index, l)
	case leaf.OpRoster:
		return v.rosterChange(index, l)
	case leaf.OpKeyGenerate, leaf.OpKeyAdopt, leaf.OpKeyImport:
		needs = true
		if purpose, ok := l.Uint(leaf.TagPurpose); ok && named {
			if err := s.key(index, key, purpose); err != nil {
				return err
			}
		}
	case leaf.OpKeyReplicate:
		needs = true
	case leaf.OpMemberAdd:
		needs = true
		delete(s.Members, l.Text(leaf.TagMember))
	case leaf.OpKeyDestroy:
		needs = true
		if named {
			s.Destroyed[key], s.KeyStates[key] = index, "destroyed"
		}
	case leaf.OpKeyState:
		was := s.KeyStates[key]
		if was == "destroyed" || was == "quarantined" && state != "destroyed" && state != was || state == "usable" && was != "disabled" {
			return bad(index, "a key that is %q becomes %.20q", was, state)
		}
		s.KeyStates[key] = state
	case leaf.OpMemberState: // what ends a member for good; the rest protects
		needs = state == "removed" || state == "retired"
		member := l.Text(leaf.TagMember)
		if was := s.Members[member]; state != "" && was != state && (was == "removed" || was == "retired") {
			return bad(index, "a member that was %s is %.20q again", was, state)
		} else if state != "" { // else its SO PIN was split
			s.Members[member] = state
		}
		s.Retired = s.Retired || state == "retired"
	case leaf.OpBackup: // a manifest alone gives nothing away
		needs = named || state != ""
	case leaf.OpRestore:
		needs = true
		if err := v.restored(index, l); err != nil {
			return err
		}
	case leaf.OpErase:
		if err := v.erasure(index, l); err != nil {
			return err
		}
	case leaf.OpRecovery:
		needs = true
		if l.Get(leaf.TagWarrant) != nil {
			if err := v.recovery(index, l); err != nil {
				return err
			}
		}
		if err := s.raised(index, l); err != nil {
			return err
		}
	case leaf.OpRevoke:
		needs = state == stateLost
		if err := s.revoke(index, l); err != nil {
			return err
		}
	}
	if err := s.granted(index, l, needs); err != nil {
		return err
	}
	return v.signerEvent(index, l)
}
