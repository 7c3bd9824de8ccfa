package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json/v2"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

// newBoard makes the board on which officers decide, with all that it can carry out.
func (s *server) newBoard(ctx context.Context) (*admin.Board, error) {
	rosters, err := s.rosters(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.tellRosters(ctx, rosters); err != nil {
		return nil, err
	}
	actions := map[string]admin.Action{
		admin.GenerateKey:  {Acts: s.generateKeyActs, Execute: s.generateKey},
		admin.AddMember:    {Acts: s.addMemberActs, Execute: s.addMember},
		admin.RemoveMember: {Acts: s.removeMemberActs, Execute: s.removeMember},
		admin.SplitSOPIN:   {Acts: s.splitActs, Execute: s.splitSOPIN},
		admin.DestroyKey:   {Acts: s.destroyKeyActs, Execute: s.destroyKey},
		admin.RepairKey:    {Acts: s.repairKeyActs, Execute: s.repairKey},
		admin.AdoptKey:     {Acts: s.adoptKeyActs, Execute: s.adoptKey},
		admin.ImportKey:    {Acts: s.importKeyActs, Execute: s.importKey},

		admin.BackupRecipient: {Acts: s.designateActs, Execute: s.designate},
		admin.RemoveRecipient: {Acts: s.removeRecipientActs, Execute: s.removeRecipient},
		admin.Backup:          {Acts: s.backupActs, Execute: s.backup},
		admin.RetireCluster:   {Acts: s.retireActs, Execute: s.retire},
	}
	for name, a := range actions {
		execute := a.Execute
		a.Execute = func(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
			return execute(hsmstore.Unhurried(ctx), g, parameters)
		}
		actions[name] = a
	}
	return admin.NewBoard(admin.Config{Ledger: s.ledger, Storage: s.db, Rosters: rosters, RosterChanged: s.hsm.RosterChanged, Log: s.log, Actions: actions})
}

// tellRosters tells the HSM members that were away when the officers changed. Members that
// know of later officers than the database mean that someone took rows away; after a
// recovery the officers gave up what was lost, and only ceremonies are refused.
func (s *server) tellRosters(ctx context.Context, rosters admin.History) error {
	err := s.hsm.RosterChanged(ctx, rosters)
	if errors.Is(err, audit.ErrTampered) {
		recovered, rerr := s.db.Recoveries(ctx)
		if rerr != nil {
			return fmt.Errorf("reading recoveries: %w", rerr)
		}
		if len(recovered) == 0 {
			return err
		}
	}
	if err != nil {
		s.log.Error("not every HSM member could be told who the officers are; it refuses ceremonies, or learns of them at the next one", "err", err)
	}
	return nil
}

// enrolments is where officers get their passkeys.
func (s *server) enrolments(board *admin.Board) *admin.Enrolments {
	e := &admin.Enrolments{Ledger: s.ledger, Storage: s.db, Board: board, Origins: []string{s.cfg.PublicURL}}
	if u, err := url.Parse(s.cfg.PublicURL); err == nil {
		e.RPID = u.Hostname()
	}
	if s.dev { // there the console is at the HTTP door too
		e.Origins = append(e.Origins, s.cfg.PublicHTTPURL)
	}
	return e
}

// machines is where programs get access.
func (s *server) machines(board *admin.Board) *admin.Machines {
	return &admin.Machines{Ledger: s.ledger, Storage: s.db, Board: board, TokenOver: s.tokenOver(board)}
}

// tokenOver tells whether the admin token is refused: in production, once an administrator
// has a passkey. Before that nobody else could let the officers in, who then decide nothing
// any more. If it cannot be found out, the token is refused.
func (s *server) tokenOver(board *admin.Board) func(context.Context) bool {
	return func(ctx context.Context) bool {
		if s.dev {
			return false
		}
		rosters, err := board.Rosters(ctx)
		return err != nil || rosters.Current().Administered()
	}
}

// rosters reads the officers and holds them against the ledger.
func (s *server) rosters(ctx context.Context) (admin.History, error) {
	h, err := s.db.Rosters(ctx)
	if err != nil {
		return h, fmt.Errorf("reading the officers: %w", err)
	}
	return h, h.Check(ctx, s.ledger.Leaf)
}

// What a key that officers ask for may be. Issuer keys are bound to a subject at
// birth; probe and checkpoint keys come with a member and with genesis. A member that came
// before members bore checkpoint keys may get one this way.
var (
	keyPurposes   = []audit.Purpose{audit.PurposeDocument, audit.PurposeCode, audit.PurposeOCSP, audit.PurposeTimestamp, audit.PurposeSecret, audit.PurposeCheckpoint}
	keyAlgorithms = hsmstore.Algorithms()
)

// keySpec reads the parameters of admin.GenerateKey. The command line uses it too, so
// that an officer sees the acts that follow from the parameters, not those the
// server claims.
func keySpec(parameters []byte) (spec hsmstore.KeySpec, err error) {
	var p admin.KeyParameters
	if err := json.Unmarshal(parameters, &p, json.RejectUnknownMembers(true)); err != nil {
		return spec, errors.New("a key needs name, purpose and algorithm as texts, and perhaps members as a list of texts")
	}
	purpose, err := audit.ParsePurpose(p.Purpose)
	if err != nil || !slices.Contains(keyPurposes, purpose) {
		return spec, fmt.Errorf("purpose: keys for %q are not made this way; allowed: %s", audit.Text(p.Purpose, 64), listing(keyPurposes))
	}
	if !slices.Contains(keyAlgorithms, p.Algorithm) {
		return spec, fmt.Errorf("algorithm %q is not known; allowed: %s", audit.Text(p.Algorithm, 64), strings.Join(keyAlgorithms, ", "))
	}
	for _, name := range append([]string{p.Name}, p.Members...) {
		if err := hsmstore.CheckName("key or member", name); err != nil {
			return spec, err
		}
	}
	if purpose == audit.PurposeCheckpoint && len(p.Members) != 1 {
		return spec, errors.New("members: a checkpoint key never leaves its member; name the one that shall hold it")
	}
	return hsmstore.KeySpec{Name: p.Name, Purpose: purpose, Algorithm: p.Algorithm, Members: p.Members}, nil
}

func listing(purposes []audit.Purpose) string {
	var s []string
	for _, p := range purposes {
		s = append(s, p.String())
	}
	return strings.Join(s, ", ")
}

// actsOf derives the acts of an action from its parameters, without a server.
func actsOf(action string, parameters []byte) ([]string, error) {
	switch action {
	case admin.ChangeRoster:
		return admin.RosterActs(parameters)
	case admin.GenerateKey:
		spec, err := keySpec(parameters)
		return []string{spec.Act()}, err
	case admin.AddMember:
		p, err := parametersOf[admin.MemberParameters](parameters)
		acts := []string{admin.AddMemberAct(p.Name, p.Serial, p.Role), admin.GenerateKeyAct(p.ProbeKey, audit.PurposeProbe.String(), hsmstore.ProbeAlgorithm, nil, p.Name)}
		if p.CheckpointKey != "" {
			acts = append(acts, admin.GenerateKeyAct(p.CheckpointKey, audit.PurposeCheckpoint.String(), p.CheckpointAlgorithm, nil, p.Name))
		}
		return acts, err
	case admin.RemoveMember:
		p, err := parametersOf[admin.RemoveParameters](parameters)
		return []string{admin.RemoveMemberAct(p.Name, p.Serial)}, err
	case admin.SplitSOPIN:
		p, err := parametersOf[admin.SplitParameters](parameters)
		return []string{admin.RotateSOPINAct(p.Member, p.Threshold)}, err
	case admin.DestroyKey:
		p, err := parametersOf[admin.DestroyParameters](parameters)
		if err != nil {
			return nil, err
		}
		hash, err := spkiHash(p.SPKI)
		return []string{admin.DestroyKeyAct(p.Name, hash)}, err
	case admin.RepairKey:
		p, err := parametersOf[admin.RepairParameters](parameters)
		return []string{admin.RepairKeyAct(p.Name, p.Member)}, err
	case admin.AdoptKey:
		p, err := parametersOf[admin.AdoptParameters](parameters)
		if err != nil {
			return nil, err
		}
		hash, err := spkiHash(p.SPKI)
		return []string{admin.AdoptKeyAct(p.Name, p.Purpose, p.Algorithm, p.Subject, hash, p.AcceptWeak...)}, err
	case admin.ImportKey:
		spec, _, err := importSpec(parameters)
		return []string{spec.Act()}, err
	case admin.RecoverLedger:
		p, err := parametersOf[admin.RecoverParameters](parameters)
		if err != nil {
			return nil, err
		}
		root, err := hex.DecodeString(p.Root)
		if err != nil || len(root) != 32 {
			return nil, fmt.Errorf("root %q must be 64 hex digits", audit.Text(p.Root, 80))
		}
		return []string{admin.RecoverAct(p.Size, [32]byte(root), p.Common, p.Known)}, nil
	}
	if acts, err := backupActsOf(action, parameters); acts != nil || err != nil {
		return acts, err
	}
	return nil, fmt.Errorf("this chancery does not know the action %q; use the version of the server", audit.Text(action, 64))
}

// parametersOf reads the parameters of an action, strictly.
func parametersOf[P any](parameters []byte) (p P, err error) {
	if err := json.Unmarshal(parameters, &p, json.RejectUnknownMembers(true)); err != nil {
		return p, fmt.Errorf("the parameters are not those of a %T; chancery hsm and chancery key make them", p)
	}
	return p, nil
}

func spkiHash(s string) (h [32]byte, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(h) {
		return h, fmt.Errorf("spki_sha256 %q must be the 64 hex digits of the SHA-256 of the public key", audit.Text(s, 80))
	}
	return [32]byte(b), nil
}

// candidate looks at the token of a member that the configuration names and the
// cluster does not have. The file is read anew: that is how a running server learns
// of a new HSM.
func (s *server) candidate(ctx context.Context, name string) (admin.MemberParameters, error) {
	cfg, cand, err := s.inspect(ctx, name)
	if err != nil {
		return admin.MemberParameters{}, err
	}
	for _, m := range s.hsm.Members() {
		if m.Name == cfg.Name && m.State != hsmstore.Out {
			return admin.MemberParameters{}, fmt.Errorf("%w: member %s is in the cluster already and is %s", hsmstore.ErrStanding, name, m.State)
		}
	}
	if err := s.hsm.NotRecipient(ctx, cand.Serial); err != nil {
		return admin.MemberParameters{}, err
	}
	if cfg.Role == hsmstore.RoleAll && cfg.SOPIN == nil && !cfg.SplitSO && !cfg.DeviceSO && !cfg.WeakUnwrap && cfg.Replication != hsmstore.ReplicateNative {
		return admin.MemberParameters{}, fmt.Errorf("%w: hsm.members of %s has no so_pin, which joining needs: give file:PATH, env:NAME, credential:NAME, or device, for the time of the ceremony", hsmstore.ErrStanding, name)
	}
	p := admin.MemberParameters{Name: name, Serial: cand.Serial, Label: cand.Label, Manufacturer: cand.Manufacturer, Model: cand.Model, Firmware: cand.Firmware,
		Module: cfg.Module, Replication: string(cfg.Replication), Role: string(cand.Role), WeakUnwrap: cfg.WeakUnwrap}
	for _, k := range cand.Own {
		if k.Purpose == audit.PurposeProbe {
			p.ProbeKey = k.Name
		} else {
			p.CheckpointKey, p.CheckpointAlgorithm = k.Name, k.Algorithm
		}
	}
	return p, nil
}

func (s *server) inspect(ctx context.Context, name string) (hsmstore.MemberConfig, hsmstore.Candidate, error) {
	cfg, err := s.reload()
	if err != nil {
		return hsmstore.MemberConfig{}, hsmstore.Candidate{}, fmt.Errorf("%w: %w", hsmstore.ErrStanding, err)
	}
	members, err := cfg.members()
	if err != nil {
		return hsmstore.MemberConfig{}, hsmstore.Candidate{}, fmt.Errorf("%w: %w", hsmstore.ErrStanding, err)
	}
	for _, m := range members {
		if m.Name == name {
			cand, err := s.hsm.Inspect(ctx, m)
			if err == nil && !s.dev && strings.Contains(cand.Label, devTokenLabel) {
				err = fmt.Errorf("%w: the token of member %s was made by chancery dev, whose PINs lie beside it; make one for production", hsmstore.ErrToken, name)
			}
			return m, cand, err
		}
	}
	return hsmstore.MemberConfig{}, hsmstore.Candidate{}, fmt.Errorf("%w: hsm.members of the server's configuration has no %q; add it there (name, module, token, pin, and so_pin for the time of the ceremony), no restart is needed", hsmstore.ErrNoMember, audit.Text(name, 64))
}

func (s *server) addMemberActs(parameters []byte) ([]string, error) {
	p, err := parametersOf[admin.MemberParameters](parameters)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), inspectTime)
	defer cancel()
	now, err := s.candidate(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	if now != p {
		return nil, fmt.Errorf("name: the token of member %s is %s by %s now, the proposal says %s by %s; ask for it again", p.Name, now.Serial, now.Manufacturer, audit.Text(p.Serial, 64), audit.Text(p.Manufacturer, 64))
	}
	return actsOf(admin.AddMember, parameters)
}

