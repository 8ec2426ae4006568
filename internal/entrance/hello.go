package entrance

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"reverser/internal/share"
	"reverser/internal/traffic"
)

// Hello is what a TLS client says before anything is decided: its ClientHello (RFC 8446, section 4.1.2).
type Hello struct {
	Name string // of the server that it wants (SNI, RFC 6066 section 3), in lower case; "": it names none. With ECH the outer one
	ALPN []string
	Read []byte // all that was read of the connection, which its server is to get

	of   *share.Pool // whose memory it has; nil: none
	from netip.Addr
}

// HelloTime is how long a client has for its ClientHello, and mostHello how many bytes, with the heads of its records. Those of browsers with
// key shares of post-quantum cryptography and ECH have less than 4 KiB. Longer ones share mostLong bytes (share.Pool), or strangers could take
// 16 KiB with each of thousands of connections.
const (
	HelloTime = 10 * time.Second
	mostHello = 16 << 10
	longHello = 4 << 10
	mostLong  = 16 << 20
)

// Errors of Hellos.Read: what a client sent is no ClientHello, or a long one for which there is no memory.
var (
	ErrNoHello = errors.New("no TLS ClientHello")
	ErrNoRoom  = fmt.Errorf("there is no room for another long ClientHello: all clients share %d MiB, and an address has half of what others leave", mostLong>>20)
)

// Hellos reads the ClientHellos of strangers, and bounds the memory that the long ones take together. The zero value is ready.
type Hellos struct {
	// Crowded, unless nil, is told of each long one for which there is no memory.
	Crowded func(why error)

	once sync.Once // makes long
	long *share.Pool
}

// Taken returns how much of the memory for long ones is taken, and by whom most.
func (hs *Hellos) Taken() share.Taken { return hs.pool().Taken() }

func (hs *Hellos) pool() *share.Pool {
	hs.once.Do(func() { hs.long = &share.Pool{Size: mostLong} })
	return hs.long
}

// Read reads a ClientHello, in as many records as it comes. It writes nothing. The connection's read deadline is cleared when it
// succeeds; the hello is to be told when it is Done.
func (hs *Hellos) Read(conn net.Conn) (_ *Hello, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(HelloTime)); err != nil {
		return nil, err
	}
	h := &Hello{Read: make([]byte, 0, longHello/4), from: traffic.AddrPort(conn.RemoteAddr()).Addr()}
	defer func() {
		if err != nil {
			h.Done()
		}
	}()
	// crypto/tls, which reads it, would keep two copies more while the client is waited for.
	for m := (message{}); !m.over(h.Read); {
		if err := hs.grow(h); err != nil {
			return nil, err
		}
		n, err := conn.Read(h.Read[len(h.Read):cap(h.Read)])
		if h.Read = h.Read[:len(h.Read)+n]; err != nil {
			return nil, err
		}
	}
	if err := h.parse(); err != nil {
		return nil, err
	}
	_ = conn.SetReadDeadline(time.Time{}) // one that has ended meanwhile says so to whoever reads on
	return h, nil
}

// grow makes room to read more.
func (hs *Hellos) grow(h *Hello) error {
	n := len(h.Read)
	switch {
	case n < cap(h.Read):
		return nil
	case n >= mostHello:
		return tooLong()
	case n < longHello:
		h.Read = append(make([]byte, 0, 2*n), h.Read...)
		return nil
	case !hs.pool().Take(h.from, mostHello):
		if hs.Crowded != nil {
			hs.Crowded(ErrNoRoom)
		}
		return ErrNoRoom
	}
	h.of = hs.pool()
	h.Read = append(make([]byte, 0, mostHello), h.Read...)
	return nil
}

func tooLong() error { return fmt.Errorf("%w in the first %d KiB", ErrNoHello, mostHello>>10) }

// Done says that the client is no stranger any more, or is not served: others may have the memory of a long hello.
func (h *Hello) Done() {
	if h != nil && h.of != nil {
		h.of.Give(h.from, mostHello)
		h.of = nil
	}
}

// message follows a handshake message through its records.
type message struct {
	at   int     // where the present record begins
	have int     // bytes of the message in those before
	head [4]byte // of the message: its type, and its length
}

// over reports whether b, of which more is there with each call, has a whole ClientHello, or what can be none: both is for crypto/tls to tell.
func (m *message) over(b []byte) bool {
	for len(b)-m.at >= 5 {
		r := b[m.at:]
		n := int(r[3])<<8 | int(r[4])
		if r[0] != 22 || n == 0 || n > mostHello {
			return true
		}
		part := r[5:min(len(r), 5+n)]
		if m.have < len(m.head) {
			copy(m.head[m.have:], part)
		}
		have := m.have + len(part)
		size := 4 + (int(m.head[1])<<16 | int(m.head[2])<<8 | int(m.head[3]))
		if have > 0 && m.head[0] != 1 || have >= 4 && size > mostHello {
			return true
		}
		if len(part) < n {
			return false
		}
		if have >= 4 && have >= size {
			return true
		}
		m.at, m.have = m.at+5+n, have
	}
	return len(b) > m.at && b[m.at] != 22
}

// parse has crypto/tls read the hello: its handshake is stopped when it has it.
func (h *Hello) parse() error {
	there := false
	stop := errors.New("the hello is there")
	err := tls.Server(&said{read: h.Read}, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		there, h.Name, h.ALPN = true, info.ServerName, info.SupportedProtos
		return nil, stop
	}}).Handshake()
	switch {
	case there:
		return nil
	case errors.Is(err, errMore):
		return tooLong()
	}
	return fmt.Errorf("%w: %w", ErrNoHello, err)
}

var errMore = errors.New("the hello is longer than what is there")

// said is a connection that has said something and says no more. What is written to it goes nowhere.
type said struct {
	net.Conn
	read []byte
}

func (s *said) Read(b []byte) (int, error) {
	if len(s.read) == 0 {
		return 0, errMore
	}
	n := copy(b, s.read)
	s.read = s.read[n:]
	return n, nil
}

func (s *said) Write(b []byte) (int, error) { return len(b), nil }

// MostBehind is how much a client may send behind its hello until the end of its handshake: another hello, if the first one had no
// suitable key share, and the end.
func (h *Hello) MostBehind() int { return max(len(h.Read), longHello) + longHello/2 }

// ErrTooMuch says that a client has sent more than that.
var ErrTooMuch = errors.New("more than a TLS handshake takes")

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
