package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// dialMany opens n connections to the echo server behind addr and sends something through each. It returns those it
// opened, after an error too.
func dialMany(ctx context.Context, from host, addr string, n int) ([]*net.TCPConn, error) {
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
	var conns []*net.TCPConn // guarded by mu
	dial := func() {
		for range todo {
			ctx, stop := context.WithTimeout(ctx, patience)
			conn, err := from.Dial(ctx, addr)
			stop()
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
	for range min(atOnce, n) {
		wg.Go(dial)
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return conns, fmt.Errorf("open %d connections: after %d: %w", n, len(conns), err)
	}
	return conns, nil
}

func closeMany(conns []*net.TCPConn) {
	for _, conn := range conns {
		// Thousands of ports in TIME_WAIT would be in the way of the next measurement.
		_ = conn.SetLinger(0)
		conn.Close()
	}
}

func echoOnce(ctx context.Context, from host, addr string) error {
	conns, err := dialMany(ctx, from, addr, 1)
	closeMany(conns)
	return err
}

const (
	word = "are you there?"
	pour = 'P' // as the first byte, asks the server to send without end
)

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

func listenEcho(addr string) (*echo, error) {
	ln, err := net.Listen("tcp", addr)
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
	const most = 64 << 10
	buf := make([]byte, 256)
	for first := true; ; first = false {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if first && buf[0] == pour {
			buf = make([]byte, most)
			for err == nil {
				_, err = conn.Write(buf)
			}
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
		if n == len(buf) && n < most {
			buf = make([]byte, 2*n) // more for those who send much: thousands hold one each
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

// stall opens n connections on which the server sends without end and nobody reads.
func stall(ctx context.Context, from host, addr string, n int) (conns []*net.TCPConn, err error) {
	for range n {
		conn, err := from.Dial(ctx, addr)
		if err != nil {
			return conns, err
		}
		conns = append(conns, conn)
		if _, err := conn.Write([]byte{pour}); err != nil {
			return conns, err
		}
	}
	return conns, nil
}
