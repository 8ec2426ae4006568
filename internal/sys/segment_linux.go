package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSegment bounds the segments of a socket that is not connected yet. The option is a wish: what the kernel refuses is not missed.
func maxSegment(size int) func(network, addr string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, size) })
	}
}

// maxSegmentConnected has nothing to do: the socket had its bound from the start.
func maxSegmentConnected(int, int) {}
