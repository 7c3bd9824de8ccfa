package audit

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"time"
)

// VerifySource is a snapshot of a stored ledger and of the rows that its leaves
// brought about.
type VerifySource interface {
	Reader
	// Recoveries returns the indexes of the OpRecovery leaves that [PutRecovery] noted.
	Recoveries(ctx context.Context) ([]uint64, error)
	// StoredLeaves calls fn for the leaves from..to-1 that are there, in order, with
	// what stands beside their bytes. Node is not filled in.
	StoredLeaves(ctx context.Context, from, to uint64, fn func(StoredLeaf) error) error
	// OpenRows calls fn for each intent that is listed as open.
	OpenRows(ctx context.Context, fn func(index uint64, node string) error) error
	// Checkpoints calls fn for each checkpoint, smallest first; note is "" if it is not signed.
	Checkpoints(ctx context.Context, fn func(size uint64, body, note string) error) error
	// Artefacts calls fn for each certificate whose done leaf is in from..to-1, in that order.
	Artefacts(ctx context.Context, from, to uint64, fn func(Artefact) error) error
	SerialRows(ctx context.Context, fn func(SerialRow) error) error
	RevocationRows(ctx context.Context, fn func(RevocationRow) error) error
	IssuerRows(ctx context.Context, fn func(IssuerRow) error) error
	KeyRows(ctx context.Context, fn func(KeyRow) error) error
	MemberRows(ctx context.Context, fn func(MemberRow) error) error
	RecipientRows(ctx context.Context, fn func(RecipientRow) error) error
	BackupRows(ctx context.Context, fn func(BackupRow) error) error
	// RosterRows returns every roster that was ever in force, oldest first.
	RosterRows(ctx context.Context) ([]RosterRow, error)
	ProposalRows(ctx context.Context, fn func(ProposalRow) error) error
	VoteRows(ctx context.Context, fn func(VoteRow) error) error
	// Openings is that of [Storage].
	Openings(ctx context.Context, q OpeningQuery, fn func(StoredOpenings) error) error
	// Beyond counts leaves and tiles that do not belong to a tree of a size.
	Beyond(ctx context.Context, size uint64) (int, error)
}

// Artefact is a finished certificate as its row shows it.
type Artefact struct {
	Done      uint64 // index of its done leaf
	Intent    uint64
	Issuer    [32]byte
	Serial    []byte
	Requester string
	Hash      [32]byte // SHA-256 of the certificate
	TBS       [32]byte // SHA-256 of its TBSCertificate
	CA        bool     // it is one for a CA (RFC 5280 §4.2.1.9)
	Odd       string   // a column that contradicts the certificate itself, or ""
}

// SerialRow is a reserved serial as its row shows it.
type SerialRow struct {
	Issuer   [32]byte
	Serial   []byte
	Intent   uint64
	Evidence []byte // record, see [Evidence]; nil if none was kept
}

// RevocationRow is a revoked serial as its row shows it.
type RevocationRow struct {
	Issuer   [32]byte
	Serial   []byte
	Leaf     uint64
	Reason   string // name of RFC 5280 §5.3.1
	At       time.Time
	NotAfter time.Time
	Expires  time.Time // of the certificate, or of the reserved serial
}

// IssuerRow is an issuer as its row shows it.
type IssuerRow struct {
	Name      string
	SPKI      [32]byte // SHA-256
	DER       []byte
	CRLNumber uint64    // of the last CRL intended
	CRLThis   time.Time // thisUpdate of that
	CRLCovers uint64    // of the CRL below
	CRL       []byte    // nil if there is none
}

// KeyRow is a key of the cluster as its row shows it.
type KeyRow struct {
	Name    string
	Purpose Purpose
	SPKI    []byte
	State   string // born, usable, disabled, quarantined, destroyed
}

// rows is what the leaves say that the rows of the database must be.
type rows struct {
	serials     map[uint64]reserved // by intent; nil: not followed, see [SweepSource]
	revoked     map[string]revoked  // by issuer and serial
	scopes      map[[32]byte]CRLScope
	crls        map[[32]byte]recordedCRL // nil: not followed, the sweeper looks at CRLs more often
	issuers     map[[32]byte]bool        // SHA-256 of issuers' certificates: a done leaf names it
	cluster     cluster
	approvals   approvals
	revocations uint64
	newest      uint64 // leaf of the newest revocation
}

