package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"reverser/internal/wire"
)

// How another process goes on with a link, in this order:
//
//	Link.Freeze         no connection serves it any more, no stream is opened, no timer runs, and Room fails
//	                    (the sockets' goroutines end; whatever they had in hand they have sent, or told Consumed)
//	Link.AppendState    the document, and the streams in the order of their places in it
//	AppendFinished      the same for streams that no link has any more and that still deliver
//	Host.Thaw, Dialer.Thaw, ThawFinished     make the same in the other process; the link resumes as after a break
//	Link.Thaw, Stream.Thaw                   go on here, if it came to nothing
//
// A document holds the secret of the session.

// ErrFrozen is what Room returns, and Open, while the process is being handed over.
var ErrFrozen = errors.New("the process is being handed over")

// Freeze stops the link until Thaw: its connections are closed, nothing comes from the peer, no stream is opened, no timer of a
// stream runs, and Room fails. It returns when no goroutine works for a connection any more, after a second
// at the latest. Streams still take bytes that a socket had, and are still told what a socket took.
func (l *Link) Freeze() {
	for _, sl := range l.slots {
		sl.mu.Lock()
		sl.frozen = true
		sl.fence(ErrFrozen)
		for _, s := range sl.core.streams {
			s.whole.freezeLocked(l.now())
		}
		sl.mu.Unlock()
	}
	l.serving.Wait()
}

// frozen reports whether the link is between Freeze and Thaw.
func (l *Link) frozen() bool {
	sl := l.slots[0]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.frozen
}

// Thaw goes on after Freeze.
func (l *Link) Thaw() {
	for _, sl := range l.slots {
		sl.mu.Lock()
		sl.frozen = false
		for _, s := range sl.core.streams {
			s.whole.thawLocked(l.now())
		}
		sl.mu.Unlock()
		sl.news.ring()
	}
}

// Freeze lets the stream's timers stand and Room fail until Thaw. It is for streams that no link has any more; Link.Freeze does the
// same to all others.
func (s *Stream) Freeze() {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	s.freezeLocked(s.slot.link.now())
}

// Thaw goes on after Freeze.
func (s *Stream) Thaw() {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	s.thawLocked(s.slot.link.now())
}

// slot.mu is held.
func (s *Stream) freezeLocked(now time.Duration) {
	s.frozen = true
	s.flush.freeze(now)
	s.rest.freeze(now)
	s.change.Broadcast()
}

// slot.mu is held.
func (s *Stream) thawLocked(now time.Duration) {
	s.frozen = false
	s.flush.thaw(now, s.giveUpFlush)
	s.rest.thaw(now, s.giveUpRest)
	s.change.Broadcast()
}

// The records of a link.
const (
	recSession  = needed | 0x001
	recPeerName = 0x002
	recPlace    = needed | 0x003 // what there is to know of the next slot besides its core
	recSlot     = needed | 0x004
)

// documentMagic and the version begin every document. Another version is for what older programs must not even try to read.
const (
	documentMagic   = "RVLK"
	documentVersion = 1
	documentHeader  = len(documentMagic) + 2 + 4
)

// seal puts the header before the records in b[at:]: magic, version, and CRC-32C of what follows.
func seal(b []byte, at int) []byte {
	binary.BigEndian.PutUint32(b[at+len(documentMagic)+2:], crc32.Checksum(b[at+documentHeader:], castagnoli))
	return b
}

func appendSeal(b []byte) []byte {
	b = append(b, documentMagic...)
	b = binary.BigEndian.AppendUint16(b, documentVersion)
	return append(b, 0, 0, 0, 0)
}

// unseal returns the records of a document.
func unseal(doc []byte) ([]byte, error) {
	if len(doc) < documentHeader || string(doc[:len(documentMagic)]) != documentMagic {
		return nil, badDocument("it is none of a link")
	}
	f := &fields{b: doc[len(documentMagic):]}
	if v := f.u16(); v != documentVersion {
		return nil, badDocument("it is of version %d, and this program reads %d", v, documentVersion)
	}
	if sum := f.u32(); sum != crc32.Checksum(f.b, castagnoli) {
		return nil, badDocument("its checksum is wrong")
	}
	return f.b, nil
}

