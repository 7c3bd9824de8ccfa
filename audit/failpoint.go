//go:build !failpoint

package audit

// Failpoint marks a place where the crash tests end the process (build tag failpoint).
// In a real program it is nothing.
func Failpoint(string) {}
