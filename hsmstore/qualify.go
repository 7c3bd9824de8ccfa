package hsmstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// Qualification is what was found out about an HSM that nobody knows here yet.
type Qualification struct {
	At         time.Time  `json:"at"`
	Module     string     `json:"module"`
	Diagnosis  Diagnosis  `json:"diagnosis"`
	Facts      Facts      `json:"facts"`
	Wrapping   Wrapping   `json:"wrapping"`
	Verdict    Verdict    `json:"verdict"`
	Why        []string   `json:"why"` // reasons of the verdict
	Weaknesses []Weakness `json:"weaknesses,omitempty"`
}

// Verdict says what an HSM can be in a cluster.
type Verdict string

// The verdicts.
const (
	VerdictWrap   Verdict = "usable as a member that copies keys by wrapping"
	VerdictNative Verdict = "usable as a native member (non-extractable keys)"
	VerdictNone   Verdict = "not usable"
)

// Weakness is something that is not as it should be, with what it means.
type Weakness struct {
	What  string `json:"what"`
	Means string `json:"means"`
}

// Facts are what the child found out.
type Facts struct {
	Token        TokenFacts       `json:"token"`
	Mechanisms   []Mechanism      `json:"mechanisms,omitempty"`
	Algorithms   []AlgorithmFacts `json:"algorithms,omitempty"`
	Checks       []Check          `json:"checks,omitempty"`
	Sessions     SessionFacts     `json:"sessions"`
	Latency      time.Duration    `json:"latency_ns,omitempty"` // median of one P-256 signature
	LatencyWorst time.Duration    `json:"latency_worst_ns,omitempty"`
	Rates        []Rate           `json:"rates,omitempty"`
	SpeedNote    string           `json:"speed_note,omitempty"`
}

// TokenFacts is what the token says of itself.
type TokenFacts struct {
	Label        string `json:"label"`
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Firmware     string `json:"firmware"`
	Flags        string `json:"flags"`
}

// Mechanism is one that we use.
type Mechanism struct {
	Name    string `json:"name"`
	Number  uint   `json:"number"`
	There   bool   `json:"there"`
	Missing string `json:"missing_means"` // what it means if it is not there
}

// AlgorithmFacts is how a key of one algorithm fared.
type AlgorithmFacts struct {
	Name     string        `json:"name"`
	OK       bool          `json:"ok"` // it was born and signed, and the signature is right
	Generate time.Duration `json:"generate_ns"`
	Sign     time.Duration `json:"sign_ns"`
	Call     string        `json:"call,omitempty"` // that failed
	Detail   string        `json:"detail,omitempty"`
}

// Check is one test of a protection.
type Check struct {
	Name     string `json:"name"`
	Known    bool   `json:"known"` // false: it could not be tested
	Honoured bool   `json:"honoured"`
	Detail   string `json:"detail"`
}

// Names of the checks.
const (
	CheckWrapTemplate   = "key template for copies by wrapping"
	CheckNativeTemplate = "key template without copies"
	CheckSensitive      = "SENSITIVE keys cannot be read"
	CheckSticky         = "SENSITIVE cannot be cleared"
	CheckUnextractable  = "EXTRACTABLE=false keys cannot be wrapped"
	CheckExtractable    = "EXTRACTABLE=false is for ever"
	CheckModifiable     = "MODIFIABLE=false is honoured"
	CheckCopy           = "a copy of a key is no weaker"
	CheckTrusted        = "the user cannot mark keys TRUSTED"
	CheckWrapTrusted    = "WRAP_WITH_TRUSTED is enforced"
	CheckAllowed        = "ALLOWED_MECHANISMS is enforced"
	CheckHandle         = "wrong key handles are refused"
	CheckSession        = "wrong session handles are refused"
	CheckCloseAll       = "closed sessions are closed"
)

