package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"chancery/admin"
)

// signer is the officer as whom a command comes to the server, if it has no token: named by
// --as and --as-key, or by the flags with which the officer votes or asks.
func (r *remote) signer() (name, file string) {
	if r.as != "" || r.asKey != "" {
		return r.as, r.asKey
	}
	if r.tokenFile == "" && r.clientCert == "" && r.officer != nil && r.officerKey != nil {
		return *r.officer, *r.officerKey
	}
	return "", ""
}

// sign lets an officer's CLI key say who asks.
func (r *remote) sign(req *http.Request, body []byte, name, file string) error {
	k, err := admin.LoadOfficerKey(name, file)
	if err != nil {
		return &exit{exitAuth, err}
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	now := time.Now()
	sig, err := k.SignRequest(admin.RequestText(strings.ToLower(req.URL.Host), req.Method, req.URL.RequestURI(), now, nonce, body))
	if err != nil {
		return err
	}
	text, err := json.Marshal(map[string]any{"officer": name, "time": now.Unix(), "nonce": nonce[:], "signature": sig})
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Officer "+base64.RawURLEncoding.EncodeToString(text))
	return nil
}
