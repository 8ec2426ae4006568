package memnet

import (
	"net/netip"
	"slices"
	"time"
)

// A Dir is a direction of a connection, or both. It means the same at either end.
type Dir int

// The directions.
const (
	ToListener Dir = 1 << iota // from the end that dialled
	ToDialer                   // from the end that accepted
	Both       = ToListener | ToDialer
)

// A Cut says how a connection ends.
type Cut int

// The ways to cut.
const (
	CutReset    Cut = iota // both ends get a reset, as from a middlebox
	CutSilently            // both directions become a black hole, as from a pulled plug
)

// CutAfter lets exactly n more bytes arrive in direction dir, which is not Both,
// and then cuts the connection; with 0 at once. Bytes that have arrived can be
// read after the cut.
func (c *Conn) CutAfter(dir Dir, n int64, how Cut) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	for _, f := range c.flows(dir) {
		f.cutting, f.cutLeft, f.cut = true, n, how
		if n <= 0 {
			f.cutLeft = 0
			f.cutNow()
			return
		}
	}
}

// Reset cuts the connection at once: both ends get a reset.
func (c *Conn) Reset() { c.CutAfter(ToListener, 0, CutReset) }

// BlackHole stops direction dir: what is written is held as far as the buffer
// goes, and nothing arrives. A reset sent into it is lost, so that the peer
// learns of it only when it writes after the Heal.
func (c *Conn) BlackHole(dir Dir) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	for _, f := range c.flows(dir) {
		f.hole = true
	}
}

// Heal ends the black hole of direction dir: what was held arrives, as TCP would
// send it again, which each end does at a time of its own.
func (c *Conn) Heal(dir Dir) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	for _, f := range c.flows(dir) {
		if !f.hole {
			continue
		}
		f.hole = false
		// TCP sends again what it had sent into the hole.
		f.lastDue = time.Time{}
		now := time.Now()
		wire := f.wire
		f.wire = nil
		for _, s := range wire {
			f.launch(s, now)
		}
		f.pump()
	}
}

// SetLatency delays what is sent from now on in direction dir. It never reorders.
func (c *Conn) SetLatency(dir Dir, d time.Duration) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	for _, f := range c.flows(dir) {
		f.latency = d
	}
}

// SetBuffer sets the buffer of direction dir. Bytes already held beyond it stay.
func (c *Conn) SetBuffer(dir Dir, bytes int) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	for _, f := range c.flows(dir) {
		f.limit = max(bytes, 1)
		f.pump()
		f.writable.Broadcast()
	}
}

func (c *Conn) flows(dir Dir) []*flow {
	var fs []*flow
	if dir&ToListener != 0 {
		fs = append(fs, c.pair.dialled.out)
	}
	if dir&ToDialer != 0 {
		fs = append(fs, c.pair.dialled.in)
	}
	return fs
}

// Conns are the dialling ends of the connections that are not closed at both
// ends, in dial order.
func (n *Net) Conns() []*Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.conns)
}

// OnConn sets a function that sees the dialling end of every new connection
// before either end can use it, to place a fault in it. It must not call n.
func (n *Net) OnConn(f func(*Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onConn = f
}

// CutAfter cuts each connection that exists now after n more bytes of its own.
func (n *Net) CutAfter(dir Dir, bytes int64, how Cut) {
	for _, c := range n.Conns() {
		c.CutAfter(dir, bytes, how)
	}
}

// Reset cuts every connection that exists now.
func (n *Net) Reset() {
	for _, c := range n.Conns() {
		c.Reset()
	}
}

// BlackHole stops direction dir of every connection, and hangs dials.
func (n *Net) BlackHole(dir Dir) {
	n.mu.Lock()
	n.hole |= dir
	n.mu.Unlock()
	for _, c := range n.Conns() {
		c.BlackHole(dir)
	}
}

// Heal ends the black hole of every connection and lets hanging dials go on.
func (n *Net) Heal() {
	n.mu.Lock()
	n.hole = 0
	source := n.sourceLocked()
	n.changedLocked()
	n.mu.Unlock()
	for _, c := range n.Conns() {
		if at := c.local.Addr(); at == source || at.IsLoopback() {
			c.Heal(Both)
		}
	}
}

// Move gives the host that dials another address. What was dialled from the old
// one is in a black hole until the host moves back. Loopback stays.
func (n *Net) Move(source netip.Addr) {
	n.mu.Lock()
	n.source = source
	hole := n.hole
	n.mu.Unlock()
	for _, c := range n.Conns() {
		switch {
		case c.local.Addr().IsLoopback():
		case c.local.Addr() != source:
			c.BlackHole(Both)
		case hole == 0:
			c.Heal(Both)
		}
	}
}

// SetLatency delays direction dir of every connection, also of future ones; a
// dial takes the sum of both directions.
func (n *Net) SetLatency(dir Dir, d time.Duration) {
	n.mu.Lock()
	if dir&ToListener != 0 {
		n.latency[0] = d
	}
	if dir&ToDialer != 0 {
		n.latency[1] = d
	}
	n.mu.Unlock()
	for _, c := range n.Conns() {
		c.SetLatency(dir, d)
	}
}

// SetDials says what happens to dials of addr, spelled as Dial gets it, or of
// every address if addr is empty. Dials that hang go on when the mode changes.
func (n *Net) SetDials(addr string, mode DialMode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.modes == nil {
		n.modes = make(map[string]DialMode)
	}
	n.modes[addr] = mode
	n.changedLocked()
}
