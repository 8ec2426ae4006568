//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"reverser/e2e/faultnet"
)

// insideAttach is about how many bytes of a direction handshake and table take.
const insideAttach = 6000

// F1
func cutsDuringBulk(ctx context.Context, b *bed) error {
	const lines = 8
	each := by(b, int64(8<<20), 32<<20, 128<<20)
	cuts := by(b, 30, 120, 1000)
	if b.race {
		each /= 4
	}
	// So that the transfers take as long as the cuts: both ways of all lines, over the cuts that hit bulk.
	mean := 2 * lines * each / int64(cuts) * 4 / 3
	var planned, early atomic.Int64
	plan := func(int) faultnet.Fault {
		f := faultnet.Fault{After: 1 + rand.Int64N(2*mean), Of: faultnet.Direction(rand.IntN(2)), FIN: rand.IntN(4) == 0}
		if planned.Add(1)%4 == 0 {
			f.After = 1 + rand.Int64N(insideAttach)
			early.Add(1)
		}
		return f
	}
	t, err := b.tunnel(ctx, options{relay: true, plan: plan})
	if err != nil {
		return err
	}
	begin := time.Now()
	// Small cuts come slowly when bulk has ended, so go on until there were enough.
	var moved atomic.Int64
	var broken sync.Map
	var wg sync.WaitGroup
	for i := range lines {
		wg.Go(func() {
			for round := 0; round == 0 || t.relay.Cuts() < cuts && ctx.Err() == nil; round++ {
				l, err := t.connect(ctx)
				if err == nil {
					up, down := newFlow(each), newFlow(each)
					err = l.duplex(up, down)
					moved.Add(up.received.Load() + down.received.Load())
				}
				if err != nil {
					broken.Store(i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	broken.Range(func(i, err any) bool { b.fail("transfer %d: %v", i, err); return true })
	b.note("%d cuts, about %d of them inside handshake or table; %s moved, every checksum equal, in %s",
		t.relay.Cuts(), early.Load(), bytesText(moved.Load()), seconds(time.Since(begin)))
	if t.relay.Cuts() < cuts {
		b.fail("%d cuts; want %d", t.relay.Cuts(), cuts)
	}
	return b.allEndedWell(ctx, t)
}

// allEndedWell checks that neither side saw a connection end other than by FIN.
func (b *bed) allEndedWell(ctx context.Context, t *tunnel) error {
	err := await(ctx, "all pairs are released", func() bool {
		p, errP := t.statusOf(ctx, t.proxyState)
		q, errQ := t.statusOf(ctx, t.bridgeState)
		return errP == nil && errQ == nil && len(p.Pairs)+len(q.Pairs) == 0
	})
	for how, n := range t.endedAs("eof") {
		b.fail("%d pairs ended as %s", n, how)
	}
	return err
}

// F2
func cutBehindEveryByte(ctx context.Context, b *bed) error {
	const last = 20_000
	points := by(b, 60, 500, 2*last)
	tunnels := by(b, 2, 5, 8)
	// All points of both directions in random order, the first ones of them where not all are taken. Those inside
	// handshake and table come first: that is where something is special about a byte.
	type point struct {
		n  int64
		of faultnet.Direction
	}
	var todo []point
	step := max(1, 2*last/points)
	for i := 0; i < 2*last; i += step {
		todo = append(todo, point{int64((i+rand.IntN(step))/2) + 1, faultnet.Direction(i / step % 2)})
	}
	places := len(todo)
	rand.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	var mu sync.Mutex
	done := 0
	plan := func(n int) faultnet.Fault {
		mu.Lock()
		defer mu.Unlock()
		if len(todo) == 0 || len(todo) < 10 && rand.IntN(2) == 0 { // the control connection is often the first to come
			return faultnet.Fault{}
		}
		p := todo[0]
		todo = todo[1:]
		return faultnet.Fault{
			After: p.n, Of: p.of, FIN: n%4 == 0,
			NotBefore: 1100 * time.Millisecond, // what lived for a second is dialled again at once
			Ended: func(cut bool) {
				mu.Lock()
				defer mu.Unlock()
				if cut {
					done++
				} else {
					todo = append(todo, p)
				}
			},
		}
	}
	begin := time.Now()
	var ts []*tunnel
	var users []*echoUser
	for range tunnels {
		t, err := b.tunnel(ctx, options{relay: true, plan: plan})
		if err != nil {
			return err
		}
		ts = append(ts, t)
		us, err := t.echoUsers(ctx, 12, 10*time.Millisecond)
		if err != nil {
			return err
		}
		users = append(users, us...)
	}
	cuts := func() int {
		mu.Lock()
		defer mu.Unlock()
		return done
	}
	// The control connection carries little and may never reach its place: now and then all are cut, and others get it.
	progress, before := time.Now(), 0
	for n := cuts(); n < places; n = cuts() {
		if !pass(ctx, 50*time.Millisecond) {
			return fmt.Errorf("%d of %d cuts: %w", n, places, context.Cause(ctx))
		}
		if n > before {
			progress, before = time.Now(), n
		}
		if time.Since(progress) > 2500*time.Millisecond {
			progress = time.Now()
			for _, t := range ts {
				t.relay.Cut()
			}
		}
	}
	if _, err := stalls(ctx, users, time.Now()); err != nil {
		return err
	}
	answers := b.finishAll(users)
	b.note("%d of %d places cut; %d echoes of %d connections, all right, in %s", cuts(), 2*last, answers, len(users), seconds(time.Since(begin)))
	for _, t := range ts {
		if err := b.allEndedWell(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// shortUsers makes short connections at a rate until stop: each sends a little both ways and ends.
func (t *tunnel) shortUsers(ctx context.Context, perSecond float64, stop <-chan struct{}) (done int, err error) {
	var wg sync.WaitGroup
	var n atomic.Int64
	var mu sync.Mutex
	tick := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-stop:
			running = false
		case <-ctx.Done():
			running = false
		case <-tick.C:
			wg.Go(func() {
				e := t.short(ctx)
				n.Add(1)
				mu.Lock()
				defer mu.Unlock()
				if e != nil && err == nil {
					err = fmt.Errorf("short connection %d: %w", n.Load(), e)
				}
			})
		}
	}
	wg.Wait()
	return int(n.Load()), err
}

func (t *tunnel) short(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	l, err := t.connect(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	return l.duplex(newFlow(1+rand.Int64N(8000)), newFlow(1+rand.Int64N(8000)))
}

// F3
func manyThroughCuts(ctx context.Context, b *bed) error {
	lasts := by(b, 12*time.Second, time.Minute, 30*time.Minute)
	rate := by(b, 30.0, 60, 200)
	long := by(b, 60, 200, 200)
	t, err := b.tunnel(ctx, options{relay: true})
	if err != nil {
		return err
	}
	if err := t.whole(ctx); err != nil {
		return err
	}
	// What stays after the first users is what the program keeps for later ones: the baseline.
	warm, err := t.echoUsers(ctx, long, 100*time.Millisecond)
	if err != nil {
		return err
	}
	b.finishAll(warm)
	if err := b.allEndedWell(ctx, t); err != nil {
		return err
	}
	before := [2]usage{usageOf(t.proxy.Cmd.Process.Pid), usageOf(t.bridge.Cmd.Process.Pid)}

	users, err := t.echoUsers(ctx, long/2, 50*time.Millisecond)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var flows []*flow
	for range long - long/2 {
		l, err := t.connect(ctx)
		if err != nil {
			return err
		}
		up, down := newFlow(-1), newFlow(-1)
		up.rate, down.rate = float64(1000+rand.IntN(200_000)), float64(1000+rand.IntN(200_000))
		flows = append(flows, up, down)
		wg.Go(func() { b.failIf(l.duplex(up, down), "long transfer") })
	}
	stop := make(chan struct{})
	var shorts int
	wg.Go(func() {
		n, err := t.shortUsers(ctx, rate, stop)
		shorts = n
		b.failIf(err, "short connections")
	})
	begin, links := time.Now(), 0
	for time.Since(begin) < lasts {
		if !pass(ctx, 2*time.Second+rand.N(3*time.Second)) {
			return context.Cause(ctx)
		}
		t.relay.Cut()
		links++
	}
	if _, err := stalls(ctx, users, time.Now()); err != nil {
		return err
	}
	close(stop)
	for _, f := range flows {
		close(f.stop)
	}
	wg.Wait()
	answers := b.finishAll(users)
	var moved int64
	for _, f := range flows {
		moved += f.received.Load()
	}
	b.note("%d resets of the whole link (%d connections of it) under %d long and %d short connections; %s and %d echoes, all right",
		links, t.relay.Cuts(), long, shorts, bytesText(moved), answers)
	if err := b.allEndedWell(ctx, t); err != nil {
		return err
	}
	return b.sameAsBefore(ctx, t, before)
}

// sameAsBefore checks that descriptors and memory are what they were. The link itself may be in the middle of a dial.
func (b *bed) sameAsBefore(ctx context.Context, t *tunnel, before [2]usage) error {
	for i, p := range []int{t.proxy.Cmd.Process.Pid, t.bridge.Cmd.Process.Pid} {
		name := [...]string{"proxy", "bridge"}[i]
		err := await(ctx, fmt.Sprintf("the %s has its %d descriptors again", name, before[i].fds), func() bool {
			return usageOf(p).fds <= before[i].fds
		})
		if err != nil {
			return fmt.Errorf("%w: it has %d", err, usageOf(p).fds)
		}
		now := usageOf(p)
		b.note("%s: descriptors %d, before %d; memory %s, before %s", name, now.fds, before[i].fds, bytesText(now.rss), bytesText(before[i].rss))
	}
	return nil
}

// F18
func damaged(ctx context.Context, b *bed) error {
	flips := by(b, 16, 100, 1000)
	every := by(b, int64(256<<10), 1<<20, 10<<20)
	var n atomic.Int64
	var enough atomic.Bool
	plan := func(int) faultnet.Fault {
		if enough.Load() {
			return faultnet.Fault{} // what the senders still hold goes through undisturbed
		}
		// Somewhere in the connection, but not at a place that every connection reaches at once.
		return faultnet.Fault{FlipEvery: every/2 + rand.Int64N(every), Of: faultnet.Direction(n.Add(1) % 2)}
	}
	t, err := b.tunnel(ctx, options{relay: true, plan: plan})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var flows []*flow
	begin := time.Now()
	for range 4 {
		l, err := t.connect(ctx)
		if err != nil {
			return err
		}
		up, down := newFlow(-1), newFlow(-1)
		flows = append(flows, up, down)
		wg.Go(func() { b.failIf(l.duplex(up, down), "transfer over a line that damages bytes") })
	}
	err = await(ctx, "enough damaged bytes", func() bool { return t.relay.Flips() >= flips })
	enough.Store(true)
	for _, f := range flows {
		close(f.stop)
	}
	wg.Wait()
	var moved int64
	for _, f := range flows {
		moved += f.received.Load()
	}
	b.note("%d bits inverted, one in about %s; %s delivered, every checksum equal, in %s", t.relay.Flips(), bytesText(every), bytesText(moved), seconds(time.Since(begin)))
	return errors.Join(err, b.allEndedWell(ctx, t))
}

// L8
func largeStream(ctx context.Context, b *bed) error {
	n := by(b, int64(512<<20), 5<<30, 50<<30)
	cuts := by(b, 4, 10, 20)
	if b.race {
		n /= 8
	}
	t, err := b.tunnel(ctx, options{relay: true})
	if err != nil {
		return err
	}
	l, err := t.connect(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	up, down := newFlow(1<<20), newFlow(n)
	var wg sync.WaitGroup
	wg.Go(func() { b.failIf(l.duplex(up, down), "the stream") })
	made := 0
	for i := range cuts {
		at := n * int64(i+1) / int64(cuts+1)
		err := await(ctx, fmt.Sprintf("byte %d", at), func() bool { return down.received.Load() >= at })
		if err != nil {
			return err
		}
		t.relay.Cut()
		made++
	}
	wg.Wait()
	b.note("%s in one stream through %d resets, checksum equal, in %s", bytesText(n), made, seconds(time.Since(begin)))
	return b.allEndedWell(ctx, t)
}
