package sys

import "golang.org/x/sys/unix"

// soNWrite is SO_NWRITE of <sys/socket.h>: bytes in the socket's send buffer.
const soNWrite = 0x1024

// TellsUnacked reports whether this system always knows what Unacked is asked.
const TellsUnacked = true

// Unacked returns how many bytes of a TCP socket the peer's kernel has not acknowledged yet. written is how many were ever written.
func Unacked(fd int, written uint64) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soNWrite)
	if err != nil {
		return 0
	}
	return n
}

// Unsent returns 0: this system does not tell.
func Unsent(int) int { return 0 }
