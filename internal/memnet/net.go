// Package memnet is a network in memory, with faults that a test can place to
// the byte. It is for tests only.
//
// Its connections behave like TCP on Linux as far as a relay can tell: bounded
// buffers, deadlines, half-close, resets that overtake nothing already on the
// wire but discard what was not sent yet, a reset for whoever writes to a closed
// peer, and a reset instead of an end when a connection is closed with unread
// data. The wait of a blocked call is always on a sync.Cond or a channel, and
// all delays are timers, so that testing/synctest can see when everything is
// idle. The package starts no goroutine of its own; create the Net inside the
// bubble that uses it.
//
// What it leaves out: acknowledgements take no time and cannot be lost, nothing
// is ever reordered, and bandwidth is only limited by the buffer and the latency.
package memnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// DefaultBuffer is how many bytes one direction of a connection takes in before
// a write blocks.
const DefaultBuffer = 64 << 10

// backlog is how many dialled connections wait for Accept before a dial hangs.
const backlog = 128

// DialMode says what happens to a dial.
type DialMode int

// What can happen to a dial.
const (
	DialConnect DialMode = iota // the normal case
	DialRefuse                  // ECONNREFUSED, as from a host where nothing listens
	DialHang                    // no answer, as from a host that is gone
)

// A Net is one network. The zero value is ready to use.
type Net struct {
	// Buffer is the buffer of one direction of new connections, in bytes;
	// zero means DefaultBuffer. Set it before the first Dial.
	Buffer int

	// Resend makes a dial that hangs look again only after 1, 3, 7, 15, … seconds,
	// as TCP repeats a SYN, and not as soon as the path is back. Set it before
	// the first Dial.
	Resend bool

	mu        sync.Mutex // guards what follows; never held together with a conn's lock
	listeners map[netip.AddrPort]*listener
	names     map[string]netip.Addr
	lastPort  uint16
	conns     []*Conn // dialling ends whose connection is not over, in dial order
	modes     map[string]DialMode
	hole      Dir
	latency   [2]time.Duration
	source    netip.Addr // of the host that dials
	onConn    func(*Conn)
	changed   chan struct{} // closed and replaced when a waiting dial should look again
}

// Listen opens a listener at addr, "host:port". An empty host listens on all
// addresses, port 0 takes a free one, and any host name is an address of its own.
func (n *Net) Listen(addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ap, err := n.resolveLocked(addr)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: err}
	}
	if ap.Port() == 0 {
		ap = netip.AddrPortFrom(ap.Addr(), n.freePortLocked())
	}
	for other := range n.listeners {
		if other.Port() == ap.Port() && (other.Addr() == ap.Addr() || other.Addr().IsUnspecified() || ap.Addr().IsUnspecified()) {
			return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(ap), Err: sysErr("bind", syscall.EADDRINUSE)}
		}
	}
	l := &listener{net: n, addr: ap}
	l.cond.L = &n.mu
	if n.listeners == nil {
		n.listeners = make(map[netip.AddrPort]*listener)
	}
	n.listeners[ap] = l
	n.changedLocked()
	return l, nil
}

// Dial connects to a listener. Like TCP it returns before the other side has
// called Accept, after one round trip of the configured latency.
func (n *Net) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return n.DialFrom(ctx, netip.Addr{}, addr)
}

// DialFrom is Dial from another host than the one that Move has an address of.
func (n *Net) DialFrom(ctx context.Context, source netip.Addr, addr string) (net.Conn, error) {
	c, ap, err := n.dial(ctx, source, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(ap), Err: err}
	}
	return c, nil
}

func (n *Net) dial(ctx context.Context, source netip.Addr, addr string) (*Conn, netip.AddrPort, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ap, err := n.resolveLocked(addr)
	if err != nil {
		return nil, ap, err
	}
	if err := n.sleepLocked(ctx, n.latency[0]+n.latency[1]); err != nil {
		return nil, ap, err
	}
	for wait := time.Second; ; wait *= 2 {
		if err := ctx.Err(); err != nil {
			return nil, ap, dialError(err)
		}
		mode := n.modes[addr]
		if mode == DialConnect {
			mode = n.modes[""]
		}
		if n.hole != 0 {
			mode = DialHang
		}
		l := n.lookupLocked(ap)
		switch {
		case mode == DialRefuse, mode == DialConnect && l == nil:
			return nil, ap, sysErr("connect", syscall.ECONNREFUSED)
		case mode == DialConnect && len(l.queue) < backlog:
			return n.connectLocked(l, source, ap), ap, nil
		}
		if n.Resend {
			err = n.sleepLocked(ctx, wait)
		} else {
			err = n.waitLocked(ctx)
		}
		if err != nil {
			return nil, ap, err
		}
	}
}

