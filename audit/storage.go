package audit

import (
	"context"
	"errors"

	"golang.org/x/mod/sumdb/tlog"
)

// Sentinels to branch on; specific errors are wrapped around them.
var (
	// ErrUnavailable: the ledger cannot be written now. Nothing was changed; try later.
	ErrUnavailable = errors.New("ledger unavailable")
	// ErrBusy: too much waits for the ledger. Nothing was changed; try later.
	ErrBusy = errors.New("ledger queue is full")
	// ErrConflict: a projection found another state than the one it expects.
	ErrConflict = errors.New("state changed meanwhile")
	// ErrExists: a projection would make something that is there already.
	ErrExists = errors.New("already exists")
	// ErrNotFound: there is no such row, leaf or tile.
	ErrNotFound = errors.New("not found")
	// ErrTampered: what is stored contradicts itself or what this process has seen.
	ErrTampered = errors.New("ledger was changed behind the server")
	// ErrUncertain: COMMIT gave no clear answer. It may have been made; the head tells.
	ErrUncertain = errors.New("outcome of a commit is not known")
	// ErrTogether: items that were stored together cannot be; see Tx.Item.
	ErrTogether = errors.New("an item of the batch failed")
	// ErrDisk: a disk lost what it had taken (fsync failed). Nothing more is written
	// until a restart, which reads what is really there.
	ErrDisk = errors.New("disk failed; mend it, then restart")
)

// Head is the state of the tree: its size and the compact range of its nodes,
// from which the root follows (RFC 6962 §2.1).
type Head struct {
	Size  uint64
	Range []tlog.Hash // left to right: one hash per set bit of Size, largest first
}

// StoredLeaf is a leaf as Storage keeps it.
type StoredLeaf struct {
	Index  uint64
	Kind   Kind
	Closes uint64 // NoIndex if none
	Node   string // of an intent: the node that must close it
	Bytes  []byte
}

// Tile is one full tile of the tree: 256 hashes of its level (C2SP tlog-tiles).
type Tile struct {
	Level int    // 0 holds leaf hashes, 1 the hashes over full tiles of level 0, …
	N     uint64 // number of the tile in its level
	Data  []byte // 8,192 octets
}

// Reader reads what is committed.
type Reader interface {
	Head(ctx context.Context) (Head, error)
	// Leaves calls fn for the leaves from..to-1 in order; a gap is an error that wraps ErrTampered.
	Leaves(ctx context.Context, from, to uint64, fn func(index uint64, leaf []byte) error) error
	// Tile returns one full tile, or an error that wraps ErrNotFound.
	Tile(ctx context.Context, level int, n uint64) ([]byte, error)
}

// Storage keeps the ledger. Package dbstore implements it on SQL.
type Storage interface {
	Reader
	// Update runs fn in the one write transaction of the ledger, holding the lock
	// on the head row, and commits if fn returns nil. When Update returns nil, all
	// that fn did is durable: it survives the loss of process and power. When it
	// returns an error, nothing was done; unless the error wraps ErrUncertain or
	// ErrDisk, then that is not known.
	Update(ctx context.Context, fn func(Tx) error) error
	// OpenNodes returns the nodes that have open intents.
	OpenNodes(ctx context.Context) ([]string, error)
	// LockDead takes the lock of another node, if that does not live: no process with
	// that node_id can write before release was called.
	LockDead(ctx context.Context, node string) (release func(), dead bool, err error)
	// OpenIntents returns the leaves of a node's intents that nothing closes.
	OpenIntents(ctx context.Context, node string) ([]StoredLeaf, error)
	// PutCheckpoint stores the body of a checkpoint before it is signed (note "")
	// and the signed note afterwards. A size once stored keeps its body: another one
	// is ErrTampered, both times.
	PutCheckpoint(ctx context.Context, size uint64, body, note string) error
	// Recoveries returns the indexes of the OpRecovery leaves that [PutRecovery] noted.
	Recoveries(ctx context.Context) ([]uint64, error)
	// RosterRows returns every roster that was ever in force, oldest first.
	RosterRows(ctx context.Context) ([]RosterRow, error)
	// LastCheckpoint returns the signed note with the largest size, or ErrNotFound.
	LastCheckpoint(ctx context.Context) (note string, err error)
	// Openings calls fn for the openings of each entry that a query selects, in the order
	// of entries. An error of fn ends it and is returned.
	Openings(ctx context.Context, q OpeningQuery, fn func(StoredOpenings) error) error
	// Scrub takes what was erased out of the files of the database as far as it can.
	Scrub(ctx context.Context) error
}

// Tx is one write transaction of [Storage.Update].
type Tx interface {
	Head() (Head, error)
	// Item runs fn so that its changes are undone, and nothing else, if it fails. A storage
	// for which that is dear may refuse it with ErrTogether when fn fails, or later when it
	// stores what it kept back: then the whole is undone and done again after Apart.
	Item(fn func() error) error
	// Apart asks for items that fail alone; it is called before anything else.
	Apart()
	// Apply carries out a projection. at is the leaf that it belongs to, or nil.
	Apply(p Projection, at *StoredLeaf) error
	// Append stores leaves, keeps the list of open intents and refuses to close
	// an intent twice (ErrConflict).
	Append(leaf StoredLeaf) error
	PutTiles([]Tile) error
	SetHead(Head) error
}
