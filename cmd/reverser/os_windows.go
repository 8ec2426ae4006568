package main

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

// watchedSignals are Ctrl-C and Ctrl-Break, and what Go makes of a closed
// console window, a log-off and a shutdown.
func watchedSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

func asksReload(os.Signal) bool { return false }

// outliveReaders has nothing to do: a write to a closed pipe is an error here.
func outliveReaders() {}

func isPortTaken(err error) bool { return errors.Is(err, windows.WSAEADDRINUSE) }

// isPortRefused is also what a port that Hyper-V or another has reserved gives.
func isPortRefused(err error) bool { return errors.Is(err, windows.WSAEACCES) }

func ownerOf(string) string { return "" }
