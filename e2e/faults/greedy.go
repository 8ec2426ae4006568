//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"reverser/e2e/attacks"
	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// Where a greedy key has its public ports, at the neighbour's proxy and at the other one: no other program is there.
const (
	greedyHost = "127.0.0.99"
	otherHost  = "127.0.0.98"
)

// firstGreedy is the first of them. The tests of a few thousand ports stay below 10,000, from where programs of other tests have theirs: who
// wants one of those at all addresses would not get it meanwhile.
const firstGreedy = 2000

// N2
func unfinishedTables(ctx context.Context, b *bed) error {
	tables, idle := by(b, 150, 1500, 10_000), by(b, 300, 1000, 3000)
	n, err := b.neighbour(ctx, options{files: 1024})
	if err != nil {
		return err
	}
	pid := n.proxy.Cmd.Process.Pid
	before := usageOf(pid)
	over := watchMemory(pid)
	var total counts
	err = n.beside(ctx, onslaught{what: fmt.Sprintf("%d unfinished tables and %d idle connections of one key", tables, idle), elsewhere: true, begin: func(t *tunnel) (func(), error) {
		return n.attacked(ctx, t, "greedy", attack{Tables: tables, Idle: idle}, &total)
	}, under: func() error {
		if err := n.operator(ctx, "beside them"); err != nil {
			return err
		}
		if err := n.newcomer(ctx, "beside them", time.Second); err != nil {
			return err
		}
		if err := n.newBridge(ctx, "beside them", netip.AddrFrom4([4]byte{127, 8, 3, 9}), 5*time.Second); err != nil {
			return err
		}
		return n.cut(ctx, "beside them", time.Second)
	}})
	peak := over()
	if err != nil {
		return err
	}
	n.note("%d of the tables were taken but for their last part, %d of the idle connections were let in", total.Tables, total.Idle)
	n.atMost("the proxy's memory grew by", peak-before.rss, 32<<20, 200<<20)
	return n.finish(ctx)
}

// attacked starts an attack on a tunnel. What it did is in total when it was stopped, if it is the neighbour's tunnel.
func (n *neighbour) attacked(ctx context.Context, t *tunnel, name string, a attack, total *counts) (stop func(), err error) {
	end, err := t.attack(ctx, n.pub, name, a)
	if err != nil {
		return nil, err
	}
	return func() {
		if c := end(); t == n.tunnel {
			*total = c
		}
	}, nil
}

// atMost notes an amount of memory: promised is what the report holds it to, broken where a test fails.
func (r *result) atMost(what string, got, promised, broken int64) {
	r.note("%s %s", what, bytesText(got))
	if got > broken {
		r.fail("%s %s; promised are %s", what, bytesText(got), bytesText(promised))
	} else if got > promised {
		r.miss("%s %s; promised are %s", what, bytesText(got), bytesText(promised))
	}
}

// watchMemory looks at a process now and then until over is called, which returns the most that it had.
func watchMemory(pid int) (over func() int64) {
	stop, peak := make(chan struct{}), make(chan int64, 1)
	go func() {
		var most int64
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, usageOf(pid).rss)
			select {
			case <-stop:
				peak <- most
				return
			case <-tick.C:
			}
		}
	}()
	return func() int64 { close(stop); return <-peak }
}

// A greedyBridge is a session of a key that claims ports and does with users what its owner likes.
type greedyBridge struct {
	*attacks.Bridge
	opened func(slot int, f wire.Frame) // an OPEN came; may be nil

	mu sync.Mutex
	up map[uint32]bool // claims by id, whether their port is open; guarded by mu
}

