// Package faultnet is a relay on the way between bridge and proxy that breaks connections at exact bytes, holds them up,
// damages bits and limits speed.
//
// A fault is timed by the bytes that pass. The package does not know what they mean. It differs from a
// network in that its own kernel acknowledges what it has not passed on: where that matters, package netlab is the place.
// [Relay.Close] waits for all goroutines.
package faultnet

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Direction of bytes through the relay.
type Direction int

// Directions.
const (
	Up   Direction = iota // from the one who dials
	Down                  // from the one who is dialled
)

func (d Direction) String() string { return [...]string{"up", "down"}[d] }

// A Fault is what befalls one connection.
type Fault struct {
	After     int64         // cut when exactly so many bytes have passed in the direction Of; 0: not
	Of        Direction     // of After and FlipEvery
	FIN       bool          // cut by FIN instead of RST
	NotBefore time.Duration // hold the bytes behind After until the connection is so old, and then cut
	FlipEvery int64         // one bit of every so many bytes is wrong; 0: none

	Ended func(cut bool) // told at the end of the connection whether After was reached; may be nil
}

// A Relay accepts connections and passes their bytes on. Make it with [Start].
type Relay struct {
	ln   net.Listener
	dial func() (*net.TCPConn, error)
	plan func(n int) Fault
	wg   sync.WaitGroup

	cuts, flips, accepted, passed atomic.Int64

	mu     sync.Mutex
	conns  map[*conn]struct{} // guarded by mu, as all below
	gates  [2]chan struct{}   // nil: open; else closed when the stall ends
	rate   [2]*bucket
	closed chan struct{} // not guarded
}

// Start relays what ln accepts to where dial leads. plan tells what befalls the n-th connection, n counted from 0; nil means
// nothing. The Relay closes ln.
func Start(ln net.Listener, dial func() (*net.TCPConn, error), plan func(n int) Fault) *Relay {
	if plan == nil {
		plan = func(int) Fault { return Fault{} }
	}
	r := &Relay{ln: ln, dial: dial, plan: plan, conns: make(map[*conn]struct{}), closed: make(chan struct{})}
	r.wg.Go(r.accept)
	return r
}

// Addr is where the Relay accepts.
func (r *Relay) Addr() string { return r.ln.Addr().String() }

// Close cuts everything and waits until nothing of the Relay runs.
func (r *Relay) Close() {
	close(r.closed)
	r.ln.Close()
	r.Cut()
	r.wg.Wait()
}

// Cut resets all connections and says how many there were.
func (r *Relay) Cut() int {
	r.mu.Lock()
	var all []*conn
	for c := range r.conns {
		all = append(all, c)
	}
	r.mu.Unlock()
	for _, c := range all {
		c.cut(false)
	}
	return len(all)
}

// Stall lets nothing more pass in the directions, new connections included, until Heal.
func (r *Relay) Stall(ds ...Direction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range ds {
		if r.gates[d] == nil {
			r.gates[d] = make(chan struct{})
		}
	}
}

// Drop lets nothing more pass in the connections that there are, without an end, as where a router on the way has forgotten them. New ones work.
func (r *Relay) Drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.dropped = true
	}
}

// Heal ends all stalls.
func (r *Relay) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, g := range r.gates {
		if g != nil {
			close(g)
			r.gates[d] = nil
		}
	}
}

// Limit lets at most so many bytes a second pass in a direction, all connections together; 0 ends it.
func (r *Relay) Limit(d Direction, bytesPerSecond float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rate[d] = nil
	if bytesPerSecond > 0 {
		r.rate[d] = &bucket{rate: bytesPerSecond}
	}
}

// Cuts is how many connections were cut, by plan or by Cut.
func (r *Relay) Cuts() int { return int(r.cuts.Load()) }

// Flips is how many bits were made wrong.
func (r *Relay) Flips() int { return int(r.flips.Load()) }

// Accepted is how many connections came.
func (r *Relay) Accepted() int { return int(r.accepted.Load()) }

// Passed is how many bytes were passed on.
func (r *Relay) Passed() int64 { return r.passed.Load() }

func (r *Relay) accept() {
	for n := 0; ; n++ {
		c, err := r.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: others may give some back
			continue
		}
		r.accepted.Add(1)
		fault := r.plan(n)
		r.wg.Go(func() { r.serve(c.(*net.TCPConn), fault) })
	}
}

// conn is one connection through the relay.
type conn struct {
	relay *Relay
	fault Fault
	born  time.Time
	ends  [2]*net.TCPConn // [Up] came from the dialler, [Down] was dialled
	over  chan struct{}   // closed when it is cut
	once  sync.Once

	reached atomic.Bool // After
	dropped bool        // guarded by relay.mu
}

