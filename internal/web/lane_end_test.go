package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/grammar"
)

// TestSimpleBroken: an answer that breaks off never looks complete.
func TestSimpleBroken(t *testing.T) {
	reset := func(c *net.TCPConn) { c.SetLinger(0) }
	for _, simple := range []bool{true, false} {
		for name, head := range map[string]string{"a length": "Content-Length: 20\r\n\r\nhello", "chunks": "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "no length": "\r\nhello"} {
			t.Run(fmt.Sprint(name, simple), func(t *testing.T) {
				w := newWorld(t)
				heard := make(chan struct{})
				target := newRawTarget(t, map[string]rawAnswer{"/": {text: "HTTP/1.1 200 OK\r\n" + head, then: func(c *net.TCPConn) { <-heard; reset(c) }}})
				w.site("a", target.addr(), grammar.ProxyOptions{})
				u, _ := w.client(simple)
				io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\nx-simple: y\r\n\r\n")
				resp, err := http.ReadResponse(u.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 5)
				_, err = io.ReadFull(resp.Body, got)
				close(heard)
				if err != nil || string(got) != "hello" {
					t.Fatalf("%q, %v", got, err)
				}
				if rest, err := io.ReadAll(resp.Body); err == nil {
					t.Errorf("the answer ends with %q, and looks complete", rest)
				}
				if strings.Contains(string(target.head("/")), "x-simple") != simple {
					t.Error("it was served in the other way")
				}
			})
		}
	}
}

// TestSimpleClientLeaves: the connection to a target ends when nobody waits for its answer any more.
func TestSimpleClientLeaves(t *testing.T) {
	for name, leave := range map[string]func(*user){"an end": func(u *user) { u.Close() }, "a reset": func(u *user) { u.SetLinger(0); u.Close() }} {
		for _, begun := range []string{"", "HTTP/1.1 200 OK\r\n\r\nhello"} {
			t.Run(fmt.Sprintf("%s, %d bytes", name, len(begun)), func(t *testing.T) {
				w := newWorld(t)
				asked, left := make(chan struct{}), make(chan error, 1)
				target := newRawTarget(t, map[string]rawAnswer{"/": {text: begun, then: func(c *net.TCPConn) {
					close(asked)
					_, err := c.Read(make([]byte, 1))
					left <- err
				}}})
				w.site("a", target.addr(), grammar.ProxyOptions{})
				u, _ := w.client(true)
				io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				<-asked
				leave(u)
				if err := <-left; err == nil {
					t.Error("the target was told something")
				}
				u, _ = w.client(true) // others are served on
				if _, body := u.ask("GET /x HTTP/1.1\r\nHost: a\r\n\r\n"); body != "ok" {
					t.Errorf("another client got %q", body)
				}
				w.s.Close()
				if len(w.failed) > 0 {
					t.Errorf("a page for nobody: %v", w.failed[0].Err)
				}
			})
		}
	}
}

