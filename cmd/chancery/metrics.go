package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"chancery/audit"
	"chancery/hsmstore"
)

// hsmMetrics turns the cluster's counters into Prometheus metrics when it is asked for
// them; nothing is counted twice.
type hsmMetrics struct{ stats func() hsmstore.Stats }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("chancery_hsm_"+name, help, labels, nil)
}

var (
	memberState = describe("member_state", "1 for the state that the member is in.", "member", "state")
	inFlight    = describe("in_flight", "Signatures under way on the member.", "member")
	sessions    = describe("sessions", "Sessions that sign at the same time.", "member")
	signatures  = describe("signatures_total", "Signatures that were verified, by the key's purpose and the PKCS#11 mechanism.", "member", "purpose", "mechanism")
	signSeconds = describe("sign_seconds", "Time from request to verified signature.", "member")
	failures    = describe("failures_total", "Attempts that gave no signature.", "member")
	deadlines   = describe("deadlines_total", "Attempts that missed their deadline; the worker was killed.", "member")
	starts      = describe("worker_starts_total", "Worker processes started.", "member")
	failovers   = describe("failovers_total", "Attempts that another attempt followed.")
	waiting     = describe("queue_waiting", "Operations that wait for a place, by class.", "class")
	running     = describe("queue_running", "Signatures under way in the cluster.")
	findings    = describe("drift_findings", "Keys that differed from their birth at the last check.")
)

var allMetrics = []*prometheus.Desc{memberState, inFlight, sessions, signatures, signSeconds, failures, deadlines, starts, failovers, waiting, running, findings}

var memberStates = []hsmstore.State{hsmstore.Starting, hsmstore.Up, hsmstore.Suspect, hsmstore.Down, hsmstore.Fenced, hsmstore.Out, hsmstore.Joining, hsmstore.Absent}

// Describe implements prometheus.Collector.
func (m hsmMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range allMetrics {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m hsmMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := m.stats()
	for _, one := range s.Members {
		for _, state := range memberStates {
			v := 0.0
			if one.State == state {
				v = 1
			}
			gauge(memberState, v, one.Name, string(state))
		}
		gauge(inFlight, float64(one.Outstanding), one.Name)
		gauge(sessions, float64(one.Sessions), one.Name)
		counter(failures, one.Failures, one.Name)
		counter(deadlines, one.Deadlines, one.Name)
		counter(starts, one.Starts, one.Name)
		for use, n := range one.Signatures {
			counter(signatures, n, one.Name, use.Purpose.String(), use.Mechanism)
		}
		var n uint64
		buckets := map[float64]uint64{}
		for i, bound := range hsmstore.Buckets {
			n += one.Latency[i]
			buckets[bound.Seconds()] = n
		}
		n += one.Latency[len(hsmstore.Buckets)]
		ch <- prometheus.MustNewConstHistogram(signSeconds, n, one.Sum.Seconds(), buckets, one.Name)
	}
	counter(failovers, s.Failovers)
	for class, n := range s.Waiting {
		gauge(waiting, float64(n), class.String())
	}
	gauge(running, float64(s.Running))
	gauge(findings, float64(s.Findings))
}

// ledgerMetrics are what the sweeper has found.
type ledgerMetrics struct{ sweep func() audit.Sweep }

func describeLedger(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("chancery_ledger_"+name, help, labels, nil)
}

var (
	violations = describeLedger("violations", "Broken promises that stand, by promise.", "promise")
	closed     = describeLedger("closed", "1 while the ledger is closed and nothing is signed.")
	swept      = describeLedger("swept", "Entries below this index are checked.")
	sweptAge   = describeLedger("swept_age_seconds", "Time since the newest entry was reached; -1 before the first time.")
	reread     = describeLedger("reread", "Entries that the present round has read again.")
	rereadAge  = describeLedger("reread_age_seconds", "Time since a round has read all entries again; -1 before the first time.")
)

// promises are the values of the label, so that a series is there before it is needed.
var promises = []string{"P1", "P3", "P4", "P7", "P8", "P9", "surplus", "sweep"}

// Describe implements prometheus.Collector.
func (m ledgerMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{violations, closed, swept, sweptAge, reread, rereadAge} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m ledgerMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := m.sweep()
	count, shut := map[string]int{}, 0.0
	for _, a := range s.Alarms {
		count[a.Promise]++
		if a.Closed {
			shut = 1
		}
	}
	for _, p := range promises {
		gauge(violations, float64(count[p]), p)
	}
	age := func(t time.Time) float64 {
		if t.IsZero() {
			return -1
		}
		return time.Since(t).Seconds()
	}
	gauge(closed, shut)
	gauge(swept, float64(s.Swept))
	gauge(sweptAge, age(s.At))
	gauge(reread, float64(s.Reread))
	gauge(rereadAge, age(s.Whole))
}

// serveMetrics serves /metrics on a listener of its own until ctx ends. There is no
// secret in it, and no access control: bind it where only the monitoring gets.
func serveMetrics(ctx context.Context, l net.Listener, stats func() hsmstore.Stats, sweep func() audit.Sweep, log *slog.Logger) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(hsmMetrics{stats}, ledgerMetrics{sweep}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 4}))
	srv := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
