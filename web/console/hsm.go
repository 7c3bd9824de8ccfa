package console

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/mldsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"

	"chancery/admin"
	"chancery/hsmstore"
)

// memberRow is an HSM member as the pages show it.
type memberRow struct {
	Name        foreign
	State       badge
	Since       stamp
	Err         foreign
	Label       foreign
	Serial      foreign
	Starts      string
	Pid         int
	Calls       string
	Outstanding int64
	JournalSeq  string
	JournalHead string
	Keys        int // that can sign there now
	Held        int // that it holds
}

// memberTones says how a member's state looks; what is not known looks bad.
var memberTones = map[hsmstore.State]string{hsmstore.Up: "ok", hsmstore.Starting: "idle", hsmstore.Suspect: "warn", hsmstore.Down: "bad", hsmstore.Fenced: "bad", hsmstore.Out: "warn", hsmstore.Joining: "idle", hsmstore.Absent: "bad"}

func (v *view) memberRows(members []hsmstore.MemberStatus, keys []hsmstore.KeyInfo) []memberRow {
	var out []memberRow
	for _, m := range members {
		row := memberRow{Name: foreign(m.Name), State: v.memberState(m.State), Since: v.stamp(m.Since), Label: foreign(m.Label), Serial: foreign(m.Serial), Starts: thousands(m.Starts), Pid: m.Pid,
			Calls: thousands(m.Calls), Outstanding: m.Outstanding, JournalSeq: thousands(m.JournalSeq), JournalHead: hex.EncodeToString(m.JournalHead[:])}
		if m.Err != nil {
			row.Err = foreign(m.Err.Error())
		}
		for _, k := range keys {
			if slices.Contains(k.Members, m.Name) {
				row.Held++
			}
			if slices.Contains(k.Ready, m.Name) {
				row.Keys++
			}
		}
		out = append(out, row)
	}
	return out
}

func (v *view) memberState(s hsmstore.State) badge {
	tone, ok := memberTones[s]
	if !ok {
		return badge{Tone: "bad", Icon: "bad", Text: shown(string(s), 20)}
	}
	return v.badge(tone, "member."+string(s))
}

// members is GET /console/hsm.
func (c *Console) members(w http.ResponseWriter, r *request) error { return c.showMembers(w, r, "") }

// membersLive is GET /console/hsm/live, which the page asks for by itself.
func (c *Console) membersLive(w http.ResponseWriter, r *request) error {
	return c.showMembers(w, r, "live")
}

func (c *Console) showMembers(w http.ResponseWriter, r *request, block string) error {
	v := c.view(r, "hsm", "hsm.title", nil)
	v.Data = v.memberRows(c.cfg.Members(), c.cfg.Keys())
	return c.show(w, http.StatusOK, "hsm", block, v)
}

// keyRow is a key as its page shows it.
type keyRow struct {
	Name      foreign
	Purpose   string
	Algorithm foreign
	SPKI      string
	State     badge
	Copies    []keyCopy
	Born      foreign // the member
	Birth     uint64
}

type keyCopy struct {
	Member foreign
	State  badge
}

func (v *view) keyRow(k hsmstore.KeyInfo) keyRow {
	sum := sha256.Sum256(k.SPKI)
	row := keyRow{Name: foreign(k.Name), Purpose: v.named("purpose.", k.Purpose.String()), Algorithm: foreign(k.Algorithm), SPKI: hex.EncodeToString(sum[:]), State: v.keyState(k), Born: foreign(k.KeyRecord.Origin), Birth: k.Birth}
	for _, m := range k.Members {
		state := v.badge("warn", "copy.away")
		if slices.Contains(k.Ready, m) {
			state = v.badge("ok", "copy.ready")
		}
		row.Copies = append(row.Copies, keyCopy{foreign(m), state})
	}
	return row
}

func (v *view) keyState(k hsmstore.KeyInfo) badge {
	switch {
	case k.State == hsmstore.KeyBorn:
		return v.badge("warn", "key.unproved")
	case k.State != hsmstore.KeyUsable:
		return v.badge("bad", "key."+string(k.State))
	case len(k.Ready) == 0:
		return v.badge("bad", "key.away")
	case len(k.Ready) < len(k.Members):
		return v.badge("warn", "key.some", len(k.Ready), len(k.Members))
	}
	return v.badge("ok", "key.ready")
}

// named is the word for a code of a lower floor, or the code itself.
func (v *view) named(prefix, code string) string {
	if v.Lang.has(prefix + code) {
		return v.Lang.text(prefix + code)
	}
	return shown(code, 40)
}

// keys is GET /console/keys.
func (c *Console) keys(w http.ResponseWriter, r *request) error {
	v := c.view(r, "keys", "keys.title", nil)
	var rows []keyRow
	for _, k := range c.cfg.Keys() {
		if v.may(admin.ReadKeys, admin.Resource{Key: k.Name}) {
			rows = append(rows, v.keyRow(k))
		}
	}
	v.Data = rows
	return c.show(w, http.StatusOK, "keys", "", v)
}

// keyText names the kind of a public key.
func keyText(pub any) string {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	case *mldsa.PublicKey:
		return "ML-DSA"
	}
	return fmt.Sprintf("%T", pub)
}
