//go:build unix && !darwin

package sys

// keepSettable has nothing to do: sockets take options until they are closed.
func keepSettable(int) {}
