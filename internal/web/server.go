// Package web serves HTTP for services whose targets speak it: it finds the service of each request and carries the exchange there.
//
// It knows neither who serves what nor how a target is reached, neither certificates nor links: a Server is given connections, and asks
// its owner for the Site of a request. The way of a request through it:
//  1. server.go takes the connection. Most requests are simple: simple.go reads and answers them itself, from step 3 on with what others
//     use, too. A connection with any other request is net/http's from that one on. What a client of HTTP/2 sends passes streams.go first,
//     which bounds what is held for it.
//  2. path.go and the checks below it decide which service the request names. One that could name two is refused.
//  3. client.go counts the client in at the service.
//  4. auth.go asks for a password, where the service wants one.
//  5. forward.go writes what the target is told of the client, and carries the exchange: a plain one itself, an upgrade or HTTP/2
//     by httputil.ReverseProxy.
//  6. site.go finds the connections to the target, and target.go sends the request on one of them, reads the answer, and keeps it for
//     others. Where the target speaks HTTP/2, net/http does that.
//  7. page.go answers where the target does not.
//
// Goroutines: net/http has one for each connection, and two for each connection to a target that speaks HTTP/2. The body of a request for a
// target that speaks HTTP/1.1 has one until it is sent, or can be sent no more. Server.Close waits for the clients.
package web

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/share"
)

// Limits of what a client may do before it is known what for.
const (
	headerTime = 10 * time.Second // for the head of a request, from its first byte
	idleTime   = 75 * time.Second // between two requests of a connection
	maxHeader  = 64 << 10         // bytes of a head
	longHead   = 8 << 10          // bytes of a head beyond which clients whom no service has let in share mostHeads; many servers take no more at all
	mostHeads  = 16 << 20
	maxStreams = 100             // requests at once on one connection of HTTP/2
	restTime   = 2 * time.Second // for the rest of a head when the server stops
)

// Server serves HTTP on the connections that it is given. Its fields are set before Start.
type Server struct {
	// Find returns the site of the most specific service for a host, as grammar.RequestHost returns it, and a path; nil: there is none.
	Find func(secure bool, host, path string) *Site
	// Failed is told of each request that was answered by a page of its own.
	Failed func(f Failure)
	// Panicked is told of a mistake of the program in the handling of a request. The client's connection is closed.
	Panicked func(text string)
	// Before, when set, returns what answers a request before a site is looked for; nil: nothing does. It is asked only of requests that are not
	// simple, so only about paths with a segment that begins with a dot, as /.well-known/ does, can it rely on being asked.
	Before func(*http.Request) http.HandlerFunc
	// Covers, when set, reports whether the certificate that a connection was shown is for a host too. Where it is not, the client is told
	// to connect anew (421).
	Covers func(state *tls.ConnectionState, host string) bool
	// Page, when set, returns what answers a request for which there is no site; nil: a page of this server's own does.
	Page func(*http.Request) http.HandlerFunc
	// Unserved, when set, reports whether a client that no service has let in may have an answer of this server's own. named says that a
	// service has the name that it asks for, at another port, or had it and is away, or did not let the client in. Who may not is reset.
	Unserved func(c *Client, named bool) bool
	// Away, when set, reports whether a host and path for which there is no site are those of a service whose bridge is away.
	Away func(secure bool, host, path string) bool

	// Crowded, when set, is told of each time that memory is refused which several share: Taken says how much of it is taken. It is called
	// without a lock.
	Crowded func(p Pool, why error)
	// HeadRoom is how many bytes heads of answers may hold together that are longer than a few KiB; 0: 16 MiB.
	HeadRoom int
	// InTurn, when set, calls f when it is its turn: a long head takes a processor for as long as a batch of a download does. f waits for nothing.
	InTurn func(f func())

	once     sync.Once // prepares what follows
	http     http.Server
	conns    chan net.Conn   // for http
	late     http.Server     // serves who has asked while http takes nobody any more
	asked    chan net.Conn   // for late
	drained  atomic.Bool     // no connection is taken any more
	ended    chan struct{}   // closed when the goroutine that takes connections has ended
	life     context.Context // ends with Close
	stop     context.CancelFunc
	guesses  guesses
	heads    headRoom
	strange  share.Pool    // for long heads of clients whom no service has let in
	users    share.Pool    // for heads of requests of HTTP/2 of others
	restTime time.Duration // longer in tests

	mu      sync.Mutex
	clients map[*Client]struct{} // guarded by mu, as all below
	closed  bool
	left    sync.WaitGroup // clients
	serving sync.WaitGroup
}

