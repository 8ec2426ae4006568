package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"reverser/internal/grammar"
	"reverser/internal/inspect"
)

// TestTrailersOfARequest: a trailer says nothing that a header may not say, and comes only if it was announced.
func TestTrailersOfARequest(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		for _, client := range []string{"HTTP/1.1", "HTTP/2"} {
			w := newWorld(t)
			w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				fmt.Fprintf(rw, "%v", r.Trailer)
			}), grammar.ProxyOptions{H2C: h2c, RemoveHeader: []string{"x-secret"}, SetHeader: map[string]string{"X-Stage": "test"}})
			names := []string{"X-Sum", "X-Forwarded-For", "X-Forwarded-User", "X-Secret", "X-Stage", "Host", "Authorization", "X-Never"}
			var body string
			u := w.user()
			if client == "HTTP/1.1" {
				request := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: " + strings.Join(names, ", ") + "\r\n\r\n1\r\nx\r\n0\r\nX-Unannounced: 1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
				for _, name := range names[:len(names)-1] {
					request += name + ": 1\r\n"
				}
				_, body = u.ask(request + "\r\n")
			} else {
				io.WriteString(u, http2.ClientPreface)
				fr := http2.NewFramer(u, u.r)
				fr.WriteSettings()
				var block bytes.Buffer
				enc := hpack.NewEncoder(&block)
				for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}, {"trailer", strings.Join(names, ", ")}} {
					enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
				}
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
				fr.WriteData(1, false, []byte("x"))
				block.Reset()
				for _, name := range append(names[:len(names)-1:len(names)-1], "X-Unannounced") {
					if name == "Host" || name == "Authorization" {
						continue // net/http resets the stream
					}
					enc.WriteField(hpack.HeaderField{Name: strings.ToLower(name), Value: "1"})
				}
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
				for body == "" {
					f, err := fr.ReadFrame()
					if err != nil {
						t.Fatal(err)
					}
					if d, ok := f.(*http2.DataFrame); ok {
						body = string(d.Data())
					}
				}
			}
			if !strings.Contains(body, "X-Sum:[1]") || strings.Count(body, "1") != 1 {
				t.Errorf("h2c %v, client %s: the target got the trailers %s, want X-Sum alone", h2c, client, body)
			}
		}
	}
}

// TestAheadOfAnUpgrade: what a client sends before it is told that the connection has left HTTP reaches the target.
func TestAheadOfAnUpgrade(t *testing.T) {
	for _, inspected := range []bool{false, true} {
		w := newWorld(t)
		begun := make(chan struct{})
		goOn := make(chan struct{})
		s := w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
			c, brw, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			close(begun)
			<-goOn
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
			b, _ := io.ReadAll(brw)
			c.Write(b)
		}), grammar.ProxyOptions{Inspect: inspected})
		store := inspect.New(1 << 20)
		t.Cleanup(store.Close)
		rec := store.Record("http/a", http.NotFoundHandler())
		s.Inspect = func(*grammar.ProxyOptions) *inspect.Recorder { return rec }
		u := w.user()
		io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\nfirst ")
		<-begun
		io.WriteString(u, "second")
		close(goOn)
		if resp, err := http.ReadResponse(u.r, nil); err != nil || resp.StatusCode != 101 {
			t.Fatal(resp, err)
		}
		io.WriteString(u, " third")
		u.CloseWrite()
		if got, err := io.ReadAll(u.r); string(got) != "first second third" {
			t.Errorf("inspected %v: the target got %q, %v", inspected, got, err)
		}
	}
}

// TestPageBeforeTheBody: an answer of the server's own does not wait for the body of its request, and ends the connection in time when it
// does not come.
func TestPageBeforeTheBody(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{BasicAuth: []string{"ann:$2y$05$x"}})
	for request, want := range map[string]int{
		"POST / HTTP/1.1\r\nHost: none\r\nContent-Length: 10\r\n\r\n":                         404,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf":                        401,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n":      401,
		"POST / HTTP/1.1\r\nHost: a, b\r\nContent-Length: 10\r\n\r\n":                         400,
		"POST / HTTP/1.1\r\nHost: none\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n": 404,
		"OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n":                         200,
	} {
		u := w.user()
		if resp, _ := u.ask(request); resp.StatusCode != want || !resp.Close {
			t.Errorf("%q: %s, close %v, want %d and the end of the connection", request, resp.Status, resp.Close, want)
		}
		if _, err := u.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: the connection stays: %v", request, err)
		}
	}
}

