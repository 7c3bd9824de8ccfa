package hsmstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"chancery/audit"
)

// The doctor looks at one HSM from the file of its module to a signature. Each call
// into vendor code is made by a child process, which announces it first: whatever the
// module does to the child, it is known in which call.

// Step is one thing that was looked at.
type Step struct {
	Name    string `json:"name"`
	Call    string `json:"call,omitempty"` // function of PKCS#11 that was called last
	Code    string `json:"code,omitempty"` // CKR_… that it gave, or the CKF_… flag that says no
	OK      bool   `json:"ok"`
	Skipped bool   `json:"skipped,omitempty"`
	Detail  string `json:"detail,omitempty"`
	Cause   string `json:"cause,omitempty"` // of a failure: the likely one
	Next    string `json:"next,omitempty"`  // of a failure: the next command
}

// Failed tells whether the step shows trouble.
func (s Step) Failed() bool { return !s.OK && !s.Skipped }

// Diagnosis is what was found out about a member.
type Diagnosis struct {
	Member string `json:"member"`
	OK     bool   `json:"ok"`
	Steps  []Step `json:"steps"`
}

// Trouble is the first failure; ok is false if there is none.
func (d Diagnosis) Trouble() (s Step, ok bool) {
	i := slices.IndexFunc(d.Steps, Step.Failed)
	if i < 0 {
		return s, false
	}
	return d.Steps[i], true
}

// DoctorOptions say how far a check goes.
type DoctorOptions struct {
	Keys       []KeyRecord   // enrolled keys; those of the member are looked for. nil: what has our labels is listed
	Others     []string      // serial numbers of the other members, which one module may show too
	NoLogin    bool          // the PIN is not used
	ForceLogin bool          // also when one more wrong PIN would lock the token
	Timeout    time.Duration // of one call; 0: 10 s

	Progress func(what string) // told before each call into the module; nil: nobody is
}

func (o DoctorOptions) tell(what string) {
	if o.Progress != nil {
		o.Progress(what)
	}
}

// doctorCommand is the name of the child.
const doctorCommand = "hsm-doctor"

// Frames between doctor and child. Only the child speaks after the first.
const (
	opExamine byte = 64 // examineRequest, to the child
	opBegin   byte = 65 // announcement: what will be called now
	opStep    byte = 66 // Step: what came of it
	opFacts   byte = 67 // Facts, as far as they are known
	opEnd     byte = 68 // nothing more comes
)

// examineRequest tells the child what to look at.
type examineRequest struct {
	Module   string   `json:"module"`
	Reserved string   `json:"reserved,omitempty"`
	Label    string   `json:"label,omitempty"`
	Serial   string   `json:"serial,omitempty"`
	Others   []string `json:"others,omitempty"`
	Login    bool     `json:"login"`
	Force    bool     `json:"force,omitempty"`
	NoPIN    string   `json:"no_pin,omitempty"` // why there is no PIN
	Weak     bool     `json:"weak,omitempty"`
	Device   bool     `json:"device,omitempty"` // the SO logs in at the device
	Enrolled bool     `json:"enrolled"`         // Keys is what the database has
	Keys     []named  `json:"keys,omitempty"`
	Qualify  bool     `json:"qualify,omitempty"`
}

// named is a key that is looked for.
type named struct {
	Name    string        `json:"name"`
	Purpose audit.Purpose `json:"purpose"`
	Pin     pin           `json:"pin"`
}

// announcement precedes a call.
type announcement struct {
	Step string `json:"step"`
	Call string `json:"call"`
	Slow bool   `json:"slow,omitempty"` // key generation and the like
}

const (
	doctorTimeout = 10 * time.Second
	slowFactor    = 12 // RSA-4096 in a small HSM takes a minute
)

// Doctor looks at one member. It changes nothing, and may work beside a running server.
// The PIN is tried once at most. What is wrong is in the result, never an error.
func Doctor(ctx context.Context, m MemberConfig, o DoctorOptions) Diagnosis {
	d, _ := examine(ctx, m, o, false)
	return d
}

