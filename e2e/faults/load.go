//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// raiseFileLimit lets this process and its children open as many files as the system allows. Without root it stays as it is.
func raiseFileLimit() {
	for _, n := range []uint64{1 << 20, 100_000, 50_000} {
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n}) == nil {
			return
		}
	}
}

// connectionsPossible is how many connections the limit of this process allows, both ends of each being here.
func connectionsPossible(wanted int) int {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return wanted
	}
	return min(wanted, (int(min(lim.Cur, 1<<20))-1000)/2)
}

// L1
func idle(ctx context.Context, b *bed) error {
	n := connectionsPossible(by(b, 2000, 10_000, 10_000))
	lasts := by(b, 5*time.Second, 30*time.Second, 5*time.Minute)
	t, err := b.tunnel(ctx, options{relay: true})
	if err != nil {
		return err
	}
	pids := [2]int{t.proxy.Cmd.Process.Pid, t.bridge.Cmd.Process.Pid}
	if err := t.whole(ctx); err != nil {
		return err
	}
	warm, err := t.connect(ctx)
	if err != nil {
		return err
	}
	b.failIf(warm.duplex(newFlow(1<<20), newFlow(1<<20)), "warm-up")
	before := [2]usage{usageOf(pids[0]), usageOf(pids[1])}
	begin := time.Now()
	lines, err := t.connectAll(ctx, n)
	if err != nil {
		return err
	}
	opened := time.Since(begin)
	pass(ctx, 3*time.Second) // what opening them took is freed
	start := [2]usage{usageOf(pids[0]), usageOf(pids[1])}
	pass(ctx, lasts)
	now := [2]usage{usageOf(pids[0]), usageOf(pids[1])}
	for i, name := range []string{"proxy", "bridge"} {
		each := (now[i].rss - before[i].rss) / int64(n)
		cpu := 100 * (now[i].cpu - start[i].cpu).Seconds() / lasts.Seconds()
		b.note("%s: %s for each of %d, %s in all; %.1f %% of a core idle", name, bytesText(each), n, bytesText(now[i].rss), cpu)
		if each > 12<<10 && !b.race {
			b.miss("%s: %s for each connection; promised are 12 KiB", name, bytesText(each))
		}
		if cpu >= 1 {
			b.miss("%s: %.1f %% of a core while idle; promised is less than 1", name, cpu)
		}
	}
	b.note("opened in %s", seconds(opened))

	// One byte for everybody behind the cut.
	var wg sync.WaitGroup
	for _, l := range lines {
		wg.Go(func() { l.echoes(1) })
	}
	t.relay.Cut()
	cut := time.Now()
	for _, l := range lines {
		if _, err := l.user.Write([]byte{7}); err != nil {
			return fmt.Errorf("after the cut: %w", err)
		}
	}
	for i, l := range lines {
		var got [1]byte
		l.user.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadFull(l.user, got[:]); err != nil || got[0] != 7 {
			return fmt.Errorf("after the cut user %d of %d read %v, %w: %s", i, n, got, err, t.standing(ctx))
		}
	}
	b.within(fmt.Sprintf("after the cut all %d have an answer in", n), time.Since(cut), time.Second)
	wg.Wait()
	return nil
}

// L2
func fullWindows(ctx context.Context, b *bed) error {
	n := connectionsPossible(by(b, 200, 2000, 10_000))
	outage := by(b, 5*time.Second, 20*time.Second, time.Minute)
	const each = 128 << 10 // more than the window at the beginning
	t, err := b.tunnel(ctx, options{lab: true})
	if err != nil {
		return err
	}
	lines, err := t.connectAll(ctx, n)
	if err != nil {
		return err
	}
	if err := t.lab.Down(); err != nil {
		return err
	}
	begin := time.Now()
	var wg sync.WaitGroup
	for _, l := range lines {
		wg.Go(func() { b.failIf(l.duplex(newFlow(each), newFlow(each)), "a stream through the outage") })
	}
	var peak [2]int64
	for time.Since(begin) < outage {
		for i, p := range []int{t.proxy.Cmd.Process.Pid, t.bridge.Cmd.Process.Pid} {
			peak[i] = max(peak[i], usageOf(p).rss)
		}
		if !pass(ctx, 100*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	if err := t.lab.Up(); err != nil {
		return err
	}
	heal := time.Now()
	wg.Wait()
	b.note("%d connections with full windows both ways through %v: all whole %s after the heal", n, outage, seconds(time.Since(heal)))
	for i, name := range []string{"proxy", "bridge"} {
		b.note("%s at most %s", name, bytesText(peak[i]))
		if peak[i] > budget(n) && !b.race {
			b.fail("%s: %s; the budget and 30 %% are %s", name, bytesText(peak[i]), bytesText(budget(n)))
		}
	}
	return b.allEndedWell(ctx, t)
}
