package sys

import "golang.org/x/sys/unix"

// Unacked returns how many bytes were written to a TCP socket and not acknowledged by the peer's kernel yet.
func Unacked(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// Unsent returns how many bytes were written to a TCP socket and not sent yet, because the peer takes no more.
func Unsent(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
	if err != nil {
		return 0
	}
	return n
}
