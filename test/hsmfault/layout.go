package hsmfault

import (
	"fmt"
	"hash/fnv"
	"reflect"
	"strings"
	"sync/atomic"
	"unicode"
)

// Sizes of tables in the control file.
const (
	maxFunctions = 32
	maxHidden    = 32
	maxUsers     = 64
	maxBirths    = 256
	maxForgeries = 64
	maxSigners   = 256
	maxData      = 128
	maxSignature = 512
	maxPIN       = 64
)

// control is struct control of module.c: same names, same order, same offsets.
type control struct {
	layout         atomic.Uint64
	latency        atomic.Uint64
	service        atomic.Uint64
	nextFree       atomic.Uint64
	memo           atomic.Uint64
	lazyInit       atomic.Uint64
	sessionCap     atomic.Uint64
	throttle       atomic.Uint64
	throttleRv     atomic.Uint64
	throttleWindow atomic.Uint64
	invisible      atomic.Uint64
	flaky          atomic.Uint64
	flakyPermille  atomic.Uint64
	flakyRolls     atomic.Uint64
	sessionEpoch   atomic.Uint64
	sessionRv      atomic.Uint64
	flightEpoch    atomic.Uint64
	flightRv       atomic.Uint64
	stallUntil     atomic.Uint64
	closeLeft      atomic.Uint64
	hang           atomic.Uint64
	crash          atomic.Uint64
	crashFunction  atomic.Uint64
	crashLeft      atomic.Uint64
	wrong          atomic.Uint64
	wrongLeft      atomic.Uint64
	rng            atomic.Uint64
	rngSeed        atomic.Uint64
	absent         atomic.Uint64
	noExport       atomic.Uint64
	oneHop         atomic.Uint64
	protectedPath  atomic.Uint64
	quorumNeeded   atomic.Uint64
	quorumGiven    atomic.Uint64
	quorumRefused  atomic.Uint64
	quorumAsked    atomic.Uint64
	soLogins       atomic.Uint64
	serialSet      atomic.Uint64
	labelSet       atomic.Uint64
	hiddenLen      atomic.Uint64
	birthsNext     atomic.Uint64
	lastBirth      atomic.Uint64
	lock           atomic.Uint64
	serial         [16]byte
	label          [32]byte
	soPin          [maxPIN]byte
	hidden         [maxHidden]atomic.Uint64
	counts         [maxFunctions]atomic.Uint64
	failRv         [maxFunctions]atomic.Uint64
	failLeft       [maxFunctions]atomic.Uint64
	users          [maxUsers]struct{ pid, sessions atomic.Uint64 }
	births         [maxBirths]struct{ identity, born atomic.Uint64 }
	forgeries      [maxForgeries]forgery
	signers        [maxSigners]struct{ identity, count atomic.Uint64 }
}

// forgery is struct forged of module.c.
type forgery struct {
	used         atomic.Uint64 // set last
	hits         atomic.Uint64
	dataLen      atomic.Uint64
	signatureLen atomic.Uint64
	data         [maxData]byte
	signature    [maxSignature]byte
}

// layoutHash is FNV-1a over names and offsets; the module refuses a control file
// that has another one than it computes itself.
func layoutHash() uint64 {
	h := fnv.New64a()
	t := reflect.TypeFor[control]()
	for i := range t.NumField() {
		fmt.Fprintf(h, "%s@%d\n", snake(t.Field(i).Name), t.Field(i).Offset)
	}
	fmt.Fprintf(h, "size@%d\n", t.Size())
	return h.Sum64()
}

// snake turns sessionCap into session_cap.
func snake(name string) string {
	var b strings.Builder
	for _, r := range name {
		if unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