// reserved is what an intent says of its serial and its evidence, cut to 16 octets each.
type reserved struct {
	serial, evidence [16]byte
	kept             bool // see [Leaf.KeepsEvidence]
}

type revoked struct {
	leaf    uint64
	reason  string
	at      uint64 // seconds since 1970; 0: the leaf does not say
	carried bool   // a predecessor issued the certificate
	ends    uint64 // seconds since 1970; of carried: when the certificate ends; 0: the leaf does not say
}

type recordedCRL struct {
	leaf   uint64
	hash   [32]byte
	number uint64
	covers uint64
}

func newRows() rows {
	return rows{serials: map[uint64]reserved{}, revoked: map[string]revoked{}, scopes: map[[32]byte]CRLScope{}, crls: map[[32]byte]recordedCRL{},
		issuers: map[[32]byte]bool{}, cluster: newCluster(), approvals: newApprovals()}
}

// want notes the issuers' certificates, so that they are looked for among all.
func (r *rows) want(ctx context.Context, src VerifySource) error {
	return src.IssuerRows(ctx, func(i IssuerRow) error {
		hash := sha256.Sum256(i.DER)
		if _, known := r.issuers[hash]; !known {
			r.issuers[hash] = false
		}
		return nil
	})
}

func (r *rows) certificate(artefact [32]byte) {
	if _, issuer := r.issuers[artefact]; issuer {
		r.issuers[artefact] = true
	}
}

func serialDigest(issuer [32]byte, serial []byte) [16]byte {
	sum := sha256.Sum256(append(issuer[:], serial...))
	return [16]byte(sum[:16])
}

// intent follows grants, reserved serials, and the numbers of CRLs, which only rise (P4).
func (r *rows) intent(index uint64, l Leaf) error {
	if err := r.approvals.granted(index, l); err != nil {
		return breaks("P7", err)
	}
	if err := r.cluster.intent(index, l); err != nil {
		return breaks("P8", err)
	}
	issuer, _ := l.Hash(TagIssuer)
	if serial, ok := l.Get(TagSerial); ok && l.Op == OpCertificate && r.serials != nil {
		evidence, _ := l.Hash(TagEvidence)
		r.serials[index] = reserved{serialDigest(issuer, serial), [16]byte(evidence[:16]), l.KeepsEvidence()}
	}
	number, ok := l.Uint(TagCRLNumber)
	if !ok || l.Op != OpCRL {
		return nil
	}
	this, _ := l.Uint(TagThisUpdate)
	scope := CRLScope{Number: number, ThisUpdate: time.Unix(int64(this), 0)}
	scope.Covers, _ = l.Uint(TagCovers)
	last, again := r.scopes[issuer]
	if again && (scope.Number <= last.Number || !scope.ThisUpdate.After(last.ThisUpdate) || scope.Covers < last.Covers) || scope.Covers > index {
		return breaks("P4", violate(index, "CRL %d goes back behind CRL %d, or covers what does not exist yet", scope.Number, last.Number))
	}
	r.scopes[issuer] = scope
	return nil
}

// event follows revocations, births of keys, members that joined and officers' decisions.
func (r *rows) event(index uint64, l Leaf) error {
	text := func(t Tag) string { b, _ := l.Get(t); return string(b) }
	switch l.Op {
	case OpRevoke:
		issuer, _ := l.Hash(TagIssuer)
		serial, _ := l.Get(TagSerial)
		at, _ := l.Uint(TagRevokedAt)
		now := revoked{leaf: index, reason: text(TagReason), at: at}
		if text(TagState) == stateLost { // issued in an entry that a recovery gave up
			if _, granted := l.Hash(TagGrant); !granted {
				return violate(index, "it revokes what was lost, without a recovery")
			}
			now.carried = true
		} else if _, now.carried = l.Get(TagSource); now.carried {
			var err error
			if now.ends, err = r.approvals.restoring.revocation(index, l); err != nil {
				return breaks("P4", err)
			}
		}
		r.revoke(issuer, serial, now)
	case OpRestore:
		r.restored(l)
	case OpRecovery:
		if number, ok := l.Uint(TagCRLNumber); ok {
			issuer, _ := l.Hash(TagIssuer)
			this, _ := l.Uint(TagThisUpdate)
			if last := r.scopes[issuer]; number <= last.Number || int64(this) < last.ThisUpdate.Unix() {
				return violate(index, "CRL numbers go back behind %d", last.Number)
			}
			r.scopes[issuer] = CRLScope{Number: number, ThisUpdate: time.Unix(int64(this), 0), Covers: r.scopes[issuer].Covers}
		}
	}
	if err := r.cluster.event(index, l); err != nil {
		return breaks("P8", err)
	}
	return breaks("P7", r.approvals.event(index, l))
}

