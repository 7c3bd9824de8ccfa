package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chancery/audit"
	"chancery/hsmstore"
)

// sampleStats has one member of everything.
func sampleStats() hsmstore.Stats {
	m := hsmstore.MemberSnapshot{MemberStatus: hsmstore.MemberStatus{Name: "alpha", State: hsmstore.Up, Sessions: 8, Outstanding: 3, Starts: 2}}
	m.Signatures = map[hsmstore.Use]uint64{{Purpose: audit.PurposeIssuer, Mechanism: "CKM_ECDSA"}: 5, {Purpose: audit.PurposeOCSP, Mechanism: "CKM_ECDSA"}: 2}
	m.Latency[0], m.Latency[3], m.Latency[len(hsmstore.Buckets)] = 4, 2, 1
	m.Sum, m.Failures, m.Deadlines = 7*time.Second, 3, 1
	return hsmstore.Stats{Members: []hsmstore.MemberSnapshot{m}, Failovers: 2, Waiting: map[hsmstore.Class]int{hsmstore.ClassOCSP: 6}, Running: 3, Findings: 1}
}

// A pedantic registry holds every metric against its description and against the others.
func TestMetricsAreConsistent(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(hsmMetrics{sampleStats}); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	ledger := prometheus.NewPedanticRegistry()
	ledger.MustRegister(ledgerMetrics{func() audit.Sweep {
		return audit.Sweep{Swept: 7, At: time.Now(), Alarms: []audit.Alarm{{Promise: "P4"}, {Promise: "P9", Closed: true}, {Promise: "P9"}}}
	}})
	found, err := ledger.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range found {
		for _, m := range f.Metric {
			label := ""
			for _, l := range m.Label {
				label = l.GetValue()
			}
			got[f.GetName()+label] = m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{"chancery_ledger_violationsP9": 2, "chancery_ledger_violationsP4": 1, "chancery_ledger_violationsP1": 0, "chancery_ledger_closed": 1,
		"chancery_ledger_swept": 7, "chancery_ledger_reread_age_seconds": -1} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	if len(families) != len(allMetrics) {
		t.Errorf("%d families of %d descriptions", len(families), len(allMetrics))
	}
	for _, f := range families {
		if f.GetName() != "chancery_hsm_sign_seconds" {
			continue
		}
		h := f.Metric[0].GetHistogram()
		if h.GetSampleCount() != 7 || h.GetSampleSum() != 7 || h.Bucket[0].GetCumulativeCount() != 4 || h.Bucket[len(h.Bucket)-1].GetCumulativeCount() != 6 {
			t.Errorf("histogram: %v", h)
		}
	}
}

// The listener answers /metrics to GET alone, and ends with its context.
func TestServeMetrics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serveMetrics(ctx, l, sampleStats, func() audit.Sweep { return audit.Sweep{} }, slog.New(slog.DiscardHandler))
	}()
	base := "http://" + l.Addr().String()
	for path, want := range map[string]int{"/metrics": 200, "/": 404, "/debug/pprof/": 404} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || want == 200 && !strings.Contains(string(b), `chancery_hsm_queue_waiting{class="ocsp"} 6`) {
			t.Errorf("GET %s: %d\n%s", path, resp.StatusCode, b)
		}
	}
	if resp, err := http.Post(base+"/metrics", "text/plain", http.NoBody); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: %v %v", resp, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
