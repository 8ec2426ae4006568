package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/share"
)

// lastFailure is why the last page was sent; nil: none was.
func (w *world) lastFailure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failed) == 0 {
		return nil
	}
	return w.failed[len(w.failed)-1].Err
}

// TestAnswerHeads: a head of an answer within the limits passes as a whole, with what comes behind it. One beyond them gets 502 at once, also if
// the target never finishes it.
func TestAnswerHeads(t *testing.T) {
	lines := func(n int) string { return strings.Repeat("a: b\r\n", n) }
	long := func(n int) string { return "X: " + strings.Repeat("x", n) + "\r\n" }
	const ok, early, behind = "HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 Early Hints\r\n", "Content-Length: 5\r\n\r\nhello"
	for name, c := range map[string]struct {
		answer string
		want   error // nil: it passes
	}{
		"as many lines as may be":                 {ok + lines(mostLines-1) + behind, nil},
		"a line more":                             {ok + lines(mostLines) + behind, errManyLines},
		"lines without an end":                    {ok + lines(mostLines+1), errManyLines},
		"the shortest lines, without an end":      {ok + strings.Repeat("a:\r\n", 60_000), errManyLines},
		"lines that end with LF alone":            {ok + strings.Repeat("a:\n", mostLines+1), errManyLines},
		"lines that are continued":                {ok + "a: b\r\n" + strings.Repeat(" c\r\n", mostLines), errManyLines},
		"as many bytes as may be":                 {ok + long(maxAnswerHead-100) + behind, nil},
		"more bytes, of which some are lines":     {ok + long(maxAnswerHead) + behind, errLongHead},
		"bytes without an end":                    {ok + "X: " + strings.Repeat("x", maxAnswerHead), errLongHead},
		"as many informational ones as may be":    {strings.Repeat(early+"\r\n", mostInterim) + ok + behind, nil},
		"one more":                                {strings.Repeat(early+"\r\n", mostInterim+1) + ok + behind, errInterim},
		"long informational ones":                 {strings.Repeat(early+long(maxAnswerHead/2)+"\r\n", 2) + ok + behind, nil},
		"informational ones with lines, together": {strings.Repeat(early+lines(mostLines)+"\r\n", 2) + ok + behind, nil},
		"an informational one with too many":      {early + lines(mostLines+1) + "\r\n" + ok + behind, errManyLines},
	} {
		for _, method := range []string{"GET", "DELETE"} { // a simple one, and net/http's
			w := newWorld(t)
			w.site("a", w.script(func(s said) bool {
				io.WriteString(s.out, c.answer)
				if c.want == nil {
					return true
				}
				io.Copy(io.Discard, s.r) // until it is given up
				return false
			}), grammar.ProxyOptions{})
			u := w.user()
			for range 2 {
				fmt.Fprintf(u, "%s / HTTP/1.1\r\nHost: a\r\n\r\n", method)
				var resp *http.Response
				for resp == nil || resp.StatusCode == http.StatusEarlyHints {
					resp, _ = u.answer(name)
				}
				switch err := w.lastFailure(); {
				case c.want == nil && (resp.StatusCode != 200 || err != nil):
					t.Errorf("%s %s: %s, %v", method, name, resp.Status, err)
				case c.want != nil && (resp.StatusCode != 502 || !errors.Is(err, c.want)):
					t.Errorf("%s %s: %s, %v; want 502, %v", method, name, resp.Status, err, c.want)
				}
			}
			if want := map[bool]int{true: 1, false: 2}[c.want == nil]; w.dials != want {
				t.Errorf("%s %s: %d connections to the target for two requests, want %d", method, name, w.dials, want)
			}
		}
	}
}

