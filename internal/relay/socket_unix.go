//go:build unix

package relay

import (
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"reverser/internal/link"
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
	s.raw = raw
	s.readFunc = s.readReady
	s.writeFunc = s.writeNow
}

// read waits until the socket is readable, takes chunks only then, and reads at most limit bytes into them.
func (s *socket) read(limit int) (int, error) {
	clear(s.chunks[:])
	if s.raw == nil {
		return s.blockingRead(limit)
	}
	s.limit, s.n, s.readErr = limit, 0, nil
	if err := s.raw.Read(s.readFunc); err != nil {
		return 0, err
	}
	return s.n, s.readErr
}

// readReady is called when the socket may be readable; false: it was not, wait.
func (s *socket) readReady(fd uintptr) bool {
	k, left := 0, s.limit
	for left > 0 && (k == 0 || s.eager && k < readAhead) {
		c := link.NewChunk()
		room := c.Room()
		room = room[:min(left, len(room))]
		s.chunks[k], s.vec[k] = c, room
		left -= len(room)
		k++
	}
	n, err := readv(int(fd), s.vec[:k])
	for err == unix.EINTR {
		n, err = readv(int(fd), s.vec[:k])
	}
	s.eager = n >= len(s.vec[0]) && n > 0
	left = max(n, 0)
	for i := range k {
		part := min(left, len(s.vec[i]))
		left -= part
		s.vec[i] = nil
		if part == 0 {
			s.chunks[i].Free()
			s.chunks[i] = nil
			continue
		}
		s.chunks[i].Grow(part)
	}
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		s.readErr = err
	case n == 0:
		s.readErr = io.EOF
	default:
		s.n = n
	}
	return true
}

func readv(fd int, bufs [][]byte) (int, error) {
	if len(bufs) == 1 {
		return unix.Read(fd, bufs[0])
	}
	return unix.Readv(fd, bufs)
}

// tryWrite writes what the socket takes without waiting.
func (s *socket) tryWrite(bufs [][]byte) (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	s.src, s.wrote, s.writeErr = bufs, 0, nil
	err := s.raw.Write(s.writeFunc)
	s.src = nil
	if err == nil {
		err = s.writeErr
	}
	return s.wrote, err
}

// writeNow is called at once; it never asks to wait.
func (s *socket) writeNow(fd uintptr) bool {
	if len(s.src) > 1 {
		n, err := unix.Writev(int(fd), s.src)
		if err == nil {
			s.wrote = n
		} else if err != unix.EAGAIN && err != unix.EINTR {
			s.writeErr = err
		}
		return true // what it did not take waits in the stream
	}
	for b := s.src[0]; len(b) > 0; {
		n, err := unix.Write(int(fd), b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return true
		case err != nil:
			s.writeErr = err
			return true
		}
		s.wrote += n
		b = b[n:]
	}
	return true
}

// queued returns how many bytes the peer's kernel has not acknowledged yet.
func (s *socket) queued() int {
	if _, tcp := s.conn.(*net.TCPConn); s.raw == nil || !tcp {
		return 0
	}
	n := 0
	s.raw.Control(func(fd uintptr) { n = unackedBytes(int(fd)) })
	return n
}

// gone says whether the socket is dead though nobody reads it: reset by its peer.
func (s *socket) gone() bool {
	dead := false
	if s.raw != nil {
		s.raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd)}}
			n, err := unix.Poll(p, 0)
			dead = err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
		})
	}
	return dead
}