// Failure is a request that a page answered in the place of the target.
type Failure struct {
	Site   *Site // nil: there is none for it
	Client *Client
	Visit  *Visit // nil: the client was not let in
	ID     string // of the request
	Opened string // id of the request for which the connection to the target was opened; "": there is none
	Status int
	Err    error
}

// Start takes connections from now on. Close ends what it starts.
func (s *Server) Start() {
	s.prepare()
	s.serving.Go(func() {
		defer close(s.ended)
		s.http.Serve(handed{s, s.conns})
	})
}

// prepare comes before everything else that a server does: it may be stopped before it was started.
func (s *Server) prepare() { s.once.Do(s.prepareOnce) }

func (s *Server) prepareOnce() {
	s.heads.size, s.strange.Size, s.users.Size = s.HeadRoom, mostHeads, mostHeads
	s.restTime = cmp.Or(s.restTime, restTime)
	s.conns, s.asked, s.ended = make(chan net.Conn), make(chan net.Conn), make(chan struct{})
	s.life, s.stop = context.WithCancel(context.Background())
	s.clients = make(map[*Client]struct{})
	s.configure(&s.http)
	s.configure(&s.late)
	s.late.SetKeepAlivesEnabled(false)
}

func (s *Server) configure(h *http.Server) {
	*h = http.Server{
		Handler: s, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(panics{s}, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, clientKey{}, clientOf(c))
		},
		// No pings: they would end a client that stands at a breakpoint, for which its system still answers. Who is gone is TCP's to notice.
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame}, // it takes the memory for a frame before that has come
		Protocols: new(http.Protocols),
	}
	h.DisableGeneralOptionsHandler = true // it answers "OPTIONS *" before check has seen the request
	h.ConnState = func(conn net.Conn, state http.ConnState) {
		c := clientOf(conn)
		c.next.changes(state)
		if state == http.StateIdle {
			c.answered()
		}
	}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(true)
	h.Protocols.SetUnencryptedHTTP2(true)
}

// Serve takes a connection: a *Client, or a *tls.Conn above one whose handshake is over. It does not wait for its end.
func (s *Server) Serve(conn net.Conn) {
	s.prepare()
	c, ok := conn.(*Client)
	if !ok {
		if t, ok := conn.(*tls.Conn); ok {
			c, state := clientOf(t), t.ConnectionState()
			http2 := state.NegotiatedProtocol == "h2"
			c.next.handed(0, http2)
			switch {
			case !http2:
				c.framed = true
				conn = &secured{t, c}
			case mayCarryHTTP2(state): // or net/http says that it does not
				c.tls, c.stream.agreed = &state, true
				conn = &securedHTTP2{t, c}
			}
		}
		s.hand(conn)
		return
	}
	s.mu.Lock()
	closed := s.closed || s.drained.Load()
	c.plain, c.framed = true, true
	if !closed {
		s.serving.Go(func() {
			if !s.serveSimple(c) {
				c.next.handed(len(c.ahead), false)
				s.hand(c)
			}
		})
	}
	s.mu.Unlock()
	if closed {
		c.Close()
	}
}

// hand hands a connection to net/http. Who has asked for something is answered also when no connection is taken any more.
func (s *Server) hand(conn net.Conn) {
	to, ended := s.conns, s.ended
	if s.drained.Load() {
		if c, ok := conn.(*Client); !ok || len(c.ahead) == 0 {
			conn.Close()
			return
		}
		to, ended = s.asked, nil // ends with the server
	}
	select {
	case to <- conn:
	case <-ended: // it was stopped before it began
		conn.Close()
	case <-s.life.Done():
		conn.Close()
	}
}