// meanings of a check that failed.
var meanings = map[string]string{
	CheckWrapTemplate:   "keys cannot be copied by wrapping",
	CheckNativeTemplate: "the module does not protect keys as ours are protected; only weak_unwrap: true would accept it",
	CheckSensitive:      "whoever has the PIN reads private keys: never use this HSM",
	CheckSticky:         "whoever has the PIN makes private keys readable: never use this HSM",
	CheckUnextractable:  "whoever has the PIN takes keys out with a wrapping key of his own: never use this HSM",
	CheckExtractable:    "whoever has the PIN makes a key leave the HSM",
	CheckModifiable:     "whoever has the PIN changes what a key may be used for; purposes are held by the worker alone",
	CheckCopy:           "whoever has the PIN makes a copy that can be read or may leave: never use this HSM",
	CheckTrusted:        "whoever has the PIN makes a wrapping key trusted, and takes copies out with it",
	CheckWrapTrusted:    "whoever has the PIN takes copies out with a wrapping key of his own",
	CheckAllowed:        "the HSM does not hold a key to its one mechanism; the worker alone does",
	CheckHandle:         "the module does not notice mistakes; it may also crash by them",
	CheckSession:        "the module does not notice mistakes; it may also crash by them",
	CheckCloseAll:       "a login may live longer than it should",
}

// SessionFacts is how many sessions the token opens.
type SessionFacts struct {
	Opened int    `json:"opened"`
	Limit  string `json:"limit,omitempty"` // what ended it; "": our own cap
}

// Rate is how many signatures a number of sessions makes.
type Rate struct {
	Sessions  int     `json:"sessions"`
	PerSecond float64 `json:"per_second"`
	Refused   int     `json:"refused,omitempty"` // sessions that were refused or failed
}

// Wrapping is how throw-away keys travelled from the token to itself.
type Wrapping struct {
	Tried bool      `json:"tried"` // the SO PIN was given
	Error string    `json:"error,omitempty"`
	Keys  []Journey `json:"keys,omitempty"`
}

// Journey is that of one throw-away key.
type Journey struct {
	Algorithm string `json:"algorithm"`
	Way       string `json:"way,omitempty"` // "": none works
	Weak      bool   `json:"weak"`          // the same blob was taken with SENSITIVE=false
	Why       string `json:"why,omitempty"`
}

// Qualify runs everything that we would need of an HSM against one that is not a member
// yet. It makes session objects only, and destroys them. The whole way of copying by
// wrapping is gone if m.SOPIN or m.DeviceSO is set. Like [Doctor] it reports trouble in its result.
func Qualify(ctx context.Context, m MemberConfig, o DoctorOptions) Qualification {
	q := Qualification{At: time.Now().UTC().Truncate(time.Second), Module: m.Module}
	q.Diagnosis, q.Facts = examine(ctx, m, o, true)
	switch flags := q.Facts.Token.Flags; {
	case !q.Diagnosis.OK || m.SOPIN == nil && !m.DeviceSO:
	case strings.Contains(flags, "SO_PIN_FINAL_TRY"), strings.Contains(flags, "SO_PIN_LOCKED"):
		q.Wrapping = Wrapping{Tried: true, Error: "the SO PIN was not used: it is locked, or one more wrong one locks it"}
	default:
		what := "throw-away keys are copied by wrapping"
		if m.DeviceSO {
			what += "; the device wants the vendor's quorum, twice"
		}
		o.tell(what)
		q.Wrapping = travel(ctx, m, q.Facts.Token.Serial)
	}
	q.judge()
	return q
}

