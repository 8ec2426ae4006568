package link

import (
	"cmp"
	"fmt"
	"hash/crc32"
	"slices"

	"reverser/internal/wire"
)

// When the connection of a slot dies, its streams stand still. The bridge dials again, and both ends exchange what they
// have in custody; each then goes back to what the other one has. spec/PROTOCOL.md, section "Resume", gives the order:
//
//	bridge: fence the old connection, then table(), then ATTACH with a higher generation
//	proxy:  check the proof and the generation, fence, apply the bridge's table, then table(), then ATTACHED
//	bridge: apply the proxy's table
//
// Three rules carry it (each is indispensable): offsets are absolute, an end fences the old connection before it counts,
// and generations only increase.
//
// The bridge numbers its attempts, and a connection is named by its number. So dial, accept and resumed decide everything
// about which connection carries the slot; the shell opens, closes and moves bytes.

// maxGenJump is how far a generation may lie above the last one. A bridge counts by one; without a limit a single wrong
// number would refuse all later ones.
const maxGenJump = 1 << 32

// dial begins an attempt at the bridge: the old connection is fenced, and then what this end has is counted. It returns
// what ATTACH says.
func (c *core) dial() (gen uint64, table []byte, crc uint32) {
	c.lost(c.bound)
	c.gen++
	table, crc = c.table()
	return c.gen, table, crc
}

// negotiate takes over the features of the connection that is to be attached next, at the dialling end. Without the feature for
// them the streams of this end are over before that: the events say which.
func (c *core) negotiate(f wire.Features) (events []event) {
	c.features = f
	if c.mayOpen() {
		return nil
	}
	var own []uint64
	for id := range c.streams {
		if c.mine(id) {
			own = append(own, id)
		}
	}
	slices.Sort(own)
	for _, id := range own {
		s := c.streams[id]
		c.remove(s)
		events = append(events, event{kind: evReset, stream: s})
	}
	return events
}

// accept decides about an ATTACH, on a connection with the features f, at the proxy and returns the table that ATTACHED carries. From here on the connection of
// that generation carries the slot, and no other one does. A refusal leaves everything as it was; any other error ends
// the session.
func (c *core) accept(gen uint64, f wire.Features, theirs []wire.StreamState) (table []byte, crc uint32, events []event, err error) {
	if gen <= c.gen || gen-c.gen > maxGenJump {
		return nil, 0, nil, &ownRefusal{status: wire.StatusStale, text: fmt.Sprintf("generation %d after %d", gen, c.gen)}
	}
	c.gen, c.features = gen, f
	c.lost(c.bound)
	if events, err = c.apply(theirs); err != nil {
		return nil, 0, nil, err
	}
	table, crc = c.table()
	c.bound = gen
	c.takeBack()
	return table, crc, events, nil
}

// resumed goes on at the bridge where the table of the ATTACHED of generation gen says. It ignores the answer to an
// attempt that a later one has replaced.
func (c *core) resumed(gen uint64, theirs []wire.StreamState) (events []event, err error) {
	if gen != c.gen || c.bound != 0 {
		return nil, errFenced
	}
	if events, err = c.apply(theirs); err != nil {
		return nil, err
	}
	c.bound = gen
	c.takeBack()
	return events, nil
}

// current reports whether the connection of generation gen carries the slot. What comes from any other one is ignored.
func (c *core) current(gen uint64) bool {
	return gen != 0 && gen == c.bound
}

// lost is called when the connection of generation gen is over. It ignores one that was replaced: that is over already.
func (c *core) lost(gen uint64) {
	if gen != 0 && gen == c.bound {
		c.fence()
	}
}

