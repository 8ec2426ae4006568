//go:build !unix

package sys

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// soOOBInline is SO_OOBINLINE of <winsock2.h>.
const soOOBInline = 0x0100

func setAtBirth(fd uintptr) error {
	s := syscall.Handle(fd)
	if err := syscall.SetsockoptLinger(s, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}); err != nil {
		return os.NewSyscallError("setsockopt SO_LINGER", err)
	}
	return os.NewSyscallError("setsockopt SO_OOBINLINE", syscall.SetsockoptInt(s, syscall.SOL_SOCKET, soOOBInline, 1))
}

// Refused reports whether a dial failed because nothing listens there. Go's syscall.ECONNREFUSED is an invented number on
// Windows; the system says WSAECONNREFUSED.
func Refused(err error) bool { return errors.Is(err, syscall.Errno(10061)) }

// Gone reports false: it cannot be known here.
func Gone(net.Conn) bool { return false }

// outOfPorts reports whether a dial may have failed because no local port was free: WSAEADDRINUSE or WSAENOBUFS.
func outOfPorts(err error) bool {
	return errors.Is(err, syscall.Errno(10048)) || errors.Is(err, syscall.Errno(10055))
}