// travel lets throw-away keys go the whole way of replicate.go, with two processes that
// play source and target on the same token.
func travel(ctx context.Context, m MemberConfig, serial string) (w Wrapping) {
	w.Tried = true
	fail := func(err error) Wrapping {
		w.Error = strings.ToValidUTF8(err.Error()[:min(len(err.Error()), 400)], "") // a crash says a lot
		return w
	}
	src, err := startCeremony(ctx, m, serial, nil, true)
	if err != nil {
		return fail(err)
	}
	defer src.end()
	var tr transport
	if err := src.do(ctx, cerTransport, struct{}{}, &tr); err != nil {
		return fail(err)
	}
	dst, err := startCeremony(ctx, m, serial, nil, true)
	if err != nil {
		return fail(err)
	}
	defer dst.end()
	types := []uint{pkcs11.CKK_EC, pkcs11.CKK_RSA, pkcs11.CKK_AES}
	var keks []wrappedKEK
	if err := dst.do(ctx, cerNewKEKs, newKEKs{Modulus: tr.Modulus, Types: types}, &keks); err != nil {
		return fail(err)
	}
	if err := src.do(ctx, cerTakeKEKs, keks, &struct{}{}); err != nil {
		return fail(err)
	}
	between := waysBetween(src.token.Mechanisms, dst.token.Mechanisms)
	if slices.ContainsFunc(between, func(i int) bool { return ways[i].hop != nil }) {
		var hops []hop
		if err := dst.do(ctx, cerHopPair, types, &hops); err != nil {
			return fail(err)
		}
		if err := src.do(ctx, cerHopTake, hops, &struct{}{}); err != nil {
			return fail(err)
		}
	}
	for _, typ := range types {
		j := Journey{Algorithm: testAlgorithms[typ]}
		var key testKey
		if err := src.do(ctx, cerWrapTest, wrapTest{Algorithm: j.Algorithm, Ways: between}, &key); err != nil {
			if typ != pkcs11.CKK_AES { // the last one; not every module makes CMACs
				return fail(err)
			}
			j.Why = err.Error()
			w.Keys = append(w.Keys, j)
			break
		}
		var v testVerdict
		if err := dst.do(ctx, cerTakeTest, key, &v); err != nil {
			return fail(err)
		}
		j.Weak, j.Why = v.Weak, v.Why
		if v.Way >= 0 && v.Way < len(ways) {
			j.Way, j.Why = ways[v.Way].name, ""
		} else if len(key.Blobs) == 0 {
			j.Why = "the source wraps it in none of the ways"
		}
		w.Keys = append(w.Keys, j)
	}
	return w
}

// honoured tells whether a protection was tested and held.
func (q *Qualification) honoured(names ...string) bool {
	for _, name := range names {
		if !slices.ContainsFunc(q.Facts.Checks, func(c Check) bool { return c.Name == name && c.Known && c.Honoured }) {
			return false
		}
	}
	return true
}

// refuted tells whether a protection was tested and did not hold.
func (q *Qualification) refuted(name string) bool {
	return slices.ContainsFunc(q.Facts.Checks, func(c Check) bool { return c.Name == name && c.Known && !c.Honoured })
}

// judge draws the conclusion.
func (q *Qualification) judge() {
	because := func(v Verdict, format string, args ...any) {
		q.Verdict, q.Why = v, append(q.Why, fmt.Sprintf(format, args...))
	}
	q.weaknesses()
	probe := slices.ContainsFunc(q.Facts.Algorithms, func(a AlgorithmFacts) bool { return a.Name == ProbeAlgorithm && a.OK })
	trouble, bad := q.Diagnosis.Trouble()
	switch {
	case bad:
		because(VerdictNone, "%s: %s", trouble.where(), trouble.Detail)
		return
	case !probe:
		because(VerdictNone, "it cannot hold the probe key that each member has: %s keys are not born or do not sign", ProbeAlgorithm)
		return
	case !q.honoured(CheckSensitive, CheckSticky):
		because(VerdictNone, "private keys are not secret in it: they can be read, or made readable")
		return
	case q.refuted(CheckUnextractable):
		because(VerdictNone, "private keys are not secret in it: whoever has the PIN takes out even those that are not extractable")
		return
	case q.refuted(CheckCopy):
		because(VerdictNone, "private keys are not secret in it: whoever has the PIN makes a weaker copy of them")
		return
	}
	if why := q.againstWrapping(); why == "" {
		because(VerdictWrap, "a throw-away key of each kind went the whole way, and the unwrapping with weaker attributes was refused")
		return
	} else if q.honoured(CheckNativeTemplate, CheckExtractable) {
		because(VerdictNative, "keys are born sensitive and non-extractable, and stay so")
		q.Why = append(q.Why, "not by wrapping: "+why)
		return
	}
	because(VerdictNone, "neither the attributes of copies by wrapping nor those of non-extractable keys are honoured; weak_unwrap: true would accept it at the price of the weaknesses below")
}

