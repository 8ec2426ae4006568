package web

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"reverser/internal/acmetest"
	"reverser/internal/grammar"
	"reverser/internal/share"
)

// lines is a request with so many lines in its head, the first and the empty one among them.
func lines(n int, fields string) string {
	return "GET / HTTP/1.1\r\nHost: a\r\n" + fields + strings.Repeat("a:\r\n", n-3-strings.Count(fields, "\n")) + "\r\n"
}

// TestManyLines: a head of too many lines is refused, however it comes and whatever was before it, and one just below is not. The lines of
// bodies do not count.
func TestManyLines(t *testing.T) {
	const text = 3 * mostLines
	body := fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", text, strings.Repeat("\n", text))
	chunked := fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", text, strings.Repeat("\n", text))
	get := lines(3, "")
	for name, c := range map[string]struct {
		before []string
		ask    string
		want   int
	}{
		"few, simple":            {nil, lines(mostLines, ""), 200},
		"many, simple":           {nil, lines(mostLines+1, ""), 431},
		"few":                    {nil, lines(mostLines, "Expect: x\r\n"), 417},
		"many":                   {nil, lines(mostLines+1, "Expect: x\r\n"), 431},
		"far too many":           {nil, lines(10_000, ""), 431},
		"far too many of a lie":  {nil, strings.Replace(lines(10_000, ""), "GET / HTTP/1.1", "PRI * HTTP/2.0", 1), 431},
		"half a line too many":   {nil, strings.TrimSuffix(lines(mostLines+2, "Expect: x\r\n"), "\r\n") + "aaaa", 431},
		"a body":                 {nil, body, 200},
		"a chunked body":         {nil, chunked, 200},
		"a body, then few":       {[]string{body}, lines(mostLines, ""), 200},
		"a body, then many":      {[]string{body}, lines(mostLines+1, ""), 431},
		"a body behind another":  {[]string{get, body, chunked}, body, 200},
		"chunked, then few":      {[]string{chunked}, lines(mostLines, ""), 200},
		"chunked, then far more": {[]string{chunked}, lines(10_000, ""), 431},
		"two at once, then more": {[]string{get + get, ""}, lines(10_000, ""), 431},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %v", name, secure), func(t *testing.T) {
				w := newWorld(t)
				w.site("a", w.target(echo), grammar.ProxyOptions{})
				find := w.s.Find
				w.s.Find = func(_ bool, host, path string) *Site { return find(false, host, path) }
				u, far := w.pair()
				client := w.s.NewClient(far, nil, nil)
				out := w.speak(u, client, secure)
				ask := func(r string) int {
					if r != "" {
						go io.WriteString(out, r) // the server may not read all of it
					}
					resp, err := http.ReadResponse(u.r, nil)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						t.Fatal(err)
					}
					return resp.StatusCode
				}
				for _, r := range c.before {
					if got := ask(r); got != 200 {
						t.Fatalf("%.20q: %d", r, got)
					}
				}
				if got := ask(c.ask); got != c.want {
					t.Errorf("%d, want %d", got, c.want)
				}
				if c.want == 431 {
					if n, err := u.r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
						t.Errorf("behind the refusal: %d bytes, %v; want an end", n, err)
					}
				}
			})
		}
	}
}

// speak has a client served, and returns what its user writes to. With TLS both know the protocols.
func (w *world) speak(u *user, client *Client, secure bool, protos ...string) io.Writer {
	w.t.Helper()
	if !secure {
		w.s.Serve(client)
		return u
	}
	chain, key := acmetest.Certificate(w.t, "a")
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		w.t.Fatal(err)
	}
	near, over := tls.Client(u, &tls.Config{InsecureSkipVerify: true, NextProtos: protos}), tls.Server(client, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos})
	handshake := make(chan error, 1)
	go func() { handshake <- near.Handshake() }()
	if err := over.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	if err := <-handshake; err != nil {
		w.t.Fatal(err)
	}
	u.r = bufio.NewReader(near)
	w.s.Serve(over)
	return near
}

