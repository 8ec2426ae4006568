// Package relay binds a socket and a stream of the link into a pair and moves bytes between them until both directions
// have ended, keeping what TCP says: half-close, reset, back-pressure.
//
// Its secret is how an end of one side becomes the same end of the other. It does not know who connected to what. A pair
// that says nothing has no buffer, and no goroutine where a Poller can watch its socket (poller_linux.go). A goroutine reads
// while a socket has more to say than a chunk; another exists only while the socket does not take what arrives.
package relay

import (
	"errors"
	"io"
	"net"
	"os"
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
	head   []byte // read before there was a pair, not sent yet; Start's, then outbound's
	watch  watch  // guarded by mu

	fresh   bool          // nothing was written to the socket yet; guarded by the stream, which has one writer
	out, in sharedCounter // bytes from the socket, to the socket
	reading atomic.Bool   // somebody reads the socket: what the poller has to say is no news
	wg      sync.WaitGroup

	mu              sync.Mutex
	outDone, inDone bool   // guarded by mu, as all below
	finSent         bool   // or about to be
	poisoned        bool   // a write failed: a later EOF of the socket is the reset that the write swallowed
	reset           *reset // that waits until the socket's peer has what was written; nil: none
	reason          Reason // set once the pair is over
	ended           func(Reason)
	poller          *Poller
}

// New returns a pair that does not move anything yet. head is what was read from conn before, as much as that may be.
func New(side Side, conn net.Conn, s *link.Stream, head []byte) *Pair {
	p := &Pair{side: side, stream: s, head: head, fresh: true}
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

// Start moves bytes until the pair is over; then it closes the socket and says why, from a goroutine of its own. While
// nothing arrives from the socket, the poller watches it; where that cannot be, a goroutine waits.
func (p *Pair) Start(poller *Poller, ended func(Reason)) {
	p.mu.Lock()
	p.ended, p.poller = ended, poller
	if p.reason != "" {
		go p.say()
	}
	p.mu.Unlock()
	p.stream.SetReceiver(p)
	for room := p.stream.TryRoom(); room > 0 && len(p.head) > 0; room = p.stream.TryRoom() {
		p.stream.Send(p.takeHead(room))
	}
	headLeft := len(p.head) > 0 // it waits for credit, and what the socket says waits behind it
	p.reading.Store(headLeft)
	p.mu.Lock()
	watched := p.reason == "" && poller.add(p)
	p.mu.Unlock()
	if !watched || headLeft {
		p.reading.Store(true)
		p.start(p.outbound)
	}
}

// takeHead moves bytes of the head, n at the most, into a chunk.
func (p *Pair) takeHead(n int) *link.Chunk {
	c := link.NewChunk()
	n = copy(c.Room(), p.head[:min(n, len(p.head))])
	c.Grow(n)
	p.out.Add(uint64(n))
	if p.head = p.head[n:]; len(p.head) == 0 {
		p.head = nil
	}
	return c
}

// End ends the pair at once with RST on both sides.
func (p *Pair) End(reason Reason, code wire.Code) {
	p.stream.Reset(code)
	p.finish(reason, true)
}

// readable is called by the poller when the socket has something to say. One chunk is read at once. What is more, or has to
// wait, is a goroutine's. With more, a short read is not the end of what is there. flush says that the stream has something to
// flush.
func (p *Pair) readable(more bool) (flush bool) {
	if !p.reading.CompareAndSwap(false, true) { // whoever reads finds it all
		if more && p.finished() { // but nobody does
			p.noteReset()
		}
		return false
	}
	if !p.enter() {
		return false
	}
	defer p.wg.Done()
	p.sock.eager = false
	for room := p.stream.TryRoom(); room > 0 && !p.sock.eager; room = p.stream.TryRoom() {
		n, err := p.sock.tryRead(room)
		if n > 0 {
			flush = true
			p.out.Add(uint64(n))
			p.stream.Put(p.sock.taken()...)
			p.sock.release()
		}
		switch {
		case errors.Is(err, errNothing), err == nil && !p.sock.eager && !more: // a short read took everything (epoll(7))
			p.reading.Store(false)
			return flush
		case errors.Is(err, io.EOF) && p.done(&p.outDone):
			p.stream.PutFIN()
			return true
		case err != nil:
			p.localReset()
			return flush
		}
	}
	p.start(p.outbound)
	return flush
}

// outbound moves bytes from the socket into the stream: first permission to send, then readiness, and only then a buffer. If a
// poller watches the socket, it has the word again as soon as a read brings less than a chunk, or nothing for a while: as
// long as there is much to read, waking one goroutine is the shorter way.
func (p *Pair) outbound() {
	watched := p.sock.polled
	if watched {
		p.sock.polled = false
		p.watchFor(false)
	}
	gone := p.sock.gone
	for {
		room, err := p.stream.Room(gone)
		if err != nil {
			if errors.Is(err, link.ErrNoWait) {
				p.sendRest()
				p.localReset()
			}
			return // otherwise the stream is over: its end reaches us as a Receiver
		}
		if len(p.head) > 0 {
			p.stream.Send(p.takeHead(room))
			continue
		}
		n, err := p.readBulk(room)
		if errors.Is(err, errNothing) {
			if watched {
				p.sock.conn.SetReadDeadline(time.Now().Add(bulkPause))
			}
			if n, err = p.sock.read(room); n > 0 {
				link.TakeTurn(n)
				p.send(n)
				link.EndTurn(n)
			}
		}
		silent := watched && errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case errors.Is(err, io.EOF) && p.done(&p.outDone):
			p.stream.CloseWrite()
			if !watched && p.sock.raw != nil {
				p.noteResetLater()
			}
			return
		case err != nil && !silent:
			p.localReset()
			return
		case silent || watched && !p.sock.eager:
			p.sock.conn.SetReadDeadline(time.Time{})
			p.sock.polled = true
			p.reading.Store(false)
			p.watchFor(true)
			return
		}
	}
}

