package hsmstore_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"testing"

	"chancery/audit"
)

func TestSignAndCommit(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	k := c.key(t, "issuing")
	req := issue(t, k)
	req.Projections = []audit.Projection{note{"reserved"}}
	op, err := k.Begin(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	defer op.Close()
	sig, err := op.SignMessage(nil, req.Message, k.Hash())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(req.Message)
	if !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Fatal("signature does not verify")
	}
	a, err := op.Commit(context.Background(), audit.Done{Artefact: sha256.Sum256(sig)}, note{"row"})
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Close(); err != nil {
		t.Fatal(err)
	}
	if a.Leaf.Closes != op.Index() || c.db.closing(op.Index()) != audit.KindDone || len(op.Attempts()) != 1 {
		t.Errorf("closed %d as %v after %v", a.Leaf.Closes, c.db.closing(op.Index()), op.Attempts())
	}
	if h, _ := a.Leaf.Hash(audit.TagSignature); h != sha256.Sum256(sig) {
		t.Error("done does not name the signature")
	}
}
