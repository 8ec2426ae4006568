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

// watchedSignals are the ones to stop on, and SIGHUP.
func watchedSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} }

// underNohup is whether SIGHUP was ignored when the process began: it is to outlive its terminal.
var underNohup = signal.Ignored(syscall.SIGHUP)

// timeToEnd is how long a process may take after a signal: for ever.
func timeToEnd(os.Signal) time.Duration { return 0 }

// asksReload reports whether a signal is the SIGHUP of a service manager, which asks a daemon to
// reload and must not end its connections. On a terminal it means that the
// window was closed, which a process under nohup outlives: whoever sends it,
// nothing worse than a reload comes of it there.
func asksReload(sig os.Signal) bool {
	return sig == syscall.SIGHUP && (underNohup || !isTerminal(os.Stdin) && !isTerminal(os.Stderr))
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
