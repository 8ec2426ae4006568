package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/sys"
)

// A Dialer connects to targets. It knows what to do about names with an address that does not answer, and when no local port is free.
// Its zero value is ready to use.
type Dialer struct {
	// Warn, unless nil, is told when no local port is free, at most once a minute.
	Warn func(error)

	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)                // of tests; nil: the system's
	from   func(ctx context.Context, source netip.Addr, network, addr string) (net.Conn, error) // of tests; nil: sys.DialFrom
	as     func(ctx context.Context, user netip.Addr, network, addr string) (net.Conn, error)   // of tests; nil: sys.DialAs

	sources atomic.Pointer[[]netip.Addr] // nil: none

	turn   atomic.Uint32 // of the sources
	warned atomic.Int64  // when Warn was told last

	mu     sync.Mutex
	failed map[string]time.Time // addresses that did not answer, until they are trusted again; guarded by mu, as all below
	queues map[string]*queue    // dials that wait for a local port, by target
}

// SetSources gives the addresses of this machine to connect from, in turn, for dials to come. Each has local ports of its own, about
// 28,000 towards one target. Without one of the target's family the kernel chooses.
func (d *Dialer) SetSources(sources []netip.Addr) {
	sources = slices.Clone(sources)
	d.sources.Store(&sources)
}

const (
	nextAddress   = 250 * time.Millisecond // until the next address of a name is tried (RFC 8305 section 8)
	mostAddresses = 16                     // of a name, that are tried
	failedFor     = time.Minute            // an address goes last
	mostFailed    = 1024                   // addresses that are remembered
)

// Dial connects to addr, which is HOST:PORT for "tcp" and a path for "unix", until ctx ends.
func (d *Dialer) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return d.DialAs(ctx, netip.Addr{}, network, addr)
}

// DialAs is Dial from the address of a user, unless that is the zero value; see sys.DialAs. The target needs an address of the same family.
func (d *Dialer) DialAs(ctx context.Context, user netip.Addr, network, addr string) (net.Conn, error) {
	user = user.Unmap()
	host, port, err := net.SplitHostPort(addr)
	if network == "unix" || err != nil || host == "" {
		return sys.Dial(ctx, network, addr)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if !sameFamily(user, ip) {
			return nil, &FamilyError{user, addr}
		}
		return d.connect(ctx, user, network, addr)
	}
	lookup := d.lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupNetIP
	}
	ips, err := lookup(ctx, "ip", host)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	if len(ips) == 0 {
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}}
	}
	if ips = slices.DeleteFunc(ips, func(ip netip.Addr) bool { return !sameFamily(user, ip) }); len(ips) == 0 {
		return nil, &FamilyError{user, addr}
	}
	ips = alternate(ips)
	addrs := make([]string, 0, len(ips))
	for _, ip := range ips[:min(len(ips), mostAddresses)] {
		addrs = append(addrs, net.JoinHostPort(ip.String(), port))
	}
	return d.race(ctx, user, network, d.failedLast(addrs))
}

// FamilyError is why a dial from a user's address failed: the target has no address of that family.
type FamilyError struct {
	User netip.Addr
	Addr string // that was to be dialled
}

func (e *FamilyError) Error() string {
	family := "IPv6"
	if e.User.Is4() {
		family = "IPv4"
	}
	return "dial " + e.Addr + " from the user's address " + e.User.String() + ": the target has no " + family + " address"
}

// SourceError is why nothing can be dialled from a source, whatever the target.
type SourceError struct {
	Source netip.Addr
	Err    error
}

func (e *SourceError) Error() string {
	return fmt.Sprintf("source %s: is it an address of this machine? %v", e.Source, e.Err)
}

func (e *SourceError) Unwrap() error { return e.Err }

// sameFamily reports whether an address can be dialled from that of a user.
func sameFamily(user, ip netip.Addr) bool { return !user.IsValid() || user.Is4() == ip.Unmap().Is4() }

// alternate puts addresses of both families in turn, so that a family that does not work costs one pause (RFC 8305 section 4).
func alternate(ips []netip.Addr) []netip.Addr {
	var families [2][]netip.Addr
	first := ips[0].Unmap().Is4()
	for _, ip := range ips {
		ip = ip.Unmap()
		i := 0
		if ip.Is4() != first {
			i = 1
		}
		families[i] = append(families[i], ip)
	}
	all := make([]netip.Addr, 0, len(ips))
	for i := range ips {
		for _, f := range families {
			if i < len(f) {
				all = append(all, f[i])
			}
		}
	}
	return all
}

