package link

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"reverser/internal/wire"
)

// inbound is what only the connection's reader uses.
type inbound struct {
	pending *Stream  // that parts belong to
	parts   [][]byte // of DATA frames in order; made when the first comes
	bulk    bool     // much moved lately
	turn    int      // bytes of the batch whose turn it is
}

// readLoop applies frames until the connection ends. While it waits for the next one it holds no buffer.
func (c *carrier) readLoop() error {
	var buf *frameBuffer
	have, size := 0, 0 // bytes in buf; the size of the last batch, which is a good guess at the next one's
	for {
		c.turn = size
		if err := c.await(c.turn); err != nil {
			return err
		}
		if buf == nil {
			buf = frameBuffers.Get().(*frameBuffer)
		}
		n, err := c.conn.Records(buf[have:])
		have, size = have+n, n
		c.lastRead.Store(int64(c.slot.link.now()))
		used, wrong := c.apply(buf[:have])
		EndTurn(c.turn)
		if c.bulk {
			c.slot.link.wantCarriers()
		}
		switch {
		case wrong != nil:
			c.giveUp(wrong)
			return wrong
		case err != nil:
			return err
		}
		if have = copy(buf[:], buf[used:have]); have == 0 {
			frameBuffers.Put(buf)
			buf = nil
		}
	}
}

// await waits for something to read, and for the turn to process it. Bulk is read off the socket in its turn as well, as far as it
// is there already: to wait for the socket is no part of a turn. On error there is no turn to end.
func (c *carrier) await(turn int) error {
	if turn >= ChunkSize {
		TakeTurn(turn)
		ready, err := c.conn.Ready()
		if ready {
			return nil
		}
		EndTurn(turn)
		if err != nil {
			return err
		}
	}
	if err := c.conn.Wait(); err != nil {
		return err
	}
	TakeTurn(turn)
	return nil
}

// frameBuffer holds the frames of one system call and the beginning of one more.
type frameBuffer [batch + 2*(wire.HeaderLen+wire.MaxPayload)]byte

var frameBuffers = sync.Pool{New: func() any { return new(frameBuffer) }}

// apply applies the whole frames in b, answers them as far as that needs no waiting, and returns how many bytes they took.
func (c *carrier) apply(b []byte) (used int, err error) {
	sl := c.slot
	sl.mu.Lock()
	defer sl.mu.Unlock()
	used, err = c.applyLocked(b)
	if sl.cur == c {
		c.bulk = sl.link.dials && sl.core.traffic.lately(sl.link.now()) >= bulkStep
	}
	return used, err
}

// applyLocked is apply without what is the reader's own.
func (c *carrier) applyLocked(b []byte) (used int, err error) {
	sl := c.slot
	used, err = c.applyFrames(b)
	c.deliver() // what was received before an error is the stream's all the same
	switch {
	case sl.cur != c:
		sl.wake() // what this one had read may have brought credit, which another one has to tell of
		return used, err
	case sl.core.acks.head != nil || len(sl.core.forgets) > 0 || c.writer == absent && sl.core.ready():
		c.send(false)
	}
	if sl.cur == c {
		c.armAck(sl.link.now())
	}
	return used, err
}

func (c *carrier) applyFrames(b []byte) (used int, err error) {
	sl := c.slot
	for {
		f, n, err := wire.Parse(b[used:])
		if err == wire.ErrTruncated {
			return used, nil
		}
		if c.pending != nil && (f.Type != wire.TypeData || f.Stream != c.pending.id || len(c.parts) == cap(c.parts)) {
			c.deliver()
		}
		if !sl.core.current(c.gen) {
			return used, errFenced
		}
		if err != nil {
			return used, misfit(wire.ErrFormat, "%s", err)
		}
		used += n
		if f.Type >= wire.TypeSkip {
			if err := c.applyOptional(f); err != nil {
				return used, err
			}
			continue
		}
		if f.Type == wire.TypeDatagram {
			return used, violation(wire.ErrUnexpected, "DATAGRAM on a connection that has not negotiated datagrams")
		}
		if f.Stream == 0 {
			if err := c.applyLink(f); err != nil {
				return used, err
			}
			continue
		}
		now := sl.link.now()
		c.streamsMoved(now)
		ev, err := sl.core.receive(f, now)
		if err != nil {
			return used, err
		}
		if ev.kind == evData {
			if c.parts == nil {
				c.parts = make([][]byte, 0, mostParts)
			}
			c.pending = ev.stream.whole
			c.parts = append(c.parts, ev.data)
		} else {
			sl.handle(ev)
		}
	}
}

