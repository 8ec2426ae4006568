package sys

import "golang.org/x/sys/unix"

// TellsUnacked reports whether this system always knows what Unacked is asked.
const TellsUnacked = true

// Unacked returns how many bytes of a TCP socket the peer's kernel has not acknowledged yet. written is how many were ever written.
func Unacked(fd int, written uint64) int {
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
