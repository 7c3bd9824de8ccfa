package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"chancery/admin"
	"chancery/audit"
	"chancery/dbstore"
)

// snapshotFlags says which database a command looks at.
type snapshotFlags struct{ dir, file string }

func (s *snapshotFlags) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.dir, "dir", "./data", "folder of chancery dev")
	c.Flags().StringVar(&s.file, "config", "", "configuration file of a server in production; together with --dir: laid over DIR/chancery.yaml")
}

// files are the configuration and what is laid over it, or "".
func (s *snapshotFlags) files(c *cobra.Command) (file, overlay string) {
	if s.file == "" || c.Flags().Changed("dir") {
		return filepath.Join(s.dir, "chancery.yaml"), s.file
	}
	return s.file, ""
}

func (s *snapshotFlags) config(c *cobra.Command) (*Config, error) { return loadConfig(s.files(c)) }

// name says whose ledger it is, for a message.
func (s *snapshotFlags) name(c *cobra.Command) string { file, _ := s.files(c); return file }

// The formats of an export.
const (
	formatTiles  = "tiles"
	formatJSONL  = "jsonl"
	formatSyslog = "syslog"
)

func auditExportCommand() *cobra.Command {
	var at snapshotFlags
	var out, format string
	var from uint64
	var openings bool
	c := &cobra.Command{
		Use: "export [--dir DIR | --config FILE] --out FOLDER", Short: "Write the ledger for chancery-verify, or as lines for a SIEM",
		Long: "Reads one moment of the database, beside a running server too, and writes the entries up to the newest\n" +
			"signed checkpoint to FOLDER in the layout of C2SP tlog-tiles, with certificates, CRLs and officers' public\n" +
			"keys, so that chancery-verify can check them elsewhere. An export that was interrupted, or an older one, is\n" +
			"continued in the same folder. With --format jsonl or syslog (RFC 5424) one line per entry goes to standard\n" +
			"output or the file --out instead.\n\n" +
			"Personal values (clients' addresses, what certificates were asked for) stand in the entries as commitments and\n" +
			"are not exported; with --with-openings they are, to chancery/openings.bin. Treat such a folder accordingly.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			usage := func(text string) error { return &exit{exitUsage, errors.New(text)} }
			switch {
			case format != formatTiles && format != formatJSONL && format != formatSyslog:
				return usage("--format is tiles, jsonl or syslog")
			case format == formatTiles && out == "":
				return usage("--out FOLDER is needed; see chancery audit export --help")
			case format != formatTiles && openings:
				return usage("--with-openings goes with --format tiles")
			case format == formatTiles && c.Flags().Changed("from"):
				return usage("--from goes with --format jsonl or syslog; a folder is always whole")
			}
			cfg, err := at.config(c)
			if err != nil {
				return err
			}
			p := follow(c)
			defer p.end()
			e, err := openExport(c.Context(), cfg.Database, p)
			if err != nil {
				return fmt.Errorf("ledger of %s: %w", at.name(c), err)
			}
			defer e.st.Close()
			e.withOpenings = openings
			if format != formatTiles {
				return e.lines(c, format, out, from)
			}
			if err := e.folder(c.Context(), out); err != nil {
				return fmt.Errorf("exporting to %s: %w", out, err)
			}
			p.end()
			for _, left := range e.leftOut {
				fmt.Fprintf(c.ErrOrStderr(), "left out, as it is newer than the checkpoint: %s\n", left)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %d entries of %s, %d certificates\n", out, e.size, e.origin, e.certificates)
			return err
		},
	}
	at.flags(c)
	c.Flags().StringVar(&out, "out", "", "folder to write to; with --format jsonl or syslog: file, default standard output")
	c.Flags().StringVar(&format, "format", formatTiles, "tiles: a folder for chancery-verify; jsonl or syslog: a line per entry")
	c.Flags().BoolVar(&openings, "with-openings", false, "export personal values too")
	c.Flags().Uint64Var(&from, "from", 0, "first entry, with --format jsonl or syslog")
	return c
}

