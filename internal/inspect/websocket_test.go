package inspect

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
)

// appendFrame writes a frame as a client does when it has a key, else as a server does.
func appendFrame(b []byte, first byte, key *[4]byte, payload []byte) []byte {
	b = append(b, first)
	var masked byte
	if key != nil {
		masked = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		b = append(b, masked|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), uint64(n))
	}
	if key == nil {
		return append(b, payload...)
	}
	b = append(b, key[:]...)
	for i, c := range payload {
		b = append(b, c^key[i%4])
	}
	return b
}

// deflater compresses messages, each of which refers to those before it.
type deflater struct {
	b bytes.Buffer
	w *flate.Writer
}

func (d *deflater) message(s string) []byte {
	if d.w == nil {
		d.w, _ = flate.NewWriter(&d.b, flate.BestCompression)
	}
	d.b.Reset()
	io.WriteString(d.w, s)
	d.w.Flush()
	return bytes.Clone(bytes.TrimSuffix(d.b.Bytes(), ending))
}

// socket makes a WebSocket through the world: the target sends what it is told, and the client too.
func (w *world) socket(extensions string) (client net.Conn, r *bufio.Reader) {
	w.Helper()
	client, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { client.Close() })
	fmt.Fprintf(client, "GET /socket HTTP/1.1\r\nHost: app.example.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Extensions: %s\r\n\r\n", extensions)
	r = bufio.NewReader(client)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		w.Fatalf("the answer is %v, %v", resp, err)
	}
	return client, r
}

// socketTarget answers an upgrade, sends bytes, and reads until the client's end.
func socketTarget(t *testing.T, send []byte) http.HandlerFunc {
	return func(rw http.ResponseWriter, req *http.Request) {
		conn, brw, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(brw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Extensions: %s\r\n\r\n",
			req.Header.Get("Sec-WebSocket-Extensions"))
		brw.Write(send)
		brw.Flush()
		io.Copy(io.Discard, brw)
	}
}

func describe(list []Frame) string {
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, "%s %s %d", f.From, f.Type, f.Bytes)
		if !f.Final {
			b.WriteString(" more")
		}
		if f.Compressed {
			b.WriteString(" compressed")
		}
		if f.Cut {
			b.WriteString(" cut")
		}
		fmt.Fprintf(&b, " %.20q\n", f.Body)
	}
	return b.String()
}

// TestSocket: the frames of both directions are kept, fragments and control frames among them.
func TestSocket(t *testing.T) {
	key := &[4]byte{1, 2, 3, 0xff}
	var send []byte
	send = appendFrame(send, 0x81, nil, []byte("hello é"))
	send = appendFrame(send, 0x89, nil, []byte("ping"))
	send = appendFrame(send, 0x02, nil, []byte{0xff, 0xfe})
	send = appendFrame(send, 0x80, nil, bytes.Repeat([]byte("x"), 70_000))
	w := newWorld(t, socketTarget(t, send))
	client, r := w.socket("")
	if got := make([]byte, len(send)); true {
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, send) {
			t.Fatalf("the client got other bytes than the target sent: %v", err)
		}
	}
	var say []byte
	say = appendFrame(say, 0x8a, key, []byte("ping"))
	say = appendFrame(say, 0x81, key, []byte(strings.Repeat("abc", 100)))
	say = appendFrame(say, 0x88, key, []byte("\x03\xe8bye"))
	say = append(say, 0x81, 0xff, 0, 0) // the head of a frame that never comes
	client.Write(say)
	client.(*net.TCPConn).CloseWrite()
	x := w.await(0)
	want := `target text 8 "hello é"
target ping 4 "ping"
target binary 2 more "//4="
target continuation 70000 "xxxxxxxxxxxxxxxxxxxx"
client pong 4 "ping"
client text 300 "abcabcabcabcabcabcab"
client close 5 "\x03\xe8bye"
`
	want = strings.Replace(want, `"\x03\xe8bye"`, fmt.Sprintf("%q", base64.StdEncoding.EncodeToString([]byte("\x03\xe8bye"))), 1)
	if got := describe(x.LastFrames); got != want {
		t.Errorf("the frames are\n%swant\n%s", got, want)
	}
	if x.Status != 101 || x.Upgrade != "websocket" || x.Frames != 7 || x.Sent != int64(len(say)) || x.Received != int64(len(send)) {
		t.Errorf("the exchange is %+v", x.Summary)
	}
	if _, err := w.rec.Replay(t.Context(), x.ID); err == nil || !strings.Contains(err.Error(), "WebSocket") {
		t.Errorf("it was sent again: %v", err)
	}
}

