package audit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// CheckpointSigner signs checkpoints with the key that does nothing else.
// Package hsmstore implements it.
type CheckpointSigner interface {
	Public() crypto.PublicKey
	// SignCheckpoint signs the body of a checkpoint (C2SP tlog-checkpoint). The
	// worker refuses another origin, a size below one it has signed, and a second
	// body of one size: that is ErrTampered, as the ledger is not what it was.
	SignCheckpoint(ctx context.Context, body []byte) (sig []byte, err error)
}

// Body is the text of a checkpoint: origin, size, root (C2SP tlog-checkpoint).
func (h Head) Body(origin string) []byte {
	root := h.Root()
	return fmt.Appendf(nil, "%s\n%d\n%s\n", origin, h.Size, base64.StdEncoding.EncodeToString(root[:]))
}

// Checkpoint is a verified checkpoint.
type Checkpoint struct {
	Origin string
	Size   uint64
	Root   tlog.Hash
	Note   string
}

func parseBody(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, errors.New("a checkpoint has three lines")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || lines[1] != strconv.FormatUint(size, 10) {
		return Checkpoint{}, errors.New("size is no decimal number")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return Checkpoint{}, errors.New("root is no base64 of 32 octets")
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: tlog.Hash(root)}, nil
}

// noteVerifier checks ECDSA P-256 lines of a signed note.
type noteVerifier struct {
	name string
	pub  *ecdsa.PublicKey
	hash uint32
}

// NoteVerifier makes a verifier for package note from a checkpoint key (SPKI DER).
func NoteVerifier(origin string, spki []byte) (note.Verifier, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("checkpoint key: %w", err)
	}
	ec, ok := pub.(*ecdsa.PublicKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, fmt.Errorf("checkpoint key is %T, must be ECDSA P-256", pub)
	}
	sum := sha256.Sum256(spki)
	return &noteVerifier{origin, ec, binary.BigEndian.Uint32(sum[:])}, nil
}

func (v *noteVerifier) Name() string    { return v.name }
func (v *noteVerifier) KeyHash() uint32 { return v.hash }

// Verify expects the signature without the four octets of the key hash, which
// package note strips. Type 0x02 is part of the key ID only, not of the signature.
func (v *noteVerifier) Verify(msg, sig []byte) bool {
	sum := sha256.Sum256(msg)
	return ecdsa.VerifyASN1(v.pub, sum[:], sig)
}

// OpenCheckpoint verifies a signed note with the checkpoint keys (SPKI DER) of the
// genesis leaf and returns the checkpoint.
func OpenCheckpoint(signed, origin string, keys [][]byte) (Checkpoint, error) {
	var vs []note.Verifier
	for _, k := range keys {
		v, err := NoteVerifier(origin, k)
		if err != nil {
			return Checkpoint{}, err
		}
		vs = append(vs, v)
	}
	n, err := note.Open([]byte(signed), note.VerifierList(vs...))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	c, err := parseBody(n.Text)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	if c.Origin != origin {
		return Checkpoint{}, fmt.Errorf("checkpoint: origin %q is not %q", c.Origin, origin)
	}
	c.Note = signed
	return c, nil
}

// Checkpointer signs the head at most once a second, only when it grew. A
// checkpoint adds no leaf: its body is stored before it is signed, and the count
// of checkpoints stands in the hourly leaf.
type Checkpointer struct {
	ledger *Ledger
	signer CheckpointSigner
	anchor string // append-only file for the signed notes; "" for none
	logs   []*Syslog
	log    *slog.Logger

	mu   sync.Mutex
	last uint64
	owed string // signed note that the anchor does not hold yet
}

// NewCheckpointer makes the checkpointer of l. Each signed note is also appended
// to the file anchor, if one is named: it must lie outside the database. logs get each one
// too, as far as they can be reached: what they miss, a later one covers.
func NewCheckpointer(l *Ledger, s CheckpointSigner, anchor string, logs ...*Syslog) *Checkpointer {
	return &Checkpointer{ledger: l, signer: s, anchor: anchor, logs: logs, log: l.opt.Log}
}

