//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"reverser/e2e/faultnet"
	"reverser/e2e/netlab"
	"reverser/e2e/process"
	"reverser/internal/freeport"
)

// A size says how much of a scenario is run.
type size int

// Sizes.
const (
	ci     size = iota // a few seconds each
	normal             // about a quarter of an hour in all
	full               // what is promised, to the letter: hours
)

func (s size) String() string { return [...]string{"CI", "normal", "full"}[s] }

// by chooses among the values for the three sizes.
func by[T any](b *bed, ofCI, ofNormal, ofFull T) T { return [...]T{ofCI, ofNormal, ofFull}[b.size] }

// A bed is where one scenario runs. What it starts ends with close.
type bed struct {
	result
	size   size
	race   bool   // this process has the race detector in it, and is slow
	bin    string // the built program
	dir    string
	soak   time.Duration // how long L9 takes; 0: as the size says
	starts atomic.Int64

	closersMu sync.Mutex
	closers   []func() // guarded by closersMu
}

// atEnd has f called at the end of the scenario, the last one first.
func (b *bed) atEnd(f func()) {
	b.closersMu.Lock()
	defer b.closersMu.Unlock()
	b.closers = append(b.closers, f)
}

func (b *bed) close() {
	b.closersMu.Lock()
	closers := b.closers
	b.closers = nil
	b.closersMu.Unlock()
	for i := len(closers) - 1; i >= 0; i-- {
		closers[i]()
	}
}

// await waits until cond holds. It asks often: how long things take is what is measured here.
func await(ctx context.Context, what string, cond func() bool) error {
	for pause := time.Millisecond; !cond(); pause = min(pause*3/2, 20*time.Millisecond) {
		if !pass(ctx, pause) {
			return fmt.Errorf("gave up waiting for: %s", what)
		}
	}
	return nil
}

// pass lets time pass, which scenarios are about; false means that ctx ended.
func pass(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// start starts a program on a host.
func (b *bed) start(h *netlab.Host, name, path string, env []string, args ...string) (*process.Process, error) {
	p := process.New(name, path, env, args...)
	if err := p.Start(h.Start); err != nil {
		return nil, err
	}
	b.atEnd(func() {
		p.Kill()
		text := p.Stderr.String()
		for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
			if i := strings.Index(text, bad); i >= 0 {
				b.fail("%s wrote: %.3000s", name, text[i:])
			}
		}
		b.keepLog(name, text)
	})
	return p, nil
}

// A tunnel is a running proxy and bridge, and the LAN service behind it.
type tunnel struct {
	*bed
	lab    *netlab.Lab     // nil: all on this host
	relay  *faultnet.Relay // between bridge and proxy; nil: none
	pub    *netlab.Host
	lan    *netlab.Host
	link   string // where the proxy listens for bridges
	dials  string // where the bridge dials: link, or the relay
	public string // where users connect
	token  string
	keys   map[string]string // tokens of attackers' keys, by name
	opts   options

	peerRun                 *peerRun
	proxyState, bridgeState string
	proxy, bridge           *process.Process
	terminal                *terminal // what the proxy writes to; nil: a file
	target                  *net.TCPListener
	next                    atomic.Uint64

	mu      sync.Mutex
	waiting map[uint64]chan *net.TCPConn // guarded by mu: who waits for the LAN end of a connection
	open    map[uint64]line              // guarded by mu: what was not closed yet
}

type options struct {
	lab        bool // three hosts; otherwise loopback
	relay      bool // a faultnet relay between bridge and proxy
	plan       func(n int) faultnet.Fault
	both       []string // options of both programs
	proxyOnly  []string
	bridgeOnly []string
	files      int                   // descriptors that the proxy may have; 0: as this process
	between    func(t *tunnel) error // called when the proxy listens, before the bridge starts
	terminal   bool                  // the proxy's log is that for people, at a terminal
	peer       *peer                 // another program in reverser's place
	peerPaths  map[string]string
}

// tunnel starts everything and waits until the service is up.
func (b *bed) tunnel(ctx context.Context, o options) (_ *tunnel, err error) {
	t := &tunnel{bed: b, opts: o, keys: make(map[string]string), waiting: make(map[uint64]chan *net.TCPConn), open: make(map[uint64]line)}
	if err := t.place(); err != nil {
		return nil, err
	}
	// Whatever waits for one end of a connection goes on when the scenario is over or takes too long.
	context.AfterFunc(ctx, t.closeLines)
	t.atEnd(t.closeLines)
	if o.peer != nil {
		return t, t.startPeer(ctx)
	}
	n := b.starts.Add(1)
	t.proxyState = filepath.Join(b.dir, fmt.Sprintf("proxy-%d", n))
	t.bridgeState = filepath.Join(b.dir, fmt.Sprintf("bridge-%d", n))
	if _, t.token, err = t.key(ctx, "faults"); err != nil {
		return nil, err
	}
	if err := t.startProxy(ctx); err != nil {
		return nil, err
	}
	if o.between != nil {
		if err := o.between(t); err != nil {
			return nil, err
		}
	}
	if err := t.startBridge(ctx); err != nil {
		return nil, err
	}
	return t, t.awaitUp(ctx)
}

