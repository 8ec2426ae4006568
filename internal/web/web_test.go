package web

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"reverser/internal/grammar"
	"reverser/internal/sys"
)

// limit is long after everything that a test waits for.
const limit = time.Minute

// However busy the machine is, within that a target has said its word, the next request or the rest of one has come, and so has another guess.
func init() { continueTime, keepTime, firstWait = limit, limit, limit }

// world is a server on loopback, with targets that the test plays.
type world struct {
	t     *testing.T
	s     *Server
	addr  string
	sites map[string]*Site // by host and path

	unknown atomic.Bool // nobody knows the address of clients that come

	wg sync.WaitGroup

	mu     sync.Mutex
	failed []Failure // guarded by mu, as all below
	dials  int
	fails  error // what the next dials return
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, s: &Server{restTime: limit}, sites: make(map[string]*Site)}
	w.s.Find = func(secure bool, host, path string) *Site {
		for p := strings.TrimSuffix(path, "/"); ; p = p[:max(strings.LastIndexByte(p, '/'), 0)] {
			if s := w.sites[host+p]; s != nil && !secure {
				return s
			}
			if p == "" {
				return nil
			}
		}
	}
	w.s.Failed = func(f Failure) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.failed = append(w.failed, f)
	}
	w.s.Start()
	ln, err := sys.Listen("tcp", "127.0.0.1:0") // as for all users
	if err != nil {
		t.Fatal(err)
	}
	w.addr = ln.Addr().String()
	w.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			client := w.s.NewClient(c, nil, nil)
			client.Unknown = w.unknown.Load()
			w.s.Serve(client)
		}
	})
	t.Cleanup(func() {
		ln.Close()
		w.wg.Wait()
		w.s.Close()
		for _, s := range w.sites {
			s.Close()
		}
	})
	return w
}

// site makes a service whose target is at addr.
func (w *world) site(name, addr string, o grammar.ProxyOptions) *Site {
	s := &Site{Name: "http/" + name, Options: func() *grammar.ProxyOptions { return &o }}
	s.Enter = func(*Visit) (func(error), func(uint64, uint64), error) {
		return func(error) {}, func(uint64, uint64) {}, nil
	}
	s.Dial = func(ctx context.Context, call Call, _ func()) (*Upstream, error) {
		w.mu.Lock()
		w.dials++
		err := w.fails
		w.mu.Unlock()
		if err != nil {
			return nil, err
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		return &Upstream{Conn: resetting{c.(*net.TCPConn)}, ID: call.ID}, nil
	}
	w.sites[name] = s
	return s
}

// resetting is a connection that can be reset, as a stream of a link can.
type resetting struct{ *net.TCPConn }

func (c resetting) Reset() {
	c.SetLinger(0)
	c.Close()
}

// target serves h until the end of the test.
func (w *world) target(h http.HandlerFunc) (addr string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(ln)
	}()
	w.t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return ln.Addr().String()
}

// user is a connection to the server.
type user struct {
	*net.TCPConn
	t *testing.T
	r *bufio.Reader
}

func (w *world) user() *user {
	w.t.Helper()
	return w.userAt(w.addr)
}

// pair is a connection of a user, and its other end, which nobody serves yet.
func (w *world) pair() (u *user, far *net.TCPConn) {
	w.t.Helper()
	ln, err := sys.Listen("tcp", "127.0.0.1:0") // as for all users
	if err != nil {
		w.t.Fatal(err)
	}
	defer ln.Close()
	u = w.userAt(ln.Addr().String())
	c, err := ln.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	return u, c.(*net.TCPConn)
}

func (w *world) userAt(addr string) *user {
	w.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(limit))
	return &user{c.(*net.TCPConn), w.t, bufio.NewReader(c)}
}

func (u *user) ask(request string) (*http.Response, string) {
	u.t.Helper()
	io.WriteString(u, request)
	return u.answer(request)
}

