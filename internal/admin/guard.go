package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Address is how the API and the page are served at a TCP address, where whoever reaches the port may ask.
type Address struct {
	// Token is the secret that opens everything.
	Token string
	// Hosts are the names under which it may be asked for, in lower case, besides those of loopback, of the certificate, and the address
	// at which a connection came in; nil: there are none.
	Hosts func() []string
	// Certificate returns the certificate; nil: there is no TLS.
	Certificate func() *tls.Certificate
	// Connections is how many there may be at once.
	Connections int
}

// Bounds of what strangers may send.
const (
	headerTimeout = 5 * time.Second
	tcpWriteLimit = 30 * time.Second // an answer may be long, and the way to its reader slow
	tcpMaxBody    = 64 << 10
	maxStreams    = 64 // of HTTP/2 in one connection
)

// Wrong tokens: some at once, then one a second is looked at and told so. The others are told to wait. The right token is never among them:
// nobody guesses 256 bits, however often, and whoever tries must not lock out whoever knows.
const (
	failuresAtOnce = 5
	failuresPer    = time.Second
	failuresSaid   = time.Minute // a line in the log at most
)

// contentSecurityPolicy lets the page load what it brings itself, and nobody put it into a frame.
const contentSecurityPolicy = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

// ServeTCP answers at a TCP address until ctx ends, and closes l. When l is closed before that, those who are being answered are served to
// their end, or to that of ctx.
func (s *Server) ServeTCP(ctx context.Context, l net.Listener, at Address) error {
	g := newGuard(s, ctx, at)
	srv := &http.Server{
		Handler:                      g,
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  requestTimeout,
		WriteTimeout:                 tcpWriteLimit,
		IdleTimeout:                  tcpWriteLimit,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, guestOf(c))
		},
	}
	l = newRoom(l, at.Connections)
	if at.Certificate != nil {
		srv.TLSConfig = &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return at.Certificate(), nil },
			NextProtos:     []string{"h2", "http/1.1"},
		}
		l = tls.NewListener(l, srv.TLSConfig)
	}
	defer g.sessions.endAll()
	return s.run(ctx, srv, l, true)
}

// guard stands in front of the API at a TCP address.
type guard struct {
	at       Address
	api      http.Handler
	routes   *api
	token    [sha256.Size]byte
	origin   http.CrossOriginProtection
	failures *rate.Limiter
	sessions sessions
	log      *slog.Logger

	mu     sync.Mutex
	failed int       // since said; guarded by mu
	said   time.Time // guarded by mu
}

// open are the patterns of what is answered without the token, besides the page: see isOpen.
var open = []string{"GET /healthz", "GET /readyz", "POST /api/v1/login"}

func newGuard(s *Server, stopping context.Context, at Address) *guard {
	a := s.newAPI(stopping, max(at.Connections/2, 1))
	g := &guard{
		at: at, routes: a, token: sha256.Sum256([]byte(at.Token)), log: s.log(),
		failures: rate.NewLimiter(rate.Every(failuresPer), failuresAtOnce),
	}
	a.handle("POST", "/api/v1/login", g.login)
	a.handle("POST", "/api/v1/logout", g.logout)
	g.api = a.handler()
	return g
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	guest := beginGuest(r)
	defer endGuest(guest)
	for name, value := range map[string]string{
		"Content-Security-Policy":      contentSecurityPolicy,
		"X-Content-Type-Options":       "nosniff",
		"Referrer-Policy":              "no-referrer",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
	} {
		w.Header().Set(name, value)
	}
	_, pattern := g.routes.mux.Handler(r)
	health := pattern == "GET /healthz" || pattern == "GET /readyz"
	// Whoever watches the health asks under any name, and learns nothing else.
	if !health {
		if err := g.checkHost(r); err != nil {
			refuse(w, http.StatusMisdirectedRequest, err)
			return
		}
	}
	if pattern != pagePattern && !health {
		if err := g.checkOrigin(r); err != nil {
			refuse(w, http.StatusForbidden, err)
			return
		}
	}
	if isDocument(r.URL.Path) {
		w.Header().Set("Vary", "Accept")
	}
	by, err := g.authenticate(r)
	switch {
	case by.known():
		knownGuest(guest)
		if by.session != nil {
			r = r.WithContext(context.WithValue(r.Context(), sessionKey{}, by.session))
		}
	case !g.isOpen(r, pattern):
		g.challenge(w, err)
		return
	default:
		r = r.WithContext(context.WithValue(r.Context(), strangerKey{}, true))
	}
	// No browser adds the token by itself, as it would a cookie, so a page elsewhere cannot send an order with it.
	if !by.token {
		if err := checkContent(r); err != nil {
			refuse(w, http.StatusForbidden, err)
			return
		}
	}
	if r.ContentLength > tcpMaxBody {
		w.Header().Set("Connection", "close")
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Errorf("the body of a request may have %d bytes", tcpMaxBody))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, tcpMaxBody)
	g.api.ServeHTTP(w, r)
}

