package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// startProxyWithin starts a proxy that may have so many descriptors.
func startProxyWithin(t *testing.T, descriptors int, args ...string) *proxyProcess {
	t.Helper()
	p := &proxyProcess{state: t.TempDir(), link: freePort(t)}
	args = append([]string{"-c", `ulimit -n "$1"; shift; exec "$@"`, "sh", fmt.Sprint(descriptors), reverser(t),
		"proxy", "--listen", loopback(p.link), "--state", p.state, "--log-format", "json"}, args...)
	p.testProcess = start(t, "proxy", "/bin/sh", nil, args...)
	p.awaitReady()
	return p
}

// open counts the descriptors of a process.
func (p *testProcess) open() int {
	p.t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(all)
}

// quick runs an order, which must not wait for anything.
func quick(t *testing.T, args ...string) string {
	t.Helper()
	begin := time.Now()
	out := run(t, reverser(t), args...)
	if d := time.Since(begin); d > time.Minute { // a busy machine takes some time to start a program
		t.Errorf("%s took %s", args[0], d)
	}
	return out
}

// idleUsers connects n idle users from some loopback addresses, who stay until the end of the test. Some may be reset.
func idleUsers(t *testing.T, n, addresses, port int) {
	t.Helper()
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, 64) // some at once: the queue of the port is full at times, and each then waits for its second
	for i := range n {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%addresses))}, Timeout: time.Second}
			if c, err := d.Dial("tcp", loopback(port)); err == nil {
				t.Cleanup(func() { c.Close() })
			}
		})
	}
}

// TestDescriptorsRunOut: greedy keys' users and silent strangers take every descriptor that they may, and a small key's users, its
// bridge and the operator do not notice.
func TestDescriptorsRunOut(t *testing.T) {
	t.Parallel()
	const limit = 256
	dir := t.TempDir()
	file := filepath.Join(dir, "proxy.toml")
	if err := os.WriteFile(file, []byte("log_level = \"info\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProxyWithin(t, limit, "--config", file)
	service := serve(t, echo)
	ports := make(map[string]int)
	for _, name := range []string{"one", "two", "small"} {
		ports[name] = freePort(t)
		public := fmt.Sprintf("tcp/%d", ports[name])
		b := startBridge(t, addKey(t, p.state, name, public), fmt.Sprintf("%d=%d", ports[name], service))
		b.awaitUp(public)
	}
	before := dial(t, loopback(ports["small"]))
	exchange(t, before, "before")

	come := make(chan struct{})
	defer func() { <-come }()
	go func() {
		defer close(come)
		idleUsers(t, 3000, 1, ports["one"])  // idle users of one address
		idleUsers(t, 500, 200, ports["one"]) // and of many
		idleUsers(t, 500, 200, ports["two"])
		idleUsers(t, 500, 200, p.link) // strangers
	}()
	var st struct {
		Pressure []struct {
			What, Hint  string
			Used, Limit int
			Largest     struct{ Key string }
		}
	}
	// While they come: when nobody has been refused for some seconds, nothing is said to be short any more.
	eventually(t, "status says what runs short", func() bool {
		if err := json.Unmarshal([]byte(quick(t, "status", "--json", "--state", p.state)), &st); err != nil {
			t.Fatal(err)
		}
		return len(st.Pressure) > 0 && strings.Contains(quick(t, "status", "--state", p.state), "descriptors for users")
	})
	if short := st.Pressure[0]; short.Largest.Key == "" || short.Largest.Key == "small" || short.Hint == "" || short.Used == 0 {
		t.Errorf("status has the pressure %+v, want key one or two to be the largest, which have as many", st.Pressure)
	}
	<-come
	if n := p.open(); n > limit-16 {
		t.Errorf("%d descriptors are open, want 16 of %d to be left", n, limit)
	}

	exchange(t, before, "during")
	for range 5 {
		c := dial(t, loopback(ports["small"]))
		exchange(t, c, "newcomer")
		c.Close()
	}
	quick(t, "status", "--json", "--state", p.state)
	n := len(p.Records("running short, some are refused or wait", "of", "descriptors for users"))
	over := len(p.Records("no longer running short", "of", "descriptors for users")) // where the machine is so busy that they come slowly
	if n == 0 || n > over+1 {
		t.Errorf("the log says %d times that descriptors run short, and %d times that they do no longer; want each time once", n, over)
	}
	if n := len(p.Records("client refused")); n > 200 {
		t.Errorf("the log has %d lines about refused users", n)
	}
	if n := len(p.Records("accept failed, trying again")); n != 0 {
		t.Errorf("%d times a connection could not be accepted", n)
	}
	if err := os.WriteFile(file, []byte("log_level = \"debug\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	quick(t, "reload", "--state", p.state)
	addKey(t, p.state, "more", "tcp/1")
	quick(t, "key", "remove", "two", "--state", p.state)
	quick(t, "key", "remove", "one", "--state", p.state)
	if c, err := net.Dial("tcp", loopback(ports["one"])); err == nil {
		c.SetDeadline(time.Now().Add(patience))
		if n, err := io.Copy(io.Discard, c); err == nil {
			t.Errorf("a removed key's port served %d bytes", n)
		}
		c.Close()
	}
	exchange(t, before, "after")
	eventually(t, "the removed keys' descriptors are free", func() bool { return p.open() < limit/2 })
}
