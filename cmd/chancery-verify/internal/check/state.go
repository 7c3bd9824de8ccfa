package check

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// State is what a verification has to keep so that the next one goes on from there: the
// right edge of the tree and what the entries have left open. Nobody signs it: it is the
// auditor's own. It is bound to the ledger, and to its first Edge.Size entries by their hash.
type State struct {
	Version    int                       `json:"version"`
	Origin     string                    `json:"origin"`
	Ledger     leaf.Hash                 `json:"ledger"`
	Edge       edge                      `json:"edge"`
	Last       int64                     `json:"last"` // time of the last entry, microseconds since 1970
	Counts     counts                    `json:"counts"`
	Open       map[uint64]openIntent     `json:"open"`
	Scopes     map[leaf.Hash]scope       `json:"scopes"` // by issuer
	CRLs       map[leaf.Hash]recordedCRL `json:"crls"`   // by issuer
	Issuers    []leaf.Hash               `json:"issuers"`
	Certified  map[leaf.Hash]bool        `json:"certified"` // issuers' certificates: an entry records it
	Keys       map[leaf.Hash]uint64      `json:"keys"`      // their one purpose (P8)
	Destroyed  map[leaf.Hash]uint64      `json:"destroyed"` // keys: by which entry
	KeyStates  map[leaf.Hash]string      `json:"key_states"`
	Roster     leaf.Hash                 `json:"roster"` // digest
	Proposals  map[leaf.Hash]*proposal   `json:"proposals"`
	Grants     map[leaf.Hash]*mandate    `json:"grants"`
	Signers    []signer                  `json:"signers"` // keys of checkpoints
	Roles      map[string]string         `json:"roles"`   // of tokens, by serial number
	Others     map[string]bool           `json:"others"`  // tokens with keys that are not for checkpoints or probes
	Members    map[string]string         `json:"members"` // what became of those that are not just active
	Retired    bool                      `json:"retired"`
	Restore    restore                   `json:"restore"`
	Recoveries []Recovery                `json:"recoveries,omitempty"`
	Serials    []byte                    `json:"serials"` // packed
	Revoked    []byte                    `json:"revoked"` // packed

	serials []serialRecord
	revoked []revocation
	numbers map[leaf.Hash]uint16 // of Issuers
	wanted  map[leaf.Hash]bool   // issuers' certificates in the export
}

type counts struct {
	Intents      uint64 `json:"intents"`
	Done         uint64 `json:"done"`
	Failed       uint64 `json:"failed"`
	Orphans      uint64 `json:"orphans"`
	Certificates uint64 `json:"certificates"`
	Grants       uint64 `json:"grants"`
	Backward     uint64 `json:"backward"`
}

// openIntent is an intent that nothing has closed yet.
type openIntent struct {
	Hash     leaf.Hash `json:"hash"`
	Op       leaf.Op   `json:"op"`
	ID       [16]byte  `json:"id"`
	Time     int64     `json:"time"`
	Key      leaf.Hash `json:"key"`
	TBS      leaf.Hash `json:"tbs"`
	Length   uint64    `json:"length"`
	Issuer   leaf.Hash `json:"issuer"`
	Serial   []byte    `json:"serial,omitempty"`
	Grant    leaf.Hash `json:"grant"`
	Numbered bool      `json:"numbered,omitempty"` // of a CRL; then:
	Number   uint64    `json:"number,omitempty"`
	This     uint64    `json:"this,omitempty"`
	Covers   uint64    `json:"covers,omitempty"`
	Entitled int       `json:"entitled,omitempty"` // names that its evidence entitles to; 0: it does not say

	at int // in State.serials
}

func newState(origin string, ledger leaf.Hash) *State {
	s := &State{Version: 1, Origin: origin, Ledger: ledger}
	s.make()
	return s
}

func (s *State) make() {
	def(&s.Open)
	def(&s.Scopes)
	def(&s.CRLs)
	def(&s.Certified)
	def(&s.Keys)
	def(&s.Destroyed)
	def(&s.KeyStates)
	def(&s.Members)
	def(&s.Roles)
	def(&s.Others)
	def(&s.Proposals)
	def(&s.Grants)
	def(&s.numbers)
}

func def[K comparable, V any](m *map[K]V) {
	if *m == nil {
		*m = map[K]V{}
	}
}