// export is one export being written.
type export struct {
	st     *dbstore.Store
	p      *progress
	id     audit.LedgerID
	origin string
	note   string // the newest signed checkpoint
	size   uint64 // that it covers
	head   uint64 // entries in the database
	older  []string

	withOpenings bool // personal values too

	crls         map[[32]byte]bool   // artefacts of CRLs' done entries
	withCRL      map[[32]byte]bool   // issuers that have one, by SPKI
	issuers      map[[32]byte]bool   // issuers' certificates; true once an entry records it
	intents      map[uint64][32]byte // open intents of CRLs: the issuer
	certificates uint64
	leftOut      []string
}

// settle is how long the export waits for a checkpoint that covers all entries.
const settle = 3 * time.Second

// openExport opens a moment of the database, if possible one that its newest checkpoint
// covers: a running server signs one within a second or two.
func openExport(ctx context.Context, database string, p *progress) (*export, error) {
	for end := time.Now().Add(settle); ; {
		st, err := dbstore.OpenSnapshot(ctx, database)
		if err != nil {
			return nil, err
		}
		e := &export{st: st, p: p}
		if err := e.begin(ctx); err != nil {
			return nil, errors.Join(err, st.Close())
		}
		over := time.Now().After(end)
		if e.size == 0 && over {
			return nil, errors.Join(errors.New("the ledger has no signed checkpoint yet; start the server once"), st.Close())
		}
		if e.size == e.head || over {
			return e, nil
		}
		p.show("waiting for a checkpoint of all %d entries", e.head)
		if err := st.Close(); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// begin reads what names the ledger, and its signed checkpoints.
func (e *export) begin(ctx context.Context) error {
	head, err := e.st.Head(ctx)
	if err != nil {
		return err
	}
	if e.head = head.Size; e.head == 0 {
		return errors.New("the ledger is empty")
	}
	var keys [][]byte
	if e.id, e.origin, keys, err = checkpointKeys(ctx, e.st); err != nil {
		return err
	}
	err = e.st.Checkpoints(ctx, func(size uint64, _, note string) error {
		if note == "" || size > head.Size {
			return nil
		}
		if e.note != "" {
			e.older = append(e.older, e.note)
		}
		e.note, e.size = note, size
		return nil
	})
	if err != nil || e.note == "" {
		return err
	}
	if _, err := audit.OpenCheckpoint(e.note, e.origin, keys); err != nil {
		return fmt.Errorf("%w: the newest checkpoint: %w", audit.ErrTampered, err)
	}
	return nil
}

// about is chancery/export.json.
type about struct {
	Version  int      `json:"version"`
	Origin   string   `json:"origin"`
	Ledger   string   `json:"ledger"`
	Size     uint64   `json:"size"`
	Made     string   `json:"made"`
	Complete bool     `json:"complete"` // false while files are being written
	LeftOut  []string `json:"left_out"` // what is newer than the checkpoint
}

// folder writes the export. Order matters: export.json says that the folder is
// unfinished before anything else changes, and that it is whole after everything did. A
// crash in between leaves a folder that chancery-verify refuses and the next export
// finishes.
func (e *export) folder(ctx context.Context, dir string) error {
	state := about{Version: 1, Origin: e.origin, Ledger: hex.EncodeToString(e.id[:]), Size: e.size, LeftOut: []string{}}
	if err := e.check(dir, state.Ledger); err != nil {
		return err
	}
	x := tree{dir}
	if err := x.json("chancery/export.json", state); err != nil {
		return err
	}
	if err := x.sync(); err != nil {
		return err
	}
	for _, step := range []func(context.Context, tree) error{e.wantIssuers, e.bundles, e.tiles, e.writeCertificates, e.writeOrphans, e.writeEvidence, e.writeOpenings, e.writeIssuers, e.writeRoster, e.writeCheckpoints} {
		if err := step(ctx, x); err != nil {
			return err
		}
	}
	if err := x.sync(); err != nil { // all of it is on disk before it is called complete
		return err
	}
	state.Complete, state.Made, state.LeftOut = true, time.Now().UTC().Format(time.RFC3339), append(state.LeftOut, e.leftOut...)
	if err := x.json("chancery/export.json", state); err != nil {
		return err
	}
	x.dropPartial(e.size)
	return x.sync()
}

// check refuses a folder that holds something else, or more.
func (e *export) check(dir, ledger string) error {
	b, err := os.ReadFile(filepath.Join(dir, "chancery", "export.json"))
	if errors.Is(err, os.ErrNotExist) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if len(entries) > 0 {
			return errors.New("the folder is not empty and holds no export; name another")
		}
		return nil
	}
	var was about
	switch {
	case err != nil:
		return err
	case json.Unmarshal(b, &was) != nil:
		return errors.New("its chancery/export.json cannot be read; name another folder")
	case was.Ledger != ledger:
		return fmt.Errorf("the folder holds an export of another ledger, %s; name another", audit.Text(was.Ledger, 64))
	case was.Size > e.size:
		return fmt.Errorf("%w: the folder holds %d entries, the ledger's newest checkpoint %d: it was rolled back", audit.ErrTampered, was.Size, e.size)
	}
	return nil
}

// wantIssuers notes whose certificates are looked for among the entries.
func (e *export) wantIssuers(ctx context.Context, _ tree) error {
	e.crls, e.withCRL, e.issuers, e.intents = map[[32]byte]bool{}, map[[32]byte]bool{}, map[[32]byte]bool{}, map[uint64][32]byte{}
	issuers, err := e.st.Issuers(ctx)
	for _, i := range issuers {
		e.issuers[sha256.Sum256(i.DER)] = false
	}
	return err
}

// bundles writes the entries and the hash tiles of level 0.
func (e *export) bundles(ctx context.Context, x tree) error {
	for n := uint64(0); n*exportWidth < e.size; n++ {
		w := min(exportWidth, e.size-n*exportWidth)
		e.p.show("entries: %d of %d (%d %%)", n*exportWidth, e.size, n*exportWidth*100/e.size)
		b, hashes, err := e.bundle(ctx, x, n, w)
		if err != nil {
			return err
		}
		if err := e.look(b, n*exportWidth); err != nil {
			return err
		}
		if err := x.put(tilePath("entries", n, w), b); err != nil {
			return err
		}
		if err := x.put(tilePath("0", n, w), hashes); err != nil {
			return err
		}
	}
	return nil
}

// bundle returns the n-th bundle with its hashes: the one that is in the folder, if it is
// full and hashes to the tile in the database, or from there.
func (e *export) bundle(ctx context.Context, x tree, n, w uint64) (b, hashes []byte, err error) {
	var tile []byte
	if w == exportWidth {
		if tile, err = e.st.Tile(ctx, 0, n); err != nil {
			return nil, nil, fmt.Errorf("%w: hash tile 0/%d: %w", audit.ErrTampered, n, err)
		}
		if old, err := os.ReadFile(x.path(tilePath("entries", n, w))); err == nil && bytes.Equal(bundleHashes(old), tile) {
			return old, tile, nil
		}
	}
	first := n * exportWidth
	err = e.st.Leaves(ctx, first, first+w, func(_ uint64, leaf []byte) error {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(leaf))), leaf...)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	hashes = bundleHashes(b)
	if tile != nil && !bytes.Equal(tile, hashes) {
		return nil, nil, fmt.Errorf("%w: entries %d to %d do not hash to their tile; see chancery audit verify", audit.ErrTampered, first, first+w-1)
	}
	return b, hashes, nil
}