// readBulk reads of a socket that had much to say what is there already, and sends it, in one turn: to wait for the socket is no
// part of a turn. It returns errNothing when the socket is to be waited for.
func (p *Pair) readBulk(room int) (n int, err error) {
	if !p.sock.eager || p.sock.raw == nil {
		return 0, errNothing
	}
	link.TakeTurn(link.ChunkSize)
	defer link.EndTurn(link.ChunkSize)
	if n, err = p.sock.tryRead(room); n > 0 {
		p.send(n)
	}
	return n, err
}

// send sends the n bytes that were just read.
func (p *Pair) send(n int) {
	p.out.Add(uint64(n))
	p.stream.Send(p.sock.taken()...)
	p.sock.release()
}

// sendRest sends what the peer of a socket that was reset had sent before: what is left of the head, and what the kernel keeps
// readable in front of the reset.
func (p *Pair) sendRest() {
	for len(p.head) > 0 {
		if !p.stream.SendRest(p.takeHead(len(p.head))) {
			return
		}
	}
	for p.sock.raw != nil {
		n, err := p.sock.tryRead(readAhead * link.ChunkSize)
		if n == 0 || err != nil {
			return
		}
		p.out.Add(uint64(n))
		taken := p.stream.SendRest(p.sock.taken()...)
		p.sock.release()
		if !taken {
			return
		}
	}
}

// watchFor says whether the poller is to call.
func (p *Pair) watchFor(bytes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason == "" {
		p.watch.arm(&p.sock, bytes)
	}
}

// bulkPause is how long a goroutine waits for more of a socket that had much to say.
const bulkPause = time.Second

// localReset passes on that the socket was reset, behind what was read from it.
func (p *Pair) localReset() {
	p.stream.Reset(wire.CodeReset)
	reason := ReasonClientReset
	if p.side == Target {
		reason = ReasonTargetReset
	}
	p.finish(reason, true)
}

// finished says whether the socket's EOF was read.
func (p *Pair) finished() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.outDone
}

