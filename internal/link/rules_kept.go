//go:build !mutant

package link

// broken is a constant here, so that the compiler removes every question about it.
const broken = none