// mostParts is how many frames of a stream are delivered at once.
const mostParts = 16

// deliver hands over the frames of one stream that came one behind the other: one system call writes them all. slot.mu is
// held; it is released while the receiver is called.
func (c *carrier) deliver() {
	if s := c.pending; s != nil {
		c.pending = nil
		s.deliver(c.parts)
		clear(c.parts)
		c.parts = c.parts[:0]
	}
}

// Receiver takes what arrives on a stream. Receive, Backlogged and Ended come one at a time and in order, without any lock
// held; Abort may come at any time, also beside them.
type Receiver interface {
	// Receive takes as much of the bytes, which follow each other, as it can without waiting and returns how much that was.
	Receive(bufs [][]byte) int
	// Behind reports whether bytes that Receive took still wait for the receiver's own peer. A larger window would only fill memory then.
	Behind() bool
	// Backlogged is called when bytes wait in the stream. The receiver calls Backlog and Consumed, from a goroutine of its own,
	// until Backlog returns nil.
	Backlogged()
	// Ended is called when the peer has sent FIN or RST and all bytes before it were received. A RST may follow a FIN.
	Ended(kind wire.EndKind, code wire.Code)
	// Abort is called when the stream ends at once and loses what it still held: the session ended, or the bytes before a
	// RST could not be delivered in time.
	Abort(code wire.Code)
}

// delivery is how what arrives reaches the Receiver.
type delivery struct {
	receiver Receiver
	rdl      *deadline // of Read
	calls    int32     // of the receiver that are under way, Abort apart
	detached bool      // between Detach and SetReceiver
	busy     bool      // somebody hands data to the receiver or drains the backlog
	told     wire.EndKind
	flush    *countdown // to the end of what is still delivered ahead of a RST; stands still while the stream is detached
}

// call begins a call of the receiver, for which slot.mu is released; returned ends it.
func (s *Stream) call() Receiver {
	s.calls++
	r := s.receiver
	s.slot.mu.Unlock()
	return r
}

func (s *Stream) returned() {
	s.slot.mu.Lock()
	if s.calls--; s.detached {
		s.change.Broadcast()
	}
}

// deliver takes new bytes in order. slot.mu is held; it is released while the receiver is called.
func (s *Stream) deliver(bufs [][]byte) {
	if s.receiver == nil || s.detached || s.busy || s.recv.q.head != nil {
		for _, b := range bufs {
			s.recv.q.write(b)
		}
		s.change.Broadcast()
		return
	}
	s.busy = true
	n := s.call().Receive(bufs)
	s.returned()
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	if n == total || s.recv.discard {
		n = total
	} else {
		s.recv.q.unread(n, bufs)
	}
	if s.recv.due(n) {
		behind := s.call().Behind()
		s.returned()
		s.recv.setBehind(behind)
	}
	s.slot.core.consume(&s.streamCore, n, s.slot.link.now()) // the caller sends what that brings
	s.handOver()
}

// handOver goes on with what became due while the receiver was busy. slot.mu is held, and so is busy, which it gives up
// or leaves to the receiver that drains the backlog.
func (s *Stream) handOver() {
	for {
		if s.detached {
			s.busy = false
			return
		}
		if s.recv.q.head != nil {
			if s.recv.reset() {
				s.limitFlush()
			}
			s.call().Backlogged()
			s.returned()
			return
		}
		kind := s.recv.end
		if s.recv.abort {
			kind = wire.RST
		}
		if kind == s.told {
			s.busy = false
			return
		}
		s.told = kind
		s.flush.stop()
		code := s.recv.code
		s.call().Ended(kind, code)
		s.returned()
	}
}

