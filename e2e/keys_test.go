package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"reverser/internal/grammar"
)

// The line that the proxy prints works as it is printed.
func TestPrintedLine(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	startService(t, port)
	p := startProxy(t)
	p.defaultToken()
	var line []string
	for l := range strings.Lines(p.Stdout.String()) {
		if fields := strings.Fields(l); len(fields) > 2 && fields[0] == "reverser" && fields[1] == "bridge" {
			line = fields[1:]
		}
	}
	if len(line) != 3 || line[2] != "9000" {
		t.Fatalf("the proxy printed %d words after `reverser`; want `bridge TOKEN 9000`", len(line))
	}
	public := freePort(t)
	line[2] = fmt.Sprintf("%d=%d", public, port)
	b := &bridgeProcess{state: t.TempDir()}
	b.testProcess = startReverser(t, "bridge", nil, append(line, "--state", b.state, "--log-format", "json")...)
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	c := dial(t, loopback(public))
	io.WriteString(c, "echo\n")
	exchange(t, c, "hello")

	for _, p := range []*testProcess{p.testProcess, b.testProcess} {
		if tokenPattern.MatchString(p.Stderr.String()) {
			t.Errorf("%s logged the token", p.Name)
		}
	}
}

func TestTwoKeysAndPolicy(t *testing.T) {
	t.Parallel()
	p := startProxy(t)
	mine, others, unlisted := freePort(t), freePort(t), freePort(t)
	token1 := addKey(t, p.state, "office", fmt.Sprintf("tcp/%d", mine))
	token2 := addKey(t, p.state, "lab", fmt.Sprintf("tcp/%d", others))

	service := serve(t, echo)
	b1 := startBridge(t, token1,
		fmt.Sprintf("%d=%d", mine, service),
		fmt.Sprintf("%d=%d", others, service),
		fmt.Sprintf("%d=%d", unlisted, service))
	b1.awaitUp(fmt.Sprintf("tcp/%d", mine))
	for _, denied := range []int{others, unlisted} {
		public := fmt.Sprintf("tcp/%d", denied)
		b1.awaitService(public, "denied")
		// The refusal names the service and the policy.
		b1.awaitLogged(public, "denied", fmt.Sprintf("tcp/%d", mine))
	}
	if _, err := readPattern(tryDial(loopback(unlisted))); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial of a denied port: %s; want refused", describe(err))
	}
	// What one key was denied does not stand in the way of the other.
	b2 := startBridge(t, token2, fmt.Sprintf("%d=%d", others, service))
	b2.awaitUp(fmt.Sprintf("tcp/%d", others))
	exchange(t, dial(t, loopback(mine)), "office")
	exchange(t, dial(t, loopback(others)), "lab")

	links := mustStatus(t, p.state).Links
	up := make(map[string]bool)
	for _, l := range links {
		up[l.Key] = l.State == "up"
	}
	if !up["office"] || !up["lab"] {
		t.Errorf("links %+v; want office and lab up", links)
	}
}

