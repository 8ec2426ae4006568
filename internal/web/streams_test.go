package web

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"reverser/internal/grammar"
)

// packer packs heads of requests for "/".
type packer struct {
	enc *hpack.Encoder
	buf bytes.Buffer
}

func newPacker() *packer {
	p := &packer{}
	p.enc = hpack.NewEncoder(&p.buf)
	return p
}

func (p *packer) pack(method, host string, fields ...string) []byte {
	p.buf.Reset()
	for f := range slices.Chunk(append([]string{":method", method, ":scheme", "http", ":authority", host, ":path", "/"}, fields...), 2) {
		p.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return bytes.Clone(p.buf.Bytes())
}

// TestFieldCount: fields are counted as a decoder counts them, however the head is cut.
func TestFieldCount(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	text := func(most int) string {
		b := make([]byte, rnd.IntN(most))
		for i := range b {
			b[i] = byte(' ' + rnd.IntN(95))
		}
		return string(b)
	}
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	var c fieldCount
	dec := hpack.NewDecoder(1<<16, nil)
	want := 0
	dec.SetEmitFunc(func(hpack.HeaderField) { want++ })
	for range 2000 {
		buf.Reset()
		if rnd.IntN(10) == 0 {
			enc.SetMaxDynamicTableSize(uint32(rnd.IntN(4096)))
		}
		for range 1 + rnd.IntN(20) {
			name := []string{":path", "accept", "x-" + text(10), text(300)}[rnd.IntN(4)]
			value := []string{"/", "", text(20), text(20_000)}[rnd.IntN(4)]
			enc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: rnd.IntN(3) == 0})
		}
		block := buf.Bytes()
		if _, err := dec.Write(block); err != nil {
			t.Fatal(err)
		}
		dec.Close()
		for len(block) > 0 {
			n := 1 + rnd.IntN(len(block))
			c.read(block[:n])
			block = block[n:]
		}
		if c.n != want || c.at != fieldStart {
			t.Fatalf("%d fields, in part %d; the decoder has %d", c.n, c.at, want)
		}
	}
}

func FuzzFieldCount(f *testing.F) {
	f.Add(newPacker().pack("GET", "a", "x", strings.Repeat("y", 200)))
	f.Fuzz(func(t *testing.T, block []byte) {
		want := 0
		dec := hpack.NewDecoder(4096, func(hpack.HeaderField) { want++ })
		if _, err := dec.Write(block); err != nil || dec.Close() != nil {
			return
		}
		var c fieldCount
		c.read(block)
		if c.n != want || c.at != fieldStart {
			t.Errorf("%d fields, in part %d; the decoder has %d", c.n, c.at, want)
		}
	})
}

// written is what f writes.
func written(f func(fr *http2.Framer)) []byte {
	var buf bytes.Buffer
	f(http2.NewFramer(&buf, nil))
	return buf.Bytes()
}

