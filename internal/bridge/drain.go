package bridge

import (
	"time"

	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/wire"
)

// Drain announces the stop. The bridge serves on until another process takes its place at the proxy or nothing is left to
// serve; Run returns when the last pair has ended, or resets what is left after Config.Drain.
func (b *Bridge) Drain() {
	b.drainOnce.Do(func() {
		b.draining.Store(true)
		close(b.drain)
	})
}

func (b *Bridge) awaitDrain(d *link.Dialer) {
	select {
	case <-b.ctx.Done():
		return
	case <-b.drain:
	}
	d.Last()
	b.mu.Lock()
	b.drainEnd = time.Now().Add(b.cfg.Drain)
	links, pairs, busy := b.links(), len(b.pairs), b.busy
	b.mu.Unlock()
	b.log.Info("draining", "pairs", pairs, "dials", busy-pairs, "limit", b.cfg.Drain.Seconds())
	for _, l := range links {
		l.GoAway(b.cfg.Drain)
	}
	b.finish()
	b.endPairs(flushLimit)
	b.stop()
}

const (
	settleLimit = time.Second     // for hearing whom the proxy sent last
	shortPair   = 2 * time.Second // a pair that is younger may be over soon
	pauseLimit  = time.Second     // for such pairs, while newcomers wait at the proxy
	pauseEvery  = 5 * time.Second
)

// finish serves on until nobody is left, or the time of the drain is over. To come to an end with users who come and go all the
// time it has them wait at the proxy for a moment, where the next process gets them, when all who are here may be gone soon.
func (b *Bridge) finish() {
	b.mu.Lock()
	ends := b.drainEnd
	b.mu.Unlock()
	const look = 100 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	last := ends.Add(-min(pauseLimit, b.cfg.Drain/4)) // from then on nobody is to come who would be reset at the end
	for next := time.Now(); ; {
		now := time.Now()
		if !now.Before(last) {
			if b.sendNobody(); !b.awaitIdle(time.Until(ends)) && b.ctx.Err() == nil {
				b.log.Warn("drain time is over, resetting what is left")
			}
			return
		}
		if !now.Before(next) && b.endsSoon(now) {
			b.sendNobody()
			if b.awaitIdle(min(pauseLimit, time.Until(ends))) {
				return
			}
			b.serveOn()
			next = time.Now().Add(pauseEvery)
		}
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			return
		}
	}
}

// endsSoon reports whether all who are served may be gone soon.
func (b *Bridge) endsSoon(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy > len(b.pairs) { // on the way to a target, or with a Handle
		return false
	}
	for pr := range b.pairs {
		if now.Sub(pr.Since) > shortPair {
			return false
		}
	}
	return true
}

// awaitIdle waits up to d until nobody is served, and has nobody served any more if so.
func (b *Bridge) awaitIdle(d time.Duration) bool {
	b.mu.Lock()
	idle := make(chan struct{})
	if b.busy == 0 {
		close(idle)
	} else {
		b.idle = idle
	}
	b.mu.Unlock()
	late := time.NewTimer(d)
	defer late.Stop()
	select {
	case <-idle:
	case <-late.C:
	case <-b.ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.idle = nil
	b.ending = b.ending || b.busy == 0
	return b.busy == 0
}

// sendNobody has the proxy send no user for now: those who come wait there. It returns when all have come whom it sent before.
func (b *Bridge) sendNobody() {
	for _, l := range b.setClosing(true) {
		l.GoAway(0)
		l.Settle(settleLimit)
	}
}

// serveOn is the end of sendNobody.
func (b *Bridge) serveOn() {
	b.mu.Lock()
	left := time.Until(b.drainEnd)
	b.mu.Unlock()
	for _, l := range b.setClosing(false) {
		l.GoAway(max(left, time.Millisecond))
	}
}

// setClosing returns the links that are to be told.
func (b *Bridge) setClosing(closing bool) []*link.Link {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closing = closing
	if b.link == nil { // those of a proxy that is stopping send nobody
		return nil
	}
	return []*link.Link{b.link}
}

// How long a stopping bridge waits for the proxy to have what its pairs said last: after a drain, and when it was told to
// stop now. A proxy that is there answers in milliseconds, but for a busy machine. Tests wait longer.
const flushLimit = 5 * time.Second

var lastWords = 500 * time.Millisecond

// endPairs resets the pairs that are left and waits up to d for the proxy to know.
func (b *Bridge) endPairs(d time.Duration) {
	b.mu.Lock()
	b.ending = true
	links := b.links()
	var left []*relay.Entry
	for pr := range b.pairs {
		left = append(left, pr)
	}
	b.mu.Unlock()
	for _, pr := range left {
		pr.End(relay.ReasonDrain, wire.CodeDrain)
	}
	for _, l := range links {
		l.Reset(wire.CodeDrain) // those that a Handle has are no pairs
	}
	said := time.Now().Add(d)
	for _, l := range links {
		l.Flush(time.Until(said))
	}
}

// enter counts a stream that is to be served; false: the bridge has ended what it had.
func (b *Bridge) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending {
		return false
	}
	b.busy++
	return true
}

// leave is the end of what enter let in; pr is nil where no pair came of it.
func (b *Bridge) leave(pr *relay.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.pairs, pr)
	if b.busy--; b.busy == 0 && b.idle != nil {
		close(b.idle)
		b.idle = nil
	}
}
