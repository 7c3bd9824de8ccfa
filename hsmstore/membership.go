package hsmstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// enrolled makes the members of the configuration that the database has enrolled; on
// an empty database all of them. What is configured and not enrolled waits for
// [Store.AddMember].
func (s *Store) enrolled() ([]*member, error) {
	var out []*member
	for _, c := range s.cfg.Members {
		if s.cfg.Enrolled == nil {
			out = append(out, s.newMember(c, Starting))
		}
	}
	for _, r := range s.cfg.Enrolled {
		if r.Standing == StandingRemoved {
			continue
		}
		m, err := s.memberOf(r)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	if s.cfg.Enrolled != nil {
		for _, c := range s.cfg.Members {
			if s.find(out, c.Name) == nil {
				s.log.Warn("configured HSM member is not enrolled; add it: chancery hsm add", "member", c.Name)
			}
		}
	}
	return out, nil
}

// memberOf makes a member as the database has it, reached as the configuration says.
func (s *Store) memberOf(r MemberRecord) (*member, error) {
	var c MemberConfig
	i := slices.IndexFunc(s.cfg.Members, func(c MemberConfig) bool { return c.Name == r.Name })
	ok := i >= 0
	if ok {
		c = s.cfg.Members[i]
	}
	if ok && c.TokenSerial != "" && c.TokenSerial != r.Serial {
		return nil, fmt.Errorf("%w: member %s: token %s is enrolled, the configuration names %s", ErrToken, r.Name, r.Serial, c.TokenSerial)
	}
	state := Starting
	switch {
	case r.Standing == StandingRetired:
		s.retired.Store(true)
		if state = Fenced; !ok {
			state, c.Name = Absent, r.Name
		}
	case !ok:
		state, c.Name = Absent, r.Name
	case r.Standing == StandingDrained:
		state = Out
	case r.Standing == StandingFenced:
		state = Fenced
	}
	if ok && c.Role != r.Role {
		return nil, fmt.Errorf("%w: member %s was enrolled with %s, the configuration says %s; a role is for good: correct hsm.members, or remove the member and add another", ErrToken, r.Name, roleText(r.Role), roleText(c.Role))
	}
	c.TokenSerial, c.Replication, c.Role = r.Serial, r.Replication, r.Role
	m := s.newMember(c, state)
	m.label, m.standing = r.Label, r.Standing
	if state == Absent {
		m.err = fmt.Errorf("%w: the configuration of this node has no member %s; add module and PIN to hsm.members and start it again", ErrModule, r.Name)
		m.log.Error("enrolled HSM member is not configured on this node")
	}
	return m, nil
}

func (s *Store) newMember(c MemberConfig, state State) *member {
	if s.cfg.Shares != nil {
		c.split = s.collect
	}
	c.atDevice = s.waitAtDevice
	return &member{cfg: c, store: s, log: s.log.With("member", c.Name), serial: c.TokenSerial, state: state, since: time.Now(), bad: map[KeyID]string{}}
}

func (s *Store) find(members []*member, name string) *member {
	for _, m := range members {
		if m.cfg.Name == name {
			return m
		}
	}
	return nil
}

func (s *Store) member(name string) *member { return s.find(s.list(), name) }

// recordStanding writes what was decided about a member.
func (s *Store) recordStanding(ctx context.Context, m *member, to Standing, reason string) error {
	var f audit.Fields
	f.Text(audit.TagReason, audit.Text(reason, 500))
	f.Text(audit.TagMember, m.cfg.Name)
	f.Text(audit.TagSerialNumber, m.current().Serial)
	f.Text(audit.TagState, string(to))
	_, err := s.ledger.Append(context.WithoutCancel(ctx), audit.Event(audit.OpMemberState, f), SetStanding{Member: m.cfg.Name, To: to})
	if err != nil {
		m.log.Error("standing of an HSM member could not be recorded", "standing", to, "err", err)
		return fmt.Errorf("recording that member %s is %s: %w", m.cfg.Name, to, err)
	}
	m.decided(to)
	s.lookAgain() // another node may have decided behind it
	return nil
}

// recordActive records that a member is active, and the truth again if it was fenced in
// that very moment: the last word is fenced.
func (s *Store) recordActive(ctx context.Context, m *member, reason string) error {
	if err := s.recordStanding(ctx, m, StandingActive, reason); err != nil {
		return err
	}
	if m.current().State != Fenced {
		return nil
	}
	err := fmt.Errorf("%w: member %s was fenced meanwhile", ErrStanding, m.cfg.Name)
	return errors.Join(err, s.recordStanding(ctx, m, StandingFenced, "fenced while it was let in"))
}

// Candidate is a token that could join, seen without its PIN.
type Candidate struct {
	Name         string    `json:"name"`
	Serial       string    `json:"serial"`
	Label        string    `json:"label"`
	Manufacturer string    `json:"manufacturer"`
	Model        string    `json:"model"`
	Firmware     string    `json:"firmware"`
	Mechanisms   []uint    `json:"mechanisms"` // CKM_ numbers
	Role         Role      `json:"role,omitempty"`
	Own          []KeySpec `json:"-"`    // keys that are born with it: probe key, perhaps a checkpoint key
	Acts         []string  `json:"acts"` // that a grant for [Store.AddMember] must list
}

// Inspect looks at the token of a member that is to join, so that the officers see
// which one it is.
func (s *Store) Inspect(ctx context.Context, cfg MemberConfig) (Candidate, error) {
	if err := cfg.validate(); err != nil {
		return Candidate{}, err
	}
	c, err := startCeremony(ctx, cfg, cfg.TokenSerial, nil, false)
	if err != nil {
		return Candidate{}, err
	}
	defer c.end()
	t := c.token
	own := s.ownSpecs(cfg, t)
	return Candidate{Name: cfg.Name, Serial: t.Serial, Label: t.Label, Manufacturer: t.Manufacturer, Model: t.Model, Firmware: t.Firmware, Mechanisms: t.Mechanisms,
		Role: cfg.Role, Own: own, Acts: joinActs(cfg.Name, t.Serial, cfg.Role, own)}, nil
}

// AddMember lets a token join while the others go on signing. It starts a worker,
// enrols the member (drained at first), bears its probe and checkpoint keys, finds a way of
// copying by throw-away keys, copies every key that is not confined to other members and
// that its role allows, proves each copy, and only then lets it have requests. progress,
// if not nil, is told each step. Cut short, it is called again with a new grant and goes
// on where it stood.
//
// The grant must list the acts of [Store.Inspect]. Errors wrap admin.ErrNotGranted,
// audit.ErrExists, ErrToken, ErrPIN, ErrModule, ErrUnavailable.
func (s *Store) AddMember(ctx context.Context, grant *admin.Grant, cfg MemberConfig, progress func(string)) (err error) {
	if progress == nil {
		progress = func(string) {}
	}
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	ctx = s.under(ctx, grant)
	cand, err := s.Inspect(ctx, cfg)
	if err != nil {
		return err
	}
	if err := s.NotRecipient(ctx, cand.Serial); err != nil {
		return err
	}
	progress(fmt.Sprintf("token %s (%s %s) found", cand.Serial, cand.Manufacturer, cand.Model))
	m, err := s.joining(cfg, cand)
	if err != nil {
		return err
	}
	if err := grant.Spend(cand.Acts[0]); err != nil {
		return fmt.Errorf("member %s: %w", cfg.Name, err)
	}
	sources, keys, err := s.openJoin(ctx, m)
	defer sources.end() // makes its transport key while the worker starts
	if err != nil {
		return err
	}
	if err := s.startJoining(ctx, grant, m); err != nil {
		return err
	}
	defer func() {
		if err != nil { // enrolled, but it has not joined: drained, as the database has it
			m.halt()
			if m.current().State != Fenced { // meanwhile, by its signatures or by a person
				m.set(Out, nil)
			}
			err = fmt.Errorf("%w; member %s stays drained: call hsm add again when the cause is gone, or hsm remove", err, cfg.Name)
		}
	}()
	progress("worker is up, member is enrolled and still drained")
	if specs := s.unborn(cand.Own); len(specs) > 0 {
		if _, err := s.generate(ctx, grant, specs); err != nil {
			return fmt.Errorf("member %s: its own keys: %w", cfg.Name, err)
		}
	}
	for from, objects := range keys {
		err := s.replicate(ctx, from, sources[from], cand.Acts, map[*member][]keyObject{m: objects}, func(c copied) error {
			k := s.keyByID(c.key.ID)
			progress(fmt.Sprintf("key %s is copied", k.name))
			return s.recordCopy(ctx, grant, c, &birth{rec: k.record()})
		})
		if err != nil {
			return err
		}
	}
	if err := s.proveAll(ctx, grant, m, progress); err != nil {
		return err
	}
	if err := s.recordActive(ctx, m, "joined"); err != nil {
		return err
	}
	m.sealed.Store(false)
	s.wake()
	progress("every copy has proved itself; the member gets requests")
	return nil
}

// unborn are the specs whose keys are not proved yet.
func (s *Store) unborn(specs []KeySpec) (out []KeySpec) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range specs {
		if k := s.keys[p.Name]; k == nil || k.State() == KeyBorn {
			out = append(out, p)
		}
	}
	return out
}

