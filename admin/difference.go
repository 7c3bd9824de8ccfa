package admin

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Difference is one thing in which a roster differs from the one before: "" stands for what
// is not there.
type Difference struct {
	What   string `json:"what"` // "quorum", "officer ada", "passkey … of officer ada", "group …"
	Before string `json:"before"`
	After  string `json:"after"`
}

// Differences says in what next differs from r, officers and groups by name: what officers
// look at before they sign. Keys are named by the SHA-256 of their SPKI.
func (r Roster) Differences(next Roster) (out []Difference) {
	differ := func(what, before, after string) {
		if before != after {
			out = append(out, Difference{what, before, after})
		}
	}
	differ("quorum", strconv.Itoa(r.Quorum), strconv.Itoa(next.Quorum))
	differ("approvals by CLI key", strconv.Itoa(r.CLI), strconv.Itoa(next.CLI))
	differ("relying party of passkeys", r.RPID, next.RPID)
	differ("origins of passkeys", strings.Join(r.Origins, " "), strings.Join(next.Origins, " "))
	for _, name := range either(r.Officers, next.Officers, func(o Officer) string { return o.Name }) {
		a, was := r.Officer(name)
		b, is := next.Officer(name)
		differ("officer "+name, there(was), there(is))
		differ("roles of officer "+name, rolesOf(r, a, was), rolesOf(next, b, is))
		differ("CLI key of officer "+name, keyName(a.SPKI), keyName(b.SPKI))
		for _, key := range either(a.Passkeys, b.Passkeys, func(k Passkey) string { return string(k.ID) }) {
			x, y := passkeyOf(a, key), passkeyOf(b, key)
			differ("passkey of officer "+name, x, y)
		}
	}
	group := func(r Roster, name string) string {
		for _, g := range r.Groups {
			if g.Name == name {
				return fmt.Sprintf("%d of %s", g.Quorum, joined(slices.Sorted(slices.Values(g.Members)), ", "))
			}
		}
		return ""
	}
	for _, name := range either(r.Groups, next.Groups, func(g Group) string { return g.Name }) {
		differ("group "+name, group(r, name), group(next, name))
	}
	return out
}

// either are the names of what is in one of two lists, sorted.
func either[T any](a, b []T, name func(T) string) (out []string) {
	for _, x := range slices.Concat(a, b) {
		out = append(out, name(x))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// joined is a list as one text. An item that could be taken for several is quoted, so that
// two lists that differ never look the same.
func joined(items []string, between string) string {
	for i, item := range items {
		if strings.ContainsAny(item, between+`"`) {
			items[i] = strconv.Quote(item)
		}
	}
	return strings.Join(items, between)
}

func there(is bool) string {
	if is {
		return "on the roster"
	}
	return ""
}

func rolesOf(r Roster, o Officer, is bool) string {
	if !is {
		return ""
	}
	var out []string
	for _, a := range r.Principal(o).Assignments {
		out = append(out, a.String())
	}
	return joined(out, " ")
}

func keyName(spki []byte) string {
	if spki == nil {
		return ""
	}
	sum := sha256.Sum256(spki)
	return "SHA-256 " + hex.EncodeToString(sum[:])
}

// passkeyOf names a passkey by its hash, then by its label in quotes: whoever makes one
// chooses the label, which could read as another's hash.
func passkeyOf(o Officer, id string) string {
	for _, k := range o.Passkeys {
		if string(k.ID) == id {
			if k.Label == "" {
				return keyName(k.SPKI)
			}
			return keyName(k.SPKI) + " " + strconv.Quote(k.Label)
		}
	}
	return ""
}
