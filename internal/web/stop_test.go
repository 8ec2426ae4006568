package web

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"syscall"
	"testing"
	"time"

	"reverser/internal/acmetest"
	"reverser/internal/grammar"
)

// TestStoppedBeforeItBegan: a server that is stopped before it was started takes nobody, and ends.
func TestStoppedBeforeItBegan(t *testing.T) {
	var s Server
	s.Drain()
	s.Start()
	near, far := net.Pipe()
	s.Serve(near)
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a connection to a server that was stopped: %v; want it closed", err)
	}
	s.Close()
}

// TestStoppedUnderAnAnswer: an answer that a stop cuts short does not look complete, though it has no length; a client without a request has
// an orderly end.
func TestStoppedUnderAnAnswer(t *testing.T) {
	for range 5 {
		w := newWorld(t)
		w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
			io.WriteString(rw, "the first half ")
			rw.(http.Flusher).Flush()
			<-r.Context().Done()
		}), grammar.ProxyOptions{})
		idle, u := w.user(), w.user()
		idle.ask("GET / HTTP/1.1\r\nHost: none\r\n\r\n")
		io.WriteString(u, "GET / HTTP/1.0\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(u.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 15)); err != nil {
			t.Fatal(err)
		}
		w.s.Close()
		if rest, err := io.ReadAll(resp.Body); err == nil && runtime.GOOS != "windows" { // where a reader may be told that nothing more comes
			t.Errorf("the answer ends with %q, and looks complete", rest)
		}
		if rest, err := io.ReadAll(idle.r); err != nil || len(rest) > 0 {
			t.Errorf("a client without a request read %q, %v; want an end", rest, err)
		}
	}
}

// TestAskedBeforeTheStop: a request that has arrived is served, though the server is told to drain before it has looked at the connection.
// The client is told that its connection ends. Clients who have asked for nothing see an orderly end.
func TestAskedBeforeTheStop(t *testing.T) {
	for _, kind := range []string{"GET", "POST"} { // a simple one, and one of net/http
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "it") }), grammar.ProxyOptions{})
			request := kind + " / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
			if kind == "GET" {
				request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
			}
			var users []*user
			for range 40 {
				u := w.user()
				u.ask(request)
				users = append(users, u)
			}
			asked, idle := users[:30], users[30:]
			for _, u := range asked {
				io.WriteString(u, request)
			}
			w.s.Drain()
			for i, u := range asked {
				resp, err := http.ReadResponse(u.r, nil)
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					continue
				}
				if b, err := io.ReadAll(resp.Body); string(b) != "it" || err != nil {
					t.Errorf("client %d: the answer is %q, %v", i, b, err)
				}
				if rest, err := io.ReadAll(u.r); len(rest) > 0 || err != nil {
					t.Errorf("client %d: %q, %v behind the answer; want the end", i, rest, err)
				}
			}
			for i, u := range idle {
				if rest, err := io.ReadAll(u.r); len(rest) > 0 || err != nil {
					t.Errorf("idle client %d: %q, %v; want the end", i, rest, err)
				}
			}
		})
	}
}

// TestBegunBeforeTheStop: a request of which net/http has read a part when the server is told to drain is answered when the rest comes. That is
// the first one that net/http gets of a connection, or a later one.
func TestBegunBeforeTheStop(t *testing.T) {
	const post, get = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	chain, key := acmetest.Certificate(t, "a")
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		secure  bool
		asked   string // before
		request string
	}{
		{"the first", false, "", get},
		{"behind a simple one", false, get, get},
		{"a later one", false, post, post},
		{"the first of TLS", true, "", get},
		{"a later one of TLS", true, get, get},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "it") }), grammar.ProxyOptions{})
			find := w.s.Find
			w.s.Find = func(_ bool, host, path string) *Site { return find(false, host, path) }
			u, far := w.pair()
			client := w.s.NewClient(far, nil, nil)
			served, out := net.Conn(client), net.Conn(u)
			if c.secure {
				near, over := tls.Client(u, &tls.Config{InsecureSkipVerify: true}), tls.Server(client, &tls.Config{Certificates: []tls.Certificate{pair}})
				handshake := make(chan error, 1)
				go func() { handshake <- near.Handshake() }()
				if err := errors.Join(over.Handshake(), <-handshake); err != nil {
					t.Fatal(err)
				}
				served, out, u.r = over, near, bufio.NewReader(near)
			}
			w.s.Serve(served)
			ask := func(part string) {
				if _, err := io.WriteString(out, part); err != nil {
					t.Fatal(err)
				}
			}
			if c.asked != "" {
				ask(c.asked)
				u.answer(c.asked)
			}
			for client.busy() {
				runtime.Gosched()
			}
			before := client.next.requests.Load()
			ask(c.request[:10])
			for !client.hasArrived() || client.hasAsked() {
				runtime.Gosched()
			}
			w.s.Drain()
			ask(c.request[10:])
			if resp, body := u.answer(c.request); body != "it" || !resp.Close {
				t.Errorf("the answer is %q, and the last of its connection: %v", body, resp.Close)
			}
			if n := client.next.requests.Load() - before; n != 1 {
				t.Errorf("net/http has read %d requests", n)
			}
		})
	}
}

// TestHalfARequestAtTheStop: whoever does not go on with a request does not hold up the stop.
func TestHalfARequestAtTheStop(t *testing.T) {
	w := newWorld(t)
	w.s.restTime = 10 * time.Millisecond // nobody has come yet
	idle, u := w.user(), w.user()
	idle.ask("POST / HTTP/1.1\r\nHost: none\r\nContent-Length: 0\r\n\r\n")
	u.ask("POST / HTTP/1.1\r\nHost: none\r\nContent-Length: 0\r\n\r\n")
	io.WriteString(u, "POST /")
	w.s.Drain()
	for _, u := range []*user{idle, u} {
		if rest, err := io.ReadAll(u.r); len(rest) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q, %v; want the end", rest, err)
		}
	}
}

// TestEndedBehindItsAnswer: an order to end the exchanges of a service comes when the answer is complete. The connection goes on at the other
// service that it is at.
func TestEndedBehindItsAnswer(t *testing.T) {
	for _, kind := range []string{"GET", "POST"} { // a simple one, and one of net/http
		w := newWorld(t)
		reached, release := make(chan bool), make(chan bool)
		site := w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
			reached <- true
			<-release
			io.WriteString(rw, "it")
		}), grammar.ProxyOptions{})
		enter, visits := site.Enter, make(chan *Visit, 1)
		site.Enter = func(v *Visit) (func(error), func(uint64, uint64), error) {
			visits <- v
			return enter(v)
		}
		w.site("b", w.target(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "other") }), grammar.ProxyOptions{})
		u := w.user()
		request := func(host string) string {
			if kind == "GET" {
				return "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
			}
			return "POST / HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 0\r\n\r\n"
		}
		u.ask(request("b"))
		io.WriteString(u, request("a"))
		<-reached
		v := <-visits
		ordered := false
		v.End(func(net.Conn) { // the order is under way, and has not ended the exchange yet
			ordered = true
			close(release)
			if _, body := u.answer("a"); body != "it" {
				t.Errorf("%s: the answer is %q", kind, body)
			}
			for !v.idle() {
				runtime.Gosched()
			}
		})
		if !ordered {
			t.Errorf("%s: the order found no exchange", kind)
		}
		if _, body := u.ask(request("b")); body != "other" {
			t.Errorf("%s: the next request got %q", kind, body)
		}
	}
}