// limitFlush gives the bytes before a RST flushTimeout to be delivered. slot.mu is held.
func (s *Stream) limitFlush() {
	if s.flush == nil {
		s.flush = startCountdown(s.slot.link.now(), flushTimeout, s.giveUpFlush)
		return
	}
	s.flush.thaw(s.slot.link.now(), s.giveUpFlush) // behind Detach
}

// giveUpFlush ends a stream whose last bytes were not taken in time.
func (s *Stream) giveUpFlush() {
	s.slot.mu.Lock()
	late, r, code := s.flush.over(), s.receiver, s.recv.code
	if late && r == nil { // no receiver yet: the next one is told
		s.flush.left = 0
	}
	s.slot.mu.Unlock()
	if late && r != nil {
		r.Abort(code)
	}
}

const flushTimeout = 10 * time.Second

// ended takes note of the peer's end. slot.mu is held as in deliver.
func (s *Stream) ended() {
	s.change.Broadcast()
	if s.receiver == nil || s.detached {
		return
	}
	if s.busy {
		if s.recv.reset() {
			s.limitFlush()
		}
		return
	}
	s.busy = true
	s.handOver()
}

// Backlog returns bytes that wait for the receiver, nil when there are none any more, or not for this receiver. They stay valid until Consumed.
func (s *Stream) Backlog() []byte {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	if c := s.recv.q.head; c != nil && !s.detached {
		return c.data()[s.recv.pos:c.n]
	}
	s.handOver()
	return nil
}

// Consumed is called when the receiver has taken n bytes of what Backlog returned.
func (s *Stream) Consumed(n int) {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	s.consumedLocked(n)
}

func (s *Stream) consumedLocked(n int) {
	behind := s.receiver != nil || s.detached // else there would be no backlog
	if s.slot.core.consumeBacklog(&s.streamCore, n, behind, s.slot.link.now()) {
		s.slot.wake()
	}
}

// SetReceiver sets the receiver of what arrives. It is called once, and once more after each Detach. What arrived before is a backlog.
func (s *Stream) SetReceiver(r Receiver) {
	s.slot.mu.Lock()
	s.detached = false
	if s.dead {
		code := s.deadCode
		s.slot.mu.Unlock()
		if code == wire.CodeNone { // it died before it was handed over
			code = wire.CodeAborted
		}
		r.Abort(code)
		return
	}
	s.receiver = r
	s.busy = true
	s.handOver()
	s.slot.mu.Unlock()
}

// Detach takes the stream away from its receiver. When it returns, no call of the receiver is under way and none will come, but for an
// Abort that had begun, and Room returns ErrDetached. What arrives waits in the stream. Who is writing what Backlog returned may still
// say what was Consumed; it gets no more. Bytes may still be sent, too. SetReceiver ends the state, and tells nothing twice.
func (s *Stream) Detach() {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	s.detached = true
	s.change.Broadcast()
	for s.calls > 0 {
		s.change.Wait()
	}
	s.receiver, s.busy = nil, false
	s.flush.freeze(s.slot.link.now())
}

// handle does what a frame asks of the shell. mu is held; it is released while receivers are called.
func (sl *slot) handle(ev event) {
	if ev.kind == evNone {
		return
	}
	s := ev.stream.whole
	switch ev.kind {
	case evEnd:
		if s.recv.code == wire.CodeChecksum {
			sl.sayChecksum(s)
		}
		s.ended()
	case evAcked:
		s.change.Broadcast()
		if s.rest != nil { // what waits for credit has nobody else to send it
			sl.wake()
		}
	case evOpened:
		s.bind(sl)
		several := sl.link.dials && len(sl.core.streams) > 1
		sl.mu.Unlock()
		sl.link.owner.Opened(s)
		if several {
			sl.link.wantCarriers()
		}
		sl.mu.Lock()
	case evReset:
		code := wire.CodeReset
		switch s.send.code {
		case wire.CodeChecksum:
			code = wire.CodeChecksum
			sl.sayChecksum(s)
		case wire.CodeLimit: // see withdraw
			code = wire.CodeLimit
		}
		if r := s.kill(code); r != nil {
			sl.mu.Unlock()
			r.Abort(code)
			sl.mu.Lock()
		}
	}
}

