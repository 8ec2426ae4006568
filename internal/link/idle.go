package link

import (
	"errors"
	"sync/atomic"
	"time"

	"reverser/internal/sys"
	"reverser/internal/wire"
)

// A link on which nothing moves costs little, where both ends have wire.FeatureIdle:
//
//   - Only the control connection is asked for a sign of life, at the latest every Keepalive, or what the bridge was told. Its
//     silence makes the bridge ask on the carriers.
//   - An idle link has one carrier. When that has two streams at once, or moves much, the bridge dials the others. One that has
//     had no stream for restAfter goes again: the bridge sends RETIRE, and the proxy closes the connection unless it has opened
//     a stream meanwhile.
//   - Nobody looks whether an idle carrier is still there; the bridge's kernel keeps it known to NATs, unless something in between
//     ends TCP: then a PING does. So a PING goes with the
//     first frame of a stream behind a silence, and must be answered soon (carrier.expectAnswer).
//   - The proxy cannot dial. It sends CHECK when a carrier with streams does not answer, or is gone: the bridge sees to it.
//
// With a peer that does not have the feature all connections stay, and each is asked after pingAfter.
const (
	Keepalive      = 25 * time.Second // by default. Some NATs and firewalls forget connections after 30
	LeastKeepalive = pingAfter
	MostKeepalive  = time.Hour

	idleCarriers = 1           // of an idle link
	restAfter    = time.Minute // without streams a further carrier goes
	retireLimit  = 10 * time.Second
)

// Features are those of this package that every connection may use.
const Features = wire.FeatureIdle

// ErrIdle ends a connection that an idle link does not need. Nothing is lost by it.
var ErrIdle = errors.New("the link is idle")

// upkeep is how a link is kept while nothing moves. It is not guarded.
type upkeep struct {
	keepalive atomic.Int64 // 0: the peer does not have the feature
	moved     atomic.Int64 // when streams moved last, about
	wanted    atomic.Int64 // when all carriers were of use last
}

func (u *upkeep) interval() time.Duration { return time.Duration(u.keepalive.Load()) }

// agree takes over what the bridge was told, for a control connection with these features.
func (u *upkeep) agree(f wire.Features, keepalive time.Duration) {
	if f&wire.FeatureIdle == 0 {
		keepalive = 0
	}
	u.keepalive.Store(int64(keepalive))
}

// keepaliveOf returns the interval that a bridge announced.
func keepaliveOf(ms uint32) time.Duration {
	if ms == 0 {
		return Keepalive
	}
	return min(max(time.Duration(ms)*time.Millisecond, LeastKeepalive), MostKeepalive)
}

// askAfter is after how much silence a slot's connection is asked for a sign of life where its streams do not move. The longer
// the link is idle, the longer. The accepting end waits for a fifth more: usually the bridge asks.
func (u *upkeep) askAfter(sl *slot, heard time.Duration) time.Duration {
	most := u.interval()
	switch {
	case most == 0:
		return pingAfter
	case sl.index != 0:
		return never
	}
	ask := most
	if moved := time.Duration(u.moved.Load()); moved != 0 {
		ask = min(max((heard-moved)/2, pingAfter), most)
	}
	if !sl.link.dials {
		ask += ask / 5
	}
	return ask
}

// further reports whether the slot's connection is one that an idle link does without. It is so at the dialling end only.
func (sl *slot) further() bool {
	return sl.link.dials && sl.index > idleCarriers && sl.link.upkeep.interval() != 0
}

// keepKnown turns TCP keepalives on, so that NATs and firewalls do not forget a carrier whose streams are silent: no PING is sent there
// unless the connection is relayed.
func (c *carrier) keepKnown() {
	if every := c.slot.link.upkeep.interval(); every != 0 && c.slot.index != 0 {
		sys.KeepAlive(c.conn.Conn, every)
	}
}

