package record

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"reverser/internal/sys"
)

// Conn is a TLS 1.3 connection. As a net.Conn it reads and writes bytes; Wait, Records and Send do the same for whole batches.
type Conn struct {
	net.Conn // the socket
	state    tls.ConnectionState
	raw      syscall.RawConn // nil: the socket is always waited for

	wmu     sync.Mutex // held while writing to the socket, too
	write   half       // guarded by wmu, as all below
	since   time.Time  // of the keys of write
	out     []byte     // records that wait for the socket
	done    int        // bytes of out that it took
	tryErr  error
	tryFunc func(fd uintptr) bool // made once, so that writing allocates nothing

	rekey      atomic.Bool // the peer wants new keys in this direction
	rekeyAfter uint64      // records under one key

	// Only the reader uses what follows.
	read    half
	in      []byte  // read from the socket, not decrypted yet; a part of room
	room    *buffer // nil while in is empty, and while the peer is a stranger
	known   bool    // the peer is no stranger: see Trust
	waits   func()  // called before the peer is waited for; nil: by nobody
	may     int     // bytes that the peer may still send as a stranger; noLimit: any number
	plain   []byte  // decrypted, not asked for yet; a part of room
	empty   int     // records without content in a row
	got     int
	readErr error

	readFunc    func(fd uintptr) bool // made once, as tryFunc
	readNowFunc func(fd uintptr)
}

// Batch is about how many bytes one system call reads or writes.
const Batch = 128 << 10

// buffer has room for a batch of records, and for the part of one that the last read left over. A connection that carries
// nothing holds none.
type buffer [Batch + 2*MaxPlaintext]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// Client makes the handshake of the dialling side. The caller bounds it by a deadline on the socket and by ctx, and closes
// the socket on error. cfg must ask for TLS 1.3 and no session tickets.
func Client(ctx context.Context, sock net.Conn, cfg *tls.Config) (*Conn, error) {
	c := newConn(sock)
	if err := c.handshake(ctx, cfg, true); err != nil {
		return nil, err
	}
	c.Trust()
	return c, nil
}

// Steps are told of the steps of a handshake at the accepting side, where strangers come: what it costs can be given to one after
// the other. The zero value tells nobody.
type Steps struct {
	// Begun is what was read of the connection before: its first bytes.
	Begun []byte
	// Heard is called when the peer's first record is there, and before anything is computed for it. An error ends the handshake.
	// hungUp reports whether the peer has ended the connection meanwhile.
	Heard func(hungUp func() bool) error
	// Waits is called each time that the handshake is about to wait for the peer, and until Trust is called also behind it.
	Waits func()
}

// mostOfStranger is how much a peer may send in its handshake, and in a record behind it until Trust is called. A handshake of this package
// takes less than 2 KiB, with a name of 253 bytes and key shares of post-quantum cryptography. crypto/tls alone would keep 64 KiB of an
// unfinished message, and more than that of memory.
const (
	mostOfStranger = 8 << 10
	noLimit        = -1
)

// ErrTooMuch says that a stranger has sent more than a handshake takes.
var ErrTooMuch = fmt.Errorf("more than the %d KiB that a handshake may have", mostOfStranger>>10)

// Server is Client for the accepting side. Until Trust is called the connection holds little more memory than what its peer has sent, and
// that is bounded.
func Server(ctx context.Context, sock net.Conn, cfg *tls.Config, steps Steps) (*Conn, error) {
	c := newConn(sock)
	c.in, c.waits, c.may = steps.Begun, steps.Waits, mostOfStranger
	if err := c.hear(); err != nil {
		return nil, err
	}
	if steps.Heard != nil {
		if err := steps.Heard(c.HungUp); err != nil {
			return nil, err
		}
	}
	if err := c.handshake(ctx, cfg, false); err != nil {
		return nil, err
	}
	return c, nil
}