// bundleHashes are the leaf hashes of a bundle, nil if it is none.
func bundleHashes(b []byte) (out []byte) {
	for len(b) > 0 {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		h := audit.LeafHash(b[2:n])
		out, b = append(out, h[:]...), b[n:]
	}
	return out
}

// look finds in a bundle what decides which issuers and CRLs are exported.
func (e *export) look(b []byte, index uint64) error {
	for ; len(b) > 0; index++ {
		n := 2 + int(binary.BigEndian.Uint16(b))
		l, err := audit.DecodeLeaf(b[2:n])
		if err != nil {
			return fmt.Errorf("%w: entry %d: %w", audit.ErrTampered, index, err)
		}
		b = b[n:]
		artefact, recorded := l.Hash(audit.TagArtefact)
		if _, issuer := e.issuers[artefact]; issuer && recorded {
			e.issuers[artefact] = true
		}
		if l.Op != audit.OpCRL {
			continue
		}
		if l.Kind == audit.KindIntent {
			e.intents[index], _ = l.Hash(audit.TagIssuer)
			continue
		}
		if l.Kind == audit.KindDone {
			e.crls[artefact], e.withCRL[e.intents[l.Closes]] = true, true
		}
		delete(e.intents, l.Closes)
	}
	return nil
}

// tiles writes the hash tiles above level 0.
func (e *export) tiles(ctx context.Context, x tree) error {
	for level := 1; e.size>>(8*level) > 0; level++ {
		count := e.size >> (8 * level)
		for n := uint64(0); n*exportWidth < count; n++ {
			w := min(exportWidth, count-n*exportWidth)
			data, err := e.tile(ctx, level, n, w)
			if err != nil {
				return fmt.Errorf("%w: hash tile %d/%d: %w", audit.ErrTampered, level, n, err)
			}
			if err := x.put(tilePath(fmt.Sprint(level), n, w), data); err != nil {
				return err
			}
		}
	}
	return nil
}

