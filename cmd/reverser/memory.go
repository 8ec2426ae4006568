package main

import (
	"os"
	"runtime/debug"

	"reverser/internal/sys"
)

// boundMemory sets the limit of Go's runtime, unless whoever started the
// program set one, and returns the budget for what streams have in flight.
func boundMemory() (budget int64) {
	available := sys.AvailableMemory()
	if limit := sys.RuntimeLimit(available); limit > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
	return sys.MemoryBudget(available)
}
