package web

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/sys"
)

// Most requests are simple: a GET or HEAD of HTTP/1.1, whose head comes in one piece and can be read in one way only, for a service that
// asks for nothing special. Such a request is answered here, by one goroutine and with few allocations, in a third of the time that
// net/http's server needs. Everything else is net/http's: a connection is handed over with the first request that is not simple, whatever
// makes it so, and before anything was done for it. So what is refused, and how, is decided in one place.

// mostSimple is how long the head of a simple request may be.
const mostSimple = 4 << 10

// simple is a connection whose requests so far were simple.
type simple struct {
	server  *Server
	client  *Client
	raw     syscall.RawConn // of the client's connection, to see whether the client has left
	in      *bufio.Reader
	out     *bufio.Writer // to the client; nil between two exchanges
	ctx     context.Context
	cancel  context.CancelCauseFunc
	head    []byte        // of the present request, as the target gets it
	request *http.Request // what the last answer was read for
	from    netip.Addr    // the client's address; the zero value: nobody knows it
	node    string        // the same, as Forwarded has it
	until   time.Time     // the deadline that the client's connection has for reads
	last    bool          // the present request is the last one

	asked    atomic.Bool   // an exchange is under way
	answers  atomic.Uint32 // how many were begun
	watching atomic.Bool   // the timer runs
	watch    *time.Timer
	seen     uint32        // answers at the last check; only the checks use it, and what follows
	pause    time.Duration // until the next check

	mu      sync.Mutex
	present *exchange // guarded by mu
}

// simpleRequest is what the head of a simple request says.
type simpleRequest struct {
	method, target string // target: the path with the query, as the client wrote it
	path, host     string
	last           bool // of its connection
}

var errLeft = errors.New("the client has left")

// serveSimple serves a connection for as long as its requests are simple. It reports false where the connection is net/http's from now on.
func (s *Server) serveSimple(c *Client) (over bool) {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	m := &simple{server: s, client: c, raw: raw, in: bufio.NewReaderSize(c.Conn, mostSimple), from: c.addr()}
	if m.node = m.from.String(); m.from.Is6() {
		m.node = `"[` + m.node + `]"`
	}
	m.ctx, m.cancel = context.WithCancelCause(s.life)
	defer m.cancel(nil)
	defer func() {
		if p := recover(); p != nil {
			over = true
			if s.Panicked != nil && p != http.ErrAbortHandler {
				s.Panicked(fmt.Sprintf("panic serving %v: %v\n%s", c.RemoteAddr(), p, debug.Stack()))
			}
			c.Reset()
		}
	}()
	m.watch = time.AfterFunc(time.Hour, m.looked)
	m.watch.Stop()
	c.onClose(func() { m.cancel(net.ErrClosed); m.watch.Stop() })
	c.paid.Store(true)
	for wait := headerTime; ; wait = idleTime {
		if err := m.await(wait); err != nil {
			c.Close()
			return true
		}
		raw, _ := m.in.Peek(m.in.Buffered())
		x, q, size := m.take(raw)
		if x == nil {
			c.ahead = bytes.Clone(raw)
			c.paid.Store(false)
			m.in, m.head = nil, nil // the connection may live long, and has its own
			c.SetReadDeadline(time.Time{})
			return false
		}
		asked := raw[:size] // until more is read
		switch complete := m.serve(x, q, asked); {
		case !complete:
			c.Reset() // an answer without a length would look complete
			return true
		case m.last, m.ctx.Err() != nil: // an order came when the answer was complete
			c.Close()
			return true
		}
		m.in.Discard(size)
	}
}

// await waits until something of the next request is there.
func (m *simple) await(limit time.Duration) error {
	if m.in.Buffered() > 0 {
		return nil
	}
	c := m.client
	c.setIdle(true)
	defer c.setIdle(false)
	until := time.Now().Add(limit)
	for {
		// A deadline is set when there is none, or when one has passed, and not for each request.
		if m.until.IsZero() || m.until.After(until) {
			m.until = until
			if err := c.Conn.SetReadDeadline(until); err != nil {
				return err
			}
		}
		if m.server.drained.Load() && !c.hasAsked() { // Drain may have set its deadline before this one was
			return net.ErrClosed
		}
		_, err := m.in.Peek(1)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(until): // an older one, or Drain's
			m.until = time.Time{}
		default:
			return err
		}
	}
}

