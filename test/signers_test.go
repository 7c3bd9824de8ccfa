package test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"
)

// late is a checkpoint key of a member that joined later.
type late struct {
	private ed25519.PrivateKey
	spki    []byte
}

func newLate(t *testing.T) late {
	t.Helper()
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return late{private, spki}
}

// line is its line under a body.
func (k late) line(origin, body string) string {
	id := sha256.Sum256(append([]byte(origin+"\n\x01"), k.spki[len(k.spki)-32:]...))
	return "— " + origin + " " + base64.StdEncoding.EncodeToString(append(id[:4:4], ed25519.Sign(k.private, []byte(body))...)) + "\n"
}

// body is the checkpoint of now.
func (l *made) body() string { return string(audit.Head{Size: l.size, Range: l.rng}.Body(l.origin)) }

// by is a note of now that only a late key has signed.
func (l *made) by(keys ...late) string {
	note := l.body() + "\n"
	for _, k := range keys {
		note += k.line(l.origin, l.body())
	}
	return note
}

// joins writes what it takes to let a key sign checkpoints, under a grant of the officers.
func (l *made) joins(k late, grant [32]byte) uint64 {
	l.t.Helper()
	return l.event(audit.OpKeyGenerate, func(f *audit.Fields) {
		f.Hash(audit.TagKey, sha256.Sum256(k.spki))
		f.Bytes(audit.TagSPKI, k.spki)
		f.Uint8(audit.TagPurpose, uint8(audit.PurposeCheckpoint))
		f.Text(audit.TagKeyName, "checkpoint-gamma")
		f.Text(audit.TagMember, "gamma")
		f.Text(audit.TagSerialNumber, "0c")
		f.Hash(audit.TagGrant, grant)
	})
}

// grantFor is a grant of the officers for just these acts.
func (l *made) grantFor(acts ...string) [32]byte {
	l.t.Helper()
	raw := l.proposal(func(p *admin.Proposal) { p.Acts = acts })
	l.propose(raw)
	_, g := l.grant(raw, l.approve(raw, 0), l.approve(raw, 2))
	return g
}