// againstWrapping is what speaks against copies by wrapping; "": nothing.
func (q *Qualification) againstWrapping() string {
	for _, name := range []string{CheckWrapTemplate, CheckTrusted, CheckWrapTrusted} {
		if !q.honoured(name) {
			return name + " does not hold"
		}
	}
	if !q.Wrapping.Tried {
		return "it was not tried; give --so-pin"
	}
	if q.Wrapping.Error != "" {
		return q.Wrapping.Error
	}
	for _, j := range q.Wrapping.Keys {
		switch {
		case j.Way == "":
			return fmt.Sprintf("no way of wrapping works for %s: %s", j.Algorithm, j.Why)
		case j.Weak:
			return "CKA_UNWRAP_TEMPLATE is ignored"
		}
	}
	return ""
}

// weaknesses collects what is not as it should be.
func (q *Qualification) weaknesses() {
	add := func(means, format string, args ...any) {
		q.Weaknesses = append(q.Weaknesses, Weakness{fmt.Sprintf(format, args...), means})
	}
	for _, s := range q.Diagnosis.Steps {
		if s.Failed() {
			add(s.Cause, "%s: %s", s.where(), s.Detail)
		}
	}
	for _, c := range q.Facts.Checks {
		switch {
		case !c.Known:
			add("it may not hold: "+meanings[c.Name], "%s: not tested (%s)", c.Name, c.Detail)
		case !c.Honoured:
			add(meanings[c.Name], "%s: no (%s)", c.Name, c.Detail)
		}
	}
	for _, a := range q.Facts.Algorithms {
		if !a.OK {
			add("no keys of this algorithm on this member, and no copies of such keys to it", "%s: %s %s", a.Name, a.Call, a.Detail)
		}
	}
	for _, j := range q.Wrapping.Keys {
		if j.Weak {
			add("whoever has this member's PIN during a ceremony reads the keys that it is given", "CKA_UNWRAP_TEMPLATE is ignored for %s", j.Algorithm)
		}
	}
	if q.Wrapping.Error != "" {
		add("keys cannot be copied by wrapping", "wrapping: %s", q.Wrapping.Error)
	}
	if n := q.Facts.Sessions.Opened; n > 0 && n <= firstSessions {
		add(fmt.Sprintf("a worker begins with %d sessions and one for control; this HSM will be slow", firstSessions), "only %d sessions", n)
	}
}

// where names the step and its call.
func (s Step) where() string {
	out := s.Name
	if s.Call != "" {
		out = s.Call
	}
	if s.Code != "" {
		out += " " + s.Code
	}
	return out
}

