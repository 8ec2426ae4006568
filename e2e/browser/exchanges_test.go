package browser

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// blankPage serves a page without anything, which is where scripts of tests run.
func blankPage(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, blank) })
}

// TestWebSockets: a page talks to a server over WebSocket, with texts and bytes up to 16 MiB, while the server pings, and through cuts of
// the link. Each end sees the code and the reason with which the other one closes.
func TestWebSockets(t *testing.T) {
	t.Parallel()
	const most = 16 << 20
	type end struct {
		Code   websocket.StatusCode
		Reason string
		Pings  int
	}
	type closure struct {
		Code   int
		Reason string
		Clean  bool
	}
	ends := make(chan end, 1)
	mux := http.NewServeMux()
	blankPage(mux)
	mux.HandleFunc("GET /socket", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"echo"}, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(most)
		ctx, cancel := context.WithTimeout(r.Context(), lifetime)
		defer cancel()
		e := end{}
		var wg sync.WaitGroup
		defer wg.Wait()
		for {
			kind, message, err := c.Read(ctx)
			if err != nil {
				var closed websocket.CloseError
				if !errors.As(err, &closed) {
					t.Errorf("the server reads: %v", err)
				}
				e.Code, e.Reason = closed.Code, closed.Reason
				wg.Wait()
				ends <- e
				return
			}
			switch string(message) {
			case "ping": // and its pong, while messages go on
				e.Pings++
				wg.Go(func() {
					if err := c.Ping(ctx); err != nil {
						t.Errorf("ping: %v", err)
					}
				})
				continue
			case "close":
				c.Close(4007, "closing time, 打烊")
				return
			}
			if err := c.Write(ctx, kind, message); err != nil {
				t.Errorf("the server writes: %v", err)
				return
			}
		}
	})
	s := startSite(t, mux)
	b := s.browse(t)
	for scheme, origin := range s.origins() {
		t.Run(scheme, func(t *testing.T) {
			p := b.Open(t, origin+"/")
			p.Script(`
				window.open_ = () => new Promise((done, no) => {
					const s = new WebSocket(location.origin.replace("http", "ws") + "/socket", ["other", "echo"]);
					s.binaryType = "arraybuffer";
					s.waiting = [];
					s.onmessage = m => s.waiting.shift()(m.data);
					s.next = () => new Promise(f => s.waiting.push(f));
					s.closed = new Promise(f => s.onclose = e => f({Code: e.code, Reason: e.reason, Clean: e.wasClean}));
					s.onerror = no;
					s.onopen = () => done(s);
				});
				window.same = (a, b) => {
					if (typeof a == "string" || typeof b == "string") return a === b;
					a = new Uint32Array(a), b = new Uint32Array(b);
					return a.length == b.length && a.every((x, i) => x === b[i]);
				};
				window.sock = await open_();`)
			if protocol := Eval[string](p, `return sock.protocol`); protocol != "echo" {
				t.Errorf("the protocol is %q", protocol)
			}
			for _, size := range []int{0, 4, 124, 128, 65532, 65536, 1 << 20, most} {
				wrong := Eval[[]string](p, fmt.Sprintf(`
					const wrong = [];
					const size = %d;
					const bytes = new Uint32Array(size / 4);
					for (let i = 0, x = size + 1; i < bytes.length; i++) bytes[i] = x = Math.imul(x, 1664525) + 1013904223;
					const text = "字 ".repeat(size / 4); // of four bytes
					sock.send("ping");
					for (const message of [bytes.buffer, text]) {
						const answer = sock.next();
						sock.send(message);
						if (!same(await answer, message)) wrong.push(size + " bytes of " + typeof message);
					}
					return wrong`, size))
				for _, w := range wrong {
					t.Errorf("the echo is wrong: %s", w)
				}
			}
			// A message for each cut of the link, and one that is on its way.
			for i := range 4 {
				p.Script(fmt.Sprintf(`window.answer = sock.next(); sock.send("before cut %d")`, i))
				s.cut(t)
				if answer, want := Eval[string](p, `return await answer`), fmt.Sprintf("before cut %d", i); answer != want {
					t.Fatalf("behind a cut %q arrives; want %q", answer, want)
				}
			}
			closed := Eval[closure](p, `sock.close(4001, "bye, 再见"); return await sock.closed`)
			if closed.Code != 4001 || !closed.Clean {
				t.Errorf("closed by the page: it sees %+v", closed)
			}
			if e := <-ends; e.Code != 4001 || e.Reason != "bye, 再见" || e.Pings != 8 {
				t.Errorf("closed by the page: the server sees %+v; want its code and reason, behind 8 pings", e)
			}
			closed = Eval[closure](p, `const s = await open_(); s.send("close"); return await s.closed`)
			if closed.Code != 4007 || closed.Reason != "closing time, 打烊" || !closed.Clean {
				t.Errorf("closed by the server: the page sees %+v", closed)
			}
			p.Quiet()
		})
	}
}

