package link

import (
	"errors"
	"time"

	"reverser/internal/wire"
)

// core is the protocol state of one slot at one end: its streams, what there is to send, and what a frame does. It has no
// lock, no clock, no goroutine and does no I/O: callers hold the slot's lock and pass the time, counted from any fixed
// instant. The same code runs in production and in simulations.
type core struct {
	dials   bool // this end dials and numbers the attempts; the other one accepts them
	index   uint8
	budget  *share
	streams map[uint64]*streamCore

	gen   uint64 // of the last attach that was tried (the dialling end) or accepted (the other one)
	bound uint64 // generation of the connection that carries the slot; 0: none does

	ids      numbering
	limits   limits
	features wire.Features // of the connection that carries the slot, or carried it last

	outbox
	path

	acked uint64 // how often the peer acknowledged something new
	stall stall

	Duplicates    uint64 // DATA frames that were trimmed because they had been received before
	ChecksumFails uint64
}

// outbox is what there is to send. Lists hold streams, never frames: a frame is made from the state at the time it is sent, so
// that nothing grows with what the peer does.
type outbox struct {
	pong         bool // a PONG with pongVal
	pongVal      uint64
	ping         bool
	goAway       *wire.GoAway
	control      map[uint64][]byte // encoded frames of the owner, see Link.Say
	controlOrder []uint64
	opens        fifo[openList]
	acks         fifo[ackList]
	delayed      fifo[delayedList] // ACKs that may wait until streamCore.ackDue
	fresh, bulk  fifo[flowList]    // streams with something to send: see fillFlows
	forgets      []uint64
}

// say queues a frame of the owner. A later one with the same id replaces it, in its place.
func (o *outbox) say(id uint64, frame []byte) {
	if o.control[id] == nil {
		o.controlOrder = append(o.controlOrder, id)
	}
	o.control[id] = frame
}

// askPong queues a PING.
func (o *outbox) askPong() { o.ping = true }

// answer queues a PONG. A later one replaces it.
func (o *outbox) answer(ping uint64) { o.pong, o.pongVal = true, ping }

// sayGoAway queues a GOAWAY. A later one replaces it. With no time left the peer is to open no stream any more.
func (o *outbox) sayGoAway(drain, comeBack time.Duration) {
	o.goAway = new(wire.GoAway)
	if drain > 0 {
		o.goAway.DrainMillis = millis(drain)
	}
	if comeBack > 0 {
		o.goAway.ComeBack = millis(comeBack)
	}
}

// path is what was seen of the connection that carries the slot.
type path struct {
	pingSent time.Duration // when the last PING went out
	pingsOut int           // PINGs without an answer, at the most: a peer may answer only the last of several
	rtt      time.Duration // smoothed
	least    shortest      // round trip
	traffic  traffic
	glitches int // frames that did nothing, see glitch
}

// dialled is the bit of an id that says which end opened the stream: the dialling one sets it.
const dialled = 1 << 63

// numbering is what an end knows of the ids of a slot's streams: opener u1 ‖ counter u55 ‖ slot u8. Each end counts its own. Its
// ids increase and are never used again.
type numbering struct {
	next   uint64 // of the next stream that this end opens
	seen   uint64 // the highest that an OPEN of the peer carried
	own    int    // streams in the core that this end opened
	others int    // and that the peer opened
}

// limits is what the ends agreed on when the session began.
type limits struct {
	open   int    // streams of this end that the peer accepts
	accept int    // streams of the peer that this end accepts
	credit uint64 // that the peer grants to a stream of this end before its first ACK
}

// agree takes over what the peer said about the streams that it accepts: how many in a slot, and their first credit.
func (l *limits) agree(window, streams uint32) {
	l.credit = min(uint64(window), 1<<30)
	l.open = int(min(streams, MaxStreams))
}

// traffic counts the bytes of streams that came and went lately, both ways.
type traffic struct {
	since     time.Duration // when now began
	now, last uint64        // in this period, in the one before
}

const trafficPeriod = 250 * time.Millisecond

func (t *traffic) add(n int, now time.Duration) {
	if now-t.since >= trafficPeriod {
		t.last = 0
		if now-t.since < 2*trafficPeriod {
			t.last = t.now
		}
		t.since, t.now = now, 0
	}
	t.now += uint64(n)
}

// lately returns the bytes of one to two periods.
func (t *traffic) lately(now time.Duration) uint64 {
	t.add(0, now)
	return t.now + t.last
}

// Delays of the protocol.
const (
	ackDelay = 25 * time.Millisecond
	rttEvery = time.Second // how often a connection in use measures its round trip
	idleGap  = time.Second // of silence after which a window starts small again
)

