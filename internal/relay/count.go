package relay

import "sync/atomic"

// sharedCounter counts the bytes of one direction of a pair, chunk by chunk, and adds them to totals that others add to as well.
type sharedCounter struct {
	own    atomic.Uint64
	totals [2]*atomic.Uint64 // nil: there is none
}

func (c *sharedCounter) Add(n uint64) {
	c.own.Add(n)
	if n == 0 {
		return
	}
	for _, t := range c.totals {
		if t != nil {
			t.Add(n)
		}
	}
}

func (c *sharedCounter) Load() uint64 { return c.own.Load() }

// set takes over a count that was in the total before.
func (c *sharedCounter) set(n uint64) { c.own.Store(n) }

// CountInto makes the pair add its bytes to totals as they move: those from client to target, and those on the way back. It is
// called before Start, twice at most: each call adds another two totals.
func (p *Pair) CountInto(sent, received *atomic.Uint64) {
	if p.side == Target {
		sent, received = received, sent
	}
	i := 0
	if p.outward.bytes.totals[0] != nil {
		i = 1
	}
	p.outward.bytes.totals[i], p.inward.bytes.totals[i] = sent, received
}

// Resumes counts how often the connection of the link was replaced under the pair.
func (p *Pair) Resumes() uint64 { return p.stream.Resumes() }

// Paused reports whether no connection of the link carries the pair at present.
func (p *Pair) Paused() bool { return p.stream.Paused() }
