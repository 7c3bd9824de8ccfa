package hsmstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// A ceremony process does not take the server's word for what is allowed. It gets the
// officers' warrant, checks every signature in it, and holds it against its own
// account: a file beside the worker's journal with the digests of the rosters that were
// in force since the token came into use, and the nonces of the warrants that were
// used. Whoever rewrites the database – another roster, an old proposal made new – gets
// no ceremony.
//
//	roster <64 hex>                     the officers in force: from genesis or the first warrant, then each that
//	                                    followed by the decision of those before; see mandate_roster.go
//	sealed                              genesis is over: nothing without a warrant
//	retired                             the officers ended the cluster: nothing any more
//	spent <nonce> <session> <unix time> a warrant came into use
//	random <64 hex>                     octets of the token's random source, at a start
//	bound <64 hex> <64 hex>             an adopted key, by its SPKI, and what it was bound to
//	drawn <64 hex>                      a new SO PIN was split: SHA-256 of the set of shares
//	split <64 hex>                      it came into force
//	recovered <size> <seq> <nonce>      the officers let the ledger go on from a size: checkpoints that the
//	                                    worker's journal has up to record seq are of entries that were given up

// warrantPatience is how long after its first use a warrant opens further ceremonies
// of the same act: one act takes several processes, some of which wait for officers' shares.
const warrantPatience = 2 * time.Hour

// mandate is what the store gives a ceremony process.
type mandate struct {
	Acts    []string       `json:"acts"`
	Warrant *admin.Warrant `json:"warrant,omitempty"` // none at genesis
	Session string         `json:"session,omitempty"` // names one use of the warrant
	Account string         `json:"account,omitempty"` // the file above
	rosterChain

	err error // why the server could not make one
}

type mandateKey struct{}

// under lets the ceremonies of ctx act under a grant.
func (s *Store) under(ctx context.Context, grant *admin.Grant) context.Context {
	var m mandate
	if w, ok := grant.Warrant(); ok {
		m = mandate{Warrant: w, Session: rand.Text()}
	}
	m.rosterChain, m.err = s.rosters(ctx)
	return context.WithValue(ctx, mandateKey{}, m)
}

// underRosters is under for a genesis whose leaf is not written yet.
func underRosters(ctx context.Context, c rosterChain) context.Context {
	return context.WithValue(ctx, mandateKey{}, mandate{rosterChain: c})
}

func mandateOf(ctx context.Context, cfg MemberConfig, acts []string) (mandate, error) {
	m, _ := ctx.Value(mandateKey{}).(mandate)
	m.Acts, m.Account = acts, cfg.JournalPath+".mandates"
	return m, m.err
}

// account is a ceremony process's own memory.
type account struct {
	path    string
	roster  string // the newest that it knows
	sealed  bool
	retired bool
	split   string            // set of shares in force; "" if none was ever made here
	drawn   []string          // sets that were drawn after it: one of them may be in force
	spent   map[string]use    // by nonce
	random  map[string]bool   // SHA-256 of what the token's random source gave at each start
	regrow  regrow            // the last recovery
	regrown map[string]bool   // nonces of all recoveries
	role    string            // that the token is bound to, or ""
	bound   map[string]string // by SHA-256 of the SPKI: what an adopted key was first bound to
}

// regrow is from where a recovery let checkpoints be signed anew.
type regrow struct {
	size, seq uint64
}

type use struct {
	session string
	at      time.Time
}

func readAccount(path string) (*account, error) {
	a := &account{path: path, spent: map[string]use{}, random: map[string]bool{}, regrown: map[string]bool{}, bound: map[string]string{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the account of ceremonies: %w", err)
	}
	if !bytes.HasSuffix(b, []byte("\n")) {
		if b, err = mendAccount(path); err != nil {
			return nil, err
		}
	}
	if len(b) == 0 {
		return a, nil
	}
	for n, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "roster":
			a.roster = f[1]
		case len(f) == 1 && f[0] == "sealed":
			a.sealed = true
		case len(f) == 1 && f[0] == "retired":
			a.retired = true
		case len(f) == 2 && f[0] == "role":
			a.role = f[1]
		case len(f) == 2 && f[0] == "random":
			a.random[f[1]] = true
		case len(f) == 3 && f[0] == "bound":
			a.bound[f[1]] = f[2]
		case len(f) == 4 && f[0] == "recovered":
			if _, err := fmt.Sscan(f[1]+" "+f[2], &a.regrow.size, &a.regrow.seq); err != nil {
				return nil, fmt.Errorf("account of ceremonies %s: line %d is damaged", path, n+1)
			}
			a.regrown[f[3]] = true
		case len(f) == 2 && f[0] == "drawn":
			a.drawn = append(a.drawn, f[1])
		case len(f) == 2 && f[0] == "split":
			a.split, a.drawn = f[1], nil
		case len(f) == 4 && f[0] == "spent":
			var unix int64
			if _, err := fmt.Sscan(f[3], &unix); err != nil {
				return nil, fmt.Errorf("account of ceremonies %s: line %d is damaged", path, n+1)
			}
			a.spent[f[1]] = use{f[2], time.Unix(unix, 0)}
		default:
			return nil, fmt.Errorf("account of ceremonies %s: line %d is damaged", path, n+1)
		}
	}
	return a, nil
}

