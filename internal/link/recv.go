package link

import (
	"errors"
	"hash/crc32"
	"time"

	"reverser/internal/wire"
)

// Inbound flow, in the order the bytes meet it:
//  1. carrier.readLoop (inbound.go) reads, decrypts and parses frames.
//  2. core.receive checks each against the stream's state and trims what came before.
//  3. Stream.deliver (inbound.go) hands the bytes to the stream's Receiver, which writes them to its socket at once; what
//     the socket does not take waits in the receive queue, at most a window.
//  4. What left the process is consumed: recvHalf.consume grants new credit.

// recvHalf is the incoming direction of a stream: consumed ≤ nxt ≤ granted.
type recvHalf struct {
	nxt      uint64 // next offset expected; everything below is in this process's custody
	crc      uint32 // of the direction up to nxt
	q        queue  // received, not consumed. Its offsets count from where it last was empty
	pos      int    // consumed bytes of q.head
	consumed uint64 // left the process
	granted  uint64 // credit that the peer has
	win      uint64 // credit to grant ahead of consumed
	charged  int64  // part of granted-consumed that is charged to the budget
	lent     int64  // part of charged that others may use: see core.withdraw
	epoch    time.Duration
	mark     uint64        // consumed at epoch
	last     time.Duration // of data
	end      wire.EndKind
	code     wire.Code
	abort    bool // RST after FIN
	discard  bool // the socket is gone: consume unseen
	behind   bool // the socket holds bytes that it could not send: it is what limits the stream, not the window
}

// acked is the offset for an ACK: everything below is in this process's custody, END included.
func (r *recvHalf) acked() uint64 {
	n := r.nxt
	if r.end != 0 {
		n++
	}
	if r.abort {
		n++
	}
	return n
}

// held is how many bytes are in custody and have not left the process. What is thrown away does not count.
func (r *recvHalf) held() int64 {
	if r.discard {
		return 0
	}
	return int64(r.nxt - r.consumed)
}

func (r *recvHalf) reset() bool { return r.end == wire.RST || r.abort }

// event is what a received frame asks of the shell.
type event struct {
	kind   eventKind
	stream *streamCore
	data   []byte // with evData: new bytes in order; aliases the frame
}

type eventKind uint8

const (
	evNone   eventKind = iota
	evData             // stream received data
	evEnd              // stream received its end: FIN or RST
	evOpened           // the peer opened the stream
	evReset            // stream is over without an END from the peer: tell its socket RST
	evAcked            // stream may have room for more to send
)

// receive applies one frame of a stream. Frames of the link are the shell's.
func (c *core) receive(f wire.Frame, now time.Duration) (event, error) {
	s := c.streams[f.Stream]
	if s == nil {
		return c.receiveUnknown(f)
	}
	if c.glitches > 0 {
		c.glitches--
	}
	switch f.Type {
	case wire.TypeData:
		return c.receiveData(s, f, now)
	case wire.TypeAck:
		return c.receiveAck(s, f)
	case wire.TypeEnd:
		return c.receiveEnd(s, f)
	case wire.TypeOpen:
		if c.mine(s.id) {
			return event{}, notTheOpener(f)
		}
		return event{}, c.glitch() // sent again after a resume that crossed it
	case wire.TypeForget:
		if c.mine(s.id) {
			return event{}, notTheOpener(f)
		}
		return c.forget(s), nil
	}
	return event{}, violation(wire.ErrUnexpected, "%s on a stream", f.Type)
}

// notTheOpener is the violation of a peer that decides about the id of a stream of this end.
func notTheOpener(f wire.Frame) error {
	return violation(wire.ErrUnexpected, "%s of stream %d from the end that did not open it", f.Type, f.Stream)
}

