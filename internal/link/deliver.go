package link

import (
	"time"

	"reverser/internal/wire"
)

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

// giveUpFlush ends a stream whose last bytes nobody took.
func (s *Stream) giveUpFlush() {
	s.slot.mu.Lock()
	late, r, code := s.flush.over(), s.receiver, s.recv.code
	if late && r == nil { // nobody has the stream yet: whoever gets it is told
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

// Consumed says that the receiver has taken n bytes of what Backlog returned.
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