// Markdown is the report for people.
func (q *Qualification) Markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	t := q.Facts.Token
	line("# Qualification of an HSM\n\n**%s**\n", q.Verdict)
	for _, w := range q.Why {
		line("- %s", cell(w))
	}
	line("\n| | |\n|---|---|")
	for _, row := range [][2]string{{"date", q.At.Format(time.RFC3339)}, {"module", q.Module}, {"token", t.Label}, {"serial number", t.Serial}, {"manufacturer", t.Manufacturer}, {"model, firmware", t.Model + " " + t.Firmware}, {"flags", t.Flags}} {
		line("| %s | %s |", row[0], cell(row[1]))
	}
	line("\n## Weaknesses\n")
	if len(q.Weaknesses) == 0 {
		line("None was found.")
	} else {
		line("| what | what it means |\n|---|---|")
	}
	for _, w := range q.Weaknesses {
		line("| %s | %s |", cell(w.What), cell(w.Means))
	}
	line("\n## From the module to a signature\n\n| step | call | result |\n|---|---|---|")
	for _, s := range q.Diagnosis.Steps {
		line("| %s | %s | %s |", cell(s.Name), cell(s.Call), cell(s.result()))
	}
	if len(q.Facts.Algorithms) > 0 {
		line("\n## Algorithms\n\n| algorithm | key generation | first signature | result |\n|---|---|---|---|")
		for _, a := range q.Facts.Algorithms {
			if a.OK {
				line("| %s | %s | %s | yes, verified |", a.Name, round(a.Generate), round(a.Sign))
				continue
			}
			line("| %s | – | – | no: %s |", a.Name, cell(a.Call+" "+a.Detail))
		}
	}
	if len(q.Facts.Checks) > 0 {
		line("\n## Protections\n\n| protection | holds | how it was tested |\n|---|---|---|")
		for _, c := range q.Facts.Checks {
			holds := "not tested"
			if c.Known {
				holds = map[bool]string{true: "yes", false: "**no**"}[c.Honoured]
			}
			line("| %s | %s | %s |", cell(c.Name), holds, cell(c.Detail))
		}
		line("\nAll was tried with session objects. What a token keeps of token objects is read back at the birth of each key.")
	}
	q.wrappingMarkdown(line)
	if q.Facts.Sessions.Opened > 0 {
		limit := "none up to there"
		if q.Facts.Sessions.Limit != "" {
			limit = q.Facts.Sessions.Limit
		}
		line("\n## Sessions and speed\n\n%d sessions were opened; limit: %s. One P-256 signature takes %s (median; longest %s).%s\n", q.Facts.Sessions.Opened, limit, round(q.Facts.Latency), round(q.Facts.LatencyWorst), q.Facts.SpeedNote)
		line("| sessions | P-256 signatures in a second |\n|---|---|")
		for _, r := range q.Facts.Rates {
			line("| %d | %.0f |", r.Sessions, r.PerSecond)
		}
	}
	return b.String()
}

func (q *Qualification) wrappingMarkdown(line func(string, ...any)) {
	line("\n## Copies by wrapping\n")
	for _, m := range q.Facts.Mechanisms {
		if !m.There {
			line("- %s is missing: %s", m.Name, m.Missing)
		}
	}
	switch {
	case !q.Wrapping.Tried:
		line("- the whole way was not tried: no SO PIN was given, or a step before failed")
	case q.Wrapping.Error != "":
		line("- the whole way fails: %s", cell(q.Wrapping.Error))
	}
	for _, j := range q.Wrapping.Keys {
		switch {
		case j.Way == "":
			line("- %s: no way works: %s", j.Algorithm, cell(j.Why))
		case j.Weak:
			line("- %s: %s; **the unwrap template is ignored**", j.Algorithm, j.Way)
		default:
			line("- %s: %s; unwrapping with weaker attributes is refused", j.Algorithm, j.Way)
		}
	}
}

// result is a step in one line.
func (s Step) result() string {
	switch {
	case s.Skipped:
		return "skipped: " + s.Detail
	case s.OK:
		return strings.TrimSuffix("yes: "+s.Detail, ": ")
	}
	return fmt.Sprintf("**no**: %s %s; %s", s.Code, s.Detail, s.Cause)
}

func round(d time.Duration) string {
	if d > 10*time.Millisecond {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Microsecond).String()
}

// cell makes text of a module fit into a table: what it says is not ours.
func cell(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "`", "'").Replace(s)
}
