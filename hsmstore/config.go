package hsmstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// Secret gives a PIN when it is needed: it is called for each start of a worker
// and its result is handed to that worker only.
type Secret func() (string, error)

// FileSecret reads a PIN from the first line of a file, which only its owner may
// be able to read.
func FileSecret(path string) Secret {
	return func() (string, error) {
		st, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("reading PIN file: %w", err)
		}
		if st.Mode().Perm()&0o077 != 0 {
			return "", fmt.Errorf("PIN file %s has mode %04o; set it to 0600", path, st.Mode().Perm())
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("reading PIN file: %w", err)
		}
		pin, _, _ := strings.Cut(string(b), "\n")
		if pin = strings.TrimSuffix(pin, "\r"); pin == "" {
			return "", fmt.Errorf("PIN file %s is empty", path)
		}
		return pin, nil
	}
}

// MemberConfig says where one HSM member is.
type MemberConfig struct {
	Name        string
	Module      string   // path of the vendor's PKCS#11 library; owned by root or by us
	TokenLabel  string   // finds the token; or
	TokenSerial string   // the enrolled serial number: another token is fenced. Both may be given
	PIN         Secret   // user PIN
	SOPIN       Secret   // SO PIN, for ceremonies only; nil outside them
	Env         []string // KEY=value, set on the member's processes only (e.g. SOFTHSM2_CONF)
	JournalPath string   // the worker's own journal
	Sessions    int      // most sessions that sign at the same time; 0: 64. It starts with 4 and grows while latency, not CPU, is the limit
	Reserved    string   // pReserved of C_Initialize, for modules that want settings there (NSS); else ""
	Replication Replication
	Role        Role
	// WeakUnwrap accepts a module that ignores CKA_UNWRAP_TEMPLATE (NSS): whoever has
	// this member's PIN during a ceremony could take the keys that it is given. Its
	// copies cannot be modified in ways that SENSITIVE forbids, but in others.
	WeakUnwrap bool
	SplitSO    bool // the SO PIN is held by officers in shares; see shares.go
	// DeviceSO has the vendor's own quorum open the SO role at the device; there is no
	// SO PIN. The token must show CKF_PROTECTED_AUTHENTICATION_PATH. See quorum_device.go.
	DeviceSO bool

	split    func(context.Context, MemberConfig, *ceremonyProcess) error // set by the store
	atDevice func(member, token string) (done func())                    // set by the store
}

// Replication is how keys get to a member.
type Replication string

// The ways of replication.
const (
	ReplicateWrap   Replication = "wrap"   // we copy keys, wrapped (the default)
	ReplicateNative Replication = "native" // the vendor's cluster behind the module copies them itself; keys are non-extractable
)

func (c MemberConfig) validate() error {
	if err := checkName("member", c.Name); err != nil {
		return err
	}
	switch {
	case c.Module == "":
		return fmt.Errorf("member %s: module is missing; give the path of the PKCS#11 library", c.Name)
	case c.TokenLabel == "" && c.TokenSerial == "":
		return fmt.Errorf("member %s: token is missing; give its label or serial number", c.Name)
	case c.PIN == nil:
		return fmt.Errorf("member %s: pin is missing", c.Name)
	case c.JournalPath == "":
		return fmt.Errorf("member %s: journal path is missing", c.Name)
	case c.Replication != "" && c.Replication != ReplicateWrap && c.Replication != ReplicateNative:
		return fmt.Errorf("member %s: replication %q is not known; allowed: wrap, native", c.Name, c.Replication)
	case c.Role != RoleAll && c.Role != RoleCheckpoint:
		return fmt.Errorf("member %s: role %q is not known; allowed: checkpoint, or none for all keys", c.Name, c.Role)
	case c.DeviceSO && (c.SplitSO || c.SOPIN != nil):
		return fmt.Errorf("member %s: so_pin is the device or a PIN or shares, not two of them", c.Name)
	case c.Sessions < 0 || c.Sessions > 1024:
		return fmt.Errorf("member %s: sessions must be 0 to 1,024", c.Name)
	}
	return nil
}

// Config of a [Store].
type Config struct {
	Members     []MemberConfig
	Ledger      *audit.Ledger                                // required
	Keys        []KeyRecord                                  // what the database holds
	Enrolled    []MemberRecord                               // what the database holds; a member of the configuration that is not in it waits to be added, unless all are new
	Shares      ShareStore                                   // nil: no SO PIN is split
	Rosters     func(context.Context) (admin.History, error) // the officers, also of before; nil: they never change, and nobody holds shares
	Log         *slog.Logger                                 // nil: slog.Default
	SignTimeout time.Duration                                // of one attempt on one member; 0: 5 s
	Concurrency int                                          // signatures in flight per member; 0: twice its sessions
	Queue       int                                          // operations begun and not yet signed; 0: 4,096

	InUse        func(key string) (why string)           // what still needs a key, which then cannot be destroyed; nil or "": nothing
	Backups      func(key KeyID) []string                // recipients that hold a backup of a key; nil: none
	Backup       BackupStore                             // nil: there are no backup recipients
	BackupToken  func(name string) (MemberConfig, error) // where a recipient's token is now; with Backup
	Nodes        *Nodes                                  // nil: no other node uses the database
	CeremonyOnly func(key string) bool                   // keys that sign in ceremonies only, a root's: no hourly proof; nil: none
}

func (c *Config) validate() error {
	if c.Ledger == nil {
		return errors.New("hsmstore: a ledger is required: no key is used without one")
	}
	if len(c.Members) == 0 {
		return errors.New("hsmstore: at least one HSM member is required")
	}
	seen, all := map[string]bool{}, false
	for _, m := range c.Members {
		if err := m.validate(); err != nil {
			return err
		}
		if seen[m.Name] {
			return fmt.Errorf("member %s: the name is there twice", m.Name)
		}
		seen[m.Name] = true
		all = all || m.Role == RoleAll
	}
	if !all {
		return errors.New("hsmstore: every HSM member has role: checkpoint; at least one must hold the other keys")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.SignTimeout == 0 {
		c.SignTimeout = 5 * time.Second
	}
	if c.Queue == 0 {
		c.Queue = 4096
	}
	return nil
}

// checkModule refuses a library that someone else could have put there: it is a
// regular file, owned by root or by us, and others cannot write to it.
func checkModule(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w: %v; install the module or correct its path", ErrModule, err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is no regular file", ErrModule, path)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || sys.Uid != 0 && int(sys.Uid) != os.Getuid() {
		return fmt.Errorf("%w: %s is not owned by root; chown it", ErrModule, path)
	}
	if st.Mode().Perm()&0o022 != 0 && (st.Mode().Perm()&0o002 != 0 || sys.Gid != 0) {
		return fmt.Errorf("%w: %s can be written by others (mode %04o); chmod it to 0644", ErrModule, path, st.Mode().Perm())
	}
	// Nor can others put another file, or a link to one, in its place.
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrModule, err)
	}
	if err := checkFolders(filepath.Dir(path)); err != nil {
		return err
	}
	return checkFolders(filepath.Dir(real))
}

// checkFolders refuses a folder in which, or above which, anyone can rename what is
// not theirs.
func checkFolders(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrModule, err)
	}
	for {
		st, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("%w: %v", ErrModule, err)
		}
		if st.Mode().Perm()&0o002 != 0 && st.Mode()&os.ModeSticky == 0 {
			return fmt.Errorf("%w: anyone can write to the folder %s of the module (mode %04o); chmod it to 0755", ErrModule, dir, st.Mode().Perm())
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil
		}
		dir = up
	}
}
