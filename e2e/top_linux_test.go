package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"reverser/e2e/attacks"
	"reverser/internal/grammar"
	"reverser/internal/wire"
)

var tmux = program{"tmux", "tmux"}

// terminal is one in tmux, in which a script of the shell runs.
type terminal struct {
	t      *testing.T
	socket string
	raw    string // the file with all that was written to it
	last   string // the screen as it was seen last
}

func startTerminal(t *testing.T, width, height int, script string) *terminal {
	t.Helper()
	need(t, tmux)
	dir, err := os.MkdirTemp("", "tmux") // short, as it is the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	x := &terminal{t: t, socket: filepath.Join(dir, "s"), raw: filepath.Join(dir, "raw")}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("--- the terminal:\n%s", x.last)
		}
	})
	t.Cleanup(func() { exec.Command(tmux.path(t), "-S", x.socket, "kill-server").Run() })
	x.tmux("-f", "/dev/null", "new-session", "-d", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height), "sh", "-c", "read go; "+script+"; cat")
	x.tmux("pipe-pane", "cat > "+x.raw)
	x.press("Enter")
	return x
}

func (x *terminal) tmux(args ...string) string {
	x.t.Helper()
	out, err := exec.Command(tmux.path(x.t), append([]string{"-S", x.socket}, args...)...).CombinedOutput()
	if err != nil {
		x.t.Fatalf("tmux %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func (x *terminal) press(keys ...string) {
	x.t.Helper()
	x.tmux(append([]string{"send-keys"}, keys...)...)
}

func (x *terminal) screen() string { x.t.Helper(); return x.tmux("capture-pane", "-p") }

// await waits until the screen matches a pattern, and returns the match.
func (x *terminal) await(pattern string) string {
	x.t.Helper()
	re, found := regexp.MustCompile(pattern), ""
	eventually(x.t, fmt.Sprintf("the screen shows %q", pattern), func() bool {
		x.last = x.screen()
		found = re.FindString(x.last)
		return found != ""
	})
	return found
}

// TestTop: somebody at a terminal watches a transfer, sorts, ends a connection and leaves; the terminal is as it was then. What a bridge
// says does not reach it.
func TestTop(t *testing.T) {
	t.Parallel()
	need(t, tmux)
	target, port, evil, link := serve(t, echo), freePort(t), freePort(t), freePort(t)
	p := startProxyAt(t, t.TempDir(), link)
	token := addKey(t, p.state, "nas", fmt.Sprintf("tcp/%d", port))
	b := startBridge(t, token, "--proxy", loopback(link), fmt.Sprintf("%d=%s", port, loopback(target)), "9=127.0.0.1:9")
	b.awaitUp(fmt.Sprintf("tcp/%d", port))
	b.awaitService("tcp/9", "denied")
	sayEvil(t, p, fmt.Sprintf("tcp/%d", evil), "中\x1b]0;owned\x07\x1b[2J.example")

	user := dial(t, loopback(port))
	ended := make(chan error, 1)
	go func() {
		block := bytes.Repeat([]byte("x"), 10_000)
		for {
			if _, err := user.Write(block); err != nil {
				ended <- err
				return
			}
			if _, err := io.ReadFull(user, block); err != nil {
				ended <- err
				return
			}
			time.Sleep(10 * time.Millisecond) // a load, not a wait
		}
	}()

	top := fmt.Sprintf("%s top --state %s; echo exit=$?", reverser(t), p.state)
	dir := t.TempDir()
	x := startTerminal(t, 80, 24, fmt.Sprintf("stty -g > %[1]s/before; %[2]s; stty -g > %[1]s/after; NO_COLOR=1 %[2]s; TERM=dumb %[2]s", dir, top))
	x.await(`2 links   2 of 3 services up   1 connection`)
	x.await(`tcp/9 is denied: the policy of key "nas"`)
	row := fmt.Sprintf(`tcp/%d +127\.0\.0\.1:\d+ +[\d.]+ kB +[\d.]+ kB +[\d.]+ [kM]B .*open`, port)
	first := x.await(row)
	eventually(t, "the numbers move", func() bool { return x.await(row) != first })
	x.press("s")
	x.await(`by total`)
	x.press("/", "127.0.0.1")
	x.await(`show those with: 127\.0\.0\.1_`)
	x.press("Enter")
	x.await(`1 with "127\.0\.0\.1", by total`)
	x.press("2")
	x.await(`(?m)^tcp/9 +denied +0`)
	x.tmux("resize-window", "-x", "130", "-y", "20")
	x.await(`中\\u001b\]0;own`)
	x.tmux("resize-window", "-x", "40", "-y", "8")
	x.await(`(?m)^tcp/9 +denied`)
	x.press("1")
	x.await(`tcp/\d+ +127`)
	x.tmux("resize-window", "-x", "80", "-y", "24")
	x.press("Escape")
	x.await(`3 links +by total`) // or the two keys would be one
	x.press("x")
	x.await(fmt.Sprintf(`y ends connection \d+, 127\.0\.0\.1:\d+ to tcp/%d`, port))
	x.press("y")
	x.await(`ended connection \d+`)
	select {
	case err := <-ended:
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the user's connection ends with %v, want a reset", err)
		}
	case <-time.After(patience):
		t.Fatal("the user's connection goes on")
	}
	x.await(`2 of 3 services up   0 connections`)
	x.press("q")
	// The next one, without colours, may take the whole screen before anybody has seen how the first ended.
	var coloured []byte
	eventually(t, "the first ends with 0", func() (over bool) {
		coloured, _, over = bytes.Cut([]byte(readText(t, x.raw)), []byte("exit=0"))
		return over
	})
	x.await(`proxy .*, up`)
	for _, name := range []string{"before", "after"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if before, after := readText(t, filepath.Join(dir, "before")), readText(t, filepath.Join(dir, "after")); before != after {
		t.Errorf("the terminal's settings were %q and are %q", before, after)
	}
	red := regexp.MustCompile("\x1b\\[([0-9]+;)*31(;[0-9]+)*m")
	if !red.Match(coloured) {
		t.Errorf("what is wrong is not red")
	}
	for _, bad := range []string{"\x1b]0;owned", "\x07", "\x1b[2J.example"} {
		if bytes.Contains(coloured, []byte(bad)) {
			t.Errorf("%q reached the terminal", bad)
		}
	}
	p.stop()
	x.await(`the process does not answer, waiting for it`)
	x.press("q")
	x.await(`exit=0(.|\n)*TERM=dumb: it cannot move its cursor(.|\n)*reverser status(.|\n)*exit=2`)
	if plain := readText(t, x.raw)[len(coloured):]; red.MatchString(plain) {
		t.Error("it is red with NO_COLOR")
	}
	if got := strings.TrimSpace(x.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag} #{pane_title}")); !strings.HasPrefix(got, "0 1 ") || strings.Contains(got, "owned") {
		t.Errorf("the terminal shows another screen, has no cursor, or has a title that a bridge gave it: %s", got)
	}
}

// sayEvil has a bridge of somebody else claim a service with a target that a terminal would obey.
func sayEvil(t *testing.T, p *proxyProcess, public, target string) {
	t.Helper()
	token, err := grammar.ParseToken(addKey(t, p.state, "guest", public))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", loopback(p.link))
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b, err := attacks.Begin(ctx, token, "guest", dial, func(int, wire.Frame) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Join(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if err := b.Send(0, wire.AppendClaim(nil, 1, wire.Claim{Public: public, Target: target})); err != nil {
		t.Fatal(err)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