func roleText(r Role) string {
	if r == RoleAll {
		return "no role"
	}
	return "role " + string(r)
}

// joining makes the member that is to join, or finds the one that an interrupted
// AddMember left.
func (s *Store) joining(cfg MemberConfig, cand Candidate) (*member, error) {
	for _, m := range s.list() {
		st := m.current()
		switch {
		case m.cfg.Name == cfg.Name && m.cfg.Role != cfg.Role:
			return nil, fmt.Errorf("%w: member %s is enrolled with %s, the configuration says %s; a role is for good: correct hsm.members, or remove the member first", ErrStanding, cfg.Name, roleText(m.cfg.Role), roleText(cfg.Role))
		case m.cfg.Name == cfg.Name && st.State == Out && st.Serial == cand.Serial && !s.whole(m):
			cfg.split, cfg.atDevice = m.cfg.split, m.cfg.atDevice
			m.cfg = cfg
			m.cfg.TokenSerial = cand.Serial
			m.sealed.Store(true)
			return m, nil
		case m.cfg.Name == cfg.Name:
			return nil, fmt.Errorf("%w: member %s is enrolled with token %s and is %s; to let a drained or fenced one in again: chancery hsm admit", audit.ErrExists, cfg.Name, st.Serial, st.State)
		case st.Serial == cand.Serial:
			return nil, fmt.Errorf("%w: token %s is member %s already", audit.ErrExists, cand.Serial, m.cfg.Name)
		}
	}
	cfg.TokenSerial = cand.Serial
	m := s.newMember(cfg, Out)
	m.sealed.Store(true)
	return m, nil
}

