package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"reverser/internal/acmetest"
	"reverser/internal/status"
)

// wantReset reads to the end and checks that it is a reset after exactly n bytes of
// the pattern.
func wantReset(t *testing.T, c net.Conn, n int64) {
	t.Helper()
	if got, err := readPattern(c); got != n || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes, then %v; want %d, then a reset", got, describe(err), n)
	}
}

func describe(err error) string {
	if err == nil {
		return "a clean end"
	}
	return err.Error()
}

func TestHalfCloseByClient(t *testing.T) {
	t.Parallel()
	const n = 100_000
	tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		got, err := readPattern(c) // the whole request, then the answer
		if got != n || err != nil {
			t.Errorf("the service read %d bytes, then %s; want %d, then a clean end", got, describe(err), n)
		}
		io.Copy(c, newPattern(n))
	})))
	c := tun.dial(t)
	if _, err := io.Copy(c, newPattern(n)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := readPattern(c); got != n || err != nil {
		t.Errorf("the client read %d bytes, then %s; want %d, then a clean end", got, describe(err), n)
	}
}

func TestHalfCloseByService(t *testing.T) {
	t.Parallel()
	const n = 100_000
	type result struct {
		n   int64
		err error
	}
	results := make(chan result, 1)
	tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		io.Copy(c, newPattern(n))
		c.CloseWrite()
		got, err := readPattern(c)
		results <- result{got, err}
	})))
	c := tun.dial(t)
	if got, err := readPattern(c); got != n || err != nil {
		t.Fatalf("the client read %d bytes, then %s; want %d, then a clean end", got, describe(err), n)
	}
	// The other direction goes on, however long after.
	if _, err := io.Copy(c, newPattern(n)); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if r := <-results; r.n != n || r.err != nil {
		t.Errorf("the service read %d bytes, then %s; want %d, then a clean end", r.n, describe(r.err), n)
	}
}

func TestEmptyConnection(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, func(*net.TCPConn) {})))
	if got, err := readPattern(tun.dial(t)); got != 0 || err != nil {
		t.Errorf("read %d bytes, then %s; want a clean end at once", got, describe(err))
	}
}

// TestResetAtOnce: who resets behind its bytes may not wait until anybody has read them. Windows throws away what no program has read
// when a reset comes, so there the tunnel can only pass on what it had read.
func TestResetAtOnce(t *testing.T) {
	t.Parallel()
	const n = 5000
	wantEnd := func(t *testing.T, who string, windows bool, got int64, err error) {
		t.Helper()
		if !errors.Is(err, syscall.ECONNRESET) || got != n && !(windows && got < n) {
			t.Errorf("%s read %d bytes, then %s; want %d, then a reset", who, got, describe(err), n)
		}
	}
	t.Run("by the service", func(t *testing.T) {
		t.Parallel()
		tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
			c.SetLinger(0)
			// Not before the client is heard of: it may not have seen yet that it is connected.
			io.ReadFull(c, make([]byte, 1))
			io.Copy(c, newPattern(n))
		})))
		for range 20 {
			c := tun.dial(t)
			c.Write([]byte("x"))
			got, err := readPattern(c)
			wantEnd(t, "the client", onWine("bridge"), got, err)
		}
	})
	t.Run("by the client", func(t *testing.T) {
		t.Parallel()
		if onWine("proxy") {
			t.Skip("Windows has nothing to accept of a connection that was reset before")
		}
		type end struct {
			n   int64
			err error
		}
		ends := make(chan end, 1)
		tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
			got, err := readPattern(c)
			ends <- end{got, err}
		})))
		for range 20 {
			c := tun.dial(t)
			if _, err := io.Copy(c, newPattern(n)); err != nil {
				t.Fatal(err)
			}
			c.SetLinger(0)
			c.Close()
			select {
			case e := <-ends:
				wantEnd(t, "the service", false, e.n, e.err)
			case <-time.After(patience):
				t.Fatal("the service has not seen the connection")
			}
		}
	})
}

