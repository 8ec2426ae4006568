// Package openapi holds openapi.yaml to what live processes answer.
package openapi

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/e2e/process"
	"reverser/internal/freeport"
	"reverser/internal/leaktest"
)

var buildDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "reverser-openapi-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
	code := leaktest.Run(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// reverser builds the program, once.
var reverser = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(buildDir, "reverser")
	return bin, process.Build(context.Background(), filepath.Join("..", ".."), bin)
})

// missing skips a test for want of something, which is no excuse where everything was to be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// await waits for a condition, for as long as a busy machine may need.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// role is a live process with an admin address.
type role struct {
	name  string // "proxy" or "bridge"
	base  string // URL
	token string
}

// The service of which exchanges are kept, and a key that is there.
const (
	service = "http/app.example.com"
	keyName = "office"
)

// start starts a proxy and a bridge, with a connection and an exchange by HTTP.
func start(t *testing.T) (proxy, bridge role) {
	t.Helper()
	bin, err := reverser()
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) *process.Process {
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
	var ports [5]int
	for i := range ports {
		if ports[i], err = freeport.Get(); err != nil {
			t.Fatal(err)
		}
	}
	address := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	dir := t.TempDir()
	proxyState, bridgeState, file := filepath.Join(dir, "proxy"), filepath.Join(dir, "bridge"), filepath.Join(dir, "bridge.toml")
	add := run("key", "add", keyName, "--state", proxyState, "--allow", "http/*", "--allow", fmt.Sprintf("tcp/%d", ports[4]))
	await(t, "a key is made", func() bool { return !add.Running() })

	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	t.Cleanup(target.Close)
	at := target.Listener.Addr()
	text := fmt.Sprintf("proxy = %q\nadmin = %q\n[[expose]]\npublic = %q\ntarget = %q\ninspect = true\n[[expose]]\npublic = \"tcp/%d\"\ntarget = %q\n",
		address(0), address(3), service, at, ports[4], at)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run("proxy", "--listen", address(0), "--http", address(1), "--admin", address(2), "--state", proxyState, "--log-format", "json")
	b := run("bridge", strings.TrimSpace(add.Stdout.String()), "--config", file, "--state", bridgeState, "--log-format", "json")
	for _, public := range []string{service, fmt.Sprintf("tcp/%d", ports[4])} {
		await(t, public+" is up", func() bool { return len(b.Records("service up", "service", public)) > 0 })
	}
	req, err := http.NewRequest("POST", "http://"+address(1)+"/path", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	req.Host, req.Close = "app.example.com", true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	user, err := net.Dial("tcp", address(4))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	await(t, "the user is connected", func() bool { return len(b.Records("pair created", "service", fmt.Sprintf("tcp/%d", ports[4]))) > 0 })

	token := func(state string) string {
		var text []byte
		await(t, "the token of the admin address is there", func() bool {
			text, err = os.ReadFile(filepath.Join(state, "admin.token"))
			return err == nil && len(text) > 0
		})
		return strings.TrimSpace(string(text))
	}
	return role{"proxy", "http://" + address(2), token(proxyState)}, role{"bridge", "http://" + address(3), token(bridgeState)}
}
