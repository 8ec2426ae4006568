//go:build !unix

package sys

// Descriptors is not a figure of this platform; the limit on streams of a link bounds what is held.
func Descriptors() int { return 1 << 16 }
