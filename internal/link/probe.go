package link

import (
	"crypto/sha256"
	"net"
	"time"

	"reverser/internal/status"
	"reverser/internal/wire"
)

// ProbeQuestion is what a bridge shows at a public port to prove that it leads to the proxy that sent it the nonce in CLAIMED. The
// nonce does not cross itself, or a proxy could choose what its bridges write to others' ports.
func ProbeQuestion(nonce [16]byte) [16]byte {
	sum := sha256.Sum256(append([]byte("reverser probe v1"), nonce[:]...))
	return [16]byte(sum[:16])
}

// ProbeAnswer is what the proxy answers to that.
func ProbeAnswer(nonce [16]byte) [16]byte {
	sum := sha256.Sum256(append([]byte("reverser probe answer v1"), nonce[:]...))
	return [16]byte(sum[:16])
}

// Snapshot describes the link for status; both roles show it alike.
func (l *Link) Snapshot(key, bridge string, leaving bool) status.Link {
	slots := l.Status()
	st := status.Link{Key: key, Bridge: bridge, Remote: slots[0].Remote, State: status.LinkUp, Since: slots[0].Since}
	if !slots[0].Up {
		st.State = status.LinkDown
	}
	if leaving {
		st.State = status.LinkDraining
	}
	st.RTTMillis = float64(slots[0].RTT.Microseconds()) / 1000
	for _, s := range slots {
		st.Resumes += s.Resumes
		st.ChecksumErrors += s.ChecksumFails
	}
	for _, s := range slots[1:] {
		if s.Up {
			st.Carriers++
		}
	}
	return st
}

// Streams counts the streams of all slots.
func (l *Link) Streams() (n int) {
	for _, st := range l.Status() {
		n += st.Streams
	}
	return n
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

// RemoteAddr is the peer's address on the control connection, nil while there is none.
func (l *Link) RemoteAddr() net.Addr {
	sl := l.slots[0]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.cur == nil {
		return nil
	}
	return sl.cur.conn.RemoteAddr()
}

// Flush waits until the peer has everything that streams sent, and a GOAWAY is out, at most d. A slot without a connection
// is not waited for.
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
		if sl.cur == nil { // nobody to wait for
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
