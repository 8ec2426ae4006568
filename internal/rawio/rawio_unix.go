//go:build unix && !linux

package rawio

import "golang.org/x/sys/unix"

// Read reads into the first of the buffers. Its error is an unix.Errno, EAGAIN when nothing is there yet; 0 bytes without
// an error are the end.
func Read(fd int, bufs [][]byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, bufs[0]); err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// Write writes the first of the buffers, as far as the socket takes it. Its error is an unix.Errno, EAGAIN when it took nothing.
func Write(fd int, bufs [][]byte) (n int, err error) {
	for {
		if n, err = unix.Write(fd, bufs[0]); err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// HungUp says whether the peer of a connected socket sent a reset, also behind bytes that nobody has read yet.
func HungUp(fd int) bool {
	ask := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(ask, 0)
	return err == nil && n > 0
}
