// Package relay binds a socket and a stream of the link into a pair and moves bytes between them until both directions
// have ended, keeping what TCP says: half-close, reset, back-pressure.
//
// The end of one side becomes the same end of the other. The package does not know who connected to what. A pair
// that is idle has no buffer, and no goroutine where a Poller can watch its socket (poller_linux.go). A goroutine reads
// while a socket has more to say than a chunk; another exists only while the socket does not take what arrives.
//
// In the order in which bytes meet them:
//  1. dial.go: connects to the target, at the bridge.
//  2. relay.go: New and Start bind socket and stream.
//  3. poller.go, poller_linux.go: the socket is readable.
//  4. outward.go, socket.go: from the socket into the stream.
//  5. inward.go: from the stream into the socket.
//     tls.go: both ways, where the TLS of the user ends here.
//  6. end.go, resets.go: ends of either side, and what is left to do behind them.
//  7. freeze.go, state.go: a pair stands still, and another process goes on with it.
package relay

import (
	"net"
	"sync"
	"sync/atomic"
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
	ReasonEnded       Reason = "ended"              // an operator ended the connection
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
	tls    *TLS           // that the user speaks over the stream, and the socket does not; nil: bytes pass as they are
	poller *Poller        // set by Start
	wg     sync.WaitGroup // work that the end of the pair waits for

	// outward is the direction from the socket to the stream.
	outward struct {
		head    []byte        // read before there was a pair, not sent yet; Start's, then outbound's
		bytes   sharedCounter // sent so far
		reading atomic.Bool   // somebody reads the socket, or nobody ever will: what the poller says of bytes is no news
	}

	// inward is the direction from the stream to the socket.
	inward struct {
		bytes sharedCounter // written so far
		fresh bool          // nothing was written yet; guarded by the stream, which has one writer
		count sync.Mutex    // held by Receive, for which wg does not wait, until what it wrote is in bytes
	}

	// life is how far the pair has come.
	life struct {
		mu              sync.Mutex
		outDone, inDone bool
		finSent         bool        // or about to be
		poisoned        bool        // a write failed: a later EOF of the socket is the reset that the write swallowed
		phase           phase       // whether bytes move
		watch           watch       // the poller's
		reset           *reset      // waits until the socket's peer has what was written before; nil: none
		look            *time.Timer // see noteResetLater
		reason          Reason      // set once the pair is over
		ended           func(Reason)
		pending         *ending // what was to end the pair while it was frozen
		shared          bool    // there is, or was, a copy of the descriptor
	}
}

// phase is whether the bytes of a pair move.
type phase uint8

const (
	moving   phase = iota
	freezing       // no work begins; what is under way stops
	frozen         // nothing touches the socket or the stream
	away           // another Pair has the socket
)

// New returns a pair that does not move anything yet. head is what was read from conn before, as much as that may be.
func New(side Side, conn net.Conn, s *link.Stream, head []byte) *Pair {
	p := &Pair{side: side, stream: s}
	p.outward.head = head
	p.inward.fresh = true
	p.sock.init(conn)
	return p
}

// NewTLS is New for a stream over which the user speaks TLS, which ends here: the socket has the plain text, and the pair counts that.
func NewTLS(side Side, conn net.Conn, s *link.Stream, t *TLS) *Pair {
	p := New(side, conn, s, nil)
	p.tls = t
	t.bind(p)
	return p
}

// Open returns what the pair's stream was opened with.
func (p *Pair) Open() wire.Open { return p.stream.Open() }

// Counts returns the bytes from client to target and back, as this end has seen them.
func (p *Pair) Counts() (sent, received uint64) {
	if p.side == Client {
		return p.outward.bytes.Load(), p.inward.bytes.Load()
	}
	return p.inward.bytes.Load(), p.outward.bytes.Load()
}

// HalfClosed reports whether one direction has ended.
func (p *Pair) HalfClosed() bool {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	return p.life.outDone != p.life.inDone
}

// Start moves bytes until the pair is over; then it closes the socket and says why, from a goroutine of its own. While
// nothing arrives from the socket, the poller watches it; where that cannot be, a goroutine waits.
func (p *Pair) Start(poller *Poller, ended func(Reason)) {
	p.life.mu.Lock()
	p.poller, p.life.ended = poller, ended
	if p.life.reason != "" {
		go p.say()
	}
	p.life.mu.Unlock()
	p.begin()
}

// begin lets the bytes move, of a new pair or of one that was frozen.
func (p *Pair) begin() {
	life := &p.life
	life.mu.Lock()
	r := life.reset
	life.mu.Unlock()
	if r != nil { // it waited when the pair was frozen
		if time.Now().After(r.until) || p.flushed() {
			p.finish(r.reason, true)
		}
		p.resetLater(r.reason, time.Until(r.until))
	}
	p.stream.SetReceiver(p)
	for room := p.stream.TryRoom(); room > 0 && len(p.outward.head) > 0; room = p.stream.TryRoom() {
		p.stream.Send(p.takeHead(room))
	}
	headLeft := len(p.outward.head) > 0 // it waits for credit, and what the socket says waits behind it
	life.mu.Lock()
	resets, outDone := life.reset != nil, life.outDone // then nobody reads any more
	p.outward.reading.Store(resets || outDone || headLeft)
	watched := life.reason == "" && !resets && p.poller.add(p)
	life.mu.Unlock()
	switch {
	case resets:
	case outDone && !watched && p.sock.raw != nil:
		if p.enter() {
			p.noteReset()
			p.wg.Done()
		}
		p.noteResetLater()
	case !outDone && (!watched || headLeft):
		p.outward.reading.Store(true)
		p.start(p.outbound)
	}
}

// End ends the pair at once with RST on both sides. One that is frozen ends when it is thawed.
func (p *Pair) End(reason Reason, code wire.Code) {
	if !p.enterOr(reason, code) {
		return
	}
	defer p.wg.Done()
	p.stream.Reset(code)
	p.finish(reason, true)
}

// enter announces work for which the end of the pair, and Freeze, wait. It returns false if no more work may begin.
func (p *Pair) enter() bool {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	return p.enterLocked()
}

func (p *Pair) enterLocked() bool {
	if p.life.reason != "" || p.life.phase != moving {
		return false
	}
	p.wg.Add(1)
	return true
}

// start runs f in a goroutine that the end of the pair waits for. It reports false when there is to be no more work.
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

// over reports whether the pair has ended.
func (p *Pair) over() bool {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	return p.life.reason != ""
}
