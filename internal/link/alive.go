package link

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// Is a connection alive? Anything read counts as life: a PONG behind bulk data may be late. An end that hears nothing asks,
// and gives the connection up when that goes on. The bridge, which can, does not wait for that: when its question stays
// unanswered it dials another connection, and the present one has until then to answer. Not just to speak: behind an outage each
// end's TCP sends again what was lost when its own timer says so, at ever longer intervals. What the bridge hears does not show
// that it is heard, and may come seconds before that.
const (
	pingAfter = 5 * time.Second  // of silence
	pingUsed  = 2 * time.Second  // of silence, where streams moved within pingAfter: users are waiting
	dialAfter = time.Second      // after the PING the bridge dials another connection, or 4 round trips
	deadAfter = 15 * time.Second // of silence, or of a write that makes no progress, or 8 round trips

	// After a change of the network the question is asked at once.
	suspectAfter = 250 * time.Millisecond // until the bridge dials another connection, or 2 round trips
	replaceAfter = time.Second            // until that may take the slot, or 8 round trips

	graceMost    = 5 * time.Second        // however long the round trips seem: they are measured under load too
	suspectEvery = 100 * time.Millisecond // how often a connection suspect is looked at
)

// standing is what a slot's connection is worth.
type standing int

const (
	good    standing = iota
	suspect          // it was asked for a sign of life: have another one ready
	over             // none, or one that did not answer: attach another one
)

// standing says what the slot's connection is worth now, and returns a channel that is closed when that may have changed.
func (sl *slot) standing() (standing, <-chan struct{}) {
	changed := sl.news.wait()
	sl.mu.Lock()
	defer sl.mu.Unlock()
	c := sl.cur
	switch {
	case sl.frozen:
		return good, changed // nothing is to be done now
	case c == nil || c.addrGone:
		return over, changed
	}
	waited, rtt := sl.link.now()-c.suspectSince, sl.core.rtt
	switch {
	case c.suspectSince == 0 || waited < min(max(suspectAfter, 2*rtt), graceMost):
		return good, changed
	case waited < min(max(replaceAfter, 8*rtt), graceMost):
		return suspect, changed
	}
	return over, changed
}

// networkChanged asks the slot's connection for a sign of life, because the network changed. gone reports whether a local address
// exists no more; nothing can arrive there.
func (sl *slot) networkChanged(gone func(net.Addr) bool) {
	sl.mu.Lock()
	c := sl.cur
	sl.mu.Unlock()
	if c == nil {
		return
	}
	moved := gone != nil && gone(c.conn.LocalAddr())
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.cur != c {
		return
	}
	now := sl.link.now()
	c.addrGone = c.addrGone || moved
	if c.suspectSince == 0 {
		c.suspectSince = now
	}
	c.ping(now)
	sl.news.ring()
	if c.watch != nil {
		c.watch.Reset(suspectEvery)
	}
}

// ping has the writer send a PING. slot.mu is held.
func (c *carrier) ping(now time.Duration) {
	c.pingedAt = now
	c.slot.core.askPong()
	c.slot.wake()
}

// ponged ends the suspicion of a connection whose peer answered a PING of that time: one from before the question may have
// been on its way when the network changed. slot.mu is held.
func (c *carrier) ponged(sent time.Duration) {
	if c.suspectSince != 0 && sent >= c.suspectSince {
		c.suspectSince, c.mustAnswer = 0, false
		c.slot.news.ring()
	}
}

// streamsMoved notes that streams move on the connection. slot.mu is held.
func (c *carrier) streamsMoved(now time.Duration) {
	if (c.streamsAt == 0 || now-c.streamsAt >= pingAfter) && c.suspectSince == 0 {
		c.watch.Reset(pingUsed)
	}
	c.streamsAt = now
}

// checkAlive is called by a timer: it asks for a sign of life, makes it suspect, and ends the connection when it stayed silent.
func (c *carrier) checkAlive() {
	sl := c.slot
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.cur != c {
		return
	}
	now, heard, write := sl.link.now(), time.Duration(c.lastRead.Load()), time.Duration(c.writing.Load())
	silent, limit := now-heard, max(deadAfter, 8*sl.core.rtt)
	ask := pingAfter
	if c.streamsAt != 0 && heard-c.streamsAt < pingAfter {
		ask = pingUsed
	}
	spare := ask + min(max(dialAfter, 4*sl.core.rtt), graceMost)
	switch {
	case silent >= limit:
		sl.fence(fmt.Errorf("nothing was heard for %s", silent.Round(time.Second)))
		return
	case write != 0 && now-write >= limit && silent >= pingAfter:
		sl.fence(fmt.Errorf("a write made no progress for %s", (now - write).Round(time.Second)))
		return
	}
	if c.suspectSince != 0 && !c.mustAnswer && heard > c.suspectSince+suspectAfter { // not what had arrived before the network changed
		c.ponged(c.suspectSince)
	}
	if silent >= ask && now-c.pingedAt >= ask/2 {
		c.ping(now)
	}
	if silent >= spare && sl.link.dials {
		c.mustAnswer = true
		if c.suspectSince == 0 {
			c.suspectSince = heard + ask // when the first PING of this silence went out
		}
	}
	switch {
	case c.suspectSince != 0:
		sl.news.ring() // time passes
		c.watch.Reset(suspectEvery)
	case silent < ask:
		c.watch.Reset(ask - silent)
	case silent < spare && sl.link.dials:
		c.watch.Reset(spare - silent)
	default:
		c.watch.Reset(min(pingAfter/2, limit-silent))
	}
}

// silence is why a connection that is over in the sense of standing is given up.
func (c *carrier) silence() error {
	if c.addrGone {
		return fmt.Errorf("the local address %s is gone", c.conn.LocalAddr())
	}
	now, heard := c.slot.link.now(), time.Duration(c.lastRead.Load())
	if heard > c.suspectSince && c.suspectSince != 0 {
		return fmt.Errorf("it did not answer for %s", (now - c.suspectSince).Round(100*time.Millisecond))
	}
	return fmt.Errorf("nothing was heard for %s", (now - heard).Round(100*time.Millisecond))
}

// bell wakes everybody who waits for it.
type bell struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu; nil while nobody waits
}

// wait returns a channel that the next ring closes.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
