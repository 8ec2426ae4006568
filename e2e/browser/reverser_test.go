package browser

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"reverser/e2e/faultnet"
	"reverser/e2e/process"
	"reverser/internal/freeport"
)

// What every test needs of the program: a proxy, a bridge, and a way between them that can be cut.

var buildDir string

// reverser builds the program, once.
var reverser = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(buildDir, "reverser")
	return bin, process.Build(context.Background(), filepath.Join("..", ".."), bin)
})

func freePort(t *testing.T) int {
	t.Helper()
	port, err := freeport.Get()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// start runs a command of reverser until the end of the test.
func start(t *testing.T, args ...string) *process.Process {
	t.Helper()
	bin, err := reverser()
	if err != nil {
		t.Fatal(err)
	}
	p := process.New(args[0], bin, nil, args...)
	if err := p.Start(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("--- %s: %s\n%s%s", p.Name, p.Cmd.ProcessState, p.Stdout.String(), p.Stderr.String())
		}
	})
	return p
}

// run runs a command of reverser to its end, and returns what it prints.
func run(t *testing.T, args ...string) string {
	t.Helper()
	p := start(t, args...)
	await(t, "the end of reverser "+args[0], func() bool { return !p.Running() })
	if code := p.Cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("reverser %s: exit code %d\n%s", args[0], code, p.Stderr.String())
	}
	return p.Stdout.String()
}

// said waits until a process has logged a message, with the given values, "key", value, ….
func said(t *testing.T, p *process.Process, msg string, match ...any) process.Record {
	t.Helper()
	var found []process.Record
	await(t, fmt.Sprintf("%s logs %q %v", p.Name, msg, match), func() bool {
		found = p.Records(msg, match...)
		if len(found) == 0 && !p.Running() {
			t.Fatalf("%s has ended: %s", p.Name, p.Cmd.ProcessState)
		}
		return len(found) > 0
	})
	return found[0]
}

// startProxy starts a proxy with a new state directory.
func startProxy(t *testing.T, args ...string) (p *process.Process, state string, link int) {
	t.Helper()
	state, link = t.TempDir(), freePort(t)
	p = start(t, append([]string{"proxy", "--listen", loopback(link), "--state", state, "--log-format", "json"}, args...)...)
	said(t, p, "proxy listening")
	return p, state, link
}

// startBridge starts a bridge that exposes what the words say, PUBLIC=TARGET, and waits until all of that is up. The words may have flags among them.
func startBridge(t *testing.T, proxyState, proxy string, exposes ...string) *process.Process {
	t.Helper()
	token := strings.TrimSpace(run(t, "key", "add", fmt.Sprintf("key%d", freePort(t)), "--state", proxyState, "--allow", "http/*", "--allow", "https/*", "--allow", "tls/*"))
	b := start(t, append([]string{"bridge", token, "--proxy", proxy, "--state", t.TempDir(), "--log-format", "json"}, exposes...)...)
	for _, e := range exposes {
		if public, _, ok := strings.Cut(e, "="); ok {
			said(t, b, "service up", "service", public)
		}
	}
	return b
}

// startRelay starts what stands between bridge and proxy, where the link can be cut.
func startRelay(t *testing.T, link int) *faultnet.Relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := faultnet.Start(ln, func() (*net.TCPConn, error) {
		c, err := net.Dial("tcp", loopback(link))
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}, nil)
	t.Cleanup(r.Close)
	return r
}
