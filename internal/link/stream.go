package link

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"reverser/internal/wire"
)

// A Stream is one user connection on the link. It outlives the connection that carries it.
//
// It is a net.Conn. A relay uses Room, Send, SetReceiver, Backlog and Consumed instead of Write and Read: they move
// pooled chunks, and an idle stream then holds no buffer and no goroutine of the link.
type Stream struct {
	slot *slot

	// Guarded by slot.mu, as is everything below.
	streamCore           // what the protocol knows of it
	change     sync.Cond // on slot.mu: room, data, end or deadline
	resumes0   uint64    // the slot's count when the stream was made
	frozen     bool      // see Freeze
	dead       bool      // the session is gone
	deadCode   wire.Code
	delivery
	source
}

// source is the state of the sender of a stream: a socket, or the user of the net.Conn.
type source struct {
	noWait       bool        // the socket is dead: Room waits no more
	writing      bool        // a Write is under way: the bytes of each stay together
	watchingGone bool        // goneTimer runs
	goneTimer    *time.Timer // see Room
	rest         *countdown  // see SendRest
	restCredit   uint64      // when rest began
	wdl          *deadline   // of Write
}

// bind ties a stream to the slot whose core made it.
func (s *Stream) bind(sl *slot) {
	s.slot = sl
	s.change.L = &sl.mu
	s.resumes0 = sl.resumes
}

// Link is the session that the stream is of.
func (s *Stream) Link() *Link { return s.slot.link }

// ID is unique in the session.
func (s *Stream) ID() uint64 { return s.id }

// Open returns what the stream was opened with.
func (s *Stream) Open() wire.Open { return s.open }

// Resumes counts how often the stream's connection was replaced under it.
func (s *Stream) Resumes() uint64 {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	return s.resumesLocked()
}

func (s *Stream) resumesLocked() uint64 {
	if s.slot == nil { // a core without its shell
		return -s.resumes0
	}
	return s.slot.resumes - s.resumes0
}

// Paused reports whether the stream has no connection at present.
func (s *Stream) Paused() bool {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	return s.slot.cur == nil
}

// ErrReset is what a Stream's methods return after a RST or the end of the session. It satisfies
// errors.Is(err, syscall.ECONNRESET).
var ErrReset error = fmt.Errorf("stream: %w", syscall.ECONNRESET)

// Room waits until bytes may be sent and returns how many. It returns an error when none may be sent any more. While it
// waits, the socket is not read. Therefore it calls gone, unless nil, now and then to see whether the socket is dead.
func (s *Stream) Room(gone func() bool) (int, error) {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	if s.send.room(s.slot.core.budget) == 0 && gone != nil {
		s.watchLocked(gone)
		defer s.goneTimer.Stop()
		defer func() { s.watchingGone = false }()
	}
	return s.roomLocked(false)
}

// watchLocked asks gone now and then while watchingGone is set.
func (s *Stream) watchLocked(gone func() bool) {
	s.watchingGone = true
	if s.goneTimer != nil {
		s.goneTimer.Reset(goneEvery)
		return
	}
	s.goneTimer = time.AfterFunc(goneEvery, func() {
		if gone() {
			s.NoWait()
			return
		}
		s.slot.mu.Lock()
		defer s.slot.mu.Unlock()
		if s.watchingGone {
			s.goneTimer.Reset(goneEvery)
		}
	})
}

// goneEvery is how often a socket that is not read is asked for its state.
const goneEvery = 2 * time.Second

// ErrNoWait is what Room returns where it would wait for the sake of a socket that is dead.
var ErrNoWait = errors.New("stream: the socket is dead")

// ErrDetached is what Room returns behind Detach.
var ErrDetached = errors.New("stream: no receiver any more")

// NoWait makes Room fail where it would wait: nothing that comes later will be read.
func (s *Stream) NoWait() {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	s.noWait = true
	s.change.Broadcast()
}

// roomLocked waits for room. While the link is frozen it fails, unless patient: then it waits for that too.
func (s *Stream) roomLocked(patient bool) (int, error) {
	for {
		switch n, err := s.send.room(s.slot.core.budget), s.sendError(); {
		case err != nil:
			return 0, err
		case s.detached:
			return 0, ErrDetached
		case s.frozen && !patient:
			return 0, ErrFrozen
		case s.frozen:
		case n > 0:
			return n, nil
		case s.noWait:
			return 0, ErrNoWait
		}
		s.change.Wait()
	}
}

