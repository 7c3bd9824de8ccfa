package audit

import (
	"context"
	"encoding/binary"
	"time"
)

// Entry is a leaf before the ledger has stamped it with its id and the time.
type Entry struct {
	Kind   Kind
	Op     Op
	ID     OpID   // zero: a fresh one is drawn
	Closes uint64 // NoIndex if none; see [Event]
	Fields Fields

	still   func() error // see Intent.Still
	Private []Private    // the ledger adds their commitments to Fields
}

// Event makes an entry for an act that uses no key.
func Event(op Op, f Fields) Entry { return Entry{Kind: KindEvent, Op: op, Closes: NoIndex, Fields: f} }

// Projection is a row change that commits with a leaf, or on its own by
// [Ledger.Write]: a plain value whose type says what is to happen. Packages ca,
// acme, signing and hsmstore declare them; dbstore carries them out and returns
// [ErrConflict] when the state that a projection expects is not there.
type Projection interface{ Projection() }

// Intent is what is known before a key is used. Fields without a value are left out.
type Intent struct {
	Op          Op
	Key         [32]byte // SHA-256 of the SPKI
	Purpose     Purpose
	Algorithm   []byte // AlgorithmIdentifier DER
	TBSHash     [32]byte
	TBSLength   uint64
	Issuer      [32]byte // SHA-256 of the issuer's SPKI
	Serial      []byte
	Profile     [32]byte
	Evidence    [32]byte
	Requester   string
	Grant       [32]byte
	MaxAttempts uint8
	CRL         *CRLScope // for OpCRL
	Member      string    // for OpKeyProof: token serial number
	Private     []Private

	// Still is asked in the moment of the commit, when all entries before it are known,
	// also those of other nodes; its error keeps the intent off the ledger. It must not
	// wait. nil: nothing is asked.
	Still func() error
}

// CRLScope is what a CRL's intent promises (RFC 5280 §5.1.2.4, §5.2.3).
type CRLScope struct {
	Number     uint64
	ThisUpdate time.Time
	Covers     uint64 // contains every unexpired revocation below this ledger size
}

func (in Intent) entry(node, build string) Entry {
	var f Fields
	f.Hash(TagKey, in.Key)
	f.Uint8(TagPurpose, uint8(in.Purpose))
	f.Bytes(TagAlgorithm, in.Algorithm)
	f.Hash(TagTBSHash, in.TBSHash)
	f.Uint64(TagTBSLength, in.TBSLength)
	f.Hash(TagIssuer, in.Issuer)
	f.Bytes(TagSerial, in.Serial)
	f.Hash(TagProfile, in.Profile)
	f.Hash(TagEvidence, in.Evidence)
	f.Text(TagRequester, in.Requester)
	f.Hash(TagGrant, in.Grant)
	f.Uint8(TagMaxAttempts, in.MaxAttempts)
	f.Text(TagNode, node)
	f.Text(TagBuild, build)
	if in.CRL != nil {
		f.Uint64(TagCRLNumber, in.CRL.Number)
		f.Uint64(TagThisUpdate, uint64(in.CRL.ThisUpdate.Unix()))
		f.Uint64(TagCovers, in.CRL.Covers)
	}
	f.Text(TagSerialNumber, in.Member)
	return Entry{Kind: KindIntent, Op: in.Op, Closes: NoIndex, Fields: f, Private: in.Private, still: in.Still}
}

// Attempt counts the tries of one member for one signature.
type Attempt struct {
	Member string
	Count  uint32
}

// Done is what is known when a key has been used.
type Done struct {
	Signature [32]byte // SHA-256 of the signature
	Artefact  [32]byte // SHA-256 of the finished artefact
	Attempts  []Attempt
}

func (d Done) fields(intent [32]byte) Fields {
	var f Fields
	f.Hash(TagIntentHash, intent)
	f.Hash(TagSignature, d.Signature)
	f.Hash(TagArtefact, d.Artefact)
	f.Bytes(TagAttempts, attempts(d.Attempts))
	return f
}

func attempts(as []Attempt) []byte {
	var f Fields
	var items [][]byte
	for _, a := range as {
		items = append(items, []byte(a.Member), binary.BigEndian.AppendUint32(nil, a.Count))
	}
	f.List(TagAttempts, items...)
	if len(f) == 0 {
		return nil
	}
	return f[0].Value
}

// Opened is an intent that is durable and not yet closed.
type Opened struct {
	Index uint64
	Hash  [32]byte // Merkle leaf hash
	Leaf  Leaf
}

func (o Opened) closing(k Kind, f Fields) Entry {
	return Entry{Kind: k, Op: o.Leaf.Op, ID: o.Leaf.ID, Closes: o.Index, Fields: f}
}

// Appended is a leaf that is durable.
type Appended struct {
	Index uint64
	Bytes []byte
	Leaf  Leaf
}

// Receipt promises that a leaf is in the ledger; the proof exists within 2 s.
type Receipt struct {
	Origin   string `json:"origin"`
	Index    uint64 `json:"index"`
	Leaf     []byte `json:"leaf"`      // the done leaf; base64 in JSON
	ProofURL string `json:"proof_url"` // C2SP tlog-proof
}

// Session is a sign-in at the console, or the end of one.
type Session struct {
	ID        OpID // the same for both
	Requester string
	Client    string // its address, or ""
	Out       bool
}

// Session records that somebody signed in or out. Nobody is let in before it returns nil.
func (l *Ledger) Session(ctx context.Context, s Session) error {
	outcome := "signed in"
	if s.Out {
		outcome = "signed out"
	}
	var f Fields
	f.Text(TagRequester, s.Requester)
	f.Text(TagOutcome, outcome)
	f.Text(TagNode, l.opt.Node)
	e := Event(OpSession, f)
	e.ID, e.Private = s.ID, []Private{{TagAddress, s.Client}}
	_, err := l.Append(ctx, e)
	return err
}
