package web

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
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
	"reverser/internal/share"
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

// TestHeadCost: what is counted of a head is what net/http keeps of it, however it is packed and cut.
func TestHeadCost(t *testing.T) {
	long, many := strings.Repeat("y", 3000), strings.Repeat("aaa,", 5000)
	for _, piece := range []int{1, 100, 1 << 20} {
		p := newPacker() // all are of one connection: what is in the table is packed in a byte
		var h heads
		for _, c := range []struct {
			name   string
			fields []string
			more   int // than each field by itself
		}{
			{"small", nil, 0},
			{"the same again", nil, 0},
			{"a field that is in the table then", []string{"x", long}, 0},
			{"fields of the table", slices.Repeat([]string{"x", long}, 10), 0},
			{"cookies, which are joined", []string{"cookie", "a=b", "cookie", "c=d"}, 6},
			{"trailers, of which a table is made", []string{"trailer", many}, 5000 * trailerCost},
		} {
			want := c.more
			for f := range slices.Chunk(append([]string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"}, c.fields...), 2) {
				want += fieldCost + len(f[0]) + len(f[1])
			}
			for b := range slices.Chunk(p.pack("GET", "a", c.fields...), piece) {
				if !h.unpack(b) {
					t.Fatalf("%s, pieces of %d: it cannot be unpacked", c.name, piece)
				}
			}
			if h.cost != want {
				t.Errorf("%s, pieces of %d: %d, want %d", c.name, piece, h.cost, want)
			}
			if !h.end() {
				t.Fatalf("%s, pieces of %d: it does not end", c.name, piece)
			}
		}
		// net/http drops what is beyond its limit, and so nothing of it is counted.
		for b := range slices.Chunk(p.pack("GET", "a", slices.Repeat([]string{"x", long}, 1000)...), piece) {
			h.unpack(b)
		}
		if h.cost > 2*mostUnpacked {
			t.Errorf("3 MB in 1 KB, pieces of %d: %d are counted, want at most %d", piece, h.cost, 2*mostUnpacked)
		}
		if h.end(); !h.unpack(p.pack("GET", "a")) || !h.end() {
			t.Error("the next one cannot be unpacked")
		}
	}
	for name, block := range map[string][]byte{"no entry of the table": {0xff, 0xff, 0x7f}, "a string that is too long": {0x00, 1, 'x', 0x7f, 0xff, 0xff, 0x7f}} {
		if h := (heads{}); h.unpack(block) {
			t.Errorf("%s is unpacked", name)
		}
	}
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
	fields := 4*fieldCost + len(":methodPOST:schemehttp:authoritya:path/")
	one := streamCost + fields
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
		{"a trailer", func(fr *http2.Framer) { request(1, false)(fr); request(1, true)(fr) }, one + fields, func(fr *http2.Framer) { fr.WriteData(1, true, nil) }, 0},
		{"a head with padding and a priority", func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndHeaders: true, PadLength: 200, Priority: http2.PriorityParam{Weight: 3}})
		}, one, func(fr *http2.Framer) { fr.WriteData(1, true, nil) }, 0},
		{"a head in pieces", func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head[:3], PadLength: 9})
			fr.WriteContinuation(1, false, head[3:5])
			fr.WriteContinuation(1, true, head[5:])
		}, one, func(fr *http2.Framer) { fr.WriteData(1, true, nil) }, 0},
		{"half a head", func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head[:2], EndStream: true})
		}, streamCost + 2*byteCost + 2*fieldCost + len(":methodPOST:schemehttp"), func(*http2.Framer) {}, streamCost + 2*byteCost + 2*fieldCost + len(":methodPOST:schemehttp")},
		{"a frame that nobody knows", func(fr *http2.Framer) { fr.WriteRawFrame(0x2a, 0, 0, make([]byte, 1000)) }, 0, func(*http2.Framer) {}, 0},
	} {
		for _, piece := range []int{1, 2, 7, 1 << 20} {
			var s streams
			b := append([]byte(prefaceOfHTTP2), written(c.in)...)
			for len(b) > 0 {
				k := min(piece, len(b))
				n, err := s.read(b[:k])
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

// TestClosedWindows: a client that lets no answer be written has few requests under way, each ends in time, and so does the connection when many
// did. A hundred requests of one whose answers can be written are answered.
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
			switch got := int(asked.Load()); {
			case window == 0 && (got <= mostResets || got > mostResets+2*mostHeld/streamCost || ends[http2.FrameRSTStream] < mostResets || ends[http2.FrameData] > 0):
				t.Errorf("%d requests were served, and ended by %v; want an end of the connection behind %d resets", got, ends, mostResets)
			case window > 0 && (got != all || ends[http2.FrameData] != all):
				t.Errorf("%d requests were served, and ended by %v; want all %d answered", got, ends, all)
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

// TestFloodsOfFrames: a client that sends frames without end, and asks for nothing, is served no further, whatever they are. So is one that has
// this process take its requests back.
func TestFloodsOfFrames(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(u *rawHTTP2, i uint32) error
	}{
		{"frames that nobody knows", func(u *rawHTTP2, _ uint32) error { return u.WriteRawFrame(0x2a, 0, 0, nil) }},
		{"priorities", func(u *rawHTTP2, _ uint32) error { return u.WritePriority(1, http2.PriorityParam{}) }},
		{"answers to settings", func(u *rawHTTP2, _ uint32) error { return u.WriteSettingsAck() }},
		{"pings", func(u *rawHTTP2, _ uint32) error { return u.WritePing(false, [8]byte{}) }},
		{"a body of no request", func(u *rawHTTP2, _ uint32) error { return u.WriteData(1, false, []byte{0}) }},
		{"pieces of a head, without bytes", func(u *rawHTTP2, i uint32) error {
			if i == 0 {
				return u.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: []byte{0x82}})
			}
			return u.WriteContinuation(3, false, nil)
		}},
		{"requests that this process has to reset", func(u *rawHTTP2, i uint32) error {
			if i%2 == 0 {
				return u.WriteHeaders(http2.HeadersFrameParam{StreamID: 3 + i, BlockFragment: u.pack("POST", "none"), EndHeaders: true})
			}
			return u.WriteRawFrame(http2.FrameWindowUpdate, 0, 2+i, make([]byte, 4))
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := Server{Find: func(bool, string, string) *Site { return nil }, Failed: func(Failure) { time.Sleep(time.Millisecond) }}
			s.Start()
			u := newRawHTTP2(&s)
			go io.Copy(io.Discard, u.Conn)
			u.begin()
			u.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: u.pack("GET", "none"), EndHeaders: true, EndStream: true})
			var err error
			n := uint32(0)
			for ; n < 5*mostFrames && err == nil; n++ {
				err = c.send(u, n)
			}
			if err == nil {
				t.Errorf("%s: %d were taken", c.name, n)
			}
			u.Close()
			time.Sleep(time.Second) // pages that nobody takes end
			s.Close()
		})
	}
}

