//go:build unix

package relay

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

func lingerFromBirth(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}); e != nil {
		return e
	}
	return err
}

// Refused says whether nothing listens where a dial went to.
func Refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
