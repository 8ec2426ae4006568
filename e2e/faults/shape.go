//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"reverser/e2e/faultnet"
)

// F20
func slowReaders(ctx context.Context, b *bed) error {
	fast := by(b, 20, 50, 50)
	stalled := by(b, 50, 300, 1000)
	window := by(b, time.Second, 3*time.Second, 10*time.Second)
	rounds := by(b, 2, 4, 6)
	t, err := b.tunnel(ctx, options{})
	if err != nil {
		return err
	}
	memory := func() int64 {
		return usageOf(t.proxy.Cmd.Process.Pid).rss + usageOf(t.bridge.Cmd.Process.Pid).rss
	}
	// stall makes n users who read nothing, and waits until their senders stand still.
	stall := func(n int) (end func(), err error) {
		lines, err := t.connectAll(ctx, n)
		if err != nil {
			return nil, err
		}
		var sent []*flow
		var wg sync.WaitGroup
		for _, l := range lines {
			f := newFlow(-1)
			sent = append(sent, f)
			wg.Go(func() { f.send(l.lan) })
		}
		total := func() (n int64) {
			for _, f := range sent {
				n += f.sent.Load()
			}
			return n
		}
		for last := int64(-1); last != total(); {
			last = total()
			if !pass(ctx, 300*time.Millisecond) {
				return nil, context.Cause(ctx)
			}
		}
		return func() {
			for _, l := range lines {
				l.close()
			}
			wg.Wait()
		}, nil
	}

	warm, err := t.connect(ctx)
	if err != nil {
		return err
	}
	b.failIf(warm.duplex(newFlow(8<<20), newFlow(8<<20)), "warm-up")
	before := memory()
	end, err := stall(1)
	if err != nil {
		return err
	}
	one := memory() - before
	b.note("one stalled user: %s more in both processes", bytesText(max(0, one)))
	if one > 2*(8<<20) && !b.race { // a window at each end
		b.miss("one stalled user holds %s; promised are 8 MiB at each end", bytesText(one))
	}
	end()

	lines, err := t.connectAll(ctx, fast)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var flows []*flow
	for _, l := range lines {
		up, down := newFlow(1000), newFlow(-1)
		flows = append(flows, down)
		wg.Go(func() { b.failIf(l.duplex(up, down), "fast user") })
	}
	echoes, err := t.echoUsers(ctx, 5, 20*time.Millisecond)
	if err != nil {
		return err
	}
	measure := func() (speed float64, p99 time.Duration) {
		var moved int64
		begin := time.Now()
		for _, f := range flows {
			moved -= f.received.Load()
		}
		pass(ctx, window)
		for _, f := range flows {
			moved += f.received.Load()
		}
		took := time.Since(begin)
		var all []time.Duration
		for _, e := range echoes {
			for _, s := range e.all() {
				if s.at.After(begin) {
					all = append(all, s.took)
				}
			}
		}
		return float64(moved) / took.Seconds(), quantile(all, .99)
	}
	// In turn, so that what else the machine does hits all; and again where it seems to have hit some alone.
	beside := [3]int{0, 1, stalled}
	var speeds [3][]float64
	var tails [3][]time.Duration
	var peak int64
	kernelFull := false
	share := func(i int) float64 { return quantile(speeds[i], .5) / max(1, quantile(speeds[0], .5)) }
	for round := 0; round < rounds || round < 4*rounds && share(1) < .2; round++ {
		for i, n := range beside {
			end := func() {}
			if n > 0 {
				if end, err = stall(n); err != nil {
					return err
				}
			}
			s, p := measure()
			kernelFull = kernelFull || n > 1 && kernelMemoryIsShort()
			speeds[i], tails[i] = append(speeds[i], s), append(tails[i], p)
			peak = max(peak, usageOf(t.proxy.Cmd.Process.Pid).rss, usageOf(t.bridge.Cmd.Process.Pid).rss)
			end()
		}
	}
	for _, f := range flows {
		close(f.stop)
	}
	wg.Wait()
	b.finishAll(echoes)
	for i, n := range beside {
		b.note("%d fast users beside %d stalled: %.0f %% of their speed alone, p99 of echoes %s", fast, n, 100*share(i), seconds(quantile(tails[i], .5)))
	}
	b.note("the larger process %s", bytesText(peak))
	if share(1) < .95 {
		b.miss("%.0f %% of the speed; promised are 95 %%", 100*share(1))
	}
	switch {
	case kernelFull:
		b.note("with so many the sockets of all used up the memory that the kernel has for TCP (tcp_mem), which slows every connection of the machine")
	case share(2) < .95:
		b.miss("%.0f %% of the speed beside %d; promised are 95 %%", 100*share(2), stalled)
	}
	if share(1) < .2 {
		b.fail("fast users have %.0f %% of their speed beside a stalled one", 100*share(1))
	}
	if a, z := quantile(tails[0], .5), quantile(tails[1], .5); z > 2*a {
		b.miss("p99 of echoes %s, alone %s; promised is twice", seconds(z), seconds(a))
	}
	if limit := budget(stalled + fast); peak > limit && !b.race {
		b.fail("memory %s; the budget allows %s", bytesText(peak), bytesText(limit))
	}
	return nil
}