// place chooses the addresses and starts the LAN service and the relay.
func (t *tunnel) place() (err error) {
	t.link, t.public = "127.0.0.1:3010", "127.0.0.1:9000"
	if t.opts.lab {
		if t.lab, err = netlab.New(); err != nil {
			return err
		}
		t.atEnd(t.lab.Close)
		t.pub, t.lan = t.lab.Public, t.lab.LAN
		t.link = netlab.PublicIP + ":3010"
	} else {
		ports, err := freePorts(2)
		if err != nil {
			return err
		}
		t.link, t.public = ports[0], ports[1]
	}
	if t.target, err = t.lan.Listen("127.0.0.1:0"); err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(t.serve)
	t.atEnd(func() { t.target.Close(); wg.Wait() })
	t.dials = t.link
	if t.opts.relay {
		ln, err := t.lan.Listen("127.0.0.1:0")
		if err != nil {
			return err
		}
		t.relay = faultnet.Start(ln, func() (*net.TCPConn, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return t.lan.Dial(ctx, t.link)
		}, t.opts.plan)
		t.atEnd(t.relay.Close)
		t.dials = t.relay.Addr()
	}
	return nil
}

func (t *tunnel) startProxy(ctx context.Context) (err error) {
	if t.peerRun != nil {
		t.proxy, err = t.peerProcess("server", t.opts.peer.server)
		return err
	}
	args := append([]string{"proxy", "--listen", t.link, "--state", t.proxyState}, t.opts.both...)
	path, args := t.bin, append(args, t.opts.proxyOnly...)
	if t.opts.terminal {
		if t.terminal, t.proxy, err = t.onTerminal("proxy", nil, args...); err != nil {
			return err
		}
		return t.awaitListening(ctx)
	}
	args = append(args, "--log-format", "json")
	if t.opts.files > 0 {
		path, args = "/bin/sh", append([]string{"-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, t.opts.files), "sh", t.bin}, args...)
	}
	t.proxy, err = t.start(t.pub, "proxy", path, nil, args...)
	if err != nil {
		return err
	}
	return t.awaitListening(ctx)
}

func (t *tunnel) awaitListening(ctx context.Context) error {
	return await(ctx, "the proxy listens", func() bool { return t.proxySaid("proxy listening") || !t.proxy.Running() })
}

// proxySaid reports whether the present proxy's log has a line with the words.
func (t *tunnel) proxySaid(words string) bool {
	if t.terminal != nil {
		return strings.Contains(t.terminal.wrote.String(), words)
	}
	return len(t.proxy.Said(words)) > 0
}

func (t *tunnel) startBridge(context.Context) (err error) {
	if t.peerRun != nil {
		t.bridge, err = t.peerProcess("client", t.opts.peer.client)
		return err
	}
	_, port, _ := net.SplitHostPort(t.public)
	args := append([]string{"bridge", port + "=" + t.target.Addr().String(), "--proxy", t.dials, "--state", t.bridgeState, "--log-format", "json"},
		t.opts.both...)
	t.bridge, err = t.start(t.lan, "bridge", t.bin, []string{"REVERSER_TOKEN=" + t.token}, append(args, t.opts.bridgeOnly...)...)
	return err
}

// awaitUp waits until the present bridge and the proxy have said that the service is up: the bridge may have another proxy as well. Behind
// a relay the bridge adds that the public port does not answer where it dials: that is the relay's host.
func (t *tunnel) awaitUp(ctx context.Context) error {
	bridge := t.bridge
	err := await(ctx, "the service is up", func() bool {
		return len(bridge.Said("service up")) > 0 && t.proxySaid("service up") || !bridge.Running()
	})
	if err == nil && !bridge.Running() {
		err = fmt.Errorf("the bridge has ended: %s", bridge.Stderr.String())
	}
	return err
}

// serve hands the LAN ends of connections to those who wait for them.
func (t *tunnel) serve() {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := t.target.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		wg.Go(func() {
			var id [8]byte
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.ReadFull(c, id[:]); err != nil {
				c.Close()
				return
			}
			c.SetReadDeadline(time.Time{})
			t.mu.Lock()
			ch := t.waiting[binary.BigEndian.Uint64(id[:])]
			t.mu.Unlock()
			if ch == nil {
				c.SetLinger(0)
				c.Close()
				return
			}
			ch <- c
		})
	}
}

// A line is one user's connection, with both ends in hand.
type line struct {
	tunnel    *tunnel
	id        uint64
	user, lan *net.TCPConn
	sender    <-chan error // why the one who sends at the LAN end gave up; nil: nobody sends there
}

func (l line) close() {
	if l.tunnel != nil {
		l.tunnel.mu.Lock()
		delete(l.tunnel.open, l.id)
		l.tunnel.mu.Unlock()
	}
	for _, c := range []*net.TCPConn{l.user, l.lan} {
		if c != nil {
			c.SetLinger(0)
			c.Close()
		}
	}
}

func (t *tunnel) closeLines() {
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.open))
	t.mu.Unlock()
	for _, l := range all {
		l.close()
	}
}

