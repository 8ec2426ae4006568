package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/inspect"
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

// TestKeptHasEnded: a kept connection whose end is known gets no request, of any kind: nothing of it was sent, so another connection is taken.
func TestKeptHasEnded(t *testing.T) {
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
		"PATCH / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nhi",
	} {
		w := newWorld(t)
		var mu sync.Mutex
		var seen []string
		site := w.site("a", w.script(func(s said) bool {
			io.Copy(io.Discard, s.Body)
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, fmt.Sprint(s.conn, " ", s.Method))
			io.WriteString(s.out, hello)
			return true
		}), grammar.ProxyOptions{})
		dial := site.Dial
		var first atomic.Bool // it has ended
		site.Dial = func(ctx context.Context, call Call, retired func()) (*Upstream, error) {
			up, err := dial(ctx, call, retired)
			if w.dials == 1 && err == nil {
				up.Quiet = func() bool { return !first.Load() }
			}
			return up, err
		}
		u := w.user()
		u.ask("GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
		first.Store(true)
		method, _, _ := strings.Cut(request, " ")
		if resp, _ := u.ask(request); resp.StatusCode != 200 || !slices.Equal(seen, []string{"1 GET", "2 " + method}) {
			t.Errorf("%q: %s, and the target saw %q", request, resp.Status, seen)
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
	u, near := w.pair()
	conn := &counted{Conn: near}
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

// TestNothingBehindAnEarlyAnswer: what comes of a request behind its answer is never read as another request, whoever watches the exchange.
func TestNothingBehindAnEarlyAnswer(t *testing.T) {
	for _, head := range []string{"Transfer-Encoding: chunked\r\n\r\n100\r\n", "Content-Length: 256\r\n\r\n", "Content-Length: 50000000\r\n\r\n",
		"Expect: 100-continue\r\nContent-Length: 256\r\n\r\n", "Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 50000000\r\n\r\n"} {
		for _, watched := range []string{"by nobody", "by the access log", "by the inspector"} {
			t.Run(fmt.Sprintf("%q %s", head, watched), func(t *testing.T) {
				w := newWorld(t)
				s := w.site("a", w.script(func(s said) bool {
					io.WriteString(s.out, hello)
					io.Copy(io.Discard, s.Body)
					return true
				}), grammar.ProxyOptions{Inspect: true})
				w.site("b", w.target(func(http.ResponseWriter, *http.Request) { t.Error("the hidden request arrived") }), grammar.ProxyOptions{})
				switch watched {
				case "by the access log":
					s.Over = func() func(Request) { return func(Request) {} }
				case "by the inspector":
					store := inspect.New(1 << 20)
					defer store.Close()
					rec := store.Record("http/a", http.NotFoundHandler())
					s.Inspect = func(*grammar.ProxyOptions) *inspect.Recorder { return rec }
				}
				u := w.user()
				resp, _ := u.ask("POST / HTTP/1.1\r\nHost: a\r\n" + head)
				if resp.StatusCode == http.StatusContinue { // the rest of the request was wanted a moment before the answer was passed on
					resp, _ = u.answer(head)
				}
				if resp.StatusCode != 200 || !resp.Close {
					t.Errorf("%s, and the connection goes on: %v", resp.Status, !resp.Close)
				}
				io.WriteString(u, "GET /hidden HTTP/1.1\r\nHost: b\r\n\r\n")
				u.SetReadDeadline(time.Now().Add(time.Minute))
				if second, err := http.ReadResponse(u.r, nil); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("a second answer, or no end: %v, %v", second, err)
				}
			})
		}
	}
}

// TestRefusedBeforeTheBody: a page for a client that waits with its body does not wait for the body.
func TestRefusedBeforeTheBody(t *testing.T) {
	for _, logged := range []bool{false, true} {
		w := newWorld(t)
		s := w.site("a", "", grammar.ProxyOptions{BasicAuth: []string{"ann:$2y$05$x"}})
		if logged {
			s.Over = func() func(Request) { return func(Request) {} }
		}
		u := w.user()
		u.SetReadDeadline(time.Now().Add(time.Minute))
		if resp, _ := u.ask("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"); resp.StatusCode != 401 {
			t.Errorf("logged %v: %s", logged, resp.Status)
		}
	}
}

// tearing is a connection whose writes fail from the second one on: a target does that which resets its direction.
type tearing struct {
	net.Conn
	n    int
	torn chan struct{}
}

func (c *tearing) Write(b []byte) (int, error) {
	if c.n++; c.n == 2 {
		close(c.torn)
	}
	if c.n > 1 {
		return 0, errors.New("reset")
	}
	return c.Conn.Write(b)
}

// TestTorn: an answer that comes when the rest of the request cannot be written any more reaches the client.
func TestTorn(t *testing.T) {
	for _, body := range []string{"Content-Length: 100\r\n\r\n" + strings.Repeat("x", 100), "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"} {
		w := newWorld(t)
		s := w.site("a", "", grammar.ProxyOptions{})
		s.Dial = func(ctx context.Context, call Call, _ func()) (*Upstream, error) {
			near, far := net.Pipe()
			torn := make(chan struct{})
			go func() {
				http.ReadRequest(bufio.NewReader(far))
				<-torn
				io.WriteString(far, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno\n")
			}()
			return &Upstream{Conn: &tearing{Conn: near, torn: torn}, ID: call.ID}, nil
		}
		u := w.user()
		if resp, said := u.ask("POST / HTTP/1.1\r\nHost: a\r\n" + body); resp.StatusCode != 413 || said != "no\n" {
			t.Errorf("%q: %s %q", body[:20], resp.Status, said)
		}
	}
}

// TestUnwanted: the answer of a target that does not want the body arrives whole, though it comes in parts.
func TestUnwanted(t *testing.T) {
	w := newWorld(t)
	arrived := make(chan struct{})
	w.site("a", w.script(func(s said) bool {
		io.WriteString(s.out, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 10000\r\n\r\n")
		<-arrived
		io.WriteString(s.out, strings.Repeat("x", 10000))
		return false
	}), grammar.ProxyOptions{})
	u := w.user()
	io.WriteString(u, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	resp, err := http.ReadResponse(u.r, nil)
	close(arrived)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); len(b) != 10000 {
		t.Errorf("%d bytes arrived: %v", len(b), err)
	}
}

// TestOddAnswers: what a client cannot understand, or nobody said, does not reach it.
func TestOddAnswers(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.script(func(s said) bool {
		switch s.URL.Path {
		case "/early":
			io.WriteString(s.out, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"+hello)
		case "/099":
			io.WriteString(s.out, "HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n")
		default:
			io.WriteString(s.out, hello)
		}
		return true
	}), grammar.ProxyOptions{})
	if resp, _ := w.user().ask("GET /early HTTP/1.0\r\nHost: a\r\n\r\n"); resp.StatusCode != 200 {
		t.Errorf("to HTTP/1.0: %s", resp.Status)
	}
	if resp, _ := w.user().ask("GET /099 HTTP/1.1\r\nHost: a\r\n\r\n"); resp.StatusCode != 502 {
		t.Errorf("for a status below 100: %s", resp.Status)
	}
	for _, upgrade := range []string{"", "Connection: Upgrade\r\nUpgrade: x\r\n"} {
		if resp, _ := w.user().ask("GET / HTTP/1.1\r\nHost: a\r\n" + upgrade + "\r\n"); resp.Header["Content-Type"] != nil {
			t.Errorf("%q: a Content-Type that nobody said: %q", upgrade, resp.Header["Content-Type"])
		}
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

// TestNotTaken: a target that takes nothing of a body has the same time. A link that stands still, and an answer that has begun, have no limit.
func TestNotTaken(t *testing.T) {
	const answerTime = time.Hour
	for _, c := range []struct {
		name   string
		target func(r io.Reader, w io.Writer, paused *atomic.Bool, resumes *atomic.Uint64)
		after  time.Duration // until the whole answer
		status int
	}{
		{name: "takes nothing", target: func(io.Reader, io.Writer, *atomic.Bool, *atomic.Uint64) {}, after: answerTime, status: 504},
		{name: "takes a little now and then, and then nothing", target: func(r io.Reader, _ io.Writer, _ *atomic.Bool, _ *atomic.Uint64) {
			for range 5 {
				time.Sleep(answerTime - time.Minute)
				io.CopyN(io.Discard, r, 32<<10)
			}
		}, after: 5*(answerTime-time.Minute) + answerTime, status: 504},
		{name: "takes all, slowly", target: func(r io.Reader, w io.Writer, _ *atomic.Bool, _ *atomic.Uint64) {
			for rest := int64(512 << 10); rest > 0; rest -= 100 << 10 {
				time.Sleep(answerTime - time.Minute)
				io.CopyN(io.Discard, r, min(rest, 100<<10))
			}
			io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}, after: 6 * (answerTime - time.Minute), status: 200},
		{name: "is behind a link that stands still", target: func(_ io.Reader, _ io.Writer, paused *atomic.Bool, resumes *atomic.Uint64) {
			paused.Store(true)
			time.Sleep(5*answerTime - time.Minute)
			paused.Store(false)
			resumes.Add(1)
		}, after: 6 * answerTime, status: 504},
		{name: "answers, and takes nothing", target: func(_ io.Reader, w io.Writer, _ *atomic.Bool, _ *atomic.Uint64) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
			time.Sleep(3 * answerTime)
			io.WriteString(w, "ok")
		}, after: 3 * answerTime, status: 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				options := &grammar.ProxyOptions{AnswerTime: grammar.Duration(answerTime)}
				site := &Site{Name: "http/a", Options: func() *grammar.ProxyOptions { return options }}
				site.Enter = func(*Visit) (func(error), func(uint64, uint64), error) {
					return func(error) {}, func(uint64, uint64) {}, nil
				}
				var paused atomic.Bool
				var resumes atomic.Uint64
				site.Dial = func(context.Context, Call, func()) (*Upstream, error) {
					near, far := net.Pipe()
					go func() {
						r := bufio.NewReader(far)
						if _, err := http.ReadRequest(r); err != nil {
							t.Error(err)
						}
						c.target(io.MultiReader(r), far, &paused, &resumes)
					}()
					return &Upstream{Conn: near, Paused: paused.Load, Resumes: resumes.Load}, nil
				}
				var failed []error
				s := Server{Find: func(bool, string, string) *Site { return site }, Failed: func(f Failure) { failed = append(failed, f.Err) }}
				s.Start()
				near, far := net.Pipe()
				s.Serve(s.NewClient(near, nil, nil))
				begun := time.Now()
				go func() {
					const size = 512 << 10
					fmt.Fprintf(far, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", size)
					far.Write(make([]byte, size)) // fails where nobody wants it
				}()
				u := &user{t: t, r: bufio.NewReader(far)}
				if resp, body := u.answer(c.name); resp.StatusCode != c.status || time.Since(begun).Round(time.Second) != c.after || c.status == 200 && body != "ok" {
					t.Errorf("%s %q after %v, want %d after %v", resp.Status, body, time.Since(begun), c.status, c.after)
				}
				if c.status == 504 && (len(failed) != 1 || !errors.Is(failed[0], errNotTaken)) {
					t.Errorf("the log was told %v", failed)
				}
				far.Close()
				s.Close()
				site.Close()
				time.Sleep(time.Second) // net/http's goroutine lingers
			})
		})
	}
}

// TestLoginOfAConnection: NTLM and Negotiate log the connection in, and not the request. It serves the client that has logged in, as long as
// both stay, and no other one.
func TestLoginOfAConnection(t *testing.T) {
	for _, kind := range []string{"GET", "POST"} { // a simple one, and one of net/http
		for _, scheme := range []string{"NTLM", "negotiate"} {
			w := newWorld(t)
			var mu sync.Mutex
			users := make(map[int]string) // by connection
			w.site("a", w.script(func(s said) bool {
				io.Copy(io.Discard, s.Body)
				mu.Lock()
				defer mu.Unlock()
				name, token, _ := strings.Cut(s.Header.Get("Authorization"), " ")
				switch {
				case name == "":
				case token == "hello" && users[s.conn] == "":
					users[s.conn] = "half"
					fmt.Fprintf(s.out, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"a\", %s challenge\r\nContent-Length: 0\r\n\r\n", scheme)
					return true
				case users[s.conn] == "half":
					users[s.conn] = token
				}
				user := users[s.conn]
				fmt.Fprintf(s.out, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(user), user)
				return true
			}), grammar.ProxyOptions{})
			head := kind + " / HTTP/1.1\r\nHost: a\r\n"
			if kind == "POST" {
				head += "Content-Length: 0\r\n"
			}
			ann, bob := w.user(), w.user()
			ann.ask(head + "\r\n") // of this connection all would know
			if resp, _ := ann.ask(head + "Authorization: " + scheme + " hello\r\n\r\n"); resp.StatusCode != 401 {
				t.Fatal(resp.Status)
			}
			if _, user := bob.ask(head + "\r\n"); user != "" {
				t.Errorf("%s, %s: a stranger has come onto a connection that is being logged in", kind, scheme)
			}
			for _, auth := range []string{"Authorization: " + scheme + " ann\r\n", "", ""} {
				if _, user := ann.ask(head + auth + "\r\n"); user != "ann" {
					t.Errorf("%s, %s: who has logged in is %q for the target", kind, scheme, user)
				}
				if _, user := bob.ask(head + "\r\n"); user != "" {
					t.Errorf("%s, %s: a stranger is %q for the target", kind, scheme, user)
				}
			}
			ann.Close()
			for range 3 {
				if _, user := w.user().ask(head + "\r\n"); user != "" {
					t.Errorf("%s, %s: a later client is %q for the target", kind, scheme, user)
				}
			}
		}
	}
}

// TestLoginKept: the connection that a client is logged in on stays as long as the client's own may be idle. Others are closed much sooner.
func TestLoginKept(t *testing.T) {
	for _, login := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			site := &Site{Name: "http/a", Options: func() *grammar.ProxyOptions { return &noOptions }}
			site.Enter = func(*Visit) (func(error), func(uint64, uint64), error) {
				return func(error) {}, func(uint64, uint64) {}, nil
			}
			var targets sync.WaitGroup
			var dialed atomic.Int32
			var closed atomic.Pointer[time.Time] // the last one was
			site.Dial = func(context.Context, Call, func()) (*Upstream, error) {
				near, far := net.Pipe()
				dialed.Add(1)
				targets.Go(func() {
					defer far.Close()
					for r := bufio.NewReader(far); ; {
						if _, err := http.ReadRequest(r); err != nil {
							now := time.Now()
							closed.Store(&now)
							return
						}
						io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					}
				})
				return &Upstream{Conn: near}, nil
			}
			s := Server{Find: func(bool, string, string) *Site { return site }}
			s.Start()
			near, far := net.Pipe()
			s.Serve(s.NewClient(withAddress{near}, nil, nil))
			r := bufio.NewReader(far)
			get := "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
			if login {
				get = "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: NTLM it\r\n\r\n"
			}
			var last time.Time
			for range 3 {
				last = time.Now()
				io.WriteString(far, get)
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				time.Sleep(idleTime - time.Second)
			}
			wantDialed, wantKept := int32(3), keepTime
			if login {
				wantDialed, wantKept = 1, idleTime
			}
			io.Copy(io.Discard, r) // the client's connection ends
			far.Close()
			s.Close()
			site.Close()
			targets.Wait()
			if n, kept := dialed.Load(), closed.Load().Sub(last); n != wantDialed || kept != wantKept {
				t.Errorf("login %v: %d connections to the target, the last one closed %v behind the last request; want %d and %v", login, n, kept, wantDialed, wantKept)
			}
		})
	}
}

// TestChallengeOfAConnection: the target asks for such a login, and the client follows by a request that is the first on its connection to say so.
func TestChallengeOfAConnection(t *testing.T) {
	w := newWorld(t)
	site := w.site("a", w.script(func(s said) bool {
		fmt.Fprintf(s.out, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nContent-Length: 1\r\n\r\n%d", s.conn)
		return true
	}), grammar.ProxyOptions{})
	ann, bob := w.user(), w.user()
	const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	for range 2 {
		if _, conn := ann.ask(get); conn != "1" {
			t.Errorf("the first client is on connection %s", conn)
		}
		if _, conn := bob.ask(get); conn != "2" {
			t.Errorf("the second client is on connection %s", conn)
		}
	}
	// When the bridge has no more use for the connections, they are used no more.
	site.mu.Lock()
	shared := site.pool
	site.mu.Unlock()
	site.retire(shared)
	if _, conn := ann.ask(get); conn != "3" {
		t.Errorf("a connection whose bridge has gone is used on: %s", conn)
	}
}