// TestStreamsHold: what a client has this process hold is counted, and is held no more when it is answered, however the bytes are cut.
func TestStreamsHold(t *testing.T) {
	head := newPacker().pack("POST", "a")
	one := streamCost + byteCost*len(head) + 4*fieldCost
	request := func(id uint32, end bool) func(fr *http2.Framer) {
		return func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head, EndHeaders: true, EndStream: end})
		}
	}
	for _, c := range []struct {
		name string
		in   func(fr *http2.Framer)
		want int
		out  func(fr *http2.Framer)
		left int
	}{
		{"settings", func(fr *http2.Framer) { fr.WriteSettings() }, replyCost, func(fr *http2.Framer) { fr.WriteSettingsAck() }, 0},
		{"pings", func(fr *http2.Framer) { fr.WritePing(false, [8]byte{}); fr.WritePing(false, [8]byte{1}) }, 2 * replyCost, func(fr *http2.Framer) { fr.WritePing(true, [8]byte{}) }, 0},
		{"answers to pings and settings", func(fr *http2.Framer) { fr.WritePing(true, [8]byte{}); fr.WriteSettingsAck() }, 0, func(*http2.Framer) {}, 0},
		{"window updates", func(fr *http2.Framer) { fr.WriteWindowUpdate(0, 1); fr.WriteWindowUpdate(1, 1) }, 0, func(*http2.Framer) {}, 0},
		{"a request", request(1, true), one, func(fr *http2.Framer) { fr.WriteData(1, true, []byte("answer")) }, 0},
		{"an answer that goes on", request(1, true), one, func(fr *http2.Framer) { fr.WriteData(1, false, []byte("answer")) }, one},
		{"an answer of a head", request(1, true), one, func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true, EndStream: true})
		}, 0},
		{"a reset", request(1, true), one, func(fr *http2.Framer) { fr.WriteRSTStream(1, http2.ErrCodeInternal) }, 0},
		{"an answer to another", request(1, true), one, func(fr *http2.Framer) { fr.WriteData(3, true, nil) }, one},
		{"taken back", func(fr *http2.Framer) { request(1, true)(fr); fr.WriteRSTStream(1, http2.ErrCodeCancel) }, 0, func(*http2.Framer) {}, 0},
		{"a body", func(fr *http2.Framer) { request(1, false)(fr); fr.WriteData(1, true, make([]byte, 1000)) }, one + 1000, func(fr *http2.Framer) { fr.WriteData(1, true, nil) }, 0},
		{"a body of no request", func(fr *http2.Framer) { fr.WriteData(1, true, make([]byte, 1000)) }, 0, func(*http2.Framer) {}, 0},
		{"a trailer", func(fr *http2.Framer) { request(1, false)(fr); request(1, true)(fr) }, one + one - streamCost, func(fr *http2.Framer) { fr.WriteData(1, true, nil) }, 0},
		{"a head with padding and a priority", func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndHeaders: true, PadLength: 200, Priority: http2.PriorityParam{Weight: 3}})
		}, one, func(fr *http2.Framer) { fr.WriteData(1, true, nil) }, 0},
		{"a head in pieces", func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head[:3], PadLength: 9})
			fr.WriteContinuation(1, false, head[3:5])
			fr.WriteContinuation(1, true, head[5:])
		}, one, func(fr *http2.Framer) { fr.WriteData(1, true, nil) }, 0},
		{"half a head", func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head[:3], EndStream: true})
		}, streamCost + 3*byteCost + 3*fieldCost, func(*http2.Framer) {}, streamCost + 3*byteCost + 3*fieldCost},
	} {
		for _, piece := range []int{1, 2, 7, 1 << 20} {
			var s streams
			b := append([]byte(prefaceOfHTTP2), written(c.in)...)
			for len(b) > 0 {
				k := min(piece, len(b))
				n, err := s.read(b[:k], func(int) bool { t.Errorf("%s: more than may be held", c.name); return false })
				if err != nil || n == 0 {
					t.Fatalf("%s, pieces of %d: %d, %v", c.name, piece, n, err)
				}
				b = b[n:]
			}
			if s.held != c.want {
				t.Errorf("%s, pieces of %d: %d held, want %d", c.name, piece, s.held, c.want)
			}
			for b := written(c.out); len(b) > 0; {
				k := min(piece, len(b))
				s.wrote(b[:k])
				b = b[k:]
			}
			if s.held != c.left {
				t.Errorf("%s, pieces of %d, behind the answer: %d held, want %d", c.name, piece, s.held, c.left)
			}
		}
	}
}

// rawHTTP2 is a client of HTTP/2 that says what a test wants, of a server in virtual time.
type rawHTTP2 struct {
	net.Conn
	*http2.Framer
	*packer
}

func newRawHTTP2(s *Server) *rawHTTP2 {
	near, far := net.Pipe()
	s.Serve(s.NewClient(near, nil, nil))
	return &rawHTTP2{far, http2.NewFramer(far, far), newPacker()}
}

func (u *rawHTTP2) begin(settings ...http2.Setting) {
	io.WriteString(u.Conn, http2.ClientPreface)
	u.WriteSettings(settings...)
}

// TestClosedWindows: a client that lets no answer be written has few requests under way, and each ends in time. A hundred requests of one whose
// answers can be written are answered.
func TestClosedWindows(t *testing.T) {
	for _, window := range []uint32{0, 1 << 16} {
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int64
			s := Server{
				Find:   func(bool, string, string) *Site { return nil },
				Failed: func(Failure) { asked.Add(1) },
			}
			s.Start()
			u := newRawHTTP2(&s)
			const all = 100
			ends := make(map[http2.FrameType]int)
			var reads, writes sync.WaitGroup
			reads.Go(func() {
				for {
					f, err := u.ReadFrame()
					if err != nil {
						return
					}
					if r, ok := f.(*http2.RSTStreamFrame); ok {
						ends[f.Header().Type]++
						if r.ErrCode != http2.ErrCodeInternal {
							t.Errorf("reset with %v", r.ErrCode)
						}
					} else if d, ok := f.(*http2.DataFrame); ok && d.StreamEnded() {
						ends[f.Header().Type]++
					}
				}
			})
			begun := time.Now()
			writes.Go(func() {
				u.begin(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
				for i := range all {
					if u.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: u.pack("GET", "none"), EndHeaders: true, EndStream: true}) != nil {
						return
					}
				}
			})
			synctest.Wait()
			switch got := asked.Load(); {
			case window == 0 && (got < 1 || got > mostHeld/streamCost):
				t.Errorf("%d requests are under way whose answers cannot be written, want at most %d", got, mostHeld/streamCost)
			case window > 0 && got != all:
				t.Errorf("%d requests were answered, want %d", got, all)
			}
			writes.Wait() // those that waited are served in their turn
			time.Sleep(3 * headerTime)
			u.Close()
			reads.Wait()
			s.Close()
			if window == 0 {
				t.Logf("served in %v", time.Since(begun))
			}
			if got := asked.Load(); got != all {
				t.Errorf("%d requests were served in the end, want %d", got, all)
			}
			if want := map[uint32]http2.FrameType{0: http2.FrameRSTStream, 1 << 16: http2.FrameData}[window]; ends[want] != all {
				t.Errorf("window %d: requests ended by %v", window, ends)
			}
		})
	}
}