// race dials the addresses, each a moment after the one before it or when that failed. The first that answers wins.
func (d *Dialer) race(ctx context.Context, user netip.Addr, network string, addrs []string) (net.Conn, error) {
	type answer struct {
		conn net.Conn
		i    int
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan answer, len(addrs))
	var dialling sync.WaitGroup
	defer func() {
		cancel()
		dialling.Wait()
		close(answers)
		for late := range answers {
			if late.err == nil {
				late.conn.Close() // linger 0: a reset
			}
		}
	}()
	next := time.NewTimer(nextAddress)
	defer next.Stop()
	started := 0
	start := func() {
		if i := started; i < len(addrs) {
			started++
			dialling.Go(func() {
				c, err := d.connect(ctx, user, network, addrs[i])
				answers <- answer{c, i, err}
			})
			next.Reset(nextAddress)
		}
	}
	start()
	var first error // to come
	for failures := 0; ; {
		select {
		case <-next.C:
			start()
		case a := <-answers:
			if a.err == nil {
				d.answered(addrs[a.i], addrs[:a.i]) // those before it had more time, and did not
				return a.conn, nil
			}
			d.answered("", addrs[a.i:a.i+1])
			if first == nil {
				first = a.err
			}
			if failures++; failures == len(addrs) {
				return nil, first
			}
			start()
		}
	}
}

// failedLast puts the addresses last that did not answer a short while ago.
func (d *Dialer) failedLast(addrs []string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	good, bad := make([]string, 0, len(addrs)), []string(nil)
	for _, a := range addrs {
		if until, ok := d.failed[a]; ok && now.Before(until) {
			bad = append(bad, a)
		} else {
			good = append(good, a)
		}
	}
	return append(good, bad...)
}

// answered remembers which address answered, "" for none, and which did not.
func (d *Dialer) answered(good string, bad []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.failed, good)
	now := time.Now()
	for _, a := range bad {
		if d.failed == nil {
			d.failed = make(map[string]time.Time)
		}
		if len(d.failed) >= mostFailed {
			d.forgetLocked(now)
		}
		d.failed[a] = now.Add(failedFor)
	}
}

// forgetLocked makes room for one address: those that are trusted again go, else any.
func (d *Dialer) forgetLocked(now time.Time) {
	for a, until := range d.failed {
		if !now.Before(until) {
			delete(d.failed, a)
		}
	}
	for a := range d.failed {
		if len(d.failed) < mostFailed {
			return
		}
		delete(d.failed, a)
	}
}

// queue is where dials to a target wait for a local port. A connect that finds none looks at all of them first, which takes a
// millisecond or more, so only one at a time tries again.
type queue struct {
	turn  chan struct{} // holds a value while somebody tries
	dials int           // that are in the queue; guarded by Dialer.mu
}

// Pauses between two attempts to get a local port: the first, and the longest.
const (
	portPause     = 50 * time.Millisecond
	portPauseMost = 400 * time.Millisecond
)

// warnEvery is how often Warn is told.
const warnEvery = time.Minute

// connect dials an address of digits. While no local port is free it waits: ports become free all the time where many connections
// end.
func (d *Dialer) connect(ctx context.Context, user netip.Addr, network, addr string) (net.Conn, error) {
	if user.IsValid() {
		as := d.as
		if as == nil {
			as = sys.DialAs
		}
		return as(ctx, user, network, addr) // the user has few connections: its ports are free
	}
	c, err := d.fromSources(ctx, network, addr)
	if _, noPort := errors.AsType[*sys.NoPortError](err); !noPort {
		return c, err
	}
	d.warn(err)
	q := d.enter(addr)
	defer d.leave(addr, q)
	select {
	case <-ctx.Done():
		return nil, err
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	}
	for pause := portPause; ; pause = min(2*pause, portPauseMost) {
		if c, err = d.fromSources(ctx, network, addr); err == nil {
			return c, nil
		}
		if _, noPort := errors.AsType[*sys.NoPortError](err); !noPort {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

func (d *Dialer) enter(addr string) *queue {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := d.queues[addr]
	if q == nil {
		q = &queue{turn: make(chan struct{}, 1)}
		if d.queues == nil {
			d.queues = make(map[string]*queue)
		}
		d.queues[addr] = q
	}
	q.dials++
	return q
}

func (d *Dialer) leave(addr string, q *queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.dials--; q.dials == 0 {
		delete(d.queues, addr)
	}
}

// fromSources dials from the next source of the address's family, and from the others when that has no port left or is no address of
// this machine any more.
func (d *Dialer) fromSources(ctx context.Context, network, addr string) (net.Conn, error) {
	from := d.from
	if from == nil {
		from = sys.DialFrom
	}
	var sources []netip.Addr
	if p := d.sources.Load(); p != nil {
		sources = *p
	}
	to, _ := netip.ParseAddrPort(addr)
	turn := d.turn.Add(1) - 1
	var first error
	for i := range sources {
		source := sources[(int64(turn)+int64(i))%int64(len(sources))]
		if source.Unmap().Is4() != to.Addr().Unmap().Is4() {
			continue
		}
		c, err := from(ctx, source, network, addr)
		if !sys.NoSource(err) {
			return c, err
		}
		if _, noPort := errors.AsType[*sys.NoPortError](err); !noPort {
			err = &SourceError{source, err}
		}
		if first == nil {
			first = err
		}
	}
	if first != nil {
		return nil, first
	}
	return from(ctx, netip.Addr{}, network, addr)
}

func (d *Dialer) warn(err error) {
	now := time.Now().UnixNano()
	last := d.warned.Load()
	if d.Warn != nil && (last == 0 || now-last >= int64(warnEvery)) && d.warned.CompareAndSwap(last, now) {
		d.Warn(err)
	}
}
