package main

import "testing"

// A client cannot write a value that looks like several, or that a terminal obeys.
func TestPersonalText(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{"CN=Jane Roe", "CN=Jane Roe, dns:a.example (kept until 2033-01-02)"},
		{"CN=x, dns:victim.example", `"CN=x, dns:victim.example", dns:a.example (kept until 2033-01-02)`},
		{"CN=x (kept until 2099-01-01)", `"CN=x (kept until 2099-01-01)", dns:a.example (kept until 2033-01-02)`},
		{"CN=\u202exe\x1b[2J", `"CN=\u202exe\x1b[2J", dns:a.example (kept until 2033-01-02)`},
	} {
		p := personal{Name: "asked", Value: []string{c.value, "dns:a.example"}, RetainUntil: "2033-01-02"}
		if got := visible(p.text()); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}
