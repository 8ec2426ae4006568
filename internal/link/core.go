package link

import (
	"slices"
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
	checks       []uint8 // slots of CHECK
	retire       bool
}

// askCheck queues a CHECK for a slot.
func (o *outbox) askCheck(slot uint8) {
	if !slices.Contains(o.checks, slot) {
		o.checks = append(o.checks, slot)
	}
}

// askRetire queues a RETIRE.
func (o *outbox) askRetire() { o.retire = true }

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

// ponged takes a PONG for the PING that was sent then. It reports whether that can be.
func (c *core) ponged(sent, now time.Duration) bool {
	rtt := now - sent
	if c.pingsOut == 0 || sent == 0 || rtt < 0 || rtt >= time.Minute {
		return false
	}
	c.pingsOut--
	c.measured(rtt, now)
	return true
}

// measured notes a round trip of the connection.
func (c *core) measured(rtt, now time.Duration) {
	c.rtt = smooth(c.rtt, rtt)
	c.least.add(rtt, now, c.traffic.lately(now) == 0)
}

// roundTrip is the one that windows are for. 5 ms stands for the scheduling of busy hosts, where the path's is shorter than that. One
// that became many times as long waits in a queue, which larger windows would only make longer, for everybody: there a slow path
// ended up with seconds of them.
func (c *core) roundTrip() time.Duration {
	rtt := max(c.rtt, 5*time.Millisecond)
	if least := c.least.get(); least > 0 {
		rtt = min(rtt, 8*least+100*time.Millisecond)
	}
	return rtt
}

// shortest is the shortest round trip of the last minutes, since the path may get longer while the connection lives. A round trip
// measured while idle replaces earlier ones.
type shortest struct {
	since     time.Duration // when now began
	now, last time.Duration // in this period, in the one before; 0: none
}

const shortestPeriod = 2 * time.Minute

func (s *shortest) add(rtt, now time.Duration, quiet bool) {
	switch {
	case quiet || s.now == 0:
		*s = shortest{since: now, now: rtt}
	case now-s.since >= shortestPeriod:
		*s = shortest{since: now, now: rtt, last: s.now}
	}
	s.now = min(s.now, rtt)
}

func (s *shortest) get() time.Duration {
	if s.last == 0 {
		return s.now
	}
	return min(s.now, s.last)
}

func smooth(old, sample time.Duration) time.Duration {
	if old == 0 {
		return sample
	}
	if sample > old {
		return (old + sample) / 2 // windows that are too small for the path cost more than ones that are too large
	}
	return (7*old + sample) / 8 // RFC 6298
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
	s.recv.takeBack(c.budget) // what is left is held, and no credit any more
	s.recv.settleCharge(c.budget, s.recv.held()-floorWindow)
}

// remove takes a stream out of the protocol with all that it holds: its socket is reset at once.
func (c *core) remove(s *streamCore) {
	c.release(s)
	s.recv.settleCharge(c.budget, 0)
}
