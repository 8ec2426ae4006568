package link

import (
	"sync"
	"time"

	"reverser/internal/wire"
)

// Outbound flow, in the order the bytes meet it:
//  1. Stream.Send (stream.go) puts a chunk of socket bytes into the stream's send queue and the stream into a flow list.
//  2. core.fill makes frames from what the lists hold, up to one batch (a bundle). The bytes stay in their chunks.
//  3. carrier.send (carrier.go) encrypts the batch and writes it with one system call.
//  4. The bytes stay in the send queue until receiveAck frees them: the queue is flow-control window and
//     retransmission buffer at once.

// sendHalf is the outgoing direction of a stream: una ≤ nxt ≤ max ≤ total, and q.end ≤ credit, except for what a socket that was
// reset left behind (Stream.SendRest). An END is one unit of offset space behind the last byte; a RST after a FIN is a second one.
type sendHalf struct {
	q       queue
	una     uint64 // everything below is in the peer's custody
	nxt     uint64 // next to send; at a resume it goes back to what the peer has
	max     uint64 // highest nxt ever; what an ACK may name
	credit  uint64 // the peer's permission
	cur     *Chunk // that holds nxt, when known
	curOff  uint64 // stream offset of cur's first byte
	end     wire.EndKind
	code    wire.Code
	abort   bool  // RST after FIN
	charged int64 // part of what is held that is charged to the budget
	dropped bool  // see drop: nothing is sent any more
	deficit int   // bytes that the stream may send before others have their turn
}

// room returns how many bytes may be added to the send queue now. It obeys a cap of its own whatever the peer grants: no
// more than the floor while the share of the memory for windows is used up.
func (h *sendHalf) room(b *share) int {
	most := uint64(maxWindow)
	if b.spare() <= 0 {
		b.ask()
		most = floorWindow
	}
	limit := min(h.credit, min(h.una, h.q.end)+most)
	if h.end != 0 || h.dropped || limit <= h.q.end {
		return 0
	}
	return int(limit - h.q.end)
}

// total is the offset behind everything that was put in so far, ends included.
func (h *sendHalf) total() uint64 {
	n := h.q.end
	if h.end != 0 {
		n++
	}
	if h.abort {
		n++
	}
	return n
}

func (h *sendHalf) reset() bool { return h.end == wire.RST || h.abort }

// drop frees what was not acknowledged, because the peer will not read it: the peer reset the stream, or the stream is over.
func (h *sendHalf) drop(b *share) {
	h.dropped, h.cur = true, nil
	h.q.drop()
	h.charge(b)
}

// charge brings what is charged in line with what is held beyond the floor. It follows the fact, a read of a socket at the
// most, or of what a socket that was reset had left, and never fails: room, or SendRest, says when there is none.
func (h *sendHalf) charge(b *share) {
	held := int64(0)
	if h.q.head != nil {
		held = max(int64(h.q.end-h.q.base)-floorWindow, 0)
	}
	if held != h.charged {
		b.add(held - h.charged)
		h.charged = held
	}
}

// pending reports whether there is anything to send.
func (h *sendHalf) pending() bool {
	return !h.dropped && h.nxt < h.allowed()
}

// allowed returns the offset up to which may be sent now. An end needs no credit, but all bytes before it do.
func (h *sendHalf) allowed() uint64 {
	if h.q.end > h.credit {
		return h.credit
	}
	return h.total()
}

// cutRest gives up what was not sent yet of a stream that is reset: the peer gives no credit for it.
func (c *core) cutRest(s *streamCore) {
	h := &s.send
	if h.end == wire.RST && h.q.end > h.max && !h.dropped && !s.forgotten {
		h.q.cut(h.max)
		h.cur = nil
		c.touch(s)
	}
}

// touch queues s for sending if it has something to send.
func (c *core) touch(s *streamCore) {
	s.send.charge(c.budget)
	if !s.forgotten && s.send.pending() && !c.fresh.holds(s) {
		s.send.deficit = quantum
		c.fresh.push(s)
	}
}

// end closes the outgoing direction behind the bytes it holds. A RST may follow a FIN.
func (c *core) end(s *streamCore, kind wire.EndKind, code wire.Code) {
	h := &s.send
	switch {
	case s.forgotten || h.dropped || h.end == wire.RST || h.abort:
		return
	case h.end == 0:
		h.end, h.code = kind, code
	case kind == wire.FIN:
		return
	default:
		h.abort, h.code = true, code
	}
	if !s.openSent && kind == wire.RST && h.q.end == 0 {
		c.remove(s) // the peer never heard of it
		return
	}
	c.touch(s)
}

