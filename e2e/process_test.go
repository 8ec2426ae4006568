package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long anything may take. It only bounds a hanging test: every wait
// ends as soon as its condition holds.
const patience = 90 * time.Second

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	pause := 5 * time.Millisecond
	for start := time.Now(); !cond(); time.Sleep(pause) {
		if time.Since(start) > patience {
			t.Fatalf("waited %v in vain for: %s", patience, what)
		}
		pause = min(pause*3/2, 200*time.Millisecond)
	}
}

// A process is a program that a test has started.
type process struct {
	t      *testing.T
	name   string
	cmd    *exec.Cmd
	stdout output
	stderr output
	ended  chan struct{} // closed when it has ended
	quiet  bool          // what it wrote says nothing about a failed test
}

// start runs a program until the end of the test.
func start(t *testing.T, name, path string, env []string, args ...string) *process {
	t.Helper()
	p := prepare(t, name, path, env, args...)
	p.start()
	return p
}

// prepare is start before the start.
func prepare(t *testing.T, name, path string, env []string, args ...string) *process {
	p := &process{t: t, name: name, ended: make(chan struct{})}
	p.cmd = exec.Command(path, args...)
	p.cmd.Env = append(environ(), env...)
	p.cmd.Stdout = &p.stdout
	p.cmd.Stderr = &p.stderr
	p.cmd.WaitDelay = 5 * time.Second
	return p
}

func (p *process) start() {
	p.t.Helper()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.name, err)
	}
	go p.wait()
	p.t.Cleanup(p.cleanup)
}

// environ is the environment without what could change how reverser behaves.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "REVERSER_") && !strings.HasPrefix(kv, "XDG_STATE_HOME=") {
			env = append(env, kv)
		}
	}
	return append(env,
		"XDG_STATE_HOME="+filepath.Join(buildDir, "no-such-state"),
		"GORACE=atexit_sleep_ms=0", // a program with the race detector takes a second to exit otherwise
	)
}

func (p *process) wait() {
	defer close(p.ended)
	_ = p.cmd.Wait()
}

func (p *process) cleanup() {
	p.kill()
	text := p.stdout.String() + p.stderr.String()
	for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
		if strings.Contains(text, bad) {
			p.t.Errorf("%s wrote %q", p.name, bad)
		}
	}
	if p.t.Failed() && !p.quiet {
		p.t.Logf("--- %s: %s, args %q\n--- its stdout:\n%s--- its stderr:\n%s", p.name, p.cmd.ProcessState, hideTokens(p.cmd.Args[1:]), p.stdout.String(), p.stderr.String())
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

// kill ends the process as SIGKILL does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	p.awaitEnd()
}

// awaitEnd waits for the end and returns the exit code.
func (p *process) awaitEnd() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Errorf("%s did not end", p.name)
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// awaitOutput waits until the process has written text, on stdout or stderr.
func (p *process) awaitOutput(text string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%s writes %q", p.name, text), func() bool {
		if strings.Contains(p.stdout.String(), text) || strings.Contains(p.stderr.String(), text) {
			return true
		}
		if !p.running() {
			p.t.Fatalf("%s has ended (%v) without writing %q", p.name, p.cmd.ProcessState, text)
		}
		return false
	})
}

// A record is one line of a JSON log.
type record map[string]any

func (r record) text(key string) string { s, _ := r[key].(string); return s }

func (r record) number(key string) float64 {
	n, ok := r[key].(float64)
	if !ok {
		return -1
	}
	return n
}

// records are the log lines that say msg and have all the given values, "key", value, ….
func (p *process) records(msg string, match ...any) []record {
	var found []record
	for line := range bytes.Lines(p.stderr.Bytes()) {
		var r record
		if json.Unmarshal(line, &r) != nil || r["msg"] != msg {
			continue
		}
		ok := true
		for i := 0; i < len(match); i += 2 {
			ok = ok && reflect.DeepEqual(r[match[i].(string)], match[i+1])
		}
		if ok {
			found = append(found, r)
		}
	}
	return found
}

// awaitRecord waits for a log line and returns the first.
func (p *process) awaitRecord(msg string, match ...any) record {
	p.t.Helper()
	var found []record
	eventually(p.t, fmt.Sprintf("%s logs %q %v", p.name, msg, match), func() bool {
		found = p.records(msg, match...)
		return len(found) > 0
	})
	return found[0]
}

// awaitLogged waits until one log line, whatever its message, has all the words.
func (p *process) awaitLogged(words ...string) string {
	p.t.Helper()
	var found string
	eventually(p.t, fmt.Sprintf("%s logs a line with %q", p.name, words), func() bool {
		for line := range strings.Lines(p.stderr.String()) {
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

// output collects what a process writes.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) Bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.buf.Bytes())
}

func (o *output) String() string { return string(o.Bytes()) }

// run runs a program to its end and returns its stdout. It fails the test unless
// the exit code is 0.
func run(t *testing.T, path string, args ...string) string {
	t.Helper()
	p := start(t, filepath.Base(path), path, nil, args...)
	if code := p.awaitEnd(); code != 0 {
		t.Fatalf("%s: exit code %d; want 0\n%s", p.cmd, code, p.stderr.String())
	}
	return p.stdout.String()
}

var (
	portsMu    sync.Mutex
	portsTaken = make(map[int]bool)
)

// freePort returns a port on which nothing listens and that no other test has got. It
// is below the range from which outgoing connections take theirs.
func freePort(t *testing.T) int {
	t.Helper()
	portsMu.Lock()
	defer portsMu.Unlock()
	for range 1000 {
		port := 10000 + rand.IntN(20000)
		if portsTaken[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		l.Close()
		portsTaken[port] = true
		return port
	}
	t.Fatal("found no free port")
	return 0
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
