package memnet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// A Conn is one end of a connection.
type Conn struct {
	pair          *pair
	local, remote netip.AddrPort
	in, out       *flow
	onOver        func(dialled *Conn)

	// Guarded by pair.mu.
	closed      bool
	reset       bool // a reset has arrived
	writeClosed bool
	writing     bool // a Write is in progress; the next one waits for its turn
	linger      int
	readDL      deadline
	writeDL     deadline
}

// A pair is what the two ends of a connection share.
type pair struct {
	mu      sync.Mutex
	dialled *Conn
	over    bool
}

// A flow is one direction of a connection. A byte that is written goes through
// unsent (the sender's kernel), wire, and arrived (the receiver's kernel).
// At most window bytes are on the wire and arrived, at most limit bytes
// are in all three.
//
// All fields are guarded by pair.mu.
type flow struct {
	pair     *pair
	from, to *Conn
	readable sync.Cond
	writable sync.Cond

	limit   int
	unsent  []byte
	wire    []segment
	flying  int // bytes on the wire
	arrived []byte

	finPending bool // the sender has closed this direction
	finSent    bool
	finArrived bool

	latency time.Duration
	lastDue time.Time
	timer   *time.Timer // fires when the first segment on the wire is due
	hole    bool
	cutting bool
	cutLeft int64
	cut     Cut
}

type segmentKind int

const (
	segData segmentKind = iota
	segFin
	segReset
)

type segment struct {
	kind segmentKind
	data []byte
	due  time.Time
}

func newPair(dialler, acceptor netip.AddrPort, buffer int) (dialled, accepted *Conn) {
	p := new(pair)
	up := &flow{pair: p, limit: buffer}
	down := &flow{pair: p, limit: buffer}
	for _, f := range []*flow{up, down} {
		f.readable.L = &p.mu
		f.writable.L = &p.mu
	}
	dialled = &Conn{pair: p, local: dialler, remote: acceptor, out: up, in: down, linger: -1}
	accepted = &Conn{pair: p, local: acceptor, remote: dialler, out: down, in: up, linger: -1}
	up.from, up.to = dialled, accepted
	down.from, down.to = accepted, dialled
	p.dialled = dialled
	return dialled, accepted
}

// Read returns what has arrived, waiting for the first byte of it. A reset is
// reported after the bytes that came before it, and on every later Read.
func (c *Conn) Read(b []byte) (int, error) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, c.opError("read", net.ErrClosed)
		case c.readDL.passed:
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case len(b) == 0:
			return 0, nil
		case len(c.in.arrived) > 0:
			n := copy(b, c.in.arrived)
			c.in.arrived = c.in.arrived[n:]
			if len(c.in.arrived) == 0 {
				c.in.arrived = nil // an idle connection holds no buffer
			}
			c.in.pump()
			c.in.writable.Broadcast()
			return n, nil
		case c.in.finArrived:
			return 0, io.EOF
		case c.reset:
			return 0, c.opError("read", sysErr("read", syscall.ECONNRESET))
		}
		c.in.readable.Wait()
	}
}

// Write takes b into the buffer, waiting while it is full. Concurrent writes do
// not mix.
func (c *Conn) Write(b []byte) (int, error) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	mine := false
	defer func() {
		if mine {
			c.writing = false
			c.out.writable.Broadcast()
		}
	}()
	n := 0
	for {
		switch {
		case c.closed:
			return n, c.opError("write", net.ErrClosed)
		case c.writeDL.passed:
			return n, c.opError("write", os.ErrDeadlineExceeded)
		case c.writeClosed, c.reset && c.in.finArrived:
			return n, c.opError("write", sysErr("write", syscall.EPIPE))
		case c.reset:
			return n, c.opError("write", sysErr("write", syscall.ECONNRESET))
		}
		if !mine && !c.writing {
			mine, c.writing = true, true
		}
		if mine {
			if n == len(b) {
				return n, nil
			}
			if room := c.out.limit - c.out.held(); room > 0 {
				m := min(room, len(b)-n)
				c.out.unsent = append(c.out.unsent, b[n:n+m]...)
				n += m
				c.out.pump()
				if n == len(b) {
					return n, nil // whatever the last of it has caused
				}
				continue
			}
		}
		c.out.writable.Wait()
	}
}

// CloseWrite ends this end's direction; the other goes on.
func (c *Conn) CloseWrite() error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	switch {
	case c.closed:
		return c.opError("close", net.ErrClosed)
	case c.reset:
		return c.opError("close", sysErr("shutdown", syscall.ENOTCONN))
	}
	c.closeWriteLocked()
	return nil
}

func (c *Conn) closeWriteLocked() {
	c.writeClosed = true
	c.out.finPending = true
	c.out.pump()
	c.out.writable.Broadcast()
}

// SetLinger with 0 makes Close a reset that discards what was not sent. Any
// other value lets Close return at once while the buffer is sent behind it.
func (c *Conn) SetLinger(sec int) error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	c.linger = sec
	return nil
}

// Close ends both directions. The peer gets the bytes that were written and then
// an end, or a reset if linger is 0 or if bytes that had arrived were not read.
func (c *Conn) Close() error {
	c.pair.mu.Lock()
	if c.closed {
		c.pair.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	unread := len(c.in.arrived) > 0
	c.in.arrived = nil
	if c.reset {
		// Nothing to say to a peer that has reset the connection.
	} else if c.linger == 0 || unread {
		c.out.reset()
	} else {
		c.closeWriteLocked()
	}
	c.readDL.stop()
	c.writeDL.stop()
	c.in.pump()
	for _, f := range []*flow{c.in, c.out} {
		f.readable.Broadcast()
		f.writable.Broadcast()
	}
	over := c.in.from.closed && !c.pair.over
	if over {
		c.pair.over = true
	}
	c.pair.mu.Unlock()

	if over && c.onOver != nil {
		c.onOver(c.pair.dialled)
	}
	return nil
}

// LocalAddr is a *net.TCPAddr.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr is a *net.TCPAddr.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return c.setDeadline(t, &c.readDL, &c.writeDL)
}

