// Package freeport finds ports for programs that tests start.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"syscall"
)

// taken are the ports that Get returned. On Linux each is a socket whose name no other test process can take while this one lives.
var taken sync.Map

// Get returns a port on which nothing listens and which nobody else got, not in other test processes either (those of one process
// elsewhere than on Linux). It is below the range from which outgoing connections take theirs, so it stays free until it is used.
func Get() (int, error) {
	for range 1000 {
		port := 10000 + rand.IntN(20000)
		if reserve(port) && portFree(port) {
			return port, nil
		}
	}
	return 0, errors.New("found no free port between 10000 and 30000")
}

// Addr is Get on the IPv4 loopback.
func Addr() (string, error) {
	port, err := Get()
	return fmt.Sprintf("127.0.0.1:%d", port), err
}

func reserve(port int) bool {
	if _, mine := taken.LoadOrStore(port, nil); mine {
		return false
	}
	if runtime.GOOS != "linux" {
		return true
	}
	// An abstract name: no file stays behind, and the kernel gives it free when the process ends.
	name, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: fmt.Sprintf("@reverser-test-port-%d", port), Net: "unixgram"})
	if err != nil {
		return false
	}
	taken.Store(port, name)
	return true
}

// portFree reports whether somebody can listen at the port now. A process that is being started has, for a moment, whatever this one has
// open, and would keep the port taken behind the trial: so none is started meanwhile.
func portFree(port int) bool {
	if runtime.GOOS == "linux" { // elsewhere package net takes the lock
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
