package main

import (
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// adminTokenSetting holds the SHA-256 of the admin token.
const adminTokenSetting = "admin-token"

// genesisSetting is there once genesis is finished: the keys and members that it made
// may come and go afterwards.
const genesisSetting = "genesis-done"

// plan is what genesis makes: it stands in leaf 0 as the list of acts, and a start
// after a crash goes on where the ledger ends. Members with their probe and checkpoint
// keys are added by the store.
type plan struct {
	keys    []hsmstore.KeySpec
	issuers []ca.IssuerSpec
}

func (s *server) plan() (*plan, error) {
	organization := "Chancery at " + s.cfg.domain()
	subject := func(cn string) pkix.Name { return pkix.Name{Organization: []string{organization}, CommonName: cn} }
	p := &plan{
		issuers: []ca.IssuerSpec{
			{Name: rootName, Profile: "root", KeyName: rootName, Parent: rootName, Subject: subject("Chancery Root CA")},
			{Name: issuingName, Profile: "issuing", KeyName: issuingName, Parent: rootName, Subject: subject("Chancery Issuing CA")},
		},
	}
	for i, alg := range []string{"P-384", "P-256"} {
		der, err := asn1.Marshal(p.issuers[i].Subject.ToRDNSequence())
		if err != nil {
			return nil, fmt.Errorf("encoding the name of issuer %s: %w", p.issuers[i].Name, err)
		}
		p.keys = append(p.keys, hsmstore.KeySpec{Name: p.issuers[i].KeyName, Purpose: audit.PurposeIssuer, Algorithm: alg, Subject: der})
	}
	p.keys = append(p.keys, hsmstore.KeySpec{Name: documentName, Purpose: audit.PurposeDocument, Algorithm: "P-256"})
	return p, nil
}

func issuerAct(i ca.IssuerSpec) string {
	if i.Parent == i.Name {
		return admin.SignRootAct(i.Name)
	}
	return admin.SignCAAct(i.Parent, i.Name)
}

func (s *server) acts(p *plan) []string {
	acts := s.hsm.GenesisActs(p.keys...)
	for _, i := range p.issuers {
		acts = append(acts, issuerAct(i))
	}
	return acts
}

// genesis makes, on an empty ledger, everything that the plan lists, and finishes
// what a crash interrupted. Afterwards every sensitive act needs the officers.
func (s *server) genesis(ctx context.Context, roster admin.Roster, tokenHash [32]byte) error {
	p, err := s.plan()
	if err != nil {
		return err
	}
	var g *admin.Grant
	if s.ledger.Head().Size == 0 {
		if g, err = admin.Genesis(s.ledger.Head(), s.acts(p)); err != nil {
			return err
		}
		leaf := audit.Genesis{Random: [32]byte(random(32)), Dev: s.dev, Domain: s.cfg.domain(), Roster: roster.Digest(), Acts: s.acts(p)}
		if err := s.hsm.Genesis(ctx, g, leaf, p.keys...); err != nil {
			return fmt.Errorf("genesis: %w", err)
		}
	} else {
		leaf0, err := s.ledger.Leaf(ctx, 0)
		if err != nil {
			return err
		}
		if err := notRestored(leaf0); err != nil {
			return err
		}
		done, err := s.done(ctx, p)
		if err != nil {
			return err
		}
		if was, _ := leaf0.Hash(audit.TagRoster); was != roster.Digest() {
			return &exit{exitConfig, errors.New("the ledger was begun with other officers or another quorum; go on with those")}
		}
		if g, err = admin.ResumeGenesis(leaf0, done); err != nil {
			return err
		}
		if err := s.hsm.ResumeGenesis(ctx, g); err != nil {
			return fmt.Errorf("resuming genesis: %w", err)
		}
	}
	err = s.ledger.Write(ctx, ca.PutSetting{Name: adminTokenSetting, Value: tokenHash[:]})
	if err != nil && !errors.Is(err, audit.ErrExists) {
		return fmt.Errorf("storing the hash of the admin token: %w", err)
	}
	if err := s.ledger.Write(ctx, admin.PutRoster{History: admin.History{Base: roster}}); err != nil && !errors.Is(err, audit.ErrExists) {
		return fmt.Errorf("storing the officers: %w", err)
	}
	var missing []hsmstore.KeySpec
	for _, k := range p.keys {
		if !s.hsm.ActDone(k.Act()) {
			missing = append(missing, k)
		}
	}
	if len(missing) > 0 {
		if _, err := s.hsm.GenerateKeys(ctx, g, missing...); err != nil {
			return fmt.Errorf("genesis: %w", err)
		}
	}
	if err := s.buildCA(ctx); err != nil {
		return err
	}
	for _, i := range p.issuers {
		if s.authority.HasIssuer(i.Name) {
			continue
		}
		prep, err := s.authority.PrepareIssuer(ctx, g, i)
		if err != nil {
			return fmt.Errorf("genesis: issuer %s: %w", i.Name, err)
		}
		if _, err := s.authority.Issue(ctx, prep, ca.Projections{}); err != nil {
			return fmt.Errorf("genesis: issuer %s: %w", i.Name, err)
		}
	}
	if err := s.ledger.Write(ctx, ca.PutSetting{Name: genesisSetting, Value: []byte{1}}); err != nil {
		return fmt.Errorf("recording the end of genesis: %w", err)
	}
	return nil
}

// done tells which acts the database shows as carried out.
func (s *server) done(ctx context.Context, p *plan) (func(act string) bool, error) {
	done := map[string]bool{}
	members, err := s.db.Members(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		done[admin.AddMemberAct(m.Name, m.Serial, string(m.Role))] = true
	}
	issuers, err := s.db.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range issuers {
		for _, spec := range p.issuers {
			if spec.Name == i.Name {
				done[issuerAct(spec)] = true
			}
		}
	}
	return func(act string) bool { return done[act] || s.hsm.ActDone(act) }, nil
}

// notRestored refuses to finish what a restore began: revocations would be missing.
func notRestored(leaf0 audit.Leaf) error {
	if _, successor := leaf0.Get(audit.TagPrevious); !successor {
		return nil
	}
	return &exit{exitConfig, errors.New("a restore into this database was interrupted and cannot be finished: begin again with an empty database and an empty journal: chancery hsm restore")}
}

// complete tells whether genesis was carried out to its end.
func (s *server) complete(ctx context.Context) (bool, error) {
	_, err := s.db.Setting(ctx, genesisSetting)
	if errors.Is(err, audit.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
