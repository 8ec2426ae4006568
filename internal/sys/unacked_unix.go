//go:build unix

package sys

import (
	"net"
	"syscall"
)

// HasUnacked reports whether bytes were written to a connection that the peer's kernel has not acknowledged yet. It is false where the
// system does not tell.
func HasUnacked(c net.Conn) (yes bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	if raw, err := sc.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { yes = Unacked(int(fd), 0) > 0 })
	}
	return yes
}