// AppendState appends a document that describes the link, which is frozen, and returns the streams in the order of their places in it.
func (l *Link) AppendState(b []byte) ([]byte, []*Stream) {
	begin := len(b)
	b = appendSeal(b)
	b, at := beginRecord(b, recSession)
	b = append(b, flags(l.dials, l.leaving.peer.Load(), l.leaving.closed.Load()), l.reach)
	b = binary.BigEndian.AppendUint16(b, l.transfer)
	for _, v := range [][]byte{l.sid[:], l.keyID[:], l.peer[:], l.secret[:]} {
		b = append(b, v...)
	}
	now := l.now()
	b = binary.BigEndian.AppendUint64(b, uint64(now))
	b = binary.BigEndian.AppendUint64(b, uint64(l.limit))
	b = endRecord(append(b, uint8(l.role)), at)
	b = appendRecord(b, recPeerName, []byte(l.peerName))
	var all []*Stream
	for _, sl := range l.slots {
		sl.mu.Lock()
		b, at = beginRecord(b, recPlace)
		b = append(b, flags(sl.attached))
		b = binary.BigEndian.AppendUint64(b, uint64(sl.since))
		b = binary.BigEndian.AppendUint64(b, sl.resumes)
		b = endRecord(b, at)
		b, at = beginRecord(b, recSlot)
		var streams []*Stream
		b, streams = sl.core.freeze(b, now)
		sl.mu.Unlock()
		b = endRecord(b, at)
		all = append(all, streams...)
	}
	return seal(b, begin), all
}

// thawLink makes the link that AppendState described, with its streams. memory returns the share of a key.
func thawLink(doc []byte, dials bool, from *Link, memory func(key [16]byte) *share) (*Link, []*Stream, error) {
	b, err := unseal(doc)
	if err != nil {
		return nil, nil, err
	}
	l := newLink(dials, from.owner, from.say, nil, -1)
	all, err := l.thawRecords(b, memory)
	if err == nil && len(l.slots) < 2 {
		err = badDocument("a link of %d slots", len(l.slots))
	}
	if err != nil {
		l.discardThawed(all)
		return nil, nil, err
	}
	return l, all, nil
}

func (l *Link) thawRecords(b []byte, memory func(key [16]byte) *share) (all []*Stream, err error) {
	var next *slot
	session := false
	err = eachRecord(b, func(t recordType, v []byte) error {
		f := &fields{b: v}
		switch t {
		case recSession:
			var dials, leaving, closed bool
			setFlags(f.u8(), &dials, &leaving, &closed)
			l.leaving.peer.Store(leaving)
			l.leaving.closed.Store(closed)
			l.reach, l.transfer = f.u8(), f.u16()
			l.sid, l.keyID, l.peer, l.secret = f.array16(), f.array16(), f.array16(), f.array32()
			l.share = memory(l.keyID)
			l.start = l.start.Add(l.now() - f.time()) // the clock goes on from there
			l.limit, l.role = f.time(), wire.Role(f.u8())
			if session = true; f.short || dials != l.dials || l.limit <= 0 {
				return badDocument("the session")
			}
			if l.role != wire.RoleBridge {
				return badDocument("a session of role %d, and this program serves bridges", l.role)
			}
		case recPeerName:
			l.peerName = string(v)
		case recPlace:
			next = &slot{link: l, index: uint8(len(l.slots))}
			setFlags(f.u8(), &next.attached)
			if next.since, next.resumes = f.time(), f.u64(); f.short || len(l.slots) > 255 {
				return badDocument("slot %d", len(l.slots))
			}
		case recSlot:
			if !session || next == nil {
				return badDocument("slot %d in the wrong place", len(l.slots))
			}
			streams, err := next.thaw(v)
			if err != nil {
				return err
			}
			l.slots, all, next = append(l.slots, next), append(all, streams...), nil
		default:
			return errUnknownRecord
		}
		return nil
	})
	return all, err
}

