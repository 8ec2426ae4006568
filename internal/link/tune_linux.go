package link

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tune bounds what waits unsent in the kernel, where nothing can pass it: a PING or a keystroke would queue behind
// megabytes. It also makes a write to a vanished peer fail by itself.
func tune(c net.Conn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 128<<10)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000)
	})
}
