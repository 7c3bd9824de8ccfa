package console

import (
	"encoding/json/v2"
	"net/http"
	"strings"

	"chancery/admin"
)

// newKeyData is what the page shows on which officers ask for a key.
type newKeyData struct {
	Purposes   []keyChoice
	Algorithms []string
}

type keyChoice struct{ Value, Text string }

// newKeyPage is GET /console/keys/new.
func (c *Console) newKeyPage(w http.ResponseWriter, r *request) error {
	v := c.view(r, "keys", "newkey.title", nil)
	d := newKeyData{Algorithms: c.cfg.KeyAlgorithms}
	for _, p := range c.cfg.KeyPurposes {
		d.Purposes = append(d.Purposes, keyChoice{p.String(), v.named("purpose.", p.String())})
	}
	v.Data = d
	return c.show(w, http.StatusOK, "newkey", "", v)
}

// newKey is POST /console/keys/new: it drafts the proposal.
func (c *Console) newKey(w http.ResponseWriter, r *request) error {
	p := admin.KeyParameters{Name: strings.TrimSpace(r.form.Get("name")), Purpose: r.form.Get("purpose"), Algorithm: r.form.Get("algorithm")}
	j, err := json.Marshal(p, json.Deterministic(true))
	if err != nil {
		return err
	}
	parameters, err := admin.CanonicalParameters(j)
	if err != nil {
		return failure{status: http.StatusUnprocessableEntity, text: "error.board", detail: foreign(err.Error())}
	}
	return c.draft(w, r, "keys", admin.GenerateKey, []string{admin.GenerateKeyAct(p.Name, p.Purpose, p.Algorithm, nil)}, parameters)
}
