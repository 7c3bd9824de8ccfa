package hsmstore

import "maps"

// Stats is a snapshot of the cluster's counters since the start of the server.
type Stats struct {
	Members   []MemberSnapshot
	Failovers uint64        // attempts that another attempt followed
	Waiting   map[Class]int // operations that wait for a place, by class
	Running   int           // signatures under way
	Findings  int           // of the last check of keys; see [Drift]
}

// MemberSnapshot is a member with its counters.
type MemberSnapshot struct {
	MemberStatus
	MemberStats
}

func (c Class) String() string {
	return [...]string{ClassAPI: "api", ClassRevocation: "revocation", ClassOCSP: "ocsp", ClassBulk: "bulk"}[min(c, ClassBulk)]
}

// Stats takes a snapshot.
func (s *Store) Stats() Stats {
	out := Stats{Failovers: s.failovers.Load(), Waiting: map[Class]int{}}
	waiting, running := s.queue.depth()
	out.Running = running
	for c, n := range waiting {
		out.Waiting[Class(c)] = n
	}
	for _, m := range s.list() {
		one := MemberSnapshot{MemberStatus: m.shown()}
		m.stats.mu.Lock()
		one.MemberStats = m.stats.MemberStats
		one.Signatures = maps.Clone(m.stats.Signatures)
		m.stats.mu.Unlock()
		out.Members = append(out.Members, one)
	}
	if d, ok := s.LastDrift(); ok {
		out.Findings = len(d.Findings)
	}
	return out
}
