package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A manager is the end of the notification protocol that systemd has.
type manager struct {
	t    *testing.T
	name string // of its socket
	conn *net.UnixConn
	wg   sync.WaitGroup

	mu    sync.Mutex
	heard []string // guarded by mu; messages
}

func newManager(t *testing.T, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{t: t, name: name, conn: conn}
	m.wg.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.heard = append(m.heard, string(b[:n]))
			m.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		conn.Close()
		m.wg.Wait()
	})
	return m
}

// count is how many messages have a line that begins so.
func (m *manager) count(line string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, h := range m.heard {
		if strings.Contains("\n"+h, "\n"+line) {
			n++
		}
	}
	return n
}

func (m *manager) await(line string, n int) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("the manager hears %q %d times", line, n), func() bool { return m.count(line) >= n })
}

// catchUp waits until all messages that were sent before are heard.
func (m *manager) catchUp() {
	m.t.Helper()
	c, err := net.DialUnix("unixgram", nil, m.conn.LocalAddr().(*net.UnixAddr))
	if err != nil {
		m.t.Fatal(err)
	}
	defer c.Close()
	const mark = "X_MARK=1"
	n := m.count(mark)
	if _, err := c.Write([]byte(mark)); err != nil {
		m.t.Fatal(err)
	}
	m.await(mark, n+1)
}

// systemd hears READY from a proxy that listens, and from a bridge whose port is proven, RELOADING around a reload, STOPPING at the
// first signal, signs of life until the end, and none from a process that is stopped.
func TestNotify(t *testing.T) {
	t.Parallel()
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	abstract := newManager(t, "@reverser-e2e-"+strconv.Itoa(syscall.Getpid())+"-"+strconv.Itoa(freePort(t)))
	env := func(m *manager) []string {
		return []string{"NOTIFY_SOCKET=" + m.name, "WATCHDOG_USEC=600000"}
	}

	state, link := t.TempDir(), freePort(t)
	token := addKey(t, state, "nas", "tcp/1024-65535")
	target, public := serve(t, echo), freePort(t)
	expose := fmt.Sprintf("%d=%d", public, target)

	// A bridge whose proxy is not there has nothing to be ready for.
	bridgeState := t.TempDir()
	bridge := start(t, "bridge", reverser(t), env(abstract), "bridge", token, expose, "--proxy", loopback(link), "--state", bridgeState, "--log-format", "json")
	abstract.await("STATUS=starting: no link to the proxy", 1)
	if abstract.count("READY=1") > 0 {
		t.Error("the bridge is ready without a proxy")
	}

	proxy := start(t, "proxy", reverser(t), env(m), "proxy", "--listen", loopback(link), "--state", state, "--log-format", "json")
	m.await("READY=1", 1)
	c, err := net.DialTimeout("tcp", loopback(link), patience) // at once, not eventually
	if err != nil {
		t.Fatalf("the proxy is ready and does not listen: %v", err)
	}
	c.Close()

	abstract.await("READY=1", 1)
	user := dial(t, loopback(public)) // the same
	exchange(t, user, "hello")
	abstract.await("STATUS=link up, 1 of 1 service up", 1)
	abstract.await("WATCHDOG=1", 3)

	// A process that does not run gives no sign of life.
	signal(t, bridge, syscall.SIGSTOP)
	stopped(t, bridge)
	abstract.catchUp()
	before := abstract.count("WATCHDOG=1")
	m.await("WATCHDOG=1", m.count("WATCHDOG=1")+5) // as long as the other one takes for five
	abstract.catchUp()
	if n := abstract.count("WATCHDOG=1") - before; n > 1 {
		t.Errorf("%d signs of life of a process that was stopped", n)
	}
	signal(t, bridge, syscall.SIGCONT)
	abstract.await("WATCHDOG=1", before+3)

	run(t, reverser(t), "reload", "--state", bridgeState)
	abstract.await("RELOADING=1\nMONOTONIC_USEC=", 1)
	abstract.await("READY=1", 2)

	signal(t, bridge, syscall.SIGTERM)
	abstract.await("STOPPING=1", 1)
	abstract.await("EXTEND_TIMEOUT_USEC=45000000", 1)
	abstract.await("WATCHDOG=1", abstract.count("WATCHDOG=1")+2) // it still serves its user
	exchange(t, user, "while it drains")
	if n := abstract.count("READY=1"); n != 2 {
		t.Errorf("%d times ready, want 2: none behind STOPPING", n)
	}
	user.Close()
	wantExit(t, bridge)
	signal(t, proxy, syscall.SIGTERM)
	wantExit(t, proxy)
	m.await("STOPPING=1", 1)
}

// stopped waits until a process does not run.
func stopped(t *testing.T, p *testProcess) {
	t.Helper()
	eventually(t, p.Name+" is stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, state, _ := strings.Cut(string(stat), ") ")
		return strings.HasPrefix(state, "T")
	})
}

// A service manager that nobody answers at does not keep a process from its work.
func TestNotifyNobody(t *testing.T) {
	t.Parallel()
	state, link := t.TempDir(), freePort(t)
	proxy := start(t, "proxy", reverser(t), []string{"NOTIFY_SOCKET=" + filepath.Join(t.TempDir(), "nobody")}, "proxy", "--listen", loopback(link), "--state", state, "--log-format", "json")
	proxy.awaitLogged("service manager", "no such file")
	proxy.awaitRecord("proxy listening")
	signal(t, proxy, syscall.SIGTERM)
	wantExit(t, proxy)
}