// inspectTime bounds the look at a token while a request waits.
const inspectTime = 20 * time.Second

func (s *server) addMember(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	p, err := parametersOf[admin.MemberParameters](parameters)
	if err != nil {
		return nil, err
	}
	now, err := s.candidate(ctx, p.Name) // the configuration may have changed since the vote
	if err != nil {
		return nil, err
	}
	if now != p {
		return nil, fmt.Errorf("%w: the officers approved token %s (%s, replication %q, weak_unwrap %t), now it is %s (%s, replication %q, weak_unwrap %t); ask them again", hsmstore.ErrToken, p.Serial, p.Module, p.Replication, p.WeakUnwrap, now.Serial, now.Module, now.Replication, now.WeakUnwrap)
	}
	cfg, _, err := s.inspect(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	steps := []string{}
	err = s.hsm.AddMember(ctx, g, cfg, func(step string) {
		s.log.Info("adding HSM member", "member", p.Name, "step", step)
		steps = append(steps, step)
	})
	return map[string]any{"member": p.Name, "serial": p.Serial, "steps": steps}, err
}

func (s *server) removeMemberActs(parameters []byte) ([]string, error) {
	p, err := parametersOf[admin.RemoveParameters](parameters)
	if err != nil {
		return nil, err
	}
	for _, m := range s.hsm.Members() {
		switch {
		case m.Name != p.Name:
		case m.Serial != p.Serial:
			return nil, fmt.Errorf("serial: member %s has token %s", m.Name, m.Serial)
		case m.State != hsmstore.Out && m.State != hsmstore.Fenced && m.State != hsmstore.Absent:
			return nil, fmt.Errorf("name: member %s is %s; drain or fence it first", m.Name, m.State)
		default:
			return actsOf(admin.RemoveMember, parameters)
		}
	}
	return nil, fmt.Errorf("name: there is no HSM member %q", audit.Text(p.Name, 64))
}

func (s *server) removeMember(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	p, err := parametersOf[admin.RemoveParameters](parameters)
	if err != nil {
		return nil, err
	}
	return map[string]string{"removed": p.Name}, s.hsm.RemoveMember(ctx, g, p.Name)
}

func (s *server) splitActs(parameters []byte) ([]string, error) {
	p, err := parametersOf[admin.SplitParameters](parameters)
	if err != nil {
		return nil, err
	}
	rosters, err := s.db.Rosters(context.Background())
	if err != nil {
		return nil, err
	}
	holders := rosters.Current().ShareHolders()
	if p.Threshold < admin.MinQuorum || p.Threshold > admin.MaxQuorum || p.Threshold > len(holders) {
		return nil, fmt.Errorf("threshold: %d of %d officers with a CLI key is not possible; M is %d to %d", p.Threshold, len(holders), admin.MinQuorum, admin.MaxQuorum)
	}
	if !slices.ContainsFunc(s.hsm.Members(), func(m hsmstore.MemberStatus) bool { return m.Name == p.Member }) {
		return nil, fmt.Errorf("member: there is no HSM member %q", audit.Text(p.Member, 64))
	}
	for _, m := range s.cfg.HSM.Members {
		if m.Name == p.Member && m.SOPIN == devicePIN {
			return nil, fmt.Errorf("member: the SO of %s is opened by the vendor's quorum at the device (so_pin: device), so there is no SO PIN to split; change who belongs to the quorum with the vendor's tools", p.Member)
		}
	}
	return actsOf(admin.SplitSOPIN, parameters)
}

func (s *server) splitSOPIN(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	p, err := parametersOf[admin.SplitParameters](parameters)
	if err != nil {
		return nil, err
	}
	if err := s.hsm.SplitSOPIN(ctx, g, p.Member, p.Threshold); err != nil {
		return nil, err
	}
	return map[string]string{"member": p.Member, "next": "write so_pin: \"shares:\" for it in the configuration and remove its SO PIN file"}, nil
}

// keyNamed finds a key and holds it against the public key that a proposal names.
func (s *server) keyNamed(name, spki string) error {
	for _, k := range s.hsm.Keys() {
		if k.Name != name {
			continue
		}
		if hash := sha256.Sum256(k.SPKI); spki != "" && hex.EncodeToString(hash[:]) != spki {
			return fmt.Errorf("spki_sha256: key %s is %x", name, hash)
		}
		return nil
	}
	return fmt.Errorf("name: there is no key %q", audit.Text(name, 64))
}

func (s *server) destroyKeyActs(parameters []byte) ([]string, error) {
	p, err := parametersOf[admin.DestroyParameters](parameters)
	if err != nil {
		return nil, err
	}
	if why := s.keyInUse(p.Name); why != "" {
		return nil, fmt.Errorf("name: key %s cannot be destroyed: %s", p.Name, why)
	}
	if err := s.keyNamed(p.Name, p.SPKI); err != nil {
		return nil, err
	}
	return actsOf(admin.DestroyKey, parameters)
}

func (s *server) destroyKey(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	p, err := parametersOf[admin.DestroyParameters](parameters)
	if err != nil {
		return nil, err
	}
	return s.hsm.Destroy(ctx, g, p.Name)
}

func (s *server) repairKeyActs(parameters []byte) ([]string, error) {
	p, err := parametersOf[admin.RepairParameters](parameters)
	if err != nil {
		return nil, err
	}
	if err := s.keyNamed(p.Name, ""); err != nil {
		return nil, err
	}
	for _, k := range s.hsm.Keys() {
		if k.Name == p.Name && !slices.Contains(k.Members, p.Member) {
			return nil, fmt.Errorf("member: key %s is not on member %q; its members are %s", p.Name, audit.Text(p.Member, 64), strings.Join(k.Members, ", "))
		}
	}
	return actsOf(admin.RepairKey, parameters)
}

func (s *server) repairKey(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	p, err := parametersOf[admin.RepairParameters](parameters)
	if err != nil {
		return nil, err
	}
	return map[string]string{"key": p.Name, "member": p.Member}, s.hsm.Repair(ctx, g, p.Name, p.Member)
}

// adoptSpec reads the parameters of admin.AdoptKey.
func adoptSpec(parameters []byte) (spec hsmstore.AdoptSpec, p admin.AdoptParameters, err error) {
	if p, err = parametersOf[admin.AdoptParameters](parameters); err != nil {
		return spec, p, err
	}
	purpose, err := audit.ParsePurpose(p.Purpose)
	if err != nil {
		return spec, p, fmt.Errorf("purpose: %w", err)
	}
	id, err := hex.DecodeString(p.CKAID)
	if err != nil {
		return spec, p, errors.New("cka_id must be hex digits")
	}
	return hsmstore.AdoptSpec{Name: p.Name, Purpose: purpose, Algorithm: p.Algorithm, Subject: p.Subject, Member: p.Member, CKAID: id, Label: p.Label, AcceptWeak: p.AcceptWeak, Attestation: p.Attestation}, p, nil
}

// adoptKeyActs tries the adoption dry: what would be refused is refused now.
func (s *server) adoptKeyActs(parameters []byte) ([]string, error) {
	spec, p, err := adoptSpec(parameters)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), inspectTime)
	defer cancel()
	spec.DryRun = true
	report, err := s.hsm.Adopt(ctx, nil, spec)
	if err != nil {
		return nil, err
	}
	acts, err := actsOf(admin.AdoptKey, parameters)
	if err == nil && report.Act != acts[0] {
		err = fmt.Errorf("spki_sha256: the token holds another key than %s", audit.Text(p.SPKI, 64))
	}
	return acts, err
}

