package link

import (
	"errors"
	"sync"
	"time"

	"reverser/internal/wire"
)

// inbound is what only the connection's reader uses.
type inbound struct {
	pending *Stream  // that parts belong to
	parts   [][]byte // of DATA frames in order; made when the first comes
	bulk    bool     // much moved lately
}

// readLoop applies frames until the connection ends. While it waits for the next one it holds no buffer.
func (c *carrier) readLoop() error {
	var buf *frameBuffer
	have, size := 0, 0 // bytes in buf; the size of the last batch, which is a good guess at the next one's
	for {
		turn := size
		if err := c.await(turn); err != nil {
			return err
		}
		if buf == nil {
			buf = frameBuffers.Get().(*frameBuffer)
		}
		n, err := c.conn.Records(buf[have:])
		have, size = have+n, n
		c.lastRead.Store(int64(c.slot.link.now()))
		used, wrong := c.apply(buf[:have])
		EndTurn(turn)
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
		now := sl.link.now()
		c.armAck(now)
		c.bulk = sl.link.dials && sl.core.traffic.lately(now) >= bulkStep
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

// sayChecksum reports what must never happen. mu is held, and released meanwhile.
func (sl *slot) sayChecksum(s *Stream) {
	sl.mu.Unlock()
	sl.link.log.Error("bytes of a connection did not arrive as they were sent: it was reset; suspect the memory of either machine, or this program",
		"client", s.open.Client.String(), "slot", sl.index, "stream", s.id)
	sl.mu.Lock()
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
		return c.unlocked(func() error { l.goingAway(g); return nil })
	case wire.TypeClaim, wire.TypeUnclaim, wire.TypeRound, wire.TypeClaimed, wire.TypeUnclaimed:
		if sl.index != 0 {
			return violation(wire.ErrUnexpected, "%s on slot %d", f.Type, sl.index)
		}
		err := c.unlocked(func() error { return l.owner.Message(l, f) })
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

// giveUp tells the peer what it did wrong, and ends the session where the state cannot be trusted any more.
func (c *carrier) giveUp(err error) {
	p, ok := errors.AsType[*violationError](err)
	if !ok {
		return
	}
	sl := c.slot
	sl.mu.Lock()
	current := sl.cur == c
	if current {
		sl.cur = nil // the writer stops; what it has in hand goes first
		c.err = err
		sl.since = sl.link.now()
		sl.core.lost(c.gen)
		c.work.Broadcast()
	}
	sl.mu.Unlock()
	if !current {
		return
	}
	c.conn.SetDeadline(time.Now().Add(time.Second))
	c.conn.Write(wire.AppendErr(nil, wire.Err{Code: p.code, Text: p.text}))
	if p.fatal {
		sl.link.Kill(err)
	}
	drain(c.conn)
}
