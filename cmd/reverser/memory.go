package main

import (
	"os"
	"runtime/debug"

	"reverser/internal/memlimit"
)

// boundMemory sets the limit of Go's runtime, unless whoever started the
// program set one, and returns the budget for what streams have in flight.
func boundMemory() (budget int64) {
	available := memlimit.Available()
	if limit := memlimit.Runtime(available); limit > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
	return memlimit.Budget(available)
}