// whole tells whether a member holds all keys that it shall hold.
func (s *Store) whole(m *member) bool {
	p := s.probeKey(m.cfg.Name)
	return p != nil && p.usable() && len(s.missingOn(m)) == 0 && !slices.ContainsFunc(s.all(), func(k *Key) bool { return k.on(m) && k.State() == KeyBorn })
}

// missingOn are the keys that a member shall hold and does not.
func (s *Store) missingOn(m *member) (out []*Key) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, k := range s.keys {
		switch {
		case k.on(m), k.confined, k.adopted != nil, k.purpose == audit.PurposeProbe, k.State() != KeyUsable && k.State() != KeyDisabled:
		case !m.holds(k.purpose):
		case m.native(), k.alg.scheme == eddsaScheme: // nothing can be wrapped into it, or out
		default:
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b *Key) int { return int(a.birth) - int(b.birth) })
	return out
}

// openJoin starts the giving sides for all keys that the member lacks.
func (s *Store) openJoin(ctx context.Context, m *member) (sources, map[*member][]keyObject, error) {
	out, keys := sources{}, map[*member][]keyObject{}
	act := admin.AddMemberAct(m.cfg.Name, m.cfg.TokenSerial, string(m.cfg.Role))
	for _, k := range s.missingOn(m) {
		from := s.giver(k)
		if from == nil {
			return out, nil, fmt.Errorf("%w: no member that can give key %s is up", ErrUnavailable, k.name)
		}
		if out[from] == nil {
			src, err := openSource(ctx, from, []string{act})
			if err != nil {
				return out, nil, err
			}
			out[from] = src
		}
		keys[from] = append(keys[from], k.object())
	}
	return out, keys, nil
}

// giver is a member that is up, holds the key, and can give it wrapped.
func (s *Store) giver(k *Key) *member {
	for _, m := range s.list() {
		if k.on(m) && m.ready(k.id) != nil && !m.native() && !m.cfg.WeakUnwrap {
			return m
		}
	}
	return nil
}

