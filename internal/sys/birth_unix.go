//go:build unix

package sys

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func setAtBirth(fd uintptr) error {
	if err := unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return os.NewSyscallError("setsockopt SO_LINGER", err)
	}
	keepSettable(int(fd))
	return os.NewSyscallError("setsockopt SO_OOBINLINE", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
}

// Refused reports whether a dial failed because nothing listens there.
func Refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// Reset reports whether a read or write failed because the peer reset the connection. EPROTOTYPE is what macOS says to a write at the
// moment in which that happens.
func Reset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EPROTOTYPE)
}

// NotConnected reports whether a socket's connection was over already.
func NotConnected(err error) bool { return errors.Is(err, syscall.ENOTCONN) }

// wordListenError leaves the system's words.
func wordListenError(err error) error { return err }

// outOfPorts reports whether a dial may have failed because no local port was free.
func outOfPorts(err error) bool {
	call, ok := errors.AsType[*os.SyscallError](err)
	return ok && call.Syscall == "connect" && call.Err == syscall.EADDRNOTAVAIL
}
