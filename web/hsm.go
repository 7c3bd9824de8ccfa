package web

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json/jsontext"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/admin"
	"chancery/hsmstore"
)

// HSM is the cluster as administrators see it and what they may do without officers;
// *hsmstore.Store is one. What they do is on the ledger when a method returns nil.
type HSM interface {
	Members() []hsmstore.MemberStatus
	Drain(ctx context.Context, name, reason string, force bool) error
	Fence(ctx context.Context, name, reason string) error
	Admit(ctx context.Context, name, reason string) error
	Verify(ctx context.Context) (hsmstore.Drift, error)
	Collecting() []hsmstore.Collection
	GiveShare(ctx context.Context, id, officer, set string, box []byte) error

	Keys() []hsmstore.KeyInfo
	Attributes(ctx context.Context, name string) ([]hsmstore.MemberAttributes, error)
	Disable(ctx context.Context, name, reason string) error
	Enable(ctx context.Context, name, reason string) error
	Describe(ctx context.Context, name, text string) error
	InspectKey(ctx context.Context, member string, ckaID []byte, label string) (hsmstore.AdoptReport, error)
	OpenImport(ctx context.Context, member string) (hsmstore.ImportTerms, error)
}

var _ HSM = (*hsmstore.Store)(nil)

// hsmMember is a member in answers.
type hsmMember struct {
	Name        string               `json:"name"`
	State       hsmstore.State       `json:"state"`
	Since       time.Time            `json:"since"`
	Why         string               `json:"why,omitempty"` // it is not up, or was not lately
	Serial      string               `json:"serial"`
	Label       string               `json:"label"`
	Replication hsmstore.Replication `json:"replication"`
	Role        hsmstore.Role        `json:"role,omitempty"`
	Sessions    int64                `json:"sessions"`
	InFlight    int64                `json:"in_flight"`
	Signatures  uint64               `json:"signatures"` // asked for since the start, repeats included
	Starts      uint64               `json:"starts"`
	Keys        int                  `json:"keys"`  // that it holds
	Ready       int                  `json:"ready"` // of those: that can sign there now
	Bad         []string             `json:"bad"`   // why others cannot
}

type hsmMembers struct {
	Members []hsmMember `json:"members"`
}

// members are the members with that name; "" is all.
func (s *Server) members(name string) (out []hsmMember) {
	out = []hsmMember{}
	keys := s.cfg.HSM.Keys()
	for _, m := range s.cfg.HSM.Members() {
		if name != "" && m.Name != name {
			continue
		}
		v := hsmMember{Name: m.Name, State: m.State, Since: m.Since.UTC(), Serial: m.Serial, Label: m.Label, Replication: m.Replication, Role: m.Role, Sessions: m.Sessions, InFlight: m.Outstanding,
			Signatures: m.Calls, Starts: m.Starts, Bad: []string{}}
		if m.Err != nil && m.State != hsmstore.Up {
			v.Why = m.Err.Error()
		}
		for _, k := range keys {
			if slices.Contains(k.Members, m.Name) && k.State != hsmstore.KeyDestroyed {
				v.Keys++
			}
			if slices.Contains(k.Ready, m.Name) {
				v.Ready++
			}
			if why := m.Bad[k.ID]; why != "" {
				v.Bad = append(v.Bad, k.Name+": "+why)
			}
		}
		out = append(out, v)
	}
	return out
}

// listMembers is GET /api/v1/hsm/members.
func (s *Server) listMembers(c echo.Context) error {
	return writeJSON(c, http.StatusOK, hsmMembers{s.members("")})
}

// showMember is GET /api/v1/hsm/members/{name}.
func (s *Server) showMember(c echo.Context) error {
	name := param(c, "name", "")
	one := s.members(name)
	if len(one) != 1 {
		return problemf(notFound, "there is no HSM member %s; GET /api/v1/hsm/members lists them", quote(name)).at("", "name")
	}
	return writeJSON(c, http.StatusOK, one[0])
}

// because is the body of what an administrator does to a member or key.
type because struct {
	Reason string `json:"reason"` // stands in the ledger
}

type drainRequest struct {
	Reason string `json:"reason"`
	Force  bool   `json:"force"` // also the last member that can sign with some key
}

// done answers an act that leaves nothing to say.
func (s *Server) done(c echo.Context, err error) error {
	if err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, struct{}{})
}

