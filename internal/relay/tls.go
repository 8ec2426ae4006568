package relay

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"reverser/internal/link"
	"reverser/internal/wire"
)

// TLS is a user's TLS connection over a stream that ends here: the stream carries its records, and the pair's socket the plain text.
//
// What TCP says is said by TLS as well, and each stands for the other: close_notify for FIN, in either direction alone, and a reset for a
// reset. A user's FIN without close_notify may come from somebody on the way who cuts the connection short (RFC 8446, section 6.1). So it
// is a reset, never a clean end.
//
// A connection that says nothing has no goroutine of its own, no more than other pairs, and no buffer but that of the largest record that
// the user has sent, which crypto/tls keeps.
type TLS struct {
	conn   *tls.Conn
	flow   flow
	closed bool // the user's close_notify has come; the reader's
}

// Handshake is the server's part of a TLS handshake over s. While it waits for the user it calls waits, and heard when it goes on. What
// bounds its time is the deadline of s.
func Handshake(s *link.Stream, cfg *tls.Config, waits, heard func()) (*TLS, error) {
	t := &TLS{flow: flow{stream: s, waits: waits, heard: heard}}
	t.conn = tls.Server(&t.flow, cfg)
	err := t.conn.Handshake()
	t.flow.waits, t.flow.heard = nil, nil
	return t, err
}

// Protocol is what the handshake agreed on by ALPN; "": nothing.
func (t *TLS) Protocol() string { return t.conn.ConnectionState().NegotiatedProtocol }

// bind has the pair move the bytes from now on.
func (t *TLS) bind(p *Pair) { t.flow.pair = p }

// flow is the connection below TLS: a stream. During the handshake it waits as other connections do. In a pair, Read returns what has
// arrived, and errNoMore behind it.
type flow struct {
	stream       *link.Stream
	record       record
	waits, heard func() // nil in a pair

	pair    *Pair  // nil during the handshake
	arrived []byte // of the stream's backlog
	rest    bool   // the socket is dead, and what it had said is sent without credit
}

// errNoMore ends a Read in a pair when nothing has arrived. crypto/tls goes on where it was with the next Read, since the error is temporary.
var errNoMore = os.ErrDeadlineExceeded

// Read implements net.Conn. It returns no byte of the next record, so that crypto/tls never has bytes that nobody waits for.
func (f *flow) Read(b []byte) (n int, err error) {
	b = b[:min(len(b), f.record.rest())]
	switch {
	case f.pair == nil:
		f.waits()
		n, err = f.stream.Read(b)
		f.heard()
	case len(f.arrived) == 0:
		return 0, errNoMore
	default:
		n = copy(b, f.arrived)
		f.arrived = f.arrived[n:]
	}
	f.record.pass(b[:n])
	return n, err
}

// Write implements net.Conn.
func (f *flow) Write(b []byte) (n int, err error) {
	if f.pair == nil {
		f.waits()
		defer f.heard()
		return f.stream.Write(b)
	}
	for n < len(b) {
		room := 0
		if !f.rest {
			room, err = f.stream.Room(f.pair.sock.gone)
			f.rest = errors.Is(err, link.ErrNoWait)
		}
		switch {
		case f.rest:
			c := link.NewChunk()
			k := copy(c.Room(), b[n:])
			c.Grow(k)
			if !f.stream.SendRest(c) {
				return n, link.ErrNoWait
			}
			n += k
		case errors.Is(err, link.ErrFrozen):
			k, err := f.stream.Write(b[n:]) // waits for that, too
			return n + k, err
		case err != nil:
			return n, err
		default:
			k := min(room, len(b)-n)
			f.stream.SendBytes(b[n : n+k])
			n += k
		}
	}
	return n, nil
}

// The rest of a net.Conn. Whoever has the stream closes it, and sets its deadlines.