// Trust says that the peer is no stranger any more.
func (c *Conn) Trust() {
	if c.known {
		return
	}
	c.known, c.waits, c.may = true, nil, noLimit
	in := c.in
	c.in = nil
	if len(in) > 0 {
		c.space()
		c.in = append(c.in, in...)
	}
}

// newConn returns a connection without keys.
func newConn(sock net.Conn) *Conn {
	c := &Conn{Conn: sock, rekeyAfter: rekeyAfter, may: noLimit}
	if sc, ok := sock.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil && sys.CanTry(raw) {
			c.raw = raw
		}
	}
	c.tryFunc, c.readFunc, c.readNowFunc = c.tryWrite, c.tryRead, c.readNow
	return c
}

// hear waits for the first record of a handshake. What can be none is left to crypto/tls to refuse.
func (c *Conn) hear() error {
	if err := c.need(headerLen); err != nil {
		return err
	}
	n := int(c.in[3])<<8 | int(c.in[4])
	if c.in[0] != typeHandshake || c.in[1] != 3 || n > maxCiphertext {
		return nil
	}
	if err := c.allow(headerLen + n); err != nil {
		return err
	}
	return c.need(headerLen + n)
}

// allow refuses a record of n bytes that is more than a stranger may send.
func (c *Conn) allow(n int) error {
	if c.may != noLimit && n > c.may {
		return ErrTooMuch
	}
	return nil
}

func (c *Conn) handshake(ctx context.Context, cfg *tls.Config, client bool) error {
	var keys keyLog
	cfg = cfg.Clone()
	cfg.KeyLogWriter = &keys
	side := tls.Server
	if client {
		side = tls.Client
	}
	tc := side(&oneRecord{Conn: c.Conn, c: c}, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return err
	}
	c.state = tc.ConnectionState()
	s := suites[c.state.CipherSuite]
	if s == nil || keys.client == nil || keys.server == nil {
		return fmt.Errorf("TLS handshake without usable keys: version %#x, cipher suite %s",
			c.state.Version, tls.CipherSuiteName(c.state.CipherSuite))
	}
	mine, theirs := keys.client, keys.server
	if !client {
		mine, theirs = theirs, mine
	}
	if err := c.write.use(s, mine); err != nil {
		return err
	}
	c.since = time.Now()
	return c.read.use(s, theirs)
}

// ConnectionState describes the handshake.
func (c *Conn) ConnectionState() tls.ConnectionState { return c.state }

// oneRecord is the socket as crypto/tls sees it: a read never reaches beyond the present record, so that nothing of the
// peer's is left behind in crypto/tls when its handshake is done.
type oneRecord struct {
	net.Conn
	c    *Conn
	left int // bytes of the present record that were not read yet
}

func (o *oneRecord) Read(p []byte) (int, error) {
	if o.left == 0 {
		if err := o.c.need(headerLen); err != nil {
			return 0, err
		}
		o.left = headerLen + int(o.c.in[3])<<8 + int(o.c.in[4])
		if err := o.c.allow(o.left); err != nil { // crypto/tls takes room for a record when it sees its header
			return 0, err
		}
		if o.c.may != noLimit {
			o.c.may -= o.left
		}
	}
	if err := o.c.need(1); err != nil {
		return 0, err
	}
	n := copy(p, o.c.in[:min(o.left, len(o.c.in))])
	o.c.in = o.c.in[n:]
	o.left -= n
	return n, nil
}

// need waits until n bytes, at most those of a record, are there.
func (c *Conn) need(n int) error {
	if len(c.in) < n && c.waits != nil {
		c.waits()
	}
	for len(c.in) < n {
		if _, err := c.fill(true); err != nil {
			return err
		}
	}
	return nil
}

