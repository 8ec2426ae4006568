package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// helperEnv makes the test binary a LAN service instead: a process of its own, that a
// test can stop and kill. Its value is the address to listen on.
const helperEnv = "REVERSER_E2E_HELPER"

// helperMain serves connections. The first line says what a client wants: "echo",
// "pid" (one line, then echo), "stream" (bytes without end), or "deaf" (nothing is read).
func helperMain(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go helperServe(c.(*net.TCPConn))
	}
}

func helperServe(c *net.TCPConn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 16)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	switch strings.TrimSpace(line) {
	case "pid":
		fmt.Fprintln(c, os.Getpid())
		io.Copy(c, r)
	case "echo":
		io.Copy(c, r)
	case "stream":
		io.Copy(c, newPattern(1<<62))
	case "deaf":
		fmt.Fprintln(c, "deaf")
		select {}
	}
}

// startService starts a helper process on port.
func startService(t *testing.T, port int) *testProcess {
	t.Helper()
	p := start(t, "service", os.Args[0], []string{helperEnv + "=" + loopback(port)})
	p.awaitOutput("listening")
	return p
}

// serve accepts connections in this process until the end of the test, each handled
// in a goroutine of its own, and returns the port. A connection is closed after handle.
func serve(t *testing.T, handle func(*net.TCPConn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, handle)
	return l.Addr().(*net.TCPAddr).Port
}

func serveOn(t *testing.T, l net.Listener, handle func(*net.TCPConn)) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := make(map[net.Conn]bool)
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(lifetime))
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

// exchange sends data over an echo service and checks that it comes back.
func exchange(t *testing.T, c net.Conn, data string) {
	t.Helper()
	if _, err := io.WriteString(c, data); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != data {
		t.Fatalf("echo of %.40q = %.40q, %v", data, got, err)
	}
}

// A pattern is a Reader of bytes that tell their place, so that a lost, doubled or
// swapped byte is seen.
type pattern struct{ at, end int64 }

func newPattern(n int64) *pattern { return &pattern{end: n} }

// patternAt has a period that is a prime, so that it fits no buffer size.
func patternAt(i int64) byte { return byte((i % 65521) * 31 >> 3) }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.end {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.end-p.at))
	for i := range b[:n] {
		b[i] = patternAt(p.at + int64(i))
	}
	p.at += int64(n)
	return n, nil
}

// readPattern reads until an error and returns how many bytes came, all as in the
// pattern; the error is nil at a clean end.
func readPattern(r io.Reader) (n int64, err error) {
	b := make([]byte, 32<<10)
	for {
		m, err := r.Read(b)
		for i, c := range b[:m] {
			if want := patternAt(n + int64(i)); c != want {
				return n, fmt.Errorf("byte %d is %#x; want %#x", n+int64(i), c, want)
			}
		}
		n += int64(m)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
