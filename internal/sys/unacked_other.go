//go:build !unix

package sys

import "net"

// HasUnacked would report whether bytes were not acknowledged by the peer's kernel yet. This system does not tell.
func HasUnacked(net.Conn) bool { return false }