// drainMember is POST /api/v1/hsm/members/{name}/drain.
func (s *Server) drainMember(c echo.Context) error {
	var body drainRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	ctx, cancel := carryThrough(c)
	defer cancel()
	return s.done(c, s.cfg.HSM.Drain(ctx, param(c, "name", ""), body.Reason, body.Force))
}

// withReason is a handler of an act that has nothing but a reason.
func (s *Server) withReason(do func(ctx context.Context, name, reason string) error) echo.HandlerFunc {
	return func(c echo.Context) error {
		var body because
		if err := readJSON(c, &body); err != nil {
			return err
		}
		ctx, cancel := carryThrough(c)
		defer cancel()
		return s.done(c, do(ctx, param(c, "name", ""), body.Reason))
	}
}

// onKey is withReason for an act on a key that must be there.
func (s *Server) onKey(do func(ctx context.Context, name, reason string) error) echo.HandlerFunc {
	act := s.withReason(do)
	return func(c echo.Context) error {
		name := param(c, "name", "")
		if _, err := s.key(c, name); err != nil {
			return err
		}
		if err := require(c, admin.ManageKeys, admin.Resource{Key: name}); err != nil {
			return err
		}
		return act(c)
	}
}

// candidate is GET /api/v1/hsm/candidates/{name}: the token of a member that the
// server's configuration names and the cluster does not have, as the parameters of an
// add-member proposal.
func (s *Server) candidate(c echo.Context) error {
	p, err := s.cfg.Candidate(c.Request().Context(), param(c, "name", ""))
	if err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, p)
}

// verifyKeys is POST /api/v1/hsm/verify.
func (s *Server) verifyKeys(c echo.Context) error {
	var body struct{}
	if err := readJSON(c, &body); err != nil {
		return err
	}
	d, err := s.cfg.HSM.Verify(c.Request().Context())
	if err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, d)
}

type ceremonies struct {
	Ceremonies []hsmstore.Collection `json:"ceremonies"`
}

// ceremonies is GET /api/v1/hsm/ceremonies.
func (s *Server) ceremonies(c echo.Context) error {
	return writeJSON(c, http.StatusOK, ceremonies{s.cfg.HSM.Collecting()})
}

// shareRequest is the body of POST /api/v1/hsm/ceremonies/{id}/shares.
type shareRequest struct {
	Officer string `json:"officer"`
	Set     string `json:"set"` // that the share belongs to
	Box     []byte `json:"box"` // the share, sealed to the ceremony
}

// giveShare is POST /api/v1/hsm/ceremonies/{id}/shares.
func (s *Server) giveShare(c echo.Context) error {
	var body shareRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	return s.done(c, s.cfg.HSM.GiveShare(c.Request().Context(), param(c, "id", ""), body.Officer, body.Set, body.Box))
}

// key is a key in answers.
type key struct {
	Name        string                      `json:"name"`
	ID          string                      `json:"id"` // CKA_ID, hex
	Purpose     string                      `json:"purpose"`
	Algorithm   string                      `json:"algorithm"`
	State       hsmstore.KeyState           `json:"state"`
	SPKI        string                      `json:"spki_sha256"` // hex
	Origin      string                      `json:"origin"`      // member
	Members     []string                    `json:"members"`
	Ready       []string                    `json:"ready"`
	Birth       uint64                      `json:"birth"` // leaf
	Adopted     bool                        `json:"adopted"`
	Description string                      `json:"description"`
	PublicKey   []byte                      `json:"public_key,omitempty"` // SPKI DER; of one key
	Attributes  []hsmstore.MemberAttributes `json:"attributes,omitempty"` // of one key, as the tokens show it now
}

type keyList struct {
	Keys []key `json:"keys"`
}

func keyOf(k hsmstore.KeyInfo) key {
	hash := sha256.Sum256(k.SPKI)
	return key{Name: k.Name, ID: hex.EncodeToString(k.ID[:]), Purpose: k.Purpose.String(), Algorithm: k.Algorithm, State: k.State, SPKI: hex.EncodeToString(hash[:]), Origin: k.Origin,
		Members: append([]string{}, k.Members...), Ready: append([]string{}, k.Ready...), Birth: k.Birth, Adopted: k.Adopted != nil, Description: k.Description}
}

// listKeys is GET /api/v1/keys.
func (s *Server) listKeys(c echo.Context) error {
	out := keyList{Keys: []key{}}
	who := principal(c)
	for _, k := range s.cfg.HSM.Keys() {
		if who.May(admin.ReadKeys, admin.Resource{Key: k.Name}) {
			out.Keys = append(out.Keys, keyOf(k))
		}
	}
	return writeJSON(c, http.StatusOK, out)
}