// fence lets no connection carry the slot and forgets what was queued for the one that did. What matters of it is state
// and comes back with the tables; the claims' owner repeats them.
func (c *core) fence() {
	c.bound, c.rtt, c.least = 0, 0, shortest{}
	c.pong, c.ping, c.goAway = false, false, nil
	c.checks, c.retire = nil, false
	clear(c.control)
	c.controlOrder = nil
	c.acks.clear()
	c.delayed.clear()
	c.opens.clear()
	c.fresh.clear()
	c.bulk.clear()
	for _, s := range c.streams {
		s.ackWaits = false
	}
	c.glitches = 0
}

// table encodes what this end has in custody, for every stream of the slot. Of a stream that it lacks the peer needs no FORGET.
func (c *core) table() (b []byte, crc uint32) {
	c.forgets = nil
	streams := c.sorted()
	b = make([]byte, 0, len(streams)*wire.StreamStateLen)
	for _, s := range streams {
		r := &s.recv
		b = wire.AppendStreamState(b, wire.StreamState{Stream: s.id, RcvNxt: r.acked(), Credit: r.granted, CRC: r.crc})
	}
	return b, crc32.Checksum(b, castagnoli)
}

// sorted returns the slot's streams in the order of their ids.
func (c *core) sorted() []*streamCore {
	streams := make([]*streamCore, 0, len(c.streams))
	for _, s := range c.streams {
		streams = append(streams, s)
	}
	slices.SortFunc(streams, func(a, b *streamCore) int { return cmp.Compare(a.id, b.id) })
	return streams
}

// apply rewinds every stream to what the peer has and queues what is to be sent again. It returns the streams that ended
// by it. An error ends the session.
func (c *core) apply(table []wire.StreamState) (events []event, err error) {
	// Streams that wait for their OPEN are absent from the peer's table: they queue again below, in order of their ids,
	// with those whose OPEN was lost. An id that came late would be taken for one that was seen and forgotten.
	c.opens.clear()
	theirs := make(map[uint64]wire.StreamState, len(table))
	for _, st := range table {
		if !c.possible(st.Stream) || c.mine(st.Stream) && st.Stream >= c.ids.next {
			return nil, violation(wire.ErrResume, "the peer resumes stream %d, which was never opened on slot %d", st.Stream, c.index)
		}
		if st.Stream&dialled != 0 && c.features&wire.FeatureDialOpens == 0 {
			return nil, violation(wire.ErrResume, "the peer resumes stream %d of the dialling end on a connection that has not negotiated such streams", st.Stream)
		}
		theirs[st.Stream] = st
	}
	for _, s := range c.sorted() {
		st, known := theirs[s.id]
		h := &s.send
		switch {
		case !known && !c.mine(s.id):
			if ev := c.forget(s); ev.kind != evNone {
				events = append(events, ev)
			}
			continue
		case !known:
			if h.una != 0 && !h.dropped {
				return nil, violation(wire.ErrResume, "the peer lost stream %d", s.id)
			}
			h.nxt, h.cur, s.openSent = 0, nil, false
			c.opens.push(s)
			continue
		}
		s.openSent = true
		if !h.dropped {
			if st.RcvNxt < h.una || st.RcvNxt > h.max {
				return nil, violation(wire.ErrResume, "stream %d: the peer has %d bytes, acknowledged %d of %d sent", s.id, st.RcvNxt, h.una, h.max)
			}
			if st.CRC != h.q.crcAt(min(st.RcvNxt, h.q.end)) {
				c.ChecksumFails++
				c.end(s, wire.RST, wire.CodeChecksum)
				s.recv.discard = true
				s.recv.settleCharge(c.budget, 0)
				events = append(events, event{kind: evReset, stream: s})
			}
			h.credit = max(h.credit, st.Credit)
			if st.RcvNxt > h.una {
				c.acked++
				h.ack(st.RcvNxt)
			}
			h.charge(c.budget)
			h.nxt, h.cur = st.RcvNxt, nil
		}
		c.settle(s)
		c.touch(s)
		events = append(events, event{kind: evAcked, stream: s})
	}
	return events, nil
}
