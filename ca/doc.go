// Package ca issues X.509 certificates and CRLs (RFC 5280) with keys that lie in
// the HSM cluster.
//
// A certificate takes two steps. [Authority.Prepare] decides: it reads the CSR,
// checks key and names against the profile, draws the serial, makes the
// TBSCertificate once, signs it with a throw-away key of the issuer's algorithm and
// lints the result. What it returns, a [Prepared], is the permission to issue exactly
// these bytes; only Prepare can make one and it is spent once. [Authority.Issue] has
// no decisions left: intent, signature by the cluster, verification, and one commit
// that holds the done leaf and the certificate row.
//
// The root and the issuing CA are made by the same two steps ([Authority.PrepareIssuer]).
// docs/ISSUANCE.md tells the story in numbered steps.
package ca
