package hsmstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// ceremonyProcess is a ceremony worker, seen from the store.
type ceremonyProcess struct {
	member string
	module string
	proc   *process
	next   uint64
	token  openedCeremony

	atDevice func(token string) (done func()) // told when the SO's login waits at the device; nil: nobody is
	waiting  bool                             // it does now
	arrived  func()                           // ends what atDevice began
}

// ceremonyTimeout bounds one command; RSA-4096 key generation is the longest.
const ceremonyTimeout = 2 * time.Minute

// startCeremony starts a ceremony worker. With so its SO PIN goes there too, and
// the SO is logged in when this returns: SoftHSM writes to the token at a login
// and fails with CKR_GENERAL_ERROR if two processes do so in the same moment.
func startCeremony(ctx context.Context, cfg MemberConfig, serial string, acts []string, so bool) (*ceremonyProcess, error) {
	if err := checkModule(cfg.Module); err != nil {
		return nil, fmt.Errorf("member %s: %w", cfg.Name, err)
	}
	mandate, err := mandateOf(ctx, cfg, acts)
	if err != nil {
		return nil, fmt.Errorf("ceremony on member %s: %w", cfg.Name, err)
	}
	userPIN, err := cfg.PIN()
	if err != nil {
		return nil, fmt.Errorf("getting the PIN of member %s: %w", cfg.Name, err)
	}
	soPIN := ""
	shared := so && cfg.SplitSO && cfg.split != nil
	if so && !shared && !cfg.DeviceSO {
		if cfg.SOPIN == nil {
			return nil, fmt.Errorf("%w: member %s: copying keys needs the SO PIN; give so_pin for the time of the ceremony", ErrPIN, cfg.Name)
		}
		if soPIN, err = cfg.SOPIN(); err != nil {
			return nil, fmt.Errorf("getting the SO PIN of member %s: %w", cfg.Name, err)
		}
	}
	c, err := newCeremony(cfg, userPIN, soPIN)
	if err != nil {
		return nil, err
	}
	if err := c.do(ctx, cerOpen, openCeremony{Module: cfg.Module, Reserved: cfg.Reserved, Label: cfg.TokenLabel, Serial: serial, mandate: mandate, SO: so && !shared, Device: cfg.DeviceSO, Native: cfg.Replication == ReplicateNative, Weak: cfg.WeakUnwrap}, &c.token); err != nil {
		c.end()
		return nil, err
	}
	if shared {
		if err := cfg.split(ctx, cfg, c); err != nil {
			c.end()
			return nil, err
		}
	}
	return c, nil
}

func newCeremony(cfg MemberConfig, userPIN, soPIN string) (*ceremonyProcess, error) {
	p, err := startProcess(ceremonyCommand, cfg, userPIN, soPIN)
	if err != nil {
		return nil, err
	}
	c := &ceremonyProcess{member: cfg.Name, module: cfg.Module, proc: p}
	if cfg.atDevice != nil {
		c.atDevice = func(token string) func() { return cfg.atDevice(cfg.Name, token) }
	}
	return c, nil
}

// end ends the process; session objects – transport keys, KEKs – end with it.
func (c *ceremonyProcess) end() { c.proc.stop() }

// do sends one command and waits for its reply.
func (c *ceremonyProcess) do(ctx context.Context, op byte, q, a any) error {
	stop := context.AfterFunc(ctx, c.proc.kill)
	defer stop()
	_ = c.proc.conn.SetDeadline(time.Now().Add(ceremonyTimeout))
	c.next++
	err := writeJSON(c.proc.conn, c.next, op, q)
	var f frame
	defer c.stopWaiting()
	// Also after a failed write: the last words say why the process ended.
	r, rerr := readFrame(c.proc.r)
	for ; rerr == nil && r.op == statusWaits; r, rerr = readFrame(c.proc.r) {
		c.heard(r.payload)
	}
	if rerr == nil {
		f, err = r, nil
	} else if c.waiting && errors.Is(rerr, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: the vendor's quorum was not given at the device within %v", ErrPIN, deviceTimeout)
	} else if err == nil {
		err = fmt.Errorf("%w: %v; it said %q", errDied, rerr, c.proc.stderr.String())
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err == nil && f.op == statusFatal:
		err = fatalError(f.payload)
	case err == nil && f.id != c.next:
		err = errors.New("reply to another command")
	}
	if err != nil {
		return fmt.Errorf("ceremony on member %s: %w", c.member, err)
	}
	return json.Unmarshal(f.payload, a)
}

