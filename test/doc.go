// Package test holds the tests that run the finished program on real parts: the
// binary itself, SoftHSM tokens, certbot, openssl, pkcs11-tool. The tests of a single
// room lie beside its code.
package test
