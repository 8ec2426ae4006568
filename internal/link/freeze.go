package link

import (
	"encoding/binary"
	"fmt"
	"time"

	"reverser/internal/wire"
)

// What a slot is, in a document (document.go), when another process goes on with it. Its connection is fenced before: to the peer
// this looks like a break, and the slot resumes. What fence drops is not carried, and neither are the lists of what there is to
// send: both come back with the tables. Streams that the core has forgotten may still have something to deliver. They belong to
// no slot any more and stand in a document of their own. Ids do not name them, since they may be of an earlier session: a stream is
// named by its place in its document.
//
// The clock stands still meanwhile: a document says what the time was, and its reader shifts every time in it.

// The records of a slot and of a stream.
const (
	recNumbers  = needed | 0x101
	recCounters = 0x102
	recStream   = needed | 0x103

	recOpen   = needed | 0x201 // the OPEN frame
	recStands = needed | 0x202 // what the stream has gone through
	recSend   = needed | 0x203
	recUnsent = needed | 0x204 // the bytes of the send queue
	recRecv   = needed | 0x205
	recUnread = needed | 0x206 // the bytes of the receive queue
	recLimits = 0x207          // timers that run
)

// freeze appends the state of a slot that no connection carries, and returns the streams in the order of their places.
func (c *core) freeze(b []byte, now time.Duration) ([]byte, []*Stream) {
	b, at := beginRecord(b, recNumbers)
	b = append(b, c.index, flags(c.dials))
	for _, v := range []uint64{uint64(now), c.gen, c.ids.next, c.ids.seen, c.limits.credit, uint64(c.features)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(c.limits.open))
	b = binary.BigEndian.AppendUint32(b, uint32(c.limits.accept))
	b = endRecord(b, at)
	b, at = beginRecord(b, recCounters)
	b = binary.BigEndian.AppendUint64(b, c.Duplicates)
	b = binary.BigEndian.AppendUint64(b, c.ChecksumFails)
	b = endRecord(b, at)
	var streams []*Stream
	for _, s := range c.sorted() {
		streams = append(streams, s.whole)
		b = s.whole.freeze(b, now)
	}
	return b, streams
}

// thawCore makes a core that is equal to the one that freeze described, charges its memory to budget, and returns the streams in the
// order of their places. On error nothing is charged.
func thawCore(doc []byte, now time.Duration, budget *share) (*core, []*Stream, error) {
	var c *core
	var streams []*Stream
	var shift time.Duration
	err := eachRecord(doc, func(t recordType, v []byte) error {
		f := &fields{b: v}
		switch {
		case t == recNumbers && c == nil:
			index, dials := f.u8(), f.u8()&1 != 0
			c = newCore(dials, index, budget)
			shift = now - f.time()
			c.gen, c.ids.next, c.ids.seen, c.limits.credit, c.features = f.u64(), f.u64(), f.u64(), f.u64(), wire.Features(f.u64())
			c.limits.open, c.limits.accept = int(f.u32()), int(f.u32())
			if f.short || !c.mine(c.ids.next) || uint8(c.ids.next) != index || c.limits.open > MaxStreams || c.limits.accept > MaxStreams {
				return badDocument("the numbers of slot %d", index)
			}
			return nil
		case c == nil:
			return badDocument("record %#x before the slot's numbers", uint16(t))
		case t == recCounters:
			c.Duplicates, c.ChecksumFails = f.u64(), f.u64()
			return nil
		case t == recStream:
			s, err := thawStream(v, shift)
			if err != nil {
				return err
			}
			if err := c.adopt(s, streams); err != nil {
				return fmt.Errorf("stream %#x of slot %d: %w", s.id, c.index, err)
			}
			streams = append(streams, s)
			return nil
		}
		return errUnknownRecord
	})
	if err == nil && c == nil {
		err = badDocument("a slot without numbers")
	}
	if err != nil {
		return nil, nil, err
	}
	for _, s := range streams {
		s.charge(budget)
	}
	return c, streams, nil
}

