package bridge

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/logtest"
	"reverser/internal/memnet"
)

const (
	addrA = "192.0.2.1:3010"
	addrB = "192.0.2.2:3010"
)

// mute accepts connections at the address and says nothing, as the kernel does for a server that hangs.
func mute(t *testing.T, n *memnet.Net, addr string) (stop func()) {
	ln, err := n.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				io.Copy(io.Discard, c)
			})
		}
	})
	return func() { ln.Close(); n.Reset(); wg.Wait() }
}

// runOnMemnet starts a bridge whose proxy's name has both addresses, and returns what ends it.
func runOnMemnet(t *testing.T, n *memnet.Net, d *dns) (*Bridge, *logtest.Journal, func()) {
	d.set(false, nil, "192.0.2.1", "192.0.2.2")
	b := onMemnet(t, n, d)
	j := logtest.NewWithLevels(slog.LevelInfo)
	setLog(b, j)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx) })
	return b, j, func() { cancel(); wg.Wait() }
}

// upAt returns where the bridge's control connection and all of its carriers lead to; "" if some of them are missing.
func upAt(b *Bridge) string {
	b.mu.Lock()
	l := b.uplinks[0].link
	b.mu.Unlock()
	if l == nil {
		return ""
	}
	at := ""
	for _, sl := range l.Status()[:3] {
		if !sl.Up || at != "" && sl.Remote != at {
			return ""
		}
		at = sl.Remote
	}
	return at
}

// TestAddressThatIsNoProxy: the name has two addresses, and TCP connects to both, but only behind the second one is the proxy.
func TestAddressThatIsNoProxy(t *testing.T) {
	for name, first := range map[string]func(t *testing.T, n *memnet.Net) (stop func()){
		"says nothing": func(t *testing.T, n *memnet.Net) func() { return mute(t, n, addrA) },
		"another TLS server": func(t *testing.T, n *memnet.Net) func() {
			return newProxy(t).serveAs(8, newIdentity(), n, addrA)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n memnet.Net
				var d dns
				defer first(t, &n)()
				defer hostOnMemnet(t, &n, addrB)()
				b, _, stop := runOnMemnet(t, &n, &d)
				defer stop()
				time.Sleep(2*nextHandshake + nextAddress) // control connection, then carriers
				if at := upAt(b); at != addrB {
					t.Fatalf("connected to %q within two handshakes, want %s", at, addrB)
				}
				for _, c := range n.Conns() {
					c.Reset()
				}
				time.Sleep(500 * time.Millisecond)
				if at := upAt(b); at != addrB {
					t.Errorf("connected to %q at once after a break, want %s: the address that failed goes last", at, addrB)
				}
			})
		})
	}
}

// TestTheProxyHangs: its kernel goes on to accept, and another proxy with the same identity serves at the name's other address.
func TestTheProxyHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		defer newProxy(t).serveAs(1, identity(), &n, addrA)()
		defer newProxy(t).serveAs(2, identity(), &n, addrB)()
		b, _, stop := runOnMemnet(t, &n, &d)
		defer stop()
		time.Sleep(time.Second)
		if at := upAt(b); at != addrA {
			t.Fatalf("connected to %q, want %s", at, addrA)
		}
		hang := func(c *memnet.Conn) {
			if c.RemoteAddr().String() == addrA {
				c.BlackHole(memnet.Both)
			}
		}
		for _, c := range n.Conns() {
			hang(c)
		}
		n.OnConn(hang)
		time.Sleep(20 * time.Second)
		if at := upAt(b); at != addrB {
			t.Errorf("connected to %q 20 s after the proxy hung, want the healthy one at %s", at, addrB)
		}
	})
}

// TestASlowProxyKeepsItsLink: the link's server is slow to answer when a connection of the link breaks, and another proxy at the
// name's second address is not. The session, and the connections of users, stay where they are.
func TestASlowProxyKeepsItsLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		defer newProxy(t).serveAs(1, identity(), &n, addrA)()
		defer newProxy(t).serveAs(2, identity(), &n, addrB)()
		b, j, stop := runOnMemnet(t, &n, &d)
		defer stop()
		time.Sleep(time.Second)
		slow := func(c *memnet.Conn) {
			if c.RemoteAddr().String() == addrA {
				c.SetLatency(memnet.Both, time.Second)
			}
		}
		n.OnConn(slow)
		for round, cut := range []func(){
			func() { n.Conns()[1].Reset() }, // one of the connections
			n.Reset,                         // all of them
		} {
			cut()
			time.Sleep(20 * time.Second)
			if at := upAt(b); at != addrA {
				t.Errorf("round %d: connected to %q, want %s", round, at, addrA)
			}
		}
		if n := j.Count("session with the proxy ended"); n != 0 {
			t.Errorf("the session ended %d times", n)
		}
	})
}

// TestAProxyThatIsGoneIsLeftAtOnce: nothing listens any more where the session was.
func TestAProxyThatIsGoneIsLeftAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		stopA := newProxy(t).serveAs(1, identity(), &n, addrA)
		defer newProxy(t).serveAs(2, identity(), &n, addrB)()
		b, _, stop := runOnMemnet(t, &n, &d)
		defer stop()
		time.Sleep(time.Second)
		stopA()
		time.Sleep(2 * time.Second)
		if at := upAt(b); at != addrB {
			t.Errorf("connected to %q 2 s after the proxy ended, want %s", at, addrB)
		}
	})
}