func (f *flow) Close() error                     { return nil }
func (f *flow) LocalAddr() net.Addr              { return f.stream.LocalAddr() }
func (f *flow) RemoteAddr() net.Addr             { return f.stream.RemoteAddr() }
func (f *flow) SetDeadline(time.Time) error      { return nil }
func (f *flow) SetReadDeadline(time.Time) error  { return nil }
func (f *flow) SetWriteDeadline(time.Time) error { return nil }

// record is where in a TLS record (RFC 8446, section 5.1) a reader is.
type record struct {
	head [5]byte // type, version, length of the body
	n    int     // bytes read of head
	body int     // bytes to come
}

// rest returns how many bytes surely are of this record.
func (r *record) rest() int {
	if r.n < len(r.head) {
		return len(r.head) - r.n
	}
	return r.body
}

// pass notes bytes that were read, rest at the most.
func (r *record) pass(b []byte) {
	if r.n < len(r.head) {
		r.n += copy(r.head[r.n:], b)
		r.body = int(r.head[3])<<8 | int(r.head[4])
	} else {
		r.body -= len(b)
	}
	if r.n == len(r.head) && r.body == 0 {
		r.n = 0
	}
}

// plains are buffers for what was decrypted: as much as a record holds.
var plains = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// decrypt is drain for a pair that ends TLS.
func (p *Pair) decrypt() {
	buf := plains.Get().(*[16 << 10]byte)
	defer plains.Put(buf)
	for b := p.stream.Backlog(); b != nil; b = p.stream.Backlog() {
		p.tls.flow.arrived = b
		err := p.pass(buf[:])
		p.tls.flow.arrived = nil
		p.stream.Consumed(len(b))
		switch _, socket := errors.AsType[*socketError](err); {
		case errors.Is(err, errNoMore):
		case err == io.EOF: // close_notify, behind which nothing counts
			p.tls.closed = true
			p.stream.Discard()
			p.endIn()
		case socket:
			p.writeFailed()
		default: // what came is no record of this connection; the user has an alert that says so
			p.truncated()
		}
	}
}

// socketError is an error of the socket, not of TLS.
type socketError struct{ error }

// pass writes what has arrived to the socket, until it returns an error: errNoMore when that was all. It may wait as long as the socket's
// peer does.
func (p *Pair) pass(buf []byte) error {
	for {
		n, err := p.tls.conn.Read(buf)
		if n > 0 {
			m, err := p.sock.conn.Write(buf[:n])
			p.sock.noteWrite()
			p.inward.bytes.Add(uint64(m))
			if err != nil {
				return &socketError{err}
			}
		}
		if err != nil {
			return err
		}
	}
}

// truncated ends a pair whose user's side of TLS came to no proper end.
func (p *Pair) truncated() {
	p.stream.Reset(wire.CodeReset)
	reason := ReasonClientReset
	if p.side == Client {
		reason = ReasonTargetReset
	}
	p.remoteReset(reason)
}

// encrypt sends the n bytes that were just read from the socket. It may wait for credit, but for little more than a record's frame: there
// was room for the bytes.
func (p *Pair) encrypt(n int) {
	var err error
	for _, c := range p.sock.taken() {
		if err == nil {
			_, err = p.tls.conn.Write(c.Bytes())
		}
		c.Free()
	}
	p.sock.release()
	p.outward.bytes.Add(uint64(n))
	if err != nil && !p.over() {
		p.truncated() // where the stream is over, this changes nothing
	}
}

// encryptRest is sendRest for a pair that ends TLS.
func (p *Pair) encryptRest() {
	p.tls.flow.rest = true
	for p.sock.raw != nil {
		n, err := p.sock.tryRead(readAhead * link.ChunkSize)
		if n == 0 || err != nil {
			return
		}
		p.encrypt(n)
	}
}

// closeWrite says close_notify behind what was encrypted.
func (t *TLS) closeWrite() { _ = t.conn.CloseWrite() } // where that fails, the stream is over
