package entrance

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// Hello is what a TLS client says before anything is decided: its ClientHello (RFC 8446, section 4.1.2).
type Hello struct {
	Name string // of the server that it wants (SNI, RFC 6066 section 3), in lower case; "": it names none. With ECH the outer one
	ALPN []string
	Read []byte // all that was read of the connection, which its server is to get
}

// HelloTime is how long a client has for its ClientHello, and mostHello how many bytes. A hello of crypto/tls is at most 64 KiB long; in
// records of few bytes each it is longer on the wire.
const (
	HelloTime = 10 * time.Second
	mostHello = 128 << 10
)

// ErrNoHello says that what a client sent is no ClientHello.
var ErrNoHello = errors.New("no TLS ClientHello")

// ReadHello reads a ClientHello, in as many records as it comes, and no byte behind the record that ends it. It writes nothing. The
// connection's read deadline is cleared when it succeeds.
func ReadHello(conn net.Conn) (*Hello, error) {
	if err := conn.SetReadDeadline(time.Now().Add(HelloTime)); err != nil {
		return nil, err
	}
	// The parser is that of crypto/tls: its handshake is stopped when it has the hello, and what it would send goes nowhere.
	l := &listening{Conn: conn}
	var h *Hello
	stop := errors.New("the hello is there")
	err := tls.Server(l, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		h = &Hello{Name: info.ServerName, ALPN: info.SupportedProtos}
		return nil, stop
	}}).Handshake()
	switch {
	case h == nil && l.failed != nil:
		return nil, l.failed
	case h == nil:
		return nil, fmt.Errorf("%w: %w", ErrNoHello, err)
	}
	h.Read = l.read
	_ = conn.SetReadDeadline(time.Time{}) // one that has ended meanwhile says so to whoever reads on
	return h, nil
}

// listening keeps what was read of a connection, and writes nothing.
type listening struct {
	net.Conn
	read   []byte
	failed error // of the connection itself
}

func (l *listening) Read(b []byte) (int, error) {
	if len(l.read) >= mostHello {
		return 0, fmt.Errorf("%w in the first %d KiB", ErrNoHello, mostHello>>10)
	}
	n, err := l.Conn.Read(b[:min(len(b), mostHello-len(l.read))])
	l.read = append(l.read, b[:n]...)
	if err != nil {
		l.failed = err
	}
	return n, err
}

func (l *listening) Write(b []byte) (int, error) { return len(b), nil }

// Unrecognized is the alert for a client whose name nobody serves (RFC 6066, section 3): fatal, unrecognized_name.
var Unrecognized = []byte{21, 3, 3, 0, 2, 2, 112}

// Again returns the connection as it was before read was read of it.
func Again(conn net.Conn, read []byte) net.Conn { return &again{Conn: conn, read: read} }

type again struct {
	net.Conn
	read []byte
}

func (a *again) Read(b []byte) (int, error) {
	if len(a.read) == 0 {
		return a.Conn.Read(b)
	}
	n := copy(b, a.read)
	if a.read = a.read[n:]; len(a.read) == 0 {
		a.read = nil
	}
	return n, nil
}

// NetConn is the connection below.
func (a *again) NetConn() net.Conn { return a.Conn }

// CloseWrite ends the direction to the client.
func (a *again) CloseWrite() error {
	if w, ok := a.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
