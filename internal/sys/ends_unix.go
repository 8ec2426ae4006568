//go:build unix && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package sys

import "golang.org/x/sys/unix"

// State returns what is known of a connected socket without reading it: whether the peer reset the connection, and whether both
// directions of it have ended, by FINs or by a reset.
func State(fd int) (reset, over bool) {
	events := Poll(fd, 0)
	return events&(unix.POLLERR|unix.POLLNVAL) != 0, events&unix.POLLHUP != 0
}