// take returns an exchange for the request at the beginning of raw, if it is simple and its service asks for nothing special, and how long
// its head is.
func (m *simple) take(raw []byte) (*exchange, simpleRequest, int) {
	size := bytes.Index(raw, endOfHead) + len(endOfHead)
	if size < len(endOfHead) || bytes.Count(raw[:size], endOfHead[:2]) > mostLines {
		return nil, simpleRequest{}, 0
	}
	q, fields, ok := parseSimple(raw[:size], m.head[:0])
	m.head = fields
	if !ok {
		return nil, q, 0
	}
	host, err := grammar.RequestHost(q.host)
	if err != nil {
		return nil, q, 0
	}
	site := m.server.Find(false, host, q.path)
	if site == nil {
		return nil, q, 0
	}
	options := site.options()
	if !ordinary(options) || site.over() != nil || site.recorder() != nil {
		return nil, q, 0
	}
	element := "host="
	if m.from.IsValid() {
		m.head = append(m.head, "X-Real-Ip: "...)
		m.head = m.from.AppendTo(m.head)
		m.head = append(m.head, "\r\nX-Forwarded-For: "...)
		m.head = m.from.AppendTo(m.head)
		m.head = append(m.head, "\r\n"...)
		element = ";host="
	}
	m.head = append(m.head, "X-Forwarded-Proto: http\r\nX-Forwarded-Host: "...)
	m.head = append(m.head, q.host...)
	m.head = append(m.head, "\r\nForwarded: "...)
	if m.from.IsValid() {
		m.head = append(m.head, "for="...)
		m.head = append(m.head, m.node...)
	}
	m.head = append(m.head, element...)
	m.head = append(m.head, quoted(q.host)...)
	m.head = append(m.head, ";proto=http\r\n\r\n"...)
	return &exchange{server: m.server, client: m.client, site: site, options: options, id: newID(), host: host, head: m.head}, q, size
}

// ordinary reports whether nothing is asked for a service but to pass requests on.
func ordinary(o *grammar.ProxyOptions) bool {
	return !o.OneClient && !o.H2C && !o.Inspect && o.HostHeader == "" && len(o.SetHeader) == 0 && len(o.RemoveHeader) == 0 && len(o.TrustedProxies) == 0 && len(o.BasicAuth) == 0
}

// parseSimple reads the head of a request. It appends to b the head that the target gets, as far as the client determines it. ok is false
// unless the request is simple: then no server reads anything else in it.
func parseSimple(head, b []byte) (q simpleRequest, _ []byte, ok bool) {
	line, rest, _ := strings.Cut(string(head), "\r\n")
	method, line, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(line, " ")
	path, query, _ := strings.Cut(target, "?")
	if method != http.MethodGet && method != http.MethodHead || version != "HTTP/1.1" || !simplePath(path) || !all(query, isQuery) {
		return q, b, false
	}
	q.method, q.target, q.path = method, target, path
	fields := b
	for {
		field, more, found := strings.Cut(rest, "\r\n")
		if !found {
			return q, b, false
		}
		if rest = more; field == "" {
			break
		}
		name, value, ok := cutField(field)
		if !ok {
			return q, b, false
		}
		switch known := http.CanonicalHeaderKey(name); {
		case known == "Host":
			if q.host != "" || value == "" {
				return q, b, false
			}
			q.host = value
			continue
		case known == "Connection":
			switch {
			case strings.EqualFold(value, "close"):
				q.last = true
			case !strings.EqualFold(value, "keep-alive"):
				return q, b, false
			}
			continue
		case isHop(known), speaksOfClient(known), known == "Content-Length", known == "Expect", known == "Http2-Settings":
			return q, b, false
		case known == "Authorization" && loginOfConnection([]string{value}):
			return q, b, false
		}
		fields = append(fields, name...)
		fields = append(fields, ": "...)
		fields = append(fields, value...)
		fields = append(fields, "\r\n"...)
	}
	if rest != "" || q.host == "" {
		return q, b, false
	}
	// The first line and Host go in front of what was appended.
	first := len(q.method) + 1 + len(q.target) + len(" HTTP/1.1\r\nHost: ") + len(q.host) + 2
	n, kept := len(b), len(fields)-len(b)
	fields = slices.Grow(fields, first)[:len(fields)+first]
	copy(fields[n+first:], fields[n:n+kept])
	at := fields[:n]
	at = append(at, q.method...)
	at = append(at, ' ')
	at = append(at, q.target...)
	at = append(at, " HTTP/1.1\r\nHost: "...)
	at = append(at, q.host...)
	_ = append(at, "\r\n"...)
	return q, fields, true
}

