package sys

import "golang.org/x/sys/unix"

// soNWrite is SO_NWRITE of <sys/socket.h>: bytes in the socket's send buffer.
const soNWrite = 0x1024

// Unacked returns how many bytes were written to a TCP socket and not acknowledged by the peer's kernel yet.
func Unacked(fd int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soNWrite)
	if err != nil {
		return 0
	}
	return n
}

// Unsent returns 0: this system does not tell.
func Unsent(int) int { return 0 }
