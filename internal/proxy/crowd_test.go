package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// crowd is a proxy to which many come, on a network in memory and in virtual time, or on loopback. Nobody claims anything there.
type crowd struct {
	*testing.T
	net    memnet.Net
	addr   string // on loopback; "": on the network in memory
	p      *Proxy
	known  []Known // what proxies save
	done   chan struct{}
	stop   context.CancelFunc
	dials  atomic.Int64
	fails  atomic.Int64
	dialed sync.WaitGroup
	ctx    context.Context
}

const crowdCarriers = 2

// newCrowd starts a proxy that knows as many keys.
func newCrowd(t *testing.T, keys int) *crowd { return newCrowdAt(t, "", keys) }

func newCrowdAt(t *testing.T, addr string, keys int) *crowd {
	c := &crowd{T: t, addr: addr}
	var end context.CancelFunc
	c.ctx, end = context.WithCancel(t.Context())
	c.start(keys)
	t.Cleanup(func() {
		end()
		c.dialed.Wait()
		c.kill()
	})
	return c
}

func (c *crowd) start(keys int) {
	var set Settings
	for i := range keys {
		set.Keys = append(set.Keys, Key{Name: fmt.Sprint("key", i), ID: crowdKey(i)})
	}
	c.p = New(Config{
		Identity: identity(), Settings: set, Known: c.known,
		SaveKnown: func(list []Known) error { c.known = list; return nil },
	})
	var err error
	if c.addr != "" {
		c.p.cfg.Listen = c.addr
		err = c.p.Listen()
	} else if c.p.port.ln, err = c.net.Listen("proxy:3010"); err == nil {
		c.p.listening(0)
	}
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	c.stop, c.done = cancel, done
	p := c.p
	go func() {
		defer close(done)
		p.Run(ctx)
	}()
}

// kill ends the proxy without a word to bridges.
func (c *crowd) kill() {
	c.stop()
	<-c.done
}

func crowdKey(i int) [16]byte { return [16]byte{byte(i >> 8), byte(i), 1} }

// host is the address of one of many hosts, each in a block of its own.
func host(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{20 + byte(i>>16), byte(i >> 8), byte(i), 1})
}

// member is a bridge of the crowd.
type member struct {
	slots [1 + crowdCarriers]atomic.Bool
	reset atomic.Int64 // sessions that ended
	back  atomic.Int64 // when to come back, by the last GOAWAY; nanoseconds
}

func (m *member) Opened(s *link.Stream)                    { s.Reset(wire.CodeService) }
func (m *member) Message(*link.Link, wire.Frame) error     { return nil }
func (m *member) Attached(_ *link.Link, slot int)          { m.slots[slot].Store(true) }
func (m *member) Detached(_ *link.Link, slot int, _ error) { m.slots[slot].Store(false) }
func (m *member) GoingAway(l *link.Link, _ time.Duration)  { m.back.Store(int64(l.ComeBack())) }
func (m *member) Ended(*link.Link, error)                  { m.reset.Add(1) }
func (m *member) up() bool {
	for i := range m.slots {
		if !m.slots[i].Load() {
			return false
		}
	}
	return true
}

// bridge starts one with a key, at a host.
func (c *crowd) bridge(key int, at netip.Addr) *member {
	m := new(member)
	d := link.NewDialer(link.DialerConfig{
		Owner: m, Carriers: crowdCarriers,
		Auth: auth.ClientConfig{KeyID: crowdKey(key), Pin: auth.Pin(identity().Leaf.RawSubjectPublicKeyInfo), Instance: crowdKey(key)},
		Dial: link.Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) {
			c.dials.Add(1)
			if c.addr != "" {
				d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0)), KeepAlive: -1}
				return d.DialContext(ctx, "tcp", c.addr)
			}
			return c.net.DialFrom(ctx, at, "proxy:3010")
		}),
		Failed: func(int, error, time.Duration) { c.fails.Add(1) },
	})
	c.dialed.Go(func() { d.Run(c.ctx) })
	return m
}

// flood has strangers come, so many a second from so many hosts, until the end of the test or until it is called off. Of each host
// the last byte is the address in its block.
func (c *crowd) flood(rate int, from func(i int) netip.Addr, say func(net.Conn)) (off func()) {
	ctx, cancel := context.WithCancel(c.ctx)
	c.dialed.Go(func() {
		each := time.NewTicker(time.Second / time.Duration(rate))
		defer each.Stop()
		for i := 0; ; i++ {
			select {
			case <-each.C:
			case <-ctx.Done():
				return
			}
			c.dialed.Go(func() {
				conn, err := c.net.DialFrom(ctx, from(i), "proxy:3010")
				if err != nil {
					return
				}
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				if say != nil {
					say(conn)
				}
				conn.Read(make([]byte, 1))
			})
		}
	})
	return cancel
}

