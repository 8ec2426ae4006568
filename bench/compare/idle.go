package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// settle is how long connections are idle before they are weighed: enough to give buffers back, not enough for the
// garbage collection that Go forces every two minutes.
const settle = 5 * time.Second

var idle = kind{Name: "memory per idle connection", Unit: "KB", Goal: 16, goal: valueAtMost}

// idle returns by how many KB both processes of a fresh contender grow for one idle connection. Each connection has
// carried a few bytes before: one that was never used may not have been connected to the server at all.
func (b *bed) idle(ctx context.Context, name string, conns int) (float64, error) {
	start := b.startReverser
	if name == haproxy {
		start = func(ctx context.Context) (*contender, error) { return b.startHAProxy(ctx, conns) }
	}
	c, err := start(ctx)
	if err != nil {
		return 0, err
	}
	defer c.stop()
	if err := sleep(ctx, time.Second); err != nil { // the starting up is not to be counted
		return 0, err
	}
	before, err := c.resident()
	if err != nil {
		return 0, err
	}
	users, err := dialMany(ctx, c.echo, conns)
	defer closeMany(users)
	if err != nil {
		return 0, c.explain(err)
	}
	if err := sleep(ctx, settle); err != nil {
		return 0, err
	}
	after, err := c.resident()
	if err != nil {
		return 0, err
	}
	for i, conn := range users { // or they were not worth their memory
		if err := ping(conn); err != nil {
			return 0, c.explain(fmt.Errorf("connection %d of %d is dead after %v of idleness: %w", i+1, conns, settle, err))
		}
	}
	return float64(after-before) / float64(conns), nil
}

// resident returns the resident KB of all processes of c.
func (c *contender) resident() (kb int, err error) {
	for _, p := range c.processes {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
		if err != nil {
			return 0, c.explain(fmt.Errorf("weigh %s: %w", p.name, err))
		}
		n, err := parseResident(string(text))
		if err != nil {
			return 0, fmt.Errorf("weigh %s: %w", p.name, err)
		}
		kb += n
	}
	return kb, nil
}

// parseResident finds VmRSS in the text of /proc/PID/status.
func parseResident(status string) (kb int, err error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")))
		}
	}
	return 0, errors.New("no VmRSS: the process has ended")
}

// dialMany opens n connections to the echo server behind addr and sends something through each. It returns those it
// opened, after an error too.
func dialMany(ctx context.Context, addr string, n int) ([]net.Conn, error) {
	const atOnce = 32 // no more, or a full listen queue costs a second
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	todo := make(chan struct{}, n)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn // guarded by mu
	dial := func() {
		d := net.Dialer{Timeout: patience, KeepAlive: -1}
		for range todo {
			conn, err := d.DialContext(ctx, "tcp", addr)
			if err == nil {
				mu.Lock()
				conns = append(conns, conn)
				mu.Unlock()
				err = ping(conn)
			}
			if err != nil {
				cancel(err)
				return
			}
		}
	}
	for range atOnce {
		wg.Go(dial)
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return conns, fmt.Errorf("open %d connections: after %d: %w", n, len(conns), err)
	}
	return conns, nil
}

func closeMany(conns []net.Conn) {
	for _, conn := range conns {
		// Thousands of ports in TIME_WAIT would be in the way of the next measurement.
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

func echoOnce(ctx context.Context, addr string) error {
	conns, err := dialMany(ctx, addr, 1)
	closeMany(conns)
	return err
}

const word = "are you there?"

// ping sends a word and waits for its echo.
func ping(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, word); err != nil {
		return err
	}
	buf := make([]byte, len(word))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	if string(buf) != word {
		return fmt.Errorf("the echo of %q is %q", word, buf)
	}
	return conn.SetDeadline(time.Time{})
}

// An echo is a server that sends back what it gets.
type echo struct {
	ln net.Listener
	wg sync.WaitGroup // accept and the handlers

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu; nil when closed
}

func listenEcho() (*echo, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the echo server: %w", err)
	}
	e := &echo{ln: ln, conns: make(map[net.Conn]bool)}
	e.wg.Go(e.accept)
	return e, nil
}

func (e *echo) addr() string { return e.ln.Addr().String() }

func (e *echo) accept() {
	for {
		conn, err := e.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of files: the user of this connection will say so
			continue
		}
		e.mu.Lock()
		if e.conns == nil {
			conn.Close()
		} else {
			e.conns[conn] = true
			e.wg.Go(func() { e.handle(conn) })
		}
		e.mu.Unlock()
	}
}

// handle copies by hand: io.Copy would splice, and hold a pipe for each connection.
func (e *echo) handle(conn net.Conn) {
	defer func() {
		e.mu.Lock()
		delete(e.conns, conn)
		e.mu.Unlock()
		conn.Close()
	}()
	buf := make([]byte, len(word))
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (e *echo) close() {
	e.ln.Close()
	e.mu.Lock()
	for conn := range e.conns {
		conn.Close()
	}
	e.conns = nil
	e.mu.Unlock()
	e.wg.Wait()
}