func newCore(dials bool, index uint8, budget *share) *core {
	c := &core{
		dials: dials, index: index, budget: budget,
		streams: make(map[uint64]*streamCore), outbox: outbox{control: make(map[uint64][]byte)},
		ids:    numbering{next: 1<<8 | uint64(index)},
		limits: limits{open: MaxStreams, accept: MaxStreams, credit: floorWindow},
	}
	if dials {
		c.ids.next |= dialled
	}
	return c
}

// mine reports whether this end opened, or may come to open, the stream with that id. The opener owns the life of the id: it
// sends OPEN and FORGET. The other end keeps the stream for as long as the opener does.
func (c *core) mine(id uint64) bool { return (id&dialled != 0) == c.dials }

// possible reports whether the slot may have a stream with that id. Counters begin with 1, and slot 0 carries no streams.
func (c *core) possible(id uint64) bool {
	return uint8(id) == c.index && c.index != 0 && id&^dialled > 0xff
}

// mark is the highest id of a stream that this end opened; 0: it opened none.
func (c *core) mark() uint64 {
	if last := c.ids.next - 1<<8; last&^dialled > 0xff {
		return last
	}
	return 0
}

// full reports whether the peer accepts no more streams of this end.
func (c *core) full() bool { return c.ids.own >= c.limits.open || !c.mayOpen() }

// mayOpen reports whether the connection lets this end open streams.
func (c *core) mayOpen() bool { return !c.dials || c.features&wire.FeatureDialOpens != 0 }

func (c *core) add(s *streamCore) {
	c.streams[s.id] = s
	*c.ids.count(c.mine(s.id))++
}

// count is the number of streams that this end opened, or that the peer did.
func (n *numbering) count(own bool) *int {
	if own {
		return &n.own
	}
	return &n.others
}

// event is what a received frame asks of the shell.
type event struct {
	kind   eventKind
	stream *streamCore
	data   []byte // with evData: new bytes in order; aliases the frame
}

type eventKind uint8

const (
	evNone   eventKind = iota
	evData             // stream received data
	evEnd              // stream received its end: FIN or RST
	evOpened           // the peer opened the stream
	evReset            // stream is over without an END from the peer: tell its socket RST
	evAcked            // stream may have room for more to send
)

// streamCore is what the protocol knows of a stream. It is the part of a Stream that the core works on; the core does not look at
// the rest.
type streamCore struct {
	id        uint64
	open      wire.Open
	send      sendHalf
	recv      recvHalf
	hooks     hooks // see fifo
	ackDue    time.Duration
	ackWaits  bool
	openSent  bool    // the peer was told of the stream on this connection or an earlier one, or opened it itself
	forgotten bool    // not in the core any more
	closed    bool    // nobody here has it any more: what arrives is answered with RST
	whole     *Stream // that this is a part of
}

func newStream(id uint64, o wire.Open) *streamCore {
	s := new(Stream)
	s.streamCore = streamCore{id: id, open: o, whole: s}
	return &s.streamCore
}

// open makes a new stream of this end.
func (c *core) open(o wire.Open) *streamCore {
	s := newStream(c.ids.next, o)
	c.ids.next += 1 << 8
	s.send.credit = c.limits.credit
	s.recv.win = floorWindow
	if c.budget.roomy() && c.budget.take(openWindow-floorWindow) {
		s.recv.win = openWindow
		s.recv.charged = openWindow - floorWindow
	}
	s.recv.granted = s.recv.win
	c.add(s)
	c.opens.push(s)
	return s
}

// receive applies one frame of a stream. Frames of the link are the shell's.
func (c *core) receive(f wire.Frame, now time.Duration) (event, error) {
	s := c.streams[f.Stream]
	if s == nil {
		return c.receiveUnknown(f)
	}
	if c.glitches > 0 {
		c.glitches--
	}
	switch f.Type {
	case wire.TypeData:
		return c.receiveData(s, f, now)
	case wire.TypeAck:
		return c.receiveAck(s, f)
	case wire.TypeEnd:
		return c.receiveEnd(s, f)
	case wire.TypeOpen:
		if c.mine(s.id) {
			return event{}, notTheOpener(f)
		}
		return event{}, c.glitch() // sent again after a resume that crossed it
	case wire.TypeForget:
		if c.mine(s.id) {
			return event{}, notTheOpener(f)
		}
		return c.forget(s), nil
	}
	return event{}, violation(wire.ErrUnexpected, "%s on a stream", f.Type)
}

// notTheOpener is the violation of a peer that decides about the id of a stream of this end.
func notTheOpener(f wire.Frame) error {
	return violation(wire.ErrUnexpected, "%s of stream %d from the end that did not open it", f.Type, f.Stream)
}