// TestSimpleDrain: a connection that waits for another request is closed at once; one with a request gets its answer, and hears that it is
// the last one.
func TestSimpleDrain(t *testing.T) {
	for _, simple := range []bool{true, false} {
		for _, down := range []bool{false, true} {
			t.Run(fmt.Sprintf("simple %v, down %v", simple, down), func(t *testing.T) {
				w := newWorld(t)
				asked, answer := make(chan struct{}, 2), make(chan struct{}) // it is asked again on a new connection
				text := "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
				if down {
					text = ""
				}
				target := newRawTarget(t, map[string]rawAnswer{"/": {then: func(c *net.TCPConn) {
					asked <- struct{}{}
					<-answer
					io.WriteString(c, text)
				}}})
				w.site("a", target.addr(), grammar.ProxyOptions{})
				idle, _ := w.client(simple)
				idle.ask("GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
				u, _ := w.client(simple)
				const next = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
				io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"+next)
				<-asked
				target.head("/x")
				w.s.Drain()
				if rest, err := io.ReadAll(idle.r); err != nil || len(rest) > 0 {
					t.Errorf("the idle one got %q, %v", rest, err)
				}
				close(answer)
				resp, body := u.answer("the last one")
				if !down && body != "hello" || down && resp.StatusCode != http.StatusBadGateway {
					t.Errorf("the other one got %d %q", resp.StatusCode, body)
				}
				if !resp.Close {
					t.Error("the other one was not told that this was its last answer")
				}
				if rest, _ := io.ReadAll(u.r); len(rest) > 0 { // a reset is right: there is a request that nobody read
					t.Errorf("behind its last answer came %q", rest)
				}
				if target.head("/x") != nil {
					t.Error("a request behind the last one was served")
				}
			})
		}
	}
}

// TestSimpleDrainBeforeARequest: who has come and said nothing yet is told to come anew, and not that something is wrong.
func TestSimpleDrainBeforeARequest(t *testing.T) {
	w := newWorld(t)
	w.site("a", newRawTarget(t, nil).addr(), grammar.ProxyOptions{})
	u, _ := w.client(true)
	w.s.Drain()
	if b, err := io.ReadAll(u.r); err != nil || len(b) > 0 {
		t.Errorf("a client that has said nothing read %q, %v; want an end", b, err)
	}
}

// TestDrainBehindARequest: a connection whose request was read in part is net/http's to serve, also when that happens within a drain.
func TestDrainBehindARequest(t *testing.T) {
	w := newWorld(t)
	w.site("a", newRawTarget(t, nil).addr(), grammar.ProxyOptions{})
	other, _ := w.client(false)
	other.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n") // net/http takes connections from here on
	w.s.Drain()
	near, far := net.Pipe()
	defer far.Close()
	c := w.s.NewClient(near, nil, nil)
	c.ahead = []byte("GET / HT")
	w.s.hand(c)
	go io.WriteString(far, "TP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(far), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok" || !resp.Close {
		t.Errorf("the answer is %q, %v; closes: %v; want the target's, and then an end", body, err, resp.Close)
	}
}

// underAnAnswer returns a client that has the beginning of an answer, of five bytes or more, from the service a.
func (w *world) underAnAnswer() *user {
	w.t.Helper()
	u, _ := w.client(true)
	io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(u.r, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
		w.t.Fatal(err)
	}
	return u
}

// TestSimpleStopped: a stop gives an idle connection an orderly end, and resets one under an answer.
func TestSimpleStopped(t *testing.T) {
	for range 5 {
		w := newWorld(t)
		begun := make(chan struct{})
		over := make(chan struct{})
		target := newRawTarget(t, map[string]rawAnswer{"/": {text: "HTTP/1.1 200 OK\r\n\r\nhello", then: func(c *net.TCPConn) { <-over }}, "/think": {then: func(*net.TCPConn) { close(begun); <-over }}})
		w.site("a", target.addr(), grammar.ProxyOptions{})
		t.Cleanup(func() { close(over) })
		idle, _ := w.client(true)
		idle.ask("GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
		silent, _ := w.client(true)
		u := w.underAnAnswer()
		waiting, _ := w.client(true)
		io.WriteString(waiting, "GET /think HTTP/1.1\r\nHost: a\r\n\r\n")
		<-begun
		w.s.Close()
		if _, err := io.Copy(io.Discard, u.TCPConn); runtime.GOOS != "windows" && err == nil {
			t.Error("the connection under an answer had an orderly end")
		}
		if rest, err := io.ReadAll(waiting.r); len(rest) > 0 || err == nil && runtime.GOOS != "windows" {
			t.Errorf("who waited for an answer read %q, %v", rest, err)
		}
		if rest, err := io.ReadAll(idle.r); err != nil || len(rest) > 0 {
			t.Errorf("the idle one read %q, %v; want an end", rest, err)
		}
		io.Copy(io.Discard, silent)
	}
}

// TestSimpleEnded: an order ends a client's visit under an answer: it looks complete to neither side.
func TestSimpleEnded(t *testing.T) {
	w := newWorld(t)
	over, visits, left := make(chan struct{}), make(chan *Visit, 1), make(chan error, 1)
	target := newRawTarget(t, map[string]rawAnswer{"/": {text: "HTTP/1.1 200 OK\r\n\r\nhello", then: func(*net.TCPConn) { <-over }}})
	t.Cleanup(func() { close(over) })
	w.site("a", target.addr(), grammar.ProxyOptions{}).Enter = func(v *Visit) (func(error), func(uint64, uint64), error) {
		visits <- v
		return func(err error) { left <- err }, func(uint64, uint64) {}, nil
	}
	u := w.underAnAnswer()
	(<-visits).End(nil)
	if _, err := io.Copy(io.Discard, u.TCPConn); err == nil && runtime.GOOS != "windows" {
		t.Error("the client got an orderly end")
	}
	if err := <-left; err == nil {
		t.Error("the visit ended as if all of its exchanges were complete")
	}
}

// TestSimplePanic: a mistake ends the connection, and is told.
func TestSimplePanic(t *testing.T) {
	w := newWorld(t)
	told := make(chan string, 1)
	w.s.Panicked = func(text string) { told <- text }
	w.site("a", "", grammar.ProxyOptions{}).Enter = func(*Visit) (func(error), func(uint64, uint64), error) { panic("a mistake") }
	u, _ := w.client(true)
	io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if rest, _ := io.ReadAll(u.r); len(rest) > 0 {
		t.Errorf("got %q", rest)
	}
	if text := <-told; !strings.Contains(text, "a mistake") {
		t.Errorf("it was told: %s", text)
	}
}

// withoutFile is a connection below which there is no file, and whose requests may be simple all the same.
type withoutFile struct{ withAddress }

func (c withoutFile) SyscallConn() (syscall.RawConn, error) { return noFile{}, nil }

type noFile struct{}

func (noFile) Control(func(fd uintptr)) error           { return nil }
func (noFile) Read(func(fd uintptr) (done bool)) error  { return nil }
func (noFile) Write(func(fd uintptr) (done bool)) error { return nil }

// TestSimpleQuiet: how long a connection may say nothing, before its first request and behind others, however long their answers take.
func TestSimpleQuiet(t *testing.T) {
	for _, c := range []struct {
		name  string
		takes []time.Duration // the answers
		pause time.Duration   // before each but the first
		want  time.Duration
	}{
		{"no request", nil, 0, headerTime},
		{"one", []time.Duration{0}, 0, idleTime},
		{"some", []time.Duration{0, 0, 0}, idleTime - time.Second, 2*(idleTime-time.Second) + idleTime},
		{"one whose answer takes an hour", []time.Duration{time.Hour}, 0, time.Hour + idleTime},
		{"some whose answers take time", []time.Duration{time.Hour, idleTime, time.Second}, idleTime - time.Second, time.Hour + idleTime + time.Second + 2*(idleTime-time.Second) + idleTime},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				options := &grammar.ProxyOptions{AnswerTime: grammar.Duration(2 * time.Hour)}
				site := &Site{Name: "http/a", Options: func() *grammar.ProxyOptions { return options }}
				site.Enter = func(*Visit) (func(error), func(uint64, uint64), error) {
					return func(error) {}, func(uint64, uint64) {}, nil
				}
				var targets sync.WaitGroup
				n := 0
				site.Dial = func(context.Context, Call, func()) (*Upstream, error) {
					near, far := net.Pipe()
					targets.Go(func() {
						defer far.Close()
						r := bufio.NewReader(far)
						for {
							q, err := http.ReadRequest(r)
							if err != nil {
								return
							}
							if q.Header["X-Simple"] == nil {
								t.Error("a request without its header")
							}
							time.Sleep(c.takes[n])
							n++
							io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
						}
					})
					return &Upstream{Conn: near}, nil
				}
				s := Server{Find: func(bool, string, string) *Site { return site }}
				s.Start()
				near, far := net.Pipe()
				s.Serve(s.NewClient(withoutFile{withAddress{near}}, nil, nil))
				begun := time.Now()
				r := bufio.NewReader(far)
				for i := range c.takes {
					if i > 0 {
						time.Sleep(c.pause)
					}
					io.WriteString(far, "GET / HTTP/1.1\r\nHost: a\r\nx-simple: y\r\n\r\n")
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						t.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
				}
				io.Copy(io.Discard, r)
				if took := time.Since(begun); took != c.want {
					t.Errorf("closed after %v, want %v", took, c.want)
				}
				far.Close()
				s.Close()
				site.Close()
				targets.Wait()
			})
		})
	}
}

// TestEventsBehindAnUpgrade: a client may offer an upgrade with any request, as curl --http2 and Java do. Then ReverseProxy carries the answer,
// and flushes server-sent events from a goroutine of its own: nobody else may do so at the same time. The race detector sees it.
func TestEventsBehindAnUpgrade(t *testing.T) {
	w := newWorld(t)
	target := newRawTarget(t, map[string]rawAnswer{"/": {text: "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n", then: func(c *net.TCPConn) {
		io.WriteString(c, "9\r\ndata: 0\n\n\r\n")
		io.WriteString(c, "9\r\ndata: 1\n\n\r\n0\r\n\r\n")
	}}})
	w.site("a", target.addr(), grammar.ProxyOptions{})
	u := w.user()
	for i := range 50 {
		const offer = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
		if _, body := u.ask(offer); body != "data: 0\n\ndata: 1\n\n" {
			t.Fatalf("answer %d is %q", i, body)
		}
	}
}