// object is the key as tokens hold it.
func (k *Key) object() keyObject {
	return keyObject{ID: k.id, Name: k.name, Purpose: k.purpose, Algorithm: k.alg.name, Subject: k.Subject(), SPKI: k.SPKI(), Replicable: true}
}

func (s *Store) keyByID(id KeyID) *Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, k := range s.keys {
		if k.id == id {
			return k
		}
	}
	return nil
}

// startJoining puts the member into the list, starts its worker and enrols it.
func (s *Store) startJoining(ctx context.Context, grant *admin.Grant, m *member) error {
	known := s.member(m.cfg.Name) == m
	if !known {
		s.setList(append(slices.Clone(s.list()), m))
	}
	if err := s.bringUp(ctx, m); err != nil {
		if !known {
			s.drop(m)
		}
		return err
	}
	if known {
		return nil
	}
	if err := s.recordMember(ctx, grant, m.current(), StandingDrained); err != nil {
		s.drop(m)
		return err
	}
	return nil
}

// bringUp launches a member and waits for what its first start comes to.
func (s *Store) bringUp(ctx context.Context, m *member) error {
	m.mu.Lock()
	m.state, m.err, m.badSigs = Starting, nil, 0
	m.mu.Unlock()
	r := m.launch(s.running)
	select {
	case <-r.settled:
	case <-ctx.Done():
		m.halt()
		return ctx.Err()
	}
	if st := m.current(); st.State != Up {
		m.halt()
		return fmt.Errorf("member %s does not come up: %w", m.cfg.Name, st.Err)
	}
	return nil
}

// ceremonyWait is how long an act waits for the ceremony before it.
const ceremonyWait = 10 * time.Second

// unhurriedWait is how long an act that officers have approved waits: it is not to be lost
// because the keys are being checked, or another act waits for shares.
const unhurriedWait = 45 * time.Minute

type unhurriedKey struct{}

// Unhurried lets the acts of ctx wait for the one before them as long as that may take.
func Unhurried(ctx context.Context) context.Context {
	return context.WithValue(ctx, unhurriedKey{}, true)
}

// ceremony waits for its turn: one act on keys or members at a time. One before it may
// wait for officers' shares, so the wait is bounded: ErrBusy.
func (s *Store) ceremony(ctx context.Context) (unlock func(), err error) {
	patience := ceremonyWait
	if ctx.Value(unhurriedKey{}) != nil {
		patience = unhurriedWait
	}
	end := time.Now().Add(patience)
	release := func() {}
	if s.cfg.Nodes != nil { // first: what other nodes do meanwhile is taken up under keysMu
		waits, cancel := context.WithDeadline(ctx, end)
		release, err = s.cfg.Nodes.Exclusive(waits, ceremonies)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("%w: another act on keys or members is under way, here or on another node (it may wait for officers' shares: chancery hsm share); try again later: %w", ErrBusy, err)
		}
	}
	for !s.keysMu.TryLock() {
		if time.Now().After(end) {
			release()
			return nil, fmt.Errorf("%w: another act on keys or members is under way (it may wait for officers' shares: chancery hsm share); try again later", ErrBusy)
		}
		if err := wait(ctx, ceremonyPause); err != nil {
			release()
			return nil, err
		}
	}
	if s.cfg.Nodes != nil { // the act before it was perhaps another node's
		if err := s.takeUpHeld(ctx); err != nil {
			s.log.Error("what other nodes changed about keys and members is not known yet", "err", err)
		}
	}
	return func() { s.keysMu.Unlock(); release() }, nil
}

// ceremonyPause is how often an act looks whether the one before it has ended.
const ceremonyPause = 20 * time.Millisecond

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// setList replaces the members.
func (s *Store) setList(members []*member) {
	s.members.Store(&members)
	s.resize()
}

// drop takes a member out of the list and ends its worker.
func (s *Store) drop(m *member) {
	s.setList(slices.DeleteFunc(slices.Clone(s.list()), func(x *member) bool { return x == m }))
	m.halt()
}

