// Package relay binds a socket and a stream of the link into a pair and moves bytes between them until both directions
// have ended, keeping what TCP says: half-close, reset, back-pressure.
//
// Its secret is how an end of one side becomes the same end of the other. It does not know who connected to what. A pair
// has one goroutine, its caller's, which waits for the socket to become readable without holding a buffer; a second one
// exists only while the socket does not take what arrives.
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
	"reverser/internal/wire"
)

// Reason says why a pair was released. The set is closed; docs/ARCHITECTURE.md explains each.
type Reason string

// The reasons.
const (
	ReasonEOF         Reason = "eof"                // both sides finished
	ReasonClientReset Reason = "client-reset"       // the client reset its connection
	ReasonTargetReset Reason = "target-reset"       // the target reset its connection
	ReasonRefused     Reason = "target-refused"     // the target refused the connection
	ReasonUnreachable Reason = "target-unreachable" // the target did not answer in time, or there is no way to it
	ReasonLinkLost    Reason = "link-lost"          // the session between bridge and proxy ended
	ReasonRemoved     Reason = "service-removed"    // the service or its key was removed
	ReasonDrain       Reason = "drain"              // the process stopped
	ReasonLimit       Reason = "limit"              // no room for another connection
	ReasonChecksum    Reason = "checksum"           // the bytes of a direction did not arrive as they were sent
)

// Side names which end of the whole connection the socket is.
type Side int

// The sides.
const (
	Client Side = iota // at the proxy: the socket is the user's
	Target             // at the bridge: the socket is the real server's
)

// Pair is a socket and a stream that are bound together.
type Pair struct {
	side   Side
	sock   socket
	stream *link.Stream
	head   []byte

	out, in atomic.Uint64 // bytes from the socket, to the socket
	wg      sync.WaitGroup
	over    chan struct{}

	mu              sync.Mutex
	outDone, inDone bool   // guarded by mu, as all below
	poisoned        bool   // a write failed: a later EOF of the socket is the reset that the write swallowed
	reason          Reason // set once the pair is over
}

// New returns a pair that does not move anything yet. head is what was read from conn before, at most a few bytes.
func New(side Side, conn net.Conn, s *link.Stream, head []byte) *Pair {
	p := &Pair{side: side, stream: s, head: head, over: make(chan struct{})}
	p.sock.init(conn)
	return p
}

// Counts returns the bytes from client to target and back, as this end has seen them.
func (p *Pair) Counts() (sent, received uint64) {
	if p.side == Client {
		return p.out.Load(), p.in.Load()
	}
	return p.in.Load(), p.out.Load()
}

// HalfClosed says whether one direction has ended.
func (p *Pair) HalfClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.outDone != p.inDone
}

// Run moves bytes until the pair is over, closes the socket and says why it ended.
func (p *Pair) Run() Reason {
	p.stream.SetReceiver(p)
	p.outbound()
	<-p.over
	p.wg.Wait()
	return p.reason
}

// End ends the pair at once with RST on both sides.
func (p *Pair) End(reason Reason, code wire.Code) {
	p.stream.Reset(code)
	p.finish(reason, true)
}

// outbound moves bytes from the socket into the stream: first permission to send, then readiness, and only then a buffer.
func (p *Pair) outbound() {
	if len(p.head) > 0 { // less than any stream's first credit
		c := link.NewChunk()
		c.Grow(copy(c.Room(), p.head))
		p.out.Add(uint64(len(p.head)))
		p.stream.Send(c)
	}
	gone := p.sock.gone
	for {
		room, err := p.stream.Room(gone)
		if err != nil {
			if errors.Is(err, link.ErrNoWait) {
				p.localReset()
				return
			}
			return // otherwise the stream is over: its end reaches us as a Receiver
		}
		n, err := p.sock.read(room)
		if n > 0 {
			p.out.Add(uint64(n))
			link.TakeTurn(n)
			p.stream.Send(p.sock.taken()...)
			link.EndTurn(n)
			p.sock.release()
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && p.done(&p.outDone):
			p.stream.CloseWrite()
			return
		default:
			p.localReset()
			return
		}
	}
}

// localReset passes on that the socket was reset, behind what was read from it.
func (p *Pair) localReset() {
	p.stream.Reset(wire.CodeReset)
	reason := ReasonClientReset
	if p.side == Target {
		reason = ReasonTargetReset
	}
	p.finish(reason, true)
}

