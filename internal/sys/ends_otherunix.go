//go:build unix && !linux && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package sys

// HungUp reports whether the peer of a connected socket sent a reset, also behind bytes that nobody has read yet.
func HungUp(fd int) bool { return Poll(fd, 0) != 0 }
