package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"reverser/internal/sys"
)

// How long an attempt to reach the proxy waits for what. The link bounds it as a whole and makes others beside it.
const (
	lookupLimit    = 10 * time.Second
	lookupPatience = 300 * time.Millisecond // for DNS, when an earlier answer is known
	lookupFresh    = time.Second            // an answer counts for all slots that dial at about the same time
	lookupEvery    = time.Minute            // while nothing is dialled
	nextAddress    = 250 * time.Millisecond // until the next address of a name is tried (RFC 8305 section 8)
	mostAddresses  = 4
)

// dial opens a socket of the link.
func (b *Bridge) dial(ctx context.Context, carrier bool, transfer uint16) (net.Conn, error) {
	addr := b.proxy
	if carrier {
		switch {
		case b.cfg.ProxyTransfer != "":
			addr = withPort(b.cfg.ProxyTransfer)
		case transfer != 0:
			host, _, _ := net.SplitHostPort(addr)
			addr = net.JoinHostPort(host, strconv.Itoa(int(transfer)))
		}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial the proxy at %s: %w", addr, err)
	}
	addrs, err := b.names.addresses(ctx, host)
	if err != nil && addrs == nil {
		return nil, fmt.Errorf("dial the proxy at %s: %w%s", addr, err, dialHint(err))
	}
	c, at, dialErr := b.connect(ctx, addrs, port)
	switch {
	case dialErr != nil && err != nil:
		return nil, fmt.Errorf("dial the proxy at %s, at its last known address: %w%s, and: %w", addr, dialErr, dialHint(dialErr), err)
	case dialErr != nil:
		return nil, fmt.Errorf("dial the proxy at %s: %w%s", addr, dialErr, dialHint(dialErr))
	}
	b.names.reached(host, at)
	if !carrier {
		b.mu.Lock()
		b.remote = c.RemoteAddr()
		b.mu.Unlock()
	}
	return c, nil
}

// connect tries the addresses, each a moment after the one before it or when that failed. The first that answers wins.
func (b *Bridge) connect(ctx context.Context, addrs []netip.Addr, port string) (net.Conn, netip.Addr, error) {
	type answer struct {
		conn net.Conn
		at   netip.Addr
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
				late.conn.Close()
			}
		}
	}()
	next := time.NewTimer(nextAddress)
	defer next.Stop()
	started := 0
	start := func() {
		if started == len(addrs) {
			return
		}
		at := addrs[started]
		started++
		dialling.Go(func() {
			c, err := b.socket(ctx, "tcp", net.JoinHostPort(at.String(), port))
			answers <- answer{c, at, err}
		})
		next.Reset(nextAddress)
	}
	start()
	var first error // it is about the address that matters most
	for failed := 0; ; {
		select {
		case <-next.C:
			start()
		case a := <-answers:
			if a.err == nil {
				return a.conn, a.at, nil
			}
			if first == nil {
				first = a.err
			}
			if failed++; failed == len(addrs) {
				return nil, a.at, first
			}
			start()
		}
	}
}

func dialHint(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case sys.Refused(err):
		return " (is `reverser proxy` running there, on this port?)"
	case errors.As(err, &dns):
		return " (is the name right, and does this machine have DNS?)"
	case errors.As(err, &timeout) && timeout.Timeout():
		return " (does a firewall or the cloud's security group block this port?)"
	}
	return ""
}

// names knows what host names mean, also while DNS does not answer.
type names struct {
	ctx    context.Context // of lookups, which an attempt may leave behind
	wg     *sync.WaitGroup
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

	mu    sync.Mutex
	known map[string]meaning // the last good answers; guarded by mu
}

// meaning is what a name meant at a time.
type meaning struct {
	addrs []netip.Addr
	at    time.Time
}

// addresses returns what the host means now, or what it meant before when DNS does not say so soon; the error is then why.
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

// ask looks the host up, and keeps what it means when DNS answers, however late.
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

func (n *names) last(host string) meaning {
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
	n.known[host] = meaning{addrs[:min(len(addrs), mostAddresses)], time.Now()}
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

// watchName looks the proxy's name up now and then. changed is called when it does not mean the address any more that the
// link is connected to, or means something else while it is not: once for each answer.
func (b *Bridge) watchName(changed func()) {
	host, _, err := net.SplitHostPort(b.proxy)
	if _, noName := netip.ParseAddr(host); err != nil || host == "" || noName == nil {
		return
	}
	tick := time.NewTicker(lookupEvery)
	defer tick.Stop()
	var said []netip.Addr
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
		}
		before := sorted(b.names.last(host).addrs)
		if err := <-b.names.ask(host); err != nil {
			continue
		}
		now := sorted(b.names.last(host).addrs)
		b.mu.Lock()
		up, remote := b.link != nil, b.remote
		b.mu.Unlock()
		moved := !slices.Equal(before, now)
		if tcp, ok := remote.(*net.TCPAddr); up && ok {
			moved = !slices.Contains(now, tcp.AddrPort().Addr().Unmap())
		}
		if moved && !slices.Equal(said, now) {
			said = now
			b.log.Info("the proxy's name has another address", "proxy", b.proxy, "addresses", now)
			changed()
		}
	}
}

func sorted(addrs []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
}
