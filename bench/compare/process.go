package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// grace is how long a process may take to end by itself.
const grace = 3 * time.Second

// A process is a server or a contender. Whoever starts it stops it; bed.close stops what was forgotten on the way out
// of an error.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string // the file with what it writes
	ended chan struct{}
}

// start starts a program on a host. It writes to a file, as it would under a service manager: nothing in this process has
// to wake up and read.
func (b *bed) start(at host, name string, env []string, path string, args ...string) (*process, error) {
	b.starts++
	p := &process{name: name, cmd: exec.Command(path, args...), ended: make(chan struct{})}
	p.log = filepath.Join(b.dir, fmt.Sprintf("%s-%d.log", name, b.starts))
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(environ(), env...)
	own(p.cmd)
	if err := at.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go p.wait()
	b.running = append(b.running, p)
	return p, nil
}

func (p *process) wait() {
	defer close(p.ended)
	_ = p.cmd.Wait() // how it ended is in ProcessState
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// terminate asks the process to end.
func (p *process) terminate() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended before
}

// stop ends the process and waits for it. Children that it leaves behind, as sshd does, are told to end too.
func (p *process) stop() {
	if p.hasEnded() {
		return
	}
	children := allTasks().family(p.cmd.Process.Pid)
	delete(children, p.cmd.Process.Pid)
	p.terminate()
	defer func() {
		for pid := range children {
			if child, err := os.FindProcess(pid); err == nil {
				_ = child.Signal(syscall.SIGTERM) // most have ended with their parent
			}
		}
	}()
	select {
	case <-p.ended:
	case <-time.After(grace):
		killGroup(p.cmd.Process)
		<-p.ended
	}
}

// tail returns the last lines that the process wrote, the newest of a log that may be long.
func (p *process) tail() string {
	const size = 2000
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	buf := make([]byte, size)
	n, _ := f.ReadAt(buf, max(0, info.Size()-size))
	lines := strings.Split(strings.TrimSpace(string(buf[:n])), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// command prepares a program that runs to its end, or until ctx ends.
func command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	own(cmd)
	cmd.WaitDelay = grace
	return cmd
}

// environ is the environment without what could change how reverser behaves.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "REVERSER_") {
			env = append(env, kv)
		}
	}
	return env
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