// Run signs checkpoints until ctx is done, and one last one then. When the ledger is
// closed nothing is signed any more; if that is because a disk failed, Run returns
// the error, as only a restart helps.
func (c *Checkpointer) Run(ctx context.Context) error {
	for {
		if err := c.ledger.Broken(); errors.Is(err, ErrDisk) {
			return err
		} else if err != nil {
			<-ctx.Done()
			return nil
		}
		select {
		case <-c.ledger.changed:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
			defer cancel()
			if err := c.Sign(last); err != nil {
				c.log.Warn("last checkpoint not signed", "err", err)
			}
			return nil
		}
		if err := c.Sign(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("checkpoint not signed", "err", err)
			c.retry()
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (c *Checkpointer) retry() {
	select {
	case c.ledger.changed <- struct{}{}:
	default:
	}
}

// Sign signs the present head unless its size is signed already. A head that
// contradicts what was signed before closes the ledger.
func (c *Checkpointer) Sign(ctx context.Context) error {
	signed, err := c.signAndAnchor(ctx)
	if errors.Is(err, ErrTampered) || errors.Is(err, ErrDisk) {
		c.ledger.fence(err)
	}
	if err != nil || signed.Size == 0 {
		return err
	}
	for _, s := range c.logs { // without the lock: a log system may be slow
		if err := s.Send(signed); err != nil {
			c.log.Error("checkpoint did not reach a log system; a later one will cover it", "size", signed.Size, "err", err)
		}
	}
	return nil
}

// signAndAnchor pays what the anchor is owed, signs, and anchors what was signed; a
// checkpoint of size 0 says that there was nothing to sign.
func (c *Checkpointer) signAndAnchor(ctx context.Context) (Checkpoint, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.payAnchor(); err != nil {
		return Checkpoint{}, err
	}
	signed, err := c.sign(ctx)
	if err != nil || signed.Size == 0 {
		return Checkpoint{}, err
	}
	return signed, c.payAnchor()
}

func (c *Checkpointer) sign(ctx context.Context) (Checkpoint, error) {
	var none Checkpoint
	if err := c.ledger.Broken(); err != nil {
		return none, err
	}
	head := c.ledger.Head()
	if head.Size == 0 || head.Size == c.last {
		return none, nil
	}
	origin := c.ledger.Origin()
	body := head.Body(origin)
	if err := c.ledger.st.PutCheckpoint(ctx, head.Size, string(body), ""); err != nil {
		return none, fmt.Errorf("storing checkpoint %d: %w", head.Size, err)
	}
	sig, err := c.signer.SignCheckpoint(ctx, body)
	if err != nil {
		return none, fmt.Errorf("signing checkpoint %d: %w", head.Size, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(c.signer.Public())
	if err != nil {
		return none, err
	}
	id := sha256.Sum256(spki)
	signed := string(body) + "\n\u2014 " + origin + " " + base64.StdEncoding.EncodeToString(append(bytes.Clone(id[:4]), sig...)) + "\n"
	opened, err := OpenCheckpoint(signed, origin, c.ledger.checkpointKeys())
	if err != nil {
		return none, err
	}
	if err := c.ledger.st.PutCheckpoint(ctx, head.Size, string(body), signed); err != nil {
		return none, fmt.Errorf("storing signed checkpoint %d: %w", head.Size, err)
	}
	c.last, c.owed = head.Size, signed
	return opened, nil
}

// payAnchor appends the note that the anchor lacks.
func (c *Checkpointer) payAnchor() error {
	if c.anchor == "" || c.owed == "" {
		return nil
	}
	if err := appendAnchor(c.anchor, c.owed); err != nil {
		return fmt.Errorf("writing anchor: %w", err)
	}
	c.owed = ""
	return nil
}

// Latest returns the newest signed checkpoint note.
func (c *Checkpointer) Latest(ctx context.Context) (string, error) {
	return c.ledger.st.LastCheckpoint(ctx)
}

// ProofText is the C2SP tlog-proof of a leaf in the newest signed checkpoint; its
// extra data is the leaf itself. A leaf that no checkpoint covers yet is
// ErrNotFound: one follows within two seconds.
func (c *Checkpointer) ProofText(ctx context.Context, index uint64) ([]byte, error) {
	signed, err := c.Latest(ctx)
	if err != nil {
		return nil, err
	}
	_, after, _ := strings.Cut(signed, "\n")
	line, _, _ := strings.Cut(after, "\n")
	size, err := strconv.ParseUint(line, 10, 63)
	if err != nil {
		return nil, fmt.Errorf("%w: newest checkpoint", ErrTampered)
	}
	if index >= size {
		return nil, fmt.Errorf("%w: no checkpoint covers entry %d yet; try again in two seconds", ErrNotFound, index)
	}
	proof, err := Proof(ctx, c.ledger.st, index, size)
	if err != nil {
		return nil, err
	}
	var leaf []byte
	if err := c.ledger.st.Leaves(ctx, index, index+1, func(_ uint64, b []byte) error { leaf = b; return nil }); err != nil {
		return nil, err
	}
	out := fmt.Appendf(nil, "c2sp.org/tlog-proof@v1\nextra %s\nindex %d\n", base64.StdEncoding.EncodeToString(leaf), index)
	for _, h := range proof {
		out = append(out, base64.StdEncoding.EncodeToString(h[:])+"\n"...)
	}
	return append(append(out, '\n'), signed...), nil
}
