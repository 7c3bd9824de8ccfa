package audit

import (
	"context"
	"crypto/sha256"
	"slices"
)

// MemberRow is an HSM member as its row shows it.
type MemberRow struct {
	Name     string
	Serial   string // of its token
	Role     string // what it is for; "": keys of all purposes
	Standing string // active, drained, fenced, removed, retired
}

// RecipientRow is a backup recipient as its row shows it.
type RecipientRow struct {
	Name, Serial string
	Leaf         uint64 // of its designation
	Removed      bool
}

// BackupRow is a wrapped key as its row shows it.
type BackupRow struct {
	Key       [32]byte // SHA-256 of its SPKI
	Recipient string
	Blob      [32]byte // SHA-256
	Leaf      uint64
}

// cluster is what the leaves say of keys, members and backups.
type cluster struct {
	keys       map[[32]byte]bornOn
	states     map[[32]byte]string // of keys, as the last leaf about one says
	members    map[string]bool     // name, line feed, token serial
	joined     map[string]string   // names, with the token that joined last
	standings  map[string]string   // by name; none: active, or it was joining
	roles      map[string]string   // by token serial
	others     map[string]bool     // token serials with keys that are not for checkpoints or probes
	retired    bool
	recipients map[string]RecipientRow
	backups    map[backupOf]BackupRow
}

type bornOn struct {
	name    string
	purpose Purpose
}

type backupOf struct {
	key       [32]byte
	recipient string
}

func newCluster() cluster {
	return cluster{keys: map[[32]byte]bornOn{}, states: map[[32]byte]string{}, members: map[string]bool{}, joined: map[string]string{}, standings: map[string]string{}, roles: map[string]string{}, others: map[string]bool{},
		recipients: map[string]RecipientRow{}, backups: map[backupOf]BackupRow{}}
}

// intent: nothing is signed after the officers have ended a cluster, nor for another purpose
// than the key was born for (P8).
func (c *cluster) intent(index uint64, l Leaf) error {
	if c.retired {
		return violate(index, "it is an intent to sign, after the cluster was retired")
	}
	key, _ := l.Hash(TagKey)
	purpose, _ := l.Uint(TagPurpose)
	if born, known := c.keys[key]; known && born.purpose != Purpose(purpose) {
		return violate(index, "key %q, which was born for %s, is used for %s", born.name, born.purpose, Purpose(purpose))
	}
	return nil
}

// event follows births and states of keys, members, and backups.
func (c *cluster) event(index uint64, l Leaf) error {
	text := func(t Tag) string { b, _ := l.Get(t); return string(b) }
	key, named := l.Hash(TagKey)
	if err := c.role(index, l); err != nil {
		return err
	}
	switch l.Op {
	case OpKeyGenerate, OpKeyAdopt, OpKeyImport, OpRestore:
		purpose, _ := l.Uint(TagPurpose)
		if named {
			c.keys[key] = bornOn{text(TagKeyName), Purpose(purpose)}
		}
		if named && l.Op == OpRestore { // as it was in the predecessor
			c.states[key] = text(TagState)
		}
	case OpKeyState:
		was, now := c.states[key], text(TagState)
		if was == "destroyed" || was == "quarantined" && now != "destroyed" && now != was || now == "usable" && was != "disabled" {
			return violate(index, "a key that is %q becomes %q", was, now)
		}
		c.states[key] = now
	case OpKeyDestroy:
		c.states[key] = "destroyed"
	case OpMemberAdd:
		c.joined[text(TagMember)] = text(TagSerialNumber)
		c.members[text(TagMember)+"\n"+text(TagSerialNumber)] = true
		delete(c.standings, text(TagMember))
	case OpMemberState:
		if state := text(TagState); state != "" { // else its SO PIN was split
			if was := c.standings[text(TagMember)]; was != state && (was == "removed" || was == "retired") {
				return violate(index, "a member that was %s is %s again", was, state)
			}
			c.standings[text(TagMember)] = state
			c.retired = c.retired || state == "retired"
		}
	case OpBackup:
		name := text(TagRecipient)
		switch text(TagState) {
		case "designated":
			c.recipients[name] = RecipientRow{Name: name, Serial: text(TagSerialNumber), Leaf: index}
		case "removed":
			r := c.recipients[name]
			r.Removed = true
			c.recipients[name] = r
		}
		if blob, ok := l.Hash(TagSubject); ok && named {
			c.backups[backupOf{key, name}] = BackupRow{Key: key, Recipient: name, Blob: blob, Leaf: index}
		}
	}
	return nil
}

