package sys

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"
)

// A burst of news is one event: addresses, routes and links change together.
const (
	settle     = 200 * time.Millisecond // of quiet ends a burst
	settleMost = time.Second            // and this does in any case
	rest       = 500 * time.Millisecond // after an event: when news does not end, what it sets off gets somewhere
)

// What may have changed.
const (
	Addresses = "addresses"
	Routes    = "routes"
	Links     = "links"
	Awake     = "awake" // the machine slept, or this process was stopped
)

// NetworkEvent is one change, or several at about the same time.
type NetworkEvent struct {
	Why   string // the first of them
	addrs map[netip.Addr]bool
}

// Gone reports whether the local address is not one of this machine (any more). It is false where that is not known.
func (e NetworkEvent) Gone(local net.Addr) bool {
	tcp, ok := local.(*net.TCPAddr)
	if !ok || e.addrs == nil {
		return false
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	return !addr.IsLoopback() && !e.addrs[addr] // all of 127.0.0.0/8 is there, and only one address of it listed
}

// WatchNetwork calls changed after each change of addresses, routes or links and after sleep, one call at a time, until ctx
// ends. Linux tells by itself, so that nothing ticks: routing messages over netlink, and a timer that is cancelled when the
// clock is set, which it is after sleep. Elsewhere a tick compares.
func WatchNetwork(ctx context.Context, changed func(NetworkEvent)) {
	w := &watcher{addresses: addresses, news: make(chan string)}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !w.listen(ctx, &wg) {
		wg.Go(func() { w.poll(ctx) })
	}
	w.run(ctx, changed)
}

// watcher turns news into events.
type watcher struct {
	addresses func() map[netip.Addr]bool // of the machine; nil: unknown
	news      chan string                // what may have changed
}

// tell passes news on.
func (w *watcher) tell(ctx context.Context, why string) {
	select {
	case w.news <- why:
	case <-ctx.Done():
	}
}

func (w *watcher) run(ctx context.Context, changed func(NetworkEvent)) {
	before := w.addresses()
	for {
		var why []string
		var quiet, enough <-chan time.Time
	burst:
		for {
			select {
			case <-ctx.Done():
				return
			case n := <-w.news:
				if why = append(why, n); enough == nil {
					enough = time.After(settleMost)
				}
				quiet = time.After(settle)
			case <-quiet:
				break burst
			case <-enough:
				break burst
			}
		}
		now := w.addresses()
		// The lifetime of an IPv6 address is prolonged every few minutes: that is news without a change.
		same := now != nil && maps.Equal(lasting(before), lasting(now))
		before = now
		if same && !other(why) {
			continue
		}
		changed(NetworkEvent{Why: why[0], addrs: now})
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// other reports whether there is any news but that of addresses.
func other(why []string) bool {
	for _, w := range why {
		if w != Addresses {
			return true
		}
	}
	return false
}

// lasting leaves out link-local addresses: containers come and go with them, and no connection to a proxy uses them.
func lasting(addrs map[netip.Addr]bool) map[netip.Addr]bool {
	m := maps.Clone(addrs)
	maps.DeleteFunc(m, func(a netip.Addr, _ bool) bool { return a.IsLinkLocalUnicast() })
	return m
}

// addresses returns those of this machine, nil when it does not say.
func addresses() map[netip.Addr]bool {
	list, err := Addrs()
	if err != nil {
		return nil
	}
	m := make(map[netip.Addr]bool)
	for _, ip := range list {
		m[ip] = true
	}
	return m
}

// Addrs returns the addresses of this machine's interfaces.
func Addrs() (all []netip.Addr, err error) {
	list, err := net.InterfaceAddrs()
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				all = append(all, ip.Unmap())
			}
		}
	}
	return all, err
}

// pollEvery is the tick where the system does not tell.
const pollEvery = 5 * time.Second

// poll compares addresses and clocks at every tick.
func (w *watcher) poll(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	before, last := lasting(w.addresses()), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		if slept(now.Round(0).Sub(last.Round(0)), now.Sub(last)) {
			w.tell(ctx, Awake)
		}
		last = now
		if addrs := lasting(w.addresses()); !maps.Equal(before, addrs) {
			before = addrs
			w.tell(ctx, Addresses)
		}
	}
}

// slept reports whether the machine slept between two ticks, by what the wall clock and the monotonic clock counted. The
// monotonic clock stands still meanwhile on some platforms and goes on on others: then the tick is late. A wall clock that
// is set forward looks the same, and one question too many does no harm.
func slept(wall, mono time.Duration) bool {
	const slack = 3 * time.Second
	return wall > mono+slack || mono > pollEvery+slack
}