func (u *user) answer(what string) (*http.Response, string) {
	u.t.Helper()
	resp, err := http.ReadResponse(u.r, nil)
	if err != nil {
		u.t.Fatalf("the answer to %.80q: %v", what, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		u.t.Fatalf("the answer to %.80q: %v", what, err)
	}
	return resp, string(body)
}

// echo answers with what it was told.
func echo(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s|%s", r.Method, r.Host, r.RequestURI, b)
}

// TestAmbiguous is the table of docs/NAMES.md: what could be read in two ways ends here, and no request reaches a target that it does not name.
func TestAmbiguous(t *testing.T) {
	w := newWorld(t)
	var secret, reached sync.Map
	w.site("a.example", w.target(func(rw http.ResponseWriter, r *http.Request) {
		reached.Store(r.RequestURI, true)
		echo(rw, r)
	}), grammar.ProxyOptions{})
	w.site("a.example/admin", w.target(func(rw http.ResponseWriter, r *http.Request) {
		secret.Store(r.RequestURI, true)
		fmt.Fprintf(rw, "admin %s", r.RequestURI)
	}), grammar.ProxyOptions{})
	w.site("one.example", w.target(echo), grammar.ProxyOptions{})
	long := strings.Repeat("x", maxHeader)
	for _, c := range []struct {
		name, request string
		status        int
		want          string // in the body
		closed        bool
	}{
		{"CL and TE", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "", true},
		{"TE and CL, in other letters", "POST / HTTP/1.1\r\nHost: a.example\r\ntransfer-encoding: Chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n", 400, "", true},
		{"CL and TE in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "HTTP/1.0 does not know", true},
		{"TE in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0 does not know", true},
		{"a bad chunk", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400, "(the body of the request: invalid byte in chunk length", true},
		{"a bare LF behind a chunk's length", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400, "", true},
		{"a chunk that is longer than it says", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", 400, "", true},
		{"a bad trailer", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n5\r\nhello\r\n0\r\nbad trailer\r\n\r\n", 400, "", true},
		{"two lengths", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "", true},
		{"the same length twice", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 200, "POST a.example /|hello", false},
		{"a signed length", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: +5\r\n\r\nhello", 400, "", true},
		{"two codings", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "", true},
		{"an unknown coding", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: xchunked\r\n\r\n", 501, "", true},
		{"a space before the colon", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400, "", true},
		{"obs-fold", "GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\r\n c\r\n\r\n", 200, "GET a.example /", false},
		{"a folded first line", "GET / HTTP/1.1\r\n Host: a.example\r\n\r\n", 400, "", true},
		{"a bare CR in a value", "GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\rX-B: c\r\n\r\n", 400, "", true},
		{"a NUL in a value", "GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\x00\r\n\r\n", 400, "", true},
		{"bare LF", "GET / HTTP/1.1\nHost: a.example\n\n", 200, "GET a.example /", false},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", 400, "", true},
		{"no Host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", 400, "", true},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: a.example\r\nHost: one.example\r\n\r\n", 400, "", true},
		{"the same Host twice", "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n", 400, "", true},
		{"two hosts in one", "GET / HTTP/1.1\r\nHost: a.example, one.example\r\n\r\n", 400, "", true},
		{"a user in Host", "GET / HTTP/1.1\r\nHost: one.example@a.example\r\n\r\n", 400, "", true},
		{"absolute form", "GET http://one.example/x?y HTTP/1.1\r\nHost: a.example\r\n\r\n", 200, "GET one.example /x?y|", false},
		{"absolute form of another scheme", "GET https://one.example/ HTTP/1.1\r\nHost: one.example\r\n\r\n", 400, "the request is for https", true},
		{"absolute form without a path", "GET http://one.example?y HTTP/1.1\r\nHost: a.example\r\n\r\n", 200, "GET one.example /?y|", false},
		{"a scheme before another URL", "GET x:http://a.example/admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "neither a path nor", true},
		{"a scheme before a host", "GET http:a.example/admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "neither a path nor", true},
		{"a scheme before a path", "GET http:/x HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "neither a path nor", true},
		{"absolute form without a host", "GET http:///x HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "neither a path nor", true},
		{"a scheme alone", "GET http: HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "neither a path nor", true},
		{"an asterisk", "GET * HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "neither a path nor", true},
		{"OPTIONS with an asterisk", "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", 200, "", false},
		{"OPTIONS with an asterisk, CL and TE", "OPTIONS * HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "both Content-Length", true},
		{"OPTIONS with an asterisk and two hosts in one", "OPTIONS * HTTP/1.1\r\nHost: a.example, one.example\r\n\r\n", 400, "", true},
		{"CONNECT", "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "no proxy for clients", true},
		{"upper case, a dot and a port", "GET / HTTP/1.1\r\nHost: A.Example.:8080\r\n\r\n", 200, "GET A.Example.:8080 /|", false},
		{"a bad port", "GET / HTTP/1.1\r\nHost: a.example:x\r\n\r\n", 400, "", true},
		{"a host that is not ASCII", "GET / HTTP/1.1\r\nHost: b\xc3\xbccher.example\r\n\r\n", 400, "", true},
		{"xn--", "GET / HTTP/1.1\r\nHost: xn--bcher-kva.example\r\n\r\n", 404, "", false},
		{"IPv6", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 404, "", false},
		{"IPv6 without brackets", "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", 400, "", true},
		{"a huge head", "GET / HTTP/1.1\r\nHost: a.example\r\nX-A: " + long + long + "\r\n\r\n", 431, "", true},
		{"dots out of a path", "GET /admin/../x HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"dots into a path", "GET /x/../admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"encoded dots", "GET /x/%2e%2E/admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"encoded twice", "GET /x/%252e%252e/admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"an encoded slash", "GET /%2fadmin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"an encoded letter", "GET /%61dmin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"a long path that can be read in many ways", "GET /x" + strings.Repeat("/%25", maxReadings/4) + " HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "in several ways", false},
		{"a long path", "GET /x" + strings.Repeat("/y", maxReadings) + " HTTP/1.1\r\nHost: a.example\r\n\r\n", 200, "", false},
		{"two slashes", "GET //admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"a backslash", "GET /x/..\\admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"an encoded backslash", "GET /%5cadmin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"a parameter", "GET /x/..;a=b/admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"a parameter of the segment", "GET /admin;a=b HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"an encoded slash within one service", "GET /x/a%2Fb HTTP/1.1\r\nHost: a.example\r\n\r\n", 200, "GET a.example /x/a%2Fb|", false},
		{"dots within one service", "GET /x/../y//z;a HTTP/1.1\r\nHost: one.example\r\n\r\n", 200, "GET one.example /x/../y//z;a|", false},
		{"a question mark that is encoded", "GET /x%3f/../admin HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"a question mark that is encoded, behind the path", "GET /admin%3f HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"a number sign that is encoded", "GET /admin%23x HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"a NUL that is encoded", "GET /admin%00 HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "read in two ways", false},
		{"the path itself", "GET /admin/x HTTP/1.1\r\nHost: a.example\r\n\r\n", 200, "admin /admin/x", false},
		{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "", true},
	} {
		u := w.user()
		io.WriteString(u, c.request)
		if c.name == "no HTTP" {
			u.CloseWrite()
		}
		resp, body := u.answer(c.name)
		if resp.StatusCode != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: %s %q; want %d %q", c.name, resp.Status, body, c.status, c.want)
		}
		if !c.closed {
			continue
		}
		if more, _ := io.ReadAll(u.r); len(more) > 0 {
			t.Errorf("%s: a second answer, %.80q", c.name, more)
		}
	}
	secret.Range(func(uri, _ any) bool {
		if uri != "/admin/x" {
			t.Errorf("/admin was reached by %s", uri)
		}
		return true
	})
	reached.Range(func(uri, _ any) bool {
		if strings.Contains(uri.(string), "admin") {
			t.Errorf("the service of / was reached by %s", uri)
		}
		return true
	})
}

// TestAgainPath: a request that is sent again without being read from a connection has no other way past its path either.
func TestAgainPath(t *testing.T) {
	w := newWorld(t)
	site := w.site("a.example", w.target(echo), grammar.ProxyOptions{})
	r := httptest.NewRequest("GET", "/x", nil)
	r.Host, r.URL.Opaque = "a.example", "http://b.example/y"
	answer := httptest.NewRecorder()
	w.s.Again(site, answer, r)
	if got, want := answer.Body.String(), "GET a.example /x|"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestReadings: whatever a target may take a path for is one of its readings.
func TestReadings(t *testing.T) {
	for in, want := range map[string]string{
		"/a/b": "", "/a/%2e%2e/b": "/b", "/a%2fb": "/a/b", "/a\\b": "/a/b", "/a/..;x/b": "/b", "//a": "/a", "/%E6%96%87/../x": "/x", "/%e6%96%87%2f": "/%E6%96%87", "/a/./b": "/a/b", "/a%3fb": "/a", "/a%2523": "/a", "/a%00.x": "/a", "/x/..;/a%23": "/a", "/a;x/b%3fc": "/a/b",
	} {
		found := want == ""
		for r := range readings(in) {
			found = found || r == want
			if want == "" {
				t.Errorf("%q has the reading %q", in, r)
			}
		}
		if !found {
			t.Errorf("%q has no reading %q", in, want)
		}
	}
}

// TestForwarded: the target learns who the client is from the proxy, and from the client only if it is trusted.
func TestForwarded(t *testing.T) {
	w := newWorld(t)
	show := w.target(func(rw http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Real-Ip", "Forwarded", "X_forwarded_for", "Cookie", "X-Stage", "X_stage", "X-Plan", "X_plan", "Te", "Keep-Alive"} {
			if v := r.Header.Values(name); len(v) > 0 {
				fmt.Fprintf(rw, "%s=%s\n", name, strings.Join(v, "&"))
			}
		}
		fmt.Fprintf(rw, "Host=%s", r.Host)
	})
	w.site("plain", show, grammar.ProxyOptions{})
	w.site("trusting", show, grammar.ProxyOptions{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	w.site("changing", show, grammar.ProxyOptions{HostHeader: "app.lan:8080", SetHeader: map[string]string{"X-Stage": "test", "X-Forwarded-Proto": "https"}, RemoveHeader: []string{"Cookie", "x-plan"}})
	lies := "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\n" +
		"Connection: X-Forwarded-For, Keep-Alive\r\nKeep-Alive: x\r\nCookie: a=b\r\n"
	for host, want := range map[string]string{
		"plain:80": "X-Forwarded-For=127.0.0.1\nX-Forwarded-Proto=http\nX-Forwarded-Host=plain:80\nX-Real-Ip=127.0.0.1\nForwarded=for=127.0.0.1;host=\"plain:80\";proto=http\nCookie=a=b\nHost=plain:80",
		"trusting": "X-Forwarded-For=6.6.6.6, 127.0.0.1\nX-Forwarded-Proto=https\nX-Forwarded-Host=evil\nX-Forwarded-Port=1\nX-Real-Ip=6.6.6.6\nForwarded=for=6.6.6.6, for=127.0.0.1;host=trusting;proto=http\nCookie=a=b\nHost=trusting",
		"changing": "X-Forwarded-For=127.0.0.1\nX-Forwarded-Proto=https\nX-Forwarded-Host=changing\nX-Real-Ip=127.0.0.1\nForwarded=for=127.0.0.1;host=changing;proto=http\nX-Stage=test\nHost=app.lan:8080",
	} {
		more := ""
		if host == "changing" {
			more = "X_Stage: evil\r\nx_plan: evil\r\n"
		}
		if _, body := w.user().ask("GET / HTTP/1.1\r\nHost: " + host + "\r\n" + lies + more + "\r\n"); body != want {
			t.Errorf("%s:\n%s\nwant\n%s", host, body, want)
		}
	}
	for chain, want := range map[string]string{"": "127.0.0.1", "X-Forwarded-For: 192.0.2.7, 192.0.2.8\r\n": "192.0.2.8", "X-Forwarded-For: unknown\r\n": "127.0.0.1", "X-Real-IP: 192.0.2.9\r\nX-Forwarded-For: 192.0.2.8\r\n": "192.0.2.9"} {
		if _, body := w.user().ask("GET / HTTP/1.1\r\nHost: trusting\r\n" + chain + "\r\n"); !strings.Contains(body, "X-Real-Ip="+want+"\n") {
			t.Errorf("%q from one who is trusted: %s, want the address %s", chain, body, want)
		}
	}
}

// TestForwardedOfNobody: where nobody knows the client's address, the target is told none, what the client says of it does not count, and
// the rest is told. A simple request and any other one are alike.
func TestForwardedOfNobody(t *testing.T) {
	w := newWorld(t)
	w.unknown.Store(true)
	show := w.target(func(rw http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-Ip", "Forwarded", "X_forwarded_for"} {
			fmt.Fprintf(rw, "%q", r.Header.Values(name))
		}
	})
	w.site("plain", show, grammar.ProxyOptions{})
	w.site("trusting", show, grammar.ProxyOptions{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}})
	for _, host := range []string{"plain", "trusting"} {
		for _, lies := range []string{"", "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"} {
			want := fmt.Sprintf(`[]["http"][%q][]["host=%s;proto=http"][]`, host, host)
			if _, body := w.user().ask("GET / HTTP/1.1\r\nHost: " + host + "\r\n" + lies + "\r\n"); body != want {
				t.Errorf("%s, which the client tells %q: %s; want %s", host, lies, body, want)
			}
		}
	}
}

// TestPage: the form and the language of a page are the client's choice, and no page tells a stranger what stands behind the proxy.
func TestPage(t *testing.T) {
	w := newWorld(t)
	w.site("a", "127.0.0.1:1", grammar.ProxyOptions{})
	for _, c := range []struct{ headers, kind, word string }{
		{"Accept: */*\r\n", "text/plain; charset=utf-8", "502 The service does not answer"},
		{"", "text/plain; charset=utf-8", "502 The service does not answer"},
		{"Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n", "text/html; charset=utf-8", "<h1>The service does not answer</h1>"},
		{"Accept: text/html\r\nAccept-Language: zh-CN,zh;q=0.9,en;q=0.8\r\n", "text/html; charset=utf-8", "<h1>服务没有响应</h1>"},
		{"Accept: text/html\r\nAccept-Language: en;q=0.9, zh;q=0.1\r\n", "text/html; charset=utf-8", "does not answer"},
		{"Accept: application/json\r\n", "application/problem+json", `"status":502`},
		{"Accept: application/vnd.api+json;q=1\r\nAccept-Language: zh\r\n", "application/problem+json", "服务没有响应"},
	} {
		resp, body := w.user().ask("GET / HTTP/1.1\r\nHost: a\r\n" + c.headers + "\r\n")
		id := resp.Header.Get("X-Request-Id")
		if resp.StatusCode != 502 || resp.Header.Get("Content-Type") != c.kind || !strings.Contains(body, c.word) || len(id) != 32 || !strings.Contains(body, id) {
			t.Errorf("%q: %v\n%s", c.headers, resp.Header, body)
		}
		if strings.Contains(body, "127.0.0.1") || strings.Contains(fmt.Sprint(resp.Header), "127.0.0.1") {
			t.Errorf("%q: a stranger learns of the target: %s", c.headers, body)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.failed[0]; f.Status != 502 || !errors.Is(f.Err, ErrRefused) || len(f.ID) != 32 {
		t.Errorf("the owner was told %+v", f)
	}
}

// TestFailures: each way in which a target is not reached has its status.
func TestFailures(t *testing.T) {
	w := newWorld(t)
	w.site("a", "", grammar.ProxyOptions{})
	for err, want := range map[error]int{ErrAway: 503, ErrLimit: 503, ErrRemoved: 404, ErrRefused: 502, ErrUnreachable: 502, errors.New("other"): 502} {
		w.mu.Lock()
		w.fails = err
		w.mu.Unlock()
		resp, _ := w.user().ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp.StatusCode != want || (want == 503) != (resp.Header.Get("Retry-After") != "") {
			t.Errorf("%v: %s, Retry-After %q", err, resp.Status, resp.Header.Get("Retry-After"))
		}
	}
	hold := make(chan struct{})
	defer close(hold)
	w.site("slow", w.target(func(http.ResponseWriter, *http.Request) { <-hold }), grammar.ProxyOptions{AnswerTime: grammar.Duration(50 * time.Millisecond)})
	w.mu.Lock()
	w.fails = nil
	w.mu.Unlock()
	if resp, _ := w.user().ask("GET / HTTP/1.1\r\nHost: slow\r\n\r\n"); resp.StatusCode != 504 {
		t.Errorf("a slow target: %s", resp.Status)
	}
}

// TestStandsStill: a request does not go to a kept connection whose link stands still. Its target is dialled, which ends after a while. What
// is under way there goes on when the link does.
func TestStandsStill(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		w := newWorld(t)
		var paused atomic.Bool
		more := make(chan struct{})
		s := w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
			io.WriteString(rw, "begun")
			if rw.(http.Flusher).Flush(); r.URL.Path == "/long" {
				<-more
			}
			io.WriteString(rw, " and done")
		}), grammar.ProxyOptions{H2C: h2c})
		dial := s.Dial
		s.Dial = func(ctx context.Context, call Call, retired func()) (*Upstream, error) {
			if paused.Load() {
				return nil, ErrAway
			}
			up, err := dial(ctx, call, retired)
			if err == nil {
				up.Paused = paused.Load
			}
			return up, err
		}
		long, short := w.user(), w.user()
		io.WriteString(long, "GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(long.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		short.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n") // its connection is kept
		paused.Store(true)
		for range 2 {
			if resp, _ := short.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
				t.Errorf("h2c %v: %s, Retry-After %q", h2c, resp.Status, resp.Header.Get("Retry-After"))
			}
		}
		paused.Store(false)
		if _, body := short.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n"); body != "begun and done" {
			t.Errorf("h2c %v: %q when the link goes on", h2c, body)
		}
		close(more)
		if body, err := io.ReadAll(resp.Body); string(body) != "begun and done" || err != nil {
			t.Errorf("h2c %v: what was under way is %q, %v", h2c, body, err)
		}
	}
}

// TestTruncated: an answer that the target broke off is never complete for the client, whatever tells its end.
func TestTruncated(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			rw.Header().Set("Content-Length", "100")
		}
		io.WriteString(rw, "begun")
		rw.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}), grammar.ProxyOptions{})
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /length HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.0\r\nHost: a\r\n\r\n"} {
		u := w.user()
		io.WriteString(u, request)
		resp, err := http.ReadResponse(u.r, nil)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		if err == nil {
			t.Errorf("%q: the answer is complete", request)
		}
	}
}

// TestUpgrade: behind 101 both directions are the client's and the target's, half-close and reset included. Who has said all there was to
// say, and heard it, has left in order; who was reset, or whose target was, has not.
func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	ends, left := make(chan string, 8), make(chan error, 8)
	site := w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
		c, brw, _ := http.NewResponseController(rw).Hijack()
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\n")
		if r.URL.Path == "/reset" {
			io.WriteString(c, "x")
			brw.ReadByte()
			c.(*net.TCPConn).SetLinger(0)
			return
		}
		b, err := io.ReadAll(brw)
		ends <- fmt.Sprintf("%s %v", b, err == nil)
		io.WriteString(c, "all")
	}), grammar.ProxyOptions{})
	site.Enter = func(*Visit) (func(error), func(uint64, uint64), error) {
		return func(broken error) { left <- broken }, func(uint64, uint64) {}, nil
	}
	upgrade := func(path string) *user {
		u := w.user()
		io.WriteString(u, "GET "+path+" HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
		resp, err := http.ReadResponse(u.r, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("%v, %v", resp, err)
		}
		return u
	}
	u := upgrade("/")
	io.WriteString(u, "hello")
	u.CloseWrite()
	if b, err := io.ReadAll(u.r); string(b) != "all" || err != nil {
		t.Errorf("behind a half-close: %q, %v", b, err)
	}
	if got := <-ends; got != "hello true" {
		t.Errorf("the target read %s", got)
	}
	if broken := <-left; broken != nil {
		t.Errorf("a client that has left in order is told as one that broke off: %v", broken)
	}
	if runtime.GOOS == "windows" {
		return // Wine tells some readers of a reset that nothing more comes
	}
	u = upgrade("/")
	io.WriteString(u, "cut")
	u.SetLinger(0)
	u.Close()
	if got := <-ends; !strings.HasSuffix(got, " false") { // the bytes may be gone with the reset
		t.Errorf("a client that was reset is an end of file for the target: %s", got)
	}
	if broken := <-left; broken == nil {
		t.Error("a client that was reset is told as one that has left in order")
	}
	u = upgrade("/reset")
	u.r.ReadByte()
	io.WriteString(u, "y")
	if b, err := io.ReadAll(u.r); err == nil {
		t.Errorf("a target that was reset is an end of file for the client behind %q", b)
	}
	if broken := <-left; broken == nil {
		t.Error("a client whose target was reset is told as one that has left in order")
	}
}

// TestUpgradeToHTTP: no connection becomes one of HTTP again behind the choice of the service. The request is served without that.
func TestUpgradeToHTTP(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "%q %q %q", r.Header["Connection"], r.Header["Upgrade"], r.Header["Http2-Settings"])
	}), grammar.ProxyOptions{})
	for _, c := range []struct{ headers, want string }{
		{"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n", "[] [] []"},
		{"Connection: upgrade\r\nupgrade: H2C\r\nhttp2-settings: AAMAAABk\r\n", "[] [] []"},
		{"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n", `["Upgrade"] ["websocket"] []`},
		{"Connection: Upgrade\r\nUpgrade: h2c ,chat/2 ,\r\n", `["Upgrade"] ["chat/2"] []`},
		{"Connection: Upgrade\r\nUpgrade: h2\r\nUpgrade: h2c\r\n", "[] [] []"},
		{"Connection: Upgrade\r\nUpgrade: HTTP/2.0, TLS/1.0\r\n", "[] [] []"},
		{"Connection: Upgrade\r\nUpgrade: h2cx\r\n", `["Upgrade"] ["h2cx"] []`},
		{"Upgrade: h2c\r\n", "[] [] []"},
		{"HTTP2-Settings: AAMAAABk\r\n", "[] [] []"},
	} {
		resp, body := w.user().ask("GET / HTTP/1.1\r\nHost: a\r\n" + c.headers + "\r\n")
		if resp.StatusCode != 200 || body != c.want {
			t.Errorf("%q: %s, the target got %s; want %s", c.headers, resp.Status, body, c.want)
		}
	}
}

