//go:build !race

package hsmstore_test

const raceEnabled = false