// generateOn bears keys on one member.
func (s *Store) generateOn(ctx context.Context, m *member, acts []string, keys []keyObject) ([]bornKey, error) {
	c, err := startCeremony(ctx, m.cfg, m.current().Serial, acts, false)
	if err != nil {
		return nil, err
	}
	defer c.end()
	var born []bornKey
	if err := c.do(ctx, cerGenerate, keys, &born); err != nil {
		return nil, err
	}
	if len(born) != len(keys) {
		return nil, fmt.Errorf("ceremony on member %s: %d keys were asked for, %d were born", m.cfg.Name, len(keys), len(born))
	}
	for i := range born {
		if born[i].ID != keys[i].ID {
			return nil, fmt.Errorf("ceremony on member %s: another key was born", m.cfg.Name)
		}
	}
	return born, nil
}

// copied is one copy that was made.
type copied struct {
	key       keyObject
	member    *member
	mechanism string
	born      bornKey
}

// source is the giving side of a ceremony: its process makes the transport pair
// while keys are still being born.
type source struct {
	proc  *ceremonyProcess
	ready chan struct{} // closed when the fields below are set
	tr    transport
	err   error
}

// openSource starts the giving side on a member; end must be called.
func openSource(ctx context.Context, m *member, acts []string) (*source, error) {
	proc, err := startCeremony(ctx, m.cfg, m.current().Serial, acts, true)
	if err != nil {
		return nil, err
	}
	src := &source{proc: proc, ready: make(chan struct{})}
	go func() {
		defer close(src.ready)
		src.err = proc.do(ctx, cerTransport, struct{}{}, &src.tr)
	}()
	return src, nil
}

// end ends the process, also while it still makes the pair.
func (src *source) end() {
	src.proc.end()
	<-src.ready
}

// replicate copies keys from one member to others by the flow of replicate.go,
// with one transport pair for all. Each copy is reported as soon as it is there.
func (s *Store) replicate(ctx context.Context, from *member, src *source, acts []string, keys map[*member][]keyObject, report func(copied) error) error {
	<-src.ready
	if src.err != nil {
		return src.err
	}
	for _, target := range s.list() {
		if len(keys[target]) == 0 {
			continue
		}
		if err := s.copyTo(ctx, src, target, acts, keys[target], report); err != nil {
			return fmt.Errorf("copying keys from member %s to %s: %w", from.cfg.Name, target.cfg.Name, err)
		}
	}
	return nil
}

// pairs remembers which way works from one module to another, by key type: once
// found out it is not found out again in this process.
type pairs struct {
	mu    sync.Mutex
	known map[string]int
}

func (p *pairs) get(key string) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.known[key]
	return w, ok
}

func (p *pairs) put(key string, w int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[string]int{}
	}
	p.known[key] = w
}

// kind names what decides about the way: make, model, firmware, mechanisms; two HSMs of
// one make can have different policies.
func (c openedCeremony) kind() string {
	return fmt.Sprintf("%s/%s/%s/%x", c.Manufacturer, c.Model, c.Firmware, c.Mechanisms)
}

func (s *Store) copyTo(ctx context.Context, src *source, target *member, acts []string, keys []keyObject, report func(copied) error) error {
	so := !target.cfg.WeakUnwrap
	dst, err := startCeremony(ctx, target.cfg, target.current().Serial, acts, so)
	if err != nil {
		return err
	}
	defer dst.end()
	ask := newKEKs{Modulus: src.tr.Modulus}
	wrap := make([]wrappedKey, len(keys))
	types := make([]uint, len(keys))
	for i, o := range keys {
		pub, _, err := parseSPKI(o.SPKI, o.Algorithm)
		if err != nil {
			return err
		}
		wrap[i] = wrappedKey{Key: o, Target: target.cfg.Name, Serial: dst.token.Serial}
		if types[i] = keyTypeOf(pub); !slices.Contains(ask.Types, types[i]) {
			ask.Types = append(ask.Types, types[i])
		}
	}
	var keks []wrappedKEK
	if err := dst.do(ctx, cerNewKEKs, ask, &keks); err != nil {
		return err
	}
	if err := src.proc.do(ctx, cerTakeKEKs, keks, &struct{}{}); err != nil {
		return err
	}
	if slices.ContainsFunc(waysBetween(src.proc.token.Mechanisms, dst.token.Mechanisms), func(i int) bool { return ways[i].hop != nil }) {
		var hops []hop
		if err := dst.do(ctx, cerHopPair, ask.Types, &hops); err != nil {
			return err
		}
		if err := src.proc.do(ctx, cerHopTake, hops, &struct{}{}); err != nil {
			return err
		}
	}
	for _, typ := range ask.Types {
		way, err := s.chooseWay(ctx, src.proc, dst, target, typ)
		if err != nil {
			return err
		}
		for i := range wrap {
			if types[i] == typ {
				wrap[i].Way = way
			}
		}
	}
	var wrapped []wrappedKey // of its own: what is decoded into wrap would land in the pinned bytes of the keys
	if err := src.proc.do(ctx, cerWrap, wrap, &wrapped); err != nil {
		return err
	}
	if len(wrapped) != len(wrap) {
		return fmt.Errorf("%d keys were to be wrapped, %d were", len(wrap), len(wrapped))
	}
	for i := range wrap { // nothing but the blobs is taken from the source
		wrap[i].Blob = wrapped[i].Blob
	}
	var born []bornKey
	if err := dst.do(ctx, cerUnwrap, wrap, &born); err != nil {
		return err
	}
	if len(born) != len(keys) {
		return fmt.Errorf("%d keys were to be copied, %d were", len(keys), len(born))
	}
	for i, o := range keys {
		if born[i].ID != o.ID || !bytes.Equal(born[i].SPKI, o.SPKI) {
			return errors.New("another key was copied")
		}
		if err := report(copied{key: o, member: target, mechanism: ways[wrap[i].Way].name, born: born[i]}); err != nil {
			return err
		}
	}
	return nil
}