// TestReset: a reset arrives as one, before the first byte, behind bytes that were read, and behind the end of the other direction.
func TestReset(t *testing.T) {
	t.Parallel()
	const n = 5000
	// Each case has what the one who resets and the other one do before, in step. The other one then reads to the end.
	cases := []struct {
		name          string
		before, other func(c *net.TCPConn) error
	}{
		{"before the first byte", nil, nil},
		{"behind bytes", func(c *net.TCPConn) error {
			if _, err := io.Copy(c, newPattern(n)); err != nil {
				return err
			}
			_, err := io.ReadFull(c, make([]byte, 1)) // all of it was read
			return err
		}, func(c *net.TCPConn) error {
			if got, err := readPattern(io.LimitReader(c, n)); got != n || err != nil {
				return fmt.Errorf("read %d bytes, then %s; want %d", got, describe(err), n)
			}
			_, err := c.Write([]byte("x"))
			return err
		}},
		{"behind the end of the other direction", func(c *net.TCPConn) error {
			_, err := io.Copy(io.Discard, c)
			return err
		}, func(c *net.TCPConn) error { return c.CloseWrite() }},
	}
	step := func(f func(c *net.TCPConn) error, c *net.TCPConn) error {
		if f == nil {
			return nil
		}
		return f(c)
	}
	for _, by := range []string{"service", "client"} {
		for _, k := range cases {
			t.Run("by the "+by+" "+k.name, func(t *testing.T) {
				t.Parallel()
				accepted := make(chan *net.TCPConn)
				done := make(chan struct{})
				tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
					accepted <- c
					<-done
				})))
				defer close(done)
				for range 20 {
					client := tun.dial(t)
					var service *net.TCPConn
					select {
					case service = <-accepted:
					case <-time.After(patience):
						t.Fatal("the service has not seen the connection")
					}
					resets, other := client, service
					if by == "service" {
						resets, other = service, client
					}
					ready := make(chan error, 1)
					go func() { ready <- step(k.before, resets) }()
					if err := step(k.other, other); err != nil {
						t.Fatal(err)
					}
					if err := <-ready; err != nil {
						t.Fatal(err)
					}
					resets.SetLinger(0)
					resets.Close()
					wantReset(t, other, 0)
				}
			})
		}
	}
	// Nobody reads any more, and nobody writes: the end of one direction, and then a reset behind it.
	for _, by := range []string{"service", "client"} {
		t.Run("by the "+by+" behind its own end", func(t *testing.T) {
			t.Parallel()
			accepted := make(chan *net.TCPConn)
			done := make(chan struct{})
			tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
				accepted <- c
				<-done
			})))
			defer close(done)
			client := tun.dial(t)
			service := <-accepted
			resets, other := client, service
			if by == "service" {
				resets, other = service, client
			}
			resets.CloseWrite()
			if _, err := io.Copy(io.Discard, other); err != nil {
				t.Fatal(err)
			}
			resets.SetLinger(0)
			resets.Close()
			eventually(t, "a write fails", func() bool {
				_, err := other.Write([]byte("x"))
				return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
			})
			for _, side := range []*testProcess{tun.proxy.testProcess, tun.bridge.testProcess} {
				side.awaitRecord("pair released", "reason", map[string]string{"service": "target-reset", "client": "client-reset"}[by])
			}
		})
	}
}

func TestRefusedTarget(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(freePort(t)))
	for _, client := range []struct {
		name  string
		speak func(*net.TCPConn) error
	}{
		{"silent", func(*net.TCPConn) error { return nil }},
		{"has spoken", func(c *net.TCPConn) error { _, err := c.Write([]byte("hello")); return err }},
		{"has half-closed", func(c *net.TCPConn) error { _, err := c.Write([]byte("hello")); c.CloseWrite(); return err }},
	} {
		t.Run(client.name, func(t *testing.T) { wantResetOf(t, tun.addr(), client.speak) })
	}
}

// wantResetOf checks that a connection is reset without a byte. That may come before
// the client has seen that it is connected, or before it speaks: then its write has the error, and Linux says an error once.
func wantResetOf(t *testing.T, addr string, speak func(*net.TCPConn) error) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if err := speak(c.(*net.TCPConn)); errors.Is(err, syscall.ECONNRESET) {
		return
	}
	wantReset(t, c, 0)
}

// fill writes the pattern until nothing is taken any more, and returns how much was.
func fill(t *testing.T, c net.Conn) int64 {
	t.Helper()
	const limit = 256 << 20
	p := newPattern(limit)
	b := make([]byte, 64<<10)
	for {
		n, _ := p.Read(b)
		c.SetWriteDeadline(time.Now().Add(3 * time.Second))
		m, err := c.Write(b[:n])
		p.at += int64(m - n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return p.at
		}
		if err != nil {
			t.Fatalf("write after %d bytes: %v", p.at, err)
		}
		if p.at == limit {
			t.Fatalf("%d bytes were taken although nobody reads them; want back-pressure", int64(limit))
		}
	}
}

