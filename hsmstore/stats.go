package hsmstore

import (
	"errors"
	"sync"
	"time"

	"chancery/audit"
)

// Buckets are the upper bounds of the latency histogram of [MemberStats].
var Buckets = [...]time.Duration{100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 5 * time.Second}

// Use is one kind of use of a member.
type Use struct {
	Purpose   audit.Purpose
	Mechanism string // CKM_…
}

// MemberStats are the counters of one member since the start of the server.
type MemberStats struct {
	Signatures map[Use]uint64
	Latency    [len(Buckets) + 1]uint64 // signatures by time, request to answer; the last is beyond all Buckets
	Sum        time.Duration
	Failures   uint64 // attempts that gave no signature
	Deadlines  uint64 // of those: not in time
}

// stats counts for one member.
type stats struct {
	mu sync.Mutex
	MemberStats
}

func (s *stats) signed(k *Key, d time.Duration) {
	i := 0
	for i < len(Buckets) && d > Buckets[i] {
		i++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Signatures == nil {
		s.Signatures = map[Use]uint64{}
	}
	s.Signatures[Use{k.purpose, k.alg.mechanismName()}]++
	s.Latency[i]++
	s.Sum += d
}

func (s *stats) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Failures++
	if errors.Is(err, errDeadline) {
		s.Deadlines++
	}
}