// TestFramesInside: a client that was let in may send what it needs for as long as it likes, and what is of no use not.
func TestFramesInside(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(fr *http2.Framer)
		ends bool
	}{
		{"window updates", func(fr *http2.Framer) { fr.WriteWindowUpdate(0, 1) }, false},
		{"pings", func(fr *http2.Framer) { fr.WritePing(false, [8]byte{}) }, false},
		{"a body in bytes", func(fr *http2.Framer) { fr.WriteData(1, false, []byte{0}) }, false},
		{"the ends of bodies", func(fr *http2.Framer) { fr.WriteData(1, true, nil) }, false},
		{"a body of nothing", func(fr *http2.Framer) { fr.WriteData(1, false, nil) }, true},
		{"priorities", func(fr *http2.Framer) { fr.WritePriority(1, http2.PriorityParam{}) }, true},
		{"frames that nobody knows", func(fr *http2.Framer) { fr.WriteRawFrame(0x2a, 0, 0, []byte{0}) }, true},
		{"answers to settings", func(fr *http2.Framer) { fr.WriteSettingsAck() }, true},
	} {
		var s streams
		s.read([]byte(prefaceOfHTTP2))
		s.enter(&share.Pool{}, func() {})
		var err error
		n := 0
		for b := written(c.send); n < 5*mostFrames && err == nil; n++ {
			for rest := b; len(rest) > 0 && err == nil; {
				var k int
				k, err = s.read(rest)
				rest = rest[k:]
			}
			s.wrote(written(func(fr *http2.Framer) { fr.WritePing(true, [8]byte{}) }))
		}
		if ends := err == errFrames; ends != c.ends || !ends && err != nil {
			t.Errorf("%s: %v, behind %d", c.name, err, n)
		}
	}
}

