//go:build unix

package main

import (
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"syscall"
	"time"
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

// timeToEnd is how long a process may take after a signal: for ever.
func timeToEnd(os.Signal) time.Duration { return 0 }

// asksReload reports whether a signal is the SIGHUP of a service manager, which asks a daemon to
// reload and must not end its connections. On a terminal it means that the
// window was closed.
func asksReload(sig os.Signal) bool {
	return sig == syscall.SIGHUP && !isTerminal(os.Stdin) && !isTerminal(os.Stderr)
}

// outliveReaders lets a write to an output that nobody reads any more fail, as
// behind `| head` or a `| tee` that Ctrl-C ended first. By default it would
// kill the process, and every connection with it.
func outliveReaders() { signal.Ignore(syscall.SIGPIPE) }

// ownerOf is the name of the user who owns a file, "" if that cannot be told.
func ownerOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	id := strconv.FormatUint(uint64(st.Uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "#" + id // as sudo takes it
}
