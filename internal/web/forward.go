package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"reverser/internal/grammar"
)

// exchange is one request and its answer.
type exchange struct {
	server   *Server
	client   *Client
	site     *Site // nil: not found yet
	named    bool  // there is none, and yet a service has the name
	visit    *Visit
	ctx      context.Context // of the request; ends with the visit, too
	options  *grammar.ProxyOptions
	id       requestID
	host     string
	last     bool                  // of its connection
	body     *whole                // of the request; nil: it has none, or its connection does not depend on it
	bad      atomic.Pointer[error] // why the body of the request is malformed; nil: so far it is not
	sending  *sending              // the body on its way to the target; nil: there is none
	user     string                // who has given a password
	secure   bool                  // it came by TLS
	old      bool                  // the client speaks HTTP/1.0
	upstream atomic.Pointer[Upstream]
	resumes0 atomic.Uint64         // of upstream, when the exchange got it
	begun    atomic.Bool           // the head of the answer is there
	broke    atomic.Pointer[error] // why the answer of the target broke off; nil: it did not, or that was decided here
	longHead atomic.Int64          // bytes of a long head that it holds; see holdHead
	paged    bool                  // a page takes the place of the answer: nothing of it came from the target

	cancel     context.CancelCauseFunc // ends ctx
	answerTime time.Duration           // that the target has for the head of its answer

	head      []byte                   // of the request, as the target gets it; nil: net/http writes it
	out       *bufio.Writer            // to the client of a simple exchange; nil: it is none
	answer    *http.ResponseController // to the client of any other
	proxied   bool                     // ReverseProxy carries the exchange, and flushes it
	unflushed bool                     // it has bytes that the client was not sent yet
}

// flush sends the client what there is of the answer. ReverseProxy does so from a goroutine of its own, and must be the only one.
func (x *exchange) flush() {
	if x.unflushed && !x.proxied {
		x.unflushed = false
		if x.out != nil {
			x.out.Flush()
			return
		}
		x.answer.Flush()
	}
}

// took notes the connection to the target that the exchange has got.
func (x *exchange) took(up *Upstream) {
	if up.Resumes != nil {
		x.resumes0.Store(up.Resumes())
	}
	x.visit.served.Store(true)
	up.user.Store(x)
	x.upstream.Store(up)
}

// resumed counts how often the connection to the target stood still and went on under the exchange.
func (x *exchange) resumed() uint64 {
	if up := x.upstream.Load(); up != nil && up.Resumes != nil {
		return up.Resumes() - x.resumes0.Load()
	}
	return 0
}

type exchangeKey struct{}

// serve carries the exchange to the target.
func (x *exchange) serve(w http.ResponseWriter, r *http.Request) {
	x.options = x.site.options()
	if !x.authorized(w, r) {
		return
	}
	var err error
	if x.visit, err = x.client.visit(x.site); err != nil {
		x.refuse(w, r, err)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	if err := x.visit.begin(x, cancel); err != nil {
		x.refuse(w, r, err)
		return
	}
	pool := x.site.poolOf(x.visit, x.options)
	complete := false
	defer func() {
		x.visit.end(x, complete)
		pool.tidy()
		if !complete && r.ProtoMajor < 2 {
			x.client.Reset() // an answer without a length would look complete
		}
	}()
	x.old = !r.ProtoAtLeast(1, 1)
	x.ctx, x.cancel, x.answer, x.answerTime = ctx, cancel, http.NewResponseController(w), pool.answerTime
	if r.ProtoMajor < 2 && r.ContentLength != 0 {
		x.answer.EnableFullDuplex()
		x.body = &whole{ReadCloser: r.Body}
		r = r.WithContext(r.Context()) // a copy: by the type of its own body, net/http knows whether a connection can go on
		r.Body = x.body
	}
	w = counting{w, x}
	if pool.http2 == nil && !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade") {
		x.carry(w, r, pool)
	} else {
		x.carryAny(w, r, pool)
	}
	complete = ctx.Err() == nil || errors.Is(context.Cause(ctx), errNotTaken) // it got the page that says so
	if complete && x.last && x.body != nil && !x.body.over.Load() {
		x.client.early.Store(true)
		x.answer.SetReadDeadline(time.Time{}) // for as long as Client allows
	}
}

