package check

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// checkpoint is a signed one (C2SP tlog-checkpoint).
type checkpoint struct {
	origin string
	size   uint64
	root   leaf.Hash
	from   string // where it was found
	kept   bool   // by the auditor: a recovery may have given up what it is of

	by   []uint32 // IDs of the keys whose lines are verified
	text string   // the note, if it has lines of keys that are not known yet
}

// noteKey verifies lines of a signed note (C2SP signed-note) with a checkpoint key.
type noteKey struct {
	name string
	id   uint32
	key  any
}

func (k noteKey) Name() string    { return k.name }
func (k noteKey) KeyHash() uint32 { return k.id }

func (k noteKey) Verify(msg, sig []byte) bool {
	switch pub := k.key.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(msg)
		return ecdsa.VerifyASN1(pub, sum[:], sig)
	case ed25519.PublicKey:
		return ed25519.Verify(pub, msg, sig)
	}
	return false
}

// notary opens the notes of one ledger.
type notary struct {
	origin string
	keys   note.Verifiers
}

// newNotary takes checkpoint keys (SPKI DER).
func newNotary(origin string, spkis [][]byte) (n notary, err error) {
	var all []note.Verifier
	for _, spki := range spkis {
		k, err := newNoteKey(origin, spki)
		if err != nil {
			return n, err
		}
		all = append(all, k)
	}
	return notary{origin, note.VerifierList(all...)}, nil
}

// newNoteKey takes one checkpoint key. The id of an ECDSA P-256 key is SHA-256(SPKI)[:4], of
// an Ed25519 key SHA-256(name ‖ "\n" ‖ 0x01 ‖ key)[:4].
func newNoteKey(origin string, spki []byte) (noteKey, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return noteKey{}, fmt.Errorf("its checkpoint key: %w", err)
	}
	sum := sha256.Sum256(spki)
	switch k := pub.(type) {
	case ed25519.PublicKey:
		sum = sha256.Sum256(append([]byte(origin+"\n\x01"), k...))
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return noteKey{}, errors.New("its checkpoint key is not on the curve P-256")
		}
	default:
		return noteKey{}, errors.New("its checkpoint key is neither ECDSA nor Ed25519")
	}
	return noteKey{origin, binary.BigEndian.Uint32(sum[:]), pub}, nil
}

// open reads a signed note and verifies the lines of the keys that are known. One without
// such a line is no error as long as it has others under the ledger's name: their keys may
// become known.
func (n notary) open(text, from string) (c checkpoint, err error) {
	opened, err := note.Open([]byte(text), n.keys)
	var unsigned *note.UnverifiedNoteError
	if errors.As(err, &unsigned) {
		opened, err = unsigned.Note, nil
	}
	if err != nil {
		return checkpoint{from: from}, err
	}
	if c, err = readCheckpoint(opened.Text); err == nil && c.origin != n.origin {
		err = fmt.Errorf("its origin is %.100q, not %.100q", c.origin, n.origin)
	}
	c.from = from
	for _, sig := range opened.Sigs {
		c.by = append(c.by, sig.Hash)
	}
	switch {
	case err != nil:
	case slices.ContainsFunc(opened.UnverifiedSigs, func(sig note.Signature) bool { return sig.Name == n.origin }):
		c.text = text
	case unsigned != nil:
		err = unsigned
	}
	return c, err
}

type openedNote struct {
	checkpoint
	err error
}

// openAll is open for many, on all processors: a ledger of years has as many as it has
// seconds in which something was signed.
func (n notary) openAll(texts []string, from string) []openedNote {
	out := make([]openedNote, len(texts))
	onAll(len(texts), func(i int) { out[i].checkpoint, out[i].err = n.open(texts[i], from) })
	return out
}

// onAll does n things on all processors.
func onAll(n int, do func(i int)) {
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				do(i)
			}
		})
	}
	wg.Wait()
}

func readCheckpoint(text string) (c checkpoint, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return c, errors.New("it has not the three lines of a checkpoint")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] || size > math.MaxInt64/2 {
		return c, errors.New("its size is no decimal number")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(c.root) {
		return c, errors.New("its root is no base64 of 32 octets")
	}
	return checkpoint{origin: lines[0], size: size, root: leaf.Hash(root)}, nil
}

// sizeOf is the size that an unverified note claims, for a message; 0 if it claims none.
func sizeOf(text string) uint64 {
	_, after, _ := strings.Cut(text, "\n")
	line, _, _ := strings.Cut(after, "\n")
	n, err := strconv.ParseUint(line, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
