//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"reverser/e2e/process"
)

// An ending is how and when one end of a connection saw its end.
type ending struct {
	how string
	at  time.Time
}

// endings watches both ends of connections until they have ended. wait gives what the users and the LAN ends saw.
func endings(lines []line, limit time.Duration) (wait func() (users, lan []ending)) {
	users, lan := make([]ending, len(lines)), make([]ending, len(lines))
	var wg sync.WaitGroup
	for i, l := range lines {
		wg.Go(func() { how, _ := endOf(l.user, limit); users[i] = ending{how, time.Now()} })
		wg.Go(func() {
			how, _ := endOf(l.lan, limit)
			lan[i] = ending{how, time.Now()}
			// A write that meets the RST takes it: the read behind it sees a clean end.
			if l.sender != nil && how == endFIN && isReset(<-l.sender) {
				lan[i].how = endRST
			}
		})
	}
	return func() (_, _ []ending) {
		wg.Wait()
		return users, lan
	}
}

// allReset checks that all saw a RST and returns how long after t each one did.
func (b *bed) allReset(who string, ends []ending, t time.Time) (after []time.Duration) {
	for _, e := range ends {
		if e.how != endRST {
			b.fail("%s saw %s; want RST", who, e.how)
		}
		after = append(after, max(0, e.at.Sub(t)))
	}
	return after
}

// firstRecord waits for a line that the program writes and returns when it did. A program that is not about to write it is a
// failure, which shows what it wrote.
func firstRecord(ctx context.Context, p *process.Process, msg string, skip int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var at time.Time
	err := await(ctx, fmt.Sprintf("%s says %q", p.Name, msg), func() bool {
		r := p.Said(msg)
		if len(r) > skip {
			at = r[skip].Time()
		}
		return len(r) > skip
	})
	return at, err
}

// busyLines makes connections. Over every other one the LAN service sends without end; the rest is idle, so that nothing
// but the end itself tells about it. The senders end with the connections.
func (t *tunnel) busyLines(ctx context.Context, n int) ([]line, error) {
	lines, err := t.connectAll(ctx, n)
	if err != nil {
		return nil, err
	}
	for i, l := range lines {
		if i%2 == 1 {
			continue
		}
		ended := make(chan error, 1)
		lines[i].sender = ended
		go func() {
			f := newFlow(-1)
			f.send(l.lan)
			ended <- f.sendErr
		}()
	}
	return lines, nil
}

// F8
func bridgeKilled(ctx context.Context, b *bed) error {
	rounds := by(b, 3, 15, 100)
	t, err := b.tunnel(ctx, options{})
	if err != nil {
		return err
	}
	var reset, service []time.Duration
	for range rounds {
		lines, err := t.busyLines(ctx, 10)
		if err != nil {
			return err
		}
		wait := endings(lines, time.Minute)
		pass(ctx, 200*time.Millisecond)
		t.bridge.Kill()
		begin := time.Now()
		if err := t.startBridge(ctx); err != nil {
			return err
		}
		l, err := t.connect(ctx)
		if err != nil && time.Since(begin) > 10*time.Second { // nobody is held for longer, and a busy machine may take as long to start a bridge
			l, err = t.connect(ctx)
		}
		if err != nil {
			return fmt.Errorf("a new connection after the restart: %w", err)
		}
		service = append(service, time.Since(begin))
		l.close()
		attached, err := firstRecord(ctx, t.bridge, "connected to the proxy", 0)
		if err != nil {
			return err
		}
		users, lan := wait()
		reset = append(reset, b.allReset("users", users, attached)...)
		b.allReset("the LAN service", lan, attached)
		if err := t.awaitUp(ctx); err != nil {
			return err
		}
	}
	b.note("%d kills, %d connections, all RST", rounds, 10*rounds)
	b.within("users' RST after the new bridge attached: p50 "+seconds(quantile(reset, .5))+", max", quantile(reset, 1), time.Second)
	b.within("new connections served after the start: p50 "+seconds(quantile(service, .5))+", max", quantile(service, 1), 2*time.Second)
	return nil
}

// F9
func proxyKilled(ctx context.Context, b *bed) error {
	rounds := by(b, 4, 25, 100)
	t, err := b.tunnel(ctx, options{})
	if err != nil {
		return err
	}
	var back, gone []time.Duration
	for i := range rounds {
		lines, err := t.busyLines(ctx, 10)
		if err != nil {
			return err
		}
		wait := endings(lines, time.Minute)
		pass(ctx, 150*time.Millisecond)
		before := len(t.bridge.Said("connected to the proxy"))
		up := len(t.bridge.Said("service up"))
		t.proxy.Kill()
		if i%2 == 1 {
			pass(ctx, time.Second) // a start that takes a while, so that dials fail meanwhile
		}
		if err := t.startProxy(ctx); err != nil {
			return err
		}
		listening, err := firstRecord(ctx, t.proxy, "proxy listening", 0)
		if err != nil {
			return err
		}
		attached, err := firstRecord(ctx, t.bridge, "connected to the proxy", before)
		if err != nil {
			return err
		}
		back = append(back, max(0, attached.Sub(listening)))
		users, lan := wait()
		b.allReset("users", users, attached)
		gone = append(gone, b.allReset("the LAN service", lan, attached)...)
		if _, err := firstRecord(ctx, t.bridge, "service up", up); err != nil {
			return err
		}
	}
	b.note("%d kills, %d downloads: all users saw RST", rounds, 10*rounds)
	b.within("bridge back after the proxy listens: p95", quantile(back, .95), 1500*time.Millisecond)
	b.within("max", quantile(back, 1), 3*time.Second)
	b.within("LAN side RST at most, after that", quantile(gone, 1), time.Second)
	return nil
}

