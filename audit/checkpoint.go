package audit

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
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

// CheckpointSigner signs checkpoints with the keys that do nothing else, one per HSM
// member that bears one. Package hsmstore implements it.
type CheckpointSigner interface {
	// SignCheckpoint has every checkpoint key sign the body of a checkpoint (C2SP
	// tlog-checkpoint), at the same time. It returns a line for each key, in the order of
	// their births; one that could not sign says why, which is no error as long as another
	// has signed. A worker refuses another origin, a size below one it has signed, and a
	// second body of one size: that is ErrTampered, as the ledger is not what it was.
	SignCheckpoint(ctx context.Context, body []byte) ([]CheckpointLine, error)
}

// CheckpointLine is what one checkpoint key made of a body.
type CheckpointLine struct {
	Key       string // its name
	SPKI      []byte // DER
	Birth     uint64 // index of the leaf that names it: 0, or the one of its birth
	Signature []byte // nil: Err says why
	Err       error
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

// The signature types of C2SP signed-note that checkpoint keys have.
const (
	noteEd25519 = 1
	noteECDSA   = 2
)

// noteVerifier checks the lines of one checkpoint key in a signed note.
type noteVerifier struct {
	name   string
	pub    crypto.PublicKey
	hash   uint32
	encode []byte // signature type ‖ key, as verifier keys have it
}

// NoteVerifier makes a verifier for package note from a checkpoint key (SPKI DER). The key
// ID of Ed25519 is SHA-256(name ‖ "\n" ‖ 0x01 ‖ key)[:4], that of ECDSA P-256
// SHA-256(SPKI DER)[:4] (C2SP signed-note).
func NoteVerifier(origin string, spki []byte) (note.Verifier, error) {
	return newNoteVerifier(origin, spki)
}

func newNoteVerifier(origin string, spki []byte) (*noteVerifier, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("checkpoint key: %w", err)
	}
	v := &noteVerifier{name: origin, pub: pub}
	var sum [32]byte
	switch k := pub.(type) {
	case ed25519.PublicKey:
		v.encode = append([]byte{noteEd25519}, k...)
		sum = sha256.Sum256(append([]byte(origin+"\n"), v.encode...))
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("checkpoint key is on curve %s, must be P-256 or Ed25519", k.Curve.Params().Name)
		}
		v.encode = append([]byte{noteECDSA}, spki...)
		sum = sha256.Sum256(spki)
	default:
		return nil, fmt.Errorf("checkpoint key is %T, must be Ed25519 or ECDSA P-256", pub)
	}
	v.hash = binary.BigEndian.Uint32(sum[:])
	return v, nil
}

// VerifierKey is a checkpoint key (SPKI DER) in the form in which tools for signed notes
// take it: <origin>+<key ID, hex>+<base64 of type and key> (C2SP signed-note).
func VerifierKey(origin string, spki []byte) (string, error) {
	v, err := newNoteVerifier(origin, spki)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s+%08x+%s", origin, v.hash, base64.StdEncoding.EncodeToString(v.encode)), nil
}

func (v *noteVerifier) Name() string    { return v.name }
func (v *noteVerifier) KeyHash() uint32 { return v.hash }

// Verify expects the signature without the four octets of the key ID, which package note
// strips. The signature type is part of the key ID only, not of the signature.
func (v *noteVerifier) Verify(msg, sig []byte) bool {
	switch k := v.pub.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(k, msg, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(msg)
		return ecdsa.VerifyASN1(k, sum[:], sig)
	}
	return false
}

// line is the signature's line in a note.
func (v *noteVerifier) line(sig []byte) string {
	return "\u2014 " + v.name + " " + base64.StdEncoding.EncodeToString(append(binary.BigEndian.AppendUint32(nil, v.hash), sig...)) + "\n"
}

