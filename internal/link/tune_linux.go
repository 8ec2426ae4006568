package link

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tune makes a write to a vanished peer fail by itself.
func tune(c net.Conn) {
	control(c, func(fd int) { unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000) })
	limitUnsent(c, batch)
}

// limitUnsent bounds what waits unsent in the kernel, where nothing can pass it: a PING or a keystroke would queue behind
// megabytes.
func limitUnsent(c net.Conn, n int) {
	control(c, func(fd int) { unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n) })
}

// control calls f with the descriptor of c, if it has one. The options are wishes: what the kernel refuses is not missed.
func control(c net.Conn, f func(fd int)) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}