// examine lets a child look, and believes only what it has said.
func examine(ctx context.Context, m MemberConfig, o DoctorOptions, qualify bool) (d Diagnosis, facts Facts) {
	d.Member = m.Name
	req := examineRequest{Module: m.Module, Reserved: m.Reserved, Label: m.TokenLabel, Serial: m.TokenSerial, Others: o.Others,
		Login: !o.NoLogin, Force: o.ForceLogin, Weak: m.WeakUnwrap, Device: m.DeviceSO, Enrolled: o.Keys != nil, Qualify: qualify}
	for _, k := range o.Keys {
		if k.State != KeyDestroyed && slices.Contains(k.Members, m.Name) {
			req.Keys = append(req.Keys, named{k.Name, k.Purpose, pin{ID: k.ID, SPKI: k.SPKI, Algorithm: k.Algorithm, Adopted: k.Adopted, Purpose: k.Purpose, Subject: k.Subject}})
		}
	}
	secret := ""
	if req.Login {
		var err error
		if secret, err = m.PIN(); err != nil {
			req.NoPIN = err.Error()
		}
	}
	p, err := startProcess(doctorCommand, m, secret)
	if err != nil {
		d.Steps = []Step{{Name: "child process", Detail: err.Error(), Cause: "this computer has no process or memory left", Next: "free -m; ulimit -u"}}
		return d, facts
	}
	defer p.stop()
	defer context.AfterFunc(ctx, p.kill)()
	e := examination{proc: p, timeout: o.Timeout, hints: m.hints(), Diagnosis: d, tell: o.tell}
	if e.timeout == 0 {
		e.timeout = doctorTimeout
	}
	if trouble := e.follow(ctx, req); trouble != nil {
		e.Steps = append(e.Steps, *trouble)
	}
	_, bad := e.Trouble()
	e.OK = !bad
	return e.Diagnosis, e.facts
}

// examination is a child at work, seen from the parent.
type examination struct {
	tell func(what string)
	Diagnosis
	proc    *process
	timeout time.Duration
	hints   *strings.Replacer
	now     announcement
	facts   Facts
}

// follow listens to the child until it has ended, and tells how if not in peace.
func (e *examination) follow(ctx context.Context, req examineRequest) *Step {
	err := writeJSON(e.proc.conn, 1, opExamine, req)
	for err == nil {
		patience := e.timeout
		if e.now.Slow {
			patience *= slowFactor
		}
		_ = e.proc.conn.SetReadDeadline(time.Now().Add(patience))
		var f frame
		if f, err = readFrame(e.proc.r); err != nil {
			break
		}
		switch f.op {
		case opBegin:
			e.now = announcement{}
			err = json.Unmarshal(f.payload, &e.now)
			e.tell(e.now.Step + ": " + e.now.Call)
		case opStep:
			var s Step
			err = json.Unmarshal(f.payload, &s)
			s.Next = e.hints.Replace(s.Next)
			e.Steps = append(e.Steps, s)
		case opFacts:
			e.facts = Facts{}
			err = json.Unmarshal(f.payload, &e.facts)
		case opEnd:
			return nil
		case statusFatal:
			err = fatalError(f.payload)
		}
	}
	if ctx.Err() != nil {
		return &Step{Name: "child process", Call: e.now.Call, Code: "INTERRUPTED", Detail: "the check was ended by " + ctx.Err().Error(), Cause: "somebody ended it", Next: e.hints.Replace(nextDoctor)}
	}
	return e.broken(err)
}

// goSignal is how Go's runtime reports the signal that vendor code died of.
var goSignal = regexp.MustCompile(`SIG[A-Z]{2,}`)

// beginning is what a child wrote to stderr first.
func (t *tail) beginning() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.head)
}

// broken is the step at which the child was lost.
func (e *examination) broken(err error) *Step {
	s := &Step{Name: e.now.Step, Call: e.now.Call, Next: e.hints.Replace(nextReport)}
	if s.Name == "" {
		s.Name = "child process"
	}
	e.proc.kill()
	code := e.proc.wait()
	var late interface{ Timeout() bool }
	switch {
	case errors.As(err, &late) && late.Timeout():
		s.Code = "HANG"
		s.Detail = fmt.Sprintf("the module did not come back from %s in time", e.now.Call)
		s.Cause = "the HSM, or the way to it, does not answer; or a fault of the module"
		s.Next = e.hints.Replace("check power and network of the HSM and its client service, then " + nextDoctor + "; a slow one gets more time by --timeout")
		return s
	case e.now.Call == "":
		s.Detail = fmt.Sprintf("the checking process ended: %v; it said %q", err, e.proc.stderr.String())
		s.Cause = "the program could not start itself anew"
		return s
	}
	s.Code = "CRASH"
	how := fmt.Sprintf("exit code %d", code)
	if sig := goSignal.FindString(e.proc.stderr.beginning()); sig != "" {
		s.Code, how = sig, sig
	} else if code < 0 {
		how = e.proc.cmd.ProcessState.String()
	} else if first, _, _ := strings.Cut(e.proc.stderr.beginning(), "\n"); first != "" {
		how += ": " + first
	}
	s.Detail = fmt.Sprintf("the module crashed in %s (%s)", e.now.Call, how)
	s.Cause = "a fault of the module, or one of its own files or libraries is of another version"
	return s
}

// moduleOwner describes a file for people.
func moduleOwner(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return path
	}
	return fmt.Sprintf("%s, %d octets, mode %04o", path, st.Size(), st.Mode().Perm())
}