// tile is a tile of the database, or made of the full ones below it.
func (e *export) tile(ctx context.Context, level int, n, w uint64) (data []byte, err error) {
	if w == exportWidth {
		return e.st.Tile(ctx, level, n)
	}
	for i := range w {
		below, err := e.st.Tile(ctx, level-1, n*exportWidth+i)
		if err != nil {
			return nil, err
		}
		h := rootOfTile(below)
		data = append(data, h[:]...)
	}
	return data, nil
}

// rootOfTile is the hash over a full tile (RFC 6962 §2.1).
func rootOfTile(b []byte) tlog.Hash {
	var hs []tlog.Hash
	for ; len(b) >= tlog.HashSize; b = b[tlog.HashSize:] {
		hs = append(hs, tlog.Hash(b[:tlog.HashSize]))
	}
	for len(hs) > 1 {
		for i := range len(hs) / 2 {
			hs[i] = tlog.NodeHash(hs[2*i], hs[2*i+1])
		}
		hs = hs[:len(hs)/2]
	}
	return hs[0]
}

func (e *export) writeCertificates(ctx context.Context, x tree) error {
	return x.stream("chancery/certificates.bin", func(w io.Writer) error {
		return e.st.ExportCertificates(ctx, e.size, func(done uint64, der []byte) error {
			if e.certificates++; e.certificates%1024 == 0 {
				e.p.show("certificates: up to entry %d of %d (%d %%)", done, e.size, done*100/e.size)
			}
			return record(w, &done, der)
		})
	})
}

// writeOrphans writes when certificates end that may exist though nobody was given them:
// the ledger does not say, and a CRL may drop their serials after that.
func (e *export) writeOrphans(ctx context.Context, x tree) error {
	return x.stream("chancery/orphans.bin", func(w io.Writer) error {
		return e.st.ExportOrphans(ctx, e.size, func(intent uint64, notAfter int64) error {
			return record(w, &intent, binary.BigEndian.AppendUint64(nil, uint64(notAfter)))
		})
	})
}

