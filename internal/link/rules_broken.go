//go:build mutant

package link

// broken is set by a flag of the tests.
var broken = none
