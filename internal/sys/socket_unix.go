//go:build unix && !linux

package sys

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

// Poll returns what poll(2) says now of the events, and what it says unasked.
func Poll(fd int, events int16) int16 {
	ask := []unix.PollFd{{Fd: int32(fd), Events: events}}
	if n, err := unix.Poll(ask, 0); err != nil || n == 0 {
		return 0
	}
	return ask[0].Revents
}
