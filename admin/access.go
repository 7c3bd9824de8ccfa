package admin

import (
	"fmt"
	"slices"
	"strings"

	"chancery/audit"
)

// Permission is one thing that somebody may do. Each route of the API and the console and
// each command that asks a server has exactly one.
type Permission string

// The permissions.
const (
	ReadCertificates   Permission = "certificates.read"
	IssueCertificates  Permission = "certificates.issue"
	RevokeCertificates Permission = "certificates.revoke"
	SignDocuments      Permission = "documents.sign"
	ReadKeys           Permission = "keys.read"
	ManageKeys         Permission = "keys.manage" // disable, enable, describe; births and ends are the officers'
	ReadHSM            Permission = "hsm.read"
	ManageHSM          Permission = "hsm.manage"
	ReadBackups        Permission = "backups.read"
	ManageBackups      Permission = "backups.manage"
	ReadApprovals      Permission = "approvals.read"
	Propose            Permission = "approvals.propose"
	Vote               Permission = "approvals.vote" // to hand a vote in; what counts is its signature
	CancelApprovals    Permission = "approvals.cancel"
	ReadLedger         Permission = "ledger.read"
	EraseLedger        Permission = "ledger.erase"
	ReadOfficers       Permission = "officers.read"
	ManageOfficers     Permission = "officers.manage" // enrolment links; who is on the roster is the officers' decision
	ReadMachines       Permission = "machines.read"
	ManageMachines     Permission = "machines.manage" // API tokens and client certificates
)

// Role is a set of permissions, named as the field does (RFC 3647 §4.5.2; CloudHSM for
// the crypto officer).
type Role string

// The roles.
const (
	Administrator       Role = "administrator"        // people, machines, settings
	CryptoOfficer       Role = "crypto-officer"       // keys and HSM members; votes
	RegistrationOfficer Role = "registration-officer" // issues and revokes certificates
	Signer              Role = "signer"               // signs documents and code
	Auditor             Role = "auditor"              // reads everything, changes nothing
)

// Roles lists all roles.
var Roles = []Role{Administrator, CryptoOfficer, RegistrationOfficer, Signer, Auditor}

// dimension is what a permission can be limited to.
type dimension uint8

const (
	byIssuer dimension = 1 << iota
	byProfile
	byKey
)

// permissions is the one table: what a permission can be limited to, and which roles have it.
var permissions = map[Permission]struct {
	scope dimension
	roles []Role
}{
	ReadCertificates:   {byIssuer | byProfile, []Role{Administrator, CryptoOfficer, RegistrationOfficer, Auditor}},
	IssueCertificates:  {byIssuer | byProfile, []Role{RegistrationOfficer}},
	RevokeCertificates: {byIssuer | byProfile, []Role{RegistrationOfficer}},
	SignDocuments:      {byKey, []Role{Signer}},
	ReadKeys:           {byKey, []Role{Administrator, CryptoOfficer, Auditor}},
	ManageKeys:         {byKey, []Role{CryptoOfficer}},
	ReadHSM:            {0, []Role{Administrator, CryptoOfficer, Auditor}},
	ManageHSM:          {0, []Role{CryptoOfficer}},
	ReadBackups:        {0, []Role{Administrator, CryptoOfficer, Auditor}},
	ManageBackups:      {0, []Role{CryptoOfficer}},
	ReadApprovals:      {0, []Role{Administrator, CryptoOfficer, Auditor}},
	Propose:            {0, []Role{Administrator, CryptoOfficer}},
	Vote:               {0, []Role{Administrator, CryptoOfficer}}, // who decides, the roster says: an administrator hands in what others sign
	CancelApprovals:    {0, []Role{Administrator, CryptoOfficer}},
	ReadLedger:         {0, []Role{Administrator, CryptoOfficer, Auditor}},
	EraseLedger:        {0, []Role{Administrator}},
	ReadOfficers:       {0, []Role{Administrator, CryptoOfficer, Auditor}},
	ManageOfficers:     {0, []Role{Administrator}},
	ReadMachines:       {0, []Role{Administrator, CryptoOfficer, Auditor}},
	ManageMachines:     {0, []Role{Administrator, CryptoOfficer}}, // crypto officers: their own, to vote at the command line
}

