package web

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"reverser/internal/grammar"
)

// TestSlowHead: who sends a head slowly, or nothing at all, is cut off in time, however the bytes come.
func TestSlowHead(t *testing.T) {
	preface := func(w io.Writer) *http2.Framer {
		io.WriteString(w, http2.ClientPreface)
		fr := http2.NewFramer(w, nil)
		fr.WriteSettings()
		return fr
	}
	for _, c := range []struct {
		name string
		say  func(c net.Conn) // returns when the connection is closed, or has said all
		most time.Duration
	}{
		{"nothing", func(net.Conn) {}, headerTime},
		{"half a line", func(c net.Conn) { io.WriteString(c, "GET / HT") }, headerTime},
		{"a byte a second", func(c net.Conn) {
			for _, b := range []byte("GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 1000)) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, headerTime},
		{"a header a second", func(c net.Conn) {
			for line := "GET / HTTP/1.1\r\n"; ; line = "X: y\r\n" {
				if _, err := io.WriteString(c, line); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, headerTime},
		{"a slow head behind a whole request", func(c net.Conn) {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: none\r\n\r\nGET / HTTP/1.1\r\n")
			for {
				if _, err := io.WriteString(c, "X: y\r\n"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, headerTime + time.Second},
		{"half of the preface of HTTP/2", func(c net.Conn) { io.WriteString(c, http2.ClientPreface[:20]) }, headerTime},
		{"the preface of HTTP/2 alone", func(c net.Conn) { io.WriteString(c, http2.ClientPreface) }, idleTime},
		{"a head of HTTP/2 without an end", func(c net.Conn) {
			fr := preface(c)
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}}) // :method GET
			for fr.WriteContinuation(1, false, []byte{0x86}) == nil {                          // :scheme http
				time.Sleep(time.Second)
			}
		}, headerTime + 2*time.Second},
		{"half a frame of HTTP/2", func(c net.Conn) { preface(c).WriteRawFrame(0x2a, 0, 0, make([]byte, 10)); c.Write([]byte{0, 0}) }, headerTime + 2*time.Second},
		{"pings of HTTP/2 alone", func(c net.Conn) {
			for fr := preface(c); fr.WritePing(false, [8]byte{}) == nil; {
				time.Sleep(time.Second)
			}
		}, idleTime + 2*time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := Server{Find: func(bool, string, string) *Site { return nil }}
				s.Start()
				near, far := net.Pipe()
				s.Serve(s.NewClient(near, nil, nil))
				begun := time.Now()
				var said sync.WaitGroup
				said.Go(func() { c.say(far) })
				io.Copy(io.Discard, far)
				if took := time.Since(begun); took > c.most {
					t.Errorf("closed after %v, want at most %v", took, c.most)
				}
				far.Close()
				said.Wait()
				s.Close()
			})
		})
	}
}

// heapNow is what the program holds, with what was not collected yet.
func heapNow() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestFloodsOfHTTP2: heads without an end, heads that are large when unpacked, and requests that are reset at once cost bounded memory, and
// nothing of their neighbours'.
func TestFloodsOfHTTP2(t *testing.T) {
	const most = 64 << 20 // more than a few heads at once, and far less than what is sent
	pack := func(enc *hpack.Encoder, buf *bytes.Buffer, fields ...[2]string) []byte {
		buf.Reset()
		for _, h := range append([][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}}, fields...) {
			enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		return bytes.Clone(buf.Bytes())
	}
	for _, c := range []struct {
		name  string
		flood func(t *testing.T, fr *http2.Framer, watch func()) (refused bool) // refused: the server has ended the connection
		ends  bool
	}{
		{"one head of 256 MB, in pieces", func(t *testing.T, fr *http2.Framer, watch func()) bool {
			var buf bytes.Buffer
			enc := hpack.NewEncoder(&buf)
			first := pack(enc, &buf)
			if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first}) != nil {
				return true
			}
			var field bytes.Buffer
			hpack.NewEncoder(&field).WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("~", 8<<10), Sensitive: true}) // Sensitive: in no table
			for range 256 << 20 / field.Len() {
				if fr.WriteContinuation(1, false, field.Bytes()) != nil {
					return true
				}
				watch()
			}
			return false
		}, true},
		{"heads of 4 MB that are packed in 1 KB", func(t *testing.T, fr *http2.Framer, watch func()) bool {
			var buf bytes.Buffer
			enc := hpack.NewEncoder(&buf)
			big := [2]string{"x", strings.Repeat("~", 4000)} // in the table: a byte each time
			var fields [][2]string
			for range 1000 {
				fields = append(fields, big)
			}
			for i := range 500 {
				if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: pack(enc, &buf, fields...), EndStream: true, EndHeaders: true}) != nil {
					return true
				}
				watch()
			}
			return false
		}, false},
		{"20,000 requests that are reset at once", func(t *testing.T, fr *http2.Framer, watch func()) bool {
			var buf bytes.Buffer
			enc := hpack.NewEncoder(&buf)
			for i := range 20_000 {
				id := uint32(2*i + 1)
				head := pack(enc, &buf, [2]string{"x", strings.Repeat("y", 1000)})
				if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head, EndStream: true, EndHeaders: true}) != nil || fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
					return true
				}
				if i%100 == 0 {
					watch()
				}
			}
			return false
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), grammar.ProxyOptions{})
			w.site("b", w.target(echo), grammar.ProxyOptions{})
			runtime.GC()
			before, peak := heapNow(), int64(0)
			u := w.user()
			io.WriteString(u, http2.ClientPreface)
			fr := http2.NewFramer(u, u.r)
			fr.WriteSettings()
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				io.Copy(io.Discard, u.r)
			}()
			refused := c.flood(t, fr, func() { peak = max(peak, heapNow()) })
			if c.ends && !refused {
				t.Error("all of it was taken")
			}
			if grown := peak - before; grown > most {
				t.Errorf("the program grew by %d MB, want at most %d", grown>>20, most>>20)
			} else {
				t.Logf("grew by %d KB", grown>>10)
			}
			if _, body := w.user().ask("GET / HTTP/1.1\r\nHost: b\r\n\r\n"); body != "GET b /|" {
				t.Errorf("beside it: %q", body)
			}
			u.Close()
			<-closed
		})
	}
}

