package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// tryDial dials and gives an error to whoever reads.
func tryDial(addr string) interface{ Read([]byte) (int, error) } {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return failed{err}
	}
	c.SetDeadline(time.Now().Add(patience))
	return closing{c}
}

type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }

// A closing connection is closed when reading has come to its end.
type closing struct{ net.Conn }

func (c closing) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.Close()
	}
	return n, err
}

func TestBridgeStartsBeforeTheProxy(t *testing.T) {
	t.Parallel()
	state, link, public := t.TempDir(), freePort(t), freePort(t)
	tok := addKey(t, state, "early", fmt.Sprintf("tcp/%d", public))
	b := startBridge(t, tok, fmt.Sprintf("%d=%d", public, serve(t, echo)), "--proxy", loopback(link))
	b.awaitLogged(loopback(link), "refused")

	startProxyAt(t, state, link)
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	exchange(t, dial(t, loopback(public)), "hello")
}

func TestProxyRestart(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	exchange(t, tun.dial(t), "before")
	for range 2 {
		tun.proxy.Kill()
		tun.bridge.awaitLogged(`"level":"WARN"`, loopback(tun.proxy.link), "refused")
		tun.proxy = startProxyAt(t, tun.proxy.state, tun.proxy.link)
		eventually(t, "the proxy has its bridge back", func() bool {
			st := mustStatus(t, tun.proxy.state)
			return len(st.Services) == 1 && st.Services[0].State == "up"
		})
		tun.bridge.awaitUp(tun.service)
		exchange(t, tun.dial(t), "after")
	}
	if strings.Contains(tun.proxy.Stdout.String(), "rv1_") {
		t.Error("a restarted proxy printed a token again")
	}
}

// held is how long the proxy holds users whose bridge is away.
const held = 10 * time.Second

// Who connects while the bridge is away is held for that long.
func TestClientWaitsForTheBridge(t *testing.T) {
	t.Parallel()
	service := serve(t, echo)
	tun := startTunnel(t, strconv.Itoa(service))
	tun.bridge.Kill()
	eventually(t, "the service is away", func() bool {
		st := mustStatus(t, tun.proxy.state)
		return len(st.Services) == 1 && st.Services[0].State == "away"
	})
	begin := time.Now() // before the proxy may have begun to hold it
	early := tun.dial(t)
	wantReset(t, early, 0)
	if waited := time.Since(begin); waited < held {
		t.Errorf("the client was held for %v; want %v", waited, held)
	}
	// A bridge that takes longer to find its way than anybody is held says nothing: then the next one may be faster.
	for end := time.Now().Add(2 * patience); ; {
		waited, err := tun.waitForTheNext(t, service)
		if err == nil {
			break
		}
		if waited < held || time.Now().After(end) {
			t.Fatalf("the client who waited for %v read %v; want its echo", waited, err)
		}
	}
}

// waitForTheNext has a client wait while a bridge finds its way to the proxy, and returns for how long it did, and nil for its echo. The
// bridge runs before anybody waits, so that it does not matter how long a program takes to start.
func (tun *tunnel) waitForTheNext(t *testing.T, service int) (time.Duration, error) {
	t.Helper()
	clear := make(chan struct{})
	open := sync.OnceFunc(func() { close(clear) })
	defer open()
	way := serve(t, func(c *net.TCPConn) {
		<-clear
		passOn(c, tun.proxy.link, new(atomic.Int64))
	})
	b := startBridge(t, tun.token, fmt.Sprintf("%d=%d", tun.public, service), "--proxy", loopback(way))
	defer b.Kill()
	b.awaitLogged("bridge starting")
	begin := time.Now()
	lucky := tun.dial(t)
	lucky.Write([]byte("hello"))
	open()
	got := make([]byte, 5)
	_, err := io.ReadFull(lucky, got)
	if err == nil && string(got) != "hello" {
		t.Fatalf("the client who waited read %q; want its echo", got)
	}
	return time.Since(begin), err
}

// The bridge proves that the public port answers. The service sees nothing of it, and
// it is no pair.
func TestProbeIsNoConnection(t *testing.T) {
	t.Parallel()
	var conns atomic.Int64
	tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		conns.Add(1)
		echo(c)
	})))
	exchange(t, tun.dial(t), "hello")
	if got := conns.Load(); got != 1 {
		t.Errorf("the service saw %d connections; want the client's alone", got)
	}
	for _, side := range []*testProcess{tun.proxy.testProcess, tun.bridge.testProcess} {
		side.awaitRecord("pair created")
		if got := len(side.Records("pair created")); got != 1 {
			t.Errorf("%s made %d pairs; want 1", side.Name, got)
		}
	}
}

