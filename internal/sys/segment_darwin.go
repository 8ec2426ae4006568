package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSegment does nothing: macOS takes no more than 512 bytes for an answer before it has connected, and forgets them then. So the peer is
// not told of a bound.
func maxSegment(int) func(network, addr string, c syscall.RawConn) error { return nil }

// maxSegmentConnected bounds the segments that a connected socket sends. The option is a wish: what the kernel refuses is not missed.
func maxSegmentConnected(fd, size int) {
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, size)
}