// writeEvidence writes what the intents to sign certificates rest on.
func (e *export) writeEvidence(ctx context.Context, x tree) error {
	return x.stream("chancery/evidence.bin", func(w io.Writer) error {
		return e.st.ExportEvidence(ctx, e.size, func(intent uint64, b []byte) error { return record(w, &intent, b) })
	})
}

// writeOpenings writes personal values if they are asked for. Else it takes away those of
// an older export: some may have been erased since.
func (e *export) writeOpenings(ctx context.Context, x tree) error {
	const name = "chancery/openings.bin"
	if !e.withOpenings {
		if err := os.Remove(x.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	return writeStreamAs(x.path(name), 0o600, func(w io.Writer) error {
		return e.st.Openings(ctx, audit.OpeningQuery{To: e.size}, func(s audit.StoredOpenings) error {
			return record(w, &s.Index, audit.EncodeOpenings(s.Openings))
		})
	})
}

// record writes u64 index, if it has one, u32 length, value.
func record(w io.Writer, index *uint64, value []byte) error {
	var b []byte
	if index != nil {
		b = binary.BigEndian.AppendUint64(b, *index)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
	_, err := w.Write(append(b, value...))
	return err
}

// writeIssuers writes the issuers that the entries record, and the newest CRL of each. A
// CRL that is newer than the checkpoint cannot be checked and is left out.
func (e *export) writeIssuers(ctx context.Context, x tree) error {
	issuers, err := e.st.Issuers(ctx)
	if err != nil {
		return err
	}
	var certs, crls bytes.Buffer
	for _, i := range issuers {
		if e.issuers[sha256.Sum256(i.DER)] {
			if err := record(&certs, nil, i.DER); err != nil {
				return err
			}
		}
		switch {
		case i.CRL != nil && e.crls[sha256.Sum256(i.CRL)]:
			if err := record(&crls, nil, i.CRL); err != nil {
				return err
			}
		case e.withCRL[i.SPKI]:
			e.leftOut = append(e.leftOut, "crl "+hex.EncodeToString(i.SPKI[:]))
		}
	}
	if err := x.put("chancery/crls.bin", crls.Bytes()); err != nil {
		return err
	}
	return x.put("chancery/issuers.bin", certs.Bytes())
}

// writeRoster writes all rosters that were ever in force: the first one, and each that
// followed with the signatures that decided it.
func (e *export) writeRoster(ctx context.Context, x tree) error {
	h, err := e.st.Rosters(ctx)
	if err != nil {
		return err
	}
	type warrant struct {
		Proposal []byte             `json:"proposal"`
		Votes    []admin.VoteRecord `json:"votes"`
	}
	type change struct {
		Roster  admin.Roster `json:"roster"`
		Warrant warrant      `json:"warrant"`
		Leaf    uint64       `json:"leaf"`
	}
	out := struct {
		Quorum   int             `json:"quorum"`
		Officers []admin.Officer `json:"officers"`
		Changes  []change        `json:"changes,omitempty"`
	}{Quorum: h.Base.Quorum, Officers: append([]admin.Officer{}, h.Base.Officers...)}
	for _, c := range h.Changes {
		if c.Leaf >= e.size { // it decided nothing before the checkpoint
			e.leftOut = append(e.leftOut, fmt.Sprintf("roster %d", c.Roster.Version))
			break
		}
		out.Changes = append(out.Changes, change{c.Roster, warrant{c.Warrant.Proposal, c.Warrant.Votes}, c.Leaf})
	}
	return x.json("chancery/roster.json", out)
}

func (e *export) writeCheckpoints(_ context.Context, x tree) error {
	err := x.stream("chancery/checkpoints", func(w io.Writer) error {
		for _, note := range e.older {
			if _, err := io.WriteString(w, note+"--\n"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return x.put("checkpoint", []byte(e.note))
}
