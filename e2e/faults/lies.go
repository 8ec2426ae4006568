//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"reverser/e2e/attacks"
	"reverser/e2e/process"
	"reverser/internal/grammar"
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

// A liar is a false proxy that answers the claims of one bridge again and again, each time with another host.
type liar struct {
	attacks.Proxy
	traps []string
	told  atomic.Int64

	mu     sync.Mutex
	victim func(frames []byte) error // answers the last claim; guarded by mu
	claim  uint32                    // guarded by mu
}

func newLiar(traps []string) *liar {
	l := &liar{traps: traps}
	l.Handle = func(_ int, f wire.Frame, answer func([]byte) error) {
		if f.Type == wire.TypeClaim {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.victim, l.claim = answer, uint32(f.Offset)
		}
	}
	return l
}

// lieRate is how many answers a liar gives in each period.
const (
	lieRate   = 1000
	liePeriod = 50 * time.Millisecond
)

// begin lies until stop is called.
func (l *liar) begin(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pass(ctx, liePeriod) {
			l.mu.Lock()
			answer, id := l.victim, l.claim
			l.mu.Unlock()
			if answer == nil {
				continue
			}
			var frames []byte
			for i := range lieRate {
				c := wire.Claimed{Status: wire.ClaimUp, Nonce: [16]byte{1, byte(i), byte(i >> 8)}, Public: "tcp/" + l.traps[i%len(l.traps)]}
				frames = wire.AppendClaimed(frames, id, c)
			}
			if answer(frames) == nil {
				l.told.Add(lieRate)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// N6
func falseProxy(ctx context.Context, b *bed) error {
	answers := by(b, int64(4000), 4000, 100_000)
	traps, came, err := b.traps(8)
	if err != nil {
		return err
	}
	liars := make(map[*tunnel]*liar)
	// lied is the options of a tunnel whose bridge has a second proxy, which lies when it is told to.
	lied := func() options {
		return options{between: func(t *tunnel) error {
			l := newLiar(traps)
			at, err := t.stolen(&l.Proxy)
			t.opts.bridgeOnly = []string{"--proxy", at}
			liars[t] = l
			return err
		}}
	}
	n, err := b.neighbour(ctx, lied())
	if err != nil {
		return err
	}
	if n.other, err = b.tunnel(ctx, lied()); err != nil {
		return err
	}
	l := liars[n.tunnel]
	pid := n.bridge.Cmd.Process.Pid
	before, most := usageOf(pid).fds, 0
	what := fmt.Sprintf("%d false answers a second", lieRate*int(time.Second/liePeriod))
	err = n.beside(ctx, onslaught{what: what, elsewhere: true, begin: func(t *tunnel) (func(), error) {
		return liars[t].begin(ctx), nil
	}, under: func() error {
		if err := await(ctx, "the false proxy has said its lies", func() bool {
			most = max(most, usageOf(pid).fds)
			return l.told.Load() >= answers
		}); err != nil {
			return err
		}
		if err := n.operator(ctx, "beside it"); err != nil {
			return err
		}
		if err := n.newcomer(ctx, "beside it", time.Second); err != nil {
			return err
		}
		if err := n.newBridge(ctx, "beside it", netip.AddrFrom4([4]byte{127, 8, 4, 9}), 5*time.Second); err != nil {
			return err
		}
		return n.cut(ctx, "beside it", time.Second)
	}})
	if err != nil {
		return err
	}
	pass(ctx, by(b, time.Second, 10*time.Second, time.Minute)) // a dial that was put off would come
	most = max(most, usageOf(pid).fds)
	n.note("%d lies about one service", l.told.Load())
	if got := came.Load(); got > 0 {
		n.fail("bridges connected %d times to hosts that the proxy named", got)
	}
	n.note("the bridge's descriptors: %d, %d meanwhile", before, most)
	if most > before+64 {
		n.fail("the bridge had %d descriptors, %d before", most, before)
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
	master, slave, err := process.Terminal()
	if err != nil {
		return nil, err
	}
	t := &terminal{slave: slave, done: make(chan struct{})}
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
	t.slave.Close() // nobody else has it: all that was written is read, and then the reader ends
	select {
	case <-t.done:
		return t.wrote.String(), nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// shouts are what strangers may say at a link port.
var shouts = []func(ctx context.Context, link string) error{
	func(ctx context.Context, link string) error { return attacks.Shout(ctx, link, "", evil, "http/1.1") },
	func(ctx context.Context, link string) error { return attacks.Shout(ctx, link, evil, "reverser/1") },
	write("GET /" + evil + " HTTP/1.1\r\nHost: " + evil + "\r\n\r\n"),
	write(evil),
	write("\x16\x03\x01\x00\x50" + strings.Repeat(evil, 4)),
}

// write is a stranger who writes what is no TLS, and waits for an answer.
func write(text string) func(ctx context.Context, link string) error {
	return func(ctx context.Context, link string) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", link)
		if err != nil {
			return err
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, c)
		return err
	}
}

// A talker is a bridge that says evil texts.
type talker struct {
	*attacks.Bridge
	answers atomic.Int64 // to its claims
}

// talk begins a session with evil texts in every place, and returns when its claims are answered.
func (t *tunnel) talk(ctx context.Context, token grammar.Token, port string) (*talker, error) {
	k := new(talker)
	var err error
	k.Bridge, err = attacks.Begin(ctx, token, evil, t.dialFrom(netip.Addr{}), func(_ int, f wire.Frame) {
		if f.Type == wire.TypeClaimed {
			k.answers.Add(1)
		}
	})
	if err != nil {
		return nil, err
	}
	var frames []byte
	frames = wire.AppendClaim(frames, 1, wire.Claim{Public: "tcp/" + port, Target: evil})
	frames = wire.AppendClaim(frames, 2, wire.Claim{Public: evil, Target: evil})
	frames = wire.AppendClaim(frames, 3, wire.Claim{Public: "tcp/1025", Target: evil, Group: evil})
	if err = k.Send(0, wire.AppendRound(frames)); err == nil {
		err = await(ctx, "the proxy answers the claims", func() bool { return k.answers.Load() >= 3 })
	}
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// leave says evil last words.
func (k *talker) leave() {
	_ = k.Send(0, wire.AppendGoAway(nil, wire.GoAway{DrainMillis: 1000, Text: evil}))
	_ = k.Send(0, wire.AppendErr(nil, wire.Err{Code: wire.ErrFormat, Text: evil}))
}

// N7
func escapeSequences(ctx context.Context, b *bed) error {
	n, err := b.neighbour(ctx, options{terminal: true, proxyOnly: []string{"--log-level", "debug"}})
	if err != nil {
		return err
	}
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	token, text, err := n.key(ctx, "talker")
	if err != nil {
		return err
	}
	var strangers, bridges atomic.Int64
	err = n.beside(ctx, onslaught{what: "strangers and a bridge with evil texts", elsewhere: true, begin: func(t *tunnel) (func(), error) {
		text, err := t.attackersKey(ctx, "shouter")
		if err != nil {
			return nil, err
		}
		other, err := grammar.ParseToken(text)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for _, shout := range shouts {
			wg.Go(func() {
				for pass(ctx, 10*time.Millisecond) {
					one, done := context.WithTimeout(ctx, 100*time.Millisecond)
					_ = shout(one, t.link) // most are refused
					done()
					if t == n.tunnel {
						strangers.Add(1)
					}
				}
			})
		}
		wg.Go(func() {
			for pass(ctx, 10*time.Millisecond) {
				k, err := t.talk(ctx, other, ports[1])
				if err != nil { // the session before is not over yet
					continue
				}
				k.leave()
				k.Close()
				if t == n.tunnel {
					bridges.Add(1)
				}
			}
		})
		return func() { cancel(); wg.Wait() }, nil
	}, under: func() error {
		if err := n.lastWords(ctx, token, ports[0]); err != nil {
			return err
		}
		if err := n.operator(ctx, "beside them"); err != nil {
			return err
		}
		if err := n.newcomer(ctx, "beside them", time.Second); err != nil {
			return err
		}
		if err := n.newBridge(ctx, "beside them", netip.AddrFrom4([4]byte{127, 8, 5, 9}), 5*time.Second); err != nil {
			return err
		}
		return n.cut(ctx, "beside them", time.Second)
	}})
	if err != nil {
		return err
	}
	n.note("strangers spoke %d times, and a bridge in %d sessions", strangers.Load(), bridges.Load())
	if bridges.Load() == 0 {
		n.fail("no bridge said its evil texts beside the neighbour")
	}
	own, err := n.lies(ctx, text)
	if err != nil {
		return err
	}
	for what, text := range map[string]string{"the proxy's log": n.terminal.wrote.String(), "the bridge's log": own} {
		if !b.harmless(what, text) {
			b.fail("%s does not show what was said: %.3000q", what, text)
		}
		b.note("%s: %d lines, all harmless", what, strings.Count(text, "\n"))
	}
	return n.finish(ctx)
}

// lastWords has a bridge say evil texts, looks at the status meanwhile, and waits until the proxy says that it is gone.
func (t *tunnel) lastWords(ctx context.Context, token grammar.Token, port string) error {
	k, err := t.talk(ctx, token, port)
	if err != nil {
		return err
	}
	defer k.Close()
	shown, err := t.statusOnTerminal(ctx, t.proxyState)
	if err != nil {
		return err
	}
	if !t.harmless("the proxy's status", shown) || !strings.Contains(shown, "talker") {
		t.fail("the proxy's status does not show what the bridge said: %q", shown)
	}
	k.leave()
	return await(ctx, "the proxy says why the bridge went", func() bool {
		for line := range strings.Lines(t.terminal.wrote.String()) {
			if strings.Contains(line, "talker") && (strings.Contains(line, "bridge lost") || strings.Contains(line, "session ended")) {
				return true
			}
		}
		return false
	})
}

// lies starts a bridge whose proxy refuses it, then lets it in, answers its claims, goes, and at the end gives the connection up, each with
// evil texts. It returns what the bridge wrote to its terminal.
func (t *tunnel) lies(ctx context.Context, token string) (wrote string, err error) {
	var sessions atomic.Int64
	var refused, left, gaveUp atomic.Bool
	liar := &attacks.Proxy{
		Attached: func(a wire.Attach) wire.Attached {
			switch {
			case a.Slot != 0:
			case !refused.Swap(true):
				return wire.Attached{Status: wire.StatusLimit, Slot: a.Slot, Text: evil}
			default:
				sessions.Add(1)
			}
			return wire.Attached{Status: wire.StatusOK, Slot: a.Slot, Carriers: 4, Window: 1 << 16, MaxStreams: 4096}
		},
		Handle: func(_ int, f wire.Frame, answer func([]byte) error) {
			if f.Type != wire.TypeClaim {
				return
			}
			id := uint32(f.Offset)
			all := wire.AppendClaimed(nil, id, wire.Claimed{Status: wire.ClaimDenied, Text: evil})
			all = wire.AppendClaimed(all, id, wire.Claimed{Status: wire.ClaimUp, Public: evil})
			all = wire.AppendClaimed(all, id, wire.Claimed{Status: wire.ClaimRetrying, Public: evil, Text: evil})
			switch sessions.Load() {
			case 1: // the bridge begins another session
				all = wire.AppendGoAway(all, wire.GoAway{DrainMillis: 60_000, Text: evil})
				left.Store(true)
			case 2:
				all = wire.AppendErr(all, wire.Err{Code: wire.ErrFormat, Text: evil})
				gaveUp.Store(true)
			}
			_ = answer(all)
		},
	}
	at, err := t.stolen(liar)
	if err != nil {
		return "", err
	}
	state := t.bridgeState + "-lied"
	own, _, err := t.onTerminal("bridge", []string{"REVERSER_TOKEN=" + token}, "bridge", "9000=127.0.0.1:1", "--proxy", at,
		"--state", state, "--log-level", "debug")
	if err != nil {
		return "", err
	}
	// Behind the ERR it comes back, and says then what it was told.
	err = await(ctx, "the bridge was told lies, and comes back", func() bool {
		return left.Load() && gaveUp.Load() && sessions.Load() >= 3 && strings.Count(own.wrote.String(), "evil") >= 4
	})
	if err != nil {
		return "", fmt.Errorf("%w; %d sessions; it said %.4000q", err, sessions.Load(), own.wrote.String())
	}
	var shown string
	err = await(ctx, "the status shows what the proxy says", func() bool {
		if shown, err = t.statusOnTerminal(ctx, state); err != nil {
			return true
		}
		return t.harmless("the bridge's status", shown)
	})
	if err != nil {
		return "", fmt.Errorf("%w; the bridge's status is %q", err, shown)
	}
	return own.wrote.String(), nil
}
