package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/acme"
	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
	"chancery/hsmstore"
	"chancery/signing"
	"chancery/web"
	"chancery/web/console"
)

// Names of what genesis makes.
const (
	rootName     = "root"
	issuingName  = "issuing"
	documentName = "document"
)

// server is the running CA: every room, built in order.
type server struct {
	cfg    *Config
	reload func() (*Config, error) // reads the configuration anew
	dev    bool
	log    *slog.Logger

	db         *dbstore.Store
	journal    *audit.Journal
	ledger     *audit.Ledger
	hsm        *hsmstore.Store
	authority  *ca.Authority
	checkpoint *audit.Checkpointer
	sweeper    *audit.Sweeper

	stopHSM, stopLedger context.CancelFunc
	hsmDone, ledgerDone chan error
}

// open opens the lower floors: database, ledger, HSM cluster. On an error whatever
// was opened is closed again.
func (s *server) open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.db, err = dbstore.Open(ctx, s.cfg.Database); err != nil {
		return err
	}
	if err = s.db.LockNode(ctx, s.cfg.NodeID); err != nil {
		return err
	}
	risks, err := s.db.Risks(ctx)
	if err != nil {
		return err
	}
	for _, r := range risks {
		s.log.Warn(r)
	}
	if s.journal, err = audit.OpenJournal(s.cfg.Ledger.Journal); err != nil {
		return err
	}
	anchor, _, err := s.cfg.anchors()
	if err != nil {
		return err
	}
	retain, err := s.cfg.Ledger.retain()
	if err != nil {
		return err
	}
	keys, err := s.db.Keys(ctx)
	if err != nil {
		return err
	}
	s.ledger, err = audit.Open(ctx, s.db, audit.Options{Births: checkpointBirths(keys), Node: s.cfg.NodeID, Build: build(), Journal: s.journal, Anchor: anchor, Log: s.log, Shared: s.db.Shared(), Retain: retain})
	if err != nil {
		return err
	}
	s.stopLedger, s.ledgerDone = background(s.ledger.Run)

	members, err := s.cfg.members()
	if err != nil {
		return err
	}
	enrolled, err := s.db.Members(ctx)
	if err != nil {
		return err
	}
	unfinished, err := s.membersMissing(ctx, enrolled)
	if err != nil {
		return err
	}
	if unfinished {
		for i := range members {
			for _, e := range enrolled {
				if e.Name == members[i].Name {
					members[i].TokenSerial = e.Serial // another token under that label is foreign
				}
			}
		}
		enrolled = nil // the ceremony goes on with the members of the configuration
	}
	var nodes *hsmstore.Nodes
	if s.db.Shared() {
		nodes = &hsmstore.Nodes{Exclusive: s.db.Exclusive, Rows: s.rows}
	}
	s.hsm, err = hsmstore.Open(ctx, hsmstore.Config{Nodes: nodes, Members: members, Ledger: s.ledger, Keys: keys, Enrolled: enrolled, Log: s.log,
		Shares: s.db, Rosters: s.db.Rosters, InUse: s.keyInUse, CeremonyOnly: s.ceremonyKey, Backup: s.db, BackupToken: s.backupToken, Backups: s.backupHolders})
	if err != nil {
		return err
	}
	s.stopHSM, s.hsmDone = background(s.hsm.Run)
	// A member that is away is no reason not to start: the others serve. A PIN that is
	// wrong is a mistake in the settings, and every further start would try it again.
	for _, m := range s.hsm.Members() {
		if errors.Is(m.Err, hsmstore.ErrPIN) {
			return fmt.Errorf("HSM member %s: %w; correct the PIN that hsm.members names for it, then start again", m.Name, m.Err)
		}
	}
	return nil
}

// rows are keys and members as the database has them now.
func (s *server) rows(ctx context.Context) ([]hsmstore.KeyRecord, []hsmstore.MemberRecord, error) {
	keys, err := s.db.Keys(ctx)
	if err != nil {
		return nil, nil, err
	}
	members, err := s.db.Members(ctx)
	return keys, members, err
}

