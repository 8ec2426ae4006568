//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"reverser/e2e/attacks"
	"reverser/e2e/netlab"
	"reverser/e2e/process"
	"reverser/internal/grammar"
)

// An attack is what another process of this program does, which is a machine of its own in truth: it has the least priority, so that
// not its work is measured but what it makes others do.
type attack struct {
	Addr      netip.AddrPort
	Strangers int          // a second
	From      []netip.Addr // where they come from
	Says      attacks.Words

	Token        string // a valid key; strangers have authenticated with it at each of their addresses once
	Tables, Idle int    // unfinished tables, and connections that say nothing, with it
	Claims       int    // of one session with it, for ports of Host
	Users        int    // idle, of port firstGreedy of Host
	Host         string
}

// counts are what an attack came to.
type counts struct {
	Strangers, Tables, Idle int64
	Answered, Opened        int // claims
}

// attackEnv holds the attack of such a process.
const attackEnv = "REVERSER_FAULTS_ATTACK"

// attackMain is the main function of such a process. It ends with its standard input, and says what it came to.
func attackMain(text string) int {
	var a attack
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19) // else the figures are worse
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var c counts
	var end []func()
	var token grammar.Token
	if a.Token != "" {
		var err error
		if token, err = grammar.ParseToken(a.Token); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if a.Strangers > 0 {
		for _, from := range a.From {
			if a.Token == "" {
				break
			}
			if err := beKnown(ctx, token, a.Addr, from); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		s := &attacks.Strangers{Addr: a.Addr, Rate: a.Strangers, From: a.From, Says: a.Says}
		s.Start()
		end = append(end, func() { s.Stop(); c.Strangers = s.Came.Load() })
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", a.Addr.String())
	}
	if a.Tables+a.Idle > 0 {
		tables, stopTables := crowd(ctx, a.Tables, 16, func(ctx context.Context, _ int) (net.Conn, error) { return attacks.Unfinished(ctx, token, dial) })
		idle, stopIdle := crowd(ctx, a.Idle, 8, func(ctx context.Context, _ int) (net.Conn, error) { return attacks.Idle(ctx, token, dial) })
		end = append(end, func() { stopTables(); stopIdle(); c.Tables, c.Idle = tables.Load(), idle.Load() })
	}
	if a.Users > 0 {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.From[0], 0))}
		_, stop := crowd(ctx, a.Users, 16, func(ctx context.Context, _ int) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", net.JoinHostPort(a.Host, strconv.Itoa(firstGreedy)))
		})
		end = append(end, stop)
	}
	var greedy *greedyBridge
	if a.Claims > 0 {
		var err error
		if greedy, err = beginGreedy(ctx, token, dial, nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		end = append(end, func() { c.Answered, c.Opened = greedy.answered(); greedy.Close() })
	}
	fmt.Println("attacking")
	if greedy != nil {
		if err := greedy.claim(a.Host, a.Claims); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	io.Copy(io.Discard, os.Stdin)
	cancel()
	for _, f := range end {
		f()
	}
	json.NewEncoder(os.Stdout).Encode(c)
	return 0
}

// beKnown authenticates from an address and leaves.
func beKnown(ctx context.Context, token grammar.Token, proxy netip.AddrPort, from netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := attacks.Idle(ctx, token, func(ctx context.Context) (net.Conn, error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		return d.DialContext(ctx, "tcp", proxy.String())
	})
	if err != nil {
		return fmt.Errorf("authenticate from %s: %w", from, err)
	}
	return c.Close()
}

// attack starts an attack on the tunnel's proxy, from a host. It has a key of its own if name is not empty. stop ends it and returns
// what it came to.
func (t *tunnel) attack(ctx context.Context, h *netlab.Host, name string, a attack) (stop func() counts, err error) {
	a.Addr = netip.MustParseAddrPort(t.link)
	if name != "" {
		if a.Token, err = t.attackersKey(ctx, name); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := process.New("attacker", exe, []string{attackEnv + "=" + string(text)})
	in, err := p.Cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := p.Start(h.Start); err != nil {
		return nil, err
	}
	t.atEnd(p.Kill)
	const ready = "attacking\n"
	err = await(ctx, "the attacker begins", func() bool { return p.Stdout.Len() >= len(ready) || !p.Running() })
	if err == nil && !p.Running() {
		err = fmt.Errorf("the attacker has ended: %s", p.Stderr.String())
	}
	if err != nil {
		return nil, err
	}
	return sync.OnceValue(func() (c counts) {
		in.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := p.AwaitEnd(ctx); err != nil {
			t.fail("%v", err)
			p.Kill()
			return c
		}
		if err := json.Unmarshal(p.Stdout.Bytes()[len(ready):], &c); err != nil {
			t.fail("the attacker wrote %q, %q", p.Stdout.String(), p.Stderr.String())
		}
		return c
	}), nil
}

// attackersKey returns the token of an attacker's key, which it adds the first time.
func (t *tunnel) attackersKey(ctx context.Context, name string) (text string, err error) {
	if t.keys[name] == "" {
		_, t.keys[name], err = t.key(ctx, name)
	}
	return t.keys[name], err
}

// crowd calls f n times, so many at once, until stop is called, which waits for them. Whoever got a connection holds it until then.
func crowd(ctx context.Context, n, atOnce int, f func(ctx context.Context, i int) (net.Conn, error)) (had *atomic.Int64, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	had = new(atomic.Int64)
	var held conns
	var next atomic.Int64
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				one, done := context.WithTimeout(ctx, 10*time.Second)
				if c, err := f(one, i); err == nil {
					had.Add(1)
					held.add(c)
				}
				done()
			}
		})
	}
	return had, func() {
		cancel()
		wg.Wait()
		held.close()
	}
}

// conns are connections that somebody holds.
type conns struct {
	mu  sync.Mutex
	all []net.Conn // guarded by mu
}

func (c *conns) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, conn)
}

func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.all {
		conn.Close()
	}
	c.all = nil
}