// kernelMemoryIsShort reports whether the sockets of this machine hold so much that the kernel takes some back (tcp(7), tcp_mem).
func kernelMemoryIsShort() bool {
	limits, err := os.ReadFile("/proc/sys/net/ipv4/tcp_mem")
	if err != nil {
		return false
	}
	var low, pressure, high int
	if _, err := fmt.Sscan(string(limits), &low, &pressure, &high); err != nil {
		return false
	}
	used, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(used)) {
		var inuse, orphan, tw, alloc, mem int
		if _, err := fmt.Sscanf(line, "TCP: inuse %d orphan %d tw %d alloc %d mem %d", &inuse, &orphan, &tw, &alloc, &mem); err == nil {
			return mem > pressure*9/10
		}
	}
	return false
}

// budget is how much memory a process may take with n connections whose windows are full: pool and floors, 30 % on top,
// and what the process takes anyway.
func budget(n int) int64 { return (128<<20+int64(n)*(16<<10))*13/10 + 48<<20 }

// F21
func halfClose(ctx context.Context, b *bed) error {
	t, err := b.tunnel(ctx, options{relay: true})
	if err != nil {
		return err
	}
	lasts := by(b, 4*time.Second, 20*time.Second, 10*time.Minute)
	after := func(first, second *flow, from, to *net.TCPConn) error {
		var wg sync.WaitGroup
		wg.Go(func() { second.receive(from) })
		wg.Go(func() { first.receive(to); second.send(to) }) // not before the first has ended
		first.send(from)
		wg.Wait()
		return errors.Join(first.check(), second.check())
	}
	var wg sync.WaitGroup
	for name, user := range map[string]bool{"H1: the user ends first": true, "H2: the service ends first": false} {
		l, err := t.connect(ctx)
		if err != nil {
			return err
		}
		long := newFlow(int64(200_000 * lasts.Seconds()))
		long.rate = 200_000
		from, to := l.user, l.lan
		if !user {
			from, to = to, from
		}
		wg.Go(func() { b.failIf(after(newFlow(1<<20), long, from, to), name) })
	}
	wg.Wait()
	b.note("H1, H2: the other direction went on for %v", lasts)

	const few = 10_000 // fits into every window
	for _, v := range []struct {
		name     string
		user     bool // who ends
		rst, cut bool // how, and whether in an outage
		n        int64
	}{
		{"H3: the user's FIN in an outage", true, false, true, few},
		{"H3: the service's FIN in an outage", false, false, true, few},
		{"H4: the user's RST in an outage", true, true, true, few},
		{"H4: the service's RST in an outage", false, true, true, few},
		{"H5: the user's RST behind data", true, true, false, 300_000},
		{"H5: the service's RST behind data", false, true, false, 300_000},
	} {
		l, err := t.connect(ctx)
		if err != nil {
			return err
		}
		from, to := l.user, l.lan
		if !v.user {
			from, to = to, from
		}
		if v.cut {
			t.relay.Stall(faultnet.Up, faultnet.Down)
			t.relay.Cut()
		}
		f := newFlow(v.n)
		received := make(chan string, 1)
		go func() {
			f.receive(to)
			switch err := f.receiveErr; {
			case err == nil:
				received <- endFIN
			case isReset(err):
				received <- endRST
			default:
				received <- err.Error()
			}
		}()
		if v.rst {
			if err := writeAll(ctx, from, noiseAt(f.seed, 0, int(v.n))); err != nil {
				return err
			}
			from.SetLinger(0)
			from.Close()
		} else {
			f.send(from)
		}
		if v.cut {
			pass(ctx, 2*time.Second)
			select {
			case how := <-received:
				b.fail("%s: the other side saw %s although the link was away", v.name, how)
				received <- how
			default:
			}
			t.relay.Heal()
		}
		want := endFIN
		if v.rst {
			want = endRST
		}
		select {
		case how := <-received:
			if got := f.received.Load(); how != want || got != v.n {
				b.fail("%s: the other side saw %s after %d bytes; want %s after %d", v.name, how, got, want, v.n)
			}
		case <-time.After(patience):
			b.fail("%s: the other side saw nothing", v.name)
		}
		l.close()
	}
	b.note("H3, H4, H5: as sent, with all bytes before it, both ways")

	pairs := by(b, 500, 3000, 10_000)
	var wrong atomic.Int64
	turn := make(chan struct{}, 32)
	for range pairs {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			l, err := t.connect(ctx)
			if err == nil {
				err = l.duplex(newFlow(100), newFlow(100))
			}
			if err != nil && wrong.Add(1) == 1 {
				b.fail("H6: both ends at once: %v", err)
			}
			l.close()
		})
	}
	wg.Wait()
	b.note("H6: %d connections that both sides ended at once", pairs)
	return nil
}