// chooseWay lets a throw-away key travel between the two tokens and takes the first
// way that works. Two tokens are tested once per process, unless something was weak.
func (s *Store) chooseWay(ctx context.Context, src, dst *ceremonyProcess, target *member, keyType uint) (int, error) {
	pair := fmt.Sprintf("%s %s > %s %s, %s > %s, %d", src.token.kind(), src.token.Serial, dst.token.kind(), dst.token.Serial, src.module, dst.module, keyType)
	if w, ok := s.pairs.get(pair); ok {
		return w, nil
	}
	alg, ok := testAlgorithms[keyType]
	if !ok {
		return 0, fmt.Errorf("keys of type %#x cannot be copied wrapped", keyType)
	}
	between := waysBetween(src.token.Mechanisms, dst.token.Mechanisms)
	if len(between) == 0 {
		return 0, fmt.Errorf("%w: the modules have no wrapping mechanism in common (one of AES key wrap 0x2109, 0x210A, 0x210B is needed on both sides); use the vendor's own replication (replication: native)", ErrModule)
	}
	var key testKey
	if err := src.do(ctx, cerWrapTest, wrapTest{Algorithm: alg, Ways: between}, &key); err != nil {
		return 0, err
	}
	var v testVerdict
	if err := dst.do(ctx, cerTakeTest, key, &v); err != nil {
		return 0, err
	}
	switch {
	case v.Way < 0 || v.Way >= len(ways):
		return 0, fmt.Errorf("%w: no way of wrapping works between the modules; the last one said: %s", ErrModule, v.Why)
	case v.Weak && !target.cfg.WeakUnwrap:
		return 0, fmt.Errorf("%w: the module of member %s ignores CKA_UNWRAP_TEMPLATE: it took a throw-away key with SENSITIVE=false, so whoever holds its PIN could read the keys. Accept that with weak_unwrap: true, or do not copy keys there", ErrModule, target.cfg.Name)
	}
	if !v.Weak { // else what one member was forgiven would be so for the next
		s.pairs.put(pair, v.Way)
	}
	s.log.Info("way of copying keys chosen by a throw-away key", "from", src.member, "to", dst.member, "way", ways[v.Way].name)
	return v.Way, nil
}

// InitToken makes a token with that label in the first empty slot of the member's
// module, with the SO PIN and user PIN of cfg. It is for dev and tests; a token of
// that label is left alone. The directories of cfg.Env must exist.
func InitToken(ctx context.Context, cfg MemberConfig, label string) error {
	if cfg.PIN == nil || cfg.SOPIN == nil {
		return fmt.Errorf("%w: member %s: making a token needs both PINs", ErrPIN, cfg.Name)
	}
	userPIN, err := cfg.PIN()
	if err != nil {
		return fmt.Errorf("getting the PIN of member %s: %w", cfg.Name, err)
	}
	soPIN, err := cfg.SOPIN()
	if err != nil {
		return fmt.Errorf("getting the SO PIN of member %s: %w", cfg.Name, err)
	}
	c, err := newCeremony(cfg, userPIN, soPIN)
	if err != nil {
		return err
	}
	defer c.end()
	if err := c.do(ctx, cerOpen, openCeremony{Module: cfg.Module, Reserved: cfg.Reserved}, &c.token); err != nil {
		return err
	}
	return c.do(ctx, cerInit, initToken{Label: label}, &struct{}{})
}