// TestTakenBack: a client that takes back many requests before a service has let it in is served no further.
func TestTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := Server{Find: func(bool, string, string) *Site { return nil }}
		s.Start()
		u := newRawHTTP2(&s)
		go io.Copy(io.Discard, u.Conn)
		u.begin()
		var err error
		n := 0
		for ; n < 1000 && err == nil; n++ {
			id := uint32(2*n + 1)
			u.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: u.pack("POST", "none"), EndHeaders: true})
			err = u.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err == nil {
			t.Errorf("%d requests were taken back", n)
		}
		u.Close()
		s.Close()
	})
}

// TestFirstFlight: what a client sends before it is let in reaches the service whole: a hundred requests at once, and a large body.
func TestFirstFlight(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, n)
	}), grammar.ProxyOptions{})
	p := newPacker()
	const all, size = 100, 60_000 // less than the window of a stream and of the connection
	flight := append([]byte(http2.ClientPreface), written(func(fr *http2.Framer) {
		fr.WriteSettings()
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.pack("POST", "a"), EndHeaders: true})
		for sent := 0; sent < size; sent += 10_000 {
			fr.WriteData(1, sent+10_000 == size, make([]byte, 10_000))
		}
		for i := 1; i < all; i++ {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: p.pack("GET", "a"), EndHeaders: true, EndStream: true})
		}
	})...)
	for _, secure := range []bool{false, true} {
		w.s.Find = func(got bool, _, _ string) *Site {
			if got != secure {
				t.Errorf("with TLS: %v, want %v", got, secure)
			}
			return w.sites["a"]
		}
		u, far := w.pair()
		to := w.speak(u, w.s.NewClient(far, nil, nil), secure, "h2")
		go to.Write(flight)
		fr := http2.NewFramer(to, u.r)
		bodies := make(map[string]int)
		for n := 0; n < all; {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatalf("TLS %v: %v, behind %d answers", secure, err, n)
			}
			if d, ok := f.(*http2.DataFrame); ok {
				if len(d.Data()) > 0 {
					bodies[string(d.Data())]++
				}
				if d.StreamEnded() {
					n++
				}
			}
		}
		if bodies["60000"] != 1 || bodies["0"] != all-1 {
			t.Errorf("TLS %v: answers %v", secure, bodies)
		}
		u.Close()
	}
}

// TestMayCarryHTTP2: the suites that HTTP/2 prohibits (RFC 9113, appendix A) are left to net/http, which refuses them.
func TestMayCarryHTTP2(t *testing.T) {
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		for _, version := range suite.SupportedVersions {
			want := version == tls.VersionTLS13 || strings.Contains(suite.Name, "ECDHE") && (strings.Contains(suite.Name, "GCM") || strings.Contains(suite.Name, "CHACHA20"))
			if got := mayCarryHTTP2(tls.ConnectionState{Version: version, CipherSuite: suite.ID}); got != want {
				t.Errorf("%s of version %x: %v, want %v", suite.Name, version, got, want)
			}
		}
	}
}

// TestOneInsideTwo: a client that agreed on HTTP/2 by TLS and then speaks HTTP/1.1 is not served (RFC 9113, section 3.4).
func TestOneInsideTwo(t *testing.T) {
	w := newWorld(t)
	w.s.Find = func(bool, string, string) *Site { t.Error("a request is looked at"); return nil }
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/1.1\r\nHost: a\r\n\r\n", lines(10_000, "")} {
		u, far := w.pair()
		to := w.speak(u, w.s.NewClient(far, nil, nil), true, "h2")
		go io.WriteString(to, request) // the server may not read all of it
		if got, _ := io.ReadAll(u.r); bytes.Contains(got, []byte("HTTP/1")) {
			t.Errorf("%.20q: %q", request, got)
		}
		u.Close()
	}
}