// Drain lets every connection finish the request that it is at, and closes it then.
func (s *Server) Drain() {
	s.prepare()
	if !s.drained.Swap(true) {
		s.serving.Go(func() { s.late.Serve(handed{s, s.asked}) })
	}
	for _, c := range s.all() {
		c.wake()
	}
	arrived := s.arrived() // they are answered yet, and told that their connection ends then
	// stop closes those for whose next request net/http waits.
	stop := func() { s.http.SetKeepAlivesEnabled(false) }
	if len(arrived) == 0 {
		stop()
	}
	s.serving.Go(func() {
		if len(arrived) > 0 {
			s.awaitRequests(arrived)
			stop()
		}
		s.http.Shutdown(s.life)
	})
}

func (s *Server) all() []*Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.clients))
}

// arrived are the clients of whom something of a request has arrived that net/http has not begun with. With each is how many it had begun with
// before.
func (s *Server) arrived() map[*Client]uint64 {
	clients := make(map[*Client]uint64)
	for _, c := range s.all() {
		if n := c.next.requests.Load(); c.hasArrived() {
			clients[c] = n
		}
	}
	return clients
}

// awaitRequests waits until net/http has begun with the next request of clients, and of those who ask meanwhile, for up to restTime.
func (s *Server) awaitRequests(clients map[*Client]uint64) {
	late := time.After(s.restTime)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		maps.DeleteFunc(clients, func(c *Client, before uint64) bool { return c.next.requests.Load() != before || c.isOver() })
		if len(clients) == 0 {
			if clients = s.arrived(); len(clients) == 0 {
				return
			}
		}
		select {
		case <-look.C:
		case <-late:
			return
		case <-s.life.Done():
			return
		}
	}
}

// Close ends every connection and waits until all have ended.
func (s *Server) Close() {
	s.prepare()
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	all := s.all()
	if first {
		s.stop()
		for _, c := range all {
			switch {
			case c.paid.Load(): // the end of a simple request's answer can be seen, even if Close were to cut it off
				c.Close()
			case c.busy():
				c.resetAtClose() // or net/http ends it as if its answer were complete
			}
		}
		s.http.Close()
		s.late.Close()
		for _, c := range all {
			c.Reset()
		}
	}
	s.left.Wait()
	s.serving.Wait()
}

// handed is the listener of those connections that Serve is given.
type handed struct {
	s     *Server
	conns <-chan net.Conn
}

func (h handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.s.life.Done():
		return nil, net.ErrClosed
	}
}
func (h handed) Close() error   { return nil }
func (h handed) Addr() net.Addr { return &net.TCPAddr{} }

// panics takes what net/http logs. All else there is about what strangers do.
type panics struct{ s *Server }

func (p panics) Write(b []byte) (int, error) {
	if p.s.Panicked != nil && bytes.Contains(b, []byte("panic serving")) {
		p.s.Panicked(string(b))
	}
	return len(b), nil
}

// requestID names a request in both logs, for its user, and for the target.
type requestID [16]byte

func newID() (id requestID) {
	rand.Read(id[:])
	return id
}

func (id requestID) String() string { return hex.EncodeToString(id[:]) }

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(clientKey{}).(*Client)
	c.next.begins(r)
	if r.TLS == nil {
		r.TLS = c.tls
	}
	r.RemoteAddr = c.Address()
	x := &exchange{server: s, client: c, id: newID()}
	host, err := x.check(r)
	if err != nil {
		w.Header().Set("Connection", "close")
		x.page(w, r, http.StatusBadRequest, err)
		return
	}
	if x.last || s.drained.Load() && r.Header["Upgrade"] == nil { // an answer that changes the protocol says Connection: Upgrade
		w.Header().Set("Connection", "close")
	}
	if r.URL.Path == "*" { // OPTIONS, of this server as a whole
		x.own(w, r, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "0") })
		return
	}
	if s.Before != nil {
		if answer := s.Before(r); answer != nil {
			x.own(w, r, answer)
			return
		}
	}
	if r.TLS != nil && s.Covers != nil && !s.Covers(r.TLS, host) {
		x.page(w, r, http.StatusMisdirectedRequest, nil)
		return
	}
	site, err := s.find(r, host)
	switch {
	case err != nil:
		x.page(w, r, http.StatusBadRequest, err)
		return
	case site == nil:
		if s.Page != nil {
			if answer := s.Page(r); answer != nil {
				x.named = true
				x.own(w, r, answer)
				return
			}
		}
		if s.Away != nil && s.Away(r.TLS != nil, host, r.URL.EscapedPath()) {
			x.named = true
			x.page(w, r, http.StatusServiceUnavailable, ErrAway)
			return
		}
		x.page(w, r, http.StatusNotFound, nil)
		return
	}
	x.site, x.host, x.secure = site, host, r.TLS != nil
	if r.ProtoMajor < 2 && r.Header["Upgrade"] != nil {
		w = hijacked{w}
	}
	x.watched(w, r)
}

