package process

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"syscall"
)

var portsTaken sync.Map // those that FreePort returned

// FreePort returns a port on which nothing listens and which nobody else of this process has got. It is below the range from which
// outgoing connections take theirs.
func FreePort() (int, error) {
	for range 1000 {
		port := 10000 + rand.IntN(20000)
		if _, taken := portsTaken.LoadOrStore(port, true); !taken && portFree(port) {
			return port, nil
		}
	}
	return 0, errors.New("found no free port between 10000 and 30000")
}

// portFree says whether somebody can listen at the port now. A process that is being started has, for a moment, whatever this one has
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
