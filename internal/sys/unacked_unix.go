//go:build unix

package sys

import "net"

// HasUnacked reports whether bytes were written to a connection that the peer's kernel has not acknowledged yet. It is false where the
// system does not tell.
func HasUnacked(c net.Conn) (yes bool) {
	withDescriptor(c, func(fd int) { yes = Unacked(fd, 0) > 0 })
	return yes
}
