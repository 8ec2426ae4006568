//go:build !unix

package sys

// NoCoreDumps does nothing: dumps are off here unless an administrator turns them on for a program.
func NoCoreDumps() error { return nil }