// isOpen reports whether a request is answered without the token. Whoever has to log in needs the page, which asks for the token, and its
// files. None of them holds anything of the process. A program that asks for / gets 401, as for everything else: it would take the page for an
// answer.
func (g *guard) isOpen(r *http.Request, pattern string) bool {
	if pattern != pagePattern {
		return slices.Contains(open, pattern)
	}
	page := g.routes.server.Page
	switch {
	case page == nil, r.Method != http.MethodGet && r.Method != http.MethodHead, !page.Has(r.URL.Path):
		return false
	case isDocument(r.URL.Path):
		return accepts(r.Header["Accept"], "text/html")
	}
	return true
}

// isDocument reports whether a path is that of the page itself, as against a file that it loads.
func isDocument(path string) bool { return path == "/" || path == "/index.html" }

// accepts reports whether the fields of an Accept header name a media type and do not exclude it (q=0). A wildcard such as */* names none: that
// is what programs send which take anything.
func accepts(fields []string, kind string) bool {
	for _, field := range fields {
		for part := range strings.SplitSeq(field, ",") {
			name, params, err := mime.ParseMediaType(part)
			if err != nil || name != kind {
				continue
			}
			text, weighted := params["q"]
			if !weighted {
				return true
			}
			if q, err := strconv.ParseFloat(text, 64); err == nil && q > 0 && q <= 1 {
				return true
			}
		}
	}
	return false
}

// strangerKey is in the context of requests without the token.
type strangerKey struct{}

func isStranger(r *http.Request) bool { return r.Context().Value(strangerKey{}) != nil }

// checkHost refuses a request for another server. A page elsewhere whose name leads to this address, after it was loaded, would
// otherwise be taken for the one that is served here (DNS rebinding).
func (g *guard) checkHost(r *http.Request) error {
	host, _ := splitHost(r.Host)
	if host == "localhost" {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if ip.IsLoopback() || local != nil && addrOf(local.String()) == ip.Unmap() {
			return nil
		}
	}
	if g.at.Hosts != nil && slices.Contains(g.at.Hosts(), host) {
		return nil
	}
	if g.at.Certificate != nil {
		if c := g.at.Certificate(); c != nil && c.Leaf != nil && host != "" && c.Leaf.VerifyHostname(host) == nil {
			return nil
		}
	}
	return fmt.Errorf("this is not %.100q: --admin-host NAME, or admin_host in the file, adds a name by which it may be asked for", r.Host)
}

// splitHost returns the host of a Host header, in lower case, and its port.
func splitHost(hostport string) (host, port string) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]"), ""
	}
	return strings.ToLower(strings.TrimSuffix(host, ".")), port
}

func addrOf(hostport string) netip.Addr {
	ap, _ := netip.ParseAddrPort(hostport)
	return ap.Addr().Unmap().WithZone("")
}

// checkOrigin refuses what a page of another origin asks for, also to read: its answers would tell nothing to that page, but there is no
// reason to give any.
func (g *guard) checkOrigin(r *http.Request) error {
	asked := *r
	asked.Method = http.MethodPost // or what only reads would pass
	if g.origin.Check(&asked) != nil {
		return errors.New("a page of another origin asks, and only the page that is served here may")
	}
	return nil
}

// checkContent refuses orders that are not JSON: a page elsewhere sends forms and text without asking anybody.
func checkContent(r *http.Request) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return nil
	}
	given := r.Header.Get("Content-Type")
	if given == "" && r.ContentLength == 0 {
		return nil
	}
	if kind, _, err := mime.ParseMediaType(given); err == nil && kind == "application/json" {
		return nil
	}
	what := fmt.Sprintf("the Content-Type %.100q", given)
	if given == "" {
		what = "no Content-Type"
	}
	return fmt.Errorf("the order has %s: without the token (Authorization: Bearer TOKEN) it needs Content-Type: application/json, or no body", what)
}

// credentials are what a request comes with: the token, or a session that was opened with it.
type credentials struct {
	token   bool
	session context.Context // ends with it; nil: there is none
}

func (c credentials) known() bool { return c.token || c.session != nil }