// connect makes a connection as a user does, and waits for its other end.
func (t *tunnel) connect(ctx context.Context) (line, error) {
	user, err := t.pub.Dial(ctx, t.public)
	if err != nil {
		return line{}, err
	}
	id := t.next.Add(1)
	ch := make(chan *net.TCPConn, 1)
	t.mu.Lock()
	t.waiting[id] = ch
	t.mu.Unlock()
	l := line{tunnel: t, id: id, user: user}
	defer func() {
		t.mu.Lock()
		delete(t.waiting, id)
		t.open[id] = l
		t.mu.Unlock()
		if ctx.Err() != nil {
			l.close()
		}
	}()
	if _, err := user.Write(binary.BigEndian.AppendUint64(nil, id)); err != nil {
		return line{}, err
	}
	gone := make(chan error, 1)
	user.SetReadDeadline(time.Time{})
	go func() { // a user who is reset before there is another end
		var b [1]byte
		_, err := user.Read(b[:])
		gone <- err
	}()
	select {
	case l.lan = <-ch:
		user.SetReadDeadline(time.Unix(1, 0)) // ends the read
		if err := <-gone; !errors.Is(err, os.ErrDeadlineExceeded) {
			return line{}, fmt.Errorf("the user's connection ended at once: %w", err)
		}
		user.SetReadDeadline(time.Time{})
		return l, nil
	case err := <-gone:
		return line{}, fmt.Errorf("the user's connection ended before it reached the service: %w", err)
	case <-ctx.Done():
		user.Close()
		<-gone
		return line{}, errors.New("the user's connection did not reach the service")
	}
}

// connectAll makes n connections, some at a time.
func (t *tunnel) connectAll(ctx context.Context, n int) ([]line, error) {
	lines := make([]line, n)
	errs := make([]error, n)
	turn := make(chan struct{}, 64)
	var wg sync.WaitGroup
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			lines[i], errs[i] = t.connect(ctx)
			<-turn
		})
	}
	wg.Wait()
	return lines, errors.Join(errs...)
}

// status is the part of `reverser status --json` that is looked at here.
type status struct {
	Links []struct {
		State    string `json:"state"`
		Carriers int    `json:"carriers"`
		Resumes  int    `json:"resumes"`
	} `json:"links"`
	Pairs []pair `json:"pairs"`
}

type pair struct {
	Service string `json:"service"`
	Client  string `json:"client"`
	State   string `json:"state"`
}

func (b *bed) statusOf(ctx context.Context, state string) (s status, err error) {
	cmd := exec.CommandContext(ctx, b.bin, "status", "--json", "--state", state)
	cmd.Env = process.Environ()
	out, err := cmd.Output()
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// whole waits until all connections of the link are there, which come with the second user. Without it a baseline may lack some
// of what the programs keep.
func (t *tunnel) whole(ctx context.Context) error {
	var users [2]line
	for i := range users {
		l, err := t.connect(ctx)
		if err != nil {
			return err
		}
		defer l.close()
		users[i] = l
	}
	err := await(ctx, "all carriers are attached", func() bool {
		for _, state := range []string{t.proxyState, t.bridgeState} {
			s, err := t.statusOf(ctx, state)
			if err != nil || len(s.Links) != 1 || s.Links[0].Carriers != 4 {
				return false
			}
		}
		return true
	})
	for _, l := range users {
		if err == nil {
			err = l.duplex(newFlow(1000), newFlow(1000))
		}
	}
	return err
}

// standing says what state the processes are in, for whoever looks for the cause of something that does not come.
func (t *tunnel) standing(ctx context.Context) string {
	var text strings.Builder
	for _, state := range []string{t.proxyState, t.bridgeState} {
		s, err := t.statusOf(ctx, state)
		pairs := make(map[string]int)
		for _, p := range s.Pairs {
			pairs[p.State]++
		}
		fmt.Fprintf(&text, "links %v, pairs %v, error %v; ", s.Links, pairs, err)
	}
	return text.String()
}

// resumes is how often slots were attached again, as the proxy counts.
func (t *tunnel) resumes(ctx context.Context) int {
	s, err := t.statusOf(ctx, t.proxyState)
	if err != nil || len(s.Links) == 0 {
		return -1
	}
	return s.Links[0].Resumes
}

// endedAs counts the tunnel's pairs that both sides released for a reason other than wanted.
func (t *tunnel) endedAs(wanted string) (other map[string]int) {
	other = make(map[string]int)
	_, port, _ := net.SplitHostPort(t.public)
	for _, p := range []*process.Process{t.proxy, t.bridge} {
		for _, r := range p.Records("pair released", "service", "tcp/"+port) {
			if reason := r.Text("reason"); reason != wanted {
				other[p.Name+": "+reason]++
			}
		}
	}
	return other
}

// freePorts returns loopback addresses on which nothing listens.
func freePorts(n int) (addrs []string, err error) {
	for range n {
		addr, err := freeport.Addr()
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}