// TestUpgradeOfHTTP2: HTTP/2 has no Upgrade. A target that speaks it gets the request without that, and answers it.
func TestUpgradeOfHTTP2(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "%s %q %q", r.Proto, r.Header["Upgrade"], r.Header["Sec-Websocket-Key"])
	}), grammar.ProxyOptions{H2C: true})
	for _, protocol := range []string{"websocket", "chat/2", "h2c"} {
		u := w.user()
		resp, body := u.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\nSec-WebSocket-Key: x\r\n\r\n")
		if want := `HTTP/2.0 [] ["x"]`; resp.StatusCode != 200 || body != want {
			t.Errorf("%s: %s %q; want %q", protocol, resp.Status, body, want)
		}
		if _, body := u.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n"); body != "HTTP/2.0 [] []" {
			t.Errorf("behind %s: %q", protocol, body)
		}
	}
}

// TestStreams: nothing waits for the end of a body, in either direction, and trailers and informational answers pass.
func TestStreams(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		w := newWorld(t)
		w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(rw)
			rc.EnableFullDuplex()
			rw.Header().Set("Link", "</x>")
			rw.WriteHeader(http.StatusEarlyHints)
			rw.Header().Set("Trailer", "X-Sum")
			buf := make([]byte, 100)
			for {
				n, err := r.Body.Read(buf)
				if n > 0 {
					rw.Write([]byte(strings.ToUpper(string(buf[:n]))))
					rc.Flush()
				}
				if err != nil {
					break
				}
			}
			rw.Header().Set("X-Sum", r.Trailer.Get("X-Client")+r.Proto)
		}), grammar.ProxyOptions{H2C: h2c})
		u := w.user()
		io.WriteString(u, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Client\r\n\r\n3\r\none\r\n")
		early, err := http.ReadResponse(u.r, nil)
		if err != nil || early.StatusCode != 103 {
			t.Fatalf("h2c %v: %v, %v; want 103", h2c, early, err)
		}
		resp, err := http.ReadResponse(u.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 3)
		io.ReadFull(resp.Body, got)
		if string(got) != "ONE" {
			t.Errorf("h2c %v: %q before the end of the request", h2c, got)
		}
		io.WriteString(u, "3\r\ntwo\r\n0\r\nX-Client: me \r\n\r\n")
		rest, err := io.ReadAll(resp.Body)
		want := map[bool]string{false: "meHTTP/1.1", true: "meHTTP/2.0"}[h2c]
		if string(rest) != "TWO" || err != nil || resp.Trailer.Get("X-Sum") != want {
			t.Errorf("h2c %v: %q, %v, trailer %v", h2c, rest, err, resp.Trailer)
		}
	}
}