// authenticate returns what a request comes with. An error says what is wrong with the token that it has. Only Bearer brings a token: a reverse
// proxy may pass a login of its own on, as Basic.
func (g *guard) authenticate(r *http.Request) (credentials, error) {
	words := r.Header["Authorization"]
	for _, word := range words {
		scheme, token, _ := strings.Cut(word, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			continue
		}
		if len(words) == 1 && g.right(strings.TrimSpace(token)) {
			return credentials{token: true}, nil
		}
		return credentials{}, g.wrong(r)
	}
	return credentials{session: g.sessions.find(r.Header.Get(sessionHeader))}, nil
}

func (g *guard) right(token string) bool {
	got := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(got[:], g.token[:]) == 1
}

// errThrottled is the answer to too many wrong tokens.
var errThrottled = errors.New("too many wrong tokens: wait a second")

// wrong counts a wrong token, and returns the answer to it.
func (g *guard) wrong(r *http.Request) error {
	g.mu.Lock()
	g.failed++
	now, n := time.Now(), 0
	if now.Sub(g.said) >= failuresSaid || g.said.IsZero() {
		n, g.failed, g.said = g.failed, 0, now
	}
	g.mu.Unlock()
	if n > 0 {
		g.log.Warn("somebody asked the admin address with a wrong token", "remote", r.RemoteAddr, "times", n)
	}
	if !g.failures.Allow() {
		return errThrottled
	}
	return errors.New("the token is not that of admin.token in the state directory")
}

// challenge answers a request without the token.
func (g *guard) challenge(w http.ResponseWriter, err error) {
	if errors.Is(err, errThrottled) {
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusTooManyRequests, err)
		return
	}
	if err == nil {
		err = errors.New("this needs the token in admin.token of the state directory: Authorization: Bearer TOKEN")
	}
	w.Header().Set("WWW-Authenticate", "Bearer")
	refuse(w, http.StatusUnauthorized, err)
}

type loginRequest struct {
	Token string `json:"token"`
}

// sessionHeader has the secret of a session. It is no cookie: a browser sends those of a host to all of its ports, so that another service there
// would get them.
const sessionHeader = "X-Reverser-Session"

type loginReply struct {
	Session string `json:"session"`
}

// login opens a session for whoever has the token, so that a page need not keep that.
func (g *guard) login(w http.ResponseWriter, r *http.Request) {
	var req loginRequest
	if !read(w, r, &req) {
		return
	}
	if !g.right(strings.TrimSpace(req.Token)) {
		g.challenge(w, g.wrong(r))
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	reply(w, http.StatusOK, loginReply{g.sessions.begin()})
}

func (g *guard) logout(w http.ResponseWriter, r *http.Request) {
	g.sessions.end(r.Header.Get(sessionHeader))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

const (
	sessionLife  = 12 * time.Hour
	mostSessions = 64
)

// sessionKey is in the context of requests with a session, for the context that ends with the session.
type sessionKey struct{}

// sessions are those who have logged in. Only digests of their secrets are kept.
type sessions struct {
	mu   sync.Mutex
	open map[[sha256.Size]byte]*session // guarded by mu
}

type session struct {
	ctx    context.Context // ends with it
	ends   time.Time       // at the latest
	cancel context.CancelFunc
}

// begin opens a session, in the place of the oldest where there are many, and returns its secret.
func (s *sessions) begin() string {
	b := make([]byte, 32)
	rand.Read(b)
	secret := hex.EncodeToString(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[[sha256.Size]byte]*session)
	}
	var oldest [sha256.Size]byte
	for id, other := range s.open {
		if other.ctx.Err() != nil {
			delete(s.open, id)
		} else if first, ok := s.open[oldest]; !ok || other.ends.Before(first.ends) {
			oldest = id
		}
	}
	if len(s.open) >= mostSessions {
		s.endLocked(oldest)
	}
	// A session is of no request. Its timer ends it.
	ctx, cancel := context.WithTimeout(context.Background(), sessionLife)
	s.open[sha256.Sum256([]byte(secret))] = &session{ctx, time.Now().Add(sessionLife), cancel}
	return secret
}

// find returns the context of a session; nil: there is no such session.
func (s *sessions) find(secret string) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, ok := s.open[sha256.Sum256([]byte(secret))]
	if !ok || found.ctx.Err() != nil || time.Now().After(found.ends) {
		return nil
	}
	return found.ctx
}

func (s *sessions) end(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(sha256.Sum256([]byte(secret)))
}

func (s *sessions) endLocked(id [sha256.Size]byte) {
	if found, ok := s.open[id]; ok {
		found.cancel()
		delete(s.open, id)
	}
}

// endAll leaves no timer behind.
func (s *sessions) endAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.open {
		s.endLocked(id)
	}
}
