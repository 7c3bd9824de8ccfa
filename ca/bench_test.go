package ca_test

import (
	"context"
	"testing"

	"chancery/ca"
)

// BenchmarkPrepare is everything before the intent: CSR, names, key, TBS, lint.
func BenchmarkPrepare(b *testing.B) {
	h := home(b)
	of := map[string]request{"P-256": asking(dns("www.lab.example")), "RSA-2048": {signer: rsaKey(), attrs: asking(dns("www.lab.example")).attrs}}
	for _, name := range []string{"P-256", "RSA-2048"} {
		csr := of[name].der()
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := h.prepare(csr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIssue is a certificate from the CSR to the commit of its row, by callers
// in parallel, on two SoftHSM members and SQLite with full durability.
func BenchmarkIssue(b *testing.B) {
	h := home(b)
	csr := good()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p, err := h.authority.Prepare(context.Background(), ca.Request{Profile: "tls-server", CSR: csr, Requester: "bench", Client: "192.0.2.1"})
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := h.authority.Issue(context.Background(), p, ca.Projections{}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}
