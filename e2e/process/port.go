package process

import (
	"net"
	"runtime"
	"syscall"
)

// PortFree says whether addr can be listened at now. A process that is being started has, for a moment, whatever this one has open,
// and would keep the port taken behind the trial: so none is started meanwhile.
func PortFree(addr string) bool {
	if runtime.GOOS == "linux" { // elsewhere package net takes the lock
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	l.Close()
	return true
}
