package link

import (
	"cmp"
	"log/slog"
	"slices"
	"time"

	"reverser/internal/wire"
)

// What a peer holds of the memory for windows comes free when it acknowledges. A stalled peer acknowledges nothing: it is away, or it
// wants to hold the memory. While others need memory, it loses what it holds beyond the floors.

// withdrawAfter is for how long a peer must have acknowledged nothing that waits for it.
const withdrawAfter = 30 * time.Second

// stall is what withdraw saw of the peer's silence.
type stall struct {
	since time.Duration // 0: nothing waited for the peer
	acked uint64        // core.acked then
}

// withdraw frees memory where the peer has acknowledged nothing since a call withdrawAfter ago that saw something wait for it. Credit that
// was not used is lent to others while there is no connection that could use it. As long as scarce says so, the streams of this end
// that hold most are forgotten; the events say which. The other end's streams are not this end's to forget.
func (c *core) withdraw(now time.Duration, scarce func() bool) (events []event) {
	if c.stall.acked != c.acked {
		c.stall = stall{acked: c.acked}
	}
	var waiting []*streamCore // that this end may forget
	waits := false
	for _, s := range c.streams {
		unused := c.bound == 0 && s.recv.charged > s.recv.lent
		if s.send.charged > 0 && c.mine(s.id) {
			waiting = append(waiting, s)
		}
		waits = waits || unused || s.send.charged > 0
	}
	switch {
	case !waits:
		c.stall.since = 0
		return nil
	case c.stall.since == 0:
		c.stall.since = now
		return nil
	case now-c.stall.since < withdrawAfter:
		return nil
	}
	if c.bound == 0 {
		for _, s := range c.sorted() {
			s.recv.lend(c.budget)
		}
	}
	slices.SortFunc(waiting, func(a, b *streamCore) int {
		return cmp.Or(cmp.Compare(b.send.charged, a.send.charged), cmp.Compare(a.id, b.id))
	})
	for _, s := range waiting {
		if !scarce() {
			break
		}
		s.send.code = wire.CodeLimit
		c.remove(s)
		if s.openSent { // without a connection, too: the table of the next one may be on its way already, and have it
			c.forgets = append(c.forgets, s.id)
		}
		events = append(events, event{kind: evReset, stream: s})
	}
	return events
}

// lend lets others use the credit that the peer has not used.
func (r *recvHalf) lend(b *share) {
	if n := r.charged - r.lent - max(r.held()-floorWindow, 0); n > 0 && b.pool.lent.Load()+n <= b.pool.size {
		r.lent += n
		b.lend(n)
	}
}

// takeBack charges what was lent again: the peer is back and may use it.
func (c *core) takeBack() {
	for _, s := range c.streams {
		s.recv.takeBack(c.budget)
	}
}

func (r *recvHalf) takeBack(b *share) {
	if r.lent > 0 {
		b.lend(-r.lent)
		r.lent = 0
	}
}

// withdraw frees the memory that the peer holds although it is stalled.
func (l *Link) withdraw() {
	reset := 0
	for _, sl := range l.slots[1:] {
		sl.mu.Lock()
		if !sl.frozen {
			events := sl.core.withdraw(l.now(), l.share.pool.scarce)
			for _, ev := range events {
				sl.handle(ev)
			}
			if reset += len(events); len(events) > 0 {
				sl.wake()
			}
		}
		sl.mu.Unlock()
	}
	if reset > 0 {
		l.say(l, slog.LevelWarn, "memory for windows was short: connections were reset whose bytes the peer did not acknowledge",
			"host", l.peerName, "connections", reset, "for", withdrawAfter)
	}
}