// carryAny carries a request of any kind to a target of any kind.
func (x *exchange) carryAny(w http.ResponseWriter, r *http.Request, pool *pool) {
	x.proxied = true
	ctx := context.WithValue(x.ctx, exchangeKey{}, x)
	proxy := httputil.ReverseProxy{Rewrite: x.rewrite, Transport: pool, BufferPool: buffers{}, ErrorLog: silent, ModifyResponse: x.answered, ErrorHandler: x.failed}
	if pool.http2 != nil {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			Got1xxResponse: countInterim(),
			GotConn: func(info httptrace.GotConnInfo) {
				if up, ok := info.Conn.(*Upstream); ok {
					x.took(up)
				}
			},
			WroteRequest: func(httptrace.WroteRequestInfo) { // net/http does not always read a body to its end
				if x.sending != nil {
					x.sending.arm(false)
				}
			},
		})
		proxy.Transport = bounded{pool.http2}
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
}

// carry is what carryAny does, for the most frequent case in fewer steps: the target speaks HTTP/1.1, and the connection will not leave HTTP.
func (x *exchange) carry(w http.ResponseWriter, r *http.Request, pool *pool) {
	out := r.WithContext(x.ctx)
	u := *r.URL
	out.URL, out.Header, out.Close = &u, endToEnd(r.Header), false
	if httpguts.HeaderValuesContainsToken(r.Header["Te"], "trailers") {
		out.Header["Te"] = []string{"trailers"}
	}
	if out.Body = nil; r.ContentLength != 0 {
		body := &borrowed{ReadCloser: r.Body}
		defer body.Close() // who sends it may be at it longer than this
		out.Body = body
	}
	x.rewrite(&httputil.ProxyRequest{In: r, Out: out})
	header := w.Header()
	res, err := pool.ask(x, out, func(code int, h http.Header) {
		add(header, h)
		w.WriteHeader(code)
		clear(header)
	})
	if err != nil {
		x.failed(w, out, err)
		return
	}
	withoutHops(res.Header)
	x.answered(res)
	add(header, res.Header)
	announced := len(res.Trailer)
	if announced > 0 {
		header.Add("Trailer", strings.Join(slices.Collect(maps.Keys(res.Trailer)), ", "))
	}
	w.WriteHeader(res.StatusCode)
	err = copyBody(w, res.Body)
	res.Body.Close()
	if err != nil {
		panic(http.ErrAbortHandler) // the client must not take it for complete
	}
	if len(res.Trailer) == 0 {
		return
	}
	x.answer.Flush() // or net/http gives the answer a length, and then it can have no trailer
	prefix := ""
	if len(res.Trailer) != announced {
		prefix = http.TrailerPrefix // some were not announced
	}
	for name, values := range res.Trailer {
		for _, v := range values {
			header.Add(prefix+name, v)
		}
	}
}

func copyBody(w io.Writer, body io.Reader) error {
	if body == http.NoBody {
		return nil
	}
	b := buffers{}.Get()
	defer buffers{}.Put(b)
	for {
		n, err := body.Read(b)
		if n > 0 {
			if _, err := w.Write(b[:n]); err != nil {
				return err
			}
		}
		switch err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

// isHop reports whether a header is for the next server alone (RFC 9110, section 7.6.1), or is written anew by each.
func isHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// namedHops yields the headers that others call such.
func namedHops(h http.Header) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, v := range h["Connection"] {
			for name := range strings.SplitSeq(v, ",") {
				if name = textproto.TrimString(name); name != "" && !yield(http.CanonicalHeaderKey(name)) {
					return
				}
			}
		}
	}
}

// endToEnd returns the headers that are for the target. It shares their values.
func endToEnd(h http.Header) http.Header {
	out := make(http.Header, len(h)+8)
	for name, values := range h {
		if !isHop(name) {
			out[name] = slices.Clip(values)
		}
	}
	for name := range namedHops(h) {
		delete(out, name)
	}
	return out
}