const quantum = ChunkSize

// fill adds frames to b until it is about limit bytes long or there is nothing to send at now.
func (c *core) fill(b *bundle, limit int, now time.Duration) {
	if c.pong {
		c.pong = false
		b.own = wire.AppendEmpty(b.own, wire.TypePong, 0, c.pongVal)
	}
	if c.goAway != nil {
		b.own = wire.AppendGoAway(b.own, *c.goAway)
		c.goAway = nil
	}
	for _, slot := range c.checks {
		b.own = wire.AppendEmpty(b.own, wire.TypeCheck, 0, uint64(slot))
	}
	c.checks = nil
	if c.retire {
		c.retire = false
		b.own = wire.AppendEmpty(b.own, wire.TypeRetire, 0, 0)
	}
	for len(c.controlOrder) > 0 && b.size() < limit {
		id := c.controlOrder[0]
		c.controlOrder = c.controlOrder[1:]
		b.own = append(b.own, c.control[id]...)
		delete(c.control, id)
	}
	if n := min(len(c.forgets), (limit-b.size())/wire.HeaderLen); n > 0 {
		for _, id := range c.forgets[:n] {
			b.own = wire.AppendEmpty(b.own, wire.TypeForget, id, 0)
		}
		c.forgets = c.forgets[:copy(c.forgets, c.forgets[n:])]
	}
	for c.delayed.head != nil && c.delayed.head.ackDue <= now {
		s := c.delayed.pop()
		if s.ackWaits {
			c.acks.push(s)
		}
	}
	// A receiver, too, needs to know the round trip: it decides about windows.
	inUse := c.acks.head != nil || c.fresh.head != nil || c.bulk.head != nil
	if c.ping || inUse && now-c.pingSent >= rttEvery {
		c.ping, c.pingSent = false, now
		c.pingsOut++
		b.own = wire.AppendEmpty(b.own, wire.TypePing, 0, uint64(now))
	}
	for c.acks.head != nil && b.size() < limit {
		s := c.acks.pop()
		s.ackWaits = false
		if !s.forgotten {
			b.own = wire.AppendAck(b.own, s.id, s.recv.acked(), s.recv.granted)
		}
	}
	// An id opens before anything of a later id, so that the peer can tell a late OPEN from a new one.
	for c.opens.head != nil && b.size() < limit {
		s := c.opens.pop()
		if s.forgotten || s.openSent {
			continue
		}
		s.openSent = true
		b.own = wire.AppendOpen(b.own, s.id, s.recv.granted, s.open)
		c.touch(s)
	}
	n := b.size()
	c.fillFlows(b, limit)
	c.traffic.add(b.size()-n, now)
}

// ready reports whether fill has something to send now, apart from delayed ACKs.
func (c *core) ready() bool {
	return c.streamsWait() || c.acks.head != nil || len(c.forgets) > 0 ||
		c.pong || c.ping || c.goAway != nil || len(c.controlOrder) > 0 || len(c.checks) > 0 || c.retire
}

// streamsWait reports whether streams have something to send that the peer answers.
func (c *core) streamsWait() bool {
	return c.opens.head != nil || c.fresh.head != nil || c.bulk.head != nil
}

// fillFlows shares the batch between the streams with something to send: deficit round robin over two lists as in
// FQ-CoDel (RFC 8290 section 4). A stream that was idle goes ahead with one quantum. A stream that has used its quantum
// up queues with the bulk. So a keystroke passes a download, and downloads share evenly.
func (c *core) fillFlows(b *bundle, limit int) {
	for b.size() < limit {
		from := &c.fresh
		if from.head == nil {
			from = &c.bulk
		}
		s := from.pop()
		if s == nil {
			break
		}
		h := &s.send
		if s.forgotten || !s.openSent {
			continue
		}
		if !h.pending() {
			continue
		}
		if h.deficit <= 0 {
			h.deficit += quantum
			c.bulk.push(s)
			continue
		}
		for bytes := min(h.q.end, h.credit); h.deficit > 0 && h.nxt < bytes && b.size() < limit; {
			n := b.size()
			h.addData(b, s.id, min(limit, int(bytes-h.nxt)))
			h.deficit -= b.size() - n
		}
		for h.nxt >= h.q.end && h.pending() {
			e := wire.End{Kind: h.end, Code: h.code, CRC: h.q.endCRC()}
			if h.nxt > h.q.end {
				e.Kind = wire.RST
			}
			b.own = wire.AppendEnd(b.own, s.id, h.nxt, e)
			h.nxt++
			h.max = max(h.max, h.nxt)
		}
		switch {
		case h.pending() && h.deficit > 0: // the batch is full, not the stream's turn over
			c.fresh.push(s)
			return
		case h.pending() || from == &c.fresh:
			// One that became empty takes its place in the queue too, or it would be new again at once and starve the bulk.
			c.bulk.push(s)
		}
	}
}

