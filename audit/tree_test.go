package audit_test

import (
	"encoding/binary"
	"encoding/hex"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/audit"
)

func TestRoots(t *testing.T) {
	var hs []tlog.Hash
	for i := range 70000 {
		hs = append(hs, audit.LeafHash(binary.BigEndian.AppendUint64(nil, uint64(i))))
	}
	for _, r := range readVectors(t).Roots {
		if got := audit.RootOfLeaves(hs[:r.Size]); hex.EncodeToString(got[:]) != r.Root {
			t.Errorf("root of %d = %x, want %s", r.Size, got, r.Root)
		}
	}
	audit.RootOfLeaves(hs) // three levels of tiles agree with the compact range
}