// within waits until all are up, and wants that so soon.
func (c *crowd) within(limit time.Duration, what string, all ...*member) {
	c.Helper()
	begin := time.Now()
	for _, m := range all {
		for !m.up() {
			if time.Since(begin) > time.Minute {
				c.Fatalf("%s: not within a minute", what)
			}
			time.Sleep(time.Millisecond)
		}
	}
	if took := time.Since(begin); took > limit {
		c.Errorf("%s after %s, want within %s", what, took, limit)
	}
}

// latency sets the round trip. All of it is on the way back: what a client says first comes with the connection, as with TCP.
func (c *crowd) latency(roundTrip time.Duration) { c.net.SetLatency(memnet.ToDialer, roundTrip) }

// TestCrowdBehindOneAddress: bridges that a proxy has not seen share an address, near or far; each connection is dialled once.
func TestCrowdBehindOneAddress(t *testing.T) {
	for _, at := range []struct {
		bridges   int
		roundTrip time.Duration
		limit     time.Duration
		dials     int // for each connection, in percent
	}{{12, time.Second, 10 * time.Second, 200}, {100, 0, time.Second, 200}, {100, 200 * time.Millisecond, 4 * time.Second, 200}} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, at.bridges)
			c.latency(at.roundTrip)
			var all []*member
			for i := range at.bridges {
				all = append(all, c.bridge(i, host(0)))
			}
			what := fmt.Sprintf("%d bridges at a round trip of %s are up", at.bridges, at.roundTrip)
			c.within(at.limit, what, all...)
			conns := int64(at.bridges * (1 + crowdCarriers))
			if n := c.dials.Load(); n > conns*int64(at.dials)/100 {
				t.Errorf("%s: %d dials for %d connections", what, n, conns)
			}
		})
	}
}

// TestCrowdComesBack: a proxy is restarted. All bridges are back soon, from one address or many, and none of the connections that
// they make meanwhile is thrown away.
func TestCrowdComesBack(t *testing.T) {
	const bridges = 120
	for _, hosts := range []int{1, bridges} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, bridges)
			c.latency(20 * time.Millisecond)
			var all []*member
			for i := range bridges {
				all = append(all, c.bridge(i, host(i%hosts)))
			}
			c.within(4*time.Second, "all are up", all...)
			c.kill()
			c.dials.Store(0)
			c.fails.Store(0)
			c.start(bridges)
			if len(c.known) != hosts {
				t.Errorf("%d addresses were saved, want %d", len(c.known), hosts)
			}
			c.within(4*time.Second, fmt.Sprintf("all are back from %d addresses", hosts), all...)
			if d := c.dials.Load(); d > 2*bridges*(1+crowdCarriers) {
				t.Errorf("%d dials for %d connections", d, bridges*(1+crowdCarriers))
			}
		})
	}
}

// TestConnectedIsKnown: a bridge that has been connected for longer than an address is remembered is no stranger when its link breaks,
// nor to a proxy that is started after a crash.
func TestConnectedIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 1)
		b := c.bridge(0, host(0))
		c.within(time.Second, "the bridge is up", b)
		time.Sleep(rememberAddress + 2*time.Hour)
		synctest.Wait()
		if n := c.dials.Load(); n != 1+crowdCarriers {
			t.Fatalf("%d dials, want none after the first ones", n)
		}
		g := c.p.port.gate
		g.mu.Lock()
		is := g.room.known.has(host(0), time.Now())
		g.mu.Unlock()
		if !is {
			t.Error("the address of a bridge that is connected is not known any more")
		}
		if age := time.Since(c.known[0].Last); len(c.known) != 1 || age > worthSaving+2*saveKnown {
			t.Errorf("%d addresses are saved, the first as of %s ago", len(c.known), age)
		}
	})
}

// TestCrowdIsAskedBack: bridges that hear of a stop come to the successor one after the other.
func TestCrowdIsAskedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bridges = 50
		c := newCrowd(t, bridges)
		var all []*member
		for i := range bridges {
			all = append(all, c.bridge(i, host(0)))
		}
		c.within(4*time.Second, "all are up", all...)
		first := c.done
		c.p.Drain()
		c.start(bridges)
		c.within(4*time.Second, "all are at the successor", all...)
		<-first
		var back []time.Duration
		for _, m := range all {
			back = append(back, time.Duration(m.back.Load()))
		}
		slices.Sort(back)
		for i, at := range back {
			if at != time.Duration(i)*comeBackEach {
				t.Fatalf("bridge %d was asked back after %s, want %s: %v", i, at, time.Duration(i)*comeBackEach, back)
			}
		}
	})
}