// OpenCheckpoint verifies a signed note with the checkpoint keys (SPKI DER) of its ledger
// and returns the checkpoint: at least one of the keys has signed it, and no line of one
// of them is wrong. Lines of other keys are passed over.
func OpenCheckpoint(signed, origin string, keys [][]byte) (Checkpoint, error) {
	c, _, err := openNote(signed, origin, keys)
	return c, err
}

// openNote is OpenCheckpoint; it also returns the note, whose Sigs are the verified lines.
func openNote(signed, origin string, keys [][]byte) (Checkpoint, *note.Note, error) {
	var vs []note.Verifier
	for _, k := range keys {
		v, err := newNoteVerifier(origin, k)
		if err != nil {
			return Checkpoint{}, nil, err
		}
		vs = append(vs, v)
	}
	n, err := note.Open([]byte(signed), note.VerifierList(vs...))
	if err != nil {
		return Checkpoint{}, nil, fmt.Errorf("checkpoint: %w", err)
	}
	c, err := readBody(n.Text, origin)
	c.Note = signed
	return c, n, err
}

// readBody is parseBody for the checkpoints of one ledger.
func readBody(text, origin string) (Checkpoint, error) {
	c, err := parseBody(text)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	if c.Origin != origin {
		return Checkpoint{}, fmt.Errorf("checkpoint: origin %q is not %q", c.Origin, origin)
	}
	return c, nil
}

