package hsmstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/audit"
)

// Drift is what differs between tokens, database and ledger.
type Drift struct {
	At       time.Time `json:"at"`
	Findings []Finding `json:"findings"`          // by kind, key, member; empty: nothing differs
	Asked    []string  `json:"asked"`             // members that were looked at
	Unasked  []string  `json:"unasked,omitempty"` // members that are not up
}

// Finding is one difference. All but [DriftUnknown] and [DriftMisplaced] take the key
// out of use on that member.
type Finding struct {
	Kind   DriftKind `json:"kind"`
	Key    string    `json:"key,omitempty"` // name
	Member string    `json:"member,omitempty"`
	Detail string    `json:"detail"`
	Cure   string    `json:"cure"`
}

func (f Finding) String() string {
	s := string(f.Kind)
	if f.Key != "" {
		s += " key " + f.Key
	}
	if f.Member != "" {
		s += " member " + f.Member
	}
	return s + ": " + f.Detail
}

// DriftKind says what a finding is.
type DriftKind string

// The kinds of findings.
const (
	DriftAbsent    DriftKind = "absent"    // the token does not hold the key
	DriftChanged   DriftKind = "changed"   // attributes, public half or binding are not what they shall be
	DriftUnproved  DriftKind = "unproved"  // the copy did not sign its challenge
	DriftNoBirth   DriftKind = "no-birth"  // the ledger has no leaf of its birth, adoption or import
	DriftReturned  DriftKind = "returned"  // a destroyed key is on the token again
	DriftMisplaced DriftKind = "misplaced" // a copy on a member that shall have none
	DriftUnknown   DriftKind = "unknown"   // an object with a label of ours that no key explains
	DriftDuplicate DriftKind = "duplicate" // one CKA_ID for several private keys
	DriftWrapping  DriftKind = "wrapping"  // a stored key that could take others out: TRUSTED, or wrapping and decrypting
)

// cures say what to do about a kind.
var cures = map[DriftKind]string{
	DriftAbsent:    "repair the key on this member",
	DriftChanged:   "find out who changed it, then repair the key on this member",
	DriftUnproved:  "repair the key on this member; if that does not help remove the member",
	DriftNoBirth:   "someone wrote to the database, or the ledger is not the one of this database: restore the database, destroy the key",
	DriftReturned:  "a backup of the token was restored: destroy the object with the vendor's tool, and revoke what the key signed if anyone could have used it",
	DriftMisplaced: "an interrupted ceremony left it: repeat that ceremony, or destroy the object with the vendor's tool",
	DriftUnknown:   "a genesis or ceremony was cut short, or someone made it: destroy the object with the vendor's tool",
	DriftDuplicate: "destroy the key that is not ours with the vendor's tool, then repair the key on this member",
	DriftWrapping:  "destroy it with the vendor's tool: copying keys needs no stored wrapping key",
}

const (
	driftFirst    = time.Second
	driftInterval = time.Hour
	// maxFindings go into one leaf; of more, only how many there are.
	maxFindings = 100
)

// drifts is the last result.
type drifts struct {
	mu   sync.Mutex
	last *Drift
	told string // the findings as the ledger has them
}

// LastDrift is the result of the last [Store.Verify]; ok is false before the first.
func (s *Store) LastDrift() (d Drift, ok bool) {
	s.drift.mu.Lock()
	defer s.drift.mu.Unlock()
	if s.drift.last == nil {
		return Drift{}, false
	}
	return *s.drift.last, true
}

// Verify holds every enrolled key against the tokens and the ledger: presence, pinned
// public half, attributes and binding as the worker finds them; birth evidence; a
// challenge through the door, but for keys of ceremonies; and it lists what else is
// there under a label of ours. A key that differs on a member is not used there any
// more until it is repaired or the next Verify finds it well. Members that are not up
// are left out. When the findings change, a leaf says so.
//
// The findings are in the result; an error means that the check could not be made.
func (s *Store) Verify(ctx context.Context) (Drift, error) {
	if s.ledger.ID() == (audit.LedgerID{}) {
		return Drift{}, fmt.Errorf("%w: there is no ledger yet", ErrUnavailable)
	}
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return Drift{}, err
	}
	defer unlock()
	d := Drift{At: time.Now().UTC(), Findings: []Finding{}}
	born, err := s.verifyBirths(ctx, &d)
	if err != nil {
		return d, err
	}
	for _, m := range s.list() {
		l := m.worker()
		if l == nil || m.sealed.Load() {
			d.Unasked = append(d.Unasked, m.cfg.Name)
			continue
		}
		if err := s.verifyMember(ctx, m, l, born, &d); err != nil {
			if ctx.Err() != nil || m.worker() == l {
				return d, fmt.Errorf("checking the keys of member %s: %w", m.cfg.Name, err)
			}
			d.Unasked = append(d.Unasked, m.cfg.Name) // its worker ended meanwhile
			continue
		}
		d.Asked = append(d.Asked, m.cfg.Name)
	}
	for i, f := range d.Findings {
		d.Findings[i].Cure = cures[f.Kind]
	}
	slices.SortFunc(d.Findings, func(a, b Finding) int { return strings.Compare(a.String(), b.String()) })
	return d, s.recordDrift(ctx, d)
}

