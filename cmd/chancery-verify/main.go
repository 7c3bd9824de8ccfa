// Command chancery-verify checks an export of a Chancery ledger (chancery audit export)
// without Chancery: no database, no network, no HSM, and none of Chancery's own packages.
// It is the second implementation of the encodings; a test holds it to that.
//
// Exit codes: 0 every promise that the export shows is kept; 1 the export cannot be read,
// or the command line is wrong; 7 a promise is broken, and the first bad entry is named.
package main

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"chancery/cmd/chancery-verify/internal/check"
	"chancery/cmd/chancery-verify/internal/folder"
	"chancery/cmd/chancery-verify/internal/leaf"
)

// Exit codes.
const (
	exitOK     = 0
	exitError  = 1
	exitBroken = 7
)

// version is set by the Makefile.
var version = "unknown"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

const usage = `usage: chancery-verify [flags] FOLDER [FILE…]

Verifies the export of a ledger in FOLDER without Chancery: order and hashes of all entries, the
tree and its signed checkpoints, every intent closed once, certificates and CRLs against their
entries, officers' signatures. Each FILE (certificate, CRL or CMS signature; PEM or DER) must be
recorded by exactly one done entry.

Exit code 0: all is well. 7: a promise is broken; the first bad entry is named. 1: it cannot be read.
`

type settings struct {
	asJSON        bool
	signatures    bool
	ledger, state string
	trusted       []string
	folder        string
	files         []string
}

// list is a flag that may be given more than once.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func run(args []string, out, errs io.Writer) int {
	var s settings
	fl := flag.NewFlagSet("chancery-verify", flag.ContinueOnError)
	fl.SetOutput(errs)
	fl.Usage = func() { fmt.Fprint(errs, usage, "\n"); fl.PrintDefaults() }
	fl.BoolVar(&s.asJSON, "json", false, "print the report as JSON")
	fl.StringVar(&s.ledger, "ledger", "", "`ID` of the ledger, 64 hexadecimal digits, as you have kept it elsewhere")
	fl.Var((*list)(&s.trusted), "trusted-checkpoint", "`FILE` with a signed checkpoint that you have kept: it must be a prefix; may be given more than once")
	fl.StringVar(&s.state, "state", "", "`FILE` that is read, if it is there, and written: the next run goes on from there")
	fl.BoolVar(&s.signatures, "signatures", false, "verify the signature of each certificate too, not only that it is the one that was recorded")
	showVersion := fl.Bool("version", false, "print the version and end")
	switch err := fl.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitError
	case *showVersion:
		fmt.Fprintln(out, "chancery-verify", version)
		return exitOK
	case fl.NArg() == 0:
		fl.Usage()
		return exitError
	}
	s.folder, s.files = fl.Arg(0), fl.Args()[1:]
	report, err := verify(s)
	var broken *check.Violation
	code := exitOK
	switch {
	case errors.As(err, &broken):
		code = exitBroken
	case err != nil:
		code = exitError
	}
	if s.asJSON {
		answer := struct {
			OK        bool             `json:"ok"`
			Violation *check.Violation `json:"violation,omitempty"`
			Error     string           `json:"error,omitempty"`
			check.Report
		}{OK: err == nil, Violation: broken, Report: report}
		if code == exitError {
			answer.Error = err.Error()
		}
		if jerr := json.NewEncoder(out).Encode(answer); jerr != nil {
			return exitError
		}
		return code
	}
	if err != nil {
		fmt.Fprintf(errs, "chancery-verify: %s: %s\n", s.folder, printable(err.Error()))
		return code
	}
	show(out, report)
	return code
}

// printable keeps what an export says from moving the cursor of a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

func verify(s settings) (r check.Report, err error) {
	opt := check.Options{Ledger: strings.ToLower(s.ledger), Signatures: s.signatures}
	for _, name := range s.trusted {
		b, err := readFile(name, 64<<10)
		if err != nil {
			return r, err
		}
		opt.Trusted = append(opt.Trusted, check.Trusted{Name: name, Note: string(b)})
	}
	for _, name := range s.files {
		files, err := artefacts(name)
		if err != nil {
			return r, err
		}
		opt.Files = append(opt.Files, files...)
	}
	if s.state != "" {
		b, err := readFile(s.state, 4<<30)
		if err == nil {
			opt.State, err = check.DecodeState(b)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
	}
	f, err := folder.Open(s.folder)
	if err != nil {
		return r, err
	}
	defer f.Close()
	r, state, err := check.Run(f, opt)
	if err != nil || s.state == "" {
		return r, err
	}
	b, err := state.Encode()
	if err != nil {
		return r, err
	}
	return r, replace(s.state, b)
}

func readFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d octets", name, most)
	}
	return b, err
}

// replace writes a file that is never there by halves.
func replace(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// artefacts reads what stands in a file: the blocks of PEM, or one of DER.
func artefacts(name string) (files []check.File, err error) {
	b, err := readFile(name, 256<<20)
	if err != nil {
		return nil, err
	}
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" || block.Type == "X509 CRL" || block.Type == "PKCS7" || block.Type == "CMS" {
			files = append(files, check.File{Name: name, Hash: leaf.Sum(block.Bytes)})
		}
	}
	if len(files) == 0 {
		if len(b) == 0 || b[0] != 0x30 { // SEQUENCE
			return nil, fmt.Errorf("%s is neither PEM nor DER of a certificate, CRL or signature", name)
		}
		files = []check.File{{Name: name, Hash: leaf.Sum(b)}}
	}
	return files, nil
}

func show(out io.Writer, r check.Report) {
	fmt.Fprintf(out, "ledger       %s\nid           %s\n", printable(r.Origin), r.Ledger)
	fmt.Fprintf(out, "entries      %d, root %s, the last of %s\n", r.Size, r.Root, r.Last.Format("2006-01-02 15:04:05 MST"))
	if r.From > 0 {
		fmt.Fprintf(out, "             %d of them were verified before\n", r.From)
	}
	fmt.Fprintf(out, "intents      %d: %d done, %d failed, %d orphaned, %d in flight\n", r.Intents, r.Done, r.Failed, r.Orphans, r.Open)
	fmt.Fprintf(out, "certificates %d, each with its own done entry; %d revocations; %d CRLs hold what they must\n", r.Certificates, r.Revocations, r.CRLs)
	fmt.Fprintf(out, "grants       %d by officers, each with their signatures\n", r.Grants)
	if r.Evidence+r.Openings > 0 {
		fmt.Fprintf(out, "evidence     of %d intents, each what it rests on; %d commitments opened\n", r.Evidence, r.Openings)
	}
	fmt.Fprintf(out, "checkpoints  %d older ones agree with the newest\n", r.Checkpoints)
	for _, f := range r.Files {
		fmt.Fprintf(out, "recorded     %s by entry %d\n", printable(f.Name), f.Index)
	}
	if r.Succeeds != "" {
		fmt.Fprintf(out, "succeeds     ledger %s: compare with what you know of it\n", r.Succeeds)
	}
	for _, x := range r.Recoveries {
		fmt.Fprintf(out, "recovery     at entry %d the officers let the ledger go on, and gave up what had been known as entries %d to %d: %s\n", x.Entry, x.Kept, x.Known, printable(x.Why))
	}
	if r.Backward > 0 {
		fmt.Fprintf(out, "note         the clock went back %d times; the order of entries is their index\n", r.Backward)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(out, "note         %s\n", n)
	}
	fmt.Fprintln(out, "OK")
}