// TestAPathThatSwallowsLargePackets: TCP connects, and then only connections with small segments get through.
func TestAPathThatSwallowsLargePackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		defer hostOnMemnet(t, &n, addrA)()
		d.set(false, nil, "192.0.2.1")
		b := onMemnet(t, &n, &d)
		j := logtest.NewWithLevels(slog.LevelInfo)
		setLog(b, j)
		var mu sync.Mutex
		large := 0
		b.socket = func(ctx context.Context, _, addr string, segment int) (net.Conn, error) {
			c, err := n.Dial(ctx, addr)
			if err != nil || segment > 0 && segment <= 1280-60 {
				return c, err
			}
			mu.Lock()
			large++
			mu.Unlock()
			c.(*memnet.Conn).BlackHole(memnet.Both)
			return c, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { b.Run(ctx) })
		defer func() { cancel(); wg.Wait() }()
		time.Sleep(12 * time.Second) // a busy proxy lets one handshake stall, so small packets have to help twice
		if at := upAt(b); at != addrA {
			t.Fatalf("connected to %q within 12 s, want %s", at, addrA)
		}
		mu.Lock()
		tried := large
		mu.Unlock()
		for range 3 {
			n.Reset()
			time.Sleep(time.Second)
			if at := upAt(b); at != addrA {
				t.Errorf("connected to %q a second after a break, want %s", at, addrA)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if large != tried {
			t.Errorf("%d more connections with large packets, want none", large-tried)
		}
		if n := j.Count("MTU"); n != 1 {
			t.Errorf("MTU is named in %d lines, want 1", n)
		}
	})
}

// TestPathsAreForgotten: what failed goes last for some minutes, and the memory is bounded.
func TestPathsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p paths
		a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		at := func(a netip.Addr, port int) place {
			return place{lead: lead{addr: netip.AddrPortFrom(a, uint16(port))}}
		}
		first := func() netip.Addr { return p.order([]place{at(a, 3010), at(b, 3010)})[0].addr.Addr() }
		p.failed(way{place: at(a, 3010)}, true)
		if got := first(); got != b {
			t.Errorf("%s goes first after %s failed", got, a)
		}
		time.Sleep(failureCounts / 2)
		p.failed(way{place: at(b, 3010)}, true)
		if got := first(); got != a {
			t.Errorf("%s goes first when both failed, %s last", got, b)
		}
		time.Sleep(failureCounts)
		if got := first(); got != a {
			t.Errorf("%s goes first when all is forgotten", got)
		}
		for i := range 2 * mostPaths {
			time.Sleep(time.Second)
			p.failed(way{place: at(a, i+1)}, true)
		}
		if len(p.at) != mostPaths {
			t.Errorf("%d addresses are remembered, want %d", len(p.at), mostPaths)
		}
		if _, ok := p.at[lead{addr: netip.AddrPortFrom(a, 2*mostPaths)}]; !ok {
			t.Error("the latest failure is not among them")
		}
	})
}

// TestSecondAddressOfAToken: a firewall swallows what goes to the first address, also what carriers would use. All connections come up
// at the second one, and behind a break they are there at once.
func TestSecondAddressOfAToken(t *testing.T) {
	for name, transfer := range map[string]uint16{"one port": 0, "a port for carriers": 3020} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n memnet.Net
				var d dns
				for _, addr := range []string{addrA, "192.0.2.1:3020", "192.0.2.1:443"} {
					n.SetDials(addr, memnet.DialHang)
				}
				p := newProxy(t)
				p.transfer = transfer
				d.set(false, nil, "192.0.2.1")
				b := onMemnet(t, &n, &d)
				b.uplinks[0].others = []string{"proxy.test:8443"}
				defer p.serveAs(1, identity(), &n, "192.0.2.1:8443")()
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { b.Run(ctx) })
				defer func() { cancel(); wg.Wait() }()
				time.Sleep(2*nextAddress + time.Millisecond)
				if at := upAt(b); at != "192.0.2.1:8443" {
					t.Fatalf("connected to %q, want the second address of the token", at)
				}
				for _, c := range n.Conns() {
					c.Reset()
				}
				time.Sleep(500 * time.Millisecond)
				if at := upAt(b); at != "192.0.2.1:8443" {
					t.Errorf("connected to %q at once after a break, want what worked last", at)
				}
			})
		})
	}
}

// TestWhichFailureIsTold: the proxy's word counts more than a wrong server's answer, and that more than silence.
func TestWhichFailureIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		defer newProxy(t).serveAs(8, newIdentity(), &n, addrB)()
		d.set(false, nil, "192.0.2.1", "192.0.2.2")
		b := onMemnet(t, &n, &d)
		j := logtest.NewWithLevels(slog.LevelInfo)
		setLog(b, j)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		b.Run(ctx)
		if n := j.Count("no connection to the proxy", "refused"); n != 0 {
			t.Errorf("%d lines blame the address where nothing listens:\n%s", n, strings.Join(j.All(), "\n"))
		}
		if n := j.Count("no connection to the proxy", addrB, "intercepts TLS"); n == 0 {
			t.Errorf("no line names the server with the wrong identity:\n%s", strings.Join(j.All(), "\n"))
		}
	})
}