// TestHTTP2: a client may speak HTTP/2 without TLS; its requests are those of one connection, and two names for a host are refused.
func TestHTTP2(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{})
	tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", w.addr)
	}}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			resp, err := tr.RoundTrip(must(http.NewRequest("POST", fmt.Sprintf("http://a/%d", i), strings.NewReader("x"))))
			if err != nil {
				t.Error(err)
				return
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := fmt.Sprintf("POST a /%d|x", i); resp.ProtoMajor != 2 || string(b) != want {
				t.Errorf("%s %q, want %q", resp.Proto, b, want)
			}
		})
	}
	wg.Wait()
}

func must(r *http.Request, err error) *http.Request {
	if err != nil {
		panic(err)
	}
	return r
}

// TestRapidReset: a client that begins requests and resets them at once has no more of them at the target than it may have at once.
func TestRapidReset(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	now, most := 0, 0
	w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-r.Context().Done()
		mu.Lock()
		now--
		mu.Unlock()
	}), grammar.ProxyOptions{})
	w.site("b", w.target(echo), grammar.ProxyOptions{})
	u := w.user()
	io.WriteString(u, http2.ClientPreface)
	fr := http2.NewFramer(u, u.r)
	fr.WriteSettings()
	go io.Copy(io.Discard, u.r)
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for i := range 20_000 {
		head.Reset()
		for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}} {
			enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := uint32(2*i + 1)
		if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true}) != nil || fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break // the server has had enough of it
		}
	}
	if _, body := w.user().ask("GET / HTTP/1.1\r\nHost: b\r\n\r\n"); body != "GET b /|" {
		t.Errorf("beside it: %q", body)
	}
	u.Close()
	mu.Lock()
	defer mu.Unlock()
	if most > 2*maxStreams { // those that were reset may still be on their way out
		t.Errorf("%d requests of one connection at the target at once", most)
	}
}

