//go:build !windows

package main

import "os"

// interrupt does to a process what Ctrl-C does.
func interrupt(p *os.Process) error { return p.Signal(os.Interrupt) }
