package link

import (
	"fmt"
	"math"
	"net"
	"sync"
	"time"
)

// Is a connection alive? Anything read counts as life: a PONG behind bulk data may be late. An end that hears nothing asks,
// and gives the connection up when that goes on. The bridge, which can, does not wait for that: when its question stays
// unanswered it dials another connection, and the present one has until then to answer. Not just to speak: behind an outage each
// end's TCP sends again what was lost when its own timer says so, at ever longer intervals. What the bridge hears does not show
// that it is heard, and may come seconds before that.
//
// Where nothing moves, only the control connection is asked, and seldom: see idle.go.
const (
	pingAfter = 5 * time.Second  // of silence
	pingUsed  = 2 * time.Second  // of silence, where streams moved within pingAfter: users are waiting
	dialAfter = time.Second      // after the PING the bridge dials another connection, or 4 round trips
	deadAfter = 15 * time.Second // of silence, or of a write that makes no progress, or 8 round trips

	// After a change of the network, and when a stream has something to send after a silence, the question is asked at once.
	suspectAfter = 250 * time.Millisecond // until the bridge dials another connection, or 2 round trips
	replaceAfter = time.Second            // until that may take the slot, or 8 round trips

	graceMost    = 5 * time.Second        // however long the round trips seem: they are measured under load too
	suspectEvery = 100 * time.Millisecond // how often a connection suspect is looked at

	never = time.Duration(math.MaxInt64) // as a time of the link's clock
)

// standing is what a slot's connection is worth.
type standing int

const (
	good    standing = iota
	suspect          // it was asked for a sign of life: have another one ready
	over             // none, or one that did not answer: attach another one
)

// standing returns the state of the slot's connection, and a channel that is closed when that may have changed.
func (sl *slot) standing() (standing, <-chan struct{}) {
	changed := sl.news.wait()
	sl.mu.Lock()
	defer sl.mu.Unlock()
	c := sl.cur
	switch {
	case sl.frozen, c == nil && sl.resting:
		return good, changed // nothing is to be done now
	case c == nil || c.overdue():
		return over, changed
	case c.outdated && !sl.link.leaving.final.Load(): // no other one takes the place of the last one
		return over, changed
	}
	if rtt := sl.core.rtt; c.suspectSince == 0 || sl.link.now()-c.suspectSince < min(max(suspectAfter, 2*rtt), graceMost) {
		return good, changed
	}
	return suspect, changed
}

// overdue reports whether the connection is given up: its local address is gone, or it did not answer in time. slot.mu is held.
func (c *carrier) overdue() bool {
	return c.addrGone || c.suspectSince != 0 && c.slot.link.now()-c.suspectSince >= min(max(replaceAfter, 8*c.slot.core.rtt), graceMost)
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
	c.addrGone = c.addrGone || moved
	c.suspect(sl.link.now())
}

// suspect asks for a sign of life at once. The bridge dials another connection when the answer does not come soon. slot.mu is held,
// and may be released meanwhile.
func (c *carrier) suspect(now time.Duration) {
	if c.suspectSince == 0 {
		c.suspectSince = now
	}
	c.slot.news.ring()
	c.watchBy(now + suspectEvery)
	c.ping(now)
}

// ping sends a PING. slot.mu is held, and may be released meanwhile.
func (c *carrier) ping(now time.Duration) {
	c.ask(now)
	if c.writer == absent {
		c.send(false)
	} else {
		c.slot.wake()
	}
}

// ask adds a PING to the next batch. slot.mu is held.
func (c *carrier) ask(now time.Duration) {
	if !c.unanswered() {
		c.askedAt = now
	}
	c.pingedAt = now
	c.slot.core.askPong()
	c.watchBy(now + pingAfter/2)
}

// unanswered reports whether nothing was read since a PING was asked for. slot.mu is held.
func (c *carrier) unanswered() bool { return c.askedAt > time.Duration(c.lastRead.Load()) }

// answerBy is when d, or n round trips if that is longer, have passed since an unanswered PING; never: there is none. slot.mu is
// held.
func (c *carrier) answerBy(d time.Duration, n int) time.Duration {
	if !c.unanswered() {
		return never
	}
	return c.askedAt + min(max(d, time.Duration(n)*c.slot.core.rtt), graceMost)
}

// watchBy has checkAlive called by then at the latest. slot.mu is held.
func (c *carrier) watchBy(at time.Duration) {
	if c.watch != nil && at < c.watchAt {
		c.watchAt = at
		c.watch.Reset(max(at-c.slot.link.now(), soonest))
	}
}

// ponged ends the suspicion of a connection whose peer answered a PING of that time: one from before the question may have
// been on its way when the network changed. slot.mu is held.
func (c *carrier) ponged(sent time.Duration) {
	if c.suspectSince != 0 && sent >= c.suspectSince {
		c.suspectSince, c.mustAnswer = 0, false
		c.slot.news.ring()
	}
}

// streamsMoved notes that a frame of a stream came on the connection. slot.mu is held.
func (c *carrier) streamsMoved(now time.Duration) {
	if c.streamsAt == 0 || now-c.streamsAt >= pingAfter {
		c.watchBy(now + pingUsed)
	}
	if now-c.streamsAt >= time.Second {
		c.slot.link.upkeep.moved.Store(int64(now))
	}
	c.streamsAt = now
}