// askHTTP2 sends a request by HTTP/2, with fields and a body as they are, and returns the status of the answer.
func (u *user) askHTTP2(fields [][2]string, body string) (status string) {
	u.t.Helper()
	io.WriteString(u, http2.ClientPreface)
	fr := http2.NewFramer(u, u.r)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.WriteSettings()
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, h := range fields {
		enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndStream: body == "", EndHeaders: true})
	if body != "" {
		fr.WriteData(1, true, []byte(body))
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			u.t.Fatal(err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			return h.PseudoValue("status")
		}
	}
}

// TestShortBody: a client of HTTP/2 whose body is shorter than it said is told so, and the target is not blamed.
func TestShortBody(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		w := newWorld(t)
		w.site("a", w.target(echo), grammar.ProxyOptions{H2C: h2c})
		fields := [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}, {"content-length", "10"}}
		if got := w.user().askHTTP2(fields, "hello"); got != "400" {
			t.Errorf("h2c %v: %s; want 400", h2c, got)
		}
		w.mu.Lock()
		if len(w.failed) != 1 || w.failed[0].Status != 400 || !strings.Contains(w.failed[0].Err.Error(), "Content-Length of 10") {
			t.Errorf("h2c %v: failed %+v", h2c, w.failed)
		}
		w.mu.Unlock()
	}
}

