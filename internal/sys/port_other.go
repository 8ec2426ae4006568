//go:build !linux

package sys

// PortHint says what lets a program listen on a port that the system refused it, "" where nothing is known to.
func PortHint(error) string { return "" }
