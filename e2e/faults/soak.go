//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"reverser/e2e/netlab"
)

// L9
func soak(ctx context.Context, b *bed) error {
	lasts := by(b, 10*time.Second, time.Minute, time.Hour)
	if b.soak > 0 {
		lasts = b.soak
	}
	rate := by(b, 30.0, 60, 200)
	t, err := b.tunnel(ctx, options{lab: true, relay: true})
	if err != nil {
		return err
	}
	for _, d := range []netlab.Direction{netlab.ToProxy, netlab.ToBridge} {
		if err := t.lab.SetLoss(d, .001); err != nil {
			return err
		}
	}
	users, err := t.echoUsers(ctx, 50, 100*time.Millisecond)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { // long transfers, one after the other
			for {
				select {
				case <-stop:
					return
				default:
				}
				l, err := t.connect(ctx)
				if err == nil {
					up, down := newFlow(1+rand.Int64N(1<<20)), newFlow(1+rand.Int64N(1<<20))
					up.rate, down.rate = 200_000, 200_000
					err = l.duplex(up, down)
					l.close()
				}
				if err != nil {
					b.fail("transfer: %v", err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		_, err := t.shortUsers(ctx, rate, stop)
		b.failIf(err, "short connections")
	})
	strangers := 0
	wg.Go(func() { strangers = t.strangers(ctx, stop) })

	// The memory is looked at from when everything has run for a while.
	settle := min(lasts/6, 10*time.Minute)
	type point struct {
		conns float64
		rss   [2]float64
	}
	var points []point
	begin, cuts := time.Now(), 0
	for time.Since(begin) < lasts {
		if !pass(ctx, 2*time.Second+rand.N(3*time.Second)) {
			return context.Cause(ctx)
		}
		t.relay.Cut()
		cuts++
		if time.Since(begin) > settle {
			points = append(points, point{float64(t.next.Load()), [2]float64{
				float64(usageOf(t.proxy.Cmd.Process.Pid).rss), float64(usageOf(t.bridge.Cmd.Process.Pid).rss)}})
		}
	}
	if _, err := stalls(ctx, users, time.Now()); err != nil {
		return err
	}
	close(stop)
	wg.Wait()
	answers := b.finishAll(users)
	b.note("%v: %d connections, %d resets of the whole link, %d strangers, 0.1 %% of packets lost; %d echoes right",
		lasts, t.next.Load(), cuts, strangers, answers)
	for i, name := range []string{"proxy", "bridge"} {
		var xs, ys []float64
		for _, p := range points {
			xs, ys = append(xs, p.conns), append(ys, p.rss[i])
		}
		grows := slope(xs, ys) * 100_000
		if len(points) == 0 || lasts < 10*time.Minute {
			b.note("%s: memory %s (too short for a slope)", name, bytesText(usageOf([]int{t.proxy.Cmd.Process.Pid, t.bridge.Cmd.Process.Pid}[i]).rss))
			continue
		}
		b.note("%s: memory %s, growing by %s per 100,000 connections", name, bytesText(int64(ys[len(ys)-1])), bytesText(int64(grows)))
		if grows > 1<<20 {
			b.miss("%s: memory grows by %s per 100,000 connections; promised is 1 MiB at the most", name, bytesText(int64(grows)))
		}
	}
	return b.allEndedWell(ctx, t)
}

// slope is that of the line that fits the points best.
func slope(xs, ys []float64) float64 {
	var mx, my, sxy, sxx float64
	for i := range xs {
		mx += xs[i] / float64(len(xs))
		my += ys[i] / float64(len(ys))
	}
	for i := range xs {
		sxy += (xs[i] - mx) * (ys[i] - my)
		sxx += (xs[i] - mx) * (xs[i] - mx)
	}
	if sxx == 0 {
		return 0
	}
	return sxy / sxx
}

// strangers knock at the link port with silence, garbage and other protocols, until stop.
func (t *tunnel) strangers(ctx context.Context, stop <-chan struct{}) (n int) {
	says := []string{"", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0-x\r\n", string(noiseAt(9, 0, 5000)), "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"}
	var wg sync.WaitGroup
	defer wg.Wait()
	for ; ; n++ {
		select {
		case <-stop:
			return n
		case <-ctx.Done():
			return n
		case <-time.After(100 * time.Millisecond):
		}
		words := says[n%len(says)]
		wg.Go(func() {
			c, err := t.pub.Dial(ctx, t.link)
			if isReset(err) { // at once, before the dial was over
				return
			}
			if err != nil {
				t.fail("the link port refused a stranger: %v", err)
				return
			}
			defer c.Close()
			fmt.Fprint(c, words)
			endOf(c, 20*time.Second)
		})
	}
}
