package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const service = "http/app.example.com"

// world is a client's server, whose handler is a reverse proxy to a target, with a recorder in front of it.
type world struct {
	*testing.T
	store *Store
	rec   *Recorder
	front *httptest.Server
	url   string
}

func newWorld(t *testing.T, target http.HandlerFunc) *world {
	t.Helper()
	back := httptest.NewServer(target)
	t.Cleanup(back.Close)
	to, err := url.Parse(back.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, Transport: transport}
	w := &world{T: t, store: New(0)}
	handler := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { w.rec.Serve(rw, req, pass) })
	w.rec = w.store.Record(service, handler)
	w.front = httptest.NewServer(handler)
	w.url = w.front.URL
	t.Cleanup(func() {
		w.front.Close()
		w.store.Close()
		if used := w.store.used.Load(); used != 0 {
			t.Errorf("%d bytes are taken when nothing is kept any more", used)
		}
	})
	return w
}

func (w *world) do(req *http.Request) string {
	w.Helper()
	resp, err := w.front.Client().Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	return string(b)
}

func (w *world) request(method, path, body string) *http.Request {
	w.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, w.url+path, r)
	if err != nil {
		w.Fatal(err)
	}
	return req
}

// await returns the exchange with the index, counted from the oldest, when it is over.
func (w *world) await(i int) Exchange {
	w.Helper()
	for end := time.Now().Add(time.Minute); ; {
		list := w.rec.List()
		if len(list) > i && list[i].State != StateOpen {
			x, err := w.rec.Exchange(list[i].ID)
			if err != nil {
				w.Fatal(err)
			}
			return x
		}
		if time.Now().After(end) {
			w.Fatalf("exchange %d is not over: %+v", i, list)
		}
		time.Sleep(time.Millisecond)
	}
}

func (m *Message) get(name string) string {
	var all []string
	for _, f := range slices.Concat(m.Header, m.Trailer) {
		if f.Name == name {
			all = append(all, f.Value)
		}
	}
	return strings.Join(all, "|")
}