// TestHugeHead: a head that is too long is refused, by HTTP/1.1 and by HTTP/2, and one just below the limit is not.
func TestHugeHead(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{})
	for size, want := range map[int]string{maxHeader - 1024: "200", 2 * maxHeader: "431", 16 * maxHeader: "431"} {
		u := w.user()
		go fmt.Fprintf(u, "GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n", strings.Repeat("x", size)) // the server does not read all of it
		if resp, err := http.ReadResponse(bufio.NewReader(u), nil); err != nil || !strings.HasPrefix(resp.Status, want) {
			t.Errorf("HTTP/1.1, %d bytes: %v %v, want %s", size, resp, err, want)
		}
		u = w.user()
		io.WriteString(u, http2.ClientPreface)
		fr := http2.NewFramer(u, u.r)
		fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		fr.WriteSettings()
		var head bytes.Buffer
		enc := hpack.NewEncoder(&head)
		for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}, {"x", strings.Repeat("x", size)}} {
			enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		for first, rest := true, head.Bytes(); len(rest) > 0; first = false {
			n := min(len(rest), 16<<10)
			if first {
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: rest[:n], EndStream: true, EndHeaders: n == len(rest)})
			} else if fr.WriteContinuation(1, n == len(rest), rest[:n]) != nil {
				break
			}
			rest = rest[n:]
		}
		for got := ""; got == ""; {
			f, err := fr.ReadFrame()
			switch f := f.(type) {
			case *http2.MetaHeadersFrame:
				got = f.PseudoValue("status")
			case *http2.GoAwayFrame:
				got = f.ErrCode.String()
			}
			if err != nil {
				got = err.Error()
			}
			if got != "" && got != want && (want == "200" || got == "200") {
				t.Errorf("HTTP/2, %d bytes: %s, want %s", size, got, want)
			}
		}
	}
}
