package relay

import (
	"errors"
	"net"
	"sync"
	"syscall"

	"reverser/internal/link"
)

// socket is the local connection of a pair. How it waits and writes without waiting differs by platform: socket_unix.go,
// socket_other.go.
type socket struct {
	conn net.Conn
	raw  syscall.RawConn // nil: conn has no descriptor to wait on

	polled bool // a poller watches the socket
	eager  bool // the last read filled its chunk: have several ready for the next

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
