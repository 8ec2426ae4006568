//go:build !windows

package main

import "io"

// canColor is whether a terminal understands escape sequences: here all do.
func canColor(io.Writer) bool { return true }
