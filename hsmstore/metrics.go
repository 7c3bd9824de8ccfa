package hsmstore

import "maps"

// Stats is the cluster in numbers, at one moment. Counters begin with the server.
type Stats struct {
	Members   []MemberSnapshot // in the order of [Store.Members]
	Failovers uint64           // attempts that another attempt followed
	Waiting   map[string]int   // operations that wait for a place, by class: revocation, ocsp, api, bulk
	Running   int              // operations that have a place
	Findings  int              // differences of the last [Store.Verify]; -1 before the first
}

// MemberSnapshot is one member in [Stats].
type MemberSnapshot struct {
	MemberStatus
	MemberStats
}

// classNames are the classes in words for people and metrics.
var classNames = map[Class]string{ClassRevocation: "revocation", ClassOCSP: "ocsp", ClassAPI: "api", ClassBulk: "bulk"}

// Stats reads every counter. The numbers of one member belong together, those of two
// may be a moment apart.
func (s *Store) Stats() Stats {
	out := Stats{Failovers: s.failovers.Load(), Waiting: map[string]int{}, Findings: -1}
	for _, m := range s.list() {
		out.Members = append(out.Members, MemberSnapshot{m.current(), m.stats.snapshot()})
	}
	waiting, running := s.queue.depth()
	for class, name := range classNames {
		out.Waiting[name] = waiting[class]
	}
	out.Running = running
	if d, ok := s.LastDrift(); ok {
		out.Findings = len(d.Findings)
	}
	return out
}

// snapshot is a copy of the counters.
func (s *stats) snapshot() MemberStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.MemberStats
	out.Signatures = maps.Clone(s.Signatures)
	return out
}

// Total is how many signatures there were.
func (s MemberStats) Total() (n uint64) {
	for _, c := range s.Signatures {
		n += c
	}
	return n
}