// done marks a direction as ended, and the pair as over with the second one. It refuses to do so when an EOF of the socket
// is none.
func (p *Pair) done(direction *bool) bool {
	p.mu.Lock()
	if direction == &p.outDone && p.poisoned {
		p.mu.Unlock()
		return false
	}
	*direction = true
	both := p.outDone && p.inDone
	p.mu.Unlock()
	if both {
		p.finish(ReasonEOF, false)
	}
	return true
}

// finish closes the socket, with RST or not, and lets Run return. The first call decides.
func (p *Pair) finish(reason Reason, reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != "" {
		return
	}
	p.reason = reason
	p.sock.close(reset)
	close(p.over)
}

// Receive implements link.Receiver: straight into the socket, as far as it takes it.
func (p *Pair) Receive(bufs [][]byte) int {
	n, err := p.sock.tryWrite(bufs)
	p.in.Add(uint64(n))
	if err != nil {
		p.writeFailed()
	}
	return n
}

// Behind implements link.Receiver. A user who is slower than the link would otherwise get a large window, for as long as the
// kernel's buffer takes everything, and keep it when it is full.
func (p *Pair) Behind() bool { return p.sock.unsent() > 0 }

// writeFailed: the socket does not take any more. What its peer sent before may still be read as far as there is credit, and
// then comes the reset; the reader notices by itself, since a dead socket is readable.
func (p *Pair) writeFailed() {
	p.stream.Discard()
	p.mu.Lock()
	p.poisoned = true
	readerGone := p.outDone
	p.mu.Unlock()
	p.stream.NoWait()
	if readerGone {
		p.localReset()
	}
}

// start runs f in a goroutine that Run waits for; false: the pair is over, and Run may have returned.
func (p *Pair) start(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != "" {
		return false
	}
	p.wg.Go(f)
	return true
}

// Backlogged implements link.Receiver.
func (p *Pair) Backlogged() {
	if !p.start(p.drain) {
		p.stream.Discard()
		p.stream.Backlog() // there is none any more
	}
}

// drain writes what the socket did not take at once. It may wait as long as the socket's peer does.
func (p *Pair) drain() {
	for b := p.stream.Backlog(); b != nil; b = p.stream.Backlog() {
		n, err := p.sock.conn.Write(b)
		p.in.Add(uint64(n))
		if err != nil {
			p.writeFailed()
		}
		p.stream.Consumed(len(b))
	}
}

// Ended implements link.Receiver.
func (p *Pair) Ended(kind wire.EndKind, code wire.Code) {
	if kind == wire.FIN {
		if err := p.sock.closeWrite(p.outEnded()); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ENOTCONN) {
			p.localReset()
			return
		}
		p.done(&p.inDone)
		return
	}
	reason := p.remote(code)
	if p.sock.queued() == 0 {
		p.finish(reason, true)
		return
	}
	p.start(func() {
		p.flush()
		p.finish(reason, true)
	})
}

// outEnded says whether the socket's peer has finished already: then closing the socket is all that remains.
func (p *Pair) outEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.outDone
}

// flush waits until the socket's peer has what was written: a reset throws away what still waits in the kernel. No event
// tells that the queue is empty, so it is asked for; that of a dead socket stays as it is.
func (p *Pair) flush() {
	const most, step = 10 * time.Second, 5 * time.Millisecond
	t := time.NewTicker(step)
	defer t.Stop()
	for waited := time.Duration(0); waited < most && p.sock.queued() > 0 && !p.dead(); waited += step {
		select {
		case <-p.over:
			return
		case <-t.C:
		}
	}
}

// dead says whether the socket takes nothing any more: a write failed, or its peer reset it.
func (p *Pair) dead() bool {
	p.mu.Lock()
	poisoned := p.poisoned
	p.mu.Unlock()
	return poisoned || p.sock.gone()
}

// Abort implements link.Receiver.
func (p *Pair) Abort(code wire.Code) {
	reason := p.remote(code)
	if code == wire.CodeAborted {
		reason = ReasonLinkLost
	}
	p.finish(reason, true)
}

// remote is the reason behind a RST that came over the link.
func (p *Pair) remote(code wire.Code) Reason {
	switch code {
	case wire.CodeRefused:
		return ReasonRefused
	case wire.CodeUnreachable:
		return ReasonUnreachable
	case wire.CodeLimit:
		return ReasonLimit
	case wire.CodeService:
		return ReasonRemoved
	case wire.CodeDrain:
		return ReasonDrain
	case wire.CodeChecksum:
		return ReasonChecksum
	}
	if p.side == Client {
		return ReasonTargetReset
	}
	return ReasonClientReset
}