// verifyBirths looks for the leaf of each key's birth and returns the keys that have
// one.
func (s *Store) verifyBirths(ctx context.Context, d *Drift) (born map[KeyID]bool, err error) {
	born = map[KeyID]bool{}
	for _, k := range s.all() {
		if k.State() == KeyDestroyed {
			continue
		}
		why, err := s.birthEvidence(ctx, k)
		if err != nil {
			return nil, err
		}
		if why == "" {
			born[k.id] = true
			continue
		}
		d.Findings = append(d.Findings, Finding{Kind: DriftNoBirth, Key: k.name, Detail: why})
	}
	return born, nil
}

// birthEvidence tells why the ledger does not show where a key comes from, or "".
func (s *Store) birthEvidence(ctx context.Context, k *Key) (string, error) {
	l, err := s.ledger.Leaf(ctx, k.birth)
	if errors.Is(err, audit.ErrNotFound) {
		return fmt.Sprintf("the ledger has no leaf %d", k.birth), nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the leaf of key %q: %w", k.name, err)
	}
	switch l.Op {
	case audit.OpGenesis:
		list, _ := l.Get(audit.TagCheckpointKeys)
		if items, err := audit.ParseList(list); err == nil && slices.ContainsFunc(items, func(b []byte) bool { return string(b) == string(k.spki) }) {
			return "", nil
		}
	case audit.OpKeyGenerate, audit.OpKeyAdopt, audit.OpKeyImport, audit.OpRestore:
		key, _ := l.Hash(audit.TagKey)
		purpose, ok := l.Uint(audit.TagPurpose)
		if key == k.spkiHash && (!ok || audit.Purpose(purpose) == k.purpose) {
			return "", nil
		}
	}
	return fmt.Sprintf("leaf %d (%s) is not the birth of this key with this purpose", k.birth, l.Op), nil
}

// all is every key, by name.
func (s *Store) all() []*Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*Key, 0, len(s.keys))
	for _, k := range s.keys {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b *Key) int { return strings.Compare(a.name, b.name) })
	return out
}

// verifyMember checks one member.
func (s *Store) verifyMember(ctx context.Context, m *member, l *link, born map[KeyID]bool, d *Drift) error {
	ask, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// What was marked before is judged anew; a check that is cut short leaves it marked, and
	// a key without a birth stays so all the time.
	before := m.takeDrift(born)
	judged := false
	defer func() {
		if !judged {
			m.putDrift(before)
		}
	}()
	if err := m.load(ask, l, s.loadRequest(m.cfg.Name)); err != nil {
		return err
	}
	bad := m.current().Bad
	for _, k := range s.all() {
		if !k.on(m) || k.State() == KeyDestroyed || k.State() == KeyBorn {
			continue
		}
		f := Finding{Key: k.name, Member: m.cfg.Name}
		switch why := bad[k.id]; {
		case !born[k.id]:
			m.markDrift(k, "the ledger does not show its birth")
		case strings.HasPrefix(why, errAbsent.Error()):
			f.Kind, f.Detail = DriftAbsent, why
		case why != "":
			f.Kind, f.Detail = DriftChanged, why
		case s.challenges(k):
			err := s.proveOn(ctx, nil, k, m)
			switch {
			case err == nil:
			case errors.Is(err, errKeyFault), errors.Is(err, errBadSig), errors.Is(err, ErrRefused):
				f.Kind, f.Detail = DriftUnproved, err.Error()
				m.markDrift(k, f.Detail)
			case (errors.Is(err, ErrBusy) || errors.Is(err, ErrUnavailable)) && ctx.Err() == nil && m.worker() == l:
				s.log.Warn("key was not proved for want of a free HSM; the next check will", "key", k.name, "member", m.cfg.Name, "err", err)
			default:
				return err
			}
		}
		if f.Kind != "" {
			d.Findings = append(d.Findings, f)
		}
	}
	judged = true
	objects, err := s.objectsOn(ctx, m.cfg.Name, objectsRequest{})
	if err != nil {
		return err
	}
	d.Findings = append(d.Findings, s.unexplained(m, objects)...)
	return nil
}