// checkpointBirths are the leaves in which checkpoint keys were born.
func checkpointBirths(keys []hsmstore.KeyRecord) (out []uint64) {
	for _, k := range keys {
		if k.Purpose == audit.PurposeCheckpoint {
			out = append(out, k.Birth)
		}
	}
	return out
}

// keyInUse says what still needs a key, so that nobody destroys it.
func (s *server) keyInUse(name string) string {
	if name == s.cfg.ACME.NonceSecret {
		return "the key of ACME nonces comes from it (acme.nonce_secret)"
	}
	if s.authority != nil && s.authority.UsesKey(name) {
		return "an issuer signs with it; its CRLs would end"
	}
	return ""
}

// ceremonyKey tells which key signs in ceremonies only, and so not an hourly proof.
func (s *server) ceremonyKey(name string) bool { return name == rootName }

// membersMissing tells whether genesis was cut short before all its members had joined.
func (s *server) membersMissing(ctx context.Context, enrolled []hsmstore.MemberRecord) (bool, error) {
	if s.ledger.Head().Size == 0 {
		return true, nil
	}
	if whole, err := s.complete(ctx); whole || err != nil {
		return false, err // standings count from now on
	}
	leaf, err := s.ledger.Leaf(ctx, 0)
	if err != nil {
		return false, err
	}
	list, _ := leaf.Get(audit.TagActs)
	acts, err := audit.ParseList(list)
	if err != nil {
		return false, err
	}
	// Rows of members stay when the members leave, so there are never fewer again.
	joining := strings.Fields(admin.AddMemberAct("x", "x", ""))[0] + " "
	n := 0
	for _, a := range acts {
		if strings.HasPrefix(string(a), joining) {
			n++
		}
	}
	return n > len(enrolled), nil
}

// begin opens the lower floors and closes what a crash left open.
func (s *server) begin(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Ledger.Journal), 0o700); err != nil {
		return fmt.Errorf("ledger.journal: %w", err)
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	n, err := s.hsm.Reconcile(ctx)
	if err != nil {
		return fmt.Errorf("closing what a crash left open: %w", err)
	}
	if n > 0 {
		s.log.Warn("a crash left operations open; they are closed and their serials revoked", "count", n)
	}
	return nil
}

// background starts a loop and returns how to stop it and how to learn its end.
func background(run func(context.Context) error) (context.CancelFunc, chan error) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return stop, done
}

// patience is how long a stopping server waits for a database that does not answer.
const patience = 8 * time.Second

