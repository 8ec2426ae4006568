// Package process runs the programs that the end-to-end tests and measurements look at from outside: it starts them, keeps
// what they write, reads their JSON log, and ends them by their own id.
//
// Nothing is left behind: a program that the test forgot ends with this process. Each running program
// has one goroutine, which [Process.Kill] and [Process.AwaitEnd] wait for.
package process

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"time"
)

// Build builds the program of a checkout of the repository into the file bin.
func Build(ctx context.Context, checkout, bin string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "./cmd/reverser")
	cmd.Dir = checkout
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./cmd/reverser in %s: %w\n%s", checkout, err, out)
	}
	return nil
}

// A Process is a program that was started.
type Process struct {
	Name           string
	Cmd            *exec.Cmd
	Stdout, Stderr Output

	ended chan struct{}
}

// New prepares a program. env adds to the environment of this process, of which what could change how reverser behaves
// is left out.
func New(name, path string, env []string, args ...string) *Process {
	p := &Process{Name: name, ended: make(chan struct{})}
	p.Cmd = exec.Command(path, args...)
	p.Cmd.Env = append(Environ(), env...)
	p.Cmd.Stdout, p.Cmd.Stderr = &p.Stdout, &p.Stderr
	p.Cmd.WaitDelay = 30 * time.Second // a busy machine may read some time after the end what was written before it
	endWithParent(p.Cmd)
	return p
}

// Environ is the environment without what could change how reverser behaves.
func Environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "REVERSER_") && !strings.HasPrefix(kv, "XDG_STATE_HOME=") && !strings.HasPrefix(kv, "STATE_DIRECTORY=") {
			env = append(env, kv)
		}
	}
	return append(env,
		"XDG_STATE_HOME="+os.DevNull,
		"GORACE=atexit_sleep_ms=0", // a program with the race detector takes a second to exit otherwise
	)
}

// Start starts the program by start, nil for the plain way.
func (p *Process) Start(start func(*exec.Cmd) error) error {
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(p.Cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	go p.wait()
	return nil
}

func (p *Process) wait() {
	defer close(p.ended)
	_ = p.Cmd.Wait() // how it ended is in ProcessState
}

// Ended is closed when the program has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Running reports whether the program has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Kill ends the program, and what it started, as SIGKILL does.
func (p *Process) Kill() {
	if p.Running() {
		killAll(p.Cmd.Process)
	}
	<-p.ended
}

// AwaitEnd waits for the end and returns the exit code.
func (p *Process) AwaitEnd(ctx context.Context) (int, error) {
	select {
	case <-p.ended:
		return p.Cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s did not end: %w", p.Name, context.Cause(ctx))
	}
}

// A Record is one line of a JSON log.
type Record map[string]any

// Text is a text of the line, "" if there is none.
func (r Record) Text(key string) string { s, _ := r[key].(string); return s }

// Number is a number of the line, -1 if there is none.
func (r Record) Number(key string) float64 {
	n, ok := r[key].(float64)
	if !ok {
		return -1
	}
	return n
}

// Time is when the line was written.
func (r Record) Time() time.Time {
	t, _ := time.Parse(time.RFC3339Nano, r.Text("time"))
	return t
}

// Records are the log lines that say msg and have all the given values, "key", value, ….
func (p *Process) Records(msg string, match ...any) []Record {
	var found []Record
	for line := range bytes.Lines(p.Stderr.Bytes()) {
		var r Record
		if !bytes.Contains(line, []byte(msg)) || json.Unmarshal(line, &r) != nil || r["msg"] != msg {
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

// Said are the log lines whose message begins with the words.
func (p *Process) Said(words string) []Record {
	var found []Record
	for line := range bytes.Lines(p.Stderr.Bytes()) {
		var r Record
		if bytes.Contains(line, []byte(words)) && json.Unmarshal(line, &r) == nil && strings.HasPrefix(r.Text("msg"), words) {
			found = append(found, r)
		}
	}
	return found
}

// Output collects what a program writes.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

// Write implements io.Writer.
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

// Bytes is a copy of what was written until now.
func (o *Output) Bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.buf.Bytes())
}

func (o *Output) String() string { return string(o.Bytes()) }

// Len is how many bytes were written until now.
func (o *Output) Len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Len()
}
