//go:build unix

package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// watchedSignals are the ones to stop on, and SIGHUP unless it is ignored
// already (nohup).
func watchedSignals() []os.Signal {
	s := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		s = append(s, syscall.SIGHUP)
	}
	return s
}

// ignoreSignal is for the SIGHUP of a service manager, which asks a daemon to
// reload and must not end its connections. On a terminal it means that the
// window was closed.
func ignoreSignal(sig os.Signal) bool {
	return sig == syscall.SIGHUP && !isTerminal(os.Stdin) && !isTerminal(os.Stderr)
}

func isPortTaken(err error) bool   { return errors.Is(err, syscall.EADDRINUSE) }
func isPortRefused(err error) bool { return errors.Is(err, syscall.EACCES) }