// close ends the lower floors from the top down; everything queued is written first.
func (s *server) close() error {
	var errs []error
	if s.stopHSM != nil {
		s.stopHSM()
		errs = append(errs, <-s.hsmDone)
	}
	if s.checkpoint != nil { // the last entries are covered by a signed checkpoint
		last, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		if err := s.checkpoint.Sign(last); err != nil {
			s.log.Warn("last checkpoint not signed", "err", err)
		}
		cancel()
	}
	if s.hsm != nil {
		errs = append(errs, s.hsm.Close())
	}
	if s.stopLedger != nil {
		s.stopLedger()
		select {
		case err := <-s.ledgerDone:
			errs = append(errs, err)
		case <-time.After(patience):
			return errors.Join(append(errs, errors.New("the database does not answer; what is in flight is closed at the next start"))...)
		}
	}
	if s.journal != nil {
		errs = append(errs, s.journal.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	*s = server{cfg: s.cfg, reload: s.reload, dev: s.dev, log: s.log}
	return errors.Join(errs...)
}

// buildCA builds the upper floors on an open cluster: checkpoints and the authority.
func (s *server) buildCA(ctx context.Context) error {
	if err := s.hsm.SealGenesis(ctx); err != nil {
		return err
	}
	anchor, logs, err := s.cfg.anchors()
	if err != nil {
		return err
	}
	s.checkpoint = audit.NewCheckpointer(s.ledger, s.hsm.CheckpointSigner(), anchor, logs...)
	leaf0, err := s.ledger.Leaf(ctx, 0)
	if err != nil {
		return err
	}
	previous, _ := leaf0.Get(audit.TagPrevious)
	origin, _, _ := strings.Cut(string(previous), "\n")
	s.authority, err = ca.New(ctx, ca.Config{Keys: s.hsm, Ledger: s.ledger, Storage: s.db, URL: s.cfg.PublicHTTPURL, API: s.cfg.PublicURL, Issuer: issuingName, Predecessor: origin, Log: s.log})
	if err != nil {
		return err
	}
	s.sweeper = audit.NewSweeper(s.ledger, s.db, audit.SweepOptions{Every: s.cfg.sweep(), CRLs: s.authority, Counts: s.countsReader(), Log: s.log})
	return nil
}

// listeners are opened before anything is signed, so that a port in use is told at once.
type listeners struct{ https, http, metrics, admin net.Listener } // the last two may be nil

func listen(cfg *Config) (l listeners, err error) {
	if l.https, err = listenOn("listen.https", cfg.Listen.HTTPS); err != nil {
		return l, err
	}
	if l.http, err = listenOn("listen.http", cfg.Listen.HTTP); err != nil {
		l.https.Close()
		return l, err
	}
	for _, more := range []struct {
		key, addr string
		into      *net.Listener
	}{{"listen.metrics", cfg.Listen.Metrics, &l.metrics}, {"listen.admin", cfg.Listen.Admin, &l.admin}} {
		if more.addr == "" {
			continue
		}
		if *more.into, err = listenOn(more.key, more.addr); err != nil {
			l.close()
			return l, err
		}
	}
	return l, nil
}

func (l listeners) close() {
	for _, one := range []net.Listener{l.https, l.http, l.metrics, l.admin} {
		if one != nil {
			one.Close()
		}
	}
}

func listenOn(key, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot listen on %s: %w; stop the program that uses the port or name another address", key, addr, unwrapAll(err))
	}
	return l, nil
}

func unwrapAll(err error) error {
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return err
}

// serve runs the CA until ctx is done, then finishes what is in flight.
func (s *server) serve(ctx context.Context, l listeners, landing web.Landing, ready func()) error {
	nonceKey, err := s.nonceKey(ctx)
	if err != nil {
		return err
	}
	tokenHash, err := s.db.Setting(ctx, adminTokenSetting)
	if err != nil {
		return fmt.Errorf("reading the hash of the admin token: %w", err)
	}
	v := s.cfg.ACME.Validation
	allow, err := networks("allow_networks", v.AllowNetworks)
	if err != nil {
		return err
	}
	deny, err := networks("deny_networks", v.DenyNetworks)
	if err != nil {
		return err
	}
	acmeServer, err := acme.New(acme.Config{
		PublicURL: s.cfg.PublicURL, Authority: acme.FromCA(s.authority), Ledger: s.ledger, Storage: s.db, NonceKey: nonceKey, Log: s.log,
		Names: acme.Names{Permit: s.cfg.ACME.Names.Permit, Deny: s.cfg.ACME.Names.Deny},
		Validation: acme.Validation{HTTPPort: uint16(v.HTTPPort), Resolvers: v.Resolvers, AllowNetworks: allow, DenyNetworks: deny,
			DenyAddrs: own(l), LocalhostToLoopback: s.dev},
	})
	if err != nil {
		return err
	}
	own, err := s.ownCertificate(ctx)
	if err != nil {
		return err
	}
	documents := signing.New(signing.Config{Keys: s.hsm, CA: s.authority, Ledger: s.ledger, API: s.cfg.PublicURL})
	tokenOK := func(token string) bool {
		sum := sha256.Sum256([]byte(token))
		return subtle.ConstantTimeCompare(sum[:], tokenHash) == 1
	}
	board, err := s.newBoard(ctx)
	if err != nil {
		return err
	}
	enrolments, machines := s.enrolments(board), s.machines(board)
	consoleSecret, err := s.setting(ctx, "console-secret", func() ([]byte, error) { return random(32), nil })
	if err != nil {
		return err
	}
	provider, err := s.cfg.provider(s.dev)
	if err != nil {
		return &exit{exitConfig, fmt.Errorf("config: %w", err)}
	}
	var vouches console.Provider // nil, and not a nil pointer in it
	if provider != nil {
		vouches = provider
	}
	pages, err := console.New(console.Config{
		Provider:     vouches,
		Certificates: s.authority, Members: s.hsm.Members, Keys: s.hsm.Keys, Dev: s.dev, Log: s.log,
		Board: board, Enrolments: enrolments, Machines: machines, Sessions: dbstore.Sessions{Store: s.db, Ledger: s.ledger}, Secret: consoleSecret,
		KeyPurposes: keyPurposes, KeyAlgorithms: keyAlgorithms,
		Session: s.ledger.Session, Refused: s.ledger.Refused,
		ACMEDirectory: s.cfg.PublicURL + "/acme/directory", CertbotLine: landing.CertbotLine, PublicURL: s.cfg.PublicURL,
		Ledger: console.Ledger{Head: s.ledger.Head, Entries: s.db.Leaves, Checkpoint: s.checkpoint.Latest, Proof: s.checkpoint.ProofText},
	})
	if err != nil {
		return err
	}
	edge, err := web.New(web.Config{
		Console: pages.Handler(),
		CA:      s.authority, Documents: documents, Approvals: board, Officers: enrolments, HSM: s.hsm, Candidate: s.candidate, LeafProof: s.leafProof, Tile: s.checkpoint.PublishedTile, Entries: s.checkpoint.PublishedEntries, Backup: backups{s}, ACME: acmeServer.Handler(), PublicURL: s.cfg.PublicURL, PublicHTTPURL: s.cfg.PublicHTTPURL, Dev: s.dev, Landing: landing, Log: s.log,
		Checkpoint: s.checkpoint.Latest, Proof: s.proof, Ready: s.ready, Alarms: s.alarms, GetCertificate: own.get,
		AdminToken: tokenOK, TokenOver: s.tokenOver(board), Machines: machines, Issuer: issuingName, Refused: s.ledger.Refused, Erase: s.ledger.Erase,
	})
	if err != nil {
		return err
	}
	// The edge drains first; the loops behind it end when it has, so that a request
	// in flight still finds everything it needs.
	back, stopBack := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBack()
	g, back := errgroup.WithContext(back)
	g.Go(func() error { return s.authority.Run(back) })
	g.Go(func() error { return acmeServer.Run(back) })
	g.Go(func() error { return board.Run(back) })
	g.Go(func() error { return s.checkpoint.Run(back) })
	g.Go(func() error { return s.ledger.RunRefusals(back) })
	g.Go(func() error { return s.ledger.RunRetention(back) })
	g.Go(func() error { return s.sweeper.Run(back) })
	if l.metrics != nil {
		g.Go(func() error { return serveMetrics(back, l.metrics, s.hsm.Stats, s.sweeper.State, s.log) })
	}
	g.Go(func() error { return own.run(back, s) })
	g.Go(func() error { return s.runBackups(back) })
	g.Go(func() error { // a ledger that has ended by itself takes the server with it
		select {
		case err := <-s.ledgerDone:
			s.ledgerDone <- err // for close
			return err
		case <-back.Done():
			return nil
		}
	})
	g.Go(func() error {
		defer stopBack()
		front, stopFront := context.WithCancel(ctx)
		defer stopFront()
		context.AfterFunc(back, stopFront) // a loop that failed ends the server
		return edge.Run(front, web.Listeners{HTTPS: l.https, HTTP: l.http, Admin: l.admin})
	})
	ready()
	return g.Wait()
}

// own are the addresses that an ACME validation must never reach.
func own(l listeners) (out []string) {
	for _, x := range []net.Listener{l.https, l.http, l.metrics} {
		if x != nil {
			out = append(out, x.Addr().String())
		}
	}
	return out
}

// ready tells whether a certificate could be signed and recorded now.
func (s *server) ready(ctx context.Context) error {
	for _, a := range s.sweeper.State().Alarms {
		switch {
		case a.Closed:
			return &web.NotReady{Part: "ledger", Detail: "the ledger is closed, nothing is signed: " + a.String()}
		case a.Promise == "P4":
			return &web.NotReady{Part: "ca", Detail: "an issuer signs no certificates: " + a.String()}
		}
	}
	if err := s.ledger.Write(ctx); err != nil { // an empty write goes through queue and commit
		return fmt.Errorf("ledger: %w", err)
	}
	if !s.hsm.Ready() {
		return fmt.Errorf("hsm: %w", hsmstore.ErrUnavailable)
	}
	return nil
}

// alarms are the broken promises that do not end the signing.
func (s *server) alarms() (out []string) {
	for _, a := range s.sweeper.State().Alarms {
		if !a.Closed {
			out = append(out, a.String())
		}
	}
	return out
}

// proof is the inclusion proof of a certificate's done leaf (C2SP tlog-proof).
func (s *server) proof(ctx context.Context, serial string) ([]byte, error) {
	c, err := s.authority.Certificate(ctx, serial)
	if err != nil {
		return nil, err
	}
	return s.leafProof(ctx, c.Done)
}

// leafProof is the inclusion proof of any leaf.
func (s *server) leafProof(ctx context.Context, index uint64) ([]byte, error) {
	proof, err := s.checkpoint.ProofText(ctx, index)
	if errors.Is(err, audit.ErrNotFound) && index < s.ledger.Head().Size {
		return nil, web.ErrProofPending
	}
	return proof, err
}

// nonceKey is the key of this node's ACME nonces: from the HSMs where the configuration
// says so, else from the database. A node whose HSMs are away takes the latter: nonces
// given out before are then refused once, and clients ask again (RFC 8555 §6.5).
func (s *server) nonceKey(ctx context.Context) ([]byte, error) {
	if name := s.cfg.ACME.NonceSecret; name != "" {
		k, err := s.hsm.Key(name)
		if err != nil {
			return nil, &exit{exitConfig, fmt.Errorf("acme.nonce_secret: %w; ask for it: chancery key generate %s --purpose secret --algorithm AES-256", err, name)}
		}
		secret, err := k.Secret(ctx, fmt.Sprintf("acme/nonces/%x", sha256.Sum256([]byte(s.cfg.NodeID))), "node:"+s.cfg.NodeID)
		switch {
		case err == nil:
			return secret[:], nil
		case errors.Is(err, hsmstore.ErrRefused):
			return nil, &exit{exitConfig, fmt.Errorf("acme.nonce_secret: %w", err)}
		}
		s.log.Warn("the key of ACME nonces is the one in the database until the next start", "key", name, "err", err)
	}
	return s.setting(ctx, "nonce-key", func() ([]byte, error) { return random(32), nil })
}

// setting reads a value that must survive restarts, and makes it at first.
func (s *server) setting(ctx context.Context, name string, fresh func() ([]byte, error)) ([]byte, error) {
	v, err := s.db.Setting(ctx, name)
	if !errors.Is(err, audit.ErrNotFound) {
		return v, err
	}
	if v, err = fresh(); err != nil {
		return nil, err
	}
	err = s.ledger.Write(ctx, ca.PutSetting{Name: name, Value: v})
	if errors.Is(err, audit.ErrExists) { // another node was faster
		return s.db.Setting(ctx, name)
	}
	return v, err
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func pemCertificates(ders ...[]byte) []byte {
	var out []byte
	for _, d := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
	}
	return out
}

// writeFile puts a file in place as a whole, or not at all.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
