package relay

import "golang.org/x/sys/unix"

// soNWrite is SO_NWRITE of <sys/socket.h>: bytes in the socket's send buffer.
const soNWrite = 0x1024

func unackedBytes(fd int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soNWrite)
	if err != nil {
		return 0
	}
	return n
}

// unsentBytes: this system does not tell.
func unsentBytes(int) int { return 0 }