// Everything in one process, on ports of its own.
func TestDemo(t *testing.T) {
	t.Parallel()
	runReverser(t, "demo", "--once")
}

// A firewall that lets the control connection through and not the carriers is named.
func TestBlockedTransferPort(t *testing.T) {
	t.Parallel()
	p := startProxy(t, "--transfer", loopback(freePort(t)))
	blocked, public := freePort(t), freePort(t)
	b := startBridge(t, p.defaultToken(), fmt.Sprintf("%d=%d", public, serve(t, echo)), "--proxy-transfer", loopback(blocked))
	b.awaitLogged(`"level":"WARN"`, loopback(blocked))
}

// A service whose public port is taken is reported and tried again, and takes no other
// down with it.
func TestServiceThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	taken, free, service := freePort(t), freePort(t), serve(t, echo)
	squatter, err := net.Listen("tcp", fmt.Sprintf(":%d", taken))
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()

	p := startProxy(t)
	b := startBridge(t, p.defaultToken(), fmt.Sprintf("%d=%d", taken, service), fmt.Sprintf("%d=%d", free, service))
	b.awaitUp(fmt.Sprintf("tcp/%d", free))
	public := fmt.Sprintf("tcp/%d", taken)
	b.awaitService(public, "retrying")
	b.awaitLogged(public, "in use")
	exchange(t, dial(t, loopback(free)), "the other works")

	squatter.Close()
	b.awaitUp(public)
	exchange(t, dial(t, loopback(taken)), "now this one too")
}

// A developer at a breakpoint: the service answers nothing for a long time, then goes
// on; and it is restarted between two connections.
func TestRemoteDebugging(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	resume := make(chan struct{})
	stopping := func(c *net.TCPConn) {
		b := make([]byte, 100)
		n, err := c.Read(b)
		if err != nil {
			return
		}
		<-resume // the breakpoint
		c.Write(b[:n])
		echo(c)
	}
	l1, err := net.Listen("tcp", loopback(port))
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l1, stopping)
	tun := startTunnel(t, strconv.Itoa(port))
	atBreakpoint := tun.dial(t)
	atBreakpoint.Write([]byte("request"))
	idle := tun.dial(t)
	for _, side := range []string{tun.proxy.state, tun.bridge.state} {
		eventually(t, "both pairs are open", func() bool { return len(mustStatus(t, side).Pairs) == 2 })
	}

	// Longer than any timer of the link that looks for signs of life: 15 s, spec/PROTOCOL.md section 12. Hours of it, in a
	// time that passes faster, are in internal/bridge.
	standstill := 20 * time.Second
	if testing.Short() {
		standstill = 2 * time.Second
	}
	atBreakpoint.SetReadDeadline(time.Now().Add(standstill))
	if n, err := atBreakpoint.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("at the breakpoint: read %d bytes, %s; want nothing for %v", n, describe(err), standstill)
	}
	atBreakpoint.SetReadDeadline(time.Now().Add(lifetime))
	for _, side := range []string{tun.proxy.state, tun.bridge.state} {
		if pairs := mustStatus(t, side).Pairs; len(pairs) != 2 || pairs[0].State != "open" || pairs[1].State != "open" {
			t.Errorf("after %v at the breakpoint: pairs %+v; want two open ones", standstill, pairs)
		}
	}

	// The IDE restarts the server: the old listener is gone for a while, the old
	// connections are not.
	l1.Close()
	wantResetOf(t, tun.addr(), func(*net.TCPConn) error { return nil })
	second := startService(t, port)
	fresh := tun.dial(t)
	fresh.Write([]byte("pid\n"))
	want := fmt.Sprintf("%d\n", second.Cmd.Process.Pid)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(fresh, got); err != nil || string(got) != want {
		t.Errorf("the new connection reached %q, %v; want process %q", got, err, want)
	}

	close(resume)
	got = make([]byte, len("request"))
	if _, err := io.ReadFull(atBreakpoint, got); err != nil || string(got) != "request" {
		t.Errorf("after the breakpoint: read %q, %v; want the answer", got, err)
	}
	exchange(t, idle, "an idle connection is alive too")
}
