//go:build !unix

package sys

// descriptorLimit is not a figure of this platform; the limit on streams of a link bounds what is held.
func descriptorLimit() int { return 1 << 16 }