// Permissions lists all permissions, in the order of their names.
func Permissions() []Permission {
	var out []Permission
	for p := range permissions {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// Known tells whether p stands in the table. Nobody has one that does not.
func (p Permission) Known() bool { _, ok := permissions[p]; return ok }

// Roles are those that have the permission.
func (p Permission) Roles() []Role { return slices.Clone(permissions[p].roles) }

// Resource is what a permission is used on. A field that does not apply is "".
type Resource struct {
	Issuer, Profile, Key string // names
}

// Assignment gives a role, for everything or for one issuer, profile or key. A limited
// role has only those permissions that can be limited so.
type Assignment struct {
	Role    Role   `json:"role"`
	Issuer  string `json:"issuer,omitempty"`
	Profile string `json:"profile,omitempty"`
	Key     string `json:"key,omitempty"`
}

// allows tells whether a gives a permission on a resource.
func (a Assignment) allows(p Permission, on Resource) bool {
	rule, known := permissions[p]
	if !known || !slices.Contains(rule.roles, a.Role) {
		return false
	}
	within := func(limit, value string, d dimension) bool {
		return limit == "" || rule.scope&d != 0 && limit == value
	}
	return within(a.Issuer, on.Issuer, byIssuer) && within(a.Profile, on.Profile, byProfile) && within(a.Key, on.Key, byKey)
}

// touches tells whether a gives a permission on anything at all.
func (a Assignment) touches(p Permission) bool {
	return a.allows(p, Resource{Issuer: a.Issuer, Profile: a.Profile, Key: a.Key})
}

// String writes an assignment as [ParseAssignment] reads it: "signer,key=release".
func (a Assignment) String() string {
	s := string(a.Role)
	for _, f := range []struct{ name, value string }{{"issuer", a.Issuer}, {"profile", a.Profile}, {"key", a.Key}} {
		if f.value != "" {
			s += "," + f.name + "=" + f.value
		}
	}
	return s
}

// ParseAssignment reads a role with its limits: "registration-officer,issuer=issuing,profile=tls-server".
func ParseAssignment(s string) (a Assignment, err error) {
	role, rest, limited := strings.Cut(s, ",")
	a.Role = Role(role)
	for limited {
		var field string
		field, rest, limited = strings.Cut(rest, ",")
		name, value, _ := strings.Cut(field, "=")
		into, ok := map[string]*string{"issuer": &a.Issuer, "profile": &a.Profile, "key": &a.Key}[name]
		if !ok || value == "" || *into != "" {
			return a, fmt.Errorf("role %q: %q is no limit; allowed, each once: issuer=NAME, profile=NAME, key=NAME", audit.Text(s, 200), audit.Text(field, 100))
		}
		*into = value
	}
	return a, a.Check()
}

// Check tells whether the role exists and can be limited as it is.
func (a Assignment) Check() error {
	if !slices.Contains(Roles, a.Role) {
		return fmt.Errorf("there is no role %q; allowed: %v", audit.Text(string(a.Role), 64), Roles)
	}
	for _, limit := range []string{a.Issuer, a.Profile, a.Key} {
		if audit.Text(limit, 128) != limit || strings.ContainsAny(limit, ",=") {
			return fmt.Errorf("role %s: a limit is the name of an issuer, profile or key", a.Role)
		}
	}
	if (a.Issuer != "" || a.Profile != "" || a.Key != "") && !slices.ContainsFunc(Permissions(), a.touches) {
		return fmt.Errorf("role %s gives nothing that can be limited to %s", a.Role, strings.TrimPrefix(a.String(), string(a.Role)+","))
	}
	return nil
}

// CheckAssignments checks the roles of one person or machine, and the separation of
// duties: an auditor holds no other role.
func CheckAssignments(as []Assignment) error {
	seen := map[Assignment]bool{}
	for _, a := range as {
		if err := a.Check(); err != nil {
			return err
		}
		if seen[a] {
			return fmt.Errorf("role %s stands there twice", a)
		}
		seen[a] = true
		if a.Role == Auditor && len(as) > 1 {
			return fmt.Errorf("an auditor has no other role: who audits changes nothing")
		}
	}
	return nil
}

// PrincipalKind is how somebody showed who they are.
type PrincipalKind string

// The kinds of principals.
const (
	ByAdminToken PrincipalKind = "admin-token" // the token of the first start; no person
	ByOfficer    PrincipalKind = "officer"     // a person on the roster, with a passkey
	ByMachine    PrincipalKind = "machine"     // an API token or a client certificate
	ByOIDC       PrincipalKind = "oidc"        // a person whom an OpenID provider vouches for; never votes
)

// Principal is who asks. The zero value may do nothing.
type Principal struct {
	Kind        PrincipalKind
	Name        string
	Assignments []Assignment
	Owner       string // of a machine: the requester who made it
}

// never lists what a kind of principal may not do, whatever its roles are: who came in
// without a passkey cannot make others, nor ask for what an officer decides, as the person
// behind could be that officer.
var never = map[PrincipalKind][]Permission{
	ByOIDC:    {Propose, Vote, ManageOfficers, ManageMachines},
	ByMachine: {ManageOfficers, ManageMachines},
}

// May tells whether the principal has a permission on a resource.
func (p Principal) May(perm Permission, on Resource) bool {
	return p.some(perm, func(a Assignment) bool { return a.allows(perm, on) })
}

// MaySome tells whether the principal has a permission on anything: the check of lists,
// whose items are then held against [Principal.May] one by one.
func (p Principal) MaySome(perm Permission) bool {
	return p.some(perm, func(a Assignment) bool { return a.touches(perm) })
}

func (p Principal) some(perm Permission, gives func(Assignment) bool) bool {
	if p.Kind == ByAdminToken {
		return perm.Known()
	}
	return !slices.Contains(never[p.Kind], perm) && slices.ContainsFunc(p.Assignments, gives)
}

// administers tells whether the principal is an administrator, of everything.
func (p Principal) administers() bool {
	return p.Kind == ByAdminToken || p.Kind == ByOfficer && slices.Contains(p.Assignments, Assignment{Role: Administrator})
}

// Requester is how the principal stands in entries and proposals.
func (p Principal) Requester() string {
	switch p.Kind {
	case ByAdminToken:
		return AdminToken
	case ByOfficer:
		return OfficerRequester(p.Name)
	case ByMachine:
		if p.Owner != "" {
			return "machine:" + p.Name + "/" + p.Owner
		}
		return "machine:" + p.Name
	case ByOIDC:
		return "oidc:" + p.Name
	}
	return "nobody"
}

// asksAs tells whether a requester, as [Principal.Requester] writes it, is this officer or
// a machine of that officer: who asks does not decide.
func asksAs(requester, officer string) bool {
	if machine, ok := strings.CutPrefix(requester, "machine:"); ok {
		_, owner, _ := strings.Cut(machine, "/")
		requester = owner
	}
	return requester == OfficerRequester(officer)
}
