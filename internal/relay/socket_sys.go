//go:build unix || windows

package relay

import (
	"io"
	"net"
	"syscall"

	"reverser/internal/link"
	"reverser/internal/sys"
)

func (s *socket) init(conn net.Conn) {
	s.conn = conn
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	if !sys.CanTry(raw) {
		return
	}
	s.raw = raw
	s.reads.ready = s.readReady
	s.reads.now = s.readNow
	s.writes.now = s.writeNow
}

// read waits until the socket is readable, takes chunks only then, and reads at most limit bytes into them.
func (s *socket) read(limit int) (int, error) {
	if s.raw == nil {
		return s.blockingRead(limit)
	}
	s.reads.limit, s.reads.n, s.reads.err = limit, 0, nil
	if err := s.raw.Read(s.reads.ready); err != nil {
		return 0, err
	}
	return s.reads.n, s.reads.err
}

// tryRead is read without waiting. Its error is errNothing when there is nothing to read.
func (s *socket) tryRead(limit int) (int, error) {
	s.reads.limit, s.reads.n, s.reads.err = limit, 0, nil
	if err := s.raw.Control(s.reads.now); err != nil {
		return 0, err
	}
	return s.reads.n, s.reads.err
}

func (s *socket) readNow(fd uintptr) {
	if !s.readReady(fd) {
		s.reads.err = errNothing
	}
}

// readReady is called when the socket may be readable. It reports whether it was.
func (s *socket) readReady(fd uintptr) bool {
	b := batches.Get().(*batch)
	s.reads.batch = b
	k, left := 0, s.reads.limit
	for left > 0 && (k == 0 || s.eager && k < readAhead) {
		c := link.NewChunk()
		room := c.Room()
		room = room[:min(left, len(room))]
		b.chunks[k], b.vec[k] = c, room
		left -= len(room)
		k++
	}
	n, err := sys.Read(int(fd), b.vec[:k])
	s.eager = n >= len(b.vec[0]) && n > 0
	left = n
	for i := range k {
		part := min(left, len(b.vec[i]))
		left -= part
		b.vec[i] = nil
		if part == 0 {
			b.chunks[i].Free()
			b.chunks[i] = nil
			continue
		}
		b.chunks[i].Grow(part)
		b.n = i + 1
	}
	if n == 0 {
		s.release()
	}
	switch {
	case sys.WouldBlock(err):
		return false
	case err != nil:
		s.reads.err = err
	case n == 0:
		s.reads.err = io.EOF
	default:
		s.reads.n = n
	}
	return true
}

// tryWrite writes what the socket takes without waiting.
func (s *socket) tryWrite(bufs [][]byte) (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	s.writes.src, s.writes.n, s.writes.err = bufs, 0, nil
	err := s.raw.Write(s.writes.now)
	s.writes.src = nil
	if err == nil {
		err = s.writes.err
	}
	return s.writes.n, err
}

// writeNow is called at once; it never asks to wait.
func (s *socket) writeNow(fd uintptr) bool {
	n, err := sys.Write(int(fd), s.writes.src)
	s.writes.n = n
	if n > 0 {
		s.wrote.note()
	}
	if !sys.WouldBlock(err) {
		s.writes.err = err
	}
	return true // what the socket did not take waits in the stream
}

// queued returns how many bytes the peer's kernel has not acknowledged yet, as far as that can be known (sys.Unacked).
func (s *socket) queued() (n int) {
	if s.raw != nil && s.isTCP() {
		s.raw.Control(func(fd uintptr) { n = sys.Unacked(int(fd)) })
		n = s.wrote.unacked(s, n)
	}
	return n
}

// unsent returns how many bytes the kernel has not sent yet, because the peer takes no more.
func (s *socket) unsent() (n int) {
	if s.raw != nil && s.isTCP() {
		s.raw.Control(func(fd uintptr) { n = sys.Unsent(int(fd)) })
	}
	return n
}

// gone reports whether the peer reset the connection. Nobody needs to read for that.
func (s *socket) gone() bool {
	reset, _ := s.state()
	return reset
}

// hungUp reports whether both directions of a TCP connection have ended: by FINs, or by a reset.
func (s *socket) hungUp() bool {
	if !s.isTCP() {
		return false
	}
	_, over := s.state()
	return over
}

func (s *socket) isTCP() bool {
	_, is := s.conn.(interface{ SetLinger(int) error })
	return is
}

func (s *socket) state() (reset, over bool) {
	if s.raw != nil {
		s.raw.Control(func(fd uintptr) { reset, over = sys.State(int(fd)) })
	}
	return reset, over
}