// proveAll proves every key that is there for the first time, and then counts the
// member among those that hold it.
func (s *Store) proveAll(ctx context.Context, grant *admin.Grant, m *member, progress func(string)) error {
	missing := s.missingOn(m)
	load := s.loadRequest(m.cfg.Name)
	for _, k := range missing {
		load.Keys = append(load.Keys, k.pin())
	}
	m.mu.Lock()
	l := m.link
	m.mu.Unlock()
	if l == nil {
		return fmt.Errorf("%w: member %s went away while it joined", ErrUnavailable, m.cfg.Name)
	}
	if err := m.load(ctx, l, load); err != nil {
		return fmt.Errorf("making keys known to member %s: %w", m.cfg.Name, err)
	}
	for _, k := range missing {
		if err := s.proveOn(ctx, grant, k, m, KeyCopied{ID: k.id, Member: m.cfg.Name}); err != nil {
			return fmt.Errorf("proving key %q on member %s: %w", k.name, m.cfg.Name, err)
		}
		k.setMembers(append(k.Members(), m.cfg.Name)) // the member is sealed until all have
		progress(fmt.Sprintf("key %s has proved itself", k.name))
	}
	return nil
}

func (s *Store) mustBe(name string, states ...State) (*member, error) {
	m := s.member(name)
	if m == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoMember, name)
	}
	if st := m.current().State; !slices.Contains(states, st) {
		return nil, fmt.Errorf("%w: member %s is %s; for this it must be one of %v", ErrStanding, name, st, states)
	}
	return m, nil
}

// Drain takes a member out: it gets no new requests, those under way end, then its
// worker is stopped. It stays out after a restart, until [Store.Admit].
//
// With force also the last member that can sign with some key is taken out.
func (s *Store) Drain(ctx context.Context, name, reason string, force bool) error {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := s.mustBe(name, Up, Starting, Suspect, Down)
	if err != nil {
		return err
	}
	if err := s.notTheLast(m); err != nil && !force {
		return err
	}
	if err := s.recordStanding(ctx, m, StandingDrained, reason); err != nil {
		return err
	}
	m.set(Out, nil)
	s.resize()
	if err := m.quiet(ctx); err != nil {
		m.log.Warn("drained with requests under way; they are tried elsewhere", "err", err)
	}
	m.halt()
	return nil
}

// notTheLast refuses to take a member out that alone can sign with some key.
func (s *Store) notTheLast(m *member) error {
	for _, k := range s.all() {
		if !k.usable() || !k.on(m) || k.purpose == audit.PurposeProbe || k.purpose == audit.PurposeCheckpoint && s.othersCheckpoint(m, true, false) {
			continue
		}
		other := slices.ContainsFunc(s.list(), func(o *member) bool { return o != m && k.on(o) && o.ready(k.id) != nil })
		if !other {
			return fmt.Errorf("%w: member %s is the only one that can sign with key %s now; let another come up or be added first", ErrStanding, m.cfg.Name, k.name)
		}
	}
	return nil
}

// Fence takes a member out at once because it is not to be trusted: its worker is
// killed, what is under way is tried elsewhere. It stays so after a restart, until
// [Store.Admit].
func (s *Store) Fence(ctx context.Context, name, reason string) error {
	m, err := s.mustBe(name, Up, Starting, Suspect, Down, Out)
	if err != nil {
		return err
	}
	out := func() {
		m.set(Fenced, fmt.Errorf("fenced: %s", audit.Text(reason, 200)))
		m.halt()
		s.resize()
	}
	out()
	err = s.recordStanding(ctx, m, StandingFenced, reason)
	out() // also if it was let in again meanwhile
	return err
}

// Admit lets a drained or fenced member back: its worker is started, which checks the
// token's serial number, its probe key and every other key, and only if it comes up
// and each of its keys has proved itself is the member active again.
func (s *Store) Admit(ctx context.Context, name, reason string) error {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if s.retired.Load() {
		return errRetired
	}
	m, err := s.mustBe(name, Out, Fenced)
	if err != nil {
		return err
	}
	was := m.current()
	m.halt()
	m.sealed.Store(true) // no requests before the proofs
	err = s.bringUp(ctx, m)
	if err == nil {
		err = s.proveHeld(ctx, m)
	}
	if err == nil {
		err = s.recordActive(ctx, m, reason)
	}
	if err != nil {
		m.halt()
		m.mu.Lock()
		if m.state != Fenced { // meanwhile, by its signatures or by a person
			m.state = was.State
		}
		m.err = err
		m.live.Store(nil)
		m.mu.Unlock()
		return fmt.Errorf("member %s is not admitted: %w", name, err)
	}
	m.sealed.Store(false)
	s.resize()
	s.wake()
	return nil
}

