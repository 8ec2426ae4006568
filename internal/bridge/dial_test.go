package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/memnet"
	"reverser/internal/record"
	"reverser/internal/sys"
)

// dns answers what a test says.
type dns struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	hang  bool
	asked int
}

func (d *dns) set(hang bool, err error, addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hang, d.err, d.addrs = hang, err, nil
	for _, a := range addrs {
		d.addrs = append(d.addrs, netip.MustParseAddr(a))
	}
}

func (d *dns) lookup(ctx context.Context, _, host string) ([]netip.Addr, error) {
	d.mu.Lock()
	d.asked++
	hang, addrs, err := d.hang, slices.Clone(d.addrs), d.err
	d.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, &net.DNSError{Err: ctx.Err().Error(), Name: host, IsTimeout: true}
	}
	return addrs, err
}

// onMemnet is a bridge that dials proxy.test:3010 in memory and asks d.
func onMemnet(t *testing.T, n *memnet.Net, d *dns) *Bridge {
	t.Helper()
	b, err := New(Config{
		Token: tokenFor("proxy.test:3010"), Settings: Settings{Services: []Service{{Public: grammar.Public{Kind: grammar.KindTCP, Port: 9000}, Handle: func(c net.Conn) { c.Close() }}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.names.lookup = d.lookup
	b.socket = func(ctx context.Context, _, addr string, _ int) (net.Conn, error) { return n.Dial(ctx, addr) }
	b.watch = func(ctx context.Context, _ func(sys.NetworkEvent)) { <-ctx.Done() }
	return b
}

// atOnce is a link.Prove that takes every socket for the right one.
func atOnce(_ context.Context, sock net.Conn) (*auth.Conn, bool, error) {
	return &auth.Conn{Conn: &record.Conn{Conn: sock}}, false, nil
}

func TestDialWhileDNSFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		for _, at := range []string{"192.0.2.1:3010", "192.0.2.2:3010"} {
			if _, err := n.Listen(at); err != nil {
				t.Fatal(err)
			}
		}
		b := onMemnet(t, &n, &d)
		defer b.wg.Wait()
		defer b.stop()
		dial := func(limit time.Duration) (string, time.Duration, error) {
			time.Sleep(10 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			begin := time.Now()
			c, err := b.uplinks[0].dial(ctx, false, 0, atOnce)
			if err != nil {
				return "", time.Since(begin), err
			}
			return c.RemoteAddr().String(), time.Since(begin), nil
		}

		d.set(true, nil)
		if _, took, err := dial(3 * time.Second); err == nil || !strings.Contains(err.Error(), "does this machine have DNS") || took != 3*time.Second {
			t.Errorf("without an address: %v after %s", err, took)
		}
		d.set(false, nil, "192.0.2.1")
		if at, _, err := dial(time.Second); at != "192.0.2.1:3010" {
			t.Errorf("reached %s, %v", at, err)
		}
		d.set(true, nil)
		if at, took, err := dial(time.Second); at != "192.0.2.1:3010" || took != lookupPatience {
			t.Errorf("while DNS hangs: reached %q after %s, %v", at, took, err)
		}
		d.set(false, &net.DNSError{Err: "no such host", IsNotFound: true})
		if at, took, err := dial(time.Second); at != "192.0.2.1:3010" || took != 0 {
			t.Errorf("while the name does not exist: reached %q after %s, %v", at, took, err)
		}
		n.SetDials("192.0.2.1:3010", memnet.DialRefuse)
		if _, _, err := dial(time.Second); err == nil || !strings.Contains(err.Error(), "no such host") || !strings.Contains(err.Error(), "refused") {
			t.Errorf("both fail: %v; want both to be named", err)
		}
		d.set(false, nil, "192.0.2.2")
		if at, took, err := dial(time.Second); at != "192.0.2.2:3010" || took != 0 {
			t.Errorf("after the name moved: reached %q after %s, %v", at, took, err)
		}
	})
}

func TestDialTriesEveryAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		if _, err := n.Listen("192.0.2.9:3010"); err != nil {
			t.Fatal(err)
		}
		n.SetDials("[2001:db8::1]:3010", memnet.DialHang)
		b := onMemnet(t, &n, &d)
		defer b.wg.Wait()
		defer b.stop()
		d.set(false, nil, "2001:db8::1", "192.0.2.8", "192.0.2.9") // hangs, refuses, answers
		for _, want := range []time.Duration{nextAddress, 0} {
			begin := time.Now()
			c, err := b.uplinks[0].dial(t.Context(), false, 0, atOnce)
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took != want {
				t.Errorf("connected after %s, want %s: the address that answered last goes first", took, want)
			}
			c.Close()
			time.Sleep(time.Minute)
		}
		d.set(false, nil, "192.0.2.7", "192.0.2.8")
		time.Sleep(time.Minute)
		if _, err := b.uplinks[0].dial(t.Context(), false, 0, atOnce); err == nil || !strings.Contains(err.Error(), "reverser proxy") {
			t.Errorf("dial = %v; want refused with a hint", err)
		}
	})
}

