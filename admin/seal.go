package admin

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/x509"
	"fmt"
)

// SealTo encrypts for whoever holds the private half of a P-256 key: an officer, or a
// ceremony process (RFC 9180, DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM,
// base mode). info says what it is for; another info does not open it. An officer's
// key that signs votes is used here too: ECDSA and ECIES do not weaken each other
// when no message is valid in both, which info and the votes' prefix see to.
func SealTo(spki []byte, info string, plain []byte) ([]byte, error) {
	any, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	pub, ok := any.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("sealing: the key must be P-256")
	}
	dh, err := pub.ECDH()
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	to, err := hpke.NewDHKEMPublicKey(dh)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return hpke.Seal(to, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info), plain)
}

// Unseal is the other side of [SealTo].
func Unseal(key *ecdh.PrivateKey, info string, box []byte) ([]byte, error) {
	k, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("opening what was sealed: %w", err)
	}
	plain, err := hpke.Open(k, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info), box)
	if err != nil {
		return nil, fmt.Errorf("opening what was sealed: it is for another key, for something else, or was changed")
	}
	return plain, nil
}

// Unseal opens what was sealed to the officer.
func (k *OfficerKey) Unseal(info string, box []byte) ([]byte, error) {
	dh, err := k.key.ECDH()
	if err != nil {
		return nil, fmt.Errorf("officer %s: %w", k.Name, err)
	}
	return Unseal(dh, info, box)
}
