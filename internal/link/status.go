package link

import (
	"net"
	"time"

	"reverser/internal/status"
)

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

// SlotStatus is a snapshot of one slot.
type SlotStatus struct {
	Up      bool
	Resting bool // bridge: it has no connection because it needs none; the proxy says when it has a stream there
	Remote  string
	RTT     time.Duration
	Resumes uint64
	Since   time.Time
	Streams int

	Duplicates    uint64 // DATA frames that had come before, as some do after a resume
	ChecksumFails uint64 // directions of streams that did not arrive as they were sent
}

// Status returns a snapshot of every slot; the first is the control connection's.
func (l *Link) Status() []SlotStatus {
	out := make([]SlotStatus, len(l.slots))
	for i, sl := range l.slots {
		sl.mu.Lock()
		st := SlotStatus{Up: sl.cur != nil, Resting: sl.cur == nil && sl.resting, RTT: sl.core.rtt, Resumes: sl.resumes, Since: l.start.Add(sl.since), Streams: len(sl.core.streams),
			Duplicates: sl.core.Duplicates, ChecksumFails: sl.core.ChecksumFails}
		if sl.cur != nil {
			st.Remote = sl.cur.conn.RemoteAddr().String()
		}
		sl.mu.Unlock()
		out[i] = st
	}
	return out
}

// Streams counts the streams of all slots.
func (l *Link) Streams() (n int) {
	for _, st := range l.Status() {
		n += st.Streams
	}
	return n
}

// RemoteAddr is the peer's address on the control connection, nil while there is none.
func (l *Link) RemoteAddr() net.Addr {
	if conn := l.control(); conn != nil {
		return conn.RemoteAddr()
	}
	return nil
}

// LocalAddr is this machine's address on the control connection, nil while there is none.
func (l *Link) LocalAddr() net.Addr {
	if conn := l.control(); conn != nil {
		return conn.LocalAddr()
	}
	return nil
}

// control is the control connection, nil while there is none.
func (l *Link) control() net.Conn {
	sl := l.slots[0]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.cur == nil {
		return nil
	}
	return sl.cur.conn
}