func TestBackPressureReachesTheClient(t *testing.T) {
	t.Parallel()
	first, read := make(chan struct{}), make(chan struct{})
	counts := make(chan int64, 1)
	var second atomic.Bool
	tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		if second.Load() {
			echo(c)
			return
		}
		close(first)
		<-read
		n, err := readPattern(c)
		if err != nil {
			t.Errorf("the service read %d bytes, then %v", n, err)
		}
		counts <- n
	})))
	c := tun.dial(t)
	sent := fill(t, c)
	t.Logf("%d bytes were taken", sent)
	<-first
	second.Store(true)
	exchange(t, tun.dial(t), "the others are not held up")
	close(read)
	c.CloseWrite()
	if got := <-counts; got != sent {
		t.Errorf("the service read %d bytes; want %d", got, sent)
	}
}

func TestBackPressureReachesTheService(t *testing.T) {
	t.Parallel()
	sent := make(chan int64, 1)
	var second atomic.Bool
	tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		if second.Load() {
			echo(c)
			return
		}
		sent <- fill(t, c)
	})))
	c := tun.dial(t)
	want := <-sent
	second.Store(true)
	exchange(t, tun.dial(t), "the others are not held up")
	if got, err := readPattern(c); got != want || err != nil {
		t.Errorf("the client read %d bytes, then %s; want %d, then a clean end", got, describe(err), want)
	}
}

func TestBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	const n = 20 << 20
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	c := tun.dial(t)
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, newPattern(n))
		c.CloseWrite()
		done <- err
	}()
	if got, err := readPattern(c); got != n || err != nil {
		t.Errorf("read %d bytes, then %s; want %d, then a clean end", got, describe(err), n)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestManyConnections(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	conns := make([]net.Conn, 200)
	for i := range conns {
		conns[i] = tun.dial(t)
	}
	for round := range 3 {
		for i, c := range conns {
			exchange(t, c, fmt.Sprintf("connection %d, round %d %s", i, round, strings.Repeat(".", i)))
		}
	}
}

func TestKilledProxyIsNoCleanEnd(t *testing.T) {
	t.Parallel()
	service := freePort(t)
	startService(t, service)
	tun := startTunnel(t, strconv.Itoa(service))

	idle := tun.dial(t)
	io.WriteString(idle, "echo\n")
	exchange(t, idle, "idle")
	streaming := tun.dial(t)
	io.WriteString(streaming, "stream\n")
	if _, err := io.ReadFull(streaming, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	tun.proxy.Kill()
	for name, c := range map[string]net.Conn{"idle": idle, "streaming": streaming} {
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s connection: %s; want a reset", name, describe(err))
		}
	}
}

// Nor is it one at the ports that names share: an answer without a length would be taken for complete.
func TestKilledProxyIsNoCleanEndByName(t *testing.T) {
	t.Parallel()
	const half = "half of it"
	http80, https443 := freePort(t), freePort(t)
	over := make(chan struct{})
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, half)
		http.NewResponseController(w).Flush()
		if r.URL.Path == "/endless" {
			<-over
		}
	}))
	t.Cleanup(target.Close)
	t.Cleanup(func() { close(over) })
	cert, key, pool := certificate(t, t.TempDir(), "passed.example")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	passed := serve(t, func(c *net.TCPConn) {
		server := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}})
		io.WriteString(server, half)
		io.Copy(io.Discard, server)
	})
	a := acmetest.Start(t, acmetest.Config{HTTPPort: http80, TLSPort: https443})
	p := startProxy(t, "--http", loopback(http80), "--https", loopback(https443), "--acme-directory", a.Directory, "--acme-root", a.Root)
	b := startBridge(t, addKey(t, p.state, "web", "http/*", "https/*", "tls/*"), "--proxy", loopback(p.link),
		fmt.Sprintf("http/a.example=%d", target.Listener.Addr().(*net.TCPAddr).Port),
		fmt.Sprintf("https/a.example=%d", target.Listener.Addr().(*net.TCPAddr).Port), fmt.Sprintf("tls/passed.example=%d", passed))
	b.awaitUp("http/a.example", "https/a.example", "tls/passed.example")
	awaitCertificate(t, p.state, "a.example", status.CertificateValid)

	plain := func() net.Conn { return dial(t, loopback(http80)) }
	secure := func(name string, roots *x509.CertPool) func() net.Conn {
		return func() net.Conn {
			return tls.Client(dial(t, loopback(https443)), &tls.Config{ServerName: name, RootCAs: roots})
		}
	}
	const old, kept = "GET /endless HTTP/1.0\r\nHost: a.example\r\n\r\n", "GET /endless HTTP/1.1\r\nHost: a.example\r\n\r\n"
	conns := map[string]net.Conn{}
	for name, k := range map[string]struct {
		dial    func() net.Conn // each when it is its turn: who says nothing is not waited for
		request string
	}{
		"http/, HTTP/1.0":  {plain, old},
		"http/, HTTP/1.1":  {plain, kept},
		"http/, idle":      {plain, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"},
		"https/, HTTP/1.0": {secure("a.example", a.Issuers()), old},
		"https/, HTTP/1.1": {secure("a.example", a.Issuers()), kept},
		"tls/":             {secure("passed.example", pool), "hello"},
	} {
		c := k.dial()
		if _, err := io.WriteString(c, k.request); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for got := ""; !strings.Contains(got, half); {
			b := make([]byte, 4096)
			n, err := c.Read(b)
			if got += string(b[:n]); err != nil {
				t.Fatalf("%s: %q, then %s; want %q", name, got, describe(err), half)
			}
		}
		conns[name] = c
	}
	p.Kill()
	for name, c := range conns {
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %s; want a reset", name, describe(err))
		}
	}
}

