package web

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/freeport"
	"reverser/internal/grammar"
)

// rawTarget is a target that answers with given bytes, by path, and keeps what it was asked.
type rawTarget struct {
	t       *testing.T
	ln      net.Listener
	answers map[string]rawAnswer // set before anybody asks
	wg      sync.WaitGroup

	mu    sync.Mutex
	heads map[string][]byte // guarded by mu, as all below
	conns map[net.Conn]bool
}

// rawAnswer is what a target answers.
type rawAnswer struct {
	text string
	over bool                 // of the connection
	then func(c *net.TCPConn) // comes behind the text; unless nil, the connection ends with it
}

func newRawTarget(t *testing.T, answers map[string]rawAnswer) *rawTarget {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rawTarget{t: t, ln: ln, answers: answers, heads: make(map[string][]byte), conns: make(map[net.Conn]bool)}
	r.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns[c] = true
			r.mu.Unlock()
			r.wg.Go(func() { r.serve(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		r.mu.Lock()
		for c := range r.conns {
			c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *rawTarget) addr() string { return r.ln.Addr().String() }

func (r *rawTarget) serve(c *net.TCPConn) {
	defer c.Close()
	var head bytes.Buffer
	br := bufio.NewReader(c)
	for {
		head.Reset()
		for !bytes.HasSuffix(head.Bytes(), []byte("\r\n\r\n")) {
			b, err := br.ReadByte()
			if err != nil {
				return
			}
			head.WriteByte(b)
		}
		said := bytes.Clone(head.Bytes())
		q, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(said), br)))
		if err != nil {
			r.t.Errorf("the target got %q: %v", said, err)
			return
		}
		io.Copy(io.Discard, q.Body)
		r.mu.Lock()
		r.heads[q.URL.Path] = said
		r.mu.Unlock()
		a, ok := r.answers[q.URL.Path]
		if !ok {
			a.text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
			if q.Method != http.MethodHead {
				a.text += "ok"
			}
		}
		io.WriteString(c, a.text)
		if a.then != nil {
			a.then(c)
		}
		if a.then != nil || a.over {
			return
		}
	}
}

// head returns what was asked for a path, and forgets it.
func (r *rawTarget) head(path string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer delete(r.heads, path)
	return r.heads[path]
}

// seen is a connection that tells when something was read of it.
type seen struct {
	*net.TCPConn
	reads chan struct{}
}

func (c seen) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if n > 0 {
		select {
		case c.reads <- struct{}{}:
		default:
		}
	}
	return n, err
}

// other is a connection whose requests are all net/http's.
type other struct {
	net.Conn
	below seen
}

func (c other) NetConn() net.Conn { return c.below }
func (c other) CloseWrite() error { return c.below.CloseWrite() }

// client is a connection to the server; simple: as users have it.
func (w *world) client(simple bool) (u *user, reads <-chan struct{}) {
	w.t.Helper()
	u, near := w.pair()
	s := seen{near, make(chan struct{}, 100)}
	if simple {
		w.s.Serve(w.s.NewClient(s, nil, nil))
	} else {
		w.s.Serve(w.s.NewClient(other{s, s}, nil, nil))
	}
	return u, s.reads
}

var idInPage = regexp.MustCompile(`\b[0-9a-f]{32}\b`)

// told is an answer as the client sees it, but for what differs each time.
func told(u *user, method string, anyLength bool) (lines []string, over bool) {
	resp, err := http.ReadResponse(u.r, &http.Request{Method: method})
	if err != nil {
		return []string{"no answer"}, true
	}
	lines = append(lines, resp.Proto+" "+resp.Status)
	body, err := io.ReadAll(resp.Body)
	resp.Header.Del("Date")
	if resp.TransferEncoding != nil && !anyLength {
		lines = append(lines, fmt.Sprint(resp.TransferEncoding))
	}
	if anyLength {
		resp.Header.Del("Content-Length")
	}
	var fields []string
	for name, values := range resp.Header {
		fields = append(fields, name+": "+idInPage.ReplaceAllString(strings.Join(values, "|"), "ID"))
	}
	slices.Sort(fields)
	lines = append(lines, fields...)
	if resp.Close {
		lines = append(lines, "close")
	}
	if len(body) > 1000 {
		lines = append(lines, fmt.Sprintf("%d bytes", len(body)))
	}
	lines = append(lines, idInPage.ReplaceAllString(string(body), "ID"))
	fields = nil
	for name, values := range resp.Trailer {
		fields = append(fields, "trailer "+name+": "+strings.Join(values, "|"))
	}
	slices.Sort(fields)
	if lines = append(lines, fields...); err != nil {
		return append(lines, "broken"), true
	}
	return lines, false
}

