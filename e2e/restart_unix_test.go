//go:build unix

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A crowd is users who come one after the other, each with a connection that echoes a few bytes, while something is restarted.
type crowd struct {
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	served  int // guarded by mu, as refused and failed
	refused int // nobody listened, or the connection was reset before the first byte came back
	failed  []error
}

// newCrowd has users connect to addr until end is called.
func newCrowd(addr string) *crowd {
	c := &crowd{stop: make(chan struct{})}
	c.wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		room := make(chan struct{}, 50) // a machine that is slow gets no more to do than it can
		for n := 0; ; n++ {
			select {
			case <-c.stop:
				return
			case <-tick.C:
			}
			select {
			case <-c.stop:
				return
			case room <- struct{}{}:
			}
			c.wg.Go(func() {
				defer func() { <-room }()
				c.visit(addr, n)
			})
		}
	})
	return c
}

func (c *crowd) visit(addr string, n int) {
	begun := time.Now()
	err := func() error {
		conn, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		for i := range 3 {
			text := fmt.Sprintf("user %d, line %d\n", n, i)
			if _, err := io.WriteString(conn, text); err != nil {
				return err
			}
			got := make([]byte, len(text))
			if _, err := io.ReadFull(conn, got); err != nil {
				return err
			}
			if string(got) != text {
				return fmt.Errorf("echo of %q = %q", text, got)
			}
		}
		return nil
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.served++
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		if time.Since(begun) < held { // else the machine took as long to start the next process, which says nothing of a restart
			c.refused++
		}
	default:
		c.failed = append(c.failed, err)
	}
}

// more waits until n more users were served.
func (c *crowd) more(t *testing.T, n int) {
	t.Helper()
	c.mu.Lock()
	n += c.served
	c.mu.Unlock()
	eventually(t, fmt.Sprintf("%d users were served", n), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.served >= n
	})
}

// end waits for all users and returns how many were served, and how many refused. None of them hung, or got other bytes.
func (c *crowd) end(t *testing.T) (served, refused int) {
	t.Helper()
	close(c.stop)
	c.wg.Wait()
	if len(c.failed) > 0 {
		t.Errorf("%d users were neither served nor refused, the first: %v", len(c.failed), c.failed[0])
	}
	return c.served, c.refused
}

// again starts the next process of a bridge, with the same state directory.
func (b *bridgeProcess) again(t *testing.T, token string, args ...string) *bridgeProcess {
	t.Helper()
	next := &bridgeProcess{state: b.state}
	next.testProcess = startReverser(t, "next bridge", nil, append([]string{"bridge", token, "--state", b.state, "--log-format", "json"}, args...)...)
	return next
}

// A service manager restarts the bridge: it starts the next process when the last one has ended. Users lose nothing: while the old
// process has somebody to serve it serves all, and from its end to the beginning of the next one they wait at the proxy.
func TestRestartOfTheBridge(t *testing.T) {
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy=%t", busy), func(t *testing.T) {
			t.Parallel()
			target := serve(t, echo)
			tun := startTunnel(t, strconv.Itoa(target))
			var session net.Conn
			if busy {
				session = tun.dial(t)
				exchange(t, session, "before")
			}
			users := newCrowd(tun.addr())
			users.more(t, 10)
			tun.bridge.stop()
			if busy {
				tun.bridge.awaitRecord("draining")
				users.more(t, 50)
				exchange(t, session, "while it drains")
				if !tun.bridge.Running() {
					t.Error("the bridge ended while a session was open")
				}
				session.Close()
			}
			wantExit(t, tun.bridge.testProcess) // though users come all the time
			next := tun.bridge.again(t, tun.token, fmt.Sprintf("%d=127.0.0.1:%d", tun.public, target))
			next.awaitUp(tun.service)
			users.more(t, 10)
			served, refused := users.end(t)
			if refused > 0 {
				t.Errorf("%d users were refused, and %d served; want all of them served", refused, served)
			}
		})
	}
}

// A successor is started beside a bridge that was asked to stop: it takes the state directory, answers status, and serves all new
// users. The old process finishes what it has and ends.
func TestSuccessorOfTheBridge(t *testing.T) {
	t.Parallel()
	target := serve(t, echo)
	tun := startTunnel(t, strconv.Itoa(target))
	session := tun.dial(t)
	exchange(t, session, "before")
	users := newCrowd(tun.addr())
	users.more(t, 10)
	tun.bridge.stop()
	expose := fmt.Sprintf("%d=127.0.0.1:%d", tun.public, target)
	next := tun.bridge.again(t, tun.token, expose)
	eventually(t, "the successor's service is up", func() bool { return len(next.Said("service up")) > 0 }) // though nothing may have come back from there on a busy machine
	for range 5 {
		c := tun.dial(t)
		exchange(t, c, "a new user")
		client := c.LocalAddr().String()
		eventually(t, "a process knows of the user", func() bool {
			return len(tun.bridge.Records("pair created", "client", client))+len(next.Records("pair created", "client", client)) > 0
		})
		if len(next.Records("pair created", "client", client)) == 0 {
			t.Error("a user came to the old process behind its successor's start")
		}
		c.Close()
	}
	st := mustStatus(t, next.state)
	if len(st.Links) != 1 || st.Links[0].State != "up" {
		t.Errorf("status shows links %+v, want the successor's", st.Links)
	}
	third := tun.bridge.again(t, tun.token, expose)
	if code := third.awaitEnd(); code != 2 {
		t.Errorf("a third process: exit code %d, want 2: the directory is in use", code)
	}
	exchange(t, session, "behind the successor's start")
	session.Close()
	wantExit(t, tun.bridge.testProcess)
	users.more(t, 10)
	if st := mustStatus(t, next.state); len(st.Links) != 1 || st.Links[0].State != "up" {
		t.Errorf("when the old process has ended, status shows links %+v", st.Links)
	}
	if served, refused := users.end(t); refused > 0 {
		t.Errorf("%d users were refused, and %d served; want all of them served", refused, served)
	}
}

