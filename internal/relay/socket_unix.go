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
	s.readFunc = func(fd uintptr) bool {
		c := link.NewChunk()
		room := c.Room()
		for {
			n, err := unix.Read(int(fd), room[:min(s.limit, len(room))])
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				c.Free()
				return false
			case err != nil:
				s.readErr = err
			case n == 0:
				s.readErr = io.EOF
			default:
				c.Grow(n)
				s.chunk = c
				return true
			}
			c.Free()
			return true
		}
	}
	s.writeFunc = func(fd uintptr) bool {
		for s.wrote < len(s.src) {
			n, err := unix.Write(int(fd), s.src[s.wrote:])
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
		}
		return true
	}
}

// read waits until the socket is readable, takes a chunk only then, and fills at most limit bytes of it.
func (s *socket) read(limit int) (*link.Chunk, error) {
	if s.raw == nil {
		return s.blockingRead(limit)
	}
	s.limit, s.chunk, s.readErr = limit, nil, nil
	if err := s.raw.Read(s.readFunc); err != nil {
		return nil, err
	}
	return s.chunk, s.readErr
}

// tryWrite writes what the socket takes without waiting.
func (s *socket) tryWrite(b []byte) (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	s.src, s.wrote, s.writeErr = b, 0, nil
	err := s.raw.Write(s.writeFunc)
	s.src = nil
	if err == nil {
		err = s.writeErr
	}
	return s.wrote, err
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