// TestSimpleAsOthers: whoever serves a request, the target gets the same one, and the client the same answer.
func TestSimpleAsOthers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	big := strings.Repeat("0123456789abcdef", 1<<16)
	get := func(path string, more ...string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: a.example\r\nx-simple: y\r\n" + strings.Join(more, "\r\n") + strings.Repeat("\r\n", min(len(more), 1)) + "\r\n"
	}
	hosted := func(host string) string { return "GET /c HTTP/1.1\r\nHost: " + host + "\r\nx-simple: y\r\n\r\n" }
	const accept = "Accept: "
	type c struct {
		name   string
		ask    string   // GET /c, unless it is given
		pieces []string // behind it, each when the one before was read
		more   int      // further answers
		target rawAnswer
		simple bool // the last request is served as a simple one
		any    bool // the length of the answer is not known, and may be found out
	}
	for _, c := range []c{
		{name: "a plain one", simple: true},
		{name: "HEAD", ask: strings.Replace(get("/c"), "GET", "HEAD", 1), target: rawAnswer{text: ok + "Content-Length: 5\r\n\r\n"}, simple: true},
		{name: "HEAD of an answer without length", ask: strings.Replace(get("/c"), "GET", "HEAD", 1), target: rawAnswer{text: ok + "X-A: b\r\n\r\n"}, simple: true},
		{name: "HEAD of a chunked answer", ask: strings.Replace(get("/c"), "GET", "HEAD", 1), target: rawAnswer{text: ok + "Transfer-Encoding: chunked\r\n\r\n"}, simple: true},
		{name: "204", target: rawAnswer{text: "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n"}, simple: true},
		{name: "204 with a length", target: rawAnswer{text: "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"}, simple: true},
		{name: "205", target: rawAnswer{text: "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"}, simple: true},
		{name: "304 with a length", target: rawAnswer{text: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nContent-Type: x\r\nEtag: x\r\n\r\n"}, simple: true},
		{name: "304 with a broken length", target: rawAnswer{text: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5x\r\nContent-Type: x\r\n\r\n"}, simple: true},
		{name: "an empty body", target: rawAnswer{text: ok + "Content-Length: 0\r\nContent-Type: x\r\n\r\n"}, simple: true},
		{name: "an empty chunked body", target: rawAnswer{text: ok + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}, simple: true, any: true},
		{name: "an answer that ends with its connection", target: rawAnswer{text: ok + "X-A: b\r\n\r\nhello", over: true}, simple: true, any: true},
		{name: "an answer of HTTP/1.0", target: rawAnswer{text: "HTTP/1.0 200 Fine\r\nX-A: b\r\n\r\nhello", over: true}, simple: true, any: true},
		{name: "an answer of HTTP/1.0 with a coding", target: rawAnswer{text: "HTTP/1.0 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\nhello", over: true}, simple: true, any: true},
		{name: "a chunked answer", target: rawAnswer{text: ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"}, simple: true, any: true},
		{name: "a chunked answer with a length", target: rawAnswer{text: ok + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n"}, simple: true, any: true},
		{name: "trailers", target: rawAnswer{text: ok + "Transfer-Encoding: chunked\r\nTrailer: X-B, X-C\r\n\r\n5\r\nhello\r\n0\r\nX-B: c\r\nX-B: d\r\n\r\n"}, simple: true},
		{name: "trailers that were not announced", target: rawAnswer{text: ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-B: c\r\n\r\n"}, simple: true},
		{name: "trailers, and one that was not announced", target: rawAnswer{text: ok + "Transfer-Encoding: chunked\r\nTrailer: X-C\r\n\r\n5\r\nhello\r\n0\r\nX-B: c\r\nX-C: d\r\n\r\n"}, simple: true},
		{name: "trailers of framing", target: rawAnswer{text: ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nX-B: c\r\n\r\n"}, simple: true},
		{name: "early hints", more: 1, target: rawAnswer{text: "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok"}, simple: true},
		{name: "early hints with framing", more: 1, target: rawAnswer{text: "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 5\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok"}, simple: true},
		{name: "early hints with a coding", more: 1, target: rawAnswer{text: "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\nLink: </x>\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok"}, simple: true},
		{name: "100", more: 1, target: rawAnswer{text: "HTTP/1.1 100 Continue\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok"}, simple: true},
		{name: "101", target: rawAnswer{text: "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"}, simple: true},
		{name: "a status that is not known", target: rawAnswer{text: "HTTP/1.1 299 Whatever\r\nContent-Length: 2\r\n\r\nok"}, simple: true},
		{name: "a status that nobody has", target: rawAnswer{text: "HTTP/1.1 999 Whatever\r\nContent-Length: 2\r\n\r\nok"}, simple: true},
		{name: "1 MB", target: rawAnswer{text: ok + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(big)) + big}, simple: true},
		{name: "1 MB without a length", target: rawAnswer{text: ok + "\r\n" + big, over: true}, simple: true},
		{name: "headers for the next server", target: rawAnswer{text: ok + "Connection: X-A, keep-alive\r\nX-A: b\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Authenticate: x\r\nContent-Length: 2\r\n\r\nok"}, simple: true},
		{name: "a length for the next server", target: rawAnswer{text: ok + "Connection: Content-Length\r\nContent-Length: 2\r\n\r\nok"}, simple: true, any: true},
		{name: "a length for the next server, HEAD", ask: strings.Replace(get("/c"), "GET", "HEAD", 1), target: rawAnswer{text: ok + "Connection: Content-Length\r\nContent-Length: 2\r\n\r\n"}, simple: true},
		{name: "no length for the next server", target: rawAnswer{text: ok + "Connection: Content-Length\r\nContent-Length: 0\r\n\r\n"}, simple: true, any: true},
		{name: "a coding for the next server", target: rawAnswer{text: ok + "Connection: Transfer-Encoding, Trailer, Date\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"}, simple: true, any: true},
		{name: "a target that ends its connection", target: rawAnswer{text: ok + "Connection: close\r\nContent-Length: 2\r\n\r\nok", over: true}, simple: true},
		{name: "headers twice", target: rawAnswer{text: ok + "Set-Cookie: a\r\nset-cookie: b\r\nServer: x\r\nDate: Sun, 29 Nov 2026 12:00:00 GMT\r\nContent-Length: 2\r\n\r\nok"}, simple: true},
		{name: "two lengths", target: rawAnswer{text: ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", over: true}, simple: true},
		{name: "the same length twice", target: rawAnswer{text: ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"}, simple: true},
		{name: "more than the length", target: rawAnswer{text: ok + "Content-Length: 2\r\n\r\nok!", over: true}, simple: true},
		{name: "no answer", target: rawAnswer{over: true}, simple: true},
		{name: "no HTTP", target: rawAnswer{text: "hello\r\n\r\n", over: true}, simple: true},
		{name: "less than the length", target: rawAnswer{text: ok + "Content-Length: 20\r\n\r\nok", over: true}, simple: true},
		{name: "chunks without an end", target: rawAnswer{text: ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", over: true}, simple: true},
		{name: "a target that is down", ask: hosted("down.example"), simple: true},
		{name: "a target that is down, HTML", ask: strings.Replace(hosted("down.example"), "x-simple: y", accept+"text/html\r\nAccept-Language: zh", 1), simple: true},
		{name: "a target that is down, JSON", ask: strings.Replace(hosted("down.example"), "x-simple: y", accept+"application/json", 1), simple: true},
		{name: "a target that is down, HEAD", ask: strings.Replace(hosted("down.example"), "GET", "HEAD", 1), simple: true},
		{name: "a target that is down, the last request", ask: strings.Replace(hosted("down.example"), "x-simple: y", "Connection: close", 1), simple: true},
		{name: "a target that is slow", ask: hosted("slow.example"), simple: true},
		{name: "a bridge that is away", ask: hosted("away.example"), simple: true},
		{name: "a service that was removed", ask: hosted("removed.example"), simple: true},
		{name: "no room at a service", ask: hosted("full.example"), simple: true},
		{name: "no service", ask: hosted("none.example")},
		{name: "Connection: close", ask: get("/c", "Connection: close"), simple: true},
		{name: "Connection: keep-alive", ask: get("/c", "Connection: keep-alive"), simple: true},
		{name: "Connection: keep-alive, foo", ask: get("/c", "Connection: keep-alive, foo", "Foo: x")},
		{name: "three at once", ask: get("/1") + get("/2") + get("/c"), more: 2, simple: true},
		{name: "three at once, the last with a body", ask: get("/1") + get("/2") + strings.Replace(get("/c", "Content-Length: 2"), "GET", "POST", 1) + "ok", more: 2},
		{name: "two at once, the first the last", ask: get("/c", "Connection: close") + get("/2"), simple: true},
		{name: "the second in two pieces", ask: get("/1") + get("/c")[:20], pieces: []string{get("/c")[20:]}, more: 1},
		{name: "a head in two pieces", ask: get("/c")[:30], pieces: []string{get("/c")[30:]}},
		{name: "a body behind GET", ask: get("/c", "Content-Length: 2") + "ok"},
		{name: "a chunked body behind GET", ask: get("/c", "Transfer-Encoding: chunked") + "0\r\n\r\n"},
		{name: "CL and TE", ask: get("/c", "Transfer-Encoding: chunked", "Content-Length: 5") + "0\r\n\r\n"},
		{name: "a long head", ask: get("/c", "X-A: "+strings.Repeat("b", mostSimple))},
		{name: "a head as long as can be", ask: get("/c", "X-A: "+strings.Repeat("b", mostSimple-len(get("/c", "X-A: ")))), simple: true},
		{name: "a long head behind a simple one", ask: get("/1") + get("/c", "X-A: "+strings.Repeat("b", mostSimple)), more: 1},
		{name: "HTTP/1.0", ask: strings.Replace(get("/c"), "HTTP/1.1", "HTTP/1.0", 1)},
		{name: "absolute form", ask: strings.Replace(get("/c"), "/c", "http://a.example/c", 1)},
		{name: "small letters", ask: get("/c", "x-a: b", "user-agent: x", "ACCEPT-ENCODING: gzip"), simple: true},
		{name: "headers twice in a request", ask: get("/c", "X-A: b", "x-a: c", "Cookie: a", "Cookie: b", "X-B:", "X-C: \t d \t"), simple: true},
		{name: "Pragma", ask: get("/c", "Pragma: no-cache"), simple: true},
		{name: "X-Forwarded-For", ask: get("/c", "X-Forwarded-For: 192.0.2.1")},
		{name: "Forwarded", ask: get("/c", "forwarded: for=192.0.2.1")},
		{name: "X_Real_IP", ask: get("/c", "X_Real_IP: 192.0.2.1")},
		{name: "an underscore", ask: get("/c", "X_A: b", "Content_Length: 5"), simple: true},
		{name: "TE", ask: get("/c", "TE: trailers")},
		{name: "a query", ask: strings.Replace(get("/c"), "/c", "/c?a=%zz&b=c;d?[]", 1), simple: true},
		{name: "an empty query", ask: strings.Replace(get("/c"), "/c", "/c?", 1), simple: true},
		{name: "a fragment", ask: strings.Replace(get("/c"), "/c", "/c#a", 1)},
		{name: "IPv6", ask: hosted("[::1]:80"), simple: true},
		{name: "IPv4", ask: hosted("192.0.2.7"), simple: true},
		{name: "a host with a port", ask: hosted("a.example:8080"), simple: true},
		{name: "a host with an empty port", ask: hosted("a.example:"), simple: true},
		{name: "a dot at the end", ask: hosted("a.example."), simple: true},
		{name: "mixed case", ask: hosted("A.eXample.:80"), simple: true},
		{name: "a host with an underscore", ask: hosted("a_b.example"), simple: true},
		{name: "a bad host", ask: hosted("a.example, b.example")},
		{name: "two hosts", ask: get("/c", "Host: a.example")},
		{name: "no host", ask: "GET /c HTTP/1.1\r\n\r\n"},
		{name: "a space before the colon", ask: get("/c", "X-A : b")},
		{name: "a folded line", ask: get("/c", "X-A: b", " c")},
		{name: "a bare LF", ask: get("/c", "X-A: b\nX-B: c")},
		{name: "OPTIONS *", ask: strings.Replace(get("*"), "GET", "OPTIONS", 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			target := newRawTarget(t, map[string]rawAnswer{})
			if c.target.text != "" || c.target.over {
				target.answers["/c"] = c.target
			}
			down, err := freeport.Addr()
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"a.example", "::1", "192.0.2.7", "a_b.example"} {
				w.site(name, target.addr(), grammar.ProxyOptions{})
			}
			w.site("down.example", down, grammar.ProxyOptions{})
			dialled := func(err error) func(context.Context, Call, func()) (*Upstream, error) {
				return func(context.Context, Call, func()) (*Upstream, error) { return nil, err }
			}
			w.site("away.example", "", grammar.ProxyOptions{}).Dial = dialled(ErrAway)
			w.site("removed.example", "", grammar.ProxyOptions{}).Dial = dialled(ErrRemoved)
			w.site("full.example", "", grammar.ProxyOptions{}).Enter = func(*Visit) (func(error), func(uint64, uint64), error) { return nil, nil, ErrLimit }
			release := make(chan struct{})
			slow := newRawTarget(t, map[string]rawAnswer{"/c": {then: func(*net.TCPConn) { <-release }}})
			t.Cleanup(func() { close(release) })
			w.site("slow.example", slow.addr(), grammar.ProxyOptions{AnswerTime: grammar.Duration(50 * time.Millisecond)})
			var lines [2][]string
			for i, simple := range []bool{false, true} {
				ask := c.ask
				if ask == "" {
					ask = get("/c")
				}
				method, _, _ := strings.Cut(ask, " ")
				u, reads := w.client(simple)
				io.WriteString(u, ask)
				for _, p := range c.pieces {
					<-reads
					io.WriteString(u, p)
				}
				over := false
				for range 1 + c.more {
					if !over {
						var answer []string
						answer, over = told(u, method, c.any)
						lines[i] = append(lines[i], answer...)
					}
				}
				said := target.head("/c")
				if simple && said != nil && bytes.Contains(said, []byte("\r\nx-simple: y\r\n")) != c.simple {
					t.Errorf("the target got %q; served as simple is to be %v", said, c.simple)
				}
				if said != nil {
					q, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(said)))
					if err != nil {
						t.Fatal(err)
					}
					lines[i] = append(lines[i], fmt.Sprintf("target: %s %s %s %s %v %d %v", q.Method, q.RequestURI, q.Host, q.Proto, q.Header, q.ContentLength, q.TransferEncoding))
				}
				if !over {
					if _, err := io.WriteString(u, get("/next")); err == nil {
						answer, _ := told(u, "GET", false)
						lines[i] = append(lines[i], "next: "+answer[0])
					}
				}
			}
			if !slices.Equal(lines[0], lines[1]) {
				t.Errorf("served by net/http:\n%.2000q\nserved as a simple request:\n%.2000q", lines[0], lines[1])
			}
		})
	}
}

// TestMixedBehindSimple: a request that says its end in two ways is refused also behind one whose answer it did not wait for. net/http alone
// would serve it as the last one of its connection.
func TestMixedBehindSimple(t *testing.T) {
	w := newWorld(t)
	target := newRawTarget(t, nil)
	w.site("a", target.addr(), grammar.ProxyOptions{})
	u, _ := w.client(true)
	u.ask("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := u.answer("the second"); resp.StatusCode != http.StatusBadRequest || !resp.Close {
		t.Errorf("the second got %d", resp.StatusCode)
	}
	if target.head("/2") != nil || target.head("/3") != nil {
		t.Error("the target got it, or what is in it")
	}
}

// TestUpgradeBehindSimple: a connection leaves HTTP behind simple requests, with all that was sent at once.
func TestUpgradeBehindSimple(t *testing.T) {
	w := newWorld(t)
	target := newRawTarget(t, map[string]rawAnswer{"/socket": {text: "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", then: func(c *net.TCPConn) { io.Copy(c, c) }}})
	w.site("a", target.addr(), grammar.ProxyOptions{})
	for _, at := range []string{"at once", "later"} {
		u, _ := w.client(true)
		const first = "GET /1 HTTP/1.1\r\nHost: a\r\nx-simple: y\r\n\r\n"
		const upgrade = "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello "
		if at == "at once" {
			u.ask(first + upgrade)
		} else {
			u.ask(first)
			io.WriteString(u, upgrade)
		}
		if !bytes.Contains(target.head("/1"), []byte("x-simple")) {
			t.Errorf("%s: the first was not served as a simple one", at)
		}
		resp, err := http.ReadResponse(u.r, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%s: %v, %v", at, resp, err)
		}
		io.WriteString(u, "world")
		u.CloseWrite()
		if got, err := io.ReadAll(u.r); err != nil || string(got) != "hello world" {
			t.Errorf("%s: %q, %v", at, got, err)
		}
	}
}
