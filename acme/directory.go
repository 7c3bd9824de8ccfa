package acme

import "encoding/json/v2"

// directory is the object of RFC 8555 §7.1.1. newAuthz is not offered.
func (s *Server) directory() ([]byte, error) {
	type meta struct {
		TermsOfService string `json:"termsOfService,omitempty"`
		Website        string `json:"website,omitempty"`
	}
	return json.Marshal(struct {
		NewNonce   string `json:"newNonce"`
		NewAccount string `json:"newAccount"`
		NewOrder   string `json:"newOrder"`
		RevokeCert string `json:"revokeCert"`
		KeyChange  string `json:"keyChange"`
		Meta       meta   `json:"meta"`
	}{
		s.base + "/new-nonce", s.base + "/new-account", s.base + "/new-order", s.base + "/revoke-cert", s.base + "/key-change",
		meta{s.cfg.TermsOfService, s.cfg.Website},
	})
}