// TestSaidOnce: what the owner is told of a target that refuses says it once, in one line.
func TestSaidOnce(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		w := newWorld(t)
		s := w.site("a", "", grammar.ProxyOptions{H2C: h2c})
		s.Dial = func(context.Context, Call, func()) (*Upstream, error) { return &Upstream{Conn: refusing{}}, nil }
		if resp, _ := w.user().ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n"); resp.StatusCode != 502 {
			t.Errorf("h2c %v: %s", h2c, resp.Status)
		}
		w.mu.Lock()
		if said := w.failed[0].Err.Error(); strings.Count(said, ErrRefused.Error()) != 1 || strings.Contains(said, "\n") || !errors.Is(w.failed[0].Err, ErrRefused) {
			t.Errorf("h2c %v: %q", h2c, said)
		}
		w.mu.Unlock()
	}
}

// refusing is a connection to a target that refuses.
type refusing struct{ net.Conn }

func (refusing) Read([]byte) (int, error) {
	return 0, fmt.Errorf("%w: read stream 7: reset", ErrRefused)
}
func (refusing) Write(b []byte) (int, error)      { return len(b), nil }
func (refusing) Close() error                     { return nil }
func (refusing) SetDeadline(time.Time) error      { return nil }
func (refusing) SetReadDeadline(time.Time) error  { return nil }
func (refusing) SetWriteDeadline(time.Time) error { return nil }
func (refusing) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (refusing) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// TestTwoNames: HTTP/2 may say the host twice, and then it must be the same. Its path is no URL.
func TestTwoNames(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{})
	w.site("b", w.target(echo), grammar.ProxyOptions{})
	for _, c := range []struct{ path, host, want string }{
		{"/", "a", "200"},
		{"/", "b", "400"},
		{"x:http://b/", "a", "400"},
		{"http://b/", "a", "400"},
		{"http:/", "a", "400"},
		{"*", "a", "400"},
		{"/?a HTTP/1.1", "a", "400"},
	} {
		fields := [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", c.path}, {"host", c.host}}
		if got := w.user().askHTTP2(fields, ""); got != c.want {
			t.Errorf(":authority a, host %s and :path %s: %s, want %s", c.host, c.path, got, c.want)
		}
	}
}

// TestHeadAlone: an answer of HTTP/2 that is a head alone stays one. For gRPC, the head is what ends a call that failed at once.
func TestHeadAlone(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) { rw.Header().Set("Grpc-Status", "7") }), grammar.ProxyOptions{H2C: true})
	u := w.user()
	io.WriteString(u, http2.ClientPreface)
	fr := http2.NewFramer(u, u.r)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.WriteSettings()
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for i := range 500 {
		head.Reset()
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/t.T/Refuse"}, {"te", "trailers"}} {
			enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := uint32(2*i + 1)
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true})
		fr.WriteData(id, true, []byte("hello"))
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if h, ok := f.(*http2.MetaHeadersFrame); ok {
				if !h.StreamEnded() {
					t.Fatalf("the head of answer %d does not end its stream", i)
				}
				break
			}
		}
	}
}

// TestBasicAuth: names and passwords are compared with bcrypt and argon2id; wrong ones slow their address down, and no one else.
func TestBasicAuth(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	// argon2 -id -t 1 -m 6 -p 1 of "secret" with the salt "saltsalt"
	w := newWorld(t)
	w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "%s %q", r.Header.Get("X-Forwarded-User"), r.Header.Get("Authorization"))
	}), grammar.ProxyOptions{BasicAuth: []string{"ann:" + string(hash)}})
	ask := func(from, name, password string) (*http.Response, string) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		r := must(http.NewRequest("GET", "http://a/", nil))
		if name != "" {
			r.SetBasicAuth(name, password)
		}
		r.Header.Set("X-Forwarded-User", "root")
		r.Write(c)
		u := &user{c.(*net.TCPConn), t, bufio.NewReader(c)}
		return u.answer("basic auth")
	}
	if resp, _ := ask("127.0.0.1", "", ""); resp.StatusCode != 401 || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), `Basic realm="http/a"`) {
		t.Errorf("without a password: %s %v", resp.Status, resp.Header)
	}
	if resp, body := ask("127.0.0.1", "ann", "secret"); resp.StatusCode != 200 || body != `ann ""` {
		t.Errorf("with the password: %s %q", resp.Status, body)
	}
	for i := range freeGuesses {
		if resp, _ := ask("127.0.0.2", "ann", fmt.Sprint(i)); resp.StatusCode != 401 {
			t.Errorf("wrong password %d: %s", i, resp.Status)
		}
	}
	if resp, _ := ask("127.0.0.2", "ann", "another"); resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one wrong password more: %s", resp.Status)
	}
	if resp, _ := ask("127.0.0.1", "ann", "secret"); resp.StatusCode != 200 {
		t.Errorf("another address: %s", resp.Status)
	}
	if resp, _ := ask("127.0.0.3", "bob", "secret"); resp.StatusCode != 401 {
		t.Errorf("another name: %s", resp.Status)
	}
	g := &w.s.guesses
	for i := range 2 * mostGuessers {
		g.begin(asker{"http/a", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), nil}, time.Now())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.from) > mostGuessers {
		t.Errorf("%d addresses are remembered", len(g.from))
	}
}

func TestPasswords(t *testing.T) {
	for hash, want := range map[string]bool{
		// argon2id of "password" with the salt "somesalt", t=2, m=65536, p=1: a vector of the reference implementation
		"$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc": true,
		"$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$DTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc": false,
		"": false, "$2y$05$x": false,
	} {
		if got := matches(hash, "password"); got != want {
			t.Errorf("%s: %v, want %v", hash, got, want)
		}
	}
}

// TestOneClient: where the target takes a connection for one client's, it gets the requests of no other.
func TestOneClient(t *testing.T) {
	w := newWorld(t)
	tell := w.target(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.RemoteAddr) })
	w.site("alone", tell, grammar.ProxyOptions{OneClient: true})
	w.site("shared", tell, grammar.ProxyOptions{})
	get := func(u *user, host string) string {
		_, body := u.ask("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		return body
	}
	a, b := w.user(), w.user()
	if get(a, "alone") == get(b, "alone") {
		t.Error("two clients share a connection")
	}
	if first := get(a, "alone"); first != get(a, "alone") {
		t.Error("one client has a connection for each request")
	}
	if get(a, "shared") != get(b, "shared") {
		t.Error("two clients do not share a connection one after the other")
	}
}