func (n *Net) connectLocked(l *listener, source netip.Addr, remote netip.AddrPort) *Conn {
	if !source.IsValid() {
		source = n.sourceLocked()
	}
	if remote.Addr().IsLoopback() || remote.Addr().IsUnspecified() {
		source = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	buffer := n.Buffer
	if buffer <= 0 {
		buffer = DefaultBuffer
	}
	dialled, accepted := newPair(netip.AddrPortFrom(source, n.freePortLocked()), remote, buffer)
	for i, f := range []*flow{dialled.out, dialled.in} {
		f.latency = n.latency[i]
	}
	dialled.onOver = n.forget
	accepted.onOver = n.forget
	n.conns = append(n.conns, dialled)
	if n.onConn != nil {
		n.onConn(dialled)
	}
	l.queue = append(l.queue, accepted)
	l.cond.Signal()
	return dialled
}

func (n *Net) sourceLocked() netip.Addr {
	if n.source.IsValid() {
		return n.source
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, 1})
}

// forget drops a connection that is over from the list.
func (n *Net) forget(dialled *Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = slices.DeleteFunc(n.conns, func(c *Conn) bool { return c == dialled })
}

func (n *Net) lookupLocked(ap netip.AddrPort) *listener {
	if l := n.listeners[ap]; l != nil {
		return l
	}
	if l := n.listeners[netip.AddrPortFrom(netip.IPv6Unspecified(), ap.Port())]; l != nil {
		return l
	}
	return n.listeners[netip.AddrPortFrom(netip.IPv4Unspecified(), ap.Port())]
}

// sleepLocked gives up the lock for d.
func (n *Net) sleepLocked(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	n.mu.Unlock()
	defer n.mu.Lock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return dialError(ctx.Err())
	}
}

// waitLocked gives up the lock until something changed that a dial may wait for.
func (n *Net) waitLocked(ctx context.Context) error {
	if n.changed == nil {
		n.changed = make(chan struct{})
	}
	changed := n.changed
	n.mu.Unlock()
	defer n.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return dialError(ctx.Err())
	}
}

func (n *Net) changedLocked() {
	if n.changed != nil {
		close(n.changed)
		n.changed = nil
	}
}

// dialError gives an ended context the error that net.Dialer gives it.
func dialError(err error) error {
	if err == context.DeadlineExceeded {
		return timeoutError{err}
	}
	return err
}

// A timeoutError is a context.DeadlineExceeded that is a net.Error even after
// net.OpError has looked only one level deep.
type timeoutError struct{ error }

func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }
func (e timeoutError) Unwrap() error { return e.error }

// resolveLocked turns host:port into an address. Unknown names become 10.1.0.x.
func (n *Net) resolveLocked(addr string) (netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q of %q is no number from 0 to 65535", service, addr)
	}
	var ip netip.Addr
	switch host {
	case "":
		ip = netip.IPv6Unspecified()
	case "localhost":
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	default:
		if ip, err = netip.ParseAddr(host); err != nil {
			ip = n.nameLocked(host)
		}
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
}

func (n *Net) nameLocked(host string) netip.Addr {
	if n.names == nil {
		n.names = make(map[string]netip.Addr)
	}
	ip, ok := n.names[host]
	if !ok {
		i := len(n.names) + 1
		ip = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		n.names[host] = ip
	}
	return ip
}

func (n *Net) freePortLocked() uint16 {
	if n.lastPort < 32768 || n.lastPort == 65535 {
		n.lastPort = 32767
	}
	n.lastPort++
	return n.lastPort
}

type listener struct {
	net  *Net
	addr netip.AddrPort

	// Guarded by net.mu, which is also cond.L.
	cond   sync.Cond
	queue  []*Conn
	closed bool
}

// Accept returns the next connection that was dialled.
func (l *listener) Accept() (net.Conn, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	l.net.changedLocked()
	return c, nil
}

// Close ends the listener and resets the connections that nobody accepted.
func (l *listener) Close() error {
	l.net.mu.Lock()
	if l.closed {
		l.net.mu.Unlock()
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closed = true
	delete(l.net.listeners, l.addr)
	waiting := l.queue
	l.queue = nil
	l.cond.Broadcast()
	l.net.changedLocked()
	l.net.mu.Unlock()

	for _, c := range waiting {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	return nil
}

// Addr is the listener's *net.TCPAddr.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
