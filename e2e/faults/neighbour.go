//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"time"

	"reverser/e2e/attacks"
	"reverser/e2e/faultnet"
	"reverser/e2e/netlab"
	"reverser/e2e/process"
	"reverser/internal/grammar"
)

// A neighbour is a tunnel whose users work while somebody else attacks: echoes, and bytes both ways, all of them checked.
type neighbour struct {
	*tunnel
	users    []*echoUser
	up, down *flow
	wg       sync.WaitGroup
	transfer error         // what was wrong with the bytes; guarded by wg
	rtt      time.Duration // between bridge and proxy
	other    *tunnel       // that the attacks are made on to compare; nil: none yet
}

// neighbour starts a tunnel, through a relay that can cut its link, and its users.
func (b *bed) neighbour(ctx context.Context, o options) (_ *neighbour, err error) {
	o.relay = true
	t, err := b.tunnel(ctx, o)
	if err != nil {
		return nil, err
	}
	n := &neighbour{tunnel: t, up: newFlow(-1), down: newFlow(-1)}
	n.up.rate, n.down.rate = 200e3, 1e6
	l, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	n.wg.Go(func() { n.transfer = l.duplex(n.up, n.down) })
	n.users, err = t.echoUsers(ctx, 10, 10*time.Millisecond)
	return n, err
}

// delay makes the way between bridge and proxy so long, in each direction, and has the bridge connect over it: TCP takes a round trip for
// what it was at first for many seconds, in which it sends next to nothing.
func (n *neighbour) delay(ctx context.Context, d time.Duration) error {
	n.rtt = 2 * d
	if err := n.lab.SetDelay(d); err != nil {
		return err
	}
	n.relay.Cut()
	_, err := stalls(ctx, n.users, time.Now().Add(n.rtt))
	return err
}

// finish ends the users. None of them may have lost a byte or their connection.
func (n *neighbour) finish(ctx context.Context) error {
	close(n.up.stop)
	close(n.down.stop)
	n.wg.Wait()
	n.failIf(n.transfer, "the neighbour's transfer")
	n.finishAll(n.users)
	_, port, _ := net.SplitHostPort(n.public)
	for _, state := range []string{n.proxyState, n.bridgeState} {
		left := func(p pair) bool { return p.Service == "tcp/"+port }
		if err := await(ctx, "the neighbour's pairs are released", func() bool { return n.pairs(ctx, state, left) == 0 }); err != nil {
			return err
		}
	}
	for _, p := range []*process.Process{n.proxy, n.bridge} {
		probes := 0
		for _, r := range p.Records("pair released", "service", "tcp/"+port) {
			switch reason := r.Text("reason"); {
			case reason == "eof":
			case r.Number("sent") == probeLen: // for a proxy that is not the one at the port: nobody's connection
				probes++
			default:
				n.fail("%s: a pair of the neighbour ended as %s", p.Name, reason)
			}
		}
		if probes > 0 {
			n.note("%s: %d connections were a bridge's own probe of its port", p.Name, probes)
		}
	}
	return nil
}

// probeLen is how many bytes a bridge's probe of its public port sends.
const probeLen = 16

// A pair is one line of `reverser status --json`.
// pairs counts those of a process that which chooses; -1: it does not answer.
func (b *bed) pairs(ctx context.Context, state string, which func(pair) bool) (count int) {
	s, err := b.statusOf(ctx, state)
	if err != nil {
		return -1
	}
	for _, p := range s.Pairs {
		if which(p) {
			count++
		}
	}
	return count
}

// between is how long the answers took that came in the meantime.
func (n *neighbour) between(from, to time.Time) (all []time.Duration) {
	for _, u := range n.users {
		for _, s := range u.all() {
			if s.at.After(from) && s.at.Before(to) {
				all = append(all, s.took)
			}
		}
	}
	return all
}

// onslaught is an attack as [neighbour.beside] needs it.
type onslaught struct {
	what  string
	begin func(*tunnel) (stop func(), err error) // on a tunnel's proxy
	// elsewhere says that the attack is also made on the proxy of another tunnel, which the neighbour does not use.
	elsewhere bool
	look      time.Duration // at least so long is each look; over a distance there are few echoes
	under     func() error  // called while the attack goes on for the last time
}