func (r *Relay) serve(from *net.TCPConn, fault Fault) {
	defer from.Close()
	reached := false
	if fault.Ended != nil {
		defer func() { fault.Ended(reached) }()
	}
	c := &conn{relay: r, fault: fault, born: time.Now(), over: make(chan struct{})}
	for _, d := range []Direction{Up, Down} {
		if !c.wait(d) {
			return
		}
	}
	to, err := r.dial()
	if err != nil {
		from.SetLinger(0) // nobody there: that is what a user of the other end would get
		return
	}
	defer to.Close()
	c.ends = [2]*net.TCPConn{from, to}
	r.mu.Lock()
	r.conns[c] = struct{}{}
	r.mu.Unlock()
	select {
	case <-r.closed:
		c.cut(false)
	default:
	}
	var wg sync.WaitGroup
	for _, d := range []Direction{Up, Down} {
		wg.Go(func() { c.pass(d) })
	}
	wg.Wait()
	reached = c.reached.Load()
	r.mu.Lock()
	delete(r.conns, c)
	r.mu.Unlock()
}

// cut ends the connection on both sides, once.
func (c *conn) cut(fin bool) {
	c.once.Do(func() {
		c.relay.cuts.Add(1)
		close(c.over)
		for _, e := range c.ends {
			if fin {
				e.CloseWrite()
				e.SetReadDeadline(time.Now().Add(5 * time.Second)) // to close with unread bytes would reset
			} else {
				e.SetLinger(0)
				e.Close()
			}
		}
	})
}

func (c *conn) isOver() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

// wait waits while the direction is stalled; false means that the connection is over.
func (c *conn) wait(d Direction) bool {
	for {
		c.relay.mu.Lock()
		gate := c.relay.gates[d]
		if c.dropped {
			gate = make(chan struct{}) // for ever
		}
		c.relay.mu.Unlock()
		if gate == nil {
			return !c.isOver()
		}
		select {
		case <-gate:
		case <-c.over:
			return false
		case <-c.relay.closed:
			return false
		}
	}
}

func (c *conn) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.over:
	case <-c.relay.closed:
	}
	return false
}

// pass moves the bytes of one direction.
func (c *conn) pass(d Direction) {
	src, dst := c.ends[d], c.ends[1-d]
	buf := make([]byte, 64<<10)
	var passed int64
	mine := c.fault.Of == d
	for {
		room := buf
		if mine && c.fault.After > 0 {
			room = buf[:min(int64(len(buf)), c.fault.After-passed)]
		}
		n, err := src.Read(room)
		if c.isOver() {
			io.Copy(io.Discard, src) // after a FIN; nothing after a RST
			return
		}
		if n > 0 {
			if !c.wait(d) {
				return
			}
			if mine && c.fault.FlipEvery > 0 {
				c.flip(buf[:n], passed)
			}
			c.relay.mu.Lock()
			b := c.relay.rate[d]
			c.relay.mu.Unlock()
			if b != nil && !c.sleep(b.take(n)) {
				return
			}
			if _, werr := dst.Write(buf[:n]); werr != nil {
				src.SetLinger(0)
				src.Close()
				return
			}
			passed += int64(n)
			c.relay.passed.Add(int64(n))
		}
		switch {
		case mine && c.fault.After > 0 && passed == c.fault.After:
			if c.sleep(c.fault.NotBefore - time.Since(c.born)) {
				c.arrive(dst)
				c.reached.Store(true)
				c.cut(c.fault.FIN)
			}
			if c.fault.FIN {
				io.Copy(io.Discard, src)
			}
			return
		case err == io.EOF:
			dst.CloseWrite()
			return
		case err != nil:
			dst.SetLinger(0)
			dst.Close()
			return
		}
	}
}

// patience is how long a reader may take nothing before the rest is thrown away. Nobody who reads is as slow, on a busy machine either.
const patience = 10 * time.Second

// arrive waits until the other kernel has what was written, which a reset would otherwise throw away, but not for a reader
// who takes nothing.
func (c *conn) arrive(dst *net.TCPConn) {
	begin := time.Now()
	for pause := 100 * time.Microsecond; time.Since(begin) < patience && unsent(dst) > 0; pause = min(2*pause, 100*time.Millisecond) {
		if !c.sleep(pause) {
			return
		}
	}
}

// flip makes one bit wrong in every FlipEvery bytes. The bytes in b begin at position at.
func (c *conn) flip(b []byte, at int64) {
	every := c.fault.FlipEvery
	for i := every - 1 - at%every; i < int64(len(b)); i += every {
		b[i] ^= 1 << (i % 8)
		c.relay.flips.Add(1)
	}
}

// bucket tells how long bytes have to wait for their turn.
type bucket struct {
	rate float64

	mu   sync.Mutex
	next time.Time // guarded by mu: when the line is free
}

func (b *bucket) take(n int) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.next.Before(now) {
		b.next = now
	}
	b.next = b.next.Add(time.Duration(float64(n) / b.rate * float64(time.Second)))
	return b.next.Sub(now)
}
