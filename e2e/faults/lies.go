//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"reverser/e2e/attacks"
	"reverser/e2e/process"
	"reverser/internal/wire"
)

// stolen starts a proxy that has identity and keys of the tunnel's own, and lies.
func (t *tunnel) stolen(p *attacks.Proxy) (addr string, err error) {
	dir := filepath.Join(t.dir, fmt.Sprintf("stolen-%d", t.starts.Add(1)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	for _, file := range []string{"identity.pem", "keys.json"} {
		text, err := os.ReadFile(filepath.Join(t.proxyState, file))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			return "", err
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.98:0")
	if err != nil {
		return "", err
	}
	if err := p.Steal(dir, ln); err != nil {
		ln.Close()
		return "", err
	}
	t.atEnd(p.Close)
	return ln.Addr().String(), nil
}

// traps listen on hosts that a bridge has no business with, and count who comes.
func (b *bed) traps(n int) (addrs []string, came *atomic.Int64, err error) {
	came = new(atomic.Int64)
	for i := range n {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.1.%d:0", i+1))
		if err != nil {
			return nil, nil, err
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				came.Add(1)
				c.Close()
			}
		}()
		b.atEnd(func() { ln.Close(); <-done })
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs, came, nil
}

// N6
func falseProxy(ctx context.Context, b *bed) error {
	answers := by(b, 4000, 4000, 100_000)
	traps, came, err := b.traps(8)
	if err != nil {
		return err
	}
	var lies atomic.Bool
	var told atomic.Int64
	liar := &attacks.Proxy{Handle: func(_ int, f wire.Frame, answer func([]byte) error) {
		if f.Type != wire.TypeClaim {
			return
		}
		id := uint32(f.Offset)
		for i := 0; lies.Load() && i < answers; i++ {
			c := wire.Claimed{Status: wire.ClaimUp, Nonce: [16]byte{1, byte(i), byte(i >> 8)}, Public: "tcp/" + traps[i%len(traps)]}
			if answer(wire.AppendClaimed(nil, id, c)) != nil {
				return
			}
			told.Add(1)
		}
	}}
	var at string
	n, err := b.neighbour(ctx, options{between: func(t *tunnel) (err error) {
		if at, err = t.stolen(liar); err != nil {
			return err
		}
		t.opts.bridgeOnly = []string{"--proxy", at}
		lies.Store(true)
		return nil
	}})
	if err != nil {
		return err
	}
	pid := n.bridge.Cmd.Process.Pid
	before, most := usageOf(pid).fds, 0
	if err := await(ctx, "the false proxy has said its lies", func() bool {
		most = max(most, usageOf(pid).fds)
		return told.Load() >= int64(answers)
	}); err != nil {
		return err
	}
	pass(ctx, by(b, 3*time.Second, 10*time.Second, time.Minute))
	most = max(most, usageOf(pid).fds)
	n.note("%d lies about one service", told.Load())
	if got := came.Load(); got > 0 {
		n.fail("the bridge connected %d times to hosts that the proxy named", got)
	}
	n.note("the bridge's descriptors: %d, %d meanwhile", before, most)
	if most > before+64 {
		n.fail("the bridge had %d descriptors, %d before", most, before)
	}
	if err := n.newcomer(ctx, "beside it", time.Second); err != nil {
		return err
	}
	if err := n.cut(ctx, "beside it", time.Second); err != nil {
		return err
	}
	return n.finish(ctx)
}

// evil is a text that would take over a terminal or forge a line of a log.
const evil = "evil \x1b[31m\x1b]52;c;ZXZpbA==\x07 \x1b[2J\r\nINF forged key=value \u009b31m\u202e\x7f"

// ownColours are the sequences that the log itself writes to a terminal. evil has another one.
var ownColours = regexp.MustCompile("\x1b\\[(0|1|2|22|9[0-7])m")

// harmless says what in a text a terminal would obey, or who reads a log would be deceived by.
func (r *result) harmless(what, text string) (spoke bool) {
	if !utf8.ValidString(text) {
		r.fail("%s is no UTF-8", what)
	}
	for line := range strings.Lines(text) {
		rest := ownColours.ReplaceAllString(strings.TrimRight(line, "\r\n"), "")
		if i := strings.IndexFunc(rest, func(c rune) bool { return !unicode.IsPrint(c) && c != '\t' }); i >= 0 {
			r.fail("%s has a character that is obeyed, not printed, at %d of %.300q", what, i, rest)
		}
		if strings.HasPrefix(rest, "INF forged") {
			r.fail("%s has a forged line: %.300q", what, line)
		}
	}
	return strings.Contains(text, "evil")
}

// terminal is a pseudo-terminal, with what a program wrote there.
type terminal struct {
	slave *os.File
	wrote process.Output
	done  chan struct{}
}

// terminal opens one. It lasts until the end of the scenario.
func (b *bed) terminal() (*terminal, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t := &terminal{done: make(chan struct{})}
	n := 0
	raw, err := master.SyscallConn()
	if err == nil {
		ctl := raw.Control(func(fd uintptr) {
			if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
				n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
			}
		})
		if ctl != nil {
			err = ctl
		}
	}
	if err == nil {
		t.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, err
	}
	go func() {
		defer close(t.done)
		buf := make([]byte, 4096)
		for {
			m, err := master.Read(buf)
			t.wrote.Write(buf[:m])
			if err != nil { // EIO, when nobody has the other end any more
				return
			}
		}
	}()
	b.atEnd(func() { t.slave.Close(); master.Close(); <-t.done })
	return t, nil
}

// onTerminal starts a program whose log and output go to a terminal.
func (b *bed) onTerminal(name string, env []string, args ...string) (*terminal, *process.Process, error) {
	t, err := b.terminal()
	if err != nil {
		return nil, nil, err
	}
	p := process.New(name, b.bin, env, args...)
	p.Cmd.Stdout, p.Cmd.Stderr = t.slave, t.slave
	if err := p.Start(nil); err != nil {
		return nil, nil, err
	}
	b.atEnd(p.Kill)
	return t, p, nil
}

// statusOnTerminal is what `reverser status` shows to somebody at a terminal.
func (b *bed) statusOnTerminal(ctx context.Context, state string) (string, error) {
	t, p, err := b.onTerminal("status", nil, "status", "--state", state)
	if err != nil {
		return "", err
	}
	if _, err := p.AwaitEnd(ctx); err != nil {
		return "", err
	}
	err = await(ctx, "the status is shown", func() bool { return t.wrote.Len() > 0 })
	return t.wrote.String(), err
}

// N7
func escapeSequences(ctx context.Context, b *bed) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	link := ports[0]
	t := &tunnel{bed: b, link: link, proxyState: filepath.Join(b.dir, "proxy"), bridgeState: filepath.Join(b.dir, "bridge")}
	token, text, err := t.key(ctx, "talker")
	if err != nil {
		return err
	}
	proxy, _, err := b.onTerminal("proxy", nil, "proxy", "--listen", link, "--state", t.proxyState, "--log-level", "debug")
	if err != nil {
		return err
	}
	if err := await(ctx, "the proxy listens", func() bool { return strings.Contains(proxy.wrote.String(), "proxy listening") }); err != nil {
		return err
	}

	// What strangers say.
	_ = attacks.Shout(link, "", evil, "http/1.1") // they are refused
	_ = attacks.Shout(link, evil, "reverser/1")
	for _, s := range []string{"GET /" + evil + " HTTP/1.1\r\nHost: " + evil + "\r\n\r\n", evil, "\x16\x03\x01\x00\x50" + strings.Repeat(evil, 4)} {
		c, err := net.Dial("tcp", link)
		if err != nil {
			return err
		}
		c.Write([]byte(s))
		c.SetReadDeadline(time.Now().Add(time.Second))
		c.Read(make([]byte, 100))
		c.Close()
	}

	// What a bridge says.
	bridge, err := attacks.Begin(ctx, token, evil, t.dialFrom(netip.Addr{}), func(int, wire.Frame) {})
	if err != nil {
		return err
	}
	var frames []byte
	frames = wire.AppendClaim(frames, 1, wire.Claim{Public: "tcp/" + ports[1], Target: evil})
	frames = wire.AppendClaim(frames, 2, wire.Claim{Public: evil, Target: evil})
	frames = wire.AppendClaim(frames, 3, wire.Claim{Public: "tcp/1025", Target: evil, Group: evil})
	if err := bridge.Send(0, wire.AppendRound(frames)); err != nil {
		return err
	}
	if err := await(ctx, "the proxy speaks of the claims", func() bool { return strings.Contains(proxy.wrote.String(), "service up") }); err != nil {
		return err
	}
	shown, err := b.statusOnTerminal(ctx, t.proxyState)
	if err != nil {
		return err
	}
	if !b.harmless("the proxy's status", shown) {
		b.fail("the proxy's status does not show what the bridge said: %q", shown)
	}
	_ = bridge.Send(0, wire.AppendGoAway(nil, wire.GoAway{DrainMillis: 1000, Text: evil}))
	_ = bridge.Send(0, wire.AppendErr(nil, wire.Err{Code: wire.ErrFormat, Text: evil}))
	if err := await(ctx, "the proxy says why the bridge went", func() bool {
		return strings.Contains(proxy.wrote.String(), "bridge lost") || strings.Contains(proxy.wrote.String(), "session ended")
	}); err != nil {
		return err
	}
	bridge.Close()

	// What a proxy says: it refuses, then lets the bridge in, answers its claims, and goes.
	var attaches atomic.Int64
	var told atomic.Bool
	liar := &attacks.Proxy{
		Attached: func(a wire.Attach) wire.Attached {
			if a.Slot == 0 && attaches.Add(1) == 1 {
				return wire.Attached{Status: wire.StatusLimit, Slot: a.Slot, Text: evil}
			}
			return wire.Attached{Status: wire.StatusOK, Slot: a.Slot, Carriers: 4, Window: 1 << 16, MaxStreams: 4096}
		},
		Handle: func(_ int, f wire.Frame, answer func([]byte) error) {
			if f.Type != wire.TypeClaim {
				return
			}
			id := uint32(f.Offset)
			all := wire.AppendClaimed(nil, id, wire.Claimed{Status: wire.ClaimDenied, Text: evil})
			all = wire.AppendClaimed(all, id, wire.Claimed{Status: wire.ClaimRetrying, Text: evil})
			_ = answer(all)
			told.Store(true)
		},
	}
	at, err := t.stolen(liar)
	if err != nil {
		return err
	}
	own, _, err := b.onTerminal("bridge", []string{"REVERSER_TOKEN=" + text}, "bridge", "9000=127.0.0.1:1", "--proxy", at,
		"--state", t.bridgeState, "--log-level", "debug")
	if err != nil {
		return err
	}
	if err := await(ctx, "the bridge was told lies and speaks of them", func() bool { return told.Load() && strings.Count(own.wrote.String(), "evil") >= 2 }); err != nil {
		return fmt.Errorf("%w; it said %.2000q", err, own.wrote.String())
	}
	if shown, err = b.statusOnTerminal(ctx, t.bridgeState); err != nil {
		return err
	}
	if !b.harmless("the bridge's status", shown) {
		b.fail("the bridge's status does not show what the proxy said: %q", shown)
	}
	for what, text := range map[string]string{"the proxy's log": proxy.wrote.String(), "the bridge's log": own.wrote.String()} {
		if !b.harmless(what, text) {
			b.fail("%s does not show what was said: %.3000q", what, text)
		}
		b.note("%s: %d lines, all harmless", what, strings.Count(text, "\n"))
	}
	return nil
}
