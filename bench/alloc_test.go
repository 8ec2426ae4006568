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
	before := memory()
	echoes(n)
	after := memory()
	each := float64(after.Mallocs-before.Mallocs) / n
	t.Logf("%.3f allocations for each message", each)
	if each > 0.2 {
		t.Errorf("%.2f allocations for each message there and back, want none", each)
	}
}
