// Package signing signs documents with keys of the HSM cluster.
//
// A client hashes its document and sends the digest; the document itself never comes
// here. The server builds the signed attributes (RFC 5652 §5.3) around that digest
// – content type, digest, time and the signing certificate – and has exactly these
// signed through the door. A caller's bytes are never signed as they are, and the
// worker process refuses anything but signed attributes under a document key.
//
// The result is a detached CMS SignedData in the form of CAdES B-B (ETSI EN 319
// 122-1 §6): openssl cms -verify -binary accepts it.
package signing