// TestAnswerHops: what the Connection of an answer names is for the proxy alone, also where it says that the connection ends.
func TestAnswerHops(t *testing.T) {
	const ok, behind = "HTTP/1.1 200 OK\r\n", "X-Hop: 1\r\nX-End: 2\r\nContent-Length: 5\r\n\r\nhello"
	for name, answer := range map[string]string{
		"without close":           ok + "Connection: X-Hop\r\n" + behind,
		"behind close":            ok + "Connection: close, X-Hop\r\n" + behind,
		"before close":            ok + "connection:x-hop ,Close\r\n" + behind,
		"in two fields":           ok + "Connection: close\r\nCONNECTION: X-Hop\r\n" + behind,
		"in a field behind it":    ok + strings.TrimSuffix(behind, "\r\nhello") + "Connection: close, x-hop\r\n\r\nhello",
		"in a line that goes on":  ok + "Connection: close,\r\n\tX-Hop\r\n" + behind,
		"lines end with LF alone": strings.ReplaceAll(ok+"Connection: close, X-Hop\r\n"+behind, "\r", ""),
		"in a long head":          ok + "X-A: " + strings.Repeat("x", 9000) + "\r\nConnection: close, X-Hop\r\n" + behind,
		"behind a long one":       "HTTP/1.1 103 Early Hints\r\nX-End: 2\r\nX-A: " + strings.Repeat("x", 9000) + "\r\n\r\n" + ok + "Connection: close, X-Hop\r\n" + behind,
		"the length, too":         ok + "Connection: close, X-Hop, Content-Length\r\n" + behind,
		"in an informational one": "HTTP/1.1 103 Early Hints\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n" + ok + "X-End: 2\r\nContent-Length: 5\r\n\r\nhello",
	} {
		for _, request := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"} {
			w := newWorld(t)
			w.site("a", w.script(func(s said) bool {
				io.WriteString(s.out, answer)
				return true // the proxy closes it
			}), grammar.ProxyOptions{})
			u := w.user()
			for range 2 {
				io.WriteString(u, request)
				resp, body := u.answer(request)
				for ; resp.StatusCode == http.StatusEarlyHints; resp, body = u.answer(request) {
					if h := resp.Header; h["X-Hop"] != nil || h["Connection"] != nil || h.Get("X-End") != "2" {
						t.Errorf("%s: the informational answer to %.60q has %v", name, request, h)
					}
				}
				if h := resp.Header; resp.StatusCode != 200 || body != "hello" || resp.Close || h["X-Hop"] != nil || h["Connection"] != nil || h.Get("X-End") != "2" {
					t.Errorf("%s: the answer to %.60q is %s with %.200v, %q, and ends the connection: %v", name, request, resp.Status, h, body, resp.Close)
				}
			}
		}
	}
}

// inTurn fails the test if it is read of while somebody has a turn.
type inTurn struct {
	net.Conn
	t    *testing.T
	turn *atomic.Bool
}

func (c inTurn) Read(b []byte) (int, error) {
	if c.turn.Load() {
		c.t.Error("the target is read of in a turn")
	}
	return c.Conn.Read(b)
}

// TestLongHeadsInTurn: each long head is read in a turn, in which nothing is waited for. A short one, and one that breaks off, is not.
func TestLongHeadsInTurn(t *testing.T) {
	w := newWorld(t)
	var turn atomic.Bool
	turns := 0
	w.s.InTurn = func(f func()) {
		turns++
		turn.Store(true)
		f()
		turn.Store(false)
	}
	long := "X: " + strings.Repeat("x", 9000) + "\r\n"
	site := w.site("a", w.script(func(s said) bool {
		if s.URL.Path == "/broken" {
			io.WriteString(s.out, "HTTP/1.1 200 OK\r\n"+long)
			return false
		}
		io.WriteString(s.out, "HTTP/1.1 103 Early Hints\r\n"+long+"\r\n")
		io.WriteString(s.out, "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n")
		io.WriteString(s.out, "HTTP/1.1 200 OK\r\n"+long+" continued\r\nContent-Length: 5\r\n\r\nhello")
		return true
	}), grammar.ProxyOptions{})
	dial := site.Dial
	site.Dial = func(ctx context.Context, call Call, retired func()) (*Upstream, error) {
		up, err := dial(ctx, call, retired)
		if err == nil {
			up.Conn = inTurn{up.Conn, t, &turn}
		}
		return up, err
	}
	u := w.user()
	io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	for range 2 {
		u.answer("an informational answer")
	}
	if resp, body := u.answer("/"); resp.StatusCode != 200 || body != "hello" || turns != 2 {
		t.Errorf("%s, %q, and %d turns; want 2", resp.Status, body, turns)
	}
	if resp, _ := u.ask("GET /broken HTTP/1.1\r\nHost: a\r\n\r\n"); resp.StatusCode != 502 || turns != 2 {
		t.Errorf("a head that breaks off: %s, and %d turns; want 502 without one more", resp.Status, turns-2)
	}
}