// cut resets the link once it carries something.
func (s *site) cut(t *testing.T) {
	t.Helper()
	await(t, "the link is up, and cut", func() bool { return s.link.Cut() > 0 })
}

// TestServerSentEvents: a page gets each event once and in order, from one request, through cuts of the link.
func TestServerSentEvents(t *testing.T) {
	t.Parallel()
	const cuts = 4
	next, gone := make(chan int), make(chan struct{}, 2)
	var mu sync.Mutex
	asked := make(map[string]int) // guarded by mu
	mux := http.NewServeMux()
	blankPage(mux)
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		defer func() { gone <- struct{}{} }()
		mu.Lock()
		asked[r.Host]++
		mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		for w.(http.Flusher).Flush(); ; w.(http.Flusher).Flush() {
			select {
			case i := <-next:
				fmt.Fprintf(w, "id: %d\nevent: news\ndata: number %d\ndata: 第二行\n\n", i, i)
			case <-r.Context().Done():
				return
			}
		}
	})
	type news struct {
		Events []string
		Errors int
	}
	s := startSite(t, mux)
	b := s.browse(t)
	for scheme, origin := range s.origins() {
		t.Run(scheme, func(t *testing.T) {
			p := b.Open(t, origin+"/")
			p.Script(`window.got = []; window.errors = 0;
				window.source = new EventSource("/events");
				source.addEventListener("news", e => got.push(e.lastEventId + ":" + e.data));
				source.onerror = () => errors++;
				await new Promise(f => source.onopen = f)`)
			var want []string
			for i := range cuts {
				s.cut(t)
				for j := range 3 {
					next <- 3*i + j
					want = append(want, fmt.Sprintf("%d:number %[1]d\n第二行", 3*i+j))
				}
				p.Await(fmt.Sprintf("got.length >= %d", len(want)))
			}
			got := Eval[news](p, `source.close(); return {Events: got, Errors: errors}`)
			if fmt.Sprint(got.Events) != fmt.Sprint(want) || got.Errors != 0 {
				t.Errorf("the page got %q and %d errors; want %d events, each once", got.Events, got.Errors, len(want))
			}
			select {
			case <-gone:
			case <-time.After(patience):
				t.Error("the server does not learn that the page has gone")
			}
			p.Quiet()
		})
	}
	mu.Lock()
	defer mu.Unlock()
	for host, n := range asked {
		if n != 1 {
			t.Errorf("%s was asked %d times for events; want once", host, n)
		}
	}
}

// TestMedia: a video element plays what a server sends by parts, and jumps about in it: each jump is a request for a range, which is
// answered with just that.
func TestMedia(t *testing.T) {
	t.Parallel()
	sound := wav(300) // 57 MB, more than a browser fetches without need
	type part struct {
		Range  string
		Status int
		Sent   string
	}
	var mu sync.Mutex
	var parts []part // guarded by mu
	mux := http.NewServeMux()
	blankPage(mux)
	mux.HandleFunc("GET /long.wav", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "audio/wav")
		seen := &statusWriter{ResponseWriter: w}
		// What is asked for is noted before the answer, which the page may leave half read.
		seen.head = func(code int) {
			mu.Lock()
			defer mu.Unlock()
			parts = append(parts, part{r.Header.Get("Range"), code, w.Header().Get("Content-Range")})
		}
		http.ServeContent(seen, r, "", time.Time{}, bytes.NewReader(sound))
	})
	s := startSite(t, mux)
	b := s.browse(t)
	for scheme, origin := range s.origins() {
		t.Run(scheme, func(t *testing.T) {
			mu.Lock()
			parts = nil
			mu.Unlock()
			p := b.Open(t, origin+"/")
			duration := Eval[float64](p, `window.video = document.createElement("video");
				video.controls = true;
				document.body.append(video);
				const ready = new Promise((f, no) => { video.oncanplay = f; video.onerror = () => no(video.error.message); });
				video.src = "/long.wav";
				await ready;
				return video.duration`)
			if duration != 300 {
				t.Errorf("the length is %v s; want 300", duration)
			}
			for _, to := range []int{290, 120, 200} {
				at := Eval[struct{ From, To float64 }](p, fmt.Sprintf(`const done = new Promise((f, no) => { video.onseeked = f; video.onerror = () => no(video.error.message); });
					video.currentTime = %d;
					await done;
					await video.play();
					const from = video.currentTime;
					const went = new Promise(f => video.ontimeupdate = () => video.currentTime > from && f());
					await went;
					video.pause();
					return {From: from, To: video.currentTime}`, to))
				if at.From < float64(to)-0.5 || at.To <= at.From {
					t.Errorf("behind a jump to %d s it plays from %v to %v", to, at.From, at.To)
				}
			}
			p.Picture("media-" + scheme)
			mu.Lock()
			defer mu.Unlock()
			deep := 0
			for _, part := range parts {
				var from, first, last, all int64
				if n, _ := fmt.Sscanf(part.Range, "bytes=%d-", &from); n != 1 || part.Status != http.StatusPartialContent {
					t.Errorf("a request for %q was answered with %d", part.Range, part.Status)
				}
				if n, _ := fmt.Sscanf(part.Sent, "bytes %d-%d/%d", &first, &last, &all); n != 3 || first != from || last != int64(len(sound))-1 || all != int64(len(sound)) {
					t.Errorf("a request for %q got %q", part.Range, part.Sent)
				}
				if from > int64(len(sound))/4 {
					deep++
				}
			}
			if deep < 2 {
				t.Errorf("the requests were %+v; want those of jumps among them", parts)
			}
			p.Quiet()
		})
	}
}