// beside runs an attack in turns with rest and compares what the users saw.
//
// The attacker, both proxies, the bridge and the users share this machine, and in truth do not. So the users are looked at a third time,
// while the same attack is made on another proxy: what they notice then is the machine's doing. What they notice beyond is the proxy's.
func (n *neighbour) beside(ctx context.Context, o onslaught) error {
	rounds, each := by(n.bed, 2, 2, 5), by(n.bed, 700*time.Millisecond, 1500*time.Millisecond, 5*time.Second)
	each = max(each, o.look)
	if o.elsewhere && n.other == nil {
		other, err := n.bed.tunnel(ctx, options{files: n.opts.files})
		if err != nil {
			return fmt.Errorf("another proxy: %w", err)
		}
		n.other = other
	}
	stop := func() {}
	defer func() { stop() }()
	look := func(at *tunnel, seen *[]time.Duration) (err error) {
		stop()
		stop = func() {}
		begin := time.Now()
		if at != nil {
			if stop, err = o.begin(at); err != nil {
				stop = func() {}
				return err
			}
			begin = time.Now()
		}
		if !pass(ctx, each) {
			return context.Cause(ctx)
		}
		answers := n.between(begin, time.Now())
		// A busy machine may need longer until there is something to compare.
		for late := begin.Add(each + patience); len(answers) < len(n.users) && time.Now().Before(late); answers = n.between(begin, time.Now()) {
			if !pass(ctx, each) {
				return context.Cause(ctx)
			}
		}
		*seen = append(*seen, answers...)
		return nil
	}
	var rest, elsewhere, attacked []time.Duration
	for range rounds {
		if err := look(nil, &rest); err != nil {
			return err
		}
		if o.elsewhere {
			if err := look(n.other, &elsewhere); err != nil {
				return err
			}
		}
		if err := look(n.tunnel, &attacked); err != nil {
			return err
		}
	}
	if len(rest) == 0 || len(attacked) == 0 || o.elsewhere && len(elsewhere) == 0 {
		return fmt.Errorf("%s: %d answers without it, %d with it on another proxy, %d with it", o.what, len(rest), len(elsewhere), len(attacked))
	}
	alone, beside := quantile(rest, .99), quantile(attacked, .99)
	without := "without it " + seconds(alone)
	if o.elsewhere {
		machine := quantile(elsewhere, .99)
		without += ", with it on another proxy of this machine " + seconds(machine)
		alone = max(alone, machine)
	}
	n.note("%s: echo p99 %s, %s", o.what, seconds(beside), without)
	switch {
	case beside > 10*alone+2*time.Second: // beyond what a busy machine does
		n.fail("%s: echo p99 %s, %s; promised is twice that", o.what, seconds(beside), without)
	case beside > 2*alone:
		n.miss("%s: echo p99 %s, %s; promised is twice that", o.what, seconds(beside), without)
	}
	return o.under()
}

// cut resets the neighbour's link. All users have an answer again within the time that is promised.
func (n *neighbour) cut(ctx context.Context, what string, promised time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, promised+patience, fmt.Errorf("%s: the neighbour's link did not come back in %v", what, promised+patience))
	defer cancel()
	n.relay.Cut()
	cut := time.Now()
	// Answers that were on their way to the users arrive in the first round trip.
	all, err := stalls(ctx, n.users, cut.Add(n.rtt))
	if err != nil {
		return context.Cause(ctx)
	}
	n.within(what+": back after a cut in", n.rtt+quantile(all, 1), promised)
	return nil
}

// newcomer is a new user who is served within the time that is promised.
func (n *neighbour) newcomer(ctx context.Context, what string, promised time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, promised+patience)
	defer cancel()
	begin := time.Now()
	l, err := n.connect(ctx)
	if err != nil {
		return fmt.Errorf("%s: a new user of the neighbour: %w", what, err)
	}
	n.within(what+": a new user is served in", time.Since(begin), promised)
	n.failIf(l.duplex(newFlow(1000), newFlow(1000)), what+": a new user of the neighbour")
	return nil
}

