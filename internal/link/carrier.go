package link

import (
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/record"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// batch is about how many bytes of frames are encrypted and written at once.
const batch = record.Batch

// slot is one numbered place of a link: its streams, and the connection that carries them at present.
type slot struct {
	link  *Link
	index uint8

	mu       sync.Mutex
	core     *core         // guarded by mu, as all below
	cur      *carrier      // nil while no connection carries the slot
	attached bool          // was ever attached
	frozen   bool          // see Link.Freeze
	since    time.Duration // of the last change of cur
	resumes  uint64
	reached  netip.Addr    // bridge: where the proxy was when the slot was attached last
	pong     time.Duration // when the last PING was sent that was answered

	news bell // what standing says may have changed
}

// wake lets the writer look for something to send. mu is held.
func (sl *slot) wake() {
	if sl.cur != nil && !sl.cur.sending { // else the sender looks again
		sl.cur.work.Signal()
	}
}

// carrier is one connection that serves a slot. Its owner calls run, which returns when the connection is over.
type carrier struct {
	slot *slot
	gen  uint64 // names the connection to the core
	conn *record.Conn
	err  error // why it ended; guarded by slot.mu

	inbound
	outbound
	liveness
}

// inbound is what only the connection's reader uses.
type inbound struct {
	pending *Stream  // that parts belong to
	parts   [][]byte // of DATA frames in order
}

// outbound is the sending side. slot.mu guards it, as far as nothing else is said.
type outbound struct {
	work     sync.Cond // on slot.mu
	batch    int       // bytes sent at once at most
	sending  bool      // somebody has a batch in hand
	left     bool      // the socket did not take a batch whole, and the writer has to wait for it
	greeting []byte    // what the writer sends first
	ackTimer *time.Timer
	ackArmed bool         // ackTimer runs
	writing  atomic.Int64 // when the writer began to wait for the socket; 0: it does not. Not guarded
}

// liveness is what is known of whether the peer is still there (alive.go). slot.mu guards it, as far as nothing else is said.
type liveness struct {
	watch      *time.Timer   // calls look
	asked      time.Duration // since when a sign of life is waited for; 0: not suspect
	mustAnswer bool          // it is suspect for its silence: only an answer to a PING ends that
	pingAsked  time.Duration // when the last PING was asked for
	used       time.Duration // when the last frame of a stream came
	dead       bool          // the kernel says that the peer ended it
	moved      bool          // the local address is gone
	lastRead   atomic.Int64  // time.Duration of the link's clock. Not guarded
}

// errFenced says that a newer connection took the slot.
var errFenced = errors.New("replaced by a newer connection")

func newCarrier(sl *slot, conn *record.Conn) *carrier {
	c := &carrier{slot: sl, conn: conn, outbound: outbound{batch: batch}, inbound: inbound{parts: make([][]byte, 0, 16)}}
	c.work.L = &sl.mu
	return c
}

// install makes c the slot's connection. slot.mu is held and the slot is fenced.
func (sl *slot) install(c *carrier) {
	if sl.attached {
		sl.resumes++
	}
	sl.attached = true
	sl.link.serving.Add(1) // until run returns
	sl.cur = c
	sl.core.ping = true // measures the round trip
	if len(sl.core.streams) > 0 {
		c.used = sl.link.now() // users have waited for it
	}
	sl.since = sl.link.now()
	c.lastRead.Store(int64(sl.link.now()))
}

// fence makes sure that the slot's old connection changes nothing any more. slot.mu is held.
func (sl *slot) fence(err error) {
	c := sl.cur
	if c == nil {
		return
	}
	c.err = err
	sl.cur = nil
	sl.since = sl.link.now()
	sl.core.lost(c.gen)
	c.work.Broadcast()
	c.conn.Close()
}

// run serves the connection until it ends, by itself or by fence, and returns why.
func (c *carrier) run() error {
	sl := c.slot
	defer sl.link.serving.Done()
	sl.mu.Lock()
	first := pingUsed
	if c.asked != 0 { // it became suspect before the watch
		first = suspectLook
	}
	c.watch = time.AfterFunc(first, c.look)
	sl.mu.Unlock()
	defer c.watch.Stop()
	c.conn.SetDeadline(time.Time{}) // the one for attaching; from here on look decides
	var wg sync.WaitGroup
	wg.Go(c.writeLoop)
	err := c.readLoop()
	sl.mu.Lock()
	if sl.cur == c {
		sl.fence(err)
	}
	err = c.err
	if c.ackTimer != nil {
		c.ackTimer.Stop()
	}
	sl.mu.Unlock()
	sl.news.ring()
	sl.link.heard.ring()
	c.conn.Close()
	wg.Wait()
	sl.abandoned()
	return err
}

// writeLoop sends what the core has to send, and waits for the socket where others did not.
func (c *carrier) writeLoop() {
	sl := c.slot
	sl.mu.Lock()
	defer sl.mu.Unlock()
	c.send(true)
	for sl.cur == c {
		c.armAck(sl.link.now())
		c.work.Wait()
		// The sockets' readers that are ready go first: what they bring shares this batch's system call.
		sl.mu.Unlock()
		runtime.Gosched()
		sl.mu.Lock()
		c.send(true)
	}
}

// send writes what there is to send, a batch at a time, until there is nothing more or somebody else is at it, who looks
// again. Without wait it writes one batch, as far as the socket takes it, and leaves the rest to the writer: the reader of a
// connection must not wait for its writer, nor one user work for all others. slot.mu is held, and released meanwhile.
func (c *carrier) send(wait bool) {
	sl := c.slot
	for sl.cur == c && !c.sending {
		var pieces [][]byte
		var b *bundle
		switch {
		case c.left:
		case c.greeting != nil:
			pieces, c.greeting = [][]byte{append(c.greeting, 0)[:len(c.greeting)]}, nil
		default:
			b = newBundle()
			sl.core.fill(b, c.batch, sl.link.now())
			if pieces = b.close(); len(pieces) == 0 {
				b.free()
				return
			}
		}
		c.sending = true
		begin := sl.link.now()
		if wait {
			c.writing.Store(int64(begin) | 1)
		}
		sl.mu.Unlock()
		done, err := c.conn.Send(pieces, wait)
		c.writing.Store(0)
		sl.mu.Lock()
		if wait {
			c.pace(sl.link.now() - begin)
		}
		c.sending, c.left = false, !done
		if b != nil {
			b.free()
		}
		switch {
		case err != nil && sl.cur == c:
			sl.fence(err)
		case !wait:
			if !done || sl.core.ready() {
				c.work.Signal()
			}
			return
		}
	}
}

// paceTo is how long a batch may take: what comes meanwhile waits behind it.
const paceTo = 20 * time.Millisecond

// pace fits the size of a batch to the path, after one that took d. A whole one is right for all but slow uplinks.
func (c *carrier) pace(d time.Duration) {
	n := c.batch
	switch {
	case d > paceTo:
		n = max(int(int64(n)*int64(paceTo)/int64(d)), leastBatch)
	case d < paceTo/4:
		n = min(2*n, batch)
	}
	if n != c.batch {
		c.batch = n
		sys.LimitUnsent(c.conn.Conn, n)
	}
}

const leastBatch = 4 << 10

// armAck wakes the writer when the oldest delayed ACK is due. slot.mu is held.
func (c *carrier) armAck(now time.Duration) {
	s := c.slot.core.delayed.head
	if s == nil || c.ackArmed {
		return
	}
	c.ackArmed = true
	d := max(s.ackDue-now, soonest)
	if c.ackTimer == nil {
		c.ackTimer = time.AfterFunc(d, func() {
			c.slot.mu.Lock()
			c.ackArmed = false
			c.work.Signal()
			c.slot.mu.Unlock()
		})
		return
	}
	c.ackTimer.Reset(d)
}

// readLoop applies frames until the connection ends. While it waits for the next one it holds no buffer.
func (c *carrier) readLoop() error {
	var buf *frameBuffer
	have, size := 0, 0 // bytes in buf; the size of the last batch, which is a good guess at the next one's
	for {
		turn := size
		if err := c.await(turn); err != nil {
			return err
		}
		if buf == nil {
			buf = frameBuffers.Get().(*frameBuffer)
		}
		n, err := c.conn.Records(buf[have:])
		have, size = have+n, n
		c.lastRead.Store(int64(c.slot.link.now()))
		used, wrong := c.apply(buf[:have])
		EndTurn(turn)
		switch {
		case wrong != nil:
			c.giveUp(wrong)
			return wrong
		case err != nil:
			return err
		}
		if have = copy(buf[:], buf[used:have]); have == 0 {
			frameBuffers.Put(buf)
			buf = nil
		}
	}
}

// await waits for something to read, and for the turn to process it. Bulk is read off the socket in its turn as well, as far as it
// is there already: to wait for the socket is no part of a turn. On error there is no turn to end.
func (c *carrier) await(turn int) error {
	if turn >= ChunkSize {
		TakeTurn(turn)
		ready, err := c.conn.Ready()
		if ready {
			return nil
		}
		EndTurn(turn)
		if err != nil {
			return err
		}
	}
	if err := c.conn.Wait(); err != nil {
		return err
	}
	TakeTurn(turn)
	return nil
}

// frameBuffer holds the frames of one system call and the beginning of one more.
type frameBuffer [batch + 2*(wire.HeaderLen+wire.MaxPayload)]byte

var frameBuffers = sync.Pool{New: func() any { return new(frameBuffer) }}

// apply applies the whole frames in b, answers them as far as that needs no waiting, and returns how many bytes they took.
func (c *carrier) apply(b []byte) (used int, err error) {
	sl := c.slot
	sl.mu.Lock()
	defer sl.mu.Unlock()
	used, err = c.applyFrames(b)
	c.deliver() // what was received before an error is the stream's all the same
	switch {
	case sl.cur != c:
		sl.wake() // what this one had read may have brought credit, which another one has to tell of
		return used, err
	case sl.core.acks.head != nil || len(sl.core.forgets) > 0:
		c.send(false)
	}
	if sl.cur == c {
		c.armAck(sl.link.now())
	}
	return used, err
}

func (c *carrier) applyFrames(b []byte) (used int, err error) {
	sl := c.slot
	for {
		f, n, err := wire.Parse(b[used:])
		if err == wire.ErrTruncated {
			return used, nil
		}
		if c.pending != nil && (f.Type != wire.TypeData || f.Stream != c.pending.id || len(c.parts) == cap(c.parts)) {
			c.deliver()
		}
		if !sl.core.current(c.gen) {
			return used, errFenced
		}
		if err != nil {
			return used, misfit(wire.ErrFormat, "%s", err)
		}
		used += n
		if f.Type >= wire.TypeSkip {
			if err := sl.core.glitch(); err != nil {
				return used, err
			}
			continue
		}
		if f.Type == wire.TypeDatagram {
			return used, violation(wire.ErrUnexpected, "DATAGRAM on a connection that has not negotiated datagrams")
		}
		if f.Stream == 0 {
			if err := c.applyLink(f); err != nil {
				return used, err
			}
			continue
		}
		now := sl.link.now()
		c.use(now)
		ev, err := sl.core.receive(f, now)
		if err != nil {
			return used, err
		}
		if ev.kind == evData {
			c.pending = ev.stream.whole
			c.parts = append(c.parts, ev.data)
		} else {
			sl.handle(ev)
		}
	}
}

// deliver hands over the frames of one stream that came one behind the other: one system call writes them all. slot.mu is
// held; it is released while the receiver is called.
func (c *carrier) deliver() {
	if s := c.pending; s != nil {
		c.pending = nil
		s.deliver(c.parts)
		clear(c.parts)
		c.parts = c.parts[:0]
	}
}

// handle does what a frame asks of the shell. mu is held; it is released while receivers are called.
func (sl *slot) handle(ev event) {
	if ev.kind == evNone {
		return
	}
	s := ev.stream.whole
	switch ev.kind {
	case evEnd:
		if s.recv.code == wire.CodeChecksum {
			sl.sayChecksum(s)
		}
		s.ended()
	case evAcked:
		s.change.Broadcast()
		if s.rest != nil { // what waits for credit has nobody else to send it
			sl.wake()
		}
	case evOpened:
		s.bind(sl)
		sl.mu.Unlock()
		sl.link.owner.Opened(s)
		sl.mu.Lock()
	case evReset:
		code := wire.CodeReset
		switch s.send.code {
		case wire.CodeChecksum:
			code = wire.CodeChecksum
			sl.sayChecksum(s)
		case wire.CodeLimit: // see withdraw
			code = wire.CodeLimit
		}
		if r := s.kill(code); r != nil {
			sl.mu.Unlock()
			r.Abort(code)
			sl.mu.Lock()
		}
	}
}

// sayChecksum reports what must never happen. mu is held, and released meanwhile.
func (sl *slot) sayChecksum(s *Stream) {
	sl.mu.Unlock()
	sl.link.log.Error("bytes of a connection did not arrive as they were sent: it was reset; suspect the memory of either machine, or this program",
		"client", s.open.Client.String(), "slot", sl.index, "stream", s.id)
	sl.mu.Lock()
}

// applyLink applies a frame of the link itself. slot.mu is held.
func (c *carrier) applyLink(f wire.Frame) error {
	sl, l := c.slot, c.slot.link
	l.heard.ring()
	switch f.Type {
	case wire.TypePing:
		sl.core.answer(f.Offset)
		sl.wake()
		return nil
	case wire.TypePong:
		if rtt := l.now() - time.Duration(f.Offset); sl.core.pingsOut > 0 && rtt >= 0 && f.Offset != 0 && rtt < time.Minute {
			sl.core.pingsOut--
			sl.core.measured(rtt, l.now())
			sl.pong = time.Duration(f.Offset)
			c.answered(sl.pong)
			return nil
		}
		return sl.core.glitch()
	case wire.TypeErr:
		return peerError(f)
	case wire.TypeGoAway:
		g, err := wire.ParseGoAway(f)
		if err != nil {
			return asViolation(err)
		}
		return c.unlocked(func() error { l.goingAway(g); return nil })
	case wire.TypeClaim, wire.TypeUnclaim, wire.TypeRound, wire.TypeClaimed, wire.TypeUnclaimed:
		if sl.index != 0 {
			return violation(wire.ErrUnexpected, "%s on slot %d", f.Type, sl.index)
		}
		err := c.unlocked(func() error { return l.owner.Message(l, f) })
		if _, malformed := errors.AsType[*wire.FormatError](err); malformed {
			return violation(wire.ErrClaimInvalid, "%s", err)
		}
		if err != nil {
			return asViolation(err)
		}
		if n := len(sl.core.control); n > maxControl {
			return violation(wire.ErrFlood, "%d answers about claims that the peer does not read", n)
		}
		return nil
	}
	return misfit(wire.ErrUnexpected, "%s on a connection that is attached", f.Type)
}

func (c *carrier) unlocked(f func() error) error {
	c.slot.mu.Unlock()
	defer c.slot.mu.Lock()
	return f()
}

// giveUp tells the peer what it did wrong, and ends the session where the state cannot be trusted any more.
func (c *carrier) giveUp(err error) {
	p, ok := errors.AsType[*violationError](err)
	if !ok {
		return
	}
	sl := c.slot
	sl.mu.Lock()
	current := sl.cur == c
	if current {
		sl.cur = nil // the writer stops; what it has in hand goes first
		c.err = err
		sl.since = sl.link.now()
		sl.core.lost(c.gen)
		c.work.Broadcast()
	}
	sl.mu.Unlock()
	if !current {
		return
	}
	c.conn.SetDeadline(time.Now().Add(time.Second))
	c.conn.Write(wire.AppendErr(nil, wire.Err{Code: p.code, Text: p.text}))
	if p.fatal {
		sl.link.Kill(err)
	}
	drain(c.conn)
}