// noteReset passes on the reset of a socket whose EOF was read: nobody reads it any more, and where there is nothing to write
// nobody would notice. A reset that came before the EOF was noted is done's to see. Behind it the poller says when to look; where
// none watches, a timer does.
func (p *Pair) noteReset() {
	if !p.over() && p.sock.gone() {
		p.localReset()
	}
}

func (p *Pair) noteResetLater() {
	time.AfterFunc(noteEvery, func() {
		if p.noteReset(); !p.over() {
			p.noteResetLater()
		}
	})
}

// noteEvery is how often a socket that is neither read nor watched is asked whether it was reset.
const noteEvery = 2 * time.Second

// done marks a direction as ended, and the pair as over with the second one. It refuses to do so when an EOF of the socket
// is none: of a reset, a write may have had the error. Such a socket is closed both ways, though its own FIN was not sent.
func (p *Pair) done(direction *bool) bool {
	p.mu.Lock()
	if direction == &p.outDone && (p.poisoned || !p.finSent && p.sock.hungUp()) {
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

// finish closes the socket, with RST or not, and has said why. The first call decides.
func (p *Pair) finish(reason Reason, reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != "" {
		return
	}
	p.reason = reason
	p.watch.forget()
	if p.reset != nil && p.poller.resets.drop(p.reset) {
		p.wg.Done()
	}
	p.sock.close(reset)
	if p.ended != nil {
		go p.say()
	}
}

// say waits for what the pair still does, and says why it ended.
func (p *Pair) say() {
	p.wg.Wait()
	p.ended(p.reason)
}

func (p *Pair) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reason != ""
}

// Receive implements link.Receiver: straight into the socket, as far as it takes it.
func (p *Pair) Receive(bufs [][]byte) int {
	p.fresh = false
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

// enter announces work that the end of the pair waits for; false: it is over.
func (p *Pair) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != "" {
		return false
	}
	p.wg.Add(1)
	return true
}

// start runs f in a goroutine that the end of the pair waits for; false: it is over.
func (p *Pair) start(f func()) bool {
	if !p.enter() {
		return false
	}
	go func() {
		defer p.wg.Done()
		f()
	}()
	return true
}

// Backlogged implements link.Receiver. What arrived while the socket was connected has room in it, more often than not.
func (p *Pair) Backlogged() {
	if p.fresh {
		b := p.stream.Backlog()
		if b == nil { // the stream was reset meanwhile
			return
		}
		n := p.Receive([][]byte{b})
		p.stream.Consumed(n)
		if n == len(b) && p.stream.Backlog() == nil {
			return
		}
	}
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
		p.stream.Consumed(n)
		if err != nil {
			p.writeFailed()
		}
	}
}

// Ended implements link.Receiver.
func (p *Pair) Ended(kind wire.EndKind, code wire.Code) {
	if kind == wire.FIN {
		p.mu.Lock()
		if p.reason != "" { // or a RST that is under way would become a FIN
			p.mu.Unlock()
			return
		}
		p.finSent = true
		err := p.sock.closeWrite(p.outDone) // if the peer has finished already, closing the socket is all that remains
		p.mu.Unlock()
		if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ENOTCONN) {
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
	p.resetLater(reason, flushLimit)
}

// resetLater resets the socket when its peer has what was written, or after a while.
func (p *Pair) resetLater(reason Reason, limit time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != "" {
		return
	}
	now := time.Now()
	p.reset = &reset{reason: reason, until: now.Add(limit), flushed: p.flushed, carryOut: func() {
		p.finish(reason, true)
		p.wg.Done()
	}}
	p.wg.Add(1)
	p.poller.resets.add(p.reset, now)
}

// flushed reports whether there is nothing to wait for before a reset: the peer has everything, or takes nothing any more.
func (p *Pair) flushed() bool {
	p.mu.Lock()
	poisoned := p.poisoned
	p.mu.Unlock()
	return poisoned || p.sock.queued() == 0 || p.sock.gone()
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
