package web

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/http"
)

// hijacked hands a connection over that leaves HTTP. net/http may have read more of it than the request: a client may send at once what comes
// behind an upgrade. ReverseProxy does not look for that, so it is what the connection reads first.
type hijacked struct{ http.ResponseWriter }

// Hijack implements http.Hijacker.
func (w hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil || brw.Reader.Buffered() == 0 {
		return conn, brw, err
	}
	ahead, err := brw.Reader.Peek(brw.Reader.Buffered())
	return &readAhead{conn, bytes.Clone(ahead)}, brw, err
}

// Unwrap is for http.ResponseController.
func (w hijacked) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// readAhead is a connection of which something was read already.
type readAhead struct {
	net.Conn
	ahead []byte
}

func (c *readAhead) Read(b []byte) (int, error) {
	if len(c.ahead) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.ahead)
	c.ahead = c.ahead[n:]
	return n, nil
}

// CloseWrite ends one direction.
func (c *readAhead) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