// restAt is when restWhenIdle may have something to do. slot.mu is held.
func (c *carrier) restAt() time.Duration {
	switch {
	case !c.slot.further() || len(c.slot.core.streams) > 0:
		return never
	case c.retiredAt != 0:
		return c.retiredAt + retireLimit
	}
	used := max(c.slot.since, c.streamsAt, time.Duration(c.slot.link.upkeep.wanted.Load()))
	return used + restAfter
}

// restWhenIdle asks the peer to close a further carrier that has been idle for restAfter, and closes one where no answer
// came. slot.mu is held.
func (c *carrier) restWhenIdle(now time.Duration) {
	switch {
	case now < c.restAt():
		if len(c.slot.core.streams) > 0 {
			c.retiredAt = 0 // the peer does not close it
		}
	case c.retiredAt != 0:
		c.slot.fence(ErrIdle)
		c.slot.resting = true
	default:
		c.retiredAt = now
		c.slot.core.askRetire()
		c.slot.wake()
	}
}

// retire closes the connection if the peer asked for that and it has no streams. slot.mu is held.
func (c *carrier) retire() {
	if sl := c.slot; len(sl.core.streams) == 0 {
		sl.fence(ErrIdle)
	}
}

// rest notes at the bridge that the peer closed a connection because it was asked to. slot.mu is held.
func (c *carrier) rest() {
	sl := c.slot
	if c.retiredAt != 0 && len(sl.core.streams) == 0 {
		c.err = ErrIdle
		sl.resting = true
	}
}

// wantCarriers has the bridge dial the carriers that an idle link does without.
func (l *Link) wantCarriers() {
	now := l.now()
	if last := time.Duration(l.upkeep.wanted.Load()); last != 0 && now-last < time.Second {
		return
	}
	l.upkeep.wanted.Store(int64(now))
	l.wake()
}

// wake ends the rest of all carriers.
func (l *Link) wake() {
	for _, sl := range l.slots[1:] {
		sl.mu.Lock()
		sl.wakeUp()
		sl.mu.Unlock()
	}
}

// wakeUp ends the slot's rest. mu is held.
func (sl *slot) wakeUp() {
	if sl.resting {
		sl.resting = false
		sl.news.ring()
	}
}

// suspectCarriers asks on every carrier that has been silent for a while: the control connection does not answer, or is gone.
func (l *Link) suspectCarriers() {
	now := l.now()
	for _, sl := range l.slots[1:] {
		sl.mu.Lock()
		switch c := sl.cur; {
		case c == nil || now-time.Duration(c.lastRead.Load()) < pingAfter:
		case l.dials:
			c.suspect(now)
		default:
			c.ping(now)
		}
		sl.mu.Unlock()
	}
}

// check tells the bridge to see to a slot that has streams, if its connection is gone or does not answer.
func (l *Link) check(sl *slot) {
	if l.dials || sl.index == 0 || l.upkeep.interval() == 0 {
		return
	}
	sl.mu.Lock()
	needed := len(sl.core.streams) > 0 && (sl.cur == nil || sl.cur.unanswered())
	sl.mu.Unlock()
	if !needed {
		return
	}
	control := l.slots[0]
	control.mu.Lock()
	defer control.mu.Unlock()
	if control.cur != nil && control.core.features&wire.FeatureIdle != 0 {
		control.core.askCheck(sl.index)
		control.wake()
	}
}

// checkAll tells the bridge of every slot that it is to see to. It is called when the control connection was attached.
func (l *Link) checkAll() {
	for _, sl := range l.slots[1:] {
		l.check(sl)
	}
}

// checked takes a CHECK for a slot: the proxy has something for its connection, which is gone or does not answer.
func (l *Link) checked(index uint64) {
	if index == 0 || index >= uint64(len(l.slots)) {
		return
	}
	sl := l.slots[index]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	sl.wakeUp()
	if c := sl.cur; c != nil {
		now := l.now()
		if c.suspectSince == 0 { // the proxy has waited for an answer already
			c.suspectSince = max(now-min(max(suspectAfter, 2*sl.core.rtt), graceMost), 1)
		}
		c.suspect(now)
	}
}
