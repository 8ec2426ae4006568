//go:build !unix

package relay

import (
	"errors"
	"syscall"
)

func lingerFromBirth(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptLinger(syscall.Handle(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	}); e != nil {
		return e
	}
	return err
}

// Refused says whether nothing listens where a dial went to. Go's syscall.ECONNREFUSED is an invented number on Windows;
// the system says WSAECONNREFUSED.
func Refused(err error) bool { return errors.Is(err, syscall.Errno(10061)) }