func (c *core) receiveUnknown(f wire.Frame) (event, error) {
	if !c.possible(f.Stream) {
		return event{}, violation(wire.ErrUnexpected, "%s of stream %d on slot %d", f.Type, f.Stream, c.index)
	}
	if c.mine(f.Stream) {
		switch {
		case f.Type == wire.TypeOpen || f.Type == wire.TypeForget:
			return event{}, notTheOpener(f)
		case f.Stream >= c.ids.next:
			return event{}, violation(wire.ErrUnexpected, "%s of stream %d that was never opened", f.Type, f.Stream)
		}
		return event{}, c.glitch() // late frame of a stream that was forgotten
	}
	if f.Type != wire.TypeOpen {
		if f.Stream > c.ids.seen && f.Type != wire.TypeForget {
			return event{}, violation(wire.ErrUnexpected, "%s of stream %d before its OPEN", f.Type, f.Stream)
		}
		return event{}, c.glitch()
	}
	if f.Stream <= c.ids.seen {
		return event{}, c.glitch() // seen and forgotten: an id lives once
	}
	o, err := wire.ParseOpen(f)
	_, unsupported := errors.AsType[*wire.UnsupportedError](err)
	switch {
	case err != nil && !unsupported:
		return event{}, misfit(wire.ErrFormat, "%s", err)
	case f.Offset > 1<<62:
		return event{}, violation(wire.ErrOverflow, "OPEN with credit %d", f.Offset)
	case !c.dials && c.features&wire.FeatureDialOpens == 0:
		return event{}, violation(wire.ErrUnexpected, "OPEN by the dialling end on a connection that has not negotiated it")
	case o.Kind == wire.OpenDatagrams && c.features&wire.FeatureDatagrams == 0:
		return event{}, violation(wire.ErrUnexpected, "OPEN of a flow on a connection that has not negotiated datagrams")
	case c.dials && o.Rest().Name != "":
		return event{}, violation(wire.ErrUnexpected, "OPEN that names %q: to the dialling end a claim is named by its number", o.More.Name)
	}
	c.ids.seen = f.Stream
	if unsupported {
		o = wire.Open{Service: o.Service} // nobody uses the stream, and a document must not say what is not known here
	}
	s := newStream(f.Stream, o)
	s.send.credit = f.Offset
	s.openSent = true
	s.recv.win, s.recv.granted = floorWindow, floorWindow
	c.add(s)
	if c.ids.others > 2*c.limits.accept {
		return event{}, violation(wire.ErrFlood, "%d streams, %d agreed", c.ids.others, c.limits.accept)
	}
	switch {
	case unsupported:
		c.decline(s, wire.CodeUnsupported)
	case c.ids.others > c.limits.accept:
		c.decline(s, wire.CodeLimit)
	default:
		return event{kind: evOpened, stream: s}, nil
	}
	return event{}, nil
}

// close records that the stream has no user at this end any more.
func (s *streamCore) close() { s.closed = true }

// decline resets a stream that the peer opened and that no user here gets.
func (c *core) decline(s *streamCore, code wire.Code) {
	c.end(s, wire.RST, code)
	s.recv.discard = true
	s.close()
}

// glitch counts a frame that does nothing.
func (c *core) glitch() error {
	if c.glitches += 2; c.glitches > glitchLimit {
		return violation(wire.ErrFlood, "%d frames that do nothing", c.glitches/2)
	}
	return nil
}

func (c *core) receiveData(s *streamCore, f wire.Frame, now time.Duration) (event, error) {
	r := &s.recv
	n := uint64(len(f.Payload))
	switch {
	case f.Offset+n < f.Offset || f.Offset+n > 1<<62:
		return event{}, violation(wire.ErrOverflow, "DATA of %d bytes at %d", n, f.Offset)
	case f.Offset+n <= r.nxt:
		c.Duplicates++
		return event{}, c.glitch()
	case r.end != 0:
		return event{}, violation(wire.ErrAfterEnd, "DATA on stream %d after its END", s.id)
	case f.Offset > r.nxt:
		return event{}, violation(wire.ErrGap, "DATA at %d on stream %d, want %d", f.Offset, s.id, r.nxt)
	case f.Offset+n > r.granted:
		return event{}, violation(wire.ErrCredit, "DATA up to %d on stream %d, granted %d", f.Offset+n, s.id, r.granted)
	}
	data := f.Payload
	if f.Offset < r.nxt {
		c.Duplicates++
		data = data[r.nxt-f.Offset:]
	}
	if now-r.last > idleGap {
		// The credit that is out stays; it is renewed at this size once it is used.
		r.win = min(r.win, openWindow)
		if !c.budget.roomy() {
			r.win = floorWindow
		}
		r.epoch, r.mark = now, r.consumed
	}
	r.last = now
	r.nxt += uint64(len(data))
	c.traffic.add(len(data), now)
	r.crc = crc32.Update(r.crc, castagnoli, data)
	c.ackLater(s, now)
	if s.closed {
		c.end(s, wire.RST, wire.CodeAborted) // as a socket that was closed answers
	}
	if r.discard || s.send.reset() {
		c.consume(s, len(data), now)
		return event{}, nil
	}
	return event{kind: evData, stream: s, data: data}, nil
}

func (c *core) ackLater(s *streamCore, now time.Duration) {
	if s.ackWaits || s.forgotten {
		return
	}
	s.ackWaits = true
	if !c.delayed.holds(s) {
		s.ackDue = now + ackDelay
		c.delayed.push(s)
	}
}

func (c *core) ackNow(s *streamCore) {
	if !s.forgotten {
		s.ackWaits = true
		c.acks.push(s)
	}
}

