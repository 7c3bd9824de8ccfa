package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// exitAuth: the server did not accept who asks.
const exitAuth = 4

// remote says how a command reaches the running server.
type remote struct {
	dir, server, tokenFile, roots string
	clientCert, clientKey         string  // instead of a token, at the admin door
	as, asKey                     string  // an officer, by the CLI key: instead of a token
	officer, officerKey           *string // who votes or asks; without a token that is who comes, too

	slow bool // the answer may take minutes, and be long
}

// How long an answer may be, in octets. A manifest holds the CRLs in base64 and is sent
// in base64 once more: a CRL of a million entries, 40 MB, becomes 71 MB.
const (
	maxAnswer     = 4 << 20
	maxSlowAnswer = 256 << 20
)

func (r *remote) flags(c *cobra.Command) {
	c.Flags().StringVar(&r.dir, "dir", "./data", "folder of chancery dev: gives server, token and roots")
	c.Flags().StringVar(&r.server, "server", "", "base URL of the server, e.g. https://ca.example; instead of --dir")
	c.Flags().StringVar(&r.tokenFile, "token-file", "", "file that holds the API token; with --server")
	c.Flags().StringVar(&r.clientCert, "client-cert", "", "PEM file of a client certificate with its chain, for listen.admin; with --server and --client-key, instead of a token")
	c.Flags().StringVar(&r.clientKey, "client-key", "", "PEM file of its private key")
	c.Flags().StringVar(&r.as, "as", "", "come as this officer, with --as-key, instead of a token")
	c.Flags().StringVar(&r.asKey, "as-key", "", "file of that officer's private key (0600)")
	c.Flags().StringVar(&r.roots, "roots", "", "PEM file of the trusted roots; with --server")
}

// resolve fills in what the folder of dev knows.
func (r *remote) resolve() error {
	if r.server == "" {
		cfg, err := loadConfig(filepath.Join(r.dir, "chancery.yaml"), "")
		if err != nil {
			return err
		}
		r.server = cfg.PublicURL
		if r.tokenFile == "" {
			r.tokenFile = filepath.Join(r.dir, "admin.token")
		}
		if r.roots == "" {
			r.roots = filepath.Join(r.dir, "root.pem")
		}
	}
	if (r.clientCert == "") != (r.clientKey == "") {
		return &exit{exitUsage, errors.New("--client-cert and --client-key belong together")}
	}
	if (r.as == "") != (r.asKey == "") {
		return &exit{exitUsage, errors.New("--as and --as-key belong together")}
	}
	if name, _ := r.signer(); r.roots == "" || r.tokenFile == "" && r.clientCert == "" && name == "" {
		return &exit{exitUsage, errors.New("--server needs --roots, and one of --token-file, --client-cert with --client-key, --as with --as-key")}
	}
	return nil
}

func (r *remote) pool() (*x509.CertPool, error) { return rootPool(r.roots) }

func rootPool(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("trusted roots: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("trusted roots: %s holds no PEM certificate", path)
	}
	return pool, nil
}

// post sends JSON to the API and decodes the answer. A problem document (RFC 9457)
// becomes one line.
func (r *remote) post(ctx context.Context, path string, body, into any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return r.ask(ctx, http.MethodPost, path, b, into)
}

// get asks the API and decodes the answer, as post does.
func (r *remote) get(ctx context.Context, path string, into any) error {
	return r.ask(ctx, http.MethodGet, path, nil, into)
}

func (r *remote) ask(ctx context.Context, method, path string, body []byte, into any) error {
	if err := r.resolve(); err != nil {
		return err
	}
	pool, err := r.pool()
	if err != nil {
		return err
	}
	tlsConfig := &tls.Config{RootCAs: pool}
	authorization := ""
	if r.clientCert != "" {
		pair, err := tls.LoadX509KeyPair(r.clientCert, r.clientKey)
		if err != nil {
			return &exit{exitAuth, fmt.Errorf("client certificate: %w", err)}
		}
		tlsConfig.Certificates = []tls.Certificate{pair}
	} else if name, _ := r.signer(); name == "" {
		token, err := os.ReadFile(r.tokenFile)
		if err != nil {
			return &exit{exitAuth, fmt.Errorf("API token: %w", err)}
		}
		authorization = "Bearer " + strings.TrimSpace(string(token))
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(r.server, "/")+path, bytes.NewReader(body))
	if err != nil {
		return &exit{exitUsage, fmt.Errorf("--server %q is no URL", r.server)}
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	if name, file := r.signer(); name != "" {
		if err := r.sign(req, body, name, file); err != nil {
			return err
		}
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	patience, most := time.Minute, int64(maxAnswer)
	if r.slow {
		patience, most = 15*time.Minute, maxSlowAnswer
	}
	c := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: tlsConfig}}
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("asking %s: %w; is the server running?", r.server, unwrapAll(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(answer)) > most {
		err = fmt.Errorf("the answer is longer than %d MiB", most>>20)
	}
	if err != nil {
		return fmt.Errorf("asking %s: %w", r.server, err)
	}
	if resp.StatusCode/100 == 2 {
		return json.Unmarshal(answer, into)
	}
	var p struct{ Type, Title, Detail string }
	if json.Unmarshal(answer, &p) != nil || p.Title == "" {
		p.Title, p.Detail = resp.Status, "the answer is no problem document"
	}
	code := exitError
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		code = exitAuth
	}
	if strings.HasSuffix(p.Type, "/hsm-fault") {
		code = exitHSM
	}
	return &exit{code, fmt.Errorf("%s: %s", p.Title, p.Detail)}
}