// TestLongHeads: clients whom no service has let in share the room for long heads. Who finds it taken is refused; short heads are served, and
// so are those of others.
func TestLongHeads(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{})
	var told atomic.Int64
	w.s.Crowded = func(p Pool, why error) {
		if p == PoolStrangers && why == errHeads {
			told.Add(1)
		}
	}
	const less = mostHeads - 4*longHead // one address may have half of the rest
	for other := netip.MustParseAddr("192.0.2.1"); w.s.strange.Taken().Used < less; {
		if !w.s.strange.Take(other, longHead) {
			other = other.Next()
		}
	}
	const all = less + 2*longHead
	taken := func() int64 { return w.s.strange.Taken().Used }
	const get = "GET / HTTP/1.1\r\nHost: %s\r\nX: %s\r\n"
	long := strings.Repeat("x", 2*longHead)
	inside := w.user()
	if resp, got := inside.ask(lines(3, "")); resp.StatusCode != 200 {
		t.Fatalf("%s %q", resp.Status, got)
	}
	half := w.user()
	fmt.Fprintf(half, get, "none", long)
	for taken() != all { // the head has arrived
		runtime.Gosched()
	}
	ask := func(u *user, host, x string) int {
		resp, _ := u.ask(fmt.Sprintf(get+"\r\n", host, x))
		return resp.StatusCode
	}
	if got := ask(w.user(), "a", long); got != 503 {
		t.Errorf("a long head when all is taken: %d, want 503", got)
	}
	if got, want := w.s.Taken(PoolStrangers), (Taken{Taken: share.Taken{Used: all, Size: mostHeads, Largest: netip.MustParsePrefix("192.0.2.1/32"), ByLargest: mostHeads / 2}}); got != want || told.Load() != 1 {
		t.Errorf("taken is %+v, want %+v; it was told %d times that there is no room, want 1", got, want, told.Load())
	}
	if got := ask(w.user(), "a", long[:longHead-100]); got != 200 {
		t.Errorf("a short head when all is taken: %d", got)
	}
	for range 2 {
		if got := ask(inside, "a", long); got != 200 {
			t.Errorf("a long head of who was let in, when all is taken: %d", got)
		}
	}
	io.WriteString(half, "\r\n")
	if resp, _ := half.answer("the rest of a head"); resp.StatusCode != 404 {
		t.Errorf("a long head in two parts: %s", resp.Status)
	}
	for taken() != less { // net/http says behind the answer that it is complete
		runtime.Gosched()
	}
	u := w.user()
	for range 2 {
		if got := ask(u, "a", long); got != 200 {
			t.Errorf("a long head when others are done: %d", got)
		}
	}
	fmt.Fprintf(w.user(), get, "none", long)
	for taken() != all {
		runtime.Gosched()
	}
	w.s.Close()
	if got := taken(); got != less {
		t.Errorf("%d bytes are taken when all have left", got-less)
	}
}

// TestStrayHeads: a client whom no service has let in is served no further when its next head cannot be told from what is around it. Who was let
// in is.
func TestStrayHeads(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{})
	for host, status := range map[string]int{"a": 200, "none": 404} {
		u := w.user()
		get := strings.Replace(lines(4, "X-B: .\r\n"), "Host: a", "Host: "+host, 1)
		io.WriteString(u, get+get+get[:10])
		for range 2 {
			if resp, _ := u.answer(host); resp.StatusCode != status {
				t.Fatalf("%s: %s, want %d", host, resp.Status, status)
			}
		}
		if host == "none" {
			if n, err := u.r.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("%d bytes behind the answers, %v; want an end", n, err)
			}
			continue
		}
		if resp, _ := u.ask(get[10:]); resp.StatusCode != 200 {
			t.Errorf("a third request: %s", resp.Status)
		}
	}
}
