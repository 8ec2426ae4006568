package sys

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Adopt returns the connection of a connected stream socket that was made elsewhere, by Duplicate or in another process. It owns the
// file from here, unless it returns an error. It changes no option of the socket: another process may have it still.
func Adopt(f *os.File) (net.Conn, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var domain, kind, listens int
	var peer unix.Sockaddr
	if e := raw.Control(func(fd uintptr) {
		if domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			return
		}
		kind, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		listens, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		peer, _ = unix.Getpeername(int(fd)) // a connection that was reset has none
	}); e != nil {
		return nil, e
	}
	switch {
	case err != nil:
		return nil, os.NewSyscallError("getsockopt", err)
	case kind != unix.SOCK_STREAM || listens != 0:
		return nil, fmt.Errorf("sys: no connection: socket of type %d, listening: %t", kind, listens != 0)
	case domain == unix.AF_INET, domain == unix.AF_INET6:
		if err := f.SetReadDeadline(time.Time{}); err != nil {
			return nil, fmt.Errorf("sys: a socket that blocks: %w", err)
		}
		return &localConn{f, raw, tcpAddr(peer)}, nil
	}
	c, err := net.FileConn(f)
	if err == nil {
		f.Close() // net made a copy
	}
	return c, err
}
