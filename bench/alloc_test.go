//go:build !race

package bench

import (
	"io"
	"testing"
)

// TestSteadyStateAllocatesNothing: a small message there and back, through sockets, pairs, link and the pollers of both roles, needs no
// new memory. Now and then something does that is not a message's: a timer, a window that grows. (The race detector makes pools forget.)
func TestSteadyStateAllocatesNothing(t *testing.T) {
	c := dial(t, tunnel(t, server(t, echo)))
	defer c.Close()
	buf := make([]byte, 128)
	echoes := func(n int) {
		for range n {
			if _, err := c.Write(buf); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				t.Fatal(err)
			}
		}
	}
	const n = 5000
	echoes(n)
	// What a message needs, it needs in each round. Other things happen in some: on a busy machine the link still gets connections, whose
	// handshakes need much.
	for round := 1; ; round++ {
		before := memory()
		echoes(n)
		after := memory()
		each := float64(after.Mallocs-before.Mallocs) / n
		t.Logf("%.3f allocations for each message", each)
		if each <= 0.2 {
			return
		}
		if round == 10 {
			t.Fatalf("%.2f allocations for each message there and back, want none", each)
		}
	}
}