// expectAnswer notes that a batch of streams' frames is about to go out. After a silence a PING goes with it, with a short
// deadline, since the connection may have died unnoticed. slot.mu is held.
func (c *carrier) expectAnswer(now time.Duration) {
	heard := time.Duration(c.lastRead.Load())
	if c.sentAt > heard { // noted
		return
	}
	c.sentAt = now
	c.slot.link.upkeep.moved.Store(int64(now))
	if now-heard < pingAfter || c.unanswered() {
		c.watchBy(now + pingUsed)
		return
	}
	c.ask(now)
	c.prompted = now
	if c.slot.link.dials && c.suspectSince == 0 {
		c.suspectSince = now
		c.slot.news.ring()
	}
	c.watchBy(now + suspectEvery)
}

// checkAlive is called by a timer: it asks for a sign of life, makes the connection suspect, and ends it when it stayed silent.
func (c *carrier) checkAlive() {
	sl := c.slot
	sl.mu.Lock()
	silent := false
	if sl.cur == c {
		c.watchAt = never
		silent = c.checkLocked()
	}
	sl.mu.Unlock()
	switch {
	case silent && sl.index == 0:
		sl.link.suspectCarriers()
	case silent:
		sl.link.check(sl)
	}
}

// checkLocked reports whether other slots have to do with what it found: a PING that is unanswered, on the control connection at
// the bridge or on a carrier at the proxy. It says so once for each. slot.mu is held.
func (c *carrier) checkLocked() (silent bool) {
	sl := c.slot
	now, heard, write := sl.link.now(), time.Duration(c.lastRead.Load()), time.Duration(c.writing.Load())
	ask := c.askAfter(heard)
	due := heard + min(ask, never-max(heard, 0))
	if c.sentAt > heard {
		due = min(due, c.sentAt+pingUsed)
	}
	again := pingAfter / 2
	if ask == pingUsed {
		again = pingUsed / 2
	}
	if c.suspectSince != 0 && !c.mustAnswer && heard > c.suspectSince+suspectAfter { // not what had arrived before the question
		c.ponged(c.suspectSince)
	}
	if (now >= due || c.unanswered()) && now-c.pingedAt >= again {
		c.ping(now)
		heard = time.Duration(c.lastRead.Load()) // the answer may be there already
	}
	c.restWhenIdle(now)
	if now-max(c.streamsAt, c.sentAt, sl.since) >= pingUsed {
		c.dismissWriter()
	}
	dead := c.deadAt(heard, ask)
	switch {
	case sl.cur != c:
		return false
	case now >= dead:
		sl.fence(fmt.Errorf("nothing was heard for %s", (now - heard).Round(time.Second)))
		return false
	case write != 0 && now-write >= max(deadAfter, 8*sl.core.rtt) && now-heard >= pingAfter:
		sl.fence(fmt.Errorf("a write made no progress for %s", (now - write).Round(time.Second)))
		return false
	}
	next := min(dead, c.restAt())
	switch answer := c.answerBy(dialAfter, 4); {
	case !sl.link.dials:
	case now < answer:
		next = min(next, answer)
	default:
		silent = sl.index == 0 && !c.mustAnswer
		c.mustAnswer = true
		if c.suspectSince == 0 {
			c.suspectSince = c.askedAt
		}
	}
	switch answer := c.answerBy(suspectAfter, 2); {
	case sl.link.dials || sl.index == 0 || c.told == c.askedAt:
	case now < answer:
		next = min(next, answer)
	default:
		c.told = c.askedAt
		silent = true
	}
	switch {
	case c.suspectSince != 0:
		sl.news.ring() // time passes
		next = min(next, now+suspectEvery)
	case c.unanswered() || now >= due:
		next = min(next, c.pingedAt+again)
	default:
		next = min(next, due)
	}
	c.watchBy(next)
	return silent
}

// askAfter is after how much silence a PING is due; never: none is. slot.mu is held.
func (c *carrier) askAfter(heard time.Duration) time.Duration {
	if c.streamsAt != 0 && heard-c.streamsAt < pingAfter {
		return pingUsed
	}
	ask := c.slot.link.upkeep.askAfter(c.slot, heard)
	if ask == never && c.relayed {
		return c.slot.link.upkeep.interval()
	}
	return ask
}

// deadAt is when the connection is given up if nothing is read any more. slot.mu is held.
func (c *carrier) deadAt(heard, ask time.Duration) time.Duration {
	unanswered := c.askedAt > heard // by what heard is: more may be read at any time
	patience := max(deadAfter, 8*c.slot.core.rtt)
	switch {
	case unanswered && c.prompted == c.askedAt:
		// The peer may find out only by its own next question, on the control connection. Until then users are held.
		return c.askedAt + patience + c.slot.link.upkeep.interval()
	case ask == never && unanswered:
		return c.askedAt + patience
	case ask == never:
		return never
	}
	dead := heard + max(patience, ask+deadAfter-pingAfter)
	if unanswered { // it may have been asked late: ask is shorter when users come to an idle link
		dead = max(dead, c.askedAt+deadAfter-pingAfter)
	}
	return dead
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
