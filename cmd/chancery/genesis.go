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

// plan is what genesis makes: it stands in leaf 0 as the list of acts, and a start
// after a crash goes on where the ledger ends.
type plan struct {
	members []hsmstore.MemberConfig
	keys    []hsmstore.KeySpec // the checkpoint key first
	issuers []ca.IssuerSpec
}

func (s *server) plan() (*plan, error) {
	members, err := s.cfg.members()
	if err != nil {
		return nil, err
	}
	organization := "Chancery at " + s.cfg.domain()
	subject := func(cn string) pkix.Name { return pkix.Name{Organization: []string{organization}, CommonName: cn} }
	p := &plan{members: members, issuers: []ca.IssuerSpec{
		{Name: rootName, Profile: "root", KeyName: rootName, Parent: rootName, Subject: subject("Chancery Root CA")},
		{Name: issuingName, Profile: "issuing", KeyName: issuingName, Parent: rootName, Subject: subject("Chancery Issuing CA")},
	}}
	p.keys = []hsmstore.KeySpec{{Name: checkpointName, Purpose: audit.PurposeCheckpoint, Algorithm: "P-256"}}
	for i, alg := range []string{"P-384", "P-256"} {
		der, err := asn1.Marshal(p.issuers[i].Subject.ToRDNSequence())
		if err != nil {
			return nil, fmt.Errorf("encoding the name of issuer %s: %w", p.issuers[i].Name, err)
		}
		p.keys = append(p.keys, hsmstore.KeySpec{Name: p.issuers[i].KeyName, Purpose: audit.PurposeIssuer, Algorithm: alg, Subject: der})
	}
	p.keys = append(p.keys, hsmstore.KeySpec{Name: documentName, Purpose: audit.PurposeDocument, Algorithm: "P-256"})
	for _, m := range members {
		p.keys = append(p.keys, hsmstore.KeySpec{Name: hsmstore.ProbeKeyName(m.Name), Purpose: audit.PurposeProbe, Algorithm: "P-256", Members: []string{m.Name}})
	}
	return p, nil
}

func keyAct(k hsmstore.KeySpec) string {
	return admin.GenerateKeyAct(k.Name, k.Purpose.String(), k.Algorithm)
}

func issuerAct(i ca.IssuerSpec) string {
	if i.Parent == i.Name {
		return admin.SignRootAct(i.Name)
	}
	return admin.SignCAAct(i.Parent, i.Name)
}

func (p *plan) acts() (acts []string) {
	for _, m := range p.members {
		acts = append(acts, admin.AddMemberAct(m.Name))
	}
	for _, k := range p.keys {
		acts = append(acts, keyAct(k))
	}
	for _, i := range p.issuers {
		acts = append(acts, issuerAct(i))
	}
	return acts
}

// genesis makes, on an empty ledger, everything that the plan lists, and finishes
// what a crash interrupted. Afterwards every sensitive act needs the officers.
func (s *server) genesis(ctx context.Context, roster [32]byte, tokenHash [32]byte) error {
	p, err := s.plan()
	if err != nil {
		return err
	}
	var g *admin.Grant
	if s.ledger.Head().Size == 0 {
		if g, err = admin.Genesis(s.ledger.Head(), p.acts()); err != nil {
			return err
		}
		leaf := audit.Genesis{Random: [32]byte(random(32)), Dev: s.dev, Domain: s.cfg.domain(), Roster: roster, Acts: p.acts()}
		if err := s.hsm.Genesis(ctx, g, leaf, p.keys[0]); err != nil {
			return fmt.Errorf("genesis: %w", err)
		}
	} else {
		done, err := s.done(ctx, p)
		if err != nil {
			return err
		}
		leaf0, err := s.ledger.Leaf(ctx, 0)
		if err != nil {
			return err
		}
		if g, err = admin.ResumeGenesis(leaf0, func(act string) bool { return done[act] }); err != nil {
			return err
		}
	}
	err = s.ledger.Write(ctx, ca.PutSetting{Name: adminTokenSetting, Value: tokenHash[:]})
	if err != nil && !errors.Is(err, audit.ErrExists) {
		return fmt.Errorf("storing the hash of the admin token: %w", err)
	}
	if err := s.hsm.CompleteGenesis(ctx, g, p.keys); err != nil {
		return fmt.Errorf("genesis: %w", err)
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
	return nil
}

// done are the acts that the database shows as carried out.
func (s *server) done(ctx context.Context, p *plan) (map[string]bool, error) {
	done := map[string]bool{}
	members, err := s.db.Members(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		done[admin.AddMemberAct(m.Name)] = true
	}
	keys, err := s.db.Keys(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		for _, spec := range p.keys {
			if spec.Name == k.Name && k.Usable {
				done[keyAct(spec)] = true
			}
		}
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
	return done, nil
}

// complete tells whether everything of the plan is there.
func (s *server) complete(ctx context.Context) (bool, error) {
	p, err := s.plan()
	if err != nil {
		return false, err
	}
	done, err := s.done(ctx, p)
	if err != nil {
		return false, err
	}
	for _, a := range p.acts() {
		if !done[a] {
			return false, nil
		}
	}
	return true, nil
}