// TestSlowReaders: of an answer of HTTP/2 that its client does not read, only so much is taken from the target.
func TestSlowReaders(t *testing.T) {
	w := newWorld(t)
	var taken atomic.Int64
	w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
		b := make([]byte, 16<<10)
		for {
			n, err := rw.Write(b)
			if taken.Add(int64(n)); err != nil {
				return
			}
		}
	}), grammar.ProxyOptions{H2C: true})
	u := w.user()
	io.WriteString(u, http2.ClientPreface)
	fr := http2.NewFramer(u, u.r)
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	go io.Copy(io.Discard, u.r)
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}} {
		enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true})
	const most = 2 * maxBehind
	last := int64(-1)
	for same := 0; same < 20; { // until it stands still
		time.Sleep(10 * time.Millisecond)
		now := taken.Load()
		if same++; now != last || now == 0 {
			same = 0
		}
		if last = now; now > most {
			break
		}
	}
	if last > most {
		t.Errorf("%d bytes were taken, want at most %d", last, most)
	}
	u.Close()
}

// TestAnswerTimeOfHTTP2: behind a request that a target of HTTP/2 has taken, what is missing is the answer.
func TestAnswerTimeOfHTTP2(t *testing.T) {
	for _, size := range []int{10, 100 << 10, 1 << 20} {
		w := newWorld(t)
		w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}), grammar.ProxyOptions{H2C: true, AnswerTime: grammar.Duration(300 * time.Millisecond)})
		u := w.user()
		go fmt.Fprintf(u, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
		resp, _ := u.answer("a request without an answer")
		w.mu.Lock()
		if resp.StatusCode != 504 || len(w.failed) != 1 || errors.Is(w.failed[0].Err, errNotTaken) {
			t.Errorf("%d bytes: %s, %v; want 504, and not that it was not taken", size, resp.Status, w.failed)
		}
		w.mu.Unlock()
	}
}

// TestBrokenReplay: a request that is sent again, and whose answer is broken off, is shown so.
func TestBrokenReplay(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		w := newWorld(t)
		s := w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", "100")
			io.WriteString(rw, "begun")
			rw.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}), grammar.ProxyOptions{Inspect: true, H2C: h2c})
		store := inspect.New(1 << 20)
		t.Cleanup(store.Close)
		rec := store.Record("http/a", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.s.Again(s, rw, r) }))
		s.Inspect = func(*grammar.ProxyOptions) *inspect.Recorder { return rec }
		u := w.user()
		io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		io.ReadAll(u.r)
		first := rec.List()[0]
		again, err := rec.Replay(t.Context(), first.ID)
		if err != nil || again.State != "aborted" {
			t.Errorf("h2c %v: sent again: %q, %v; want aborted", h2c, again.State, err)
		}
	}
}

// TestPanicked: a mistake of the program is told, and costs its own client's connection alone.
func TestPanicked(t *testing.T) {
	w := newWorld(t)
	var told atomic.Value
	w.s.Panicked = func(text string) { told.Store(text) }
	w.site("b", w.target(echo), grammar.ProxyOptions{})
	w.site("a", "", grammar.ProxyOptions{}).Dial = func(context.Context, Call, func()) (*Upstream, error) { panic("a mistake") }
	u := w.user()
	io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if b, err := io.ReadAll(u.r); len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	if _, body := w.user().ask("GET / HTTP/1.1\r\nHost: b\r\n\r\n"); body != "GET b /|" {
		t.Errorf("beside it: %q", body)
	}
	if text, _ := told.Load().(string); !strings.Contains(text, "a mistake") {
		t.Errorf("told: %q", text)
	}
}

// TestCrowdedPage: where there is no room, the page does not say that the service is away.
func TestCrowdedPage(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{})
	w.fails = ErrLimit
	resp, body := w.user().ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp.StatusCode != 503 || !strings.Contains(body, "no room") || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%s %q %v", resp.Status, body, resp.Header)
	}
}