// genesis notes the officers' digest, the predecessor, and the grant of leaf 0.
func (s *State) genesis(l *leaf.Leaf) {
	s.Roster, _ = l.Hash(leaf.TagRoster)
	s.Restore.Previous = l.Text(leaf.TagPrevious)
	acts, _ := leaf.List(l.Get(leaf.TagActs)) // a list that cannot be read allows nothing
	s.Grants[genesisGrant(l)] = newMandate(acts)
}

// key holds a key to its one purpose.
func (s *State) key(index uint64, key leaf.Hash, purpose uint64) error {
	if before, ok := s.Keys[key]; ok && before != purpose {
		return bad(index, "the key is of purpose %d here, before it was of purpose %d", purpose, before)
	}
	s.Keys[key] = purpose
	return nil
}

// issuer notes a certificate that an entry records, if it is one of an issuer.
func (s *State) issuer(artefact leaf.Hash) {
	if s.wanted[artefact] {
		s.Certified[artefact] = true
	}
}

// issuerNumber stands for an issuer in the many records.
func (s *State) issuerNumber(spki leaf.Hash) uint16 {
	n, ok := s.numbers[spki]
	if !ok {
		n = uint16(len(s.Issuers)) // more than 65,536 issuers share numbers, which makes the check of CRLs stricter, never weaker
		s.Issuers, s.numbers[spki] = append(s.Issuers, spki), n
	}
	return n
}

// The sizes of packed records.
const (
	packedSerial  = 16 + 8 + 8
	packedRevoked = 16 + 2 + 8 + 8 + 8 + 1
)

// Encode gives the octets of a state file.
func (s *State) Encode() ([]byte, error) {
	be := binary.BigEndian
	s.Serials = make([]byte, 0, len(s.serials)*packedSerial)
	for _, r := range s.serials {
		s.Serials = be.AppendUint64(be.AppendUint64(append(s.Serials, r.of[:]...), r.intent), uint64(r.ends))
	}
	s.Revoked = make([]byte, 0, len(s.revoked)*packedRevoked)
	for _, r := range s.revoked {
		b := be.AppendUint16(append(s.Revoked, r.of[:]...), r.issuer)
		b = be.AppendUint64(be.AppendUint64(be.AppendUint64(b, r.leaf), r.orphan), uint64(r.ends))
		s.Revoked = append(b, map[bool]byte{true: 1}[r.by])
	}
	return json.Marshal(s)
}

// DecodeState reads a state file.
func DecodeState(b []byte) (*State, error) {
	s := &State{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("the state file: %w", err)
	}
	if s.Version != 1 || !s.Edge.sound() || len(s.Serials)%packedSerial != 0 || len(s.Revoked)%packedRevoked != 0 {
		return nil, errors.New("the state file is none of this version, or was cut short")
	}
	s.make()
	be := binary.BigEndian
	for b := s.Serials; len(b) > 0; b = b[packedSerial:] {
		r := serialRecord{of: digest16(b), intent: be.Uint64(b[16:]), ends: int64(be.Uint64(b[24:]))}
		if in, open := s.Open[r.intent]; open {
			in.at = len(s.serials)
			s.Open[r.intent] = in
		}
		s.serials = append(s.serials, r)
	}
	for b := s.Revoked; len(b) > 0; b = b[packedRevoked:] {
		r := revocation{of: digest16(b), issuer: be.Uint16(b[16:]), leaf: be.Uint64(b[18:]), orphan: be.Uint64(b[26:]), ends: int64(be.Uint64(b[34:])), by: b[42] == 1}
		if int(r.issuer) >= len(s.Issuers) {
			return nil, errors.New("the state file names an issuer that it does not have")
		}
		s.revoked = append(s.revoked, r)
	}
	s.Serials, s.Revoked = nil, nil
	for n, spki := range s.Issuers {
		s.numbers[spki] = uint16(n)
	}
	for _, p := range s.Proposals {
		if p == nil {
			return nil, errors.New("the state file has a proposal that is none")
		}
		def(&p.Votes)
	}
	for _, m := range s.Grants {
		if m == nil {
			return nil, errors.New("the state file has a grant that is none")
		}
		def(&m.Used)
	}
	for _, in := range s.Open { // an intent of a certificate has its serial
		if in.Op == leaf.OpCertificate && (in.at < 0 || in.at >= len(s.serials)) {
			return nil, errors.New("the state file has an intent without its serial")
		}
	}
	return s, nil
}