// TestLongFrames: no frame is taken that is longer than a server has to take.
func TestLongFrames(t *testing.T) {
	for _, c := range []struct {
		size int
		want http2.FrameType
	}{{maxFrame, http2.FramePing}, {maxFrame + 1, http2.FrameGoAway}} {
		w := newWorld(t)
		u := w.user()
		io.WriteString(u, http2.ClientPreface)
		fr := http2.NewFramer(u, u.r)
		fr.WriteSettings()
		fr.WriteRawFrame(0x2a, 0, 0, make([]byte, c.size))
		fr.WritePing(false, [8]byte{})
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if k := f.Header().Type; k == http2.FramePing || k == http2.FrameGoAway {
				if k != c.want {
					t.Errorf("behind a frame of %d bytes: %v, want %v", c.size, k, c.want)
				}
				break
			}
		}
		u.Close()
	}
}

// TestHeadsInside: what the heads of a client hold is bounded when a service has let it in, too: beyond its own it comes from a pool, of which
// an address has half of what others leave. Small heads are as many as ever.
func TestHeadsInside(t *testing.T) {
	w := newWorld(t)
	for _, fields := range []int{10, 1000} {
		var under atomic.Int64
		answer := make(chan struct{})
		w.site("a", w.target(func(_ http.ResponseWriter, r *http.Request) {
			under.Add(1)
			select {
			case <-answer:
			case <-r.Context().Done():
			}
		}), grammar.ProxyOptions{})
		u := w.user()
		io.WriteString(u, http2.ClientPreface)
		fr, p := http2.NewFramer(u, u.r), newPacker()
		fr.WriteSettings()
		go io.Copy(io.Discard, u.r)
		w.s.users.Size = 4 * mostHeldInside
		const all = 100
		go func() {
			for i := range all {
				block := p.pack("GET", "a", slices.Repeat([]string{"x", "y"}, fields)...)
				if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: block, EndHeaders: true, EndStream: true}) != nil {
					return
				}
			}
		}()
		if fields == 10 {
			eventually(t, "all are under way", func() bool { return under.Load() == all })
		} else {
			most := int64(3*mostHeldInside/(fields*fieldCost)) + 1
			eventually(t, "it has its share", func() bool { return w.s.users.Taken().Used > mostHeldInside })
			if got := under.Load(); got > most {
				t.Errorf("%d requests of %d fields are under way, want at most %d", got, fields, most)
			}
		}
		close(answer)
		eventually(t, "all are served in their turn", func() bool { return under.Load() == all })
		eventually(t, "all is given back", func() bool { return w.s.users.Taken().Used == 0 })
		u.Close()
	}
}

// TestHeldBack: a client that is held back is refused in time if none of its requests is answered, and read on when one is.
func TestHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := streams{inside: true, pool: &share.Pool{Size: mostHeldInside}}
		p := newPacker()
		s.read([]byte(prefaceOfHTTP2))
		request := func(id uint32) error {
			b := written(func(fr *http2.Framer) {
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.pack("GET", "a", slices.Repeat([]string{"x", "y"}, 600)...), EndHeaders: true, EndStream: true})
			})
			for len(b) > 0 {
				n, err := s.read(b)
				if err != nil {
					return err
				}
				b = b[n:]
			}
			return nil
		}
		begun := time.Now()
		for id := uint32(1); id <= 5; id += 2 {
			if err := request(id); err != nil {
				t.Fatalf("request %d: %v", id, err)
			}
		}
		if took := time.Since(begun); took > 0 {
			t.Errorf("three requests waited for %v", took)
		}
		time.AfterFunc(headerTime/2, func() { s.wrote(written(func(fr *http2.Framer) { fr.WriteData(3, true, nil) })) })
		if err := request(7); err != nil || time.Since(begun) != headerTime/2 {
			t.Errorf("the fourth request: %v, behind %v; want it when another is answered", err, time.Since(begun))
		}
		begun = time.Now()
		if err := request(9); err != errStreams || time.Since(begun) != waitTime {
			t.Errorf("the fifth request: %v, behind %v; want %v behind %v", err, time.Since(begun), errStreams, waitTime)
		}
		if s.end(); s.pool.Taken().Used != 0 {
			t.Errorf("%d bytes of the pool are taken at the end", s.pool.Taken().Used)
		}
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