// adopt takes a stream of a document into the core, behind those that came before.
func (c *core) adopt(s *Stream, before []*Stream) error {
	switch n := len(before); {
	case s.forgotten:
		return badDocument("it is forgotten, and stands among those that are not")
	case uint8(s.id) != c.index || c.mine(s.id) && s.id >= c.ids.next || !c.mine(s.id) && s.id > c.ids.seen:
		return badDocument("its id was never opened")
	case n > 0 && s.id <= before[n-1].id:
		return badDocument("it does not come in its order")
	case n == wire.MaxTable:
		return badDocument("there are more than %d", n)
	}
	c.add(&s.streamCore)
	return nil
}

// freezeFinished appends streams that the core has forgotten and that still deliver. They are named by their places.
func freezeFinished(b []byte, streams []*Stream, now time.Duration) []byte {
	b, at := beginRecord(b, recNumbers)
	b = binary.BigEndian.AppendUint64(b, uint64(now))
	b = endRecord(b, at)
	for _, s := range streams {
		b = s.freeze(b, now)
	}
	return b
}

// thawFinished makes what freezeFinished described.
func thawFinished(doc []byte, now time.Duration, budget *share) ([]*Stream, error) {
	var streams []*Stream
	var shift time.Duration
	err := eachRecord(doc, func(t recordType, v []byte) error {
		switch t {
		case recNumbers:
			f := &fields{b: v}
			shift = now - f.time()
			return nil
		case recStream:
			s, err := thawStream(v, shift)
			if err == nil && !s.forgotten {
				err = badDocument("stream %#x is not forgotten, and stands among those that are", s.id)
			}
			streams = append(streams, s)
			return err
		}
		return errUnknownRecord
	})
	if err != nil {
		return nil, err
	}
	for _, s := range streams {
		s.charge(budget)
	}
	return streams, nil
}

