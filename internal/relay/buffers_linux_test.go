package relay

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// setBuffers sets the size of both buffers of a socket, whoever made it.
func setBuffers(c net.Conn, n int) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		panic(err)
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, n)
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, n)
	})
}
