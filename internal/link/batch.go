package link

import (
	"net"
	"sync"
	"syscall"
)

// batchConn stands between crypto/tls and the socket. crypto/tls makes one system call per record of 16 KB, and one or two
// per record to read; this makes one for a batch.
type batchConn struct {
	net.Conn
	raw syscall.RawConn // nil: there is no writing without waiting

	mu     sync.Mutex // held while writing to the socket, too
	cork   bool       // records are collected in out; guarded by mu, as all below
	out    []byte
	done   int // bytes of out that the socket took
	tryErr error
	try    func(fd uintptr) bool // made once: see write

	read    func(fd uintptr) bool // made once: see fill. Only the reader uses it, as all below
	got     int
	readErr error
	in      []byte // read and not yet asked for
	room    []byte
	left    int // bytes of the present TLS record that were not asked for yet
	head    int // bytes of the next record's header that were given out
	size    int // of the next record, as far as its header was given out
}

func newBatchConn(c net.Conn) *batchConn {
	b := &batchConn{Conn: c}
	if sc, ok := c.(syscall.Conn); ok && canTry {
		b.raw, _ = sc.SyscallConn()
	}
	b.try, b.read = b.tryWrite, b.tryRead
	return b
}

// Write is called by crypto/tls, from whichever side holds its write lock.
func (b *batchConn) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out = append(b.out, p...)
	if !b.cork && b.done == 0 && len(b.out) == len(p) { // an alert or a key update, with nothing before it
		_, err := b.write(true)
		return len(p), err
	}
	return len(p), nil
}

// send encrypts frames with the TLS connection on top and writes all records at once, behind those that earlier calls left
// over. Without wait it writes what the socket takes; done says that nothing is left over.
func (b *batchConn) send(tls net.Conn, frames []byte, wait bool) (done bool, err error) {
	if len(frames) > 0 {
		b.mu.Lock()
		b.cork = true
		b.mu.Unlock()
		_, err = tls.Write(frames)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cork = false
	if err != nil {
		return false, err
	}
	return b.write(wait)
}

// write writes what out holds. mu is held.
func (b *batchConn) write(wait bool) (done bool, err error) {
	switch {
	case wait:
		_, err = b.Conn.Write(b.out[b.done:])
		b.done = len(b.out)
	case b.raw != nil:
		if err = b.raw.Write(b.try); err == nil {
			err, b.tryErr = b.tryErr, nil
		}
	}
	if b.done < len(b.out) {
		return false, err
	}
	b.out, b.done = b.out[:0], 0
	return true, err
}

func (b *batchConn) Read(p []byte) (int, error) {
	if len(b.in) == 0 {
		if err := b.fill(); err != nil {
			return 0, err
		}
	}
	// Never more than the present record, so that crypto/tls holds none back and wholeRecord knows.
	n := 0
	for n < len(p) && len(b.in) > 0 {
		if b.left == 0 {
			if b.head == 0 && n > 0 {
				break
			}
			b.size = b.size<<8 | int(b.in[0])
			p[n] = b.in[0]
			b.in, n = b.in[1:], n+1
			if b.head++; b.head == recordHeader {
				b.left, b.head, b.size = b.size&0xffff, 0, 0
			}
			continue
		}
		k := copy(p[n:], b.in[:min(b.left, len(b.in))])
		b.in, b.left, n = b.in[k:], b.left-k, n+k
	}
	return n, nil
}

// fill reads from the socket; an error means that nothing came.
func (b *batchConn) fill() (err error) {
	if b.room == nil {
		b.room = make([]byte, batch)
	}
	n := 0
	if b.raw == nil {
		n, err = b.Conn.Read(b.room)
	} else if err = b.raw.Read(b.read); err == nil {
		n, err = b.got, b.readErr
	}
	if n > 0 {
		b.in, err = b.room[:n], nil
	}
	return err
}

// recordHeader is type, version and length of a TLS record (RFC 8446 section 5.1).
const recordHeader = 5

// wholeRecord says whether a TLS read would get a record without waiting.
func (b *batchConn) wholeRecord() bool {
	return b.left == 0 && b.head == 0 && len(b.in) >= recordHeader &&
		len(b.in) >= recordHeader+int(b.in[3])<<8+int(b.in[4])
}
