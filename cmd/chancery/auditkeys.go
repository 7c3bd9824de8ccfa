package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/dbstore"
)

// checkpointKeys are the keys that sign checkpoints, by leaf 0 and the births in a database.
func checkpointKeys(ctx context.Context, st *dbstore.Store) (audit.LedgerID, string, [][]byte, error) {
	keys, err := st.Keys(ctx)
	if err != nil {
		return audit.LedgerID{}, "", nil, err
	}
	return audit.CheckpointKeys(ctx, st, checkpointBirths(keys))
}

// checkpointKey is one line of audit keys.
type checkpointKey struct {
	Verifier string `json:"verifier"` // C2SP signed-note
	Name     string `json:"name"`
	State    string `json:"state"`
	Entry    uint64 `json:"entry"` // that names it
}

func auditKeysCommand() *cobra.Command {
	var at snapshotFlags
	var asJSON bool
	c := &cobra.Command{
		Use: "keys [--dir DIR | --config FILE]", Short: "Print the keys that sign checkpoints, for others to verify with",
		Long: "Prints each checkpoint key as a verifier key of C2SP signed-note, name+ID+key, which tools for transparency\n" +
			"logs take: give them to whoever keeps checkpoints of this ledger. Keys of entry 0 are bound to the ledger's id;\n" +
			"those of members that joined later are of the entry of their birth, which officers granted. One valid line\n" +
			"makes a checkpoint; keys that are not usable any more signed older ones.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := at.config(c)
			if err != nil {
				return err
			}
			st, err := dbstore.OpenSnapshot(c.Context(), cfg.Database)
			if err != nil {
				return err
			}
			defer st.Close()
			list, err := checkpointKeyList(c.Context(), st)
			if err != nil {
				return fmt.Errorf("ledger of %s: %w", at.name(c), err)
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(list)
			}
			for _, k := range list {
				if _, err := fmt.Fprintf(c.OutOrStdout(), "%s  %s, %s, entry %d\n", visible(k.Verifier), visible(k.Name), visible(k.State), k.Entry); err != nil {
					return err
				}
			}
			return nil
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print them as JSON")
	return c
}

// checkpointKeyList lists the keys that the ledger names, with what the database adds.
func checkpointKeyList(ctx context.Context, st *dbstore.Store) ([]checkpointKey, error) {
	_, origin, spkis, err := checkpointKeys(ctx, st)
	if err != nil {
		return nil, err
	}
	records, err := st.Keys(ctx)
	if err != nil {
		return nil, err
	}
	out := []checkpointKey{}
	for _, spki := range spkis {
		v, err := audit.VerifierKey(origin, spki)
		if err != nil {
			return nil, err
		}
		k := checkpointKey{Verifier: v, State: "not in the database"}
		for _, r := range records {
			if string(r.SPKI) == string(spki) {
				k.Name, k.State, k.Entry = r.Name, string(r.State), r.Birth
			}
		}
		out = append(out, k)
	}
	return out, nil
}