func (g *greedyBridge) handle(slot int, f wire.Frame) {
	switch f.Type {
	case wire.TypeClaimed:
		id, c, err := wire.ParseClaimed(f)
		if err != nil {
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.up[id] = c.Status == wire.ClaimUp
	case wire.TypeOpen:
		if g.opened != nil {
			g.opened(slot, f)
		}
	}
}

// answered is how many claims have an answer, and to how many of them it is that the port is open.
func (g *greedyBridge) answered() (all, up int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, yes := range g.up {
		if yes {
			up++
		}
	}
	return len(g.up), up
}

// beginGreedy begins a session for the key.
func beginGreedy(ctx context.Context, token grammar.Token, dial attacks.Dial, opened func(slot int, f wire.Frame)) (*greedyBridge, error) {
	g := &greedyBridge{opened: opened, up: make(map[uint32]bool)}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	if g.Bridge, err = attacks.Begin(ctx, token, "greedy", dial, g.handle); err != nil {
		return nil, err
	}
	if err := g.Join(ctx, 1); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// claim claims so many ports of a host, from firstGreedy on.
func (g *greedyBridge) claim(host string, ports int) error {
	var frames []byte
	for i := range ports {
		port := 1024 + (firstGreedy-1024+i)%(65_536-1024)
		frames = wire.AppendClaim(frames, uint32(i+1), wire.Claim{Public: fmt.Sprintf("tcp/%s:%d", host, port), Target: "127.0.0.1:1"})
	}
	return g.Send(0, wire.AppendRound(frames))
}

// greedyPort starts such a bridge that claims port firstGreedy of a host, and returns when it is open.
func (t *tunnel) greedyPort(ctx context.Context, host string, opened func(g *greedyBridge, slot int, f wire.Frame)) (*greedyBridge, error) {
	text, err := t.attackersKey(ctx, "greedy")
	if err != nil {
		return nil, err
	}
	token, err := grammar.ParseToken(text)
	if err != nil {
		return nil, err
	}
	var begun atomic.Pointer[greedyBridge]
	g, err := beginGreedy(ctx, token, t.dialFrom(netip.Addr{}), func(slot int, f wire.Frame) {
		if g := begun.Load(); g != nil && opened != nil {
			opened(g, slot, f)
		}
	})
	if err != nil {
		return nil, err
	}
	begun.Store(g)
	if err = g.claim(host, 1); err == nil {
		err = await(ctx, "the greedy key's port is open", func() bool { _, up := g.answered(); return up == 1 })
	}
	if err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// N3
func manyClaims(ctx context.Context, b *bed) error {
	const files = 1024
	claims := by(b, 1100, 5000, 20_000)
	n, err := b.neighbour(ctx, options{files: files})
	if err != nil {
		return err
	}
	var total counts
	begin := time.Now()
	err = n.beside(ctx, onslaught{what: fmt.Sprintf("%d claims of one key at %d descriptors", claims, files), elsewhere: true, begin: func(t *tunnel) (func(), error) {
		host := greedyHost
		if t != n.tunnel {
			host = otherHost
		}
		return n.attacked(ctx, t, "greedy", attack{Claims: claims, Host: host}, &total)
	}, under: func() error {
		if err := n.operator(ctx, "beside them"); err != nil {
			return err
		}
		if err := n.newcomer(ctx, "beside them", time.Second); err != nil {
			return err
		}
		if err := n.newBridge(ctx, "beside them", netip.AddrFrom4([4]byte{127, 8, 1, 9}), 5*time.Second); err != nil {
			return err
		}
		return n.cut(ctx, "beside them", time.Second)
	}})
	if err != nil {
		return err
	}
	took := time.Since(begin)
	n.note("%d claims were answered, %d ports opened", total.Answered, total.Opened)
	if total.Opened > files/2 {
		n.fail("one key has %d of %d descriptors for its ports; promised is at most half of what is free", total.Opened, files)
	}
	lines := 0
	for line := range strings.Lines(n.proxy.Stderr.String()) {
		if strings.Contains(line, `"key":"greedy"`) {
			lines++
		}
	}
	// Ten a second of each kind of message, of which a claim has four, and the sessions' own.
	most := 4*10*(int(took.Seconds())+2) + 20
	n.note("%d lines of log about them in %s", lines, seconds(took))
	if lines > most {
		n.fail("%d lines of log about one key in %s; promised are at most %d", lines, seconds(took), most)
	}
	return n.finish(ctx)
}

// N4
func neverAcknowledged(ctx context.Context, b *bed) error {
	users := by(b, 100, 200, 500)
	each := by(b, time.Second, 5*time.Second, 10*time.Second)
	n, err := b.neighbour(ctx, options{lab: true})
	if err != nil {
		return err
	}
	if err := n.delay(ctx, 100*time.Millisecond); err != nil {
		return err
	}
	l, err := n.connect(ctx)
	if err != nil {
		return err
	}
	// One download without a limit: its speed over such a distance is what the proxy's memory for windows lets through.
	up, down := newFlow(1000), newFlow(-1)
	var wg sync.WaitGroup
	var bulk error
	wg.Go(func() { bulk = l.duplex(up, down) })
	// speed is the best of three looks: a busy machine makes some of them slow.
	speed := func() (best float64) {
		for range 3 {
			begin, at := time.Now(), down.received.Load()
			pass(ctx, each)
			best = max(best, float64(down.received.Load()-at)/time.Since(begin).Seconds()/1e6)
		}
		return best
	}
	pass(ctx, by(b, 5*time.Second, 10*time.Second, 20*time.Second)) // until its window has grown
	const floor = 64 << 10 / .2 / 1e6                               // what a stream has in any case
	// Alone it must be so fast that a fall to the floor is seen.
	const telling = 3 * floor
	before := speed()
	const within = 2 * time.Minute
	for late, growing := time.Now().Add(within), true; (growing || before < telling) && time.Now().Before(late) && ctx.Err() == nil; {
		next := speed()
		growing = next > 1.1*before
		before = max(before, next)
	}
	if before < telling {
		b.fail("the download alone has %.1f MB/s over 200 ms within %v: with less than %.1f nothing can be said of what a greedy key takes", before, within, telling)
	}

	newAddr := netip.AddrFrom4([4]byte{10, 2, 0, 100}) // of the lan host
	if err := n.lab.AddAddress(newAddr); err != nil {
		return err
	}
	var taken atomic.Int64
	var beside float64
	var held int64
	look := by(b, 0, 8*time.Second, 20*time.Second)
	err = n.beside(ctx, onslaught{what: fmt.Sprintf("%d streams that a key acknowledges nothing of", users), look: look, begin: func(t *tunnel) (func(), error) {
		taken.Store(0)
		bridge, err := t.greedyPort(ctx, greedyHost, func(g *greedyBridge, slot int, f wire.Frame) {
			_ = g.Send(slot, wire.AppendAck(nil, f.Stream, 0, 1<<40)) // a session that has ended is seen below
		})
		if err != nil {
			return nil, err
		}
		_, stop := crowd(ctx, users, users, func(ctx context.Context, _ int) (net.Conn, error) {
			c, err := t.pub.Dial(ctx, net.JoinHostPort(greedyHost, strconv.Itoa(firstGreedy)))
			if err != nil {
				return nil, err
			}
			wg.Go(func() {
				for {
					m, err := c.Write(noiseAt(1, 0, chunk))
					taken.Add(int64(m))
					if err != nil {
						return
					}
				}
			})
			return c, nil
		})
		return func() { stop(); bridge.Close() }, nil
	}, under: func() error {
		pass(ctx, by(b, time.Second, 3*time.Second, 10*time.Second)) // until it has what it can get
		beside, held = speed(), taken.Load()
		if err := n.operator(ctx, "beside it"); err != nil {
			return err
		}
		if err := n.newcomer(ctx, "beside it", 3*time.Second); err != nil {
			return err
		}
		if err := n.newBridge(ctx, "beside it", newAddr, 7*time.Second); err != nil { // two handshakes of some round trips each
			return err
		}
		return n.cut(ctx, "beside it", 3*time.Second)
	}})
	if err != nil {
		return err
	}
	pass(ctx, by(b, 2*time.Second, 3*time.Second, 3*time.Second))
	after := speed()
	close(down.stop)
	wg.Wait()
	b.failIf(bulk, "the neighbour's download")
	b.note("a download over 200 ms: %.1f MB/s, %.1f beside a key that took %s and acknowledged nothing, %.1f when that had gone", before, beside, bytesText(held), after)
	alone := max(before, after) // its window may have grown meanwhile
	for what, got := range map[string]float64{"beside it": beside, "behind it": after} {
		switch {
		case got < alone/2 && got < 1.5*floor:
			b.fail("the download is left with the floor %s: %.1f MB/s, %.1f alone; promised is half of that", what, got, alone)
		case got < alone/2:
			b.miss("the download has %.1f MB/s %s, %.1f alone; promised is half of that", got, what, alone)
		}
	}
	return n.finish(ctx)
}

// N5
func idleUsers(ctx context.Context, b *bed) error {
	const files = 1024
	idle := by(b, 1500, 3000, 3000)
	n, err := b.neighbour(ctx, options{files: files})
	if err != nil {
		return err
	}
	hosts := make(map[*tunnel]string)
	err = n.beside(ctx, onslaught{what: fmt.Sprintf("%d idle users of one address at another key's port, %d descriptors", idle, files), elsewhere: true, begin: func(t *tunnel) (func(), error) {
		if hosts[t] == "" {
			host := greedyHost
			if t != n.tunnel {
				host = otherHost
			}
			g, err := t.greedyPort(ctx, host, nil)
			if err != nil {
				return nil, err
			}
			t.atEnd(g.Close)
			hosts[t] = host
		}
		stop, err := t.attack(ctx, n.pub, "", attack{Users: idle, Host: hosts[t], From: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 77})}})
		return func() { stop() }, err
	}, under: func() error {
		for range 5 {
			if err := n.newcomer(ctx, "beside them", time.Second); err != nil {
				return err
			}
		}
		if err := n.operator(ctx, "beside them"); err != nil {
			return err
		}
		if err := n.newBridge(ctx, "beside them", netip.AddrFrom4([4]byte{127, 8, 2, 9}), 5*time.Second); err != nil {
			return err
		}
		if err := n.cut(ctx, "beside them", time.Second); err != nil {
			return err
		}
		return n.otherUser(ctx)
	}})
	if err != nil {
		return err
	}
	return n.finish(ctx)
}

// otherUser is a user of the greedy key's port from another address: the idle ones of one address do not lock them out.
func (n *neighbour) otherUser(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 78)}}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(greedyHost, strconv.Itoa(firstGreedy)))
	if err != nil {
		return err
	}
	defer c.Close()
	is := func(p pair) bool { return strings.HasPrefix(p.Client, "127.0.0.78:") }
	if await(ctx, "that user has a pair", func() bool { return n.pairs(ctx, n.proxyState, is) > 0 }) != nil {
		n.miss("a user from another address found no place at the greedy key's port within %v", patience)
	}
	return nil
}
