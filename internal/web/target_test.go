package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/grammar"
)

// said is what a scripted target was told: which connection, counted from 1, and which request on it.
type said struct {
	conn, nth int
	*http.Request
	out net.Conn
	r   *bufio.Reader
}

// script is a target that has each request handled by h, which ends the connection by false.
func (w *world) script(h func(s said) bool) (addr string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(func() {
		ln.Close()
		cancel()
		wg.Wait()
	})
	wg.Go(func() {
		for n := 1; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { c.Close() })
			c.SetDeadline(time.Now().Add(limit))
			wg.Go(func() { play(c, n, h) })
		}
	})
	return ln.Addr().String()
}

// play is the nth connection of a target.
func play(c net.Conn, n int, h func(s said) bool) {
	defer c.Close()
	r := bufio.NewReader(c)
	for i := 1; ; i++ {
		req, err := http.ReadRequest(r)
		if err != nil || !h(said{n, i, req, c, r}) {
			return
		}
	}
}

const hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

// TestKeptIsClosed: a target may close a kept connection when it likes. A request that may be sent twice is sent again, any other one is not.
func TestKeptIsClosed(t *testing.T) {
	for request, want := range map[string]struct{ status, seen int }{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n":                                                    {200, 2},
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n":                              {502, 1},
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nIdempotency-Key: x\r\n\r\n":        {200, 2},
		"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nIdempotency-Key: x\r\n\r\nhi":       {502, 1},
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n": {502, 1},
	} {
		w := newWorld(t)
		var seen atomic.Int64
		w.site("a", w.script(func(s said) bool {
			if s.URL.Path == "/first" {
				io.WriteString(s.out, hello)
				return true
			}
			io.Copy(io.Discard, s.Body)
			seen.Add(1)
			if s.nth > 1 {
				return false // it did not want to keep it any longer
			}
			io.WriteString(s.out, hello)
			return true
		}), grammar.ProxyOptions{})
		u := w.user()
		u.ask("GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := u.ask(request); resp.StatusCode != want.status || int(seen.Load()) != want.seen {
			t.Errorf("%q: %s, and the target saw it %d times; want %+v", request, resp.Status, seen.Load(), want)
		}
	}
}

// TestUnasked: a connection on which the target said something that nobody asked for is used no more.
func TestUnasked(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.script(func(s said) bool {
		fmt.Fprintf(s.out, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%dHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse", s.conn)
		return true
	}), grammar.ProxyOptions{})
	u := w.user()
	for i := range 3 {
		if _, body := u.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n"); body != fmt.Sprint(i+1) {
			t.Errorf("request %d got %q", i, body)
		}
	}
}