// restored takes over an issuer of a predecessor, with its certificate and the number from
// which its CRLs go on. ([cluster.event] takes keys over.)
func (r *rows) restored(l Leaf) {
	if artefact, ok := l.Hash(TagArtefact); ok {
		r.certificate(artefact)
		issuer, _ := l.Hash(TagIssuer)
		number, _ := l.Uint(TagCRLNumber)
		this, _ := l.Uint(TagThisUpdate)
		r.scopes[issuer] = CRLScope{Number: number, ThisUpdate: time.Unix(int64(this), 0)}
	}
}

// revoke: a later reason replaces the first, the date stays.
func (r *rows) revoke(issuer [32]byte, serial []byte, now revoked) {
	r.newest = now.leaf
	k := string(issuer[:]) + string(serial)
	if before, again := r.revoked[k]; again {
		now.at, now.carried, now.ends = before.at, before.carried, before.ends
	}
	r.revoked[k] = now
}

// orphan: a certificate that may exist and was given to nobody is revoked (P3), unless
// somebody who had it asked for that before.
func (r *rows) orphan(index uint64, in Leaf) {
	if serial, ok := in.Get(TagSerial); ok {
		issuer, _ := in.Hash(TagIssuer)
		if _, already := r.revoked[string(issuer[:])+string(serial)]; already {
			return
		}
		r.revoke(issuer, serial, revoked{leaf: index, reason: "unspecified"})
	}
}

func (r *rows) crl(index uint64, in, done Leaf) {
	number, numbered := in.Uint(TagCRLNumber)
	if !numbered || r.crls == nil {
		return
	}
	issuer, _ := in.Hash(TagIssuer)
	c := recordedCRL{leaf: index, number: number}
	c.hash, _ = done.Hash(TagArtefact)
	c.covers, _ = in.Uint(TagCovers)
	r.crls[issuer] = c
}

// finish holds the rows against what the leaves have said.
func (r *rows) finish(ctx context.Context, src VerifySource, checkpointKeys [][]byte) error {
	if err := r.revocationRows(ctx, src); err != nil {
		return breaks("P4", err)
	}
	if err := r.approvals.finish(ctx, src); err != nil {
		return breaks("P7", err)
	}
	return breaks("P8", r.cluster.finish(ctx, src, checkpointKeys))
}

// revocationRows holds serials, revocations and CRLs against what the leaves have said.
func (r *rows) revocationRows(ctx context.Context, src VerifySource) error {
	if err := r.serialRows(ctx, src); err != nil {
		return err
	}
	ends, err := issuersEnds(ctx, src)
	if err != nil {
		return err
	}
	byIssuer := map[[32]byte][]RevocationRow{}
	err = src.RevocationRows(ctx, func(row RevocationRow) error {
		r.revocations++
		k := string(row.Issuer[:]) + string(row.Serial)
		want, ok := r.revoked[k]
		switch { // the certificate is in the predecessor's database
		case want.ends != 0:
			row.Expires = time.Unix(int64(want.ends), 0)
		case want.carried:
			row.Expires = ends[row.Issuer]
		}
		byIssuer[row.Issuer] = append(byIssuer[row.Issuer], row)
		if !ok {
			return violate(row.Leaf, "the database revokes %x, which no entry does", row.Serial)
		}
		if row.Leaf != want.leaf || row.Reason != want.reason || want.at != 0 && row.At.Unix() != int64(want.at) || !row.NotAfter.Equal(row.Expires) {
			return violate(want.leaf, "the row of its revocation of %x says something else", row.Serial)
		}
		delete(r.revoked, k)
		return nil
	})
	if err != nil {
		return err
	}
	for k, left := range r.revoked {
		return violate(left.leaf, "it revokes %x, which the database does not", k[32:])
	}
	return r.issuerRows(ctx, src, byIssuer)
}