func withoutHops(h http.Header) {
	for name := range namedHops(h) {
		delete(h, name)
	}
	for name := range h {
		if isHop(name) {
			delete(h, name)
		}
	}
}

func add(to, from http.Header) {
	for name, values := range from {
		if to[name] == nil {
			to[name] = values
		} else {
			to[name] = append(to[name], values...)
		}
	}
}

// borrowed is the body of a request for those who may only read it, and that only while its handler runs.
type borrowed struct {
	io.ReadCloser
	over atomic.Bool
}

func (b *borrowed) Read(p []byte) (int, error) {
	if b.over.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.ReadCloser.Read(p)
}

func (b *borrowed) Close() error {
	b.over.Store(true)
	return nil
}

var silent = log.New(io.Discard, "", 0)

// buffers lends ReverseProxy what it copies with.
type buffers struct{}

var bufferPool = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

func (buffers) Get() []byte  { return *bufferPool.Get().(*[]byte) }
func (buffers) Put(b []byte) { bufferPool.Put(&b) }

// rewrite makes the request that the target gets.
func (x *exchange) rewrite(pr *httputil.ProxyRequest) {
	out, o := pr.Out, x.options
	out.URL.Scheme, out.URL.Host = "http", "target" // where Dial leads; the transport keeps one list of connections
	out.URL.Opaque = ""                             // it would be written in the place of the path; check lets none through
	out.Host = pr.In.Host
	out.URL.RawQuery = pr.In.URL.RawQuery      // what the client wrote: net/http's idea of a good query is not the target's
	if withoutHTTPUpgrade(out.Header); o.H2C { // HTTP/2 has no upgrades, and a server may ignore one (RFC 9113, section 8.6; RFC 9110, section 7.8)
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
	}
	x.forwarded(pr)
	if o.HostHeader != "" {
		out.Host = o.HostHeader
	}
	if len(o.SetHeader)+len(o.RemoveHeader) > 0 {
		for name := range out.Header {
			if x.changes(name) {
				delete(out.Header, name)
			}
		}
	}
	for name, value := range o.SetHeader {
		out.Header.Set(name, value)
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil // or net/http writes its own
	}
	if out.Trailer = nil; out.Body != nil && out.Body != http.NoBody {
		x.sending = &sending{ReadCloser: out.Body, x: x, said: pr.In}
		out.Body, out.Trailer = x.sending, x.announced(pr.In.Trailer)
		x.sending.trailer = out.Trailer
	}
}

// changes reports whether the service sets or removes a header. CGI does not tell X_Stage from X-Stage, and so the client could say it.
func (x *exchange) changes(name string) bool {
	same := func(other string) bool {
		return len(other) == len(name) && strings.EqualFold(dashes(other), dashes(name))
	}
	for set := range x.options.SetHeader {
		if same(set) {
			return true
		}
	}
	return slices.ContainsFunc(x.options.RemoveHeader, same)
}

func dashes(name string) string { return strings.ReplaceAll(name, "_", "-") }

// announced returns those trailers of a request that the target gets, without their values, which come behind the body. A target may take
// trailers for headers: what the client may not say in a header it may not say there.
func (x *exchange) announced(in http.Header) http.Header {
	var out http.Header
	for name := range in {
		if isHop(name) || speaksOfClient(name) || x.changes(name) {
			continue
		}
		switch name {
		case "Host", "Content-Length", "Authorization", "Cookie", "Expect", "Content-Type", "Content-Encoding", "Content-Range", "Range": // RFC 9110, section 6.5.1
			continue
		}
		if out == nil {
			out = make(http.Header)
		}
		out[name] = nil
	}
	return out
}