// proveHeld lets every key that a member holds prove itself there.
func (s *Store) proveHeld(ctx context.Context, m *member) error {
	s.mu.RLock()
	var held []*Key
	for _, k := range s.keys {
		if k.on(m) && (s.challenges(k) || k.purpose == audit.PurposeProbe && k.usable()) { // a root's signs in ceremonies only
			held = append(held, k)
		}
	}
	s.mu.RUnlock()
	for _, k := range held {
		if err := s.proveOn(ctx, nil, k, m); err != nil {
			return fmt.Errorf("proving key %q: %w", k.name, err)
		}
	}
	return nil
}

// RemoveMember lets a member leave the cluster for good. It must be drained or
// fenced. The keys on its token are not touched: destroy them with the vendor's tools,
// or wipe the token. Its probe and checkpoint keys count as destroyed from then on; the
// last member with a checkpoint key of leaf 0 cannot leave. The act is
// admin.RemoveMemberAct.
func (s *Store) RemoveMember(ctx context.Context, grant *admin.Grant, name string) error {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := s.mustBe(name, Out, Fenced, Absent)
	if err != nil {
		return err
	}
	s.mu.RLock()
	var held []*Key
	for _, k := range s.keys {
		if k.on(m) {
			held = append(held, k)
		}
	}
	s.mu.RUnlock()
	var ends []*Key
	for _, k := range held {
		alone := len(k.Members()) == 1 && k.State() != KeyDestroyed
		switch {
		case alone && k.purpose == audit.PurposeCheckpoint && !s.othersCheckpoint(m, false, k.birth == 0):
			return fmt.Errorf("%w: member %s holds the last checkpoint key that leaf 0 names, %s: without it no manifest of a backup can be verified; to end the use of its token, restore into a new ledger", ErrStanding, name, k.name)
		case alone && k.purpose == audit.PurposeCheckpoint:
			ends = append(ends, k)
		case alone && k.purpose != audit.PurposeProbe:
			return fmt.Errorf("%w: member %s holds the only copy of key %s; destroy that key or copy it first", ErrStanding, name, k.name)
		}
	}
	if err := grant.Spend(admin.RemoveMemberAct(name, m.current().Serial)); err != nil {
		return fmt.Errorf("member %s: %w", name, err)
	}
	for _, k := range ends { // first, so that a crash leaves a member that can be removed again
		if err := s.endCheckpointKey(ctx, grant, k); err != nil {
			return err
		}
	}
	rows := []audit.Projection{SetStanding{Member: name, To: StandingRemoved}}
	for _, k := range held {
		rows = append(rows, KeyGone{ID: k.id, Member: name})
		if k.purpose == audit.PurposeProbe {
			rows = append(rows, SetKeyState{ID: k.id, From: []KeyState{KeyBorn, KeyUsable, KeyDisabled, KeyQuarantined}, To: KeyDestroyed})
		}
	}
	var f audit.Fields
	f.Hash(audit.TagGrant, grant.Hash())
	f.Text(audit.TagMember, name)
	f.Text(audit.TagSerialNumber, m.current().Serial)
	f.Text(audit.TagState, string(StandingRemoved))
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpMemberState, f), rows...); err != nil {
		return fmt.Errorf("removing member %s: %w", name, err)
	}
	for _, k := range held {
		k.setMembers(slices.DeleteFunc(k.Members(), func(n string) bool { return n == name }))
		if k.purpose == audit.PurposeProbe {
			k.setState(KeyDestroyed)
		}
	}
	s.drop(m)
	return nil
}

// endCheckpointKey records that a key signs no checkpoint from here on: its member leaves.
func (s *Store) endCheckpointKey(ctx context.Context, grant *admin.Grant, k *Key) error {
	f := k.stateFields(KeyDestroyed, "its member leaves")
	f.Hash(audit.TagGrant, grant.Hash())
	to := SetKeyState{ID: k.id, From: []KeyState{KeyBorn, KeyUsable, KeyDisabled, KeyQuarantined}, To: KeyDestroyed}
	was := k.State()
	k.setState(KeyDestroyed) // first: no checkpoint that covers the entry may rest on this key alone
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpKeyState, f), to); err != nil {
		k.setState(was)
		return fmt.Errorf("recording the end of key %q: %w", k.name, err)
	}
	return nil
}

// quiet waits until nothing is under way on the member.
func (m *member) quiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.store.cfg.SignTimeout)
	defer cancel()
	for m.outstanding.Load() > 0 {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
