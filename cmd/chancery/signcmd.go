package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"chancery/signing"
)

func signCommand() *cobra.Command {
	var r remote
	var out, key string
	c := &cobra.Command{
		Use: "sign FILE", Short: "Sign a document: detached CMS, only its SHA-256 leaves this machine",
		Long: "Hashes FILE, has the server sign the digest with a document key in the HSM cluster, and writes the detached\n" +
			"signature to FILE.p7s. chancery verify or openssl cms -verify -binary checks it.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &exit{exitUsage, errors.New("give one FILE; see chancery sign --help")}
			}
			digest, err := hashFile(args[0])
			if err != nil {
				return err
			}
			var answer struct {
				CMS     []byte `json:"cms"`
				Receipt struct {
					Index    uint64 `json:"index"`
					ProofURL string `json:"proof_url"`
				} `json:"receipt"`
			}
			if err := r.post(c.Context(), "/api/v1/sign/cms", map[string]string{"sha256": hex.EncodeToString(digest[:]), "key": key}, &answer); err != nil {
				return fmt.Errorf("signing %s: %w", args[0], err)
			}
			// What the server sends is checked before it is kept.
			pool, err := r.pool()
			if err != nil {
				return err
			}
			if _, err := signing.Verify(answer.CMS, digest, pool); err != nil {
				return &exit{exitVerify, fmt.Errorf("the server's signature of %s: %w", args[0], err)}
			}
			if out == "" {
				out = args[0] + ".p7s"
			}
			if err := writeFile(out, answer.CMS, 0o644); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s, ledger entry %d, proof: %s\n", out, answer.Receipt.Index, answer.Receipt.ProofURL)
			return err
		},
	}
	r.flags(c)
	c.Flags().StringVar(&out, "out", "", "file of the signature; default FILE.p7s")
	c.Flags().StringVar(&key, "key", documentName, "name of the document key")
	return c
}

func verifyCommand() *cobra.Command {
	var roots, sig, dir string
	c := &cobra.Command{
		Use: "verify FILE", Short: "Check a document's signature, without the server",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &exit{exitUsage, errors.New("give one FILE; see chancery verify --help")}
			}
			if sig == "" {
				sig = args[0] + ".p7s"
			}
			if roots == "" {
				roots = dir + "/root.pem"
			}
			pool, err := rootPool(roots)
			if err != nil {
				return err
			}
			digest, err := hashFile(args[0])
			if err != nil {
				return err
			}
			der, err := os.ReadFile(sig)
			if err != nil {
				return err
			}
			v, err := signing.Verify(der, digest, pool)
			if err != nil {
				return &exit{exitVerify, fmt.Errorf("%s: %w", args[0], err)}
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "OK: %s signed by %s at %s\n", args[0], v.Signer.Subject, v.Time.Format(time.RFC3339))
			return err
		},
	}
	c.Flags().StringVar(&roots, "roots", "", "PEM file of the trusted roots; default DIR/root.pem")
	c.Flags().StringVar(&dir, "dir", "./data", "folder of chancery dev")
	c.Flags().StringVar(&sig, "sig", "", "file of the signature; default FILE.p7s")
	return c
}

// hashFile is the SHA-256 of a file of any size.
func hashFile(path string) (sum [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, fmt.Errorf("reading %s: %w", path, err)
	}
	return [32]byte(h.Sum(nil)), nil
}