// withoutHTTPUpgrade removes from a request the protocols that carry further requests: behind an upgrade to one of these nobody would look
// at Host and path any more. A server may ignore an Upgrade (RFC 9110, section 7.8), and HTTP/2 no longer has one (RFC 9113, section 3.1).
// It runs behind ReverseProxy, which has left one field of Upgrade, with nothing else in Connection.
func withoutHTTPUpgrade(h http.Header) {
	h.Del("HTTP2-Settings")
	var kept []string
	for protocol := range strings.SplitSeq(h.Get("Upgrade"), ",") {
		protocol = strings.Trim(protocol, " \t")
		name, _, _ := strings.Cut(protocol, "/")
		switch strings.ToLower(name) {
		case "", "h2c", "h2", "http", "tls": // tls: RFC 2817, HTTP is spoken above it
		default:
			kept = append(kept, protocol)
		}
	}
	if len(kept) > 0 {
		h.Set("Upgrade", strings.Join(kept, ", "))
		return
	}
	h.Del("Upgrade")
	h.Del("Connection")
}

// forwarded says who the client is. What it says itself of that counts only if it is one of those who are trusted.
func (x *exchange) forwarded(pr *httputil.ProxyRequest) {
	out, in := pr.Out.Header, pr.In.Header
	client := x.client.addr()
	trusted := false
	for _, p := range x.options.TrustedProxies {
		trusted = trusted || p.Contains(client)
	}
	for name := range out {
		if speaksOfClient(name) {
			delete(out, name) // also those that CGI does not tell from ours, such as X_Forwarded_For
		}
	}
	scheme := "http"
	if pr.In.TLS != nil {
		scheme = "https"
	}
	proto, host := scheme, pr.In.Host
	var chain, forwarded []string
	if trusted {
		chain, forwarded = in["X-Forwarded-For"], in["Forwarded"]
		for name, values := range in {
			if strings.HasPrefix(name, "X-Forwarded-") || name == "X-Real-Ip" {
				out[name] = values
			}
		}
		proto, host = first(in.Get("X-Forwarded-Proto"), proto), first(in.Get("X-Forwarded-Host"), host)
	}
	element := "host=" + quoted(pr.In.Host) + ";proto=" + scheme
	if client.IsValid() {
		address := client.String()
		if _, ok := out["X-Real-Ip"]; !ok {
			out.Set("X-Real-Ip", realAddress(chain, address))
		}
		out.Set("X-Forwarded-For", strings.Join(append(chain[:len(chain):len(chain)], address), ", "))
		node := address
		if client.Is6() {
			node = `"[` + node + `]"`
		}
		element = "for=" + node + ";" + element
	}
	out.Set("X-Forwarded-Proto", proto)
	out.Set("X-Forwarded-Host", host)
	out.Set("Forwarded", strings.Join(append(forwarded[:len(forwarded):len(forwarded)], element), ", "))
	if x.user != "" {
		out.Set("X-Forwarded-User", x.user)
		out.Del("Authorization") // it was for this service's password, which is not the target's to know
	}
}