// again starts the next process of a proxy, with the same state directory and ports.
func (p *proxyProcess) again(t *testing.T, args ...string) *proxyProcess {
	t.Helper()
	next := &proxyProcess{state: p.state, link: p.link}
	next.testProcess = startReverser(t, "next proxy", nil,
		append([]string{"proxy", "--listen", loopback(p.link), "--state", p.state, "--log-format", "json"}, args...)...)
	return next
}

// A successor is started beside a proxy that was asked to stop: it has the ports, the state directory and the bridge. Users who
// come in between are refused at once. Sessions of the old process go on.
func TestSuccessorOfTheProxy(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	session := tun.dial(t)
	exchange(t, session, "before")
	users := newCrowd(tun.addr())
	users.more(t, 10)
	tun.proxy.stop()
	next := tun.proxy.again(t)
	next.awaitRecord("service up", "service", tun.service)
	users.more(t, 50)
	exchange(t, session, "behind the successor's start")
	addKey(t, next.state, "office", "tcp/1024-65535")
	next.awaitRecord("key added", "key", "office")
	if st := mustStatus(t, tun.bridge.state); len(st.Links) != 2 || st.Links[0].State != "up" || st.Links[1].State != "draining" {
		t.Errorf("the bridge has links %+v, want one that is up and one that is draining", st.Links)
	}
	session.Close()
	wantExit(t, tun.proxy.testProcess)
	eventually(t, "the bridge has one link", func() bool { return len(mustStatus(t, tun.bridge.state).Links) == 1 })
	users.more(t, 10)
	served, refused := users.end(t)
	t.Logf("%d users served, %d refused", served, refused)
	if n := len(tun.bridge.Said("session with the proxy ended")); n != 0 {
		t.Errorf("the bridge says %d times that its connections were reset", n)
	}
}

// A process that drains serves its admin address until a successor takes it: whoever looks sees that it stops, and what is left.
func TestAdminAddressOfAProxyThatStops(t *testing.T) {
	t.Parallel()
	at := loopback(freePort(t))
	args := append([]string{"--admin", at}, longDrain...)
	p, target, public := startProxy(t, args...), serve(t, echo), freePort(t)
	service := fmt.Sprintf("tcp/%d", public)
	startBridge(t, addKey(t, p.state, "nas", service), fmt.Sprintf("%d=%d", public, target)).awaitUp(service)
	session := dial(t, loopback(public))
	exchange(t, session, "before")
	ready := func() int {
		answer, err := http.Get("http://" + at + "/readyz")
		if err != nil {
			return 0
		}
		answer.Body.Close()
		return answer.StatusCode
	}
	eventually(t, "it is ready", func() bool { return ready() == http.StatusOK })
	p.stop()
	p.awaitRecord("draining")
	eventually(t, "it says that it stops", func() bool { // what it tells is a second old at most
		code := ready()
		if code == 0 {
			t.Fatal("/readyz does not answer while the process stops")
		}
		return code == http.StatusServiceUnavailable
	})
	next := p.again(t, args...)
	next.awaitRecord("service up", "service", service)
	eventually(t, "the successor answers", func() bool { return ready() == http.StatusOK })
	exchange(t, session, "behind the successor's start")
	session.Close()
	wantExit(t, p.testProcess)
	if code := ready(); code != http.StatusOK {
		t.Errorf("/readyz answers %d behind the end of the old process; want 200", code)
	}
}

// A key that is removed at the successor of a proxy ends at the process before, too. What other keys have there goes on.
func TestKeyRemovedAtTheSuccessor(t *testing.T) {
	t.Parallel()
	p, target := startProxy(t, longDrain...), serve(t, echo)
	user := func(name string) (c net.Conn, service string) {
		public := freePort(t)
		service = fmt.Sprintf("tcp/%d", public)
		b := startBridge(t, addKey(t, p.state, name, service), fmt.Sprintf("%d=%d", public, target))
		b.awaitUp(service)
		c = dial(t, loopback(public))
		exchange(t, c, "before")
		return c, service
	}
	goes, removed := user("lost")
	stays, _ := user("nas")
	p.stop()
	next := p.again(t)
	next.awaitRecord("service up", "service", removed)
	exchange(t, goes, "behind the successor's start")
	runReverser(t, "key", "remove", "lost", "--state", next.state)
	wantReset(t, goes, 0)
	p.awaitRecord("pair released", "service", removed, "reason", "service-removed")
	exchange(t, stays, "behind the removal")
	stays.Close()
	wantExit(t, p.testProcess)
}

// A service manager restarts the proxy: the next process starts when the last one has ended. New users are refused in between,
// and none hangs.
func TestRestartOfTheProxy(t *testing.T) {
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy=%t", busy), func(t *testing.T) {
			t.Parallel()
			tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
			var session net.Conn
			if busy {
				session = tun.dial(t)
				exchange(t, session, "before")
			}
			users := newCrowd(tun.addr())
			users.more(t, 10)
			tun.proxy.stop()
			if busy {
				eventually(t, "new users are refused", func() bool { users.mu.Lock(); defer users.mu.Unlock(); return users.refused > 10 })
				exchange(t, session, "while it drains")
				session.Close()
			}
			wantExit(t, tun.proxy.testProcess)
			next := tun.proxy.again(t)
			next.awaitRecord("service up", "service", tun.service)
			users.more(t, 10)
			users.end(t)
		})
	}
}