// TestVerifySigners has keys sign checkpoints that may, and others that may not.
func TestVerifySigners(t *testing.T) {
	const born = "generate-key checkpoint-gamma checkpoint Ed25519 on gamma"
	for name, story := range map[string]struct {
		says string // what chancery-verify says, "" if all is well
		do   func(l *made, k late) (last string)
	}{
		"a late key, covered by the first": {"", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			l.mark()
			return l.by(k)
		}},
		"both sign": {"", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			return l.note() + k.line(l.origin, l.body())
		}},
		"a late key alone": {"no checkpoint before it covers", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			return l.by(k)
		}},
		"a late key that vouches for itself": {"no checkpoint before it covers", func(l *made, k late) string {
			l.mark()
			l.joins(k, l.grantFor(born))
			l.notes = append(l.notes, l.by(k))
			l.later()
			return l.by(k)
		}},
		"a late key whose birth an older checkpoint does not cover": {"no checkpoint before it covers", func(l *made, k late) string {
			g := l.grantFor(born)
			l.mark()
			l.joins(k, g)
			return l.by(k)
		}},
		"a chain of late keys": {"", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			l.mark()
			k2 := newLate(t)
			l.joins(k2, l.grantFor(born))
			l.notes = append(l.notes, l.by(k))
			return l.by(k2)
		}},
		"a key without a birth": {"not signed by the ledger's key", func(l *made, k late) string {
			l.mark()
			return l.by(k)
		}},
		"a key under the grant of genesis": {"leaf 0 does not name", func(l *made, k late) string {
			l.joins(k, genesisGrant())
			l.mark()
			return l.by(k)
		}},
		"a key under a grant for another": {"something else", func(l *made, k late) string {
			l.joins(k, l.grantFor("generate-key checkpoint-delta checkpoint Ed25519 on delta"))
			l.mark()
			return l.by(k)
		}},
		"two keys under one grant": {"used up", func(l *made, k late) string {
			g := l.grantFor(born)
			l.joins(newLate(t), g)
			l.joins(k, g)
			l.mark()
			return l.by(k)
		}},
		"a key for something else": {"not signed by the ledger's key", func(l *made, k late) string {
			g := l.grantFor("generate-key checkpoint-gamma document Ed25519 on gamma")
			l.event(audit.OpKeyGenerate, func(f *audit.Fields) {
				f.Hash(audit.TagKey, sha256.Sum256(k.spki))
				f.Bytes(audit.TagSPKI, k.spki)
				f.Uint8(audit.TagPurpose, uint8(audit.PurposeDocument))
				f.Text(audit.TagKeyName, "checkpoint-gamma")
				f.Hash(audit.TagGrant, g)
			})
			l.mark()
			return l.by(k)
		}},
		"a key that is another's": {"its public key is none", func(l *made, k late) string {
			g := l.grantFor(born)
			l.event(audit.OpKeyGenerate, func(f *audit.Fields) {
				f.Hash(audit.TagKey, [32]byte{1})
				f.Bytes(audit.TagSPKI, k.spki)
				f.Uint8(audit.TagPurpose, uint8(audit.PurposeCheckpoint))
				f.Text(audit.TagKeyName, "checkpoint-gamma")
				f.Hash(audit.TagGrant, g)
			})
			l.mark()
			return l.by(k)
		}},
		"a forged line of a late key beside a good one": {"not signed by the ledger's key", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			l.mark()
			return l.note() + k.line(l.origin, l.body()+"x")
		}},
		"a forged line of the first key": {"not signed by the ledger's key", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			l.mark()
			good := l.note()
			l.doc([]byte("key of documents"))
			return l.body() + "\n" + good[strings.Index(good, "— "):] + k.line(l.origin, l.body())
		}},
		"a line of a stranger beside a good one": {"", func(l *made, k late) string {
			return l.note() + newLate(t).line(l.origin, l.body())
		}},
		"a key that was destroyed": {"had ended", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			l.mark()
			l.ends(k.spki, "destroyed")
			return l.by(k)
		}},
		"a key that was quarantined": {"had ended", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			l.mark()
			l.ends(k.spki, "quarantined")
			return l.by(k)
		}},
		"the first key, after its end": {"had ended", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			l.mark()
			l.ends(spkiOf(t, l.key), "destroyed")
			return l.note()
		}},
		"a late key after the end of the first": {"", func(l *made, k late) string {
			l.joins(k, l.grantFor(born))
			l.mark()
			l.ends(spkiOf(t, l.key), "destroyed")
			return l.by(k)
		}},
		"a member of a role": {"", func(l *made, k late) string {
			g := l.grantFor("add-member gamma 0c checkpoint", born)
			l.member(g, "0c", "checkpoint")
			l.joins(k, g)
			return l.note()
		}},
		"a member of a role that was not granted": {"something else", func(l *made, k late) string {
			l.member(l.grantFor("add-member gamma 0c"), "0c", "checkpoint")
			return l.note()
		}},
		"a member without the role that was granted": {"something else", func(l *made, k late) string {
			l.member(l.grantFor("add-member gamma 0c checkpoint"), "0c", "")
			return l.note()
		}},
		"a member of an unknown role": {"not known", func(l *made, k late) string {
			l.member(l.grantFor("add-member gamma 0c signer"), "0c", "signer")
			return l.note()
		}},
		"another key on a token of the role": {"another key", func(l *made, k late) string {
			l.member(l.grantFor("add-member gamma 0c checkpoint"), "0c", "checkpoint")
			g := l.grantFor("generate-key docs document P-256")
			l.on(g, audit.OpKeyGenerate, []byte("spki"), "0c")
			return l.note()
		}},
		"a copy on a token of the role": {"another key", func(l *made, k late) string {
			g := l.grantFor("generate-key docs document P-256")
			l.on(g, audit.OpKeyGenerate, []byte("spki"), "0a")
			l.member(l.grantFor("add-member gamma 0c checkpoint"), "0c", "checkpoint")
			l.on(g, audit.OpKeyReplicate, []byte("spki"), "0c")
			return l.note()
		}},
		"a copy under the grant of a member with a role": {"something else", func(l *made, k late) string {
			l.on(l.grantFor("add-member gamma 0c checkpoint"), audit.OpKeyReplicate, []byte("spki"), "0c")
			return l.note()
		}},
		"a role for a token that has other keys": {"has other keys", func(l *made, k late) string {
			l.on(l.grantFor("generate-key docs document P-256"), audit.OpKeyGenerate, []byte("spki"), "0c")
			l.member(l.grantFor("add-member gamma 0c checkpoint"), "0c", "checkpoint")
			return l.note()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newMade(t, nil)
			l.root()
			last := story.do(l, newLate(t))
			size := l.size
			dir := l.finish()
			write(t, dir, "checkpoint", []byte(last))
			if story.says == "" {
				if v := verifyExport(t, 0, dir); v.Size != size {
					t.Errorf("%d entries of %d", v.Size, size)
				}
				return
			}
			if v := verifyExport(t, 7, dir); v.Violation != nil && !strings.Contains(v.Violation.What, story.says) {
				t.Errorf("it says %q, want %q", v.Violation.What, story.says)
			}
		})
	}
}

// later lets time go by, so that a later note is of another size.
func (l *made) later() { l.doc([]byte("key of documents")) }

// ends writes that a key came to its end.
func (l *made) ends(spki []byte, state string) {
	l.event(audit.OpKeyState, func(f *audit.Fields) {
		f.Hash(audit.TagKey, sha256.Sum256(spki))
		f.Text(audit.TagState, state)
	})
}

// member writes that gamma joined.
func (l *made) member(grant [32]byte, token, role string) {
	l.event(audit.OpMemberAdd, func(f *audit.Fields) {
		f.Text(audit.TagMember, "gamma")
		f.Text(audit.TagSerialNumber, token)
		if role != "" {
			f.Text(audit.TagRole, role)
		}
		f.Hash(audit.TagGrant, grant)
	})
}

// on writes that the key "docs" came to a token.
func (l *made) on(grant [32]byte, op audit.Op, spki []byte, token string) {
	l.event(op, func(f *audit.Fields) {
		f.Hash(audit.TagKey, sha256.Sum256(spki))
		if op == audit.OpKeyGenerate {
			f.Uint8(audit.TagPurpose, uint8(audit.PurposeDocument))
		}
		f.Text(audit.TagKeyName, "docs")
		f.Text(audit.TagMember, "gamma")
		f.Text(audit.TagSerialNumber, token)
		f.Hash(audit.TagGrant, grant)
	})
}