// TestCrowdOfStrangers: whatever strangers do at the link port, bridges attach and come back.
func TestCrowdOfStrangers(t *testing.T) {
	hello := func(conn net.Conn) { // goes as far as one can without a key
		conn.SetDeadline(time.Now().Add(auth.Timeout))
		tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"reverser/1"}}).Handshake()
	}
	half := func(conn net.Conn) { conn.Write([]byte{22, 3, 1, 0, 200, 1}) }
	for _, at := range []struct {
		what      string
		places    int
		rate      int
		from      func(i int) netip.Addr
		say       func(net.Conn)
		roundTrip time.Duration
	}{
		{"900 silent ones of 24 addresses", 500, 900, func(i int) netip.Addr { return host(1000 + i%24) }, nil, 0},
		{"900 silent ones of 24 addresses, far away", 500, 900, func(i int) netip.Addr { return host(1000 + i%24) }, nil, 200 * time.Millisecond},
		{"900 silent ones of the bridge's address", 500, 900, func(int) netip.Addr { return host(0) }, nil, 200 * time.Millisecond},
		{"900 half hellos of 24 addresses", 500, 900, func(i int) netip.Addr { return host(1000 + i%24) }, half, 200 * time.Millisecond},
		{"5000 silent ones of 1000 addresses", 1500, 5000, func(i int) netip.Addr { return host(1000 + i%1000) }, nil, 200 * time.Millisecond},
		{"300 hellos of 300 addresses", 450, 300, func(i int) netip.Addr { return host(1000 + i%300) }, hello, 200 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, 3)
			c.p.port.gate.room.most = at.places
			c.latency(at.roundTrip)
			known := c.bridge(0, host(0))
			c.within(2*time.Second, "the first bridge is up", known)
			off := c.flood(at.rate, at.from, at.say)
			time.Sleep(time.Duration(at.places) * 3 / 2 * time.Second / time.Duration(at.rate)) // the gate is full
			c.within(5*time.Second, at.what+": a new bridge is up", c.bridge(1, host(1)))
			c.net.Reset()
			synctest.Wait()
			c.within(time.Second+5*at.roundTrip, at.what+": the known bridge is back", known)
			c.within(5*time.Second, at.what+": a bridge at a known address is up", c.bridge(2, host(0)))
			if n := known.reset.Load(); n != 0 {
				t.Errorf("%s: %d sessions ended, and their users were reset", at.what, n)
			}
			off()
		})
	}
}

// TestCrowdIsTakenAsItComes: whoever stands behind a crowd of strangers at the link port waits for next to none of them.
func TestCrowdIsTakenAsItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 1)
		begin := time.Now()
		const strangers = 100
		for i := range strangers * runtime.GOMAXPROCS(0) {
			conn, err := c.net.DialFrom(c.ctx, host(1000+i), "proxy:3010")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		sock, err := c.net.DialFrom(c.ctx, host(0), "proxy:3010")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := auth.Client(c.ctx, sock, auth.ClientConfig{KeyID: crowdKey(0), Pin: auth.Pin(identity().Leaf.RawSubjectPublicKeyInfo), Instance: crowdKey(0)})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if d := time.Since(begin); d > strangers/linkCrowd*link.Pause {
			t.Errorf("the key was proven after %s", d)
		}
	})
}

// TestCrowdOnSockets: many bridges start at once on a machine that is busy with all of them and with the proxy, and come back to one
// that was restarted. However long that takes, few of their connections are wasted.
func TestCrowdOnSockets(t *testing.T) {
	const bridges = 60
	c := newCrowdAt(t, oneAddr(t), bridges)
	var all []*member
	for i := range bridges {
		all = append(all, c.bridge(i, netip.MustParseAddr("127.0.0.1")))
	}
	up := func(what string, enough int64) {
		t.Helper()
		for _, m := range all {
			eventually(t, what, m.up)
		}
		if n := c.dials.Swap(0); n > enough {
			t.Errorf("%s: %d dials for %d connections, want at most %d", what, n, bridges*(1+crowdCarriers), enough)
		}
	}
	const conns = bridges * (1 + crowdCarriers)
	up("all are up", 3*conns)
	c.kill()
	c.start(bridges)
	for _, m := range all {
		eventually(t, "all have noticed", func() bool { return m.reset.Load() > 0 })
	}
	up("all are back", 5*conns) // while nobody listened, too
}
