package main

import (
	"os"
	"syscall"
	"time"

	"reverser/internal/service"
)

// watchedSignals are Ctrl-C and Ctrl-Break, and what Go makes of a closed
// console window, a log-off and a shutdown.
func watchedSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

// timeToEnd is how long a process may take after a signal, 0 being for ever. When the console window is closed, and at a log-off or
// shutdown, Windows ends a process after 5 seconds, and whatever it has not said by then is lost.
func timeToEnd(sig os.Signal) time.Duration {
	if sig == syscall.SIGTERM {
		return 4 * time.Second
	}
	return 0
}

// asksReload reports whether the service manager asks for a reload: there is no signal for that.
func asksReload(sig os.Signal) bool { return service.AsksReload(sig) }

// outliveReaders has nothing to do: a write to a closed pipe is an error here.
func outliveReaders() {}

func ownerOf(string) string { return "" }