// endsKey runs an order that ends a key whose bridge has a user, and returns the bridge and its public port when both sides have ended
// what the key had.
func endsKey(t *testing.T, p *proxyProcess, order func()) (b *bridgeProcess, public int) {
	t.Helper()
	public = freePort(t)
	tok := addKey(t, p.state, "guest", fmt.Sprintf("tcp/%d", public))
	b = startBridge(t, tok, fmt.Sprintf("%d=%d", public, serve(t, echo)))
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	c := dial(t, loopback(public))
	exchange(t, c, "hello")
	order()
	wantReset(t, c, 0)
	eventually(t, "the public port is closed", func() bool {
		_, err := readPattern(tryDial(loopback(public)))
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	for _, side := range []*testProcess{p.testProcess, b.testProcess} {
		side.awaitLogged(`"pair released"`, `"service-removed"`)
	}
	return b, public
}

func TestRemovedKeyEndsEverything(t *testing.T) {
	t.Parallel()
	p := startProxy(t)
	b, _ := endsKey(t, p, func() { runReverser(t, "key", "remove", "guest", "--state", p.state) })
	b.awaitLogged(`"level":"WARN"`, "refused", "key")
	if !b.Running() {
		t.Errorf("the bridge has ended: %v; want it to try on", b.Cmd.ProcessState)
	}
}

// A bridge changes over to a new token in the middle of a transfer, and the old token is worthless then.
func TestRotateUnderTransfer(t *testing.T) {
	t.Parallel()
	p := startProxy(t)
	public := freePort(t)
	service := serve(t, echo)
	expose, name := fmt.Sprintf("%d=%d", public, service), fmt.Sprintf("tcp/%d", public)
	old := addKey(t, p.state, "nas", name)
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(old)
	b := &bridgeProcess{state: t.TempDir()}
	b.testProcess = startReverser(t, "bridge", nil, "bridge", "--token-file", file, expose, "--state", b.state, "--log-format", "json")
	b.awaitUp(name)

	c := dial(t, loopback(public))
	const size = 64 << 20
	sent := make(chan error, 1)
	half := make(chan struct{})
	go func() {
		block := make([]byte, 64<<10)
		for n := 0; n < size; n += len(block) {
			for i := range block {
				block[i] = byte((n + i) % 251)
			}
			if n == size/2 {
				close(half)
			}
			if _, err := c.Write(block); err != nil {
				sent <- err
				return
			}
		}
		sent <- c.CloseWrite()
	}()
	got := make(chan error, 1)
	go func() {
		block := make([]byte, 64<<10)
		n := 0
		for {
			k, err := c.Read(block)
			for i := range k {
				if block[i] != byte((n+i)%251) {
					got <- fmt.Errorf("byte %d is another one", n+i)
					return
				}
			}
			if n += k; err != nil {
				if err != io.EOF || n != size {
					got <- fmt.Errorf("%d of %d bytes, then %w", n, size, err)
				}
				close(got)
				return
			}
		}
	}()
	<-half
	newer := strings.TrimSpace(runReverser(t, "key", "rotate", "nas", "--state", p.state))
	write(newer)
	runReverser(t, "reload", "--state", b.state)
	p.awaitLogged("the new token of a key is in use", `"nas"`)
	for _, ch := range []chan error{sent, got} {
		if err := <-ch; err != nil {
			t.Error(err)
		}
	}
	thief := startBridge(t, old, expose)
	thief.awaitLogged("this token was replaced (reverser key rotate)")
	exchange(t, dial(t, loopback(public)), "still here")
	b.Kill()
	again := startBridge(t, newer, expose)
	again.awaitUp(name)
	exchange(t, dial(t, loopback(public)), "and with the new token")
	thief.Kill()
}

// A key ends at its moment, with a word at both sides, and its bridge is back when the key gets more time.
func TestKeyExpires(t *testing.T) {
	t.Parallel()
	p := startProxy(t)
	b, public := endsKey(t, p, func() {
		for seconds := 3; ; seconds *= 2 {
			begun := time.Now()
			runReverser(t, "key", "edit", "guest", "--expires", fmt.Sprintf("%ds", seconds), "--state", p.state)
			// A key that is stored when its time is over ends without the word of the proxy. The time is stored in whole seconds.
			if time.Since(begun) < time.Duration(seconds-1)*time.Second {
				break
			}
		}
	})
	p.awaitLogged(`"key expired`, `"guest"`)
	b.awaitLogged(`"level":"WARN"`, "the key expired at", "reverser key edit NAME --expires 30d")
	runReverser(t, "key", "edit", "guest", "--expires", "never", "--state", p.state)
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	exchange(t, dial(t, loopback(public)), "and again")
}

func TestSecondBridgeWithTheSameKey(t *testing.T) {
	t.Parallel()
	service := serve(t, echo)
	tun := startTunnel(t, strconv.Itoa(service))
	old := tun.dial(t)
	exchange(t, old, "hello")

	second := startBridge(t, tun.token, fmt.Sprintf("%d=%d", tun.public, service))
	second.awaitLogged("key add")
	exchange(t, old, "the first goes on")
	exchange(t, tun.dial(t), "and takes new connections")
	if !second.Running() {
		t.Fatalf("the second bridge has ended: %v; want it to try on", second.Cmd.ProcessState)
	}
	tun.bridge.Kill()
	second.awaitUp(tun.service)
	exchange(t, tun.dial(t), "the second takes over")
}

func TestBridgeRestartTakesOverAtOnce(t *testing.T) {
	t.Parallel()
	service := serve(t, echo)
	tun := startTunnel(t, strconv.Itoa(service))
	for range 3 {
		tun.bridge.Kill()
		tun.bridge = startBridge(t, tun.token, fmt.Sprintf("%d=%d", tun.public, service))
		tun.bridge.awaitUp(tun.service)
		exchange(t, tun.dial(t), "hello")
	}
}

// A key that the proxy does not accept is tried again, loudly.
func TestWrongKey(t *testing.T) {
	t.Parallel()
	p := startProxy(t)
	good, err := grammar.ParseToken(p.defaultToken())
	if err != nil {
		t.Fatal(err)
	}
	wrongSecret, wrongID := good, good
	wrongSecret.Secret[0] ^= 1
	wrongID.KeyID[0] ^= 1
	for name, tok := range map[string]grammar.Token{"wrong secret": wrongSecret, "unknown key": wrongID} {
		t.Run(name, func(t *testing.T) {
			public := freePort(t)
			b := startBridge(t, tok.Encode(), strconv.Itoa(public))
			b.awaitLogged(`"level":"WARN"`, "key")
			eventually(t, "the link is shown as down", func() bool {
				st, err := statusOf(t, b.state)
				return err == nil && len(st.Links) == 1 && st.Links[0].State == "down"
			})
			if !b.Running() {
				t.Errorf("the bridge has ended: %v; want it to try on", b.Cmd.ProcessState)
			}
			if _, err := readPattern(tryDial(loopback(public))); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dial of the public port: %s; want refused", describe(err))
			}
		})
	}
}