// addData adds the DATA frame at nxt, with at most so many bytes.
func (h *sendHalf) addData(b *bundle, id uint64, limit int) {
	if h.cur == nil || h.nxt < h.curOff {
		h.cur, h.curOff = h.q.head, h.q.base
	}
	for h.nxt >= h.curOff+uint64(h.cur.n) {
		h.curOff += uint64(h.cur.n)
		h.cur = h.cur.next
	}
	from := int(h.nxt - h.curOff)
	to := min(h.cur.n, from+limit)
	b.add(id, h.nxt, h.cur, from, to)
	h.nxt += uint64(to - from)
	h.max = max(h.max, h.nxt)
}

// bundle is the frames of one batch on their way out. Small ones are built in its own memory; the bytes of a chunk stay where
// they are, with their header in front of them, and the chunk is pinned until the batch is encrypted.
type bundle struct {
	mem    frameBuffer
	own    []byte   // frames that were built here, a part of mem
	cut    int      // bytes of own that are in pieces
	pieces [][]byte // what goes on the wire, in order; each array has room for one byte behind
	pinned []*Chunk
	lent   int // bytes in pinned
}

var bundles = sync.Pool{New: func() any { return new(bundle) }}

func newBundle() *bundle {
	b := bundles.Get().(*bundle)
	b.reset()
	return b
}

func (b *bundle) reset() {
	b.own, b.cut, b.pieces, b.pinned, b.lent = b.mem[:0], 0, b.pieces[:0], b.pinned[:0], 0
}

// size is how many bytes of frames there are.
func (b *bundle) size() int { return len(b.own) + b.lent }

// close returns the frames as pieces. Nothing may be added any more.
func (b *bundle) close() [][]byte {
	if n := len(b.own); n > b.cut {
		b.own = append(b.own, 0)[:n]
		b.pieces = append(b.pieces, b.own[b.cut:n])
		b.cut = n
	}
	return b.pieces
}

// add adds a frame of data: in place where the chunk is the frame's alone, copied otherwise. slot.mu is held, as in free.
func (b *bundle) add(stream, offset uint64, c *Chunk, from, to int) {
	if from > 0 || to < c.n || to < pinFrom || c.pins > 0 {
		b.own = wire.AppendHeader(b.own, wire.TypeData, stream, offset, to-from)
		b.own = append(b.own, c.data()[from:to]...)
		return
	}
	b.close()
	wire.AppendHeader(c.mem[:0], wire.TypeData, stream, offset, to)
	c.pins++
	b.pinned = append(b.pinned, c)
	b.pieces = append(b.pieces, c.mem[:wire.HeaderLen+to])
	b.lent += wire.HeaderLen + to
}

// pinFrom is from how many bytes on a frame is worth a TLS record of its own.
const pinFrom = ChunkSize / 2

// free gives everything back. The pieces must not be used any more.
func (b *bundle) free() {
	for _, c := range b.pinned {
		c.unpin()
	}
	clear(b.pinned)
	clear(b.pieces)
	bundles.Put(b)
}

func (c *core) receiveAck(s *streamCore, f wire.Frame) (event, error) {
	h := &s.send
	// Against the highest offset ever sent: after a resume nxt stands lower, and a late ACK is still honest.
	if f.Offset > h.max {
		return event{}, violation(wire.ErrAckBeyond, "ACK of %d on stream %d, sent %d", f.Offset, s.id, h.max)
	}
	h.credit = max(h.credit, wire.AckCredit(f))
	if f.Offset > h.una {
		c.acked++
		h.ack(f.Offset)
	}
	c.touch(s)
	c.settle(s)
	return event{kind: evAcked, stream: s}, nil
}

// ack frees what the peer has in custody, up to off, which lies above una.
func (h *sendHalf) ack(off uint64) {
	h.una = off
	h.nxt = max(h.nxt, off)
	if h.cur != nil && h.curOff+uint64(h.cur.n) <= off {
		h.cur = nil
	}
	h.q.freeBelow(min(off, h.q.end))
}
