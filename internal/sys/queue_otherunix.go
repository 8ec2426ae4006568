//go:build unix && !linux && !darwin

package sys

// TellsUnacked is false: see Unacked.
const TellsUnacked = false

// Unacked returns -1: this system does not tell.
func Unacked(int, uint64) int { return -1 }

// Unsent returns 0: this system does not tell.
func Unsent(int) int { return 0 }
