package e2e

import (
	"net"
	"strconv"
	"strings"
	"testing"
)

// tooLate is what status --check says of a process that hangs, or of one that had no turn for so long on a busy machine.
const tooLate = "did not answer within a second"

// checkStatus runs `status --check` and returns its exit code and what it wrote on stderr. It tries again when the process had no turn.
func checkStatus(t *testing.T, state string, service ...string) (code int, line string) {
	t.Helper()
	eventually(t, "the process answers a check", func() bool {
		code, line = checkOnce(t, state, service...)
		return !strings.Contains(line, tooLate)
	})
	return code, line
}

func checkOnce(t *testing.T, state string, service ...string) (code int, line string) {
	t.Helper()
	p := startReverser(t, "status --check", nil, append([]string{"status", "--check", "--state", state}, service...)...)
	code = p.awaitEnd()
	if out := p.Stdout.String(); out != "" {
		t.Errorf("status --check wrote %q on stdout; want nothing", out)
	}
	return code, p.Stderr.String()
}

func wantServed(t *testing.T, state string, service ...string) {
	t.Helper()
	if code, line := checkStatus(t, state, service...); code != 0 || line != "" {
		t.Errorf("status --check %s = %d, %q; want 0 without a word", service, code, line)
	}
}

// wantDown wants one line that has all the words.
func wantDown(t *testing.T, state, words string, service ...string) {
	t.Helper()
	code, line := checkStatus(t, state, service...)
	if code != 1 || strings.Count(line, "\n") != 1 || !strings.Contains(line, words) {
		t.Errorf("status --check %s = %d, %q; want 1 and one line with %q", service, code, line, words)
	}
}

// awaitDown waits until the check says the words, and wants them as wantDown does.
func awaitDown(t *testing.T, state, words string, service ...string) {
	t.Helper()
	eventually(t, "status --check says "+words, func() bool {
		_, line := checkStatus(t, state, service...)
		return strings.Contains(line, words)
	})
	wantDown(t, state, words, service...)
}

// What a health check sees while the link is lost and comes back.
func TestStatusCheckOfLostLink(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	for _, state := range []string{tun.proxy.state, tun.bridge.state} {
		wantServed(t, state)
		wantServed(t, state, tun.service)
	}

	tun.proxy.Kill()
	wantDown(t, tun.proxy.state, "no reverser process is running in "+tun.proxy.state)
	awaitDown(t, tun.bridge.state, "the link to "+loopback(tun.proxy.link)+" is down")
	wantDown(t, tun.bridge.state, "the link to "+loopback(tun.proxy.link)+" is down", tun.service)

	again := startProxyAt(t, tun.proxy.state, tun.proxy.link)
	wantServed(t, again.state) // whether or not the bridge is back
	tun.bridge.awaitUp(tun.service)
	wantServed(t, tun.bridge.state)
	eventually(t, "the proxy serves again", func() bool { code, _ := checkStatus(t, again.state, tun.service); return code == 0 })

	tun.bridge.Kill()
	awaitDown(t, again.state, tun.service+" is away", tun.service)
	wantServed(t, again.state)
}

// A bridge that nobody lets in is down: no key, and no proxy.
func TestStatusCheckOfRefusedBridge(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t)
	token := addKey(t, proxy.state, "nas", "tcp/1-65535")
	service := strconv.Itoa(freePort(t))
	runReverser(t, "key", "remove", "nas", "--state", proxy.state)
	b := startBridge(t, token, "--proxy", loopback(proxy.link), service)
	b.awaitLogged("key")
	wantDown(t, b.state, "the link to "+loopback(proxy.link)+" is down")

	nowhere := freePort(t)
	b = startBridge(t, token, "--proxy", loopback(nowhere), service)
	b.awaitLogged("refused")
	wantDown(t, b.state, "the link to "+loopback(nowhere)+" is down")
}

// The check is of the tunnel. It connects to no target, so a target that is gone does not make an orchestrator restart the bridge.
func TestStatusCheckOfUnknownTarget(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(freePort(t)))
	wantServed(t, tun.bridge.state, tun.service)
	wantResetOf(t, tun.addr(), func(*net.TCPConn) error { return nil })
	wantServed(t, tun.bridge.state)
}