// sayChecksum reports what must never happen, but that a hostile peer can have happen. mu is held, and released meanwhile.
func (sl *slot) sayChecksum(s *Stream) {
	sl.mu.Unlock()
	defer sl.mu.Lock()
	sl.link.say(sl.link, slog.LevelError, "bytes of a connection did not arrive as they were sent: it was reset; suspect the memory of either machine, or this program",
		"client", s.open.Client.String(), "slot", sl.index, "stream", s.id)
}

// applyOptional applies a frame that an end which does not know it skips. slot.mu is held.
func (c *carrier) applyOptional(f wire.Frame) error {
	sl := c.slot
	switch idle := sl.core.features&wire.FeatureIdle != 0; {
	case idle && f.Type == wire.TypeCheck && sl.link.dials && sl.index == 0:
		return c.unlocked(func() error { sl.link.checked(f.Offset); return nil })
	case idle && f.Type == wire.TypeRetire && !sl.link.dials && sl.index != 0:
		c.retire()
		return nil
	}
	return sl.core.glitch()
}

// applyLink applies a frame of the link itself. slot.mu is held.
func (c *carrier) applyLink(f wire.Frame) error {
	sl, l := c.slot, c.slot.link
	l.heard.ring()
	switch f.Type {
	case wire.TypePing:
		sl.core.answer(f.Offset)
		if c.writer != absent { // else apply sends it
			sl.wake()
		}
		return nil
	case wire.TypePong:
		if sent := time.Duration(f.Offset); sl.core.ponged(sent, l.now()) {
			sl.pong = sent
			c.ponged(sent)
			return nil
		}
		return sl.core.glitch()
	case wire.TypeErr:
		return peerError(f)
	case wire.TypeGoAway:
		g, err := wire.ParseGoAway(f)
		if err != nil {
			return asViolation(err)
		}
		return c.unlocked(func() error {
			if l.dials {
				l.goingAway(g)
				return nil
			}
			return c.paced(func() error { l.goingAway(g); return nil })
		})
	case wire.TypeClaim, wire.TypeUnclaim, wire.TypeRound, wire.TypeClaimed, wire.TypeUnclaimed:
		if sl.index != 0 {
			return violation(wire.ErrUnexpected, "%s on slot %d", f.Type, sl.index)
		}
		err := c.unlocked(func() error { return c.paced(func() error { return l.owner.Message(l, f) }) })
		if _, malformed := errors.AsType[*wire.FormatError](err); malformed {
			return violation(wire.ErrClaimInvalid, "%s", err)
		}
		if err != nil {
			return asViolation(err)
		}
		if n := len(sl.core.control); n > maxControl {
			return violation(wire.ErrFlood, "%d answers about claims that the peer does not read", n)
		}
		return nil
	}
	return misfit(wire.ErrUnexpected, "%s on a connection that is attached", f.Type)
}

func (c *carrier) unlocked(f func() error) error {
	c.slot.mu.Unlock()
	defer c.slot.mu.Lock()
	return f()
}

// tenantCrowd is a crowd of what the bridges of one key say or ask: more than one sends that does not begin with many services. What follows
// it on the connection waits behind it, 1.25 s behind 5,000 claims on two processors.
const tenantCrowd = 2

// paced hands something to the owner, in a turn of its own and at the pace of the key: a batch may hold thousands of claims, and as many that
// are taken back.
func (c *carrier) paced(f func() error) (err error) {
	l := c.slot.link
	EndTurn(c.turn)
	InTurn(func() { err = f() })
	l.tenants.keep(l.keyID)
	TakeTurn(c.turn)
	return err
}
