// Package hsmstore is the only door to the HSMs.
//
//	server ── Store ──socketpair── worker (member 1) ── vendor module ── HSM
//	               └──socketpair── worker (member 2) ── …
//	               └─ ceremony workers: SO login, wrap, unwrap; short-lived, only with a grant
//
// # Processes
//
// A [Store] runs one worker process per HSM member: this same binary, executed
// again as "chancery hsm-worker" (see [RunIfWorker]). The worker alone has the
// vendor's module and the PIN, which reaches it through a pipe. A crash, hang or
// leak in vendor code costs one restart of one worker and no request: the store
// sends the same bytes to another member under the same intent.
//
// The worker is also the last line of defence. It gets the whole message, not a
// digest, parses it by the purpose that the key was born with (purpose.go), and
// refuses everything else; then it writes the use to a hash-chained journal of
// its own (journal.go), and only then signs. It has no code to wrap, unwrap,
// create or change anything. Whatever goes wrong that is not the caller's fault
// ends the process: its restart is the recovery that PKCS#11 libraries lack.
//
// # The door
//
// A [Key] cannot sign. [Key.Begin] commits an intent to the ledger and returns an
// [Operation], which signs exactly the message of that intent, once;
// [Operation.Commit] closes the intent together with the caller's rows, and
// [Operation.Close] closes whatever was not committed as failed or orphan. Exempt
// are checkpoints and probes, which are counted per member instead.
//
// # Keys
//
// [Store.GenerateKey] spends an act of an admin.Grant. The key is born on one
// member, copied to the others by the reverse-KEK flow (replicate.go), each step
// a leaf of the ledger, and usable once every copy has signed a challenge through
// the door.
package hsmstore