func (c *core) receiveUnknown(f wire.Frame) (event, error) {
	if !c.possible(f.Stream) {
		return event{}, violation(wire.ErrUnexpected, "%s of stream %d on slot %d", f.Type, f.Stream, c.index)
	}
	if c.mine(f.Stream) {
		switch {
		case f.Type == wire.TypeOpen || f.Type == wire.TypeForget:
			return event{}, notTheOpener(f)
		case f.Stream >= c.ids.next:
			return event{}, violation(wire.ErrUnexpected, "%s of stream %d that was never opened", f.Type, f.Stream)
		}
		return event{}, c.glitch() // late frame of a stream that was forgotten
	}
	if f.Type != wire.TypeOpen {
		if f.Stream > c.ids.seen && f.Type != wire.TypeForget {
			return event{}, violation(wire.ErrUnexpected, "%s of stream %d before its OPEN", f.Type, f.Stream)
		}
		return event{}, c.glitch()
	}
	if f.Stream <= c.ids.seen {
		return event{}, c.glitch() // seen and forgotten: an id lives once
	}
	o, err := wire.ParseOpen(f)
	_, unsupported := errors.AsType[*wire.UnsupportedError](err)
	switch {
	case err != nil && !unsupported:
		return event{}, misfit(wire.ErrFormat, "%s", err)
	case f.Offset > 1<<62:
		return event{}, violation(wire.ErrOverflow, "OPEN with credit %d", f.Offset)
	case !c.dials && c.features&wire.FeatureDialOpens == 0:
		return event{}, violation(wire.ErrUnexpected, "OPEN by the dialling end on a connection that has not negotiated it")
	case o.Kind == wire.OpenDatagrams && c.features&wire.FeatureDatagrams == 0:
		return event{}, violation(wire.ErrUnexpected, "OPEN of a flow on a connection that has not negotiated datagrams")
	case c.dials && o.Rest().Name != "":
		return event{}, violation(wire.ErrUnexpected, "OPEN that names %q: to the dialling end a claim is named by its number", o.More.Name)
	}
	c.ids.seen = f.Stream
	if unsupported {
		o = wire.Open{Service: o.Service} // nobody uses the stream, and a document must not say what is not known here
	}
	s := newStream(f.Stream, o)
	s.send.credit = f.Offset
	s.openSent = true
	s.recv.win, s.recv.granted = floorWindow, floorWindow
	c.add(s)
	if c.ids.others > 2*c.limits.accept {
		return event{}, violation(wire.ErrFlood, "%d streams, %d agreed", c.ids.others, c.limits.accept)
	}
	switch {
	case unsupported:
		c.decline(s, wire.CodeUnsupported)
	case c.ids.others > c.limits.accept:
		c.decline(s, wire.CodeLimit)
	default:
		return event{kind: evOpened, stream: s}, nil
	}
	return event{}, nil
}

// close notes that nobody here has the stream any more.
func (s *streamCore) close() { s.closed = true }

// decline resets a stream that the peer opened and that nobody here is to have.
func (c *core) decline(s *streamCore, code wire.Code) {
	c.end(s, wire.RST, code)
	s.recv.discard = true
	s.close()
}

// glitch counts a frame that does nothing.
func (c *core) glitch() error {
	if c.glitches += 2; c.glitches > glitchLimit {
		return violation(wire.ErrFlood, "%d frames that do nothing", c.glitches/2)
	}
	return nil
}

// forget drops a stream that its opener, the peer, has forgotten. One that was not finished here lost its peer: its socket is
// reset, or an opener that forgets early would leak it.
func (c *core) forget(s *streamCore) event {
	if (s.send.end != 0 && s.recv.end != 0) || s.send.reset() || s.recv.reset() {
		c.release(s)
		return event{}
	}
	c.remove(s)
	return event{kind: evReset, stream: s}
}

// settle lets the opener forget a stream that both ends are done with.
func (c *core) settle(s *streamCore) {
	if !c.mine(s.id) || s.forgotten {
		return
	}
	acked := s.send.end != 0 && s.send.una == s.send.total()
	if (acked && s.recv.end != 0) || (acked && s.send.reset()) || s.recv.reset() {
		c.release(s)
		if s.openSent && c.mine(s.id) {
			c.forgets = append(c.forgets, s.id)
		}
	}
}

// release takes a stream out of the protocol. What it received and did not deliver yet stays with it, and stays charged
// until it is consumed.
func (c *core) release(s *streamCore) {
	if s.forgotten {
		return
	}
	s.forgotten = true
	delete(c.streams, s.id)
	*c.ids.count(c.mine(s.id))--
	s.send.drop(c.budget)
	s.recv.settleCharge(c.budget, s.recv.held()-floorWindow)
}

// remove takes a stream out of the protocol with all that it holds: its socket is reset at once.
func (c *core) remove(s *streamCore) {
	c.release(s)
	s.recv.settleCharge(c.budget, 0)
}
