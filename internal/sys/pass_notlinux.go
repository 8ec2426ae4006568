//go:build unix && !linux

package sys

import (
	"net"
	"os"
)

// Adopt returns the connection of a connected stream socket that was made elsewhere, by Duplicate or in another process. It owns the
// file from here, unless it returns an error.
func Adopt(f *os.File) (net.Conn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	f.Close() // net made a copy
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(keepAlive) // net has set its own
	}
	return c, nil
}