// TestPoolInside: what a client has of the pool stays counted when it is let in by another service, a body costs it nothing, and who finds
// nothing left is told of.
func TestPoolInside(t *testing.T) {
	pool := &share.Pool{Size: 4 * mostHeldInside}
	var s streams
	p := newPacker()
	short := 0
	tell := func() { short++ }
	send := func(f func(fr *http2.Framer)) (err error) {
		for b := written(f); len(b) > 0 && err == nil; {
			var n int
			n, err = s.read(b)
			b = b[n:]
		}
		return err
	}
	request := func(id uint32, fields int) error {
		return send(func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.pack("POST", "a", slices.Repeat([]string{"x", "y"}, fields)...), EndHeaders: true})
		})
	}
	s.read([]byte(prefaceOfHTTP2))
	s.pool = &share.Pool{}
	s.enter(pool, tell)
	for id := uint32(1); id <= 5; id += 2 {
		if err := request(id, 600); err != nil {
			t.Fatal(err)
		}
	}
	taken := pool.Taken().Used
	if s.enter(pool, tell); taken == 0 || pool.Taken().Used != taken {
		t.Errorf("%d bytes are taken, %d when another service has let the client in", taken, pool.Taken().Used)
	}
	held := s.held
	if err := send(func(fr *http2.Framer) { fr.WriteData(1, false, make([]byte, maxFrame)) }); err != nil || s.held != held {
		t.Errorf("a body: %v, and %d bytes more are held", err, s.held-held)
	}
	for id := uint32(1); id <= 5; id += 2 {
		s.wrote(written(func(fr *http2.Framer) { fr.WriteData(id, true, nil) }))
	}
	if used := pool.Taken().Used; used != 0 || s.held != 0 || short != 0 {
		t.Errorf("%d bytes are taken and %d held when all is answered; it was told %d times that there is no room", used, s.held, short)
	}
	pool.Size = 0
	if err := request(7, 600); err != nil || short != 0 {
		t.Errorf("a head that needs nothing of the pool: %v, told %d times", err, short)
	}
	s.wrote(written(func(fr *http2.Framer) { fr.WriteData(7, true, nil) }))
	if err := request(9, 1500); err != errStreams || short != 1 {
		t.Errorf("a head for which nothing is left: %v, told %d times; want %v, once", err, short, errStreams)
	}
}

// deadlines is a connection that tells its read deadline.
type deadlines struct {
	*net.TCPConn
	now atomic.Int64
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	if d.now.Store(0); !t.IsZero() {
		d.now.Store(t.UnixNano())
	}
	return d.TCPConn.SetReadDeadline(t)
}

// TestNoDeadlineBehindAHead: while a request of HTTP/2 is under way nothing limits how long its client says nothing.
func TestNoDeadlineBehindAHead(t *testing.T) {
	for _, secure := range []bool{false, true} {
		w := newWorld(t)
		under, answer := make(chan struct{}), make(chan struct{})
		site := w.site("a", w.target(func(http.ResponseWriter, *http.Request) {
			close(under)
			<-answer
		}), grammar.ProxyOptions{})
		w.s.Find = func(bool, string, string) *Site { return site }
		u, far := w.pair()
		conn := &deadlines{TCPConn: far}
		to := w.speak(u, w.s.NewClient(conn, nil, nil), secure, "h2")
		p := newPacker()
		io.WriteString(to, http2.ClientPreface)
		fr := http2.NewFramer(to, u.r)
		fr.WriteSettings()
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.pack("GET", "a"), EndHeaders: true, EndStream: true})
		<-under
		eventually(t, "there is no deadline", func() bool { return conn.now.Load() == 0 })
		fr.WriteRawFrame(http2.FrameHeaders, 0, 3, []byte{0x82}) // no end
		eventually(t, "there is one for a head", func() bool { return conn.now.Load() != 0 })
		close(answer)
		u.Close()
	}
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(limit); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
