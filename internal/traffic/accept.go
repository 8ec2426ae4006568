package traffic

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"reverser/internal/link"
	"reverser/internal/sys"
)

// acceptFailedPer is how often a listener that cannot accept is worth a line: failures and connections may follow each other quickly.
const acceptFailedPer = time.Minute

// Crowd is a crowd of connections at one port: more than come where each does something.
const Crowd = 8

// Accept hands each connection of ln to handle until ln is closed or ctx ends. Being out of descriptors and the like passes: it
// tries again. The next connection is accepted when handle has returned, so what handle counts was counted by then.
//
// Where a crowd comes at once, its rest waits in the kernel for a moment, which leaves the processors room for others: see link.Pace. 0 is
// for a port that several keys share: there the pause would be everybody's.
func Accept(ctx context.Context, ln net.Listener, crowd int, log *slog.Logger, handle func(net.Conn)) {
	pause, failed, said := time.Duration(0), 0, time.Time{}
	var pace link.Pace
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			handle(conn)
			if crowd > 0 {
				pace.Keep(crowd)
			}
			continue
		case errors.Is(err, net.ErrClosed):
			return
		case sys.NotConnected(err): // Windows has nothing to hand over of a client that has left already
			continue
		}
		if failed++; time.Since(said) >= acceptFailedPer {
			log.Error("accept failed, trying again", "listen", ln.Addr().String(), "err", err, "times", failed)
			failed, said = 0, time.Now()
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// Reserve returns ln so that a descriptor is taken from the pool before each Accept, which waits for one: what is not accepted waits in
// the kernel, and short is told. Whoever gets a connection gives its descriptor back. One goroutine at a time may accept.
func Reserve(ctx context.Context, ln net.Listener, pool *sys.Pool, use sys.Use, short *Strain) net.Listener {
	return &reserving{Listener: ln, ctx: ctx, pool: pool, use: use, short: short}
}

// ErrNoDescriptor says that a connection waits, or was not taken, for want of a descriptor.
var ErrNoDescriptor = errors.New("no descriptor is free")

type reserving struct {
	net.Listener
	ctx   context.Context
	pool  *sys.Pool
	use   sys.Use
	short *Strain
	has   bool // a descriptor for the next connection
}

func (r *reserving) Accept() (net.Conn, error) {
	if !r.has && !r.pool.Take(r.use) {
		r.short.Note(ErrNoDescriptor)
		if !r.pool.Acquire(r.ctx, r.use) {
			return nil, net.ErrClosed
		}
	}
	r.has = true
	conn, err := r.Listener.Accept()
	if err == nil {
		r.has = false // it is the connection's
	} else if errors.Is(err, net.ErrClosed) {
		r.has = false
		r.pool.Give(r.use)
	}
	return conn, err
}

// Reset closes a connection with RST: a user who is not served must not take it for an answer.
func Reset(conn net.Conn) {
	if c, ok := conn.(interface{ SetLinger(int) error }); ok {
		c.SetLinger(0)
	}
	conn.Close()
}

// Close closes a connection in order: the client gets all that was written, and then FIN. Those of sys.Listen would be reset otherwise.
func Close(conn net.Conn) error {
	if c, ok := conn.(interface{ SetLinger(int) error }); ok {
		c.SetLinger(-1)
	}
	return conn.Close()
}

// AddrPort is the address of a TCP connection's end, an IPv4 address as such; the zero value for any other.
func AddrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
