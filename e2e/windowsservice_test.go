package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A hosted role is a service of Windows, which its service manager runs.
type hosted struct {
	t    *testing.T
	role string
}

// order runs a command of the Windows program to its end.
func (h hosted) order(args ...string) (code int, said string) {
	h.t.Helper()
	words := strings.Fields(os.Getenv(programEnv[h.role]))
	p := start(h.t, "reverser "+args[0], words[0], nil, append(words[1:], args...)...)
	p.quiet = true
	code = p.awaitEnd()
	return code, p.Stdout.String() + p.Stderr.String()
}

// must is order for one that has to end with a code and say some words. It returns all that was said.
func (h hosted) must(code int, words string, args ...string) string {
	h.t.Helper()
	got, said := h.order(args...)
	if got != code || !strings.Contains(said, words) {
		h.t.Fatalf("reverser %s: exit code %d\n%s\nwant %d and %q", strings.Join(args, " "), got, tokenPattern.ReplaceAllString(said, "rv1_…"), code, words)
	}
	return said
}

// state is where the installation puts the state directory.
func (h hosted) state() string { return `C:\ProgramData\reverser\` + h.role }

// onWindows is a path as a program of Windows knows it.
func onWindows(path string) string { return "Z:" + path }

// newHosted is for a test with services, which there are once on a machine.
func newHosted(t *testing.T, role string) hosted {
	t.Helper()
	if !onWine(role) {
		t.Skip("needs a program of Windows: .ci/wine runs it")
	}
	h := hosted{t, role}
	t.Cleanup(func() { h.order("service", "uninstall", role, "--purge") })
	return h
}

// breakAndMend has a service stopped, and started with a configuration file that is bad: it says why it does not come up, and comes up
// with a good one.
func (h hosted) breakAndMend(file, good string) {
	h.t.Helper()
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	h.must(0, "is stopped", "service", "stop", h.role)
	h.must(1, "not running: reverser-"+h.role, "service", "status", h.role)
	write("lisen = 1\n")
	h.must(1, "does not come up: exit code 2", "service", "start", h.role)
	said := h.must(1, "reverser-"+h.role+"  failed", "service", "status", h.role)
	for _, words := range []string{"why: exit code 2: wrong usage or configuration", "it said last:", "lisen: there is no such key", "the whole log: "} {
		if !strings.Contains(said, words) {
			h.t.Errorf("service status of one that does not come up says %q; want %q", said, words)
		}
	}
	write(good)
	h.must(0, "running", "service", "start", h.role)
}

// TestWindowsServiceBridge: the service manager runs the bridge, from its installation until nothing is left of it.
func TestWindowsServiceBridge(t *testing.T) {
	t.Parallel()
	h := newHosted(t, "bridge")
	dir := t.TempDir()
	p, port, public, other := startProxy(t), serve(t, echo), freePort(t), freePort(t)
	token, config := filepath.Join(dir, "nas token"), filepath.Join(dir, "网桥.toml")
	if err := os.WriteFile(token, []byte(p.defaultToken()+"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("pairs = true\n[[expose]]\npublic = \"%d\"\ntarget = \"%d\"\n", public, port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.must(1, "is not installed", "service", "status", "bridge")
	h.must(1, "is not installed", "service", "start", "bridge")
	install := []string{"service", "install", "bridge", "--config", onWindows(config), "--token-file", onWindows(token)}
	h.must(0, "running", install...)
	h.must(1, "is installed already", install...)
	h.must(0, "starts with the machine (Windows services)", "service", "status")
	c := dial(t, loopback(public))
	exchange(t, c, "hello")
	h.must(0, "", "status", "--check", strconv.Itoa(public), "--state", h.state())

	// A stop drains: who is connected may finish.
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		h.order("service", "stop", "bridge")
	}()
	eventually(t, "the service manager says that it stops", func() bool {
		_, said := h.order("service", "status", "bridge")
		return strings.Contains(said, "reverser-bridge  stopping")
	})
	exchange(t, c, "who is connected may finish")
	c.Close()
	<-stopped
	h.must(0, "running", "service", "start", "bridge")
	exchangeSoon(t, public, "hello again")
	h.breakAndMend(config, text)
	exchangeSoon(t, public, "hello once more")

	// Another takes its place with the token that is there, and what does not come up does not.
	h.must(0, "running", "service", "install", "bridge", "--replace", fmt.Sprintf("%d=%d", other, port))
	exchangeSoon(t, other, "hello")
	h.must(1, "the service that was there before is back", "service", "install", "bridge", "--replace", "--proxy", loopback(freePort(t)), strconv.Itoa(public))
	exchangeSoon(t, other, "hello still")

	if said := h.must(0, "is not a service any more", "service", "uninstall", "bridge", "--purge"); strings.Contains(said, "still there: ") {
		t.Errorf("uninstall left something: %s", said)
	}
	h.must(1, "is not installed", "service", "status", "bridge")
}

// TestWindowsServiceProxy is the same with a proxy, whose keys and identity outlive an installation.
func TestWindowsServiceProxy(t *testing.T) {
	t.Parallel()
	h := newHosted(t, "proxy")
	config := filepath.Join(t.TempDir(), "代理.toml")
	text := fmt.Sprintf("listen = %q\n", loopback(freePort(t)))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	install := []string{"service", "install", "proxy", "--config", onWindows(config)}
	said := h.must(0, "running", install...)
	token := tokenPattern.FindString(said)
	if token == "" {
		t.Fatal("the installation printed no token")
	}
	public := freePort(t)
	b := startBridge(t, token, fmt.Sprintf("%d=%d", public, serve(t, echo)))
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	exchangeSoon(t, public, "hello")
	h.must(0, "default", "key", "list", "--state", h.state())
	h.must(0, "", "status", "--check", strconv.Itoa(public), "--state", h.state())
	h.breakAndMend(config, text)
	exchangeSoon(t, public, "hello again")

	h.must(0, "still there: ", "service", "uninstall", "proxy")
	if said := h.must(0, "running", install...); tokenPattern.MatchString(said) {
		t.Error("the second installation printed a token; want the first one to be good still")
	}
	exchangeSoon(t, public, "hello once more")
	if said := h.must(0, "is not a service any more", "service", "uninstall", "proxy", "--purge"); strings.Contains(said, "still there: ") {
		t.Errorf("uninstall left something: %s", said)
	}
}

// exchangeSoon is exchange on a connection of its own, when there is one to be had: a bridge may be on its way back.
func exchangeSoon(t *testing.T, public int, data string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the service behind port %d answers", public), func() bool {
		c, err := net.DialTimeout("tcp", loopback(public), patience)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		got := make([]byte, len(data))
		io.WriteString(c, data)
		_, err = io.ReadFull(c, got)
		return err == nil && string(got) == data
	})
}