func TestKilledProxyIsNoCleanEndForTheService(t *testing.T) {
	t.Parallel()
	ends := make(chan error, 1)
	tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		if _, err := io.CopyN(c, c, 5); err != nil {
			return
		}
		_, err := io.Copy(io.Discard, c)
		ends <- err
	})))
	c := tun.dial(t)
	exchange(t, c, "hello")
	tun.proxy.Kill()
	// The new process does not know the old streams, and tells the bridge so.
	startProxyAt(t, tun.proxy.state, tun.proxy.link)
	if err := <-ends; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the service saw %s; want a reset", describe(err))
	}
}

func TestKilledBridgeIsNoCleanEnd(t *testing.T) {
	t.Parallel()
	ends := make(chan error, 1)
	tun := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		_, err := io.Copy(c, c)
		ends <- err
	})))
	c := tun.dial(t)
	exchange(t, c, "hello")
	tun.bridge.Kill()
	if err := <-ends; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the service saw %s; want a reset", describe(err))
	}
	b := startBridge(t, tun.token, fmt.Sprintf("%d=%d", tun.public, serve(t, echo)))
	b.awaitUp(tun.service)
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client saw %s; want a reset", describe(err))
	}
	exchange(t, tun.dial(t), "a new connection")
}

// What a killed service does to its connections is up to its kernel: a clean end, or a
// reset if bytes were unread. Through the tunnel it looks as it does directly.
func TestKilledServiceLooksAsDirectly(t *testing.T) {
	t.Parallel()
	for _, wish := range []string{"echo", "deaf"} {
		t.Run(wish, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			service := startService(t, port)
			tun := startTunnel(t, strconv.Itoa(port))
			conns := []*net.TCPConn{dial(t, loopback(port)), tun.dial(t)}
			for _, c := range conns {
				io.WriteString(c, wish+"\n")
				if wish == "echo" {
					exchange(t, c, "hello")
					continue
				}
				if _, err := io.ReadFull(c, make([]byte, len("deaf\n"))); err != nil {
					t.Fatal(err)
				}
				io.WriteString(c, strings.Repeat("never read ", 100))
			}
			eventually(t, "all bytes are with the service", func() bool {
				for _, p := range mustStatus(t, tun.bridge.state).Pairs {
					return p.Sent >= int64(len(wish)+1+5) && (wish == "echo" || p.Sent == int64(len(wish)+1+1100))
				}
				return false
			})
			service.Kill()
			_, direct := io.Copy(io.Discard, conns[0])
			_, tunnelled := io.Copy(io.Discard, conns[1])
			if errors.Is(direct, syscall.ECONNRESET) != errors.Is(tunnelled, syscall.ECONNRESET) || (direct == nil) != (tunnelled == nil) {
				t.Errorf("through the tunnel: %s; directly: %s", describe(tunnelled), describe(direct))
			}
		})
	}
}