// fill takes the bytes that the socket has; there are some, unless there is an error, or it is not to wait for them. It holds no
// buffer while it waits for a record to begin.
func (c *Conn) fill(wait bool) (some bool, err error) {
	c.release()
	if c.room != nil && cap(c.in)-len(c.in) < headerLen+maxCiphertext {
		c.in = c.room[:copy(c.room[:], c.in)]
	}
	c.got, c.readErr = 0, nil
	switch {
	case c.raw == nil && !wait:
	case c.raw == nil:
		c.got, c.readErr = c.Conn.Read(c.space())
	case wait:
		err = c.raw.Read(c.readFunc)
	default:
		err = c.raw.Control(c.readNowFunc)
	}
	switch {
	case err != nil:
		return false, err
	case c.got == 0 && c.readErr == io.EOF && len(c.in) > 0:
		return false, io.ErrUnexpectedEOF
	case c.got == 0:
		return false, c.readErr
	}
	c.in = c.in[:len(c.in)+c.got]
	return true, nil
}

// release gives the buffer back when nothing is in it.
func (c *Conn) release() {
	if len(c.in) == 0 && c.room != nil {
		buffers.Put(c.room)
		c.room, c.in = nil, nil
	}
}

// strangerBuffer is what is read at once from a stranger; more of a longer record when that much has come.
const strangerBuffer = 1 << 10

// space is where fill puts what it reads.
func (c *Conn) space() []byte {
	switch {
	case !c.known && cap(c.in)-len(c.in) < strangerBuffer/2:
		c.in = append(make([]byte, 0, max(strangerBuffer, 2*len(c.in))), c.in...)
	case c.known && c.room == nil:
		c.room = buffers.Get().(*buffer)
		c.in = c.room[:0]
	}
	return c.in[len(c.in):cap(c.in)]
}

// Wait waits until a whole record is there.
func (c *Conn) Wait() error {
	for len(c.plain) == 0 {
		fragment, err := c.next()
		if fragment != nil || err != nil {
			return err
		}
		n := headerLen
		if len(c.in) >= headerLen {
			n += int(c.in[3])<<8 | int(c.in[4])
		}
		if err := c.allow(n); err != nil {
			return err
		}
		if err := c.need(n); err != nil {
			return err
		}
	}
	return nil
}

// Ready reports whether a whole record is there. It takes what the socket has, but does not wait.
func (c *Conn) Ready() (bool, error) {
	for len(c.plain) == 0 {
		if fragment, err := c.next(); fragment != nil || err != nil {
			return err == nil, err
		}
		if some, err := c.fill(false); !some {
			return false, err
		}
	}
	return true, nil
}

// next returns what the next record protects, nil when it is not there as a whole, and an error when it can be none.
func (c *Conn) next() ([]byte, error) {
	if len(c.in) < headerLen {
		return nil, nil
	}
	n := int(c.in[3])<<8 | int(c.in[4])
	switch {
	case c.in[0] != typeData || n > maxCiphertext || n <= c.read.aead.Overhead():
		return nil, fmt.Errorf("no TLS record of data: type %d, %d bytes", c.in[0], n)
	case len(c.in) < headerLen+n:
		return nil, nil
	}
	return c.in[headerLen : headerLen+n], nil
}

// Records decrypts the records that are there, as far as p has room, into p. It does not wait, and n is 0 where they carry no
// data.
func (c *Conn) Records(p []byte) (n int, err error) {
	if len(c.plain) > 0 {
		n = copy(p, c.plain)
		c.keep(c.plain[n:])
		return n, nil
	}
	for {
		fragment, err := c.next()
		small := len(p)-n < len(fragment)
		if fragment == nil || err != nil || small && n > 0 {
			return n, err
		}
		c.in = c.in[headerLen+len(fragment):]
		dst := p[n:]
		if small {
			dst = fragment // in place
		}
		content, t, err := c.read.open(dst, fragment)
		if err != nil {
			return n, err
		}
		if t != typeData {
			if err := c.control(t, content); err != nil {
				return n, err
			}
			continue
		}
		if c.empty++; len(content) > 0 {
			c.empty = 0
		}
		if c.empty > 16 {
			return n, errors.New("TLS records without content")
		}
		if small {
			k := copy(p[n:], content)
			c.keep(content[k:])
			return n + k, nil
		}
		n += len(content)
	}
}