// TestHeadRoom: long heads of answers of one key hold no more than is left for those of others. What they held is free when they are over.
func TestHeadRoom(t *testing.T) {
	w := newWorld(t)
	w.s.heads.size = 256 << 10
	var told atomic.Int64
	w.s.Crowded = func(p Pool, why error) {
		if p == PoolAnswers && why == errHeadRoom {
			told.Add(1)
		}
	}
	full := func() (n int) {
		w.s.heads.mu.Lock()
		defer w.s.heads.mu.Unlock()
		return w.s.heads.used
	}
	w.site("evil", w.script(func(s said) bool {
		io.WriteString(s.out, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 60<<10)) // and no end
		io.Copy(io.Discard, s.r)
		return false
	}), grammar.ProxyOptions{}).Key = "evil"
	w.site("good", w.script(func(s said) bool {
		for range 3 {
			fmt.Fprintf(s.out, "HTTP/1.1 103 Early Hints\r\nX: %s\r\n\r\n", strings.Repeat("x", 40<<10))
		}
		fmt.Fprintf(s.out, "HTTP/1.1 200 OK\r\nX: %s\r\nContent-Length: 5\r\n\r\nhello", strings.Repeat("x", 40<<10))
		return true
	}), grammar.ProxyOptions{}).Key = "good"
	const each = maxAnswerHead - 4<<10 // behind what the buffer holds
	var held []*user
	for n := each; n < w.s.heads.size/2; n += each {
		u := w.user()
		io.WriteString(u, "GET / HTTP/1.1\r\nHost: evil\r\n\r\n")
		for full() != n {
			time.Sleep(time.Millisecond)
		}
		held = append(held, u)
	}
	for _, method := range []string{"GET", "DELETE"} {
		for full() != len(held)*each { // what is over may hold its room for a moment
			time.Sleep(time.Millisecond)
		}
		if resp, _ := w.user().ask(method + " / HTTP/1.1\r\nHost: evil\r\n\r\n"); resp.StatusCode != 502 || w.lastFailure() != errHeadRoom {
			t.Errorf("%s beside %d that hold all: %s, %v; want 502, %v", method, len(held), resp.Status, w.lastFailure(), errHeadRoom)
		}
		for full() != len(held)*each {
			time.Sleep(time.Millisecond)
		}
		u := w.user()
		io.WriteString(u, method+" / HTTP/1.1\r\nHost: good\r\n\r\n")
		var resp *http.Response
		for resp == nil || resp.StatusCode == http.StatusEarlyHints {
			resp, _ = u.answer(method)
		}
		if resp.StatusCode != 200 || len(resp.Header.Get("X")) != 40<<10 {
			t.Errorf("%s of another key: %s", method, resp.Status)
		}
	}
	if got, want := w.s.Taken(PoolAnswers), (Taken{Taken: share.Taken{Used: int64(len(held) * each), Size: 256 << 10, ByLargest: int64(len(held) * each)}, Key: "evil"}); got != want || told.Load() != 2 {
		t.Errorf("taken is %+v, want %+v; it was told %d times that there is no room, want 2", got, want, told.Load())
	}
	for _, u := range held {
		u.Close()
	}
	for full() != 0 {
		time.Sleep(time.Millisecond)
	}
	if len(w.s.heads.of) != 0 {
		t.Errorf("nothing is held by %v", w.s.heads.of)
	}
}

// TestLongHeadOfSwitch: what a target says behind a long head that leaves HTTP arrives, in order.
func TestLongHeadOfSwitch(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.script(func(s said) bool {
		fmt.Fprintf(s.out, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\nX: %s\r\n\r\nfirst,", strings.Repeat("x", 9000))
		io.ReadFull(s.r, make([]byte, 2))
		io.WriteString(s.out, "second")
		return false
	}), grammar.ProxyOptions{})
	u := w.user()
	io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	resp, err := http.ReadResponse(u.r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("the head: %v, %v", resp, err)
	}
	got := make([]byte, len("first,"))
	io.ReadFull(u.r, got)
	io.WriteString(u, "go")
	rest, err := io.ReadAll(u.r)
	if string(got)+string(rest) != "first,second" || err != nil {
		t.Errorf("behind the head: %q, %q, %v", got, rest, err)
	}
}

// TestLongTrailer: an answer whose trailer has too many lines is broken off.
func TestLongTrailer(t *testing.T) {
	for n, want := range map[int]bool{mostLines: true, mostLines + 1: false} {
		w := newWorld(t)
		w.site("a", w.script(func(s said) bool {
			io.WriteString(s.out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"+strings.Repeat("a: b\r\n", n)+"\r\n")
			return true
		}), grammar.ProxyOptions{})
		u := w.user()
		io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(u.r, nil)
		if err == nil { // or the reset was faster
			_, err = io.ReadAll(resp.Body)
		}
		if (err == nil) != want {
			t.Errorf("%d lines: %v, want it whole: %v", n, err, want)
		}
	}
}

// TestHeadsOfHTTP2: the same limits hold for targets that speak HTTP/2.
func TestHeadsOfHTTP2(t *testing.T) {
	for name, c := range map[string]struct {
		interim, lines int
		want           error
	}{
		"as many lines as may be":              {0, mostLines, nil},
		"a line more":                          {0, mostLines + 1, errManyLines},
		"as many informational ones as may be": {mostInterim, 1, nil},
		"one more":                             {mostInterim + 1, 1, errInterim},
	} {
		w := newWorld(t)
		w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
			for range c.interim {
				rw.WriteHeader(http.StatusEarlyHints)
			}
			h := rw.Header()
			h["Date"], h["Content-Length"], h["Content-Type"] = nil, nil, nil
			for range c.lines {
				h.Add("a", "b")
			}
			rw.WriteHeader(http.StatusOK)
			rw.(http.Flusher).Flush()
		}), grammar.ProxyOptions{H2C: true})
		u := w.user()
		io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		var resp *http.Response
		for resp == nil || resp.StatusCode == http.StatusEarlyHints {
			resp, _ = u.answer(name)
		}
		if err := w.lastFailure(); c.want == nil && resp.StatusCode != 200 || c.want != nil && (resp.StatusCode != 502 || !strings.Contains(fmt.Sprint(err), c.want.Error())) {
			t.Errorf("%s: %s, %v; want %v", name, resp.Status, err, c.want)
		}
	}
}
