package link

import (
	"errors"
	"io"
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
	resting  bool          // bridge: it needs no connection while the link is idle
	since    time.Duration // of the last change of cur
	resumes  uint64
	reached  netip.Addr    // bridge: where the proxy was when the slot was attached last
	pong     time.Duration // when the last PING was sent that was answered

	news bell // what standing says may have changed
}

// wake lets the writer look for something to send. mu is held.
func (sl *slot) wake() {
	if sl.cur != nil && !sl.cur.sending { // else the sender looks again
		sl.cur.wakeWriter()
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

// outbound is the sending side. slot.mu guards it, as far as nothing else is said.
type outbound struct {
	work      sync.Cond // on slot.mu: something to do for the writer
	writers   sync.WaitGroup
	writer    writer
	batch     int    // bytes sent at once at most
	sending   bool   // somebody has a batch in hand
	unwritten bool   // the socket did not take a batch whole, and the writer has to wait for it
	greeting  []byte // what the writer sends first
	ackTimer  *time.Timer
	ackArmed  bool         // ackTimer runs
	writing   atomic.Int64 // when the writer began to wait for the socket; 0: it does not. Not guarded
}

// writer is the state of writeLoop.
type writer uint8

const (
	absent    writer = iota // wakeWriter starts it
	present                 // it runs, or run starts it
	dismissed               // it ends when it has nothing to do
)

// liveness is what is known of whether the peer is still there (alive.go). slot.mu guards it, as far as nothing else is said.
type liveness struct {
	watch        *time.Timer   // calls checkAlive
	watchAt      time.Duration // when it does so
	suspectSince time.Duration // since when a sign of life is waited for; 0: not suspect
	mustAnswer   bool          // it is suspect for its silence: only an answer to a PING ends that
	askedAt      time.Duration // when the first PING was asked for that may be unanswered
	pingedAt     time.Duration // when the last PING was asked for
	prompted     time.Duration // the askedAt of a PING that went with streams' frames behind a silence
	told         time.Duration // the askedAt of the PING whose silence the dialling end was told of
	streamsAt    time.Duration // when the last frame of a stream came
	sentAt       time.Duration // when frames of streams went out first after something was read
	retiredAt    time.Duration // when RETIRE was sent; 0: it was not
	hungUp       bool          // the kernel says that the peer ended it
	addrGone     bool          // the local address is gone
	outdated     bool          // bridge: it proved a secret that is not the present one; another connection is to take its place
	secret       [32]byte      // bridge: of the key, that was proven; set before the carrier is used
	relayed      bool          // something in between ends TCP, see auth.Conn; set before the carrier is used
	lastRead     atomic.Int64  // time.Duration of the link's clock. Not guarded
}

// errFenced says that a newer connection took the slot.
var errFenced = errors.New("replaced by a newer connection")

func newCarrier(sl *slot, conn *record.Conn) *carrier {
	c := &carrier{slot: sl, conn: conn, outbound: outbound{batch: batch, writer: present}}
	c.work.L = &sl.mu
	return c
}

// install makes c the slot's connection. slot.mu is held and the slot is fenced.
func (sl *slot) install(c *carrier) {
	if sl.attached {
		sl.resumes++
	}
	sl.attached, sl.resting = true, false
	sl.link.serving.Add(1) // until run returns
	sl.cur = c
	sl.core.askPong() // measures the round trip
	if len(sl.core.streams) > 0 {
		c.streamsAt = sl.link.now() // users have waited for it
	}
	sl.since = sl.link.now()
	c.lastRead.Store(int64(sl.link.now()))
}

// fence makes sure that the slot's old connection changes nothing any more. slot.mu is held.
func (sl *slot) fence(err error) {
	if c := sl.cur; c != nil {
		sl.drop(err)
		c.conn.Close()
	}
}

// drop takes the slot's connection away from it. The writer finishes the batch in hand and stops. slot.mu is held.
func (sl *slot) drop(err error) {
	c := sl.cur
	c.err = err
	sl.cur = nil
	sl.since = sl.link.now()
	sl.core.lost(c.gen)
	c.work.Broadcast()
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
		sl.drop(err) // what the writer has in hand goes before the ERR
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

// run serves the connection until it ends, by itself or by fence, and returns why.
func (c *carrier) run() error {
	sl := c.slot
	defer sl.link.serving.Done()
	sl.mu.Lock()
	first := pingUsed
	if c.suspectSince != 0 { // it became suspect before the watch
		first = suspectEvery
	}
	c.watchAt = sl.link.now() + first
	c.watch = time.AfterFunc(first, c.checkAlive)
	sl.mu.Unlock()
	defer c.watch.Stop()
	c.conn.SetDeadline(time.Time{}) // the one for attaching; from here on checkAlive decides
	c.writers.Go(c.writeLoop)
	err := c.readLoop()
	sl.mu.Lock()
	if sl.cur == c {
		sl.fence(err)
		c.rest()
	}
	err = c.err
	if c.ackTimer != nil {
		c.ackTimer.Stop()
	}
	sl.mu.Unlock()
	if err == ErrRenewed { // whoever said so closes it
		io.Copy(io.Discard, c.conn.Conn)
	}
	sl.news.ring()
	sl.link.heard.ring()
	c.conn.Close()
	c.writers.Wait()
	sl.resetIfFinal()
	switch {
	case sl.index != 0:
		sl.link.check(sl)
	case err != ErrRenewed: // what broke it may have broken the others
		sl.link.suspectCarriers()
	}
	return err
}

// wakeWriter has the writer look for something to send. slot.mu is held, and c is the slot's connection.
func (c *carrier) wakeWriter() {
	if c.writer == absent {
		c.writer = present
		c.writers.Go(c.writeLoop)
		return
	}
	c.writer = present
	c.work.Signal()
}

// dismissWriter lets the writer's goroutine end: an idle connection needs none. A goroutine that has something to send now and then
// sends it itself. slot.mu is held.
func (c *carrier) dismissWriter() {
	if c.writer == present {
		c.writer = dismissed
		c.work.Signal()
	}
}

// writeLoop sends what the core has to send, and waits for the socket where others did not.
func (c *carrier) writeLoop() {
	sl := c.slot
	sl.mu.Lock()
	defer sl.mu.Unlock()
	c.send(true)
	for sl.cur == c {
		c.armAck(sl.link.now())
		if c.writer == dismissed && !c.sending && !c.unwritten && !sl.core.ready() {
			c.writer = absent
			return
		}
		c.work.Wait()
		// The sockets' readers that are ready go first: what they bring shares this batch's system call.
		sl.mu.Unlock()
		runtime.Gosched()
		sl.mu.Lock()
		c.send(true)
	}
}

// send writes batches until nothing is left. If another goroutine is already sending, it returns: that one checks again. Without
// wait it writes one batch, as much of it as the socket takes at once, and leaves the rest to the writer: the reader of a connection
// must not wait for its writer, nor one user work for all others. slot.mu is held, and released during a write.
func (c *carrier) send(wait bool) {
	sl := c.slot
	for sl.cur == c && !c.sending {
		var pieces [][]byte
		var b *bundle
		switch {
		case c.unwritten:
		case c.greeting != nil:
			pieces, c.greeting = [][]byte{append(c.greeting, 0)[:len(c.greeting)]}, nil
		default:
			if sl.core.streamsWait() {
				c.expectAnswer(sl.link.now())
			}
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
		c.sending, c.unwritten = false, !done
		if b != nil {
			b.free()
		}
		switch {
		case err != nil && sl.cur == c:
			sl.fence(err)
		case !wait:
			if sl.cur == c && (!done || sl.core.ready()) {
				c.wakeWriter()
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
			if c.slot.cur == c {
				c.wakeWriter()
			}
			c.slot.mu.Unlock()
		})
		return
	}
	c.ackTimer.Reset(d)
}
