package link

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/wire"
)

// How a session ends when a process stops, and another one may take over:
//
//   - A bridge that stops sends GOAWAY and continues to serve. Its successor begins a session of its own beside it, and gets new
//     users from then on (Host.find). When nothing is left to serve, the bridge sends GOAWAY with no time left: the proxy opens no
//     more streams, and the session ends when those under way have ended. If they do not end soon, the bridge sends GOAWAY again.
//   - A proxy that stops frees its ports, sends GOAWAY, and finishes its streams. A connection that breaks cannot come back, so
//     its streams are reset. The bridge begins a session with the proxy that listens there next, beside the old one (Dialer.Run).
type leaving struct {
	comeBack atomic.Int64  // bridge: when the proxy would like the next session to begin, after its GOAWAY; a time.Duration
	peer     atomic.Bool   // the peer said that it is stopping
	closed   atomic.Bool   // and, last, that it takes no more streams
	final    atomic.Bool   // no connection of the session comes back: left is closed
	left     chan struct{} // closed once
	once     sync.Once
}

// ErrLeft ends a session whose peer stopped, or was replaced by another process.
var ErrLeft = errors.New("the process at the other end stopped")

// Leaving reports whether the peer announced that it is stopping, or was seen to be replaced.
func (l *Link) Leaving() bool { return l.leaving.peer.Load() || l.dials && l.leaving.final.Load() }

// GoAway tells the peer that this process is stopping and resets what is left after the time. With no time left the peer opens
// no stream any more.
func (l *Link) GoAway(drain time.Duration) { l.GoAwayFor(drain, 0) }

// GoAwayFor is GoAway that also tells the peer how long to wait before it connects to this process's successor. Without that, all peers
// that hear of a stop at once would come at once. 0: it need not wait.
func (l *Link) GoAwayFor(drain, comeBack time.Duration) {
	sl := l.slots[0]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	sl.core.sayGoAway(drain, comeBack)
	sl.wake()
}

// mostComeBack is the longest that a peer can keep this end away.
const mostComeBack = time.Minute

// ComeBack returns how long after its GOAWAY the peer wants this end to wait before it connects again; 0: it need not wait.
func (l *Link) ComeBack() time.Duration { return time.Duration(l.leaving.comeBack.Load()) }

// goingAway takes a GOAWAY.
func (l *Link) goingAway(g wire.GoAway) {
	l.leaving.comeBack.Store(int64(min(time.Duration(g.ComeBack)*time.Millisecond, mostComeBack)))
	l.leaving.peer.Store(true)
	if !l.dials {
		l.leaving.closed.Store(g.DrainMillis == 0)
	}
	l.owner.GoingAway(l, time.Duration(g.DrainMillis)*time.Millisecond)
	if l.dials {
		l.StopResuming() // which begins the next session
	}
}

// Settle waits until the peer knows of the last GOAWAY and everything has arrived that it sent before, at most d. It does
// not wait for connections that break.
func (l *Link) Settle(d time.Duration) {
	late := time.NewTimer(max(d, soonest))
	defer late.Stop()
	// The first answer shows that GOAWAY arrived, and the second one that what was sent before has left; it may have overtaken
	// a frame of its own batch, which is here before the third.
	for range 3 {
		asked := l.now()
		for _, sl := range l.slots {
			sl.mu.Lock()
			if sl.cur != nil {
				sl.cur.ping(asked)
			}
			sl.mu.Unlock()
		}
		for {
			heard, waiting := l.heard.wait(), false
			for _, sl := range l.slots {
				sl.mu.Lock()
				waiting = waiting || sl.cur != nil && sl.pong < asked
				sl.mu.Unlock()
			}
			if !waiting {
				break
			}
			select {
			case <-heard:
			case <-l.ended:
				return
			case <-late.C:
				return
			}
		}
	}
}

// StopResuming is called when connections of the session cannot come back once they are gone, because the ports of the proxy belong to
// another process.
// A slot that loses its connection loses its streams, and without any connection the session ends.
func (l *Link) StopResuming() {
	l.leaving.once.Do(func() {
		l.leaving.final.Store(true)
		close(l.leaving.left)
		for _, sl := range l.slots {
			sl.resetIfFinal()
			sl.news.ring()
		}
	})
}

// resetIfFinal resets the streams of a slot that has no connection and gets none any more.
func (sl *slot) resetIfFinal() {
	l := sl.link
	if !l.leaving.final.Load() {
		return
	}
	sl.mu.Lock()
	if sl.cur != nil {
		sl.mu.Unlock()
		return
	}
	abort := sl.killStreams()
	sl.mu.Unlock()
	abort()
	if !l.Alive() {
		l.Kill(ErrLeft)
	}
}

// Finished reports whether every stream was closed or reset by its user here, so that the session can end without a loss. The peer may
// not know of it yet, and would see a reset in either case.
func (l *Link) Finished() bool {
	for _, sl := range l.slots {
		sl.mu.Lock()
		for _, s := range sl.core.streams {
			if !s.closed && !s.send.reset() {
				sl.mu.Unlock()
				return false
			}
		}
		sl.mu.Unlock()
	}
	return true
}

// Alive reports whether any slot has a connection.
func (l *Link) Alive() bool {
	for _, sl := range l.slots {
		sl.mu.Lock()
		up := sl.cur != nil
		sl.mu.Unlock()
		if up {
			return true
		}
	}
	return false
}

// Reset resets every stream that its user has not closed.
func (l *Link) Reset(code wire.Code) {
	for _, sl := range l.slots {
		sl.mu.Lock()
		left := make([]*Stream, 0, len(sl.core.streams))
		for _, s := range sl.core.streams {
			if !s.closed {
				left = append(left, s.whole)
			}
		}
		sl.mu.Unlock()
		for _, s := range left {
			s.Reset(code)
		}
	}
}

// Flush waits until the peer has everything that streams sent, and a GOAWAY is out, at most d. It does not wait
// for a slot without a connection.
func (l *Link) Flush(d time.Duration) {
	const step = 5 * time.Millisecond
	t := time.NewTicker(step)
	defer t.Stop()
	for waited := time.Duration(0); waited < d && l.unacked(); waited += step {
		select {
		case <-l.ended:
			return
		case <-t.C:
		}
	}
}

func (l *Link) unacked() bool {
	for _, sl := range l.slots {
		sl.mu.Lock()
		if sl.cur == nil { // no peer to wait for
			sl.mu.Unlock()
			continue
		}
		if sl.core.goAway != nil || sl.cur.sending || sl.cur.unwritten {
			sl.mu.Unlock()
			return true
		}
		for _, s := range sl.core.streams {
			if h := &s.send; !h.dropped && h.una < h.total() {
				sl.mu.Unlock()
				return true
			}
		}
		sl.mu.Unlock()
	}
	return false
}