func isReset(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// writeAll writes b and waits until the peer's kernel has it: a reset throws away the rest.
func writeAll(ctx context.Context, c *net.TCPConn, b []byte) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return await(ctx, "the kernel has sent everything", func() bool {
		n := 0
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		return n == 0
	})
}

// F23
func serviceFails(ctx context.Context, b *bed) error {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	dead, full, down := ports[0], ports[1], ports[2]
	// A listener whose backlog is full answers no SYN.
	ln, err := net.Listen("tcp", down)
	if err != nil {
		return err
	}
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }); err != nil {
		return err
	}
	for range 3 {
		c, err := net.DialTimeout("tcp", down, 500*time.Millisecond)
		if err != nil {
			break
		}
		defer c.Close()
	}
	port := func(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
	service, err := freePorts(1)
	if err != nil {
		return err
	}
	t, err := b.tunnel(ctx, options{bridgeOnly: []string{port(dead) + "=" + service[0], port(full) + "=" + down}})
	if err != nil {
		return err
	}
	if err := t.whole(ctx); err != nil {
		return err
	}
	warm, err := t.echoUsers(ctx, 10, time.Second)
	if err != nil {
		return err
	}
	b.finishAll(warm)
	if err := await(ctx, "all services are up", func() bool { return len(t.bridge.Said("service up")) >= 3 }); err != nil {
		return err
	}
	before := [2]usage{usageOf(t.proxy.Cmd.Process.Pid), usageOf(t.bridge.Cmd.Process.Pid)}

	// many users at once and how they end
	many := func(addr string, n int) (took []time.Duration, err error) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				begin := time.Now()
				c, e := t.pub.Dial(ctx, addr)
				if e == nil && addr == t.public {
					_, e = c.Write(make([]byte, 8)) // no connection has this id: the service resets it
				}
				if e == nil {
					if how, _ := endOf(c, time.Minute); how != endRST {
						e = fmt.Errorf("a user saw %s; want RST", how)
					}
				}
				if c != nil {
					c.Close()
				}
				if isReset(e) { // it came before the dial was over
					e = nil
				}
				mu.Lock()
				defer mu.Unlock()
				took, err = append(took, time.Since(begin)), errors.Join(err, e)
			})
		}
		wg.Wait()
		return took, err
	}
	users := by(b, 50, 200, 1000)
	took, err := many(dead, users)
	b.failIf(err, "nothing listens")
	b.within(fmt.Sprintf("nothing listens: RST p50 %s, max", seconds(quantile(took, .5))), quantile(took, 1), time.Second)
	took, err = many(t.public, users)
	b.failIf(err, "accept, then RST")
	b.within("accept, then RST: max", quantile(took, 1), time.Second)
	took, err = many(full, 5)
	b.failIf(err, "full backlog")
	b.within("full backlog: RST max", quantile(took, 1), 11*time.Second)

	// The service comes back.
	back, err := net.Listen("tcp", service[0])
	if err != nil {
		return err
	}
	defer back.Close()
	begin := time.Now()
	c, err := t.pub.Dial(ctx, dead)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := back.Accept()
	if err != nil {
		return err
	}
	b.within("served after it came back", time.Since(begin), time.Second)
	s.Close()
	c.Close()
	return b.sameAsBefore(ctx, t, before)
}
