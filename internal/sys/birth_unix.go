//go:build unix

package sys

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func setAtBirth(fd uintptr) error {
	if err := unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return os.NewSyscallError("setsockopt SO_LINGER", err)
	}
	return os.NewSyscallError("setsockopt SO_OOBINLINE", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
}

// Refused reports whether a dial failed because nothing listens there.
func Refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// Gone reports whether the peer of a connection reset it, which nobody who does not read would notice. It is false where that
// cannot be known.
func Gone(conn net.Conn) (gone bool) {
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { gone = Poll(int(fd), 0)&(unix.POLLERR|unix.POLLNVAL) != 0 })
		}
	}
	return gone
}

// outOfPorts reports whether a dial may have failed because no local port was free.
func outOfPorts(err error) bool {
	call, ok := errors.AsType[*os.SyscallError](err)
	return ok && call.Syscall == "connect" && call.Err == syscall.EADDRNOTAVAIL
}
