//go:build unix

package e2e

import (
	"io"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A process that hangs fails its check soon, and passes it again when it goes on.
func TestStatusCheckOfHungProcess(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t)
	wantServed(t, proxy.state)
	signal(t, proxy.testProcess, syscall.SIGSTOP)
	if code, line := checkOnce(t, proxy.state); code != 1 || !strings.Contains(line, tooLate) {
		t.Errorf("status --check of a process that hangs = %d, %q; want 1 and %q", code, line, tooLate)
	}
	signal(t, proxy.testProcess, syscall.SIGCONT)
	wantServed(t, proxy.state)
}

// A process that is stopping is not for new users, though it still answers.
func TestStatusCheckOfDrain(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	c := tun.dial(t)
	exchange(t, c, "stay")
	tun.proxy.stop()
	awaitDown(t, tun.proxy.state, "the proxy is stopping")
	awaitDown(t, tun.bridge.state, "the link to "+loopback(tun.proxy.link)+" is draining")
	exchange(t, c, "still here")
	tun.bridge.stop()
	awaitDown(t, tun.bridge.state, "the bridge is stopping")
	c.CloseWrite()
	io.Copy(io.Discard, c)
	for _, p := range []*testProcess{tun.proxy.testProcess, tun.bridge.testProcess} {
		if code := p.awaitEnd(); code != 0 {
			t.Errorf("%s ended with %d; want 0", p.Name, code)
		}
	}
}
