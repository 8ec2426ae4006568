package bridge

import (
	"sync"
	"time"

	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// Drain announces the stop to the proxies; Run returns as soon as no connection is left. Until then new users are
// served, unless a successor has attached with the same key: then the proxies send them there. After Settings.Drain the connections that
// are left are reset.
func (b *Bridge) Drain() {
	b.drainOnce.Do(func() {
		b.draining.Store(true)
		close(b.drain)
	})
}

func (b *Bridge) awaitDrain() {
	select {
	case <-b.ctx.Done():
		return
	case <-b.drain:
	}
	limit := b.drainFor()
	load := b.conns.Load()
	b.mu.Lock()
	b.drainEnds = time.Now().Add(limit)
	b.mu.Unlock()
	for _, u := range b.uplinks {
		u.dialer.Last()
	}
	b.log.Info("draining", "pairs", load.Pairs, "dials", load.Unbound(), "limit", limit.Seconds())
	for _, l := range b.links() {
		l.GoAway(limit)
	}
	b.finish(limit)
	b.endPairs(flushLimit)
	b.stop()
}

const (
	settleLimit = time.Second     // for hearing whom the proxy sent last
	shortPair   = 2 * time.Second // a pair that is younger may be over soon
	pauseLimit  = time.Second     // for such pairs, while newcomers wait at the proxy
	pauseEvery  = 5 * time.Second
	drainLook   = 100 * time.Millisecond
)

// finish serves on until no user is left, or the time of the drain is over. Where users come and go all the time, no such moment may
// come. So when all present users may be gone soon, it has new ones wait at the proxy for a moment, where the next process gets them.
func (b *Bridge) finish(limit time.Duration) {
	ends := time.Now().Add(limit)
	last := ends.Add(-min(pauseLimit, limit/4)) // from then on nobody is to come who would be reset at the end
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for next := time.Now(); ; {
		now := time.Now()
		if !now.Before(last) {
			b.sendNobody()
			b.conns.Drain(b.ctx, time.Until(ends))
			return
		}
		if idle := b.conns.Load() == (traffic.Load{}); idle || !now.Before(next) && b.endsSoon(now) {
			b.sendNobody()
			b.conns.AwaitIdle(b.ctx, min(pauseLimit, time.Until(ends)))
			if b.conns.Load() == (traffic.Load{}) {
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

// endsSoon reports whether all present pairs are young, so that they may end soon.
func (b *Bridge) endsSoon(now time.Time) bool {
	if b.conns.Load().Unbound() > 0 { // on the way to a target, or with a Handle
		return false
	}
	soon := true
	b.conns.Walk(func(a *traffic.Admission) bool {
		soon = now.Sub(a.Since()) < shortPair
		return soon
	})
	return soon
}

// sendNobody tells the proxies to hold new users for now. It returns when the users that they sent before have arrived.
func (b *Bridge) sendNobody() {
	var settling sync.WaitGroup
	for _, l := range b.setClosing(true) {
		l.GoAway(0)
		settling.Go(func() { l.Settle(settleLimit) })
	}
	settling.Wait()
}

// serveOn ends what sendNobody began: the proxies send new users again.
func (b *Bridge) serveOn() {
	for _, l := range b.setClosing(false) {
		l.GoAway(b.drainLeft())
	}
}

// setClosing returns the links that are to be told. The proxy of any other link is stopping and sends no users.
func (b *Bridge) setClosing(closing bool) (ls []*link.Link) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closing = closing
	for _, u := range b.uplinks {
		if u.link != nil {
			ls = append(ls, u.link)
		}
	}
	return ls
}

// drainLeft returns the remaining drain time for GOAWAY, or 0 while no new users are to be sent here.
func (b *Bridge) drainLeft() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return 0
	}
	return max(time.Until(b.drainEnds), time.Millisecond)
}

// How long a stopping bridge waits for the proxy to have what its pairs said last: after a drain, and when it was told to
// stop now. A live proxy answers within milliseconds unless its machine is busy. Tests wait longer.
var (
	flushLimit = 5 * time.Second
	lastWords  = 500 * time.Millisecond
)

// endPairs resets the connections that are left and waits up to d for the proxies to know.
func (b *Bridge) endPairs(d time.Duration) {
	b.conns.Shut()
	b.conns.End(relay.ReasonDrain, wire.CodeDrain, nil)
	var flushing sync.WaitGroup
	for _, l := range b.links() {
		l.Reset(wire.CodeDrain) // those that a Handle has are no pairs
		flushing.Go(func() { l.Flush(d) })
	}
	flushing.Wait()
}

func (b *Bridge) drainFor() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.drainTime
}

// links returns the links that have a session, those of a proxy that is stopping included.
func (b *Bridge) links() (all []*link.Link) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, u := range b.uplinks {
		all = append(all, u.linksLocked()...)
	}
	return all
}
