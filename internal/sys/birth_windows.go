package sys

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
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

// Go's names for these errors are invented numbers on Windows: the system's own begin with WSA.

// Refused reports whether a dial failed because nothing listens there.
func Refused(err error) bool {
	return errors.Is(err, windows.WSAECONNREFUSED) || errors.Is(err, syscall.ECONNREFUSED)
}

// Reset reports whether a read or write failed because the peer, or this machine, reset the connection.
func Reset(err error) bool {
	return errors.Is(err, windows.WSAECONNRESET) || errors.Is(err, windows.WSAECONNABORTED) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// NotConnected reports whether a socket's connection was over already.
func NotConnected(err error) bool {
	return errors.Is(err, windows.WSAENOTCONN) || errors.Is(err, windows.WSAECONNRESET) || errors.Is(err, windows.WSAECONNABORTED)
}

// inUse is the error of an address that another socket has, in the words of other systems: those of Windows say everything but that.
type inUse struct{ error }

func (inUse) Error() string { return "address already in use" }

func (e inUse) Unwrap() error { return e.error }

// wordListenError says clearly what kept a listener from being opened.
func wordListenError(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && errors.Is(err, windows.WSAEADDRINUSE) {
		op.Err = inUse{op.Err}
	}
	return err
}

// outOfPorts reports whether a dial may have failed because no local port was free.
func outOfPorts(err error) bool {
	return errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.WSAENOBUFS)
}