// Checkpointer signs the head at most once a second, only when it grew, with every
// checkpoint key whose member is up; one is enough. A checkpoint adds no leaf: its body
// is stored before it is signed, and the count of checkpoints stands in the hourly leaf.
type Checkpointer struct {
	ledger *Ledger
	signer CheckpointSigner
	anchor string // append-only file for the signed notes; "" for none
	logs   []*Syslog
	log    *slog.Logger

	mu   sync.Mutex
	last uint64
	owed string // signed note that the anchor does not hold yet

	missing string    // keys without a line in the last note
	told    time.Time // when that was logged
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
	if (errors.Is(err, ErrTampered) || errors.Is(err, ErrDisk)) && !(c.ledger.opt.Shared && errors.Is(err, ErrLost)) {
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
	if c.ledger.opt.Shared {
		if err := c.stillThere(ctx, head); err != nil {
			return none, err
		}
		if other, err := c.byOther(ctx, head); err != nil || other.Size > 0 {
			return other, err
		}
	}
	body := head.Body(origin)
	if err := c.ledger.st.PutCheckpoint(ctx, head.Size, string(body), ""); err != nil {
		return none, fmt.Errorf("storing checkpoint %d: %w", head.Size, err)
	}
	lines, err := c.signer.SignCheckpoint(ctx, body)
	if err != nil {
		return none, fmt.Errorf("signing checkpoint %d: %w", head.Size, err)
	}
	signed := string(body) + "\n"
	for i := range lines {
		l := &lines[i]
		if l.Err != nil {
			continue
		}
		var v *noteVerifier
		switch v, l.Err = c.ledger.lineKey(ctx, l); {
		case l.Err != nil:
		case !v.Verify(body, l.Signature):
			l.Err = errors.New("its signature does not verify")
		default:
			signed += v.line(l.Signature)
		}
	}
	c.tellMissing(lines)
	if vouched, err := c.vouched(ctx, head.Size, lines); err != nil {
		return none, err
	} else if !vouched {
		if other, err := c.byOther(ctx, head); err != nil || other.Size > 0 {
			return other, err
		}
		return none, fmt.Errorf("checkpoint %d has only lines of keys whose birth no earlier checkpoint covers; it waits for an older key", head.Size)
	}
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

// stillThere holds the head that this process knows against the database: after a failover
// another node may have written on where entries of this one are lost.
func (c *Checkpointer) stillThere(ctx context.Context, head Head) error {
	now, err := c.ledger.st.Head(ctx)
	if err != nil {
		return fmt.Errorf("reading the head: %w", err)
	}
	if now.Size < head.Size {
		return Lost(now.Size, head.Size)
	}
	root, err := tlog.TreeHash(int64(head.Size), hashes(ctx, c.ledger.st, now.Size))
	if err != nil {
		return fmt.Errorf("computing the tree of %d entries: %w", head.Size, err)
	}
	if root != head.Root() {
		return fmt.Errorf("%w: the first %d entries are others than this process knows: %w", ErrTampered, head.Size, ErrLost)
	}
	return nil
}

// vouched tells whether one of the lines makes a checkpoint: it is by a key of leaf 0, or by
// one whose birth a smaller signed checkpoint covers. A note of other lines alone would
// never be valid (see [signers]).
func (c *Checkpointer) vouched(ctx context.Context, size uint64, lines []CheckpointLine) (bool, error) {
	eldest := uint64(NoIndex)
	for _, l := range lines {
		if l.Err == nil {
			eldest = min(eldest, l.Birth)
		}
	}
	if eldest == 0 || eldest == NoIndex { // none at all is told elsewhere
		return true, nil
	}
	note, err := c.Latest(ctx)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the newest checkpoint: %w", err)
	}
	covers, err := noteSize(note)
	return err == nil && covers > eldest && covers < size, err
}

// byOther takes a checkpoint that another node, or an earlier start, has signed and that
// covers the head, to be anchored here too; size 0: there is none.
func (c *Checkpointer) byOther(ctx context.Context, head Head) (Checkpoint, error) {
	size := head.Size
	note, err := c.Latest(ctx)
	if errors.Is(err, ErrNotFound) {
		return Checkpoint{}, nil
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("reading the newest checkpoint: %w", err)
	}
	if covers, err := noteSize(note); err != nil || covers < size {
		return Checkpoint{}, err
	}
	other, err := OpenCheckpoint(note, c.ledger.Origin(), c.ledger.checkpointKeys())
	if err != nil {
		return Checkpoint{}, nil // by keys that are not known here yet: sign another one
	}
	if other.Size == size && other.Root != head.Root() {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint %d that another node has signed is of another tree", ErrTampered, size)
	}
	c.last, c.owed = size, note
	return other, nil
}

// tellAgain is how often a line that stays missing is logged.
const tellAgain = 10 * time.Minute

// tellMissing logs keys that have not signed: when that begins, changes or ends, and now
// and then while it lasts.
func (c *Checkpointer) tellMissing(lines []CheckpointLine) {
	var names []string
	var why []error
	for _, l := range lines {
		if l.Err != nil {
			names, why = append(names, l.Key), append(why, fmt.Errorf("%s: %w", l.Key, l.Err))
		}
	}
	missing := strings.Join(names, " ")
	switch {
	case missing == c.missing && (missing == "" || time.Since(c.told) < tellAgain):
		return
	case missing == "":
		c.log.Info("every checkpoint key signs again")
	default:
		c.log.Warn("checkpoint has no line of some keys; the others vouch for it", "keys", missing, "signed", len(lines)-len(names), "err", errors.Join(why...))
	}
	c.missing, c.told = missing, time.Now()
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

// noteSize is the size in a checkpoint of our own.
func noteSize(signed string) (uint64, error) {
	_, after, _ := strings.Cut(signed, "\n")
	line, _, _ := strings.Cut(after, "\n")
	size, err := strconv.ParseUint(line, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: newest checkpoint", ErrTampered)
	}
	return size, nil
}

// ProofText is the C2SP tlog-proof of a leaf in the newest signed checkpoint; its
// extra data is the leaf itself. A leaf that no checkpoint covers yet is
// ErrNotFound: one follows within two seconds.
func (c *Checkpointer) ProofText(ctx context.Context, index uint64) ([]byte, error) {
	signed, err := c.Latest(ctx)
	if err != nil {
		return nil, err
	}
	size, err := noteSize(signed)
	if err != nil {
		return nil, err
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