// freeze appends the record of one stream.
func (s *Stream) freeze(b []byte, now time.Duration) []byte {
	b, stream := beginRecord(b, recStream)
	b, at := beginRecord(b, recOpen)
	b = endRecord(wire.AppendOpen(b, s.id, s.recv.granted, s.open), at)

	b, at = beginRecord(b, recStands)
	b = append(b, flags(s.openSent, s.forgotten, s.dead, s.closed, s.noWait), uint8(s.told))
	b = binary.BigEndian.AppendUint64(b, s.resumesLocked())
	b = endRecord(append(b, uint8(s.deadCode)), at)

	h := &s.send
	b, at = beginRecord(b, recSend)
	b = append(b, uint8(h.end), uint8(h.code), flags(h.abort, h.dropped))
	for _, v := range []uint64{h.una, h.nxt, h.max, h.credit, h.q.base} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = endRecord(binary.BigEndian.AppendUint32(b, h.q.crc), at)
	if h.q.head != nil {
		b, at = beginRecord(b, recUnsent)
		b = endRecord(h.q.append(b, 0), at)
	}

	r := &s.recv
	b, at = beginRecord(b, recRecv)
	b = append(b, uint8(r.end), uint8(r.code), flags(r.abort, r.discard, r.behind))
	for _, v := range []uint64{r.nxt, r.consumed, r.granted, r.win, uint64(r.charged), uint64(r.epoch), r.mark, uint64(r.last)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = endRecord(binary.BigEndian.AppendUint32(b, r.crc), at)
	if r.q.head != nil {
		b, at = beginRecord(b, recUnread)
		b = endRecord(r.q.append(b, r.pos), at)
	}

	if s.flush != nil || s.rest != nil {
		b, at = beginRecord(b, recLimits)
		b = append(b, flags(s.flush != nil, s.rest != nil))
		for _, v := range []uint64{uint64(s.flush.timeLeft(now)), uint64(s.rest.timeLeft(now)), s.restCredit} {
			b = binary.BigEndian.AppendUint64(b, v)
		}
		b = endRecord(b, at)
	}
	return endRecord(b, stream)
}

// parts are the records that every stream has.
const parts = 1<<(recOpen&0xf) | 1<<(recStands&0xf) | 1<<(recSend&0xf) | 1<<(recRecv&0xf)

// thawStream makes a stream that is equal to the one that freeze described. Its memory is not charged yet.
func thawStream(doc []byte, shift time.Duration) (*Stream, error) {
	var s *Stream
	var unsent, unread []byte
	var have uint16 // a bit for each type that is known
	err := eachRecord(doc, func(t recordType, v []byte) error {
		f := &fields{b: v}
		if t&^needed < recOpen&^needed || t&^needed > recLimits {
			return errUnknownRecord
		}
		if bit := uint16(1) << (t & 0xf); have&bit != 0 || s == nil && t != recOpen {
			return badDocument("record %#x in the wrong place", uint16(t))
		} else {
			have |= bit
		}
		switch t {
		case recOpen:
			frame, n, err := wire.Parse(v)
			if err != nil || n != len(v) || frame.Type != wire.TypeOpen {
				return badDocument("a stream without its OPEN")
			}
			o, err := wire.ParseOpen(frame)
			if err != nil {
				return badDocument("the OPEN of stream %#x: %s", frame.Stream, err)
			}
			s = newStream(frame.Stream, o).whole
		case recStands:
			setFlags(f.u8(), &s.openSent, &s.forgotten, &s.dead, &s.closed, &s.noWait)
			s.told, s.resumes0, s.deadCode = wire.EndKind(f.u8()), -f.u64(), wire.Code(f.u8())
		case recSend:
			h := &s.send
			h.end, h.code = wire.EndKind(f.u8()), wire.Code(f.u8())
			setFlags(f.u8(), &h.abort, &h.dropped)
			h.una, h.nxt, h.max, h.credit, h.q.base = f.u64(), f.u64(), f.u64(), f.u64(), f.u64()
			h.q.crc, h.q.end = f.u32(), h.q.base
		case recUnsent:
			unsent = v
		case recRecv:
			r := &s.recv
			r.end, r.code = wire.EndKind(f.u8()), wire.Code(f.u8())
			setFlags(f.u8(), &r.abort, &r.discard, &r.behind)
			r.nxt, r.consumed, r.granted, r.win = f.u64(), f.u64(), f.u64(), f.u64()
			r.charged, r.epoch, r.mark, r.last = int64(f.u64()), f.time()+shift, f.u64(), f.time()+shift
			r.crc = f.u32()
		case recUnread:
			unread = v
		case recLimits:
			var flush, rest bool
			setFlags(f.u8(), &flush, &rest)
			if left := f.time(); flush {
				s.flush = &countdown{left: left}
			}
			if left := f.time(); rest {
				s.rest = &countdown{left: left}
			}
			s.restCredit = f.u64()
		default:
			return errUnknownRecord
		}
		if f.short {
			return badDocument("record %#x of stream %#x is too short", uint16(t), s.id)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case have&parts != parts:
		return nil, badDocument("a stream of which parts are missing")
	}
	s.send.q.write(unsent)
	s.recv.q.write(unread)
	if !s.possible(uint64(len(unread))) {
		return nil, badDocument("stream %#x contradicts itself", s.id)
	}
	return s, nil
}

// possible reports whether a stream that was read from a document is one that this code could have written. Nothing that comes later
// looks at it again.
func (s *Stream) possible(unread uint64) bool {
	const far = 1<<62 + maxWindow
	ends := func(end wire.EndKind, second bool) bool {
		return end == 0 && !second || end == wire.RST && !second || end == wire.FIN
	}
	h, r := &s.send, &s.recv
	if !ends(h.end, h.abort) || !ends(s.told, false) || r.end > wire.RST || r.abort && r.end == 0 {
		return false
	}
	if h.q.base > far || h.q.end > far || h.una > h.nxt || h.nxt > h.max || h.max > h.total() {
		return false
	}
	if h.dropped && h.q.head != nil || !h.dropped && h.q.base > min(h.una, h.q.end) || s.forgotten && !h.dropped {
		return false
	}
	if r.consumed > r.nxt || r.nxt > r.granted || r.granted > far || unread > r.nxt-r.consumed || r.mark > r.consumed {
		return false
	}
	return r.win >= floorWindow && r.win <= maxWindow && r.charged >= 0 && r.charged <= max(int64(r.granted-r.consumed)-floorWindow, 0)
}

// charge charges what a stream of a document holds. It was charged in the other process, so it is charged here without a limit.
func (s *Stream) charge(b *share) {
	b.add(s.recv.charged)
	s.send.charge(b)
}

// append appends the bytes of the queue, without the first skip.
func (q *queue) append(b []byte, skip int) []byte {
	for c := q.head; c != nil; c = c.next {
		b = append(b, c.data()[skip:c.n]...)
		skip = 0
	}
	return b
}
