package web

import (
	"bufio"
	"bytes"
	"io"
	"math/rand"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"reverser/internal/grammar"
)

// simpleHeads are requests that are simple, and some that nearly are.
var simpleHeads = []string{
	"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
	"HEAD /x/y.html?q=1&r=%zz HTTP/1.1\r\nhost:a.example:80\r\nAccept: */*\r\nCookie: a=b\r\nCookie: c\r\n\r\n",
	"GET /a?b HTTP/1.1\r\nHost: A.Example.\r\nUser-Agent: x (y) \t\r\nX_y: \xc3\xbc\r\nX-Empty:\r\nConnection: close\r\n\r\n",
	"GET /!$&'()*+,=:@~_- HTTP/1.1\r\nConnection: Keep-Alive\r\nHost: [2001:db8::1]:8080\r\nPragma: no-cache\r\n\r\n",
	"GET /? HTTP/1.1\r\nHost: 192.0.2.1\r\nAuthorization: Basic YTpi\r\nRange: bytes=0-1\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a.example\r\nContent_Length: 5\r\nTransfer-Encoding : chunked\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, foo\r\nFoo: x\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a.example\r\nX_Forwarded_For: 192.0.2.9\r\nForwarded: for=x\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\r\n c\r\nUpgrade: x\r\nExpect: 100-continue\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\rX-B: c\nX-C: d\x00\r\n\r\n",
	"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
	"GET //a/../b/./%2e;c\\ HTTP/1.1\r\nHost: a.example\r\n\r\n",
	"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n",
	"\r\nGET  / HTTP/1.1\r\n Host: a.example\r\n\r\n",
}

func FuzzParseSimple(f *testing.F) {
	for _, h := range simpleHeads {
		f.Add([]byte(h))
	}
	f.Fuzz(func(t *testing.T, head []byte) { checkSimple(t, head) })
}

// TestParseSimple: what mutations of heads make of them is read by everybody in the same way, or not simple.
func TestParseSimple(t *testing.T) {
	parts := []string{"\r\n", "\n", "\r", " ", "\t", ":", ",", "/", "/.", "//", "?", "#", "%2e", ";", "\\", "@", "*", "[", "]", "\x00", "\x7f", "\x80", "\xff",
		"\r\n\r\n", "\r\n ", "Host: b.example\r\n", "Content-Length: 5\r\n", "content-length:0\r\n", "Transfer-Encoding: chunked\r\n", "Upgrade: websocket\r\n",
		"Connection: upgrade\r\n", "Connection: close\r\n", "Expect: 100-continue\r\n", "TE: trailers\r\n", "Trailer: x\r\n", "X-Forwarded-For: y\r\n", "http://b.example",
		"HTTP/1.0", "HTTP/1.1", "GET ", "POST ", "_", "A", "Cookie: x\r\n", "GET /admin HTTP/1.1\r\nHost: b.example\r\n\r\n"}
	if simple := mutate(t, simpleHeads, parts, checkSimple); simple < 2000 {
		t.Errorf("%d heads were simple: too few to say anything", simple)
	}
}

// mutate checks what parts, put anywhere into texts, make of them. It returns how many were accepted.
func mutate(t *testing.T, texts, parts []string, check func(t *testing.T, text []byte) bool) (accepted int) {
	r := rand.New(rand.NewSource(1))
	for i := range 20000 {
		text := []byte(texts[i%len(texts)])
		for range r.Intn(3) + i/len(texts)%2 {
			at := r.Intn(len(text) + 1)
			part := parts[r.Intn(len(parts))]
			switch end := min(at+r.Intn(3), len(text)); r.Intn(4) {
			case 0:
				text = slices.Insert(text, at, []byte(part)...)
			case 1:
				text = slices.Replace(text, at, end, []byte(part)...)
			case 2:
				text = slices.Delete(text, at, end)
			case 3: // between two lines
				if n := bytes.IndexByte(text[at:], '\n'); n >= 0 {
					text = slices.Insert(text, at+n+1, []byte(part)...)
				}
			}
		}
		if check(t, text) {
			accepted++
		}
		if t.Failed() {
			break
		}
	}
	return accepted
}

// checkSimple compares what parseSimple reads in a head with what net/http and the checks of a request read there. It reports whether the
// head is simple.
func checkSimple(t *testing.T, head []byte) bool {
	const before = "before"
	q, made, ok := parseSimple(head, []byte(before))
	if !ok {
		return false
	}
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%q: "+format, append([]any{head}, args...)...)
	}
	if bytes.Index(head, []byte("\r\n\r\n"))+4 != len(head) {
		fail("it does not end with its first empty line")
	}
	r := readWhole(head)
	if r == nil {
		fail("net/http does not read it")
		return true
	}
	if r.Method != q.method || r.RequestURI != q.target || r.Host != q.host || r.URL.EscapedPath() != q.path || r.URL.Path != q.path || r.URL.RequestURI() != q.target {
		fail("%+v; net/http reads %s %s of %s, path %s", q, r.Method, r.RequestURI, r.Host, r.URL.EscapedPath())
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !r.ProtoAtLeast(1, 1) || r.ProtoMajor > 1 {
		fail("%s of %s is simple", r.Method, r.Proto)
	}
	if ambiguous(q.path) {
		fail("the path can be read in several ways")
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 || len(r.Trailer) > 0 {
		fail("it has a body")
	}
	for name := range r.Header {
		switch as := strings.ReplaceAll(name, "_", "-"); {
		case isHop(name) && name != "Connection", speaksOfClient(as), name == "Content-Length", name == "Expect", name == "Host", name == "Http2-Settings":
			fail("the header %s is simple", name)
		}
	}
	if r.Close != q.last {
		fail("last is %v; net/http says %v", q.last, r.Close)
	}
	if err := checkForm(r); err != nil {
		fail("%v", err)
	}
	if h, err := grammar.RequestHost(q.host); err == nil {
		if other, err := grammar.RequestHost(r.Host); err != nil || h != other {
			fail("the host is %s; of net/http %s, %v", h, other, err)
		}
	}
	rest, found := bytes.CutPrefix(made, []byte(before))
	if !found {
		fail("what was in front of what it makes is %q", made)
		return true
	}
	m := readWhole(append(slices.Clone(rest), "\r\n"...))
	if m == nil {
		fail("net/http does not read %q", rest)
		return true
	}
	r.Header.Del("Connection")
	if m.Method != r.Method || m.RequestURI != r.RequestURI || m.Host != r.Host || m.ContentLength != 0 || !reflect.DeepEqual(m.Header, r.Header) {
		fail("the target gets %q: %v", rest, m.Header)
	}
	return true
}

// readWhole reads a request as net/http does; nil: there is none, or something is left.
func readWhole(head []byte) *http.Request {
	br := bufio.NewReader(bytes.NewReader(head))
	r, err := http.ReadRequest(br)
	if err != nil {
		return nil
	}
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		return nil
	}
	return r
}