// showKey is GET /api/v1/keys/{name}.
func (s *Server) showKey(c echo.Context) error {
	k, err := s.key(c, param(c, "name", ""))
	if err != nil {
		return err
	}
	out := keyOf(k)
	out.PublicKey = k.SPKI
	if out.Attributes, err = s.cfg.HSM.Attributes(c.Request().Context(), k.Name); err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, out)
}

// inspectRequest is the body of POST /api/v1/keys/inspect.
type inspectRequest struct {
	Member string `json:"member"`
	CKAID  string `json:"cka_id"` // hex; or
	Label  string `json:"label"`  // CKA_LABEL
}

// inspectKey is POST /api/v1/keys/inspect: a key that others made, before it is adopted.
func (s *Server) inspectKey(c echo.Context) error {
	var body inspectRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	id, err := hex.DecodeString(body.CKAID)
	if err != nil {
		return problemf(badProposal, "cka_id must be hex digits").at("/cka_id", "")
	}
	if len(id) == 0 && body.Label == "" {
		return problemf(badProposal, "cka_id and label are both missing; give one of them, or both").at("/cka_id", "")
	}
	if err := s.mustName(body.Member); err != nil {
		return err
	}
	r, err := s.cfg.HSM.InspectKey(c.Request().Context(), body.Member, id, body.Label)
	if errors.Is(err, hsmstore.ErrNoKey) {
		return problemf(notFound, "%s", clipTo(err.Error(), 500))
	}
	if err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, r)
}

// importRequest is the body of POST /api/v1/keys/import-sessions.
type importRequest struct {
	Member string `json:"member"` // whose token unwraps the key
}

// openImport is POST /api/v1/keys/import-sessions: a one-time key to wrap a private key
// to. The officers decide about the import itself.
func (s *Server) openImport(c echo.Context) error {
	var body importRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	if err := s.mustName(body.Member); err != nil {
		return err
	}
	terms, err := s.cfg.HSM.OpenImport(c.Request().Context(), body.Member)
	if err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, terms)
}

// proposalRequest is the body of POST /api/v1/approvals.
type proposalRequest struct {
	Action     string         `json:"action"`
	Parameters jsontext.Value `json:"parameters"`
	askedBy
}

// proposeAction is POST /api/v1/approvals: any act that officers decide about.
func (s *Server) proposeAction(c echo.Context) error {
	var body proposalRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	return s.propose(c, body.Action, body.Parameters, body.askedBy)
}

// hsmProblem tells the administrator what the cluster said. What the edge knows for
// all requests – the ledger, a full queue, a time limit – goes the way of all; every
// other error of the cluster is a refusal, and its text says the cure.
func hsmProblem(err error) error {
	for _, t := range []struct {
		is   error
		slug slug
	}{{hsmstore.ErrNoMember, notFound}, {hsmstore.ErrNoRecipient, notFound}, {hsmstore.ErrToken, hsmFault}, {hsmstore.ErrPIN, hsmFault}, {hsmstore.ErrModule, hsmFault}, {hsmstore.ErrRandom, hsmFault}, {hsmstore.ErrNoKey, hsmConflict}} {
		if errors.Is(err, t.is) {
			return problemf(t.slug, "%s", clipTo(err.Error(), 500))
		}
	}
	if p := problemFor(err); p.slug != internal && !errors.Is(err, hsmstore.ErrUnavailable) {
		return err
	}
	return problemf(hsmConflict, "%s", clipTo(err.Error(), 500))
}

// mustName is the problem that a body names no member of the cluster, or nil.
func (s *Server) mustName(member string) error {
	if member != "" && len(s.members(member)) == 1 {
		return nil
	}
	return problemf(badProposal, "member: there is no HSM member %s; GET /api/v1/hsm/members lists them", quote(member)).at("/member", "")
}

// key is the key of that name, or the problem that there is none, as for who may not see it.
func (s *Server) key(c echo.Context, name string) (hsmstore.KeyInfo, error) {
	who := principal(c)
	for _, k := range s.cfg.HSM.Keys() {
		if k.Name == name && (who.May(admin.ReadKeys, admin.Resource{Key: name}) || who.May(admin.ManageKeys, admin.Resource{Key: name})) {
			return k, nil
		}
	}
	return hsmstore.KeyInfo{}, problemf(notFound, "there is no key %s; GET /api/v1/keys lists them", quote(name)).at("", "name")
}