// TestVisits: a connection that goes from service to service leaves those that it has not been at for longest.
func TestVisits(t *testing.T) {
	w := newWorld(t)
	addr := w.target(echo)
	var mu sync.Mutex
	entered, left := 0, 0
	for i := range 3 * mostVisits {
		s := w.site(fmt.Sprintf("h%d", i), addr, grammar.ProxyOptions{})
		s.Enter = func(*Visit) (func(error), func(uint64, uint64), error) {
			mu.Lock()
			defer mu.Unlock()
			entered++
			return func(error) { mu.Lock(); left++; mu.Unlock() }, func(uint64, uint64) {}, nil
		}
	}
	u := w.user()
	for i := range 3 * mostVisits {
		u.ask(fmt.Sprintf("GET / HTTP/1.1\r\nHost: h%d\r\n\r\n", i))
	}
	mu.Lock()
	defer mu.Unlock()
	if entered-left > mostVisits {
		t.Errorf("one connection is at %d services", entered-left)
	}
}

// TestFraming: a request with both Content-Length and Transfer-Encoding is noticed behind others on its connection too, and where it
// cannot be, nothing follows it.
func TestFraming(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{})
	const mixed = "POST /mixed HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
	const plain = "GET /plain HTTP/1.1\r\nHost: a\r\n\r\n"
	const text = "Content-Length: 1\r\nTransfer-Encoding: x\r\n\r\n1"
	body := fmt.Sprintf("POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	const chunked = "POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
	u := w.user()
	for _, r := range []string{plain, body, plain, chunked} {
		if resp, got := u.ask(r); resp.StatusCode != 200 || resp.Close {
			t.Errorf("%.20q: %s %q", r, resp.Status, got)
		}
	}
	if resp, _ := u.ask(chunked); resp.StatusCode != 200 || !resp.Close {
		t.Errorf("a chunked request whose head cannot be told apart: %s, close %v", resp.Status, resp.Close)
	}
	for _, h2c := range []bool{false, true} { // each has a way of its own
		w.site("early", w.target(func(rw http.ResponseWriter, r *http.Request) {
			rw.WriteHeader(http.StatusEarlyHints)
			echo(rw, r)
		}), grammar.ProxyOptions{H2C: h2c})
		u = w.user()
		u.ask(chunked)
		io.WriteString(u, strings.Replace(chunked, "Host: a", "Host: early", 1))
		if resp, _ := u.answer("one with hints"); resp.StatusCode != 103 {
			t.Fatalf("h2c %v: %s, want 103", h2c, resp.Status)
		}
		if resp, _ := u.answer("the answer behind hints"); resp.StatusCode != 200 || !resp.Close {
			t.Errorf("h2c %v: behind hints, a chunked request whose head cannot be told apart: %s, close %v", h2c, resp.Status, resp.Close)
		}
	}
	u = w.user()
	u.ask(plain)
	u.ask(body)
	if resp, _ := u.ask(mixed); resp.StatusCode != 400 || !resp.Close {
		t.Errorf("behind two others: %s", resp.Status)
	}
	for _, empty := range []string{"\r\n", "\n", "\r\n\r\n", "\n\n\n\n", "\r", "\r\r\n"} { // net/http takes them behind a POST
		u = w.user()
		u.ask(body)
		if resp, got := u.ask(empty + mixed); resp.StatusCode != 400 || !resp.Close {
			t.Errorf("behind a POST and %q: %s %q, close %v", empty, resp.Status, got, resp.Close)
		}
		u = w.user()
		for _, r := range []string{body, empty + body, empty + chunked} {
			if resp, got := u.ask(r); resp.StatusCode != 200 || resp.Close {
				t.Errorf("%.20q: %s %q, close %v", r, resp.Status, got, resp.Close)
			}
		}
		u = w.user()
		u.ask(body + empty) // sent ahead
		if resp, _ := u.ask(mixed); !resp.Close {
			t.Errorf("behind a POST that was sent with %q: %s, and the connection goes on", empty, resp.Status)
		}
	}
	u = w.user()
	u.ask(plain)
	if resp, _ := u.ask("\r\n" + plain); resp.StatusCode != 400 || !resp.Close {
		t.Errorf("an empty line behind a GET: %s", resp.Status)
	}
	u = w.user()
	io.WriteString(u, plain+mixed+plain) // sent ahead
	u.answer("the first")
	if resp, _ := u.answer("the second"); !resp.Close {
		t.Errorf("one that was sent ahead: %s, and the connection goes on", resp.Status)
	}
	if rest, _ := io.ReadAll(u.r); len(rest) > 0 {
		t.Errorf("a third answer: %q", rest)
	}
}

// TestOldBehindTheUnknown: where the beginning of a head is not known, nothing follows a request of HTTP/1.0, which could have a
// Transfer-Encoding that net/http ignores.
func TestOldBehindTheUnknown(t *testing.T) {
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{})
	u := w.user()
	const old = "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"
	if resp, _ := u.ask(old); resp.Close {
		t.Error("the connection ends behind an ordinary request")
	}
	u.ask("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	if resp, _ := u.ask(old); !resp.Close {
		t.Error("the connection goes on")
	}
}

// TestEndedOnEntry: a visit that is ended while it begins is left, once, and its request is not served.
func TestEndedOnEntry(t *testing.T) {
	w := newWorld(t)
	site := w.site("a", w.target(echo), grammar.ProxyOptions{})
	left := make(chan error, 2)
	site.Enter = func(v *Visit) (func(error), func(uint64, uint64), error) {
		v.End(nil)
		return func(broken error) { left <- broken }, func(uint64, uint64) {}, nil
	}
	u := w.user()
	io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if b, err := io.ReadAll(u.r); err == nil || len(b) > 0 {
		t.Errorf("%q, %v; want a reset", b, err)
	}
	<-left
	if n := len(left); n > 0 {
		t.Errorf("it was left %d times more", n)
	}
}

