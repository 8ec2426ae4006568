//go:build unix && !linux && !darwin

package sys

// Unacked returns 0: this system does not tell.
func Unacked(int) int { return 0 }

// Unsent returns 0: this system does not tell.
func Unsent(int) int { return 0 }
