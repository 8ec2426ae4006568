//go:build unix

package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// CanTry makes sure that a socket can be read and written without waiting. It reports whether that is so: Go's sockets can.
func CanTry(syscall.RawConn) bool { return true }

// WouldBlock reports whether Read or Write would have had to wait.
func WouldBlock(err error) bool { return err == unix.EAGAIN }

// Readable reports whether a read of a socket returns at once: something has arrived, or the peer's end or a reset.
func Readable(fd int) bool { return Poll(fd, unix.POLLIN) != 0 }

// Writable reports whether a socket takes bytes now, or is dead.
func Writable(fd int) bool { return Poll(fd, unix.POLLOUT) != 0 }