// TestCompressedSocket: compressed messages are readable, whether they refer to earlier ones or not.
func TestCompressedSocket(t *testing.T) {
	for _, extension := range []string{"permessage-deflate", "permessage-deflate; client_no_context_takeover; server_no_context_takeover"} {
		reset := strings.Contains(extension, "takeover")
		var d deflater
		text := func(s string) []byte {
			if reset {
				d = deflater{}
			}
			return d.message(s)
		}
		var send []byte
		send = appendFrame(send, 0xc1, nil, text(`{"kind":"greeting","text":"hello"}`))
		send = appendFrame(send, 0xc1, nil, text(`{"kind":"greeting","text":"again"}`))
		whole := text(`{"kind":"greeting","text":"in pieces"}`)
		send = appendFrame(send, 0x41, nil, whole[:3])
		send = appendFrame(send, 0x89, nil, []byte("p"))
		send = appendFrame(send, 0x80, nil, whole[3:])
		send = appendFrame(send, 0x81, nil, []byte("not compressed"))
		send = appendFrame(send, 0xc1, nil, text(`{"kind":"greeting","text":"last"}`))
		w := newWorld(t, socketTarget(t, send))
		client, r := w.socket(extension)
		if _, err := io.ReadFull(r, make([]byte, len(send))); err != nil {
			t.Fatal(err)
		}
		client.Close()
		x := w.await(0)
		var texts []string
		for _, f := range x.LastFrames {
			if f.Final && f.Type != "ping" {
				texts = append(texts, f.Body)
			}
		}
		want := `{"kind":"greeting","text":"hello"} {"kind":"greeting","text":"again"} {"kind":"greeting","text":"in pieces"} not compressed {"kind":"greeting","text":"last"}`
		if got := strings.Join(texts, " "); got != want || len(x.LastFrames) != 7 || !x.LastFrames[2].Compressed {
			t.Errorf("%s: the messages are\n%s\nof\n%s", extension, got, describe(x.LastFrames))
		}
	}
}

// feeding returns what feeds one direction of an exchange that a recorder keeps.
func feeding(s *Store, deflate, reset bool) (x *exchange, r *Recorder) {
	r = s.Record("http/s", nil)
	req, _ := http.NewRequest("GET", "http://s/", nil)
	x = r.begin(req)
	x.read(fromClient, deflate, reset)
	x.read(fromTarget, deflate, reset)
	return x, r
}