// The proxy moves, and its name with it.
func TestTheNameOfTheProxyMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		d.set(false, nil, "192.0.2.1")
		p := hostOnMemnet(t, &n, "192.0.2.1:3010", "192.0.2.2:3010")
		b := onMemnet(t, &n, &d)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		defer func() { cancel(); running.Wait(); p() }()
		at := func() string {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.uplinks[0].link == nil || b.uplinks[0].link.RemoteAddr() == nil {
				return ""
			}
			return b.uplinks[0].link.RemoteAddr().String()
		}
		time.Sleep(time.Second)
		if got := at(); got != "192.0.2.1:3010" {
			t.Fatalf("connected to %q", got)
		}
		d.mu.Lock()
		before := d.asked
		d.mu.Unlock()
		d.set(false, nil, "192.0.2.2", "192.0.2.3")
		time.Sleep(time.Hour) // it answers at the old address too: nothing has to change
		if got := at(); got != "192.0.2.1:3010" {
			t.Errorf("connected to %q, want the connection that works", got)
		}
		d.mu.Lock()
		if asked := d.asked - before; asked > 60 {
			t.Errorf("%d lookups in an hour, want at most one a minute", asked)
		}
		d.mu.Unlock()
		n.SetDials("192.0.2.1:3010", memnet.DialHang)
		for _, c := range n.Conns() {
			c.BlackHole(memnet.Both)
		}
		time.Sleep(8 * time.Second)
		if got := at(); got != "192.0.2.2:3010" {
			t.Errorf("connected to %q, want the name's new address", got)
		}
	})
}

// What the operating system says of the network reaches the link.
func TestTheNetworkChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		d.set(false, nil, "192.0.2.1")
		stop := hostOnMemnet(t, &n, "192.0.2.1:3010")
		b := onMemnet(t, &n, &d)
		news := make(chan sys.NetworkEvent)
		b.watch = func(ctx context.Context, changed func(sys.NetworkEvent)) {
			for {
				select {
				case e := <-news:
					changed(e)
				case <-ctx.Done():
					return
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		defer func() { cancel(); running.Wait(); stop() }()
		time.Sleep(time.Second)
		old := n.Conns()
		for _, c := range old {
			c.BlackHole(memnet.Both)
		}
		news <- sys.NetworkEvent{Why: sys.Routes}
		time.Sleep(2 * time.Second)
		if up := b.Status().Links[0]; up.Resumes != uint64(len(old)) {
			t.Errorf("%d of %d slots resumed within two seconds of the news", up.Resumes, len(old))
		}
	})
}

// A developer at a breakpoint: nothing is said for hours, while every timer of the link passes many times, and the connection
// is the same afterwards.
func TestNothingIsSaidForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		d.set(false, nil, "192.0.2.1")
		p := newProxy(t)
		stop := p.serveOnMemnet(&n, "192.0.2.1:3010")
		b := onMemnet(t, &n, &d)
		ends := make(chan net.Conn, 2)
		b.services.Offered(1).Handle = func(c net.Conn) { ends <- c }
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		defer func() { cancel(); running.Wait(); stop() }()
		time.Sleep(time.Second)
		atBreakpoint := p.open(1)
		far := <-ends
		idle := p.open(1) // which may go over another carrier
		farIdle := <-ends
		for _, s := range []net.Conn{atBreakpoint, idle} {
			s.SetDeadline(time.Time{})
		}
		talk(t, atBreakpoint, far, "request")
		for _, pause := range []time.Duration{time.Minute, 10 * time.Minute, 5 * time.Hour} {
			time.Sleep(pause)
			talk(t, far, atBreakpoint, "step")
		}
		talk(t, idle, farIdle, "alive too")
		for _, s := range []*link.Stream{atBreakpoint, idle} {
			if n := s.Resumes(); n != 0 {
				t.Errorf("the link broke %d times", n)
			}
			s.Close()
		}
		far.Close()
		farIdle.Close()
	})
}

// hostOnMemnet serves a link.Host at the addresses and returns what stops it.
func hostOnMemnet(t *testing.T, n *memnet.Net, addrs ...string) (stop func()) {
	p := newProxy(t)
	return p.serveOnMemnet(n, addrs...)
}

func (p *proxy) serveOnMemnet(n *memnet.Net, addrs ...string) (stop func()) {
	return p.serveAs(9, identity(), n, addrs...)
}

func (p *proxy) serveAs(instance byte, id tls.Certificate, n *memnet.Net, addrs ...string) (stop func()) {
	t := p.t
	sc := &auth.ServerConfig{Identity: id, Instance: [16]byte{instance}, Features: p.features, Lookup: func(id [16]byte) ([32]byte, bool) { return secret, id == keyID }}
	host := link.NewHost(link.HostConfig{
		Owner: p, Instance: sc.Instance, Carriers: 2, Transfer: p.transfer,
		Admit: func([16]byte, [32]byte, bool) error { return nil }, Draining: func() bool { return false },
	})
	tc := sc.TLS()
	var wg sync.WaitGroup
	var lns []net.Listener
	for _, addr := range addrs {
		ln, err := n.Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		lns = append(lns, ln)
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					if ac, err := auth.Server(c, tc, sc); err == nil {
						host.Serve(ac)
					}
				})
			}
		})
	}
	return func() {
		for _, ln := range lns {
			ln.Close()
		}
		host.Close(errors.New("test over"))
		wg.Wait()
	}
}