// thaw gives the slot its core.
func (sl *slot) thaw(v []byte) (streams []*Stream, err error) {
	l := sl.link
	if sl.core, streams, err = thawCore(v, l.now(), l.share); err != nil {
		return nil, err
	}
	for _, s := range streams {
		s.bindThawed(sl)
	}
	if sl.core.index != sl.index || sl.core.dials != l.dials {
		l.discardThawed(streams)
		return nil, badDocument("slot %d where slot %d was due", sl.core.index, sl.index)
	}
	return streams, nil
}

// discardThawed gives back what is charged for streams of a document that will not be used.
func (l *Link) discardThawed(streams []*Stream) {
	for _, s := range streams {
		s.slot.core.remove(&s.streamCore)
	}
}

// bindThawed is bind for a stream that counts its resumes already.
func (s *Stream) bindThawed(sl *slot) {
	s.slot, s.change.L = sl, &sl.mu
	s.resumes0 += sl.resumes
}

// AppendFinished appends a document with streams that their links have forgotten, or whose links are over, and which still deliver.
// They are frozen.
func AppendFinished(b []byte, streams []*Stream) []byte {
	begin := len(b)
	b = appendSeal(b)
	for _, s := range streams {
		s.slot.mu.Lock()
		b = freezeFinished(b, []*Stream{s}, s.slot.link.now())
		s.slot.mu.Unlock()
	}
	return seal(b, begin)
}

// ThawFinished makes the streams that AppendFinished described, in their order. They belong to no link, and are no use but to deliver
// what they hold.
func ThawFinished(doc []byte, budget *Budget) ([]*Stream, error) {
	b, err := unseal(doc)
	if err != nil {
		return nil, err
	}
	l := newLink(false, nil, nil, budget.only(), 0)
	l.err = ErrEnded
	close(l.ended)
	streams, err := thawFinished(b, l.now(), l.share)
	if err != nil {
		return nil, err
	}
	sl := l.slots[0]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	for _, s := range streams {
		s.bindThawed(sl)
		s.thawLocked(l.now())
	}
	return streams, nil
}

// Thaw makes the link that Link.AppendState described in another process with the same instance, and waits for its bridge, which
// resumes it. The streams are in the order of their places.
func (h *Host) Thaw(doc []byte) (*Link, []*Stream, error) {
	l, streams, err := thawLink(doc, false, &Link{owner: h.cfg.Owner, say: h.cfg.Say}, h.cfg.Budget.share)
	if err != nil {
		return nil, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.bySID[l.sid] != nil || !h.addThawedLocked(l) {
		l.discardThawed(streams)
		return nil, nil, fmt.Errorf("the session of key %x: %w", l.keyID, ErrEnded)
	}
	l.goOn(streams)
	return l, streams, nil
}

// addThawedLocked is addLocked for a link that may be one of several with the same key, in whatever order they come: all but the
// newest are leaving. It returns false when they are not.
func (h *Host) addThawedLocked(l *Link) bool {
	older, newest := h.beside[l.keyID], l
	if now := h.byKey[l.keyID]; now != nil {
		if l.start.Before(now.start) {
			newest = now
		}
		older = append(older, now, l)
		older = slices.DeleteFunc(older, func(o *Link) bool { return o == newest })
		if slices.ContainsFunc(older, func(o *Link) bool { return !o.Leaving() }) {
			return false
		}
		slices.SortFunc(older, func(a, b *Link) int { return a.start.Compare(b.start) })
		h.beside[l.keyID] = older
	}
	h.addLocked(l)
	h.byKey[l.keyID] = newest
	return true
}

// Thaw makes the link that Link.AppendState described in another process with the same instance. Run resumes it. The streams are in
// the order of their places.
func (d *Dialer) Thaw(doc []byte) (*Link, []*Stream, error) {
	l, streams, err := thawLink(doc, true, &Link{owner: d.cfg.Owner, say: d.cfg.Say}, func([16]byte) *share { return d.memory })
	if err != nil {
		return nil, nil, err
	}
	d.thawed = l
	l.goOn(streams)
	return l, streams, nil
}

// goOn starts the timers of streams from a document.
func (l *Link) goOn(streams []*Stream) {
	for _, s := range streams {
		s.Thaw()
	}
}