// statusWriter tells of the head of an answer.
type statusWriter struct {
	http.ResponseWriter
	head func(code int)
}

func (w *statusWriter) WriteHeader(code int) {
	w.head(code)
	w.ResponseWriter.WriteHeader(code)
}

// wav is so many seconds of a tone: 48,000 times a second, 16 bits, two channels.
func wav(seconds int) []byte {
	const rate, width = 48000, 4
	n := seconds * rate * width
	b := make([]byte, 44, 44+n)
	copy(b, "RIFF")
	binary.LittleEndian.PutUint32(b[4:], uint32(36+n))
	copy(b[8:], "WAVEfmt ")
	binary.LittleEndian.PutUint32(b[16:], 16)
	binary.LittleEndian.PutUint16(b[20:], 1)
	binary.LittleEndian.PutUint16(b[22:], 2)
	binary.LittleEndian.PutUint32(b[24:], rate)
	binary.LittleEndian.PutUint32(b[28:], rate*width)
	binary.LittleEndian.PutUint16(b[32:], width)
	binary.LittleEndian.PutUint16(b[34:], 16)
	copy(b[36:], "data")
	binary.LittleEndian.PutUint32(b[40:], uint32(n))
	for i := range seconds * rate {
		v := uint16(int16((i%100 - 50) * 200))
		b = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, v), v)
	}
	return b
}

// TestUploads: a page sends a body of 8 MiB, whole and by fetch as a stream that it is still writing, which takes HTTP/2; what the
// server says of it in the meantime arrives behind it, as fetch has it.
func TestUploads(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	mux := http.NewServeMux()
	blankPage(mux)
	type answer struct {
		N      int64  `json:"n"`
		Sum    string `json:"sum"`
		Length int64  `json:"length"`
		Err    string `json:"err"`
	}
	first := make(chan string, 1)
	mux.HandleFunc("POST /upload", func(w http.ResponseWriter, r *http.Request) {
		sum, head := sha256.New(), make([]byte, 5)
		_, err := io.ReadFull(r.Body, head)
		if r.URL.RawQuery == "stream" {
			first <- string(head)
		}
		sum.Write(head)
		n, copyErr := io.Copy(sum, r.Body)
		json.NewEncoder(w).Encode(answer{n + 5, fmt.Sprintf("%x", sum.Sum(nil)), r.ContentLength, fmt.Sprint(err, copyErr)})
	})
	s := startSite(t, mux)
	b := s.browse(t)
	pattern := make([]byte, size)
	copy(pattern, "first")
	for i := 5; i < size; i++ {
		pattern[i] = byte(i % 251)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(pattern))
	const fill = `const bytes = new Uint8Array(8 << 20);
		bytes.set(new TextEncoder().encode("first"));
		for (let i = 5; i < bytes.length; i++) bytes[i] = i % 251;`
	check := func(t *testing.T, got answer, length int64) {
		t.Helper()
		if want := (answer{size, sum, length, "<nil> <nil>"}); got != want {
			t.Errorf("the server got %+v; want %+v", got, want)
		}
	}
	for scheme, origin := range s.origins() {
		t.Run(scheme, func(t *testing.T) {
			p := b.Open(t, origin+"/")
			got := Eval[answer](p, fill+`return await (await fetch("/upload", {method: "POST", body: bytes})).json()`)
			check(t, got, size)
			if scheme == "http" {
				return
			}
			p.Script(fill + `
				let more;
				const body = new ReadableStream({start(c) { c.enqueue(bytes.subarray(0, 5)); }, pull(c) { return new Promise(f => more = () => { f(); return c; }); }}, {highWaterMark: 1});
				window.got = fetch("/upload?stream", {method: "POST", body, duplex: "half"}).then(r => r.json());
				window.goOn = async () => {
					const c = more();
					for (let at = 5; at < bytes.length; at += 1 << 20) c.enqueue(bytes.slice(at, Math.min(at + (1 << 20), bytes.length)));
					c.close();
				};`)
			select {
			case head := <-first:
				if head != "first" {
					t.Errorf("the first bytes are %q", head)
				}
			case <-time.After(patience):
				t.Fatal("the first bytes of a stream do not arrive while the page holds the rest back")
			}
			s.cut(t)
			got = Eval[answer](p, `await goOn(); return await got`)
			check(t, got, -1)
			p.Quiet()
		})
	}
}