// TestExchange: what passes is kept and not changed; secrets are not shown.
func TestExchange(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		if req.Header.Get("Authorization") != "Bearer s3cr3t" || string(body) != "question" {
			t.Errorf("the target got %q, %q", req.Header.Get("Authorization"), body)
		}
		rw.Header().Set("Trailer", "X-Sum")
		rw.Header().Add("Set-Cookie", "sid=s3cr3t; Path=/; HttpOnly")
		rw.Header().Add("Set-Cookie", "lang=en")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.WriteHeader(http.StatusTeapot)
		io.WriteString(rw, "answer ")
		rw.(http.Flusher).Flush()
		io.WriteString(rw, "é")
		rw.Header().Set("X-Sum", "7")
	})
	req := w.request("POST", "/a/b?c=d", "question")
	req.Host = "app.example.com"
	req.Header.Set("Authorization", "Bearer s3cr3t")
	req.Header.Set("X-Api-Key", "s3cr3t")
	req.Header.Set("Cookie", "sid=s3cr3t; lang=en")
	req.Header.Set("X-Plain", "seen")
	if got := w.do(req); got != "answer é" {
		t.Errorf("the client got %q", got)
	}
	x := w.await(0)
	if x.Service != service || x.Method != "POST" || x.Host != "app.example.com" || x.Path != "/a/b?c=d" || x.Proto != "HTTP/1.1" || x.Scheme != "http" ||
		x.State != StateDone || x.Status != 418 || x.Sent != 8 || x.Received != 9 || x.ReplayOf != "" || !strings.HasPrefix(x.Client, "127.0.0.1:") {
		t.Errorf("the summary is %+v", x.Summary)
	}
	if x.Answered <= 0 || x.Duration < x.Answered || time.Since(x.Begun) > time.Minute {
		t.Errorf("it began at %s, was answered after %f s and over after %f s", x.Begun, x.Answered, x.Duration)
	}
	for name, want := range map[string]string{
		"Authorization": "Bearer [6 bytes]", "X-Api-Key": "[6 bytes]", "Cookie": "sid=[6 bytes]; lang=[2 bytes]", "X-Plain": "seen",
	} {
		if got := x.Request.get(name); got != want {
			t.Errorf("%s of the request is %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"Set-Cookie": "sid=[6 bytes]; Path=/; HttpOnly|lang=[2 bytes]", "X-Sum": "7"} {
		if got := x.Response.get(name); got != want {
			t.Errorf("%s of the answer is %q, want %q", name, got, want)
		}
	}
	if b := x.Request; b.Body != "question" || b.Encoding != "text" || b.Bytes != 8 || b.Kept != 8 {
		t.Errorf("the body of the request is %+v", b)
	}
	if b := x.Response; b.Body != "answer é" || b.Encoding != "text" || b.Bytes != 9 || b.Kept != 9 || len(b.Trailer) != 1 {
		t.Errorf("the body of the answer is %+v", b)
	}
}

// TestLongBodies: all of a body passes, the beginning of it is kept.
func TestLongBodies(t *testing.T) {
	const size = 3 * BodyKept
	text := strings.Repeat("0123456789abcdef", size/16)
	w := newWorld(t, func(rw http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		rw.Write(append([]byte{0xff}, b...))
	})
	if got := w.do(w.request("PUT", "/", text)); got != "\xff"+text {
		t.Errorf("the client got %d bytes back, or others than it sent", len(got))
	}
	x := w.await(0)
	if b := x.Request; b.Body != text[:BodyKept] || b.Bytes != size || b.Kept != BodyKept {
		t.Errorf("of the request %d of %d bytes are kept", b.Kept, b.Bytes)
	}
	if b := x.Response; b.Encoding != "base64" || b.Bytes != size+1 || b.Kept != BodyKept {
		t.Errorf("of the answer %d of %d bytes are kept, in %s", b.Kept, b.Bytes, b.Encoding)
	}
	_, err := w.rec.Replay(t.Context(), x.ID)
	if !errors.Is(err, ErrNoReplay) || !strings.Contains(err.Error(), "longer than the 65536 bytes") {
		t.Errorf("a request whose body is not kept was sent again: %v", err)
	}
	if used, most := w.store.used.Load(), int64(2*BodyKept+8<<10); used > most {
		t.Errorf("an exchange takes %d bytes, more than %d", used, most)
	}
}

// TestAborted: an exchange whose handler gave up says so.
func TestAborted(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
		io.WriteString(rw, "begun")
		rw.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	resp, err := w.front.Client().Do(w.request("GET", "/", ""))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(resp.Body)
	resp.Body.Close()
	if err == nil {
		t.Error("the client saw a clean end")
	}
	if x := w.await(0); x.State != StateAborted || x.Status != 200 || x.Received != 5 {
		t.Errorf("the exchange is %s with %d and %d bytes", x.State, x.Status, x.Received)
	}
}

// TestLast: the last ones are kept. One that goes on stays while others are over.
func TestLast(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/wait" {
			rw.(http.Flusher).Flush()
			<-release
		}
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(release)
	resp, err := w.front.Client().Do(w.request("GET", "/wait", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for i := range Exchanges + 50 {
		w.do(w.request("GET", fmt.Sprint("/", i), ""))
	}
	list := w.rec.List()
	if len(list) != Exchanges || list[0].Path != "/wait" || list[0].State != StateOpen || list[1].Path != "/51" || list[len(list)-1].Path != "/249" {
		t.Errorf("%d are kept, from %s, %s to %s", len(list), list[0].Path, list[1].Path, list[len(list)-1].Path)
	}
}

// TestReplay: the target sees the same request again, secrets included.
func TestReplay(t *testing.T) {
	type seen struct {
		what, body string
		length     int64
		header     http.Header
	}
	got := make(chan seen, 1)
	w := newWorld(t, func(rw http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		h := req.Header.Clone()
		got <- seen{req.Method + " " + req.Host + req.RequestURI, string(b), req.ContentLength, h}
		rw.WriteHeader(http.StatusAccepted)
	})
	for name, req := range map[string]*http.Request{
		"nothing": w.request("DELETE", "/x?y=%20z", ""), "body": w.request("POST", "/", "with a body"), "chunked": w.request("POST", "/c", "in chunks"),
	} {
		if name == "chunked" {
			req.ContentLength = -1
		}
		req.Header.Set("Authorization", "Basic dTpw")
		w.do(req)
		first := <-got
		x := w.awaitLast()
		again, err := w.rec.Replay(t.Context(), x.ID)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		second := <-got
		if fmt.Sprint(first) != fmt.Sprint(second) || first.header.Get("Authorization") != "Basic dTpw" {
			t.Errorf("%s: the target saw\n%v, and then\n%v", name, first, second)
		}
		if again.ReplayOf != x.ID || again.Status != 202 || again.State != StateDone || again.Client != x.Client {
			t.Errorf("%s: the second exchange is %+v", name, again)
		}
		if list := w.rec.List(); list[len(list)-1].ID != again.ID {
			t.Errorf("%s: the second exchange is not in the list", name)
		}
	}
	for id, want := range map[string]error{"999": ErrNoExchange, "x": ErrNoExchange, "-1": ErrNoExchange} {
		if _, err := w.rec.Replay(t.Context(), id); !errors.Is(err, want) {
			t.Errorf("exchange %s: %v, want %v", id, err, want)
		}
	}
}

func (w *world) awaitLast() Exchange {
	w.Helper()
	list := w.rec.List()
	return w.await(len(list) - 1)
}

// TestReplaySlow: Close ends a request that is being sent again.
func TestReplaySlow(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, req *http.Request) {
		if req.Header.Get("X-Slow") != "" {
			<-req.Context().Done()
		}
	})
	req := w.request("GET", "/", "")
	w.do(req)
	x := w.await(0)
	w.rec.mu.Lock()
	w.rec.list[0].request.header = append(w.rec.list[0].request.header, Field{"X-Slow", "1"})
	w.rec.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begun := make(chan error, 1)
	go func() {
		s, err := w.rec.Replay(ctx, x.ID)
		if err == nil && s.State != StateOpen {
			err = fmt.Errorf("it is %s", s.State)
		}
		begun <- err
	}()
	for len(w.rec.List()) < 2 {
		time.Sleep(time.Millisecond)
	}
	cancel() // whoever asked does not wait any longer; the request goes on
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	w.store.Close() // returns
	if err := w.rec.Follow(t.Context(), nil, nil); !errors.Is(err, ErrNotInspected) || len(w.rec.List()) > 0 {
		t.Errorf("after Close: %v", err)
	}
}

