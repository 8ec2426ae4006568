//go:build !linux

package sys

// availableTo is what the machine has: limits of a process are not known here.
func availableTo(int) int64 { return available() }
