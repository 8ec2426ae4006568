//go:build unix && !darwin

package sys

// mostDescriptors is what a limit of the process may say at most.
func mostDescriptors() int { return 1 << 20 }