// consume says that n bytes left the process, and renews the credit when that is worth a frame. It reports whether there
// is something to send now.
func (c *core) consume(s *streamCore, n int, now time.Duration) bool {
	r := &s.recv
	r.consumed += uint64(n)
	if s.forgotten || r.end != 0 {
		r.settleCharge(c.budget, r.held()-floorWindow)
		return false
	}
	if got := r.consumed - r.mark; got >= r.win {
		// A whole window within two round trips: the window is what limits the stream.
		if now-r.epoch <= 2*c.roundTrip() && !r.behind {
			r.win = max(r.win, c.budget.window(min(2*r.win, maxWindow)))
		}
		r.epoch, r.mark = now, r.consumed
	}
	want := r.consumed + r.win
	if want < r.granted+min(r.win/4, ackEvery) {
		r.settleCharge(c.budget, int64(r.granted-r.consumed)-floorWindow)
		return false
	}
	for int64(r.win)-floorWindow > r.charged {
		if more := int64(r.win) - floorWindow - r.charged; c.budget.take(more) {
			r.charged += more
			break
		}
		r.win = max(r.win-r.win/4, floorWindow)
	}
	if want = r.consumed + r.win; want < r.granted+min(r.win/4, ackEvery) {
		r.settleCharge(c.budget, int64(r.granted-r.consumed)-floorWindow)
		return false
	}
	r.granted = want
	r.settleCharge(c.budget, int64(r.win)-floorWindow)
	c.ackNow(s)
	return true
}

// consumeBacklog is consume for n bytes of the first chunk that waits. behind reports whether the receiver is behind.
func (c *core) consumeBacklog(s *streamCore, n int, behind bool, now time.Duration) bool {
	r := &s.recv
	if r.discard {
		return false // accounted for already
	}
	r.behind = behind
	r.pos += n
	if first := r.q.head; r.pos == first.n {
		r.q.freeBelow(r.q.base + uint64(first.n))
		r.pos = 0
	}
	return c.consume(s, n, now)
}

// discard throws away what waits, and what will come. It reports whether there is something to send now.
func (c *core) discard(s *streamCore, now time.Duration) bool {
	r := &s.recv
	if r.discard {
		return false
	}
	r.discard = true
	n := int(r.q.end-r.q.base) - r.pos
	// Not freed: a drain may be writing from the first chunk, and a chunk in the pool is somebody else's.
	r.q, r.pos = queue{}, 0
	return n > 0 && c.consume(s, n, now)
}

// due reports whether n more bytes make up a whole consumed window. The window may grow then.
func (r *recvHalf) due(n int) bool { return r.consumed+uint64(n)-r.mark >= r.win }

// setBehind notes whether bytes that the receiver took still wait for its own peer.
func (r *recvHalf) setBehind(yes bool) { r.behind = yes }

// settleCharge gives back what is charged beyond need.
func (r *recvHalf) settleCharge(b *share, need int64) {
	need = max(need, 0)
	if r.charged <= need {
		return
	}
	if back := min(r.lent, r.charged-need); back > 0 {
		b.lend(-back)
		r.lent -= back
	}
	b.give(r.charged - need)
	r.charged = need
}

func (c *core) receiveEnd(s *streamCore, f wire.Frame) (event, error) {
	e, err := wire.ParseEnd(f)
	if err != nil {
		return event{}, misfit(wire.ErrFormat, "%s", err)
	}
	r := &s.recv
	want := r.acked()
	// Behind an end comes a RST or nothing. An end that was taken for a RST because of its checksum was a FIN to the peer.
	closed := r.abort || r.end == wire.RST && r.code != wire.CodeChecksum || r.end != 0 && e.Kind != wire.RST
	switch {
	case f.Offset > want || f.Offset == want && closed:
		return event{}, violation(wire.ErrGap, "END(%s) of stream %d at %d, want %d", e.Kind, s.id, f.Offset, want)
	case f.Offset < r.nxt, f.Offset < want && f.Offset == r.nxt && e.Kind != r.end && r.code != wire.CodeChecksum:
		return event{}, violation(wire.ErrAfterEnd, "END(%s) of stream %d at %d contradicts what came before", e.Kind, s.id, f.Offset)
	case f.Offset < want:
		c.ackNow(s)
		return event{}, c.glitch()
	}
	if r.end == 0 {
		r.end, r.code = e.Kind, e.Code
		if e.CRC != r.crc {
			c.ChecksumFails++
			r.end, r.code = wire.RST, wire.CodeChecksum
		}
	} else {
		r.abort = true
		if r.end == wire.FIN {
			r.code = e.Code
		}
	}
	r.settleCharge(c.budget, r.held()-floorWindow)
	c.ackNow(s)
	switch {
	case r.code == wire.CodeChecksum && e.Kind != wire.RST:
		c.end(s, wire.RST, wire.CodeChecksum) // the peer does not know yet
	case r.reset():
		s.send.drop(c.budget)
	}
	c.settle(s)
	return event{kind: evEnd, stream: s}, nil
}
