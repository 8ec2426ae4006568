package bridge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// How long a lookup of the proxy's name is waited for, and how long it counts.
const (
	lookupLimit    = 10 * time.Second
	lookupPatience = 300 * time.Millisecond // for DNS, when an earlier answer is known
	lookupFresh    = time.Second            // an answer counts for all slots that dial at about the same time
	lookupEvery    = time.Minute            // while nothing is dialled
	mostAddresses  = 4
)

// names looks host names up. It keeps the last good answers, for when DNS does not answer.
type names struct {
	ctx    context.Context // of lookups, which an attempt may leave behind
	wg     *sync.WaitGroup
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

	mu    sync.Mutex
	known map[string]answer // the last good answers; guarded by mu
}

// answer is what DNS said of a name, and when.
type answer struct {
	addrs []netip.Addr
	at    time.Time
}

// addresses returns the addresses of the host. When DNS fails or takes too long, it returns the last good answer, if there is one,
// together with the error.
func (n *names) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if host == "" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	last := n.last(host)
	if last.addrs != nil && time.Since(last.at) < lookupFresh {
		return last.addrs, nil
	}
	var patience <-chan time.Time
	if last.addrs != nil {
		patience = time.After(lookupPatience)
	}
	select {
	case err := <-n.ask(host):
		return n.last(host).addrs, err
	case <-patience:
	case <-ctx.Done():
	}
	return last.addrs, &net.DNSError{Err: "no answer in time", Name: host, IsTimeout: true}
}

// all is addresses for several hosts at once. When one of them has answered, the others get a moment more.
func (n *names) all(ctx context.Context, hosts []string) (map[string][]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type found struct {
		host  string
		addrs []netip.Addr
		err   error
	}
	heard := make(chan found, len(hosts))
	for _, host := range hosts {
		n.wg.Go(func() {
			addrs, err := n.addresses(ctx, host)
			heard <- found{host, addrs, err}
		})
	}
	known := make(map[string][]netip.Addr)
	var errs []error
	for i := range hosts {
		f := <-heard
		if f.err != nil {
			errs = append(errs, f.err)
		}
		if f.addrs != nil {
			known[f.host] = f.addrs
		}
		if i == 0 && f.err == nil && len(hosts) > 1 {
			late := time.AfterFunc(lookupPatience, cancel)
			defer late.Stop()
		}
	}
	if len(errs) == 1 {
		return known, errs[0]
	}
	return known, errors.Join(errs...)
}

// ask starts a lookup of the host. The channel receives its error, or nil. A good answer is kept even if nobody waits for it any more.
func (n *names) ask(host string) <-chan error {
	done := make(chan error, 1)
	n.wg.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, lookupLimit)
		defer cancel()
		addrs, err := n.lookup(ctx, "ip", host)
		if err == nil && len(addrs) == 0 {
			err = &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}
		}
		if err == nil {
			n.learn(host, addrs)
		}
		done <- err
	})
	return done
}

func (n *names) last(host string) answer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known[host]
}

// learn keeps the addresses. The one that was reached last stays in front.
func (n *names) learn(host string, addrs []netip.Addr) {
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.known[host].addrs; old != nil {
		toFront(addrs, old[0])
	}
	n.known[host] = answer{addrs[:min(len(addrs), mostAddresses)], time.Now()}
}

// reached puts the address in front.
func (n *names) reached(host string, at netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m, ok := n.known[host]
	if !ok {
		return
	}
	m.addrs = slices.Clone(m.addrs) // others read it
	toFront(m.addrs, at)
	n.known[host] = m
}

func toFront(addrs []netip.Addr, first netip.Addr) {
	if i := slices.Index(addrs, first); i > 0 {
		copy(addrs[1:], addrs[:i])
		addrs[0] = first
	}
}

// watchName looks the proxy's name up now and then. It calls changed, once for each new answer, when the addresses no longer contain
// the one that the link is connected to, or, while it is not connected, when they are others than before.
func (u *uplink) watchName(changed func()) {
	var hosts []string
	var fixed []netip.Addr
	for _, addr := range append([]string{u.proxy}, u.others...) {
		host, _, err := net.SplitHostPort(addr)
		if ip, noName := netip.ParseAddr(host); noName == nil {
			fixed = append(fixed, ip)
		} else if err == nil && host != "" && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) == 0 {
		return
	}
	tick := time.NewTicker(lookupEvery)
	defer tick.Stop()
	var said []netip.Addr
	for {
		select {
		case <-u.b.ctx.Done():
			return
		case <-tick.C:
		}
		if u.b.wayTo(u.proxy) != nil { // which looks the name up
			continue
		}
		before := u.b.names.lastOf(hosts)
		var asked []<-chan error
		for _, host := range hosts {
			asked = append(asked, u.b.names.ask(host))
		}
		failed := false
		for _, done := range asked {
			failed = <-done != nil || failed
		}
		if failed {
			continue
		}
		now := u.b.names.lastOf(hosts)
		u.b.mu.Lock()
		up, remote := u.link != nil, u.remote
		u.b.mu.Unlock()
		moved := !slices.Equal(before, now)
		if tcp, ok := remote.(*net.TCPAddr); up && ok {
			at := tcp.AddrPort().Addr().Unmap()
			moved = !slices.Contains(now, at) && !slices.Contains(fixed, at)
		}
		if moved && !slices.Equal(said, now) {
			said = now
			u.b.log.Info("the proxy's name has another address", "proxy", u.proxy, "addresses", now)
			changed()
		}
	}
}

// lastOf returns the last good answers of hosts together, in order.
func (n *names) lastOf(hosts []string) (addrs []netip.Addr) {
	for _, host := range hosts {
		addrs = append(addrs, n.last(host).addrs...)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}
