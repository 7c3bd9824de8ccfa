package acme_test

import "testing"

// A whole order with client, validation, database and software CA in one process.
func BenchmarkOrder(b *testing.B) {
	h := newHouse(b)
	b.RunParallel(func(pb *testing.PB) {
		c := h.member()
		for pb.Next() {
			o := c.order("a.lab")
			c.prove(o.Authorizations[0])
			c.post(o.Finalize, csrFor(b, "a.lab")).into(b, 200, &o)
			c.post(o.Certificate, nil)
			c.post(o.Authorizations[0], map[string]any{"status": "deactivated"}) // so that the next order needs a proof
		}
	})
}

// newOrder with an account that has many open ones.
func BenchmarkNewOrder(b *testing.B) {
	h := newHouse(b)
	c := h.member()
	for i := 0; b.Loop(); i++ {
		if i%1000 == 999 {
			c = h.member()
		}
		c.order("a.lab")
	}
}
