package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"reverser/internal/link"
	"reverser/internal/sys"
)

// socket is the local connection of a pair. Package sys knows how each system reads and writes without waiting.
type socket struct {
	conn net.Conn
	raw  syscall.RawConn // nil: conn has no descriptor to wait on

	polled bool          // a poller watches the socket
	eager  bool          // the last read filled its chunk: have several ready for the next
	wrote  atomic.Uint32 // when something was last written, see stamp; only where the system may not say what its peer has

	// The callbacks of raw, made once so that reading and writing allocate nothing, and what they work on. There is one reader and
	// one writer at a time.
	reads struct {
		ready    func(fd uintptr) bool
		now      func(fd uintptr)
		limit, n int
		batch    *batch // what was read last; nil while nothing is read
		err      error
	}
	writes struct {
		now func(fd uintptr) bool
		src [][]byte
		n   int
		err error
	}
}

// errNothing is what tryRead returns while there is nothing to read.
var errNothing = errors.New("nothing to read")

// readAhead is how many chunks one read fills at most.
const readAhead = 8

// batch is what one read fills. An idle connection has none.
type batch struct {
	chunks [readAhead]*link.Chunk
	vec    [readAhead][]byte
	n      int // chunks that hold something
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// taken returns the chunks that read filled. The caller owns them, and calls release after it is done with the slice.
func (s *socket) taken() []*link.Chunk { return s.reads.batch.chunks[:s.reads.batch.n] }

// release gives back what a read needed.
func (s *socket) release() {
	if b := s.reads.batch; b != nil {
		clear(b.chunks[:b.n])
		b.n, s.reads.batch = 0, nil
		batches.Put(b)
	}
}

// blockingRead reads with a buffer in hand, where there is no waiting without one.
func (s *socket) blockingRead(limit int) (int, error) {
	c := link.NewChunk()
	room := c.Room()
	n, err := s.conn.Read(room[:min(limit, len(room))])
	if n == 0 {
		c.Free()
		return 0, err
	}
	c.Grow(n)
	s.reads.batch = batches.Get().(*batch)
	s.reads.batch.chunks[0], s.reads.batch.n = c, 1
	return n, err
}

// closeWrite sends FIN behind what was written. With last it does nothing: close follows, which sends FIN as well.
func (s *socket) closeWrite(last bool) error {
	if last {
		return nil
	}
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// close closes the socket, with RST or as gracefully as its peer allows. Sockets are born with linger 0 and keep it until then, so
// that the death of this process is never mistaken for an end, nor, behind a FIN of its own, passed over in silence: Linux resets
// what is only half-closed as well.
func (s *socket) close(reset bool) {
	if c, ok := s.conn.(interface{ SetLinger(int) error }); ok {
		linger := -1
		if reset {
			linger = 0
		}
		c.SetLinger(linger)
	}
	s.conn.Close()
}

func (s *socket) init(conn net.Conn) {
	s.conn = conn
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	if !sys.CanTry(raw) {
		return
	}
	s.raw = raw
	s.reads.ready = s.readReady
	s.reads.now = s.readNow
	s.writes.now = s.writeNow
}

// read waits until the socket is readable, takes chunks only then, and reads at most limit bytes into them.
func (s *socket) read(limit int) (int, error) {
	if s.raw == nil {
		return s.blockingRead(limit)
	}
	s.reads.limit, s.reads.n, s.reads.err = limit, 0, nil
	if err := s.raw.Read(s.reads.ready); err != nil {
		return 0, err
	}
	return s.reads.n, s.reads.err
}

// tryRead is read without waiting. Its error is errNothing when there is nothing to read.
func (s *socket) tryRead(limit int) (int, error) {
	s.reads.limit, s.reads.n, s.reads.err = limit, 0, nil
	if err := s.raw.Control(s.reads.now); err != nil {
		return 0, err
	}
	return s.reads.n, s.reads.err
}

func (s *socket) readNow(fd uintptr) {
	if !s.readReady(fd) {
		s.reads.err = errNothing
	}
}

// readReady is called when the socket may be readable. It reports whether it was.
func (s *socket) readReady(fd uintptr) bool {
	b := batches.Get().(*batch)
	s.reads.batch = b
	k, left := 0, s.reads.limit
	for left > 0 && (k == 0 || s.eager && k < readAhead) {
		c := link.NewChunk()
		room := c.Room()
		room = room[:min(left, len(room))]
		b.chunks[k], b.vec[k] = c, room
		left -= len(room)
		k++
	}
	n, err := sys.Read(int(fd), b.vec[:k])
	s.eager = n >= len(b.vec[0]) && n > 0
	left = n
	for i := range k {
		part := min(left, len(b.vec[i]))
		left -= part
		b.vec[i] = nil
		if part == 0 {
			b.chunks[i].Free()
			b.chunks[i] = nil
			continue
		}
		b.chunks[i].Grow(part)
		b.n = i + 1
	}
	if n == 0 {
		s.release()
	}
	switch {
	case sys.WouldBlock(err):
		return false
	case err != nil:
		s.reads.err = err
	case n == 0:
		s.reads.err = io.EOF
	default:
		s.reads.n = n
	}
	return true
}

// tryWrite writes what the socket takes without waiting.
func (s *socket) tryWrite(bufs [][]byte) (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	s.writes.src, s.writes.n, s.writes.err = bufs, 0, nil
	err := s.raw.Write(s.writes.now)
	s.writes.src = nil
	if err == nil {
		err = s.writes.err
	}
	return s.writes.n, err
}

// writeNow is called at once; it never asks to wait.
func (s *socket) writeNow(fd uintptr) bool {
	n, err := sys.Write(int(fd), s.writes.src)
	s.writes.n = n
	if n > 0 {
		s.noteWrite()
	}
	if !sys.WouldBlock(err) {
		s.writes.err = err
	}
	return true // what the socket did not take waits in the stream
}

// queued returns how many of the bytes that were ever written the peer's kernel has not acknowledged yet. Where the system does not
// tell, it is 1 while the socket takes no more, and for settle after a write: then a reset may still overtake bytes for a slow peer.
func (s *socket) queued(written uint64) (n int) {
	if s.raw == nil || !s.isTCP() {
		return 0
	}
	s.raw.Control(func(fd uintptr) {
		if n = sys.Unacked(int(fd), written); n < 0 {
			n = 0
			if written > 0 && (stamp()-s.wrote.Load() < settle || !sys.Writable(int(fd))) {
				n = 1
			}
		}
	})
	return n
}

// noteWrite notes the time of a write where queued may need it.
func (s *socket) noteWrite() {
	if !sys.TellsUnacked {
		s.wrote.Store(stamp())
	}
}

// settle is how long after a write its bytes count as not acknowledged where the system does not tell, in units of stamp.
const settle = 1000

// stamp is the time in milliseconds, which overflows.
func stamp() uint32 { return uint32(time.Since(started).Milliseconds()) }

var started = time.Now()

// unsent returns how many bytes the kernel has not sent yet, because the peer takes no more.
func (s *socket) unsent() (n int) {
	if s.raw != nil && s.isTCP() {
		s.raw.Control(func(fd uintptr) { n = sys.Unsent(int(fd)) })
	}
	return n
}

// gone reports whether the peer reset the connection. Nobody needs to read for that.
func (s *socket) gone() bool {
	reset, _ := s.state()
	return reset
}

// ended reports whether a TCP connection was reset, and whether both directions of it have ended: by FINs, or by a reset.
func (s *socket) ended() (reset, both bool) {
	if !s.isTCP() {
		return false, false
	}
	return s.state()
}

func (s *socket) isTCP() bool {
	_, is := s.conn.(interface{ SetLinger(int) error })
	return is
}

func (s *socket) state() (reset, over bool) {
	if s.raw != nil {
		s.raw.Control(func(fd uintptr) { reset, over = sys.State(int(fd)) })
	}
	return reset, over
}