// F10
func drain(ctx context.Context, b *bed) error {
	type variant struct {
		who   string
		twice bool
	}
	return sideBySide([]variant{{"proxy", false}, {"bridge", false}, {"proxy", true}, {"bridge", true}}, func(v variant) error {
		// The transfers take some seconds, and on a busy machine more than the usual drain.
		t, err := b.tunnel(ctx, options{both: []string{"--drain", "10m"}})
		if err != nil {
			return err
		}
		connect := t.connectAll
		if v.twice {
			connect = t.busyLines
		}
		lines, err := connect(ctx, 5)
		if err != nil {
			return err
		}
		p := map[string]*process.Process{"proxy": t.proxy, "bridge": t.bridge}[v.who]
		if v.twice {
			wait := endings(lines, time.Minute)
			pass(ctx, 100*time.Millisecond)
			p.Cmd.Process.Signal(syscall.SIGTERM)
			if _, err := firstRecord(ctx, p, "draining", 0); err != nil {
				return err
			}
			begin := time.Now()
			p.Cmd.Process.Signal(syscall.SIGTERM)
			code, err := p.AwaitEnd(ctx)
			if err != nil {
				return err
			}
			b.within(fmt.Sprintf("%s: second signal ends it after", v.who), time.Since(begin), time.Second)
			if code != 0 {
				b.fail("%s: exit code %d after a second signal; want 0", v.who, code)
			}
			users, lan := wait()
			b.allReset("users of the "+v.who, users, begin)
			b.allReset("the LAN service of the "+v.who, lan, begin)
			return nil
		}
		var wg sync.WaitGroup
		for _, l := range lines {
			down := newFlow(8 << 20)
			down.rate = 8 << 20 / 3
			wg.Go(func() { b.failIf(l.duplex(newFlow(100_000), down), "transfer through the drain of the "+v.who) })
		}
		pass(ctx, time.Second)
		p.Cmd.Process.Signal(syscall.SIGTERM)
		if _, err := firstRecord(ctx, p, "draining", 0); err != nil {
			return err
		}
		// Nobody listens for the users of a proxy any more; a bridge serves new ones too.
		newcomer, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		l, err := t.connect(newcomer)
		if served := err == nil; served != (v.who == "bridge") {
			b.fail("%s: a new connection was served during the drain: %t; want it of the bridge only", v.who, served)
		}
		if err == nil {
			l.close()
		}
		code, err := p.AwaitEnd(ctx)
		wg.Wait()
		if err != nil {
			return err
		}
		if code != 0 {
			b.fail("%s: exit code %d after the drain; want 0", v.who, code)
		}
		b.note("%s: 5 transfers of 8 MiB whole, exit 0", v.who)
		return nil
	})
}

// F19
func duplicateBridge(ctx context.Context, b *bed) error {
	lasts := by(b, 12*time.Second, time.Minute, 5*time.Minute)
	t, err := b.tunnel(ctx, options{})
	if err != nil {
		return err
	}
	users, err := t.echoUsers(ctx, 10, 20*time.Millisecond)
	if err != nil {
		return err
	}
	pass(ctx, 500*time.Millisecond)
	first, firstState := t.bridge, t.bridgeState
	t.bridgeState += "-second"
	started, refused := 0, 0
	for begin := time.Now(); time.Since(begin) < lasts; started++ { // by itself it tries again after 2, 4, 8, … seconds
		if err := t.startBridge(ctx); err != nil {
			return err
		}
		second := t.bridge
		letIn := func() bool { return len(second.Said("connected to the proxy")) > 0 }
		told := func() bool { return strings.Contains(second.Stderr.String(), "another live bridge holds this key") }
		err := await(ctx, "the second bridge is told that another one lives", func() bool { return letIn() || told() || !second.Running() })
		pass(ctx, 4*time.Second)
		second.Kill()
		switch {
		case letIn():
			b.fail("the second bridge was let in")
		case told():
			refused++
		default:
			b.fail("the second bridge was not told that another one lives, %v: %s", err, second.Stderr.String())
		}
	}
	t.bridge, t.bridgeState = first, firstState
	if n := len(t.proxy.Said("bridge connected")); n != 1 {
		b.fail("the proxy took %d bridges; want 1", n)
	}
	echoes := roundTrips(users)
	b.note("started %d times in %v, refused %d times; the first bridge's connections: echo p99 %s, max %s", started, lasts, refused, seconds(quantile(echoes, .99)), seconds(quantile(echoes, 1)))
	b.undisturbed(t.resumes(ctx))
	b.finishAll(users)
	return b.allEndedWell(ctx, t)
}