// TestPieces: frames are the same however their bytes arrive.
func TestPieces(t *testing.T) {
	key := &[4]byte{9, 8, 7, 6}
	var d deflater
	var all []byte
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 100 {
		payload := bytes.Repeat([]byte{byte('a' + i%26)}, rnd.IntN(300))
		if i%3 == 0 {
			all = appendFrame(all, 0xc1, key, d.message(string(payload)))
			continue
		}
		all = appendFrame(all, 0x82, key, payload)
	}
	frames := func(next func() int) string {
		s := New(0)
		defer s.Close()
		x, r := feeding(s, true, false)
		for rest := all; len(rest) > 0; {
			n := min(next(), len(rest))
			x.socket[fromClient].Load().feed(rest[:n])
			rest = rest[n:]
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		var list []Frame
		for _, f := range x.frames.list {
			list = append(list, *f.view())
		}
		return describe(list)
	}
	want := frames(func() int { return len(all) })
	if n := strings.Count(want, "\n"); n != 100 || strings.Contains(want, "compressed") {
		t.Fatalf("%d frames:\n%s", n, want)
	}
	if got := frames(func() int { return 1 }); got != want {
		t.Errorf("byte by byte:\n%s\nwant\n%s", got, want)
	}
	for range 20 {
		if got := frames(func() int { return 1 + rnd.IntN(40) }); got != want {
			t.Errorf("in pieces:\n%s\nwant\n%s", got, want)
		}
	}
}

// TestBomb: a message that becomes very much is not followed to its end, and what refers to it stays as it is.
func TestBomb(t *testing.T) {
	s := New(0)
	defer s.Close()
	x, r := feeding(s, true, false)
	var d deflater
	bomb := d.message(strings.Repeat("\x00", 8<<20))
	if len(bomb) > deflatedMost {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	c := x.socket[fromTarget].Load()
	c.feed(appendFrame(nil, 0xc2, nil, bomb))
	c.feed(appendFrame(nil, 0xc1, nil, d.message("behind it")))
	r.mu.Lock()
	defer r.mu.Unlock()
	list := x.frames.list
	if len(list) != 2 || len(list[0].text) != frameKept || list[1].text != nil || !list[1].compressed {
		t.Errorf("%d frames, of which the first one became %d bytes", len(list), len(list[0].text))
	}
}

// TestManyFrames: the last frames are kept, and memory is bounded.
func TestManyFrames(t *testing.T) {
	s := New(0)
	defer s.Close()
	x, r := feeding(s, false, false)
	c := x.socket[fromTarget].Load()
	for i := range 1000 {
		c.feed(appendFrame(nil, 0x81, nil, fmt.Append(nil, i)))
	}
	r.mu.Lock()
	if n := len(x.frames.list); n != framesKept || string(x.frames.list[n-1].payload) != "999" || x.frames.count != 1000 {
		t.Errorf("%d of %d frames are kept, the last one is %s", n, x.frames.count, x.frames.list[n-1].payload)
	}
	r.mu.Unlock()
	for range 100 {
		c.feed(appendFrame(nil, 0x82, nil, make([]byte, 100_000)))
	}
	r.mu.Lock()
	if n := len(x.frames.list); n != payloadKept/frameKept || x.frames.kept > payloadKept {
		t.Errorf("%d frames are kept, with %d bytes", n, x.frames.kept)
	}
	r.mu.Unlock()
	if used := r.used.Load(); used > 100<<10 {
		t.Errorf("%d bytes are taken", used)
	}
}

// FuzzFrames reads garbage in both directions, with little memory, and looks at the accounts.
func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(nil, 0x81, &[4]byte{1, 2, 3, 4}, []byte("hello")), byte(3))
	f.Add(appendFrame(appendFrame(nil, 0xc1, nil, (&deflater{}).message("hello hello")), 0x88, nil, []byte("\x03\xe8")), byte(5))
	f.Add([]byte{0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5}, byte(1))
	f.Fuzz(func(t *testing.T, b []byte, piece byte) {
		s := New(48 << 10)
		x, r := feeding(s, true, piece%2 == 0)
		for rest, i := b, 0; len(rest) > 0; i++ {
			n := min(int(piece)+1, len(rest))
			if d := x.socket[i%2].Load(); d != nil {
				d.feed(rest[:n])
			}
			rest = rest[n:]
		}
		for i := range x.socket {
			if d := x.socket[i].Swap(nil); d != nil {
				d.end()
			}
		}
		r.mu.Lock()
		want := int64(0)
		if !x.dropped {
			want = exchangeCost + x.request.size() + int64(len(x.client)+len(x.method)+len(x.host)+len(x.uri))
			for _, f := range x.frames.list {
				want += int64(frameCost + cap(f.payload) + len(f.text))
			}
		}
		charged := x.charged
		r.mu.Unlock()
		if charged != want || s.used.Load() != want {
			t.Errorf("%d bytes are charged and %d taken, want %d", charged, s.used.Load(), want)
		}
		s.Close()
		if used := s.used.Load(); used != 0 {
			t.Errorf("%d bytes are taken in the end", used)
		}
	})
}