// SetReadDeadline bounds waiting and future reads.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, &c.readDL) }

// SetWriteDeadline bounds waiting and future writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, &c.writeDL) }

func (c *Conn) setDeadline(t time.Time, deadlines ...*deadline) error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	for _, d := range deadlines {
		d.set(t, &c.pair.mu, c.in.readable.Broadcast, c.out.writable.Broadcast)
	}
	return nil
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

func sysErr(call string, errno syscall.Errno) error { return os.NewSyscallError(call, errno) }

// held is the number of bytes written and not read.
func (f *flow) held() int { return len(f.unsent) + f.flying + len(f.arrived) }

// window is what fits on the wire and into the receiver. It is half the
// buffer, so that a sender may hold bytes that a reset discards.
func (f *flow) window() int { return (f.limit + 1) / 2 }

// pump moves everything as far as it can go now.
func (f *flow) pump() {
	if f.hole {
		return
	}
	now := time.Now()
	for len(f.unsent) > 0 {
		room := f.window() - f.flying - len(f.arrived)
		if room <= 0 {
			break
		}
		n := min(room, len(f.unsent))
		data := make([]byte, n)
		copy(data, f.unsent)
		f.unsent = f.unsent[n:]
		f.flying += n
		f.launch(segment{kind: segData, data: data}, now)
		f.land(now)
		if f.hole { // a silent cut
			return
		}
	}
	if len(f.unsent) == 0 {
		f.unsent = nil
		if f.finPending && !f.finSent {
			f.finSent = true
			f.launch(segment{kind: segFin}, now)
		}
	}
	f.land(now)
}

func (f *flow) launch(s segment, now time.Time) {
	s.due = now.Add(f.latency)
	if s.due.Before(f.lastDue) {
		s.due = f.lastDue // a shorter latency does not overtake
	}
	f.lastDue = s.due
	f.wire = append(f.wire, s)
}

// land takes from the wire what is due, and sets the timer for the rest.
func (f *flow) land(now time.Time) {
	for len(f.wire) > 0 && !f.hole {
		s := f.wire[0]
		if wait := s.due.Sub(now); wait > 0 {
			if f.timer == nil {
				f.timer = time.AfterFunc(wait, f.tick)
			}
			return
		}
		f.wire = f.wire[1:]
		f.flying -= len(s.data)
		switch s.kind {
		case segData:
			f.landData(s.data)
		case segFin:
			f.finArrived = true
		case segReset:
			f.to.resetLocked()
		}
		f.readable.Broadcast()
	}
}

func (f *flow) tick() {
	f.pair.mu.Lock()
	defer f.pair.mu.Unlock()
	f.timer = nil
	f.pump()
}

func (f *flow) landData(data []byte) {
	if f.cutting && int64(len(data)) >= f.cutLeft {
		// What comes after the cut is on the wire again when a silent cut heals.
		rest := data[f.cutLeft:]
		data = data[:f.cutLeft]
		if len(rest) > 0 {
			f.wire = append([]segment{{kind: segData, data: rest}}, f.wire...)
			f.flying += len(rest)
		}
		f.cutLeft = 0
		defer f.cutNow()
	} else if f.cutting {
		f.cutLeft -= int64(len(data))
	}
	if len(data) == 0 {
		return
	}
	if f.to.closed {
		// TCP answers bytes for a closed socket with a reset.
		if !f.from.reset {
			f.to.out.reset()
		}
		return
	}
	f.arrived = append(f.arrived, data...)
}

// cutNow does what a Cut has been waiting for.
func (f *flow) cutNow() {
	f.cutting = false
	if f.cut == CutSilently {
		f.from.out.hole, f.from.in.hole = true, true
		return
	}
	f.from.resetLocked()
	f.to.resetLocked()
}

// reset sends a reset in this direction. What is on the wire arrives before it,
// what was not sent is gone. In a black hole all of it is lost for good.
func (f *flow) reset() {
	f.unsent = nil
	f.finPending, f.finSent = true, true // nothing follows
	if f.hole {
		f.wire, f.flying = nil, 0
		return
	}
	now := time.Now()
	f.launch(segment{kind: segReset}, now)
	f.land(now)
	f.writable.Broadcast()
}

// resetLocked is the arrival of a reset: bytes that have arrived stay readable.
func (c *Conn) resetLocked() {
	c.reset = true
	c.out.unsent, c.out.wire, c.out.flying = nil, nil, 0
	c.out.finPending, c.out.finSent = true, true
	c.in.readable.Broadcast()
	c.out.writable.Broadcast()
}

// A deadline wakes its waiters when it passes.
type deadline struct {
	timer  *time.Timer
	passed bool
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) set(t time.Time, mu *sync.Mutex, wake ...func()) {
	d.stop()
	d.passed = false
	wakeAll := func() {
		for _, w := range wake {
			w()
		}
	}
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		wakeAll()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		mu.Lock()
		defer mu.Unlock()
		if d.timer == timer { // not replaced while this one was firing
			d.passed = true
			wakeAll()
		}
	})
	d.timer = timer
}
