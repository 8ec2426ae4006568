package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"reverser/e2e/process"
	"reverser/internal/freeport"
)

// patience is how long anything may take. It only bounds a hanging test: every wait
// ends as soon as its condition holds.
const patience = 90 * time.Second

// lifetime is how long a connection may be there. Many steps of a test share one, and a busy machine takes some time for each.
const lifetime = 4 * patience

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	pause := 5 * time.Millisecond
	for start := time.Now(); !cond(); time.Sleep(pause) {
		if time.Since(start) > patience {
			t.Fatalf("waited %v, without success, for: %s", patience, what)
		}
		pause = min(pause*3/2, 200*time.Millisecond)
	}
}

// A testProcess is a program that a test has started. It ends with the test.
type testProcess struct {
	*process.Process
	t     *testing.T
	quiet bool // what it wrote says nothing about a failed test

	onWine bool // it is a program of Windows
}

// start runs a program until the end of the test.
func start(t *testing.T, name, path string, env []string, args ...string) *testProcess {
	t.Helper()
	p := prepare(t, name, path, env, args...)
	p.start()
	return p
}

// prepare is start before the start.
func prepare(t *testing.T, name, path string, env []string, args ...string) *testProcess {
	return &testProcess{Process: process.New(name, path, env, args...), t: t}
}

func (p *testProcess) start() {
	p.t.Helper()
	if err := p.Start(nil); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(p.cleanup)
}

func (p *testProcess) cleanup() {
	p.Kill()
	text := p.Stdout.String() + p.Stderr.String()
	for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
		if strings.Contains(text, bad) {
			p.t.Errorf("%s wrote %q", p.Name, bad)
		}
	}
	if p.t.Failed() && !p.quiet {
		p.t.Logf("--- %s: %s, args %q\n--- its stdout:\n%s--- its stderr:\n%s", p.Name, p.Cmd.ProcessState, hideTokens(p.Cmd.Args[1:]), p.Stdout.String(), p.Stderr.String())
	}
}

func hideTokens(args []string) []string {
	shown := make([]string, len(args))
	for i, a := range args {
		if strings.HasPrefix(a, "rv1_") {
			a = "rv1_…"
		}
		shown[i] = a
	}
	return shown
}

// stop asks for the end, as a service manager does, and a program of Windows as Ctrl-C does.
func (p *testProcess) stop() {
	p.t.Helper()
	s := os.Signal(syscall.SIGTERM)
	if p.onWine {
		s = os.Interrupt
	}
	if err := p.Cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %v to %s: %v", s, p.Name, err)
	}
}

// awaitEnd waits for the end and returns the exit code.
func (p *testProcess) awaitEnd() int { p.t.Helper(); return p.awaitEndFor(patience) }

// awaitEndFor is awaitEnd for a program that has much to do.
func (p *testProcess) awaitEndFor(limit time.Duration) int {
	p.t.Helper()
	select {
	case <-p.Ended():
	case <-time.After(limit):
		p.t.Errorf("%s did not end", p.Name)
		p.Kill()
	}
	return p.Cmd.ProcessState.ExitCode()
}

func wantExit(t *testing.T, p *testProcess) {
	t.Helper()
	if code := p.awaitEnd(); code != 0 {
		t.Errorf("%s: exit code %d, want 0", p.Name, code)
	}
}

// awaitOutput waits until the process has written text, on stdout or stderr.
func (p *testProcess) awaitOutput(text string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%s writes %q", p.Name, text), func() bool {
		if strings.Contains(p.Stdout.String(), text) || strings.Contains(p.Stderr.String(), text) {
			return true
		}
		if !p.Running() {
			p.t.Fatalf("%s has ended (%v) without writing %q", p.Name, p.Cmd.ProcessState, text)
		}
		return false
	})
}

// A record is one line of a JSON log.
type record = process.Record

// awaitRecord waits for a log line and returns the first.
func (p *testProcess) awaitRecord(msg string, match ...any) record {
	p.t.Helper()
	var found []record
	eventually(p.t, fmt.Sprintf("%s logs %q %v", p.Name, msg, match), func() bool {
		found = p.Records(msg, match...)
		return len(found) > 0
	})
	return found[0]
}

// awaitLogged waits until one log line, whatever its message, has all the words.
func (p *testProcess) awaitLogged(words ...string) string {
	p.t.Helper()
	var found string
	eventually(p.t, fmt.Sprintf("%s logs a line with %q", p.Name, words), func() bool {
		for line := range strings.Lines(p.Stderr.String()) {
			ok := true
			for _, w := range words {
				ok = ok && strings.Contains(strings.ToLower(line), strings.ToLower(w))
			}
			if ok {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

// run runs a program to its end and returns its stdout. It fails the test unless
// the exit code is 0.
func run(t *testing.T, path string, args ...string) string {
	t.Helper()
	p := start(t, filepath.Base(path), path, nil, args...)
	if code := p.awaitEnd(); code != 0 {
		t.Fatalf("%s: exit code %d; want 0\n%s", p.Cmd, code, p.Stderr.String())
	}
	return p.Stdout.String()
}

// freePort returns a port on which nothing listens and that no other test has got.
func freePort(t *testing.T) int {
	t.Helper()
	port, err := freeport.Get()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
