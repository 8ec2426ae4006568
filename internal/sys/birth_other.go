//go:build !unix

package sys

import (
	"errors"
	"net"
	"syscall"
)

func lingerZero(fd uintptr) error {
	return syscall.SetsockoptLinger(syscall.Handle(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
}

// Refused reports whether a dial failed because nothing listens there. Go's syscall.ECONNREFUSED is an invented number on
// Windows; the system says WSAECONNREFUSED.
func Refused(err error) bool { return errors.Is(err, syscall.Errno(10061)) }

// Gone reports false: it cannot be known here.
func Gone(net.Conn) bool { return false }
