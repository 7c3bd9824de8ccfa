package audit

import "testing"

// A grant is for its own acts, each birth once, and for nothing after its result.
func TestGrantIsForItsActs(t *testing.T) {
	fields := func(pairs ...any) (f Fields) {
		for i := 0; i < len(pairs); i += 2 {
			switch v := pairs[i+1].(type) {
			case string:
				f.Text(pairs[i].(Tag), v)
			case Purpose:
				f.Uint8(pairs[i].(Tag), uint8(v))
			case [32]byte:
				f.Hash(pairs[i].(Tag), v)
			}
		}
		return f
	}
	key := [32]byte{0xab}
	const hash = "ab00000000000000000000000000000000000000000000000000000000000000"
	born := fields(TagKeyName, "k", TagPurpose, PurposeDocument)
	member := fields(TagMember, "m", TagSerialNumber, "0a 1b")
	for what, c := range map[string]struct {
		op       Op
		f        Fields
		act      string
		once, ok bool
	}{
		"birth":                  {OpKeyGenerate, born, "generate-key k document P-256 on m", true, true},
		"birth of another":       {OpKeyGenerate, born, "generate-key kk document P-256", true, false},
		"birth for other things": {OpKeyGenerate, born, "generate-key k issuer P-256", true, false},
		"adoption":               {OpKeyAdopt, born, "adopt-key k document P-256 " + hash, true, true},
		"import":                 {OpKeyImport, born, "import-key k document P-256 " + hash, true, true},
		"import by a birth":      {OpKeyImport, born, "generate-key k document P-256", true, false},
		"copy of a birth":        {OpKeyReplicate, born, "generate-key k document P-256", false, true},
		"copy of a repair":       {OpKeyReplicate, fields(TagKeyName, "k", TagMember, "m"), "repair-key k m", false, true},
		"copy to who joins":      {OpKeyReplicate, member, `add-member m "0a 1b"`, false, true},
		"copy to another":        {OpKeyReplicate, member, "add-member m 0a", false, false},
		"joining":                {OpMemberAdd, member, `add-member m "0a 1b"`, true, true},
		"end of a key":           {OpKeyDestroy, fields(TagKeyName, "k", TagKey, key), "destroy-key k " + hash, false, true},
		"end of its namesake":    {OpKeyDestroy, fields(TagKeyName, "k", TagKey, key), "destroy-key k " + hash[:62] + "11", false, false},
		"leaving":                {OpMemberState, fields(TagMember, "m", TagSerialNumber, "1", TagState, "removed"), "remove-member m 1", false, true},
		"end of all":             {OpMemberState, fields(TagMember, "m", TagState, "retired"), "retire-cluster", false, true},
		"end of all by leaving":  {OpMemberState, fields(TagMember, "m", TagSerialNumber, "1", TagState, "retired"), "remove-member m 1", false, false},
		"recipient":              {OpBackup, fields(TagRecipient, "r", TagSerialNumber, "1", TagState, "designated"), "backup-recipient r 1", true, true},
		"recipient elsewhere":    {OpBackup, fields(TagRecipient, "r", TagSerialNumber, "2", TagState, "designated"), "backup-recipient r 1", true, false},
		"backup":                 {OpBackup, fields(TagRecipient, "r", TagSerialNumber, "1", TagKey, key, TagKeyName, "k"), "backup r 1", false, true},
		"backup at birth":        {OpBackup, fields(TagRecipient, "r", TagSerialNumber, "1", TagKey, key, TagKeyName, "k"), "generate-key k document P-256", false, true},
		"restore":                {OpRestore, fields(TagManifest, key), "restore " + hash, false, true},
	} {
		a := newApprovals()
		var g Fields
		g.List(TagActs, []byte("some other-act"), []byte(c.act))
		a.genesis(Leaf{Kind: KindGenesis, Fields: g})
		p := Digest("proposal", g[0].Value)
		grant := Digest("grant", p[:])
		c.f.Hash(TagGrant, grant)
		leaf := Leaf{Kind: KindEvent, Op: c.op, Fields: c.f.sorted()}
		if err := a.granted(5, leaf); (err == nil) != c.ok {
			t.Errorf("%s: %v", what, err)
		}
		if err := a.granted(6, leaf); c.ok && (err == nil) == c.once {
			t.Errorf("%s, a second time: %v", what, err)
		}
		a.grants[grant].ended = true
		if err := a.granted(7, leaf); err == nil {
			t.Errorf("%s, after the result: accepted", what)
		}
	}
}
