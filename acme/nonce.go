package acme

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
)

// A nonce is epoch u64 ‖ seconds u32 ‖ counter u64 ‖ tag 16, base64url: the first
// three say which process made it, when, and as its how-manieth; the tag is a
// truncated HMAC-SHA256 over them. Making one costs no memory, however many are
// asked for. Whether one was spent is a bit at its counter, in chunks that exist
// only once one of their nonces was spent by a request whose signature was good.
//
// After a restart with the same key, nonces of earlier processes are still good for
// some minutes (RFC 8555 §6.5 asks for it nowhere, dehydrated needs it); those spent
// since are kept in a small set until the last of them has expired. What the earlier
// process saw spent is not known: who has recorded a request of those minutes can
// repeat it once. That is why they are few; at worst it puts older contacts back or
// opens another order, as every other change names the state that it starts from.
const (
	nonceLife   = time.Hour
	earlierLife = 10 * time.Minute // of a nonce of an earlier process
	nonceSize   = 36
	chunkBits   = 1 << 16 // nonces of one chunk; 8 KiB
	maxChunks   = 1 << 10 // 2^26 nonces back from the newest: 8 MiB at most
	maxEarlier  = 1 << 16 // spent nonces of earlier processes
	nonceLength = nonceSize * 4 / 3
)

type nonces struct {
	key     []byte
	now     func() time.Time
	start   time.Time
	epoch   uint64
	counter atomic.Uint64

	mu      sync.Mutex
	chunks  map[uint64]*[chunkBits / 64]uint64
	oldest  uint64 // chunks below are gone
	earlier map[[nonceSize - 16]byte]struct{}
}

type nonce [nonceSize - 16]byte

func newNonces(key []byte, now func() time.Time) *nonces {
	var e [8]byte
	rand.Read(e[:])
	return &nonces{key: key, now: now, start: now(), epoch: binary.BigEndian.Uint64(e[:]),
		chunks: map[uint64]*[chunkBits / 64]uint64{}, earlier: map[[nonceSize - 16]byte]struct{}{}}
}

func (n *nonces) tag(b []byte) []byte {
	m := hmac.New(sha256.New, n.key)
	m.Write([]byte("chancery/acme-nonce/v1\n"))
	m.Write(b)
	return m.Sum(nil)[:16]
}

func (n *nonces) make() string {
	b := make([]byte, 20, nonceSize)
	binary.BigEndian.PutUint64(b, n.epoch)
	binary.BigEndian.PutUint32(b[8:], uint32(n.now().Unix()))
	binary.BigEndian.PutUint64(b[12:], n.counter.Add(1))
	return base64.RawURLEncoding.EncodeToString(append(b, n.tag(b)...))
}

// check tells whether s is a nonce of this server that is not too old. It does not spend it.
func (n *nonces) check(s string) (nonce, bool) {
	if len(s) != nonceLength {
		return nonce{}, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != nonceSize || !hmac.Equal(b[20:], n.tag(b[:20])) {
		return nonce{}, false
	}
	made := time.Unix(int64(binary.BigEndian.Uint32(b[8:])), 0)
	age := n.now().Sub(made)
	return nonce(b[:20]), age < nonceLife && age > -time.Minute
}

// spend reports whether the nonce was still good, once per nonce.
func (n *nonces) spend(x nonce) bool {
	counter := binary.BigEndian.Uint64(x[12:])
	n.mu.Lock()
	defer n.mu.Unlock()
	if binary.BigEndian.Uint64(x[:]) != n.epoch {
		return n.spendEarlier(x)
	}
	at := counter / chunkBits
	if newest := n.counter.Load() / chunkBits; newest >= maxChunks && newest-maxChunks+1 > n.oldest {
		for ; n.oldest < newest-maxChunks+1; n.oldest++ {
			delete(n.chunks, n.oldest)
		}
	}
	if at < n.oldest {
		return false
	}
	c := n.chunks[at]
	if c == nil {
		c = new([chunkBits / 64]uint64)
		n.chunks[at] = c
	}
	word, bit := counter%chunkBits/64, uint64(1)<<(counter%64)
	if c[word]&bit != 0 {
		return false
	}
	c[word] |= bit
	return true
}

func (n *nonces) spendEarlier(x nonce) bool {
	if n.now().Sub(n.start) > earlierLife {
		clear(n.earlier) // whatever an earlier process made has expired
		return false
	}
	made := time.Unix(int64(binary.BigEndian.Uint32(x[8:])), 0)
	if _, spent := n.earlier[x]; spent || len(n.earlier) >= maxEarlier || n.now().Sub(made) > earlierLife {
		return false
	}
	n.earlier[x] = struct{}{}
	return true
}