// serialRows: each reserved serial is stored.
func (r *rows) serialRows(ctx context.Context, src VerifySource) error {
	if r.serials == nil {
		return nil
	}
	err := src.SerialRows(ctx, func(s SerialRow) error {
		want, ok := r.serials[s.Intent]
		if !ok || want.serial != serialDigest(s.Issuer, s.Serial) {
			return nil // one that no entry names blocks a serial and does no other harm
		}
		if want.kept && s.Evidence == nil {
			return violate(s.Intent, "the evidence that it rests on is gone")
		}
		if d := EvidenceDigest(s.Evidence); s.Evidence != nil && want.evidence != [16]byte(d[:16]) {
			return violate(s.Intent, "the evidence that is stored for it is not what it rests on")
		}
		delete(r.serials, s.Intent)
		return nil
	})
	if err != nil {
		return err
	}
	for intent := range r.serials {
		return violate(intent, "the serial that it reserved is not stored: it could be given again")
	}
	return nil
}

// issuersEnds are the ends of the issuers' certificates, by SHA-256 of their SPKI.
func issuersEnds(ctx context.Context, src VerifySource) (map[[32]byte]time.Time, error) {
	out := map[[32]byte]time.Time{}
	err := src.IssuerRows(ctx, func(i IssuerRow) error {
		if c, err := x509.ParseCertificate(i.DER); err == nil {
			out[i.SPKI] = c.NotAfter
		}
		return nil
	})
	return out, err
}

func (r *rows) issuerRows(ctx context.Context, src VerifySource, revocations map[[32]byte][]RevocationRow) error {
	return src.IssuerRows(ctx, func(i IssuerRow) error {
		last := r.scopes[i.SPKI]
		c, err := x509.ParseCertificate(i.DER)
		switch {
		case err != nil || sha256.Sum256(c.RawSubjectPublicKeyInfo) != i.SPKI || !r.issuers[sha256.Sum256(i.DER)]:
			return violate(0, "no entry records the certificate of issuer %q", i.Name)
		case i.CRLNumber != last.Number || last.Number > 0 && !i.CRLThis.Equal(last.ThisUpdate):
			return violate(0, "issuer %q is at CRL %d of %s, the entries are at %d of %s", i.Name, i.CRLNumber, i.CRLThis.UTC().Format(time.RFC3339), last.Number, last.ThisUpdate.UTC().Format(time.RFC3339))
		}
		recorded, done := r.crls[i.SPKI]
		if !done && i.CRL == nil || r.crls == nil {
			return nil
		}
		if sha256.Sum256(i.CRL) != recorded.hash || i.CRLCovers != recorded.covers {
			return violate(recorded.leaf, "the stored CRL of issuer %q is not the one that was recorded", i.Name)
		}
		if v := holdsAll(i, recorded, revocations[i.SPKI]); v != nil {
			return v
		}
		return nil
	})
}

// holdsAll: a CRL contains every unexpired revocation below the size that it covers.
func holdsAll(i IssuerRow, c recordedCRL, revocations []RevocationRow) *Violation {
	l, err := x509.ParseRevocationList(i.CRL)
	if err != nil {
		return violate(c.leaf, "the CRL of issuer %q cannot be read: %v", i.Name, err)
	}
	listed := make(map[string]bool, len(l.RevokedCertificateEntries))
	for _, e := range l.RevokedCertificateEntries {
		listed[string(e.SerialNumber.Bytes())] = true
	}
	for _, row := range revocations {
		if row.Leaf < c.covers && !row.Expires.Before(l.ThisUpdate) && !listed[string(row.Serial)] {
			return violate(c.leaf, "the CRL of issuer %q covers entry %d and does not list %x", i.Name, row.Leaf, row.Serial)
		}
	}
	return nil
}
