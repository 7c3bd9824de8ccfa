//go:build race

package test

// The server under test is built with the race detector when the tests are.
func init() { buildFlags = append(buildFlags, "-race") }