// check refuses a request that is not what it seems, and returns the host that it names.
func (x *exchange) check(r *http.Request) (host string, err error) {
	if r.Method == http.MethodConnect {
		return "", errors.New("this is no proxy for clients: CONNECT leads nowhere")
	}
	if r.ProtoMajor < 2 {
		mixed, unsure := x.client.frames.check(r)
		switch {
		case mixed && r.ProtoAtLeast(1, 1):
			return "", errors.New("the request has both Content-Length and Transfer-Encoding")
		case mixed:
			return "", errors.New("the request has a Transfer-Encoding, which HTTP/1.0 does not know")
		}
		x.last = unsure
	}
	if err := checkForm(r); err != nil {
		return "", err
	}
	if r.ProtoMajor < 2 && r.URL.Host != "" {
		if scheme := map[bool]string{true: "https", false: "http"}[r.TLS != nil]; !strings.EqualFold(r.URL.Scheme, scheme) {
			return "", fmt.Errorf("the request is for %s, and this is %s", r.URL.Scheme, scheme)
		}
	}
	if said := r.Header.Values("Host"); len(said) > 0 { // HTTP/2: beside :authority
		for _, h := range said {
			if !strings.EqualFold(h, r.Host) {
				return "", errors.New("the request names two hosts")
			}
		}
		r.Header.Del("Host")
	}
	return grammar.RequestHost(r.Host)
}

// checkForm refuses a request target that is neither a path nor, in HTTP/1, a URL with a host (RFC 9112, section 3.2). net/url has no path
// for the rest of "x:http://b/c", and writes it to the target as it is: it would lead past the choice of the service.
func checkForm(r *http.Request) error {
	u := r.URL
	path := u.Scheme == "" && u.Host == ""
	absolute := r.ProtoMajor < 2 && u.Scheme != "" && u.Host != ""
	if absolute && u.Path == "" {
		u.Path = "/"
	}
	if path && u.Path == "*" && r.Method == http.MethodOptions {
		return nil
	}
	if !path && !absolute || u.Opaque != "" || !strings.HasPrefix(u.Path, "/") {
		return errors.New("what is asked for is neither a path nor a URL with a host")
	}
	if strings.ContainsFunc(u.RawQuery, func(c rune) bool { return c <= ' ' || c == 0x7f }) { // HTTP/2 can carry it, the request line of HTTP/1.1 cannot
		return errors.New("the query has a space or a control character")
	}
	return nil
}

// find returns the site of a request. All ways in which targets read a path must lead to the same one: no request may reach a service
// other than the one that it names.
func (s *Server) find(r *http.Request, host string) (*Site, error) {
	secure := r.TLS != nil
	escaped := r.URL.EscapedPath()
	site := s.Find(secure, host, escaped)
	if len(escaped) > maxReadings && ambiguous(escaped) {
		return nil, fmt.Errorf("the path has more than %d bytes and can be read in several ways", maxReadings)
	}
	for reading := range readings(escaped) {
		if s.Find(secure, host, reading) != site {
			return nil, errors.New("the path can be read in two ways, which lead to different services")
		}
	}
	return site, nil
}

// clientOf finds the client below a connection.
func clientOf(conn net.Conn) *Client {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = t.NetConn()
	}
	return conn.(*Client)
}

type clientKey struct{}