// keep keeps what was not asked for yet. Nothing of the buffer may be referred to when that is all: it goes back to the pool, but
// what is in no pool any more is freed only when nobody refers to it.
func (c *Conn) keep(plain []byte) {
	c.plain = plain
	if len(plain) == 0 {
		c.plain = nil
	}
}

// control takes a record that carries no data.
func (c *Conn) control(t contentType, b []byte) error {
	switch {
	case t == typeAlert && len(b) == 2 && b[1] == 0:
		return io.EOF // close_notify
	case t == typeAlert && len(b) == 2:
		return fmt.Errorf("the peer ended the TLS connection: %w", tls.AlertError(b[1]))
	case t == typeHandshake && len(b) == 5 && [4]byte(b) == [4]byte{keyUpdate, 0, 0, 1} && b[4] <= 1:
		if b[4] == 1 {
			c.rekey.Store(true)
		}
		if c.empty++; c.empty > 16 {
			return errors.New("TLS key updates without data")
		}
		return c.read.next()
	}
	return fmt.Errorf("unexpected TLS record: type %d, %d bytes", t, len(b))
}

// keyUpdate is the one handshake message that may come behind the handshake (RFC 8446 section 4.6.3): without session
// tickets and client certificates there are no others.
const keyUpdate = 24

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (n int, err error) {
	for n == 0 && len(p) > 0 {
		if err := c.Wait(); err != nil {
			return 0, err
		}
		if n, err = c.Records(p); n == 0 && err != nil {
			return 0, err
		}
	}
	return n, nil
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	b := append(make([]byte, 0, len(p)+1), p...)
	if _, err := c.Send([][]byte{b}, true); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Send encrypts the pieces, each of which begins a record, and writes them behind what earlier calls left over: all of it with
// wait, otherwise what the socket takes now. done reports whether nothing is left over; after an error, too, the next call goes on
// exactly where the socket stopped. Behind a piece its array has room for one byte more; meanwhile nobody else may use that byte,
// and it is restored.
func (c *Conn) Send(pieces [][]byte, wait bool) (done bool, err error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.out == nil {
		c.out = buffers.Get().(*buffer)[:0]
	}
	now := time.Now()
	for _, p := range pieces {
		if err := c.seal(p, now); err != nil {
			return false, err
		}
	}
	switch {
	case wait:
		var n int
		n, err = c.Conn.Write(c.out[c.done:])
		c.done += n
	case c.raw != nil:
		if err = c.raw.Write(c.tryFunc); err == nil {
			err, c.tryErr = c.tryErr, nil
		}
	}
	if c.done < len(c.out) {
		return false, err
	}
	if cap(c.out) == len(buffer{}) {
		buffers.Put((*buffer)(c.out[:len(buffer{})]))
	}
	c.out, c.done = nil, 0
	return true, err
}

// HungUp reports whether the peer's kernel has ended the connection already, though nobody has read so far. It is false where that
// cannot be known.
func (c *Conn) HungUp() (yes bool) {
	if c.raw != nil {
		c.raw.Control(func(fd uintptr) { yes = hungUp(fd) })
	}
	return yes
}

// seal appends p's records to out. wmu is held.
func (c *Conn) seal(p []byte, now time.Time) (err error) {
	for len(p) > 0 {
		if c.write.seq >= c.rekeyAfter || now.Sub(c.since) >= rekeyEvery || c.rekey.Swap(false) {
			msg := append(make([]byte, 0, 6), keyUpdate, 0, 0, 1, 0)
			c.out = c.write.seal(c.out, msg, typeHandshake)
			if err := c.write.next(); err != nil {
				return err
			}
			c.since = now
		}
		n := min(len(p), MaxPlaintext)
		c.out = c.write.seal(c.out, p[:n], typeData)
		p = p[n:]
	}
	return nil
}