// TestEntered: the owner of a client hears once that a service has let it in, and never of a client that only gets pages.
func TestEntered(t *testing.T) {
	w := newWorld(t)
	addr := w.target(echo)
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	w.site("a", addr, grammar.ProxyOptions{})
	w.site("b", addr, grammar.ProxyOptions{})
	w.site("locked", addr, grammar.ProxyOptions{BasicAuth: []string{"ann:" + string(hash)}})
	w.site("full", addr, grammar.ProxyOptions{}).Enter = func(*Visit) (func(error), func(uint64, uint64), error) { return nil, nil, ErrLimit }
	for host, want := range map[string]int{"a": 200, "b": 200, "none": 404, "locked": 401, "full": 503} {
		var entered atomic.Int64
		gone := make(chan bool, 2)
		near, far := net.Pipe()
		w.s.Serve(w.s.NewClient(near, func() { entered.Add(1) }, func(entered bool) { gone <- entered }))
		u := &user{t: t, r: bufio.NewReader(far)}
		for range 3 {
			io.WriteString(far, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
			if resp, _ := u.answer(host); resp.StatusCode != want {
				t.Errorf("%s: %s, want %d", host, resp.Status, want)
			}
		}
		if want == 200 {
			io.WriteString(far, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			u.answer("another service")
		}
		far.Close()
		said, times := <-gone, entered.Load()
		if said != (want == 200) || times != map[bool]int64{true: 1, false: 0}[want == 200] {
			t.Errorf("%s: it entered %d times, and gone says %v", host, times, said)
		}
		if len(gone) > 0 {
			t.Errorf("%s: gone twice", host)
		}
	}
}

// TestLeftWhileDialled: who leaves while the target is being dialled is not dialled for any more.
func TestLeftWhileDialled(t *testing.T) {
	w := newWorld(t)
	for _, h2c := range []bool{false, true} {
		begun, over := make(chan struct{}), make(chan error, 1)
		w.site("a", "", grammar.ProxyOptions{H2C: h2c}).Dial = func(ctx context.Context, _ Call, _ func()) (*Upstream, error) {
			close(begun)
			select {
			case <-ctx.Done():
			case <-time.After(limit):
			}
			over <- ctx.Err()
			return nil, ErrAway
		}
		u := w.user()
		io.WriteString(u, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		<-begun
		u.Close()
		if err := <-over; err == nil {
			t.Errorf("h2c %v: the dial goes on", h2c)
		}
	}
}

// TestGuessesBesideARightOne: who knows a password of one service guesses those of another no faster for it.
func TestGuessesBesideARightOne(t *testing.T) {
	var hashes []string
	for _, password := range []string{"own", "secret"} {
		h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, "ann:"+string(h))
	}
	w := newWorld(t)
	w.site("own", w.target(echo), grammar.ProxyOptions{BasicAuth: hashes[:1]})
	w.site("a", w.target(echo), grammar.ProxyOptions{BasicAuth: hashes[1:]})
	u := w.user()
	ask := func(host, password string) int {
		r := must(http.NewRequest("GET", "http://"+host+"/", nil))
		r.SetBasicAuth("ann", password)
		r.Write(u)
		resp, _ := u.answer(host)
		return resp.StatusCode
	}
	for i := range freeGuesses {
		if got := ask("a", fmt.Sprint(i)); got != 401 {
			t.Errorf("wrong password %d: %d", i, got)
		}
		if got := ask("own", "own"); got != 200 {
			t.Errorf("the password of the own service: %d", got)
		}
		g := &w.s.guesses
		g.mu.Lock()
		clear(g.known) // as after some minutes, or with another file of passwords
		g.mu.Unlock()
	}
	if got := ask("a", "another"); got != 429 {
		t.Errorf("one wrong password more: %d, want 429", got)
	}
	if got := ask("own", "own"); got != 200 {
		t.Errorf("the own service beside that: %d", got)
	}
}

// TestGuessesAtManyServices: services of one's own push nothing out of what is remembered of an address, and what is remembered is bounded.
func TestGuessesAtManyServices(t *testing.T) {
	var g guesses
	g.init()
	from := netip.MustParsePrefix("127.0.0.2/32")
	now := time.Now()
	for range freeGuesses {
		g.begin(asker{"http/a", from, nil}, now)
	}
	for i := range 100 * mostServices {
		service := asker{fmt.Sprintf("http/own%d", i), from, nil}
		g.begin(service, now)
		g.right(service, [32]byte{byte(i)}, now)
		g.begin(service, now)
	}
	if g.begin(asker{"http/a", from, nil}, now) {
		t.Error("wrong passwords elsewhere let an address try again at once")
	}
	if n := len(g.from[from]); n > mostServices+1 {
		t.Errorf("%d services of an address are remembered", n)
	}
	if g.begin(asker{"http/another", from, nil}, now) {
		t.Error("services without a record of their own do not wait together")
	}
	now = now.Add(staleAfter + time.Minute)
	if !g.begin(asker{"http/another", from, nil}, now) || g.from[from]["http/another"] == nil {
		t.Error("records that are old make no room")
	}
}

// TestGuessesAtOnce: passwords that come at once are no more than those that come one after the other. Few of one address wait to be
// looked at, and requests with the same password wait for one look.
func TestGuessesAtOnce(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.site("a", w.target(echo), grammar.ProxyOptions{BasicAuth: []string{"ann:" + string(hash)}})
	g := &w.s.guesses
	g.init()
	var busy, asked sync.WaitGroup
	turns := g.turns.free
	for range turns {
		g.turns.take(t.Context(), "another key")
	}
	statuses := make(chan int, 100)
	ask := func(from, password string) {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", w.addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		r := must(http.NewRequest("GET", "http://a/", nil))
		r.SetBasicAuth("ann", password)
		r.Write(c)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Error(err)
			return
		}
		statuses <- resp.StatusCode
	}
	guesser := asker{"http/a", netip.MustParsePrefix("127.0.0.2/32"), nil}
	for range freeGuesses - 1 {
		g.begin(guesser, time.Now())
	}
	const n = 20
	for i := range n {
		busy.Go(func() { ask("127.0.0.2", fmt.Sprint(i)) })
	}
	for range n - mostQueued {
		if got := <-statuses; got != http.StatusTooManyRequests {
			t.Errorf("beside %d that wait: %d, want 429", mostQueued, got)
		}
	}
	for range n {
		asked.Go(func() { ask("127.0.0.3", "secret") })
	}
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		waiting := len(g.checks)
		g.mu.Unlock()
		if waiting == mostQueued+1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d passwords wait to be looked at, want %d", waiting, mostQueued+1)
		}
	}
	for range turns {
		g.turns.end("another key")
	}
	busy.Wait()
	asked.Wait()
	close(statuses)
	got := make(map[int]int)
	for s := range statuses {
		got[s]++
	}
	if got[401] != 1 || got[429] != mostQueued-1 || got[200] != n {
		t.Errorf("answers %v; want 1 wrong one, %d that came too early, and %d let in", got, mostQueued-1, n)
	}
	if len(g.checks)+len(g.queued) > 0 {
		t.Errorf("%d passwords of %d addresses are left behind", len(g.checks), len(g.queued))
	}
}
