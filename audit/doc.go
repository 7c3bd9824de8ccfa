// Package audit is the ledger of a Chancery: an append-only Merkle tree
// (RFC 6962 §2.1) over leaves that name every use of a private key and every act
// on one.
//
// A use of a key is two leaves. The intent is durable before the HSM is called;
// exactly one closing leaf (done, failed or orphan) follows it. Rows that belong
// to a leaf – a certificate, an order, a revocation – are handed over as
// [Projection] values and committed in the leaf's own transaction, so that a row
// exists if and only if its leaf does.
//
// All hot writes of the process go through one [Ledger]: its sequencer forms a
// batch of whatever waits, gives each leaf its index, and commits the batch in
// one transaction. There is no timer: under load batches grow by themselves.
//
// The bytes of this package (leaf, tree, checkpoint) can never change. They are
// held by the vectors under testdata.
//
// The ledger knows nothing of SQL, HTTP or PKCS#11: [Storage] is implemented by
// package dbstore, [CheckpointSigner] by package hsmstore.
package audit