// simplePath reports whether a path needs no decoding and can be read in one way only.
func simplePath(p string) bool {
	return strings.HasPrefix(p, "/") && all(p, isPath) && !ambiguous(p)
}

func all(s string, is func(c byte) bool) bool {
	for i := range len(s) {
		if !is(s[i]) {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isPath(c byte) bool  { return isAlphanumeric(c) || strings.IndexByte("/-._~!$&'()*+,=:@", c) >= 0 }
func isQuery(c byte) bool { return '!' <= c && c <= '~' && strings.IndexByte("\"#<>\\^`{|}", c) < 0 }

// serve carries an exchange. It reports whether the connection can go on: the answer, or a page in its place, is complete.
func (m *simple) serve(x *exchange, q simpleRequest, asked []byte) (complete bool) {
	m.last = q.last
	m.client.paid.Store(false)
	m.out = writers.Get().(*bufio.Writer)
	m.out.Reset(m.client.Conn)
	defer func() {
		m.out.Reset(nil)
		writers.Put(m.out)
		m.out = nil
	}()
	var err error
	if x.visit, err = m.client.visit(x.site); err == nil {
		m.setPresent(x)
		defer m.setPresent(nil)
		err = x.visit.begin(x, func(why error) { m.abort(x, why) })
	}
	if err != nil {
		return m.page(asked, func(w http.ResponseWriter, r *http.Request) { x.refuse(w, r, err) })
	}
	defer func() { x.visit.end(x, complete) }()
	pool := x.site.poolOf(x.visit, x.options)
	x.ctx, x.cancel, x.answerTime, x.out = m.ctx, m.cancel, pool.answerTime, m.out
	m.look()
	defer m.asked.Store(false)
	res, err := pool.ask(x, m.asking(q.method), m.early)
	if err != nil {
		if m.ctx.Err() != nil {
			return false
		}
		return m.page(asked, func(w http.ResponseWriter, r *http.Request) { x.failed(w, r, err) })
	}
	defer res.Body.Close()
	return m.answer(x, q, res) == nil
}

func (m *simple) setPresent(x *exchange) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.present = x
}

// abort ends the connection under an exchange, unless that one is over: what comes then may be of another service.
func (m *simple) abort(x *exchange, why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.present == x {
		m.cancel(why)
	}
}

// asking returns what answers are read for. It is the same for all requests of a method.
func (m *simple) asking(method string) *http.Request {
	if m.request == nil || m.request.Method != method {
		m.request = (&http.Request{Method: method, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(m.ctx)
	}
	return m.request
}

// A client that waits for an answer may leave. That is checked every lookTime, and every lookRarely when it has waited for long.
const (
	lookTime   = 250 * time.Millisecond
	lookRarely = time.Second
)

// look begins to check whether the client has left. The checks go on for a moment behind an exchange, so that the timer is not set for each one.
func (m *simple) look() {
	m.answers.Add(1)
	m.asked.Store(true)
	if m.watching.CompareAndSwap(false, true) {
		m.watch.Reset(lookTime)
	}
}

func (m *simple) looked() {
	if !m.asked.Load() {
		m.watching.Store(false)
		if !m.asked.Load() || !m.watching.CompareAndSwap(false, true) { // one may have begun meanwhile
			return
		}
	}
	gone := false
	switch err := m.raw.Control(func(fd uintptr) { gone = sys.HungUp(int(fd)) }); {
	case gone && m.asked.Load():
		m.cancel(errLeft)
	case err == nil:
		if n := m.answers.Load(); n != m.seen {
			m.seen, m.pause = n, lookTime
		} else {
			m.pause = min(2*m.pause, lookRarely)
		}
		m.watch.Reset(m.pause)
	}
}

// early passes an informational answer on.
func (m *simple) early(code int, h http.Header) {
	m.line(code)
	h.WriteSubset(m.out, withoutLength)
	m.out.WriteString("\r\n")
	m.out.Flush()
}

func (m *simple) line(code int) {
	text := http.StatusText(code)
	if text == "" {
		text = fmt.Sprintf("status code %d", code)
	}
	b := append(m.out.AvailableBuffer(), "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(code), 10)
	b = append(b, ' ')
	b = append(b, text...)
	m.out.Write(append(b, "\r\n"...))
}

func date() string { return time.Now().UTC().Format(http.TimeFormat) }

// finish sends the last bytes of an answer.
func (m *simple) finish() error {
	m.client.paid.Store(true)
	return m.out.Flush()
}

// ends reports whether the answer whose head is written is the last one of its connection. From then on it is.
func (m *simple) ends() bool {
	m.last = m.last || m.server.drained.Load()
	return m.last
}

var (
	withoutLength = map[string]bool{"Content-Length": true}
	notModified   = map[string]bool{"Content-Length": true, "Content-Type": true}
)

// answer passes an answer on.
func (m *simple) answer(x *exchange, q simpleRequest, res *http.Response) error {
	bodiless := q.method == http.MethodHead || res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified
	unknown := res.ContentLength < 0
	withoutHops(res.Header)
	x.answered(res)
	// The length is in the header, unless Connection names it: without any, a body would be read as further answers, of other services too.
	chunked := !bodiless && (unknown || len(res.Header["Content-Length"]) == 0)
	m.line(res.StatusCode)
	var without map[string]bool
	switch {
	case chunked, res.StatusCode == http.StatusNoContent: // RFC 9110, section 8.6
		without = withoutLength
	case res.StatusCode == http.StatusNotModified: // what net/http leaves out, too: no client has to know that such a length is not the answer's
		without = notModified
	}
	res.Header.WriteSubset(m.out, without)
	if len(res.Header["Date"]) == 0 {
		m.out.WriteString("Date: " + date() + "\r\n")
	}
	if m.ends() {
		m.out.WriteString("Connection: close\r\n")
	}
	if !chunked {
		m.out.WriteString("\r\n")
		if !bodiless {
			if err := m.copy(x, m.out, res.Body); err != nil {
				return err
			}
		}
		return m.finish()
	}
	for name := range res.Trailer {
		m.out.WriteString("Trailer: " + name + "\r\n")
	}
	m.out.WriteString("Transfer-Encoding: chunked\r\n\r\n")
	body := httputil.NewChunkedWriter(m.out)
	if err := m.copy(x, body, res.Body); err != nil {
		return err
	}
	body.Close()
	res.Trailer.Write(m.out)
	m.out.WriteString("\r\n")
	return m.finish()
}

// copy passes a body on. One that an order or a stop has cut off is not complete, whatever its end looks like.
func (m *simple) copy(x *exchange, w io.Writer, body io.Reader) error {
	return cmp.Or(copyBody(countedWriter{w, x.visit}, body), m.ctx.Err())
}

// countedWriter counts the bytes of an answer.
type countedWriter struct {
	io.Writer
	v *Visit
}

func (w countedWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	w.v.count(0, n)
	return n, err
}

// page has a page written in the place of an answer.
func (m *simple) page(asked []byte, write func(http.ResponseWriter, *http.Request)) bool {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(asked)))
	if err != nil {
		return false
	}
	w := &paper{header: make(http.Header)}
	write(w, r.WithContext(m.ctx))
	m.line(w.status)
	w.header.Set("Date", date())
	if m.ends() {
		w.header.Set("Connection", "close")
	}
	w.header.Write(m.out)
	m.out.WriteString("\r\n")
	m.out.Write(w.body)
	return m.finish() == nil
}

// paper is what a page is written on.
type paper struct {
	header http.Header
	status int
	body   []byte
}

func (p *paper) Header() http.Header    { return p.header }
func (p *paper) WriteHeader(status int) { p.status = status }
func (p *paper) Write(b []byte) (int, error) {
	p.body = append(p.body, b...)
	return len(b), nil
}
