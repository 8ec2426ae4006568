package model

// The two ends, as indexes, and their names in labels.
const (
	P = iota // the proxy
	B        // the bridge, which dials
)

const (
	mostConns  = 6 // of any model
	mostFrames = 4 // under way in one direction
)

// frame is packed, because there are millions: a kind, and three small numbers.
type frame uint16

func pack(kind, a, b, c uint8) frame { return frame(kind)<<9 | frame(a)<<6 | frame(b)<<3 | frame(c) }
func (f frame) kind() uint8          { return uint8(f >> 9) }
func (f frame) a() uint8             { return uint8(f>>6) & 7 }
func (f frame) b() uint8             { return uint8(f>>3) & 7 }
func (f frame) c() uint8             { return uint8(f) & 7 }

// lane is one direction of a connection.
type lane struct {
	n uint8
	f [mostFrames]frame
}

// conn is one connection. Its generation is its place in network.conns, counted from 1.
type conn struct {
	used, broken bool
	bound        bool // the proxy has read its ATTACH
	open         [2]bool
	to           [2]lane // towards each end
}

// network is the connections, and which of them each end uses.
type network struct {
	conns    [mostConns]conn
	cur      [2]uint8 // generation of the connection that the end writes to; 0: none
	ready    [2]bool  // and attaching is over there
	last     uint8    // generation that the proxy accepted last
	breaks   uint8    // that happened so far
	timeouts uint8    // without a reason
	extra    uint8    // dials beside a live connection
}

// supply is how much of everything there is.
type supply struct {
	conns, frames           int
	breaks, timeouts, extra uint8
}

// send puts a frame on connection k. One that is broken, or closed at the other side, swallows it. It reports false when
// there is no room now.
func (n *network) send(max supply, from, k int, f frame) bool {
	c := &n.conns[k]
	if !c.open[from] {
		return false
	}
	if c.broken || !c.open[1-from] {
		return true
	}
	l := &c.to[1-from]
	if int(l.n) == max.frames {
		return false
	}
	l.f[l.n] = f
	l.n++
	return true
}

func (n *network) receive(e, k int) frame {
	l := &n.conns[k].to[e]
	f := l.f[0]
	copy(l.f[:], l.f[1:])
	l.n--
	l.f[l.n] = 0
	return f
}

// close closes end e of connection k. What it sent may still arrive.
func (n *network) close(e, k int) {
	c := &n.conns[k]
	c.open[e] = false
	c.to[e] = lane{}
	if int(n.cur[e]) == k+1 {
		n.cur[e], n.ready[e] = 0, false
	}
	if !c.open[1-e] {
		*c = conn{used: true} // one dead connection is like another
	}
}

// dial opens the next connection; -1: there is none left.
func (n *network) dial(max supply) int {
	for k := range max.conns {
		if c := &n.conns[k]; !c.used {
			c.used, c.open = true, [2]bool{true, true}
			return k
		}
	}
	return -1
}

// faults lets the network and the clocks do what they may do.
func (n network) faults(max supply, add func(network, label)) {
	for k := range max.conns {
		c := n.conns[k]
		if !c.used {
			continue
		}
		for e := range c.open {
			gone := c.broken || !c.open[1-e]
			if c.to[e].n > 0 && gone {
				t := n
				t.conns[k].to[e] = lane{}
				add(t, say("what was under way to end %d on connection %d is lost", e, k+1))
			}
			if c.open[e] && gone {
				t := n
				t.close(e, k)
				add(t, say("end %d notices that connection %d is gone", e, k+1))
			}
			if c.open[e] && !gone && n.timeouts < max.timeouts {
				t := n
				t.timeouts++
				t.close(e, k)
				add(t, say("end %d gives connection %d up without a reason", e, k+1))
			}
		}
		if !c.broken && (c.open[0] || c.open[1]) && n.breaks < max.breaks {
			t := n
			t.breaks++
			t.conns[k].broken = true
			add(t, say("connection %d breaks", k+1))
		}
	}
}

// spent says that no connection is left.
func (n *network) spentAll(max supply) bool { return n.conns[max.conns-1].used }