// mendAccount cuts a torn last line: the disk was full, or the power went, and what the
// line was for never happened. It waits for whoever is writing one now.
func mendAccount(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("reading the account of ceremonies: %w", err)
	}
	defer f.Close() // and with it the lock
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("locking the account of ceremonies: %w", err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("reading the account of ceremonies: %w", err)
	}
	cut := bytes.LastIndexByte(b, '\n') + 1
	if cut < len(b) {
		if err := errors.Join(f.Truncate(int64(cut)), f.Sync()); err != nil {
			return nil, fmt.Errorf("cutting the torn end of the account of ceremonies: %w", err)
		}
	}
	return b[:cut], nil
}

// add appends one line, durably.
func (a *account) add(format string, args ...any) error {
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("writing the account of ceremonies: %w", err)
	}
	if st, serr := f.Stat(); serr == nil && st.Size() == 0 { // new: its name must last too
		dir, derr := os.Open(filepath.Dir(a.path))
		if derr == nil {
			derr = errors.Join(dir.Sync(), dir.Close())
		}
		if derr != nil {
			return errors.Join(fmt.Errorf("writing the account of ceremonies: %w", derr), f.Close())
		}
	}
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err == nil {
		_, err = fmt.Fprintf(f, format+"\n", args...)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing the account of ceremonies: %w", err)
	}
	return nil
}

// accept checks a mandate and notes its use. Without acts there is nothing to check:
// a process that only looks.
func (m mandate) accept(now time.Time) error {
	if len(m.Acts) == 0 {
		return nil
	}
	a, err := readAccount(m.Account)
	if err != nil {
		return err
	}
	if a.retired {
		return errRetired
	}
	learn, err := a.follow(m.rosterChain)
	if err != nil {
		return err
	}
	if a.roster != "" { // also when the warrant is refused: that may be why
		if err := a.learn(learn); err != nil {
			return err
		}
		learn = nil
	}
	if m.Warrant == nil {
		if a.sealed {
			return fmt.Errorf("%w: genesis is over; a ceremony needs the officers' warrant", admin.ErrNotGranted)
		}
		return a.learn(learn)
	}
	nonce, err := m.check(a, now)
	if err != nil {
		return err
	}
	if err := a.learn(learn); err != nil {
		return err
	}
	if !a.sealed {
		if err := a.add("sealed"); err != nil {
			return err
		}
	}
	if _, used := a.spent[nonce]; used {
		return nil
	}
	return a.add("spent %s %s %d", nonce, m.Session, now.Unix())
}

// check holds the warrant: signatures, roster, time, acts, and that it is not used a
// second time.
func (m mandate) check(a *account, now time.Time) (string, error) {
	ledger, err := hex.DecodeString(m.Ledger)
	want := a.roster
	if want == "" {
		want = m.current()
	}
	roster, err2 := hex.DecodeString(want)
	if err != nil || err2 != nil || len(ledger) != 32 || len(roster) != 32 || m.Session == "" || strings.ContainsAny(m.Session, " \n") {
		return "", faultf(exitProtocol, "mandate is malformed")
	}
	// Its time was checked when it was spent in the database; here the time counts from
	// the first use on, as an act may take long.
	begun := now
	if p, err := admin.DecodeProposal(m.Warrant.Proposal); err == nil {
		if old, used := a.spent[hex.EncodeToString(p.Nonce[:])]; used && old.session == m.Session {
			begun = old.at
		}
	}
	acts, n, err := m.Warrant.Check(audit.LedgerID(ledger), [32]byte(roster), begun)
	nonce := hex.EncodeToString(n[:])
	if old, used := a.spent[nonce]; err == nil && used {
		switch {
		case old.session != m.Session:
			return "", fmt.Errorf("%w: this warrant was used on %s already", admin.ErrNotGranted, old.at.UTC().Format(time.RFC3339))
		case now.Sub(old.at) > warrantPatience:
			return "", fmt.Errorf("%w: this warrant was taken up on %s, too long ago", admin.ErrNotGranted, old.at.UTC().Format(time.RFC3339))
		}
	}
	if err != nil {
		return "", err
	}
	for _, act := range m.Acts {
		if !slices.Contains(acts, act) {
			return "", fmt.Errorf("%w: the officers did not sign %q", admin.ErrNotGranted, act)
		}
	}
	return nonce, nil
}

// SealGenesis tells every member that genesis is over: its ceremonies want the
// officers' warrant from now on. Call it when the CA is whole; again does nothing.
func (s *Store) SealGenesis(ctx context.Context) error {
	for _, m := range s.list() {
		a, err := readAccount(m.cfg.JournalPath + ".mandates")
		if err != nil || a.sealed {
			if err != nil {
				return err
			}
			continue
		}
		m.mu.Lock()
		l := m.link
		m.mu.Unlock()
		if l == nil {
			continue // at its next start
		}
		var ok json.RawMessage
		if err := l.control(ctx, opSeal, struct{}{}, &ok); err != nil {
			return fmt.Errorf("sealing the genesis of member %s: %w", m.cfg.Name, err)
		}
	}
	return nil
}