// realAddress is who the last one in a chain of trusted proxies says that it serves; without such a word, whoever has connected.
func realAddress(chain []string, connected string) string {
	if len(chain) == 0 {
		return connected
	}
	all := chain[len(chain)-1]
	last := strings.TrimSpace(all[strings.LastIndexByte(all, ',')+1:])
	if _, err := netip.ParseAddr(last); err != nil {
		return connected
	}
	return last
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// quoted is a value of RFC 7239: a host with a port, or an address, is no token.
func quoted(s string) string {
	if strings.ContainsAny(s, ":[]") {
		return `"` + s + `"`
	}
	return s
}

// speaksOfClient reports whether targets take a header for what a proxy says of a client.
func speaksOfClient(name string) bool {
	name = dashes(name)
	return len(name) >= 12 && strings.EqualFold(name[:12], "X-Forwarded-") || strings.EqualFold(name, "Forwarded") || strings.EqualFold(name, "X-Real-Ip")
}

func clientAddr(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.IPv4Unspecified()
}

// answered sees the answer before the client does.
func (x *exchange) answered(r *http.Response) error {
	if d := time.Duration(x.options.HSTS); d > 0 && x.secure && r.Header.Get("Strict-Transport-Security") == "" {
		r.Header.Set("Strict-Transport-Security", "max-age="+strconv.Itoa(int(d.Seconds())))
	}
	// ReverseProxy takes from the length of a body when to flush, which the client does not get to see.
	switch _, ours := r.Body.(*answer); {
	case ours && !x.proxied:
		x.unflushed = true // target.go flushes
	case ours, r.ContentLength > 0:
		r.ContentLength = -1 // after each write
	case r.ContentLength == 0:
		// Not at all: a call of gRPC that fails at once is a head that ends its stream, and a flush would make it a head that does not.
	}
	if x.options.H2C && r.StatusCode != http.StatusSwitchingProtocols {
		r.Body = &heard{r.Body, x}
	}
	if r.StatusCode == http.StatusSwitchingProtocols {
		if body, ok := r.Body.(io.ReadWriteCloser); ok {
			r.Body = &upgraded{ReadWriteCloser: body, x: x}
		}
	}
	return nil
}

// heard is the body of an answer of HTTP/2.
type heard struct {
	io.ReadCloser
	x *exchange
}

func (h *heard) Read(b []byte) (int, error) {
	n, err := h.ReadCloser.Read(b)
	if err != nil && err != io.EOF && h.x.ctx.Err() == nil {
		h.x.broke.CompareAndSwap(nil, &err)
	}
	return n, err
}

// failed answers in the place of the target.
func (x *exchange) failed(w http.ResponseWriter, r *http.Request, err error) {
	switch cause := context.Cause(r.Context()); {
	case errors.Is(cause, errNotTaken):
		err = cause
	case cause != nil:
		panic(http.ErrAbortHandler)
	}
	if bad := x.bad.Load(); bad != nil { // the request is broken off at the target, which has done nothing wrong
		x.page(w, r, http.StatusBadRequest, fmt.Errorf("the body of the request: %w", *bad))
		return
	}
	if up := x.upstream.Load(); up != nil {
		if why := up.failed.Load(); why != nil {
			err = alsoBecause(err, *why)
		}
	}
	x.refuse(w, r, err)
}

// alsoBecause adds to err why the connection to the target failed, if err does not say it already.
func alsoBecause(err, why error) error {
	if errors.Is(err, why) {
		return err
	}
	return fmt.Errorf("%w: %w", err, why)
}

// refuse answers with the page for err.
func (x *exchange) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusBadGateway
	timeout, _ := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, ErrRemoved):
		status = http.StatusNotFound
	case errors.Is(err, errTooMany):
		status = http.StatusMisdirectedRequest
	case errors.Is(err, ErrRefused), errors.Is(err, ErrUnreachable):
	case errors.Is(err, ErrAway), errors.Is(err, ErrShut), errors.Is(err, ErrLimit), errors.Is(err, errEnded):
		status = http.StatusServiceUnavailable
	case timeout != nil && timeout.Timeout():
		status = http.StatusGatewayTimeout
	}
	x.page(w, r, status, err)
}

// counting counts the bytes of a target's answer.
type counting struct {
	http.ResponseWriter
	x *exchange
}

func (w counting) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	if !w.x.paged {
		w.x.visit.count(0, n)
	}
	return n, err
}

// WriteHeader says again that the connection ends, if it does: behind an informational answer, all headers begin anew. It ends behind an
// answer that begins before the request was read to its end, too: what comes of that later would be taken for another request.
func (w counting) WriteHeader(status int) {
	x := w.x
	switch {
	case status < 200 && status != http.StatusSwitchingProtocols:
		if x.old {
			return // RFC 9110, section 15.2
		}
	case status >= 200:
		x.begun.Store(true)
		if x.last || x.body != nil && !x.body.over.Load() {
			x.last = true
			w.Header().Set("Connection", "close")
		}
		if _, ok := w.Header()["Content-Type"]; !ok {
			w.Header()["Content-Type"] = nil // or net/http guesses one
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// whole is the body of a request, and knows whether it was read to its end.
type whole struct {
	io.ReadCloser
	over atomic.Bool
}

func (b *whole) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.over.Store(true)
	}
	return n, err
}

// malformed reports whether reading a body failed because of what the client has sent, and not because it has left.
func malformed(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return !network && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrBodyReadAfterClose)
}