// role holds what a member is for: a token of role checkpoint has no other keys, before it
// joins and after.
func (c *cluster) role(index uint64, l Leaf) error {
	text := func(t Tag) string { b, _ := l.Get(t); return string(b) }
	serial, role := text(TagSerialNumber), text(TagRole)
	switch l.Op {
	case OpMemberAdd:
		if role != "" && (role != "checkpoint" || c.others[serial]) {
			return violate(index, "a member joins with role %q, which is not known or not for a token that has other keys", role)
		}
		c.roles[serial] = role
	case OpKeyGenerate, OpKeyAdopt, OpKeyImport, OpRestore, OpKeyReplicate:
		key, named := l.Hash(TagKey)
		n, told := l.Uint(TagPurpose)
		if !told {
			n = uint64(c.keys[key].purpose)
		}
		if p := Purpose(n); !named || p == PurposeCheckpoint || p == PurposeProbe {
			return nil
		}
		if c.others[serial] = true; c.roles[serial] != "" {
			return violate(index, "token %q has the role %s and gets another key", serial, c.roles[serial])
		}
	}
	return nil
}

// finish holds the rows of keys, members and backups against the leaves.
func (c *cluster) finish(ctx context.Context, src VerifySource, checkpointKeys [][]byte) error {
	stored := map[[32]byte]bool{}
	err := src.KeyRows(ctx, func(k KeyRow) error {
		hash := sha256.Sum256(k.SPKI)
		stored[hash] = true
		born, ok := c.keys[hash]
		genesis := k.Purpose == PurposeCheckpoint && slices.ContainsFunc(checkpointKeys, func(c []byte) bool { return string(c) == string(k.SPKI) })
		if !genesis && (!ok || born != (bornOn{k.Name, k.Purpose})) {
			return violate(0, "no entry tells the birth of key %q for %s", k.Name, k.Purpose)
		}
		state, told := c.states[hash]
		switch {
		case k.Purpose == PurposeProbe: // it goes with its member
		case told && k.State != state, !told && k.State != "born" && k.State != "usable":
			return violate(0, "key %q is %q in the database, which the entries do not say", k.Name, k.State)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for hash, k := range c.keys {
		if !stored[hash] {
			return violate(0, "key %q is not in the database", k.name)
		}
	}
	there := map[string]bool{}
	err = src.MemberRows(ctx, func(m MemberRow) error {
		there[m.Name] = true
		if !c.members[Text(m.Name, 1024)+"\n"+Text(m.Serial, 1024)] {
			return violate(0, "no entry tells that HSM member %q joined with token %q", m.Name, m.Serial)
		}
		if m.Role != c.roles[m.Serial] {
			return violate(0, "HSM member %q has role %q in the database, %q by the entries", m.Name, m.Role, c.roles[m.Serial])
		}
		want, told := c.standings[m.Name]
		if told && m.Standing != want || !told && m.Standing != "active" && m.Standing != "drained" {
			return violate(0, "HSM member %q is %q in the database, which the entries do not say", m.Name, m.Standing)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name := range c.joined {
		if !there[name] && c.standings[name] != "removed" { // the row of one that left goes when its token comes back by another name
			return violate(0, "HSM member %q is not in the database", name)
		}
	}
	return c.finishBackups(ctx, src)
}

func (c *cluster) finishBackups(ctx context.Context, src VerifySource) error {
	err := src.RecipientRows(ctx, func(r RecipientRow) error {
		if c.recipients[r.Name] != r {
			return violate(r.Leaf, "backup recipient %q with token %q is in the database in a way that no entry says", r.Name, r.Serial)
		}
		delete(c.recipients, r.Name)
		return nil
	})
	if err != nil {
		return err
	}
	for name, r := range c.recipients {
		return violate(r.Leaf, "it designates backup recipient %q, which the database does not have", name)
	}
	err = src.BackupRows(ctx, func(b BackupRow) error {
		at := backupOf{b.Key, b.Recipient}
		if c.backups[at] != b {
			return violate(b.Leaf, "a key of backup recipient %q is in the database in a way that no entry says", b.Recipient)
		}
		delete(c.backups, at)
		return nil
	})
	if err != nil {
		return err
	}
	for _, b := range c.backups {
		return violate(b.Leaf, "it wraps a key to backup recipient %q, which the database does not have", b.Recipient)
	}
	return nil
}