// operator asks the proxy for its status, adds and removes a key, and has it reload, each within a second.
func (t *tunnel) operator(ctx context.Context, what string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second+patience)
	defer cancel()
	for {
		worst, figures, err := t.orders(ctx)
		switch {
		case err == nil:
			t.within(what+": the operator's status, key add, key remove, reload in "+strings.Join(figures, ", ")+", at most", worst, time.Second)
			return nil
		case worst < gaveUp || ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, err)
		}
		t.within(what+": an operator's order that the program gave up after", worst, time.Second)
	}
}

// gaveUp is after how long the program gives up an order that is not answered. On a busy machine that may be less than patience.
const gaveUp = 10 * time.Second

// orders are those of an operator, one after the other. It returns how long each took, and the longest of them.
func (t *tunnel) orders(ctx context.Context) (worst time.Duration, figures []string, err error) {
	name := fmt.Sprintf("operator-%d", t.starts.Add(1))
	for _, order := range []string{"status --json", "key add " + name + " --allow tcp/1024-65535", "key remove " + name, "reload"} {
		begin := time.Now()
		cmd := exec.CommandContext(ctx, t.bin, append(strings.Fields(order), "--state", t.proxyState)...)
		cmd.Env = process.Environ()
		out, err := cmd.CombinedOutput()
		took := time.Since(begin)
		worst = max(worst, took)
		if err != nil {
			return worst, nil, fmt.Errorf("the operator's %q: %w: %.300s", order, err, out)
		}
		figures = append(figures, seconds(took))
	}
	return worst, figures, nil
}

// key adds a key for somebody else.
func (t *tunnel) key(ctx context.Context, name string, flags ...string) (grammar.Token, string, error) {
	args := append([]string{"key", "add", name, "--allow", "tcp/1024-65535", "--state", t.proxyState}, flags...)
	cmd := exec.CommandContext(ctx, t.bin, args...)
	cmd.Env = process.Environ()
	out, err := cmd.Output()
	if err != nil {
		return grammar.Token{}, "", fmt.Errorf("key add: %w", err)
	}
	text := strings.TrimSpace(string(out))
	token, err := grammar.ParseToken(text)
	return token, text, err
}

// dialFrom connects to the proxy's link port from an address of the proxy's own host; the zero one: any.
func (t *tunnel) dialFrom(from netip.Addr) attacks.Dial { return t.dialAt(t.pub, from) }

// dialAt is dialFrom on a host.
func (t *tunnel) dialAt(at *netlab.Host, from netip.Addr) attacks.Dial {
	return func(ctx context.Context) (conn net.Conn, err error) {
		d := net.Dialer{KeepAlive: -1}
		if from.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
		err = at.Do(func() error {
			conn, err = d.DialContext(ctx, "tcp", t.link)
			return err
		})
		return conn, err
	}
}

// newBridge starts a bridge with a key of its own at an address from which none came before, and waits until its service is up. Where the
// neighbour's bridge is far away, it is beside that one.
func (n *neighbour) newBridge(ctx context.Context, what string, from netip.Addr, promised time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, promised+patience, fmt.Errorf("%s: a bridge that is new to the proxy was not let in in %v", what, promised+patience))
	defer cancel()
	name := fmt.Sprintf("new-%d", n.starts.Add(1))
	_, token, err := n.key(ctx, name)
	if err != nil {
		return err
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	at := n.pub
	if n.lab != nil {
		at = n.lan
	}
	ln, err := at.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	dial := n.dialAt(at, from)
	relay := faultnet.Start(ln, func() (*net.TCPConn, error) {
		c, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}, nil)
	n.atEnd(relay.Close)
	begin := time.Now()
	p, err := n.start(at, name, n.bin, []string{"REVERSER_TOKEN=" + token}, "bridge", "tcp/"+ports[0]+"="+n.target.Addr().String(),
		"--proxy", relay.Addr(), "--state", n.bridgeState+"-"+name, "--log-format", "json")
	if err != nil {
		return err
	}
	if err := await(ctx, "the new bridge's service is up", func() bool { return len(p.Said("service up")) > 0 || !p.Running() }); err != nil {
		return fmt.Errorf("%w: %w", err, context.Cause(ctx))
	}
	n.within(what+": a bridge that is new to the proxy serves in", time.Since(begin), promised)
	p.Kill()
	return nil
}