// challenges tells whether a key is proved by the hour: a root signs in ceremonies
// only, and probe keys prove themselves all the time.
func (s *Store) challenges(k *Key) bool {
	return k.usable() && k.purpose != audit.PurposeProbe && !(s.cfg.CeremonyOnly != nil && s.cfg.CeremonyOnly(k.name))
}

// unexplained are the findings among all objects of a token.
func (s *Store) unexplained(m *member, objects []TokenObject) (out []Finding) {
	byID := map[string]*Key{}
	for _, k := range s.all() {
		byID[hex.EncodeToString(k.objectsRequest().CKAID)] = k
	}
	private := map[string]int{}
	for _, o := range objects { // private keys come first
		if o.Class == "public-key" && private[o.CKAID] > 0 && !o.Trusted {
			continue // goes with its private key
		}
		f := Finding{Member: m.cfg.Name, Detail: fmt.Sprintf("%s with CKA_ID %s, label %q", o.Class, o.CKAID, audit.Text(o.Label, 100))}
		k := byID[o.CKAID]
		if k != nil && o.CKAID != "" {
			f.Key = k.name
		}
		ours := k != nil && k.adopted == nil && o.Label == keyLabel(k.purpose, k.name)
		switch {
		case o.Trusted, o.Class == "secret-key" && o.Wrap && o.Decrypt:
			f.Kind = DriftWrapping
		case ours && k.State() == KeyDestroyed:
			f.Kind = DriftReturned
		case ours && !k.on(m):
			f.Kind = DriftMisplaced
		case strings.HasPrefix(o.Label, backupLabel) && o.Class == "secret-key" && !o.Wrap && !o.Decrypt:
			// the token received backups before it became a member
		case !ours && strings.HasPrefix(o.Label, "chancery:"):
			f.Kind = DriftUnknown
		}
		if (o.Class == objectClasses[0].name || o.Class == objectClasses[2].name) && o.CKAID != "" {
			if private[o.CKAID]++; private[o.CKAID] == 2 && f.Kind == "" && k != nil {
				f.Kind = DriftDuplicate
			}
		}
		if f.Kind != "" {
			out = append(out, f)
		}
	}
	return out
}

// recordDrift logs the findings and, if they are others than before, writes the leaf.
func (s *Store) recordDrift(ctx context.Context, d Drift) error {
	s.drift.mu.Lock()
	defer s.drift.mu.Unlock()
	s.drift.last = &d
	var lines []string
	for _, f := range d.Findings {
		lines = append(lines, audit.Text(f.String(), 300))
		s.log.Error("key drift", "kind", f.Kind, "key", f.Key, "member", f.Member, "detail", f.Detail, "cure", f.Cure)
	}
	told := strings.Join(lines, "\n")
	if told == s.drift.told {
		return nil
	}
	var f audit.Fields
	if len(lines) == 0 {
		f.Text(audit.TagState, "clean")
	} else {
		f.Text(audit.TagState, "drift")
		f.Text(audit.TagReason, fmt.Sprintf("%d findings", len(lines)))
		f.List(audit.TagFindings, texts(lines[:min(len(lines), maxFindings)])...)
	}
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpKeyDrift, f)); err != nil {
		return fmt.Errorf("recording key drift: %w", err)
	}
	s.drift.told = told
	return nil
}

// watchDrift is Verify for [Store.Run], unless one is under way.
func (s *Store) watchDrift(ctx context.Context) {
	if s.ledger.ID() == (audit.LedgerID{}) {
		return // genesis is under way
	}
	if _, err := s.Verify(ctx); err != nil && ctx.Err() == nil {
		s.log.Error("keys could not be verified", "err", err)
	}
}

// markDrift takes a key out of use on this member, also across loads.
func (m *member) markDrift(k *Key, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.drift == nil {
		m.drift = map[KeyID]string{}
	}
	m.drift[k.id], m.bad[k.id] = why, why
	m.publish()
}

// publish tells signing what m.bad says now; m.mu is held.
func (m *member) publish() {
	if l := m.live.Load(); l != nil {
		m.live.Store(&live{l.link, maps.Clone(m.bad)})
	}
}

// takeDrift forgets what was marked, but for keys without a birth, and returns all of it.
func (m *member) takeDrift(born map[KeyID]bool) map[KeyID]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := maps.Clone(m.drift)
	maps.DeleteFunc(m.drift, func(id KeyID, _ string) bool { return born[id] })
	return old
}

// putDrift marks again what was marked before.
func (m *member) putDrift(old map[KeyID]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, why := range old {
		if m.drift == nil {
			m.drift = map[KeyID]string{}
		}
		if _, marked := m.drift[id]; !marked {
			m.drift[id], m.bad[id] = why, why
		}
	}
	m.publish()
}

// clearDrift forgets what was marked; the next load decides anew.
func (m *member) clearDrift() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drift = nil
}
