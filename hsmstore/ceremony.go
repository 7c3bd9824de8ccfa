package hsmstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ceremonyProcess is a ceremony worker, seen from the store.
type ceremonyProcess struct {
	member string
	proc   *process
	next   uint64
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
	userPIN, err := cfg.PIN()
	if err != nil {
		return nil, fmt.Errorf("getting the PIN of member %s: %w", cfg.Name, err)
	}
	soPIN := ""
	if so {
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
	if err := c.do(ctx, cerOpen, openCeremony{Module: cfg.Module, Label: cfg.TokenLabel, Serial: serial, Acts: acts, SO: so}, &struct{}{}); err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

func newCeremony(cfg MemberConfig, userPIN, soPIN string) (*ceremonyProcess, error) {
	p, err := startProcess(ceremonyCommand, cfg, userPIN, soPIN)
	if err != nil {
		return nil, err
	}
	return &ceremonyProcess{member: cfg.Name, proc: p}, nil
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
	// Also after a failed write: the last words say why the process ended.
	if r, rerr := readFrame(c.proc.r); rerr == nil {
		f, err = r, nil
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
	for _, target := range s.members {
		if len(keys[target]) == 0 {
			continue
		}
		if err := copyTo(ctx, src.proc, src.tr, target, acts, keys[target], report); err != nil {
			return fmt.Errorf("copying keys from member %s to %s: %w", from.cfg.Name, target.cfg.Name, err)
		}
	}
	return nil
}

func copyTo(ctx context.Context, src *ceremonyProcess, tr transport, target *member, acts []string, keys []keyObject, report func(copied) error) error {
	dst, err := startCeremony(ctx, target.cfg, target.current().Serial, acts, true)
	if err != nil {
		return err
	}
	defer dst.end()
	ask := newKEKs{Modulus: tr.Modulus}
	for _, o := range keys {
		pub, _, err := parseSPKI(o.SPKI)
		if err != nil {
			return err
		}
		if t := keyTypeOf(pub); !slices.Contains(ask.Types, t) {
			ask.Types = append(ask.Types, t)
		}
	}
	wrap := wrapKeys{Keys: keys}
	if err := dst.do(ctx, cerNewKEKs, ask, &wrap.KEKs); err != nil {
		return err
	}
	var wrapped []wrappedKey
	if err := src.do(ctx, cerWrap, wrap, &wrapped); err != nil {
		return err
	}
	var born []bornKey
	if err := dst.do(ctx, cerUnwrap, wrapped, &born); err != nil {
		return err
	}
	if len(born) != len(keys) || len(wrapped) != len(keys) {
		return fmt.Errorf("%d keys were to be copied, %d were", len(keys), len(born))
	}
	for i, o := range keys {
		if born[i].ID != o.ID || !bytes.Equal(born[i].SPKI, o.SPKI) {
			return errors.New("another key was copied")
		}
		name := ""
		for _, m := range wrapMechanisms {
			if m.id == wrapped[i].Mechanism {
				name = m.name
			}
		}
		if err := report(copied{key: o, member: target, mechanism: name, born: born[i]}); err != nil {
			return err
		}
	}
	return nil
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
	if err := c.do(ctx, cerOpen, openCeremony{Module: cfg.Module}, &struct{}{}); err != nil {
		return err
	}
	return c.do(ctx, cerInit, initToken{Label: label}, &struct{}{})
}