func (s *server) adoptKey(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	spec, _, err := adoptSpec(parameters)
	if err != nil {
		return nil, err
	}
	return s.hsm.Adopt(ctx, g, spec)
}

// importSpec reads the parameters of admin.ImportKey.
func importSpec(parameters []byte) (spec hsmstore.ImportSpec, session string, err error) {
	p, err := parametersOf[admin.ImportParameters](parameters)
	if err != nil {
		return spec, "", err
	}
	purpose, err := audit.ParsePurpose(p.Purpose)
	if err != nil {
		return spec, "", fmt.Errorf("purpose: %w", err)
	}
	return hsmstore.ImportSpec{Name: p.Name, Purpose: purpose, Algorithm: p.Algorithm, Subject: p.Subject, SPKI: p.SPKI, Mechanism: p.Mechanism, Blob: p.Blob, Members: p.Members}, p.Session, nil
}

func (s *server) importKeyActs(parameters []byte) ([]string, error) {
	spec, session, err := importSpec(parameters)
	if err != nil {
		return nil, err
	}
	if err := s.hsm.CheckImport(session, spec); err != nil {
		return nil, err
	}
	return actsOf(admin.ImportKey, parameters)
}

func (s *server) importKey(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	spec, session, err := importSpec(parameters)
	if err != nil {
		return nil, err
	}
	k, err := s.hsm.FinishImport(ctx, g, session, spec)
	if err != nil {
		return nil, err
	}
	hash := k.SPKIHash()
	return map[string]string{"key": spec.Name, "spki_sha256": hex.EncodeToString(hash[:])}, nil
}

// generateKeyActs refuses what is known to fail before officers are troubled with it.
func (s *server) generateKeyActs(parameters []byte) ([]string, error) {
	spec, err := keySpec(parameters)
	if err != nil {
		return nil, err
	}
	for _, k := range s.hsm.Keys() {
		if k.Name == spec.Name && k.State != hsmstore.KeyBorn { // one that a crash left unproved is taken up again
			return nil, fmt.Errorf("name: there is a key %q already; choose another name", spec.Name)
		}
	}
	for _, name := range spec.Members {
		if !slices.ContainsFunc(s.hsm.Members(), func(m hsmstore.MemberStatus) bool { return m.Name == name }) {
			return nil, fmt.Errorf("members: there is no HSM member %q", name)
		}
	}
	return actsOf(admin.GenerateKey, parameters)
}

// generateKey carries out admin.GenerateKey.
func (s *server) generateKey(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	spec, err := keySpec(parameters)
	if err != nil {
		return nil, err
	}
	k, err := s.hsm.GenerateKey(ctx, g, spec)
	if err != nil {
		return nil, err
	}
	hash := k.SPKIHash()
	return map[string]string{"key": spec.Name, "spki_sha256": fmt.Sprintf("%x", hash)}, nil
}