// Unwrap is for http.ResponseController.
func (w counting) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// leastTaking is what a target has at least to take what was read of a body at once, which may be 32 KiB, and the link slow.
const leastTaking = time.Minute

// sending is the body of a request on its way to the target. It counts the bytes, and gives the exchange up when the target takes none of
// what was read for as long as it has for its answer. The time in which the client sends nothing, or the link stands still, does not count.
type sending struct {
	io.ReadCloser
	x       *exchange
	said    *http.Request // has the trailers when the body was read
	trailer http.Header   // what the target gets of them

	mu      sync.Mutex
	timer   *time.Timer // guarded by mu, as all below
	armed   bool        // the target is to take what was read
	resumes uint64      // since the timer runs
}

func (s *sending) Read(b []byte) (int, error) {
	s.arm(false)
	n, err := s.ReadCloser.Read(b)
	s.x.visit.count(n, 0)
	if n > 0 {
		s.arm(true)
	}
	if err != nil && err != io.EOF && malformed(err) {
		s.x.bad.CompareAndSwap(nil, &err)
	}
	if err == io.EOF {
		for name := range s.trailer {
			s.trailer[name] = slices.DeleteFunc(slices.Clone(s.said.Trailer[name]), func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) })
		}
	}
	return n, err
}

// Close implements io.Closer.
func (s *sending) Close() error {
	s.arm(false)
	return s.ReadCloser.Close()
}

func (s *sending) arm(armed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = armed
	switch {
	case armed:
		s.armLocked()
	case s.timer != nil:
		s.timer.Stop()
	}
}

func (s *sending) armLocked() {
	d := max(s.x.answerTime, leastTaking)
	if s.resumes = s.x.resumed(); s.timer == nil {
		s.timer = time.AfterFunc(d, s.late)
	} else {
		s.timer.Reset(d)
	}
}

// late is called when the target has had its time.
func (s *sending) late() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch up := s.x.upstream.Load(); {
	case !s.armed, s.x.begun.Load(): // an answer may begin before the end of the request, and take as long as it likes
	case up == nil, up.paused(), s.x.resumed() != s.resumes:
		s.armLocked()
	default:
		s.x.cancel(errNotTaken)
	}
}

// upgraded is the connection to a target that has left HTTP. A reset of either end becomes one of the other.
type upgraded struct {
	io.ReadWriteCloser
	x           *exchange
	said, heard atomic.Bool // all that the client, or the target, has to say
}

// ended completes the exchange when both directions have come to their ends: ReverseProxy closes the client's connection before it returns.
func (u *upgraded) ended() {
	if u.said.Load() && u.heard.Load() {
		u.x.visit.end(u.x, true)
	}
}

func (u *upgraded) Read(b []byte) (int, error) {
	n, err := u.ReadWriteCloser.Read(b)
	u.x.visit.count(0, n)
	switch {
	case err == io.EOF:
		u.heard.Store(true)
		u.ended()
	case err != nil && !errors.Is(err, net.ErrClosed):
		u.x.broke.CompareAndSwap(nil, &err)
		u.x.client.Reset()
	}
	return n, err
}

func (u *upgraded) Write(b []byte) (int, error) {
	n, err := u.ReadWriteCloser.Write(b)
	u.x.visit.count(n, 0)
	return n, err
}

// ReadFrom copies what the client says. It sees when the client's connection breaks.
func (u *upgraded) ReadFrom(r io.Reader) (n int64, err error) {
	b := buffers{}.Get()
	defer buffers{}.Put(b)
	for {
		k, err := r.Read(b)
		if k > 0 {
			w, werr := u.Write(b[:k])
			n += int64(w)
			if werr != nil {
				return n, werr
			}
		}
		switch {
		case err == io.EOF:
			u.said.Store(true)
			u.ended()
			return n, nil
		case err != nil:
			if up := u.x.upstream.Load(); up != nil {
				up.reset()
			}
			return n, err
		}
	}
}

// CloseWrite ends the direction to the target.
func (u *upgraded) CloseWrite() error {
	if w, ok := u.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	if up := u.x.upstream.Load(); up != nil {
		return up.CloseWrite()
	}
	return errors.ErrUnsupported
}
