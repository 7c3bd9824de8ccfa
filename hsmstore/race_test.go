//go:build race

package hsmstore_test

// raceEnabled: the race detector makes everything several times slower, which some
// bounds of time do not mean.
const raceEnabled = true