// TestFollow: a follower is told of every exchange, and of how many it missed.
func TestFollow(t *testing.T) {
	w := newWorld(t, func(http.ResponseWriter, *http.Request) {})
	told, proceed := make(chan Event), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	begun := make(chan struct{})
	wg.Go(func() {
		err := w.rec.Follow(ctx, func() error { close(begun); return nil }, func(e Event) error {
			select {
			case told <- e:
				<-proceed
			case <-ctx.Done():
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-begun
	w.do(w.request("GET", "/first", ""))
	if e := <-told; e.Exchange.Path != "/first" || e.Exchange.Status != 200 || e.Lost != 0 {
		t.Errorf("the first event is %+v", e.Exchange)
	}
	for i := range waiting + 5 { // while the follower does not read
		w.do(w.request("GET", fmt.Sprint("/", i), ""))
	}
	w.await(waiting + 5)
	close(proceed)
	for i := range waiting {
		if e := <-told; e.Exchange.Path != fmt.Sprint("/", i) || e.Lost != 0 {
			t.Fatalf("event %d is %s, %d lost", i, e.Exchange.Path, e.Lost)
		}
	}
	w.do(w.request("GET", "/last", ""))
	if e := <-told; e.Exchange.Path != "/last" || e.Lost != 5 {
		t.Errorf("the last event is %s, %d lost; want /last, 5", e.Exchange.Path, e.Lost)
	}
	w.store.Forget(w.rec) // ends the follower
}

// TestFollowers: so many may follow, and no more.
func TestFollowers(t *testing.T) {
	w := newWorld(t, func(http.ResponseWriter, *http.Request) {})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var ready sync.WaitGroup
	ready.Add(followersMost)
	for range followersMost {
		wg.Go(func() {
			if err := w.rec.Follow(ctx, func() error { ready.Done(); return nil }, func(Event) error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	ready.Wait()
	if err := w.rec.Follow(ctx, func() error { return nil }, nil); !errors.Is(err, ErrFollowers) {
		t.Errorf("one more follower: %v", err)
	}
	cancel()
	wg.Wait()
}

// TestMemory: whatever services do, no more memory is taken than is allowed, a greedy one does not push out what others have, and
// everything is given back.
func TestMemory(t *testing.T) {
	const limit = 4 << 20
	s := New(limit)
	junk := bytes.Repeat([]byte{'x'}, BodyKept)
	var most int64
	look := func() { most = max(most, s.used.Load()) }
	exchange := func(r *Recorder, size int, inside func()) {
		body := io.NopCloser(bytes.NewReader(junk[:size]))
		req := httptest.NewRequest("POST", "/", body)
		r.Serve(httptest.NewRecorder(), req, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			b, _ := io.ReadAll(req.Body)
			look()
			if inside != nil {
				inside()
			}
			w.Write(b)
			look()
		}))
	}
	small := s.Record("http/small", nil)
	for range 5 {
		exchange(small, 100, nil)
	}
	greedy := s.Record("http/greedy", nil)
	for range 300 {
		exchange(greedy, len(junk), nil)
	}
	if used := greedy.used.Load(); used > limit/2 || used < limit/4 {
		t.Errorf("a greedy service has %d bytes, want about half of %d", used, limit)
	}
	// A thousand of them, with bodies at once, while exchanges of all are under way.
	rnd := rand.New(rand.NewPCG(1, 2))
	var all []*Recorder
	for i := range 1000 {
		all = append(all, s.Record(fmt.Sprint("http/", i), nil))
	}
	var nest func(depth int)
	nest = func(depth int) {
		if depth < 200 {
			exchange(all[rnd.IntN(len(all))], rnd.IntN(len(junk)), func() { nest(depth + 1) })
		}
	}
	for range 4 {
		nest(0)
	}
	if list := small.List(); len(list) != 5 {
		t.Errorf("%d of the 5 exchanges of a modest service are left", len(list))
	}
	// One step of a reservation may stand above the limit until it is taken back.
	if most > limit+BodyKept {
		t.Errorf("%d bytes were taken of %d", most, limit)
	}
	var sum int64
	for _, r := range append(all, small, greedy) {
		r.mu.Lock()
		var own int64
		for _, x := range r.list {
			own += x.charged
		}
		r.mu.Unlock()
		if own != r.used.Load() {
			t.Errorf("%s has %d bytes in its exchanges and %d in its account", r.service, own, r.used.Load())
		}
		sum += own
	}
	if sum != s.used.Load() {
		t.Errorf("all have %d bytes, the account %d", sum, s.used.Load())
	}
	s.Close()
	if used := s.used.Load(); used != 0 {
		t.Errorf("%d bytes are taken when nothing is kept", used)
	}
}

// TestLongHeader: more than what is kept of a header is counted, and the request is not sent again without it.
func TestLongHeader(t *testing.T) {
	w := newWorld(t, func(http.ResponseWriter, *http.Request) {})
	req := w.request("GET", "/", "")
	for i := range 10 {
		req.Header.Set(fmt.Sprint("X-Long-", i), strings.Repeat("x", 5000))
	}
	w.do(req)
	x := w.await(0)
	if x.Request.Omitted == 0 || x.Request.Omitted > 8 {
		t.Errorf("%d fields are left out", x.Request.Omitted)
	}
	if _, err := w.rec.Replay(t.Context(), x.ID); !errors.Is(err, ErrNoReplay) {
		t.Errorf("it was sent again: %v", err)
	}
}

// TestForget: a service that is not inspected any more keeps nothing, and exchanges under way end well.
func TestForget(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/held" {
			close(held)
			<-release
		}
		io.WriteString(rw, "fine")
	})
	got := make(chan string, 1)
	go func() { got <- w.do(w.request("GET", "/held", "")) }()
	<-held
	w.store.Forget(w.rec)
	close(release)
	if s := <-got; s != "fine" {
		t.Errorf("the client got %q", s)
	}
	if s := w.do(w.request("GET", "/", "")); s != "fine" {
		t.Errorf("the client got %q", s)
	}
	if list := w.rec.List(); len(list) > 0 {
		t.Errorf("%d exchanges are kept", len(list))
	}
	if used := w.store.used.Load(); used != 0 {
		t.Errorf("%d bytes are taken", used)
	}
}

func TestMask(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"Authorization", "Basic dXNlcjpwYXNz", "Basic [12 bytes]"},
		{"Proxy-Authorization", "bearer abc", "bearer [3 bytes]"},
		{"Authorization", "topsecret", "[9 bytes]"},
		{"Authorization", "top secret", "[10 bytes]"},
		{"Authorization", "", ""},
		{"Cookie", "a=1; b; c=x=y", "a=[1 bytes];[2 bytes]; c=[3 bytes]"},
		{"Set-Cookie", "a=1", "a=[1 bytes]"},
		{"Set-Cookie", "secretalone; Path=/", "[11 bytes]; Path=/"},
		{"X-Api-Key", "k", "[1 bytes]"}, {"Api-Key", "k", "[1 bytes]"}, {"X-Apikey", "k", "[1 bytes]"}, {"Ocp-Apim-Subscription-Key", "k", "[1 bytes]"},
		{"X-Auth-Token", "k", "[1 bytes]"}, {"X-Csrf-Token", "k", "[1 bytes]"}, {"X-Amz-Security-Token", "k", "[1 bytes]"}, {"X-Vault-Token", "k", "[1 bytes]"},
		{"X-Gitlab-Token", "k", "[1 bytes]"}, {"X-Hub-Signature-256", "k", "[1 bytes]"}, {"X-Client-Secret", "k", "[1 bytes]"}, {"X_api_key", "k", "[1 bytes]"},
		{"Cf-Access-Jwt-Assertion", "k", "[1 bytes]"}, {"X-Session-Id", "k", "[1 bytes]"}, {"Cookie2", "k", "[1 bytes]"}, {"Private-Token", "k", "[1 bytes]"},
		{"Content-Type", "text/plain", "text/plain"}, {"Sec-Websocket-Key", "k", "k"}, {"Idempotency-Key", "k", "k"}, {"Www-Authenticate", "Basic realm=x", "Basic realm=x"},
		{"Sec-WebSocket-Protocol", "chat, base64url.bearer.authorization.eyJhbGciOiJIUzI1NiJ9", "chat,[51 bytes]"},
		{"X-Authtoken", "k", "[1 bytes]"}, {"Accesstoken", "k", "[1 bytes]"}, {"X-Authentication", "k", "[1 bytes]"}, {"Dpop", "k", "[1 bytes]"},
		{"X-Pass", "k", "[1 bytes]"}, {"X-Pwd", "k", "[1 bytes]"}, {"X-Userpassword", "k", "[1 bytes]"}, {"X-Bypass", "k", "k"},
		{"X-Author", "me", "me"}, {"Etag", "k", "k"}, {"Host", "h", "h"}, {"X-Forwarded-For", "192.0.2.1", "192.0.2.1"}, {"Access-Control-Allow-Origin", "*", "*"},
	} {
		list := []Field{{c.name, c.value}}
		if mask(list); list[0].Value != c.want {
			t.Errorf("%s: %s is shown as %q, want %q", c.name, c.value, list[0].Value, c.want)
		}
	}
}

func TestEncode(t *testing.T) {
	for _, c := range []struct {
		in       string
		more     bool
		text     string
		encoding string
	}{
		{"", false, "", "text"}, {"abc é", false, "abc é", "text"}, {"abc \xc3", true, "abc ", "text"}, {"abc \xe6\x97", true, "abc ", "text"},
		{"abc \xf0\x9f\x99", true, "abc ", "text"}, {"abc \xc3", false, "YWJjIMM=", "base64"}, {"a\xffbc", true, "Yf9iYw==", "base64"}, {"\xff", true, "/w==", "base64"},
	} {
		if text, encoding := encode([]byte(c.in), c.more); text != c.text || encoding != c.encoding {
			t.Errorf("encode(%q, %t) = %q, %s; want %q, %s", c.in, c.more, text, encoding, c.text, c.encoding)
		}
	}
}

var _ net.Conn = (*upgraded)(nil)