// sendError is why nothing may be sent any more, nil if it may. slot.mu is held.
func (s *Stream) sendError() error {
	switch {
	case s.dead || s.send.dropped || s.send.reset():
		return ErrReset
	case s.send.end != 0 || s.closed:
		return net.ErrClosed
	case s.wdl.passed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// TryRoom is Room without waiting: 0 where Room would wait or fail.
func (s *Stream) TryRoom() int {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	if s.sendError() != nil || s.frozen || s.detached {
		return 0
	}
	return s.send.room(s.slot.core.budget)
}

// Send queues the bytes of the chunks, no more than Room allowed, and takes ownership of the chunks. If the stream has ended,
// the bytes are dropped.
func (s *Stream) Send(cs ...*Chunk) {
	sl := s.slot
	sl.mu.Lock()
	switch n := s.putLocked(cs); {
	case n >= ChunkSize && sl.cur != nil:
		sl.cur.send(false)
	case n > 0:
		sl.wake()
	}
	sl.mu.Unlock()
}

// SendBytes is Send for bytes that the caller keeps.
func (s *Stream) SendBytes(p []byte) {
	sl := s.slot
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if len(p) == 0 || s.send.end != 0 || s.send.dropped || s.forgotten {
		return
	}
	s.send.q.write(p)
	sl.core.touch(&s.streamCore)
	if len(p) >= ChunkSize && sl.cur != nil {
		sl.cur.send(false)
	} else {
		sl.wake()
	}
}

// SendRest queues the bytes that a reset socket still held. It ignores the flow-control window; Reset follows.
// It returns false, and drops the bytes, when the share of the memory for windows is used up.
func (s *Stream) SendRest(cs ...*Chunk) bool {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	if s.slot.core.budget.spare() <= 0 {
		for _, c := range cs {
			c.Free()
		}
		return false
	}
	s.putLocked(cs)
	if s.rest == nil {
		s.limitRest()
	}
	return true
}

// limitRest gives what SendRest put flushTimeout to be taken. slot.mu is held.
func (s *Stream) limitRest() {
	s.restCredit = s.send.credit
	s.rest = startCountdown(s.slot.link.now(), flushTimeout, s.giveUpRest)
}

// giveUpRest gives up what SendRest put when the peer, which has all that it gave credit for, gave no more for flushTimeout: its
// reader takes nothing, and is to learn of the reset.
func (s *Stream) giveUpRest() {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	if !s.rest.over() {
		return
	}
	h := &s.send
	switch {
	case s.forgotten || h.dropped || h.end != 0 && h.q.end <= h.max:
	case h.end == 0 || h.credit > s.restCredit || h.una < h.max || h.nxt < min(h.q.end, h.credit) || !s.slot.heardFor(flushTimeout):
		s.limitRest() // it is not the reader that is waited for, or it reads
	default:
		s.slot.core.cutRest(&s.streamCore)
		s.slot.wake()
	}
}

// heardFor reports whether the slot has had its connection for d, and has heard from the peer lately. mu is held.
func (sl *slot) heardFor(d time.Duration) bool {
	now := sl.link.now()
	return sl.cur != nil && now-sl.since >= d && now-time.Duration(sl.cur.lastRead.Load()) < pingAfter
}

// Put queues chunks like Send, but sends nothing yet. Flush then sends what several streams of a carrier have put.
func (s *Stream) Put(cs ...*Chunk) {
	s.slot.mu.Lock()
	s.putLocked(cs)
	s.slot.mu.Unlock()
}

// PutFIN queues the end of the outgoing direction behind what was put, and sends nothing yet.
func (s *Stream) PutFIN() {
	s.slot.mu.Lock()
	s.slot.core.end(&s.streamCore, wire.FIN, wire.CodeNone)
	s.slot.mu.Unlock()
}

// Flush sends what was put, as far as that needs no waiting. On a slow path the writer does: it measures how long a batch takes.
func (s *Stream) Flush() {
	sl := s.slot
	sl.mu.Lock()
	defer sl.mu.Unlock()
	switch c := sl.cur; {
	case c == nil || !sl.core.ready():
	case c.batch < batch:
		sl.wake()
	default:
		c.send(false)
	}
}

// putLocked queues the chunks and returns how many bytes they brought.
func (s *Stream) putLocked(cs []*Chunk) (n int) {
	if s.send.end != 0 || s.send.dropped || s.forgotten {
		for _, c := range cs {
			c.Free()
		}
		return 0
	}
	for _, c := range cs {
		n += c.n
		s.send.q.push(c)
	}
	s.slot.core.touch(&s.streamCore)
	return n
}

// CloseWrite ends the outgoing direction: the peer reads EOF behind the bytes sent.
func (s *Stream) CloseWrite() error {
	s.end(wire.FIN, wire.CodeNone)
	return nil
}

// Reset ends both directions. The peer gets a RST behind the bytes sent; what arrives here is thrown away.
func (s *Stream) Reset(code wire.Code) { s.end(wire.RST, code) }

func (s *Stream) end(kind wire.EndKind, code wire.Code) {
	sl := s.slot
	sl.mu.Lock()
	defer sl.mu.Unlock()
	sl.core.end(&s.streamCore, kind, code)
	if kind == wire.RST {
		s.discardLocked()
	}
	sl.wake()
	s.change.Broadcast()
}

// Discard throws away what has arrived and what will arrive.
func (s *Stream) Discard() {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	s.discardLocked()
}

func (s *Stream) discardLocked() {
	if s.slot.core.discard(&s.streamCore, s.slot.link.now()) {
		s.slot.wake()
	}
}

// Code says why the stream was reset; CodeNone: it was not, or there is no word of it.
func (s *Stream) Code() wire.Code {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	if s.dead {
		return s.deadCode
	}
	return s.recv.code
}

// kill ends the stream because its session is gone, or the peer does not know it any more. slot.mu is held; the result is told of it
// without the lock, a receiver that comes later by SetReceiver.
func (s *Stream) kill(code wire.Code) Receiver {
	if s.dead {
		return nil
	}
	s.dead, s.deadCode = true, code
	s.change.Broadcast()
	return s.receiver
}
