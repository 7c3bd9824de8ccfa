package main

import (
	"context"
	"encoding/json/v2"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

// newBoard makes the board on which officers decide, with all that it can carry out.
func (s *server) newBoard(ctx context.Context) (*admin.Board, error) {
	roster, err := s.roster(ctx)
	if err != nil {
		return nil, err
	}
	return admin.NewBoard(admin.Config{Ledger: s.ledger, Storage: s.db, Roster: roster, Log: s.log, Actions: map[string]admin.Action{
		admin.GenerateKey: {Acts: s.generateKeyActs, Execute: s.generateKey},
	}})
}

// roster reads the officers and holds them against leaf 0.
func (s *server) roster(ctx context.Context) (admin.Roster, error) {
	roster, err := s.db.Roster(ctx)
	if err != nil {
		return roster, fmt.Errorf("reading the officers: %w", err)
	}
	leaf0, err := s.ledger.Leaf(ctx, 0)
	if err != nil {
		return roster, err
	}
	return roster, admin.CheckRoster(roster, leaf0)
}

// What a key that officers ask for may be. Issuer keys are bound to a subject at
// birth; probe and checkpoint keys come with a member and with genesis.
var (
	keyPurposes   = []audit.Purpose{audit.PurposeDocument, audit.PurposeCode, audit.PurposeOCSP, audit.PurposeTimestamp}
	keyAlgorithms = []string{"P-256", "P-384", "P-521", "RSA-2048", "RSA-3072", "RSA-4096"}
	keyName       = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
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
		if !keyName.MatchString(name) {
			return spec, fmt.Errorf("name %q: 1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit, please", audit.Text(name, 64))
		}
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
	if action != admin.GenerateKey {
		return nil, fmt.Errorf("this chancery does not know the action %q; use the version of the server", action)
	}
	spec, err := keySpec(parameters)
	if err != nil {
		return nil, err
	}
	return []string{spec.Act()}, nil
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
