package main

import (
	"os"
	"syscall"
)

// watchedSignals are Ctrl-C and Ctrl-Break, and what Go makes of a closed
// console window, a log-off and a shutdown.
func watchedSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

func ignoreSignal(os.Signal) bool { return false }
