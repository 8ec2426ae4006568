package main

import (
	"os"

	"reverser/internal/ctrlevent"
)

// interrupt does to a process what Ctrl-C does.
func interrupt(p *os.Process) error { return ctrlevent.Send(p.Pid, ctrlevent.Interrupt) }