// counted counts how often it is written to.
type counted struct {
	net.Conn
	writes atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// TestWrites: a small answer is one write, and what has come of an answer does not wait for the rest.
func TestWrites(t *testing.T) {
	w := newWorld(t)
	more := make(chan struct{})
	w.site("a", w.script(func(s said) bool {
		switch s.URL.Path {
		case "/length":
			io.WriteString(s.out, hello)
		case "/chunked":
			io.WriteString(s.out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
		default:
			io.WriteString(s.out, map[string]string{"/slow": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "/slowly": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"}[s.URL.Path])
			<-more
			io.WriteString(s.out, map[string]string{"/slow": "he", "/slowly": "2\r\nhe\r\n"}[s.URL.Path])
			<-more
			io.WriteString(s.out, map[string]string{"/slow": "llo", "/slowly": "3\r\nllo\r\n0\r\n\r\n"}[s.URL.Path])
		}
		return true
	}), grammar.ProxyOptions{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w.addr = ln.Addr().String()
	u := w.user()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn := &counted{Conn: c}
	w.s.Serve(w.s.NewClient(conn, nil, nil))
	for _, path := range []string{"/length", "/chunked"} {
		before := conn.writes.Load()
		if _, body := u.ask("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n"); body != "hello" || conn.writes.Load() != before+1 {
			t.Errorf("%s: %q in %d writes", path, body, conn.writes.Load()-before)
		}
	}
	for _, path := range []string{"/slow", "/slowly"} {
		io.WriteString(u, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(u.r, nil) // the head comes alone
		if err != nil {
			t.Fatal(err)
		}
		var got [5]byte
		more <- struct{}{}
		io.ReadFull(resp.Body, got[:2])
		more <- struct{}{}
		if _, err := io.ReadFull(resp.Body, got[2:]); err != nil || string(got[:]) != "hello" {
			t.Errorf("%s: %q, %v", path, got, err)
		}
		io.Copy(io.Discard, resp.Body)
	}
}

// TestExpect: the body of a request that waits for the target's word is sent when the target wants it, and not when it refuses the request.
func TestExpect(t *testing.T) {
	w := newWorld(t)
	read := make(chan string, 1)
	w.site("a", w.script(func(s said) bool {
		if s.URL.Path == "/no" {
			io.WriteString(s.out, "HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			rest, _ := io.ReadAll(s.r)
			read <- string(rest)
			return false
		}
		if n := s.r.Buffered(); n > 0 {
			t.Errorf("%d bytes of the body came unasked", n)
		}
		io.WriteString(s.out, "HTTP/1.1 100 Continue\r\n\r\n")
		body, _ := io.ReadAll(s.Body)
		io.WriteString(s.out, hello)
		read <- string(body)
		return true
	}), grammar.ProxyOptions{})
	u := w.user()
	io.WriteString(u, "POST /yes HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if resp, err := http.ReadResponse(u.r, nil); err != nil || resp.StatusCode != 100 {
		t.Fatalf("%v, %v; want 100", resp, err)
	}
	if resp, body := u.ask("body"); resp.StatusCode != 200 || body != "hello" {
		t.Errorf("%s %q", resp.Status, body)
	}
	if got := <-read; got != "body" {
		t.Errorf("the target read %q", got)
	}
	if resp, _ := u.ask("POST /no HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"); resp.StatusCode != 417 {
		t.Errorf("a target that refuses: %s", resp.Status)
	}
	if got := <-read; got != "" {
		t.Errorf("a target that refused the body read %q", got)
	}
}

// TestEarlyAnswer: an answer reaches the client though the target does not read the request to its end.
func TestEarlyAnswer(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.script(func(s said) bool {
		io.WriteString(s.out, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno\n")
		return false
	}), grammar.ProxyOptions{})
	for _, sent := range []int{0, 10, 8 << 20} {
		u := w.user()
		io.WriteString(u, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
		go io.WriteString(u, strings.Repeat("x", sent)) // ends with the connection
		resp, err := http.ReadResponse(u.r, nil)
		if err != nil {
			if sent > 10 { // the target's reset may overtake its answer
				continue
			}
			t.Fatalf("behind %d bytes: %v", sent, err)
		}
		if resp.StatusCode != 413 && (sent <= 10 || resp.StatusCode != 502) {
			t.Errorf("behind %d bytes: %s", sent, resp.Status)
		}
		u.Close()
	}
}

// TestAnswerTime: the time for an answer begins with the end of the request, and ends with the head of the answer.
func TestAnswerTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const answerTime = time.Hour
		options := &grammar.ProxyOptions{AnswerTime: grammar.Duration(answerTime)}
		site := &Site{Name: "http/a", Options: func() *grammar.ProxyOptions { return options }}
		site.Enter = func(*Visit) (func(error), func(uint64, uint64), error) {
			return func(error) {}, func(uint64, uint64) {}, nil
		}
		site.Dial = func(context.Context, Call, func()) (*Upstream, error) {
			near, far := net.Pipe()
			go play(far, 1, func(s said) bool {
				io.Copy(io.Discard, s.Body)
				if s.URL.Path == "/never" {
					io.Copy(io.Discard, s.r)
					return false
				}
				time.Sleep(answerTime - time.Second)
				io.WriteString(s.out, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
				time.Sleep(3 * answerTime)
				io.WriteString(s.out, "hello")
				return true
			})
			return &Upstream{Conn: near}, nil
		}
		var s Server
		s.Find = func(bool, string, string) *Site { return site }
		s.Start()
		near, far := net.Pipe()
		s.Serve(s.NewClient(near, nil, nil))
		u := &user{t: t, r: bufio.NewReader(far)}
		io.WriteString(far, "POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
		time.Sleep(3 * answerTime)
		io.WriteString(far, "dy")
		if resp, body := u.answer("a slow client, and a slow body"); resp.StatusCode != 200 || body != "hello" {
			t.Errorf("a slow client, and a slow body: %s %q", resp.Status, body)
		}
		for _, request := range []string{"GET /never HTTP/1.1\r\nHost: a\r\n\r\n", "POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"} {
			begun := time.Now()
			io.WriteString(far, request)
			if resp, _ := u.answer(request); resp.StatusCode != 504 || time.Since(begun) != answerTime {
				t.Errorf("%q: %s after %v, want 504 after %v", request, resp.Status, time.Since(begun), answerTime)
			}
		}
		far.Close()
		s.Close()
		site.Close()
	})
}
