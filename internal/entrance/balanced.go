package entrance

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"reverser/internal/proxyproto"
	"reverser/internal/traffic"
)

// HeaderTime is how long a balancer has for its header of the PROXY protocol.
const HeaderTime = 10 * time.Second

// ErrNoHeader says that a connection does not begin with a header of the PROXY protocol, or that none came in HeaderTime.
var ErrNoHeader = proxyproto.ErrMalformed

// balanced is a connection that came through a balancer, with the addresses that its header named. It is a *net.TCPConn in everything else,
// since whoever moves its bytes works on its descriptor.
type balanced struct {
	*net.TCPConn
	header proxyproto.Header
}

// RemoteAddr is the user's address, and the balancer's where that did not name one.
func (b *balanced) RemoteAddr() net.Addr {
	if !b.header.Client.IsValid() {
		return b.TCPConn.RemoteAddr()
	}
	return net.TCPAddrFromAddrPort(b.header.Client)
}

// LocalAddr is the address that the user reached.
func (b *balanced) LocalAddr() net.Addr {
	if !b.header.Client.IsValid() {
		return b.TCPConn.LocalAddr()
	}
	return net.TCPAddrFromAddrPort(b.header.Local)
}

// Client returns the address of the user of a connection. It is the zero value where a balancer names none: its own address would stand
// for all its users.
func Client(conn net.Conn) netip.AddrPort {
	for {
		switch c := conn.(type) {
		case *balanced:
			return c.header.Client
		case interface{ NetConn() net.Conn }: // above another one
			conn = c.NetConn()
		default:
			return traffic.AddrPort(conn.RemoteAddr())
		}
	}
}

// ReadHeader reads the header of the PROXY protocol with which a connection begins, and no byte behind it. It returns the connection with
// the addresses that the header names; with an error, it returns what was read. The read deadline is cleared when it succeeds, and with
// ErrNoHeader.
func ReadHeader(conn net.Conn) (user net.Conn, read []byte, err error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, nil, fmt.Errorf("%w: %T is no TCP connection", ErrNoHeader, conn)
	}
	return readHeaderIn(tcp, HeaderTime)
}

// HeaderOfNobody is the header that a balancer says before a connection of its own.
func HeaderOfNobody() []byte { return proxyproto.Append(nil, 2, proxyproto.Header{}) }

func readHeaderIn(tcp *net.TCPConn, within time.Duration) (user net.Conn, read []byte, err error) {
	if err := tcp.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, nil, err
	}
	h, read, err := readHeader(tcp)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w within %s", ErrNoHeader, within)
	}
	if err != nil && !errors.Is(err, ErrNoHeader) {
		return nil, read, err
	}
	_ = tcp.SetReadDeadline(time.Time{}) // one that has ended meanwhile says so to whoever reads on
	if err != nil {
		return nil, read, err
	}
	if h.Client == traffic.AddrPort(tcp.RemoteAddr()) { // as HAProxy's checks do in version 1
		h = proxyproto.Header{}
	}
	return &balanced{tcp, h}, nil, nil
}

func readHeader(r io.Reader) (h proxyproto.Header, read []byte, err error) {
	for {
		h, more, err := proxyproto.Parse(read)
		if more == 0 || err != nil {
			return h, read, err
		}
		at := len(read)
		read = append(read, make([]byte, more)...)
		n, err := r.Read(read[at:])
		read = read[:at+n]
		if n == 0 && err != nil {
			return h, read, err
		}
	}
}

// CheckTime is how long a balancer that has a connection for itself is waited for before the target hears of it.
const CheckTime = 300 * time.Millisecond

// Checked reports whether a connection is one by which a balancer looked whether the port answers: one of its own, that it ends before it
// says anything. The connection is closed then. Otherwise it returns what was read of the connection. A check that waits for the target
// to speak first does so when the time within is over, which is CheckTime.
func Checked(conn net.Conn, within time.Duration) (read []byte, over bool) {
	b, ok := conn.(*balanced)
	if !ok || b.header.Client.IsValid() {
		return nil, false
	}
	b.SetReadDeadline(time.Now().Add(within))
	read = make([]byte, 512)
	n, err := b.Read(read)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		traffic.Reset(conn)
		return nil, true
	}
	b.SetReadDeadline(time.Time{})
	return read[:n], false
}
