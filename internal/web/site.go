package web

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/inspect"
)

// Connections to a target are kept for a moment. It is shorter than the time after which most servers close them: a request that is sent while
// that happens is lost. In tests they are kept for longer.
var keepTime = 4 * time.Second

const mostKept = 100 // for each service

// maxBehind is how much of an answer of HTTP/2 waits for a client that reads slowly. net/http's own limit is 4 MiB, and a client of HTTP/2 has
// a hundred answers at once.
const maxBehind = 256 << 10

// DefaultAnswerTime is how long a target has for the head of its answer, from the end of the request.
const DefaultAnswerTime = 5 * time.Minute

// Why a target could not be reached: what Dial, and reads of the connection that it returned, report.
var (
	ErrAway        = errors.New("the bridge of the service is away")
	ErrShut        = errors.New("no new users are let in")
	ErrRemoved     = errors.New("the service was removed")
	ErrRefused     = errors.New("the target refuses connections")
	ErrUnreachable = errors.New("the target cannot be reached")
	ErrLimit       = errors.New("there is no room for another connection")
	ErrBroke       = errors.New("the target broke its answer off") // wraps why
	ErrLost        = errors.New("the link to the target was lost")
	ErrEnded       = errors.New("an operator ended the connection to the target")
)

// Site is one service. Its fields are set before it is used.
type Site struct {
	// Name is the canonical PUBLIC.
	Name string
	// Key is whose service it is, a value that can be compared. What all services share is shared out by it.
	Key any
	// Options returns what the service's bridge asks for. Another pointer means other options.
	Options func() *grammar.ProxyOptions
	// Enter counts a client in. left is called when it is over, and told nil if all of its exchanges came to their end, ErrEnded if one was
	// ended at the target's side, ErrBroke if the target broke one off, else another error; moved is told of bytes of bodies as they move.
	Enter func(v *Visit) (left func(broken error), moved func(sent, received uint64), err error)
	// Dial opens a connection to the target. ctx ends with the request that needs one, so at the latest when its client leaves. Dial calls
	// retired when no request may use the connection any more that is not under way.
	Dial func(ctx context.Context, call Call, retired func()) (*Upstream, error)

	// Inspect returns what keeps the exchanges under these options, which are nil while nobody knows them; nil: nothing does. It may be nil
	// itself.
	Inspect func(*grammar.ProxyOptions) *inspect.Recorder
	// Over returns what is told of requests that are over, nil: nobody wants to hear of them. It may be nil itself.
	Over func() func(Request)

	mu   sync.Mutex
	pool *pool // guarded by mu
}

// Call says for whom a connection to a target is opened.
type Call struct {
	Visit *Visit
	ID    [16]byte // of the request
	Host  string   // that it names
	// Options are those under which the request was let in.
	Options *grammar.ProxyOptions
}

// Upstream is a connection to a target.
type Upstream struct {
	net.Conn
	// Unless nil: whether it stands still, and how often it went on.
	Paused  func() bool
	Resumes func() uint64
	// Quiet reports whether Read would wait: nothing has arrived, and neither end has ended the connection. It may be nil.
	Quiet func() bool
	ID    [16]byte // of the request for which it was opened

	failed atomic.Pointer[error]
	user   atomic.Pointer[exchange] // the last one that got it
	gone   func()                   // called by Close; nil: nobody is told
}

// Read implements net.Conn, and keeps why it failed.
func (u *Upstream) Read(b []byte) (int, error) {
	n, err := u.Conn.Read(b)
	if err != nil && err != io.EOF {
		u.failed.Store(&err)
	}
	return n, err
}

// ended reports whether somebody ended the connection by an order at the other end.
func (u *Upstream) ended() bool {
	why := u.failed.Load()
	return why != nil && errors.Is(*why, ErrEnded)
}

// Close implements net.Conn.
func (u *Upstream) Close() error {
	if u.gone != nil {
		u.gone()
	}
	return u.Conn.Close()
}

// CloseWrite ends the direction to the target.
func (u *Upstream) CloseWrite() error {
	if w, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// reset closes the connection so that what was sent is not taken for complete.
func (u *Upstream) reset() {
	if r, ok := u.Conn.(interface{ Reset() }); ok {
		r.Reset()
	}
	u.Close()
}

func (u *Upstream) paused() bool { return u.Paused != nil && u.Paused() }

// pool keeps connections to one target under one set of options.
type pool struct {
	site       *Site
	options    *grammar.ProxyOptions
	answerTime time.Duration
	http2      *http.Transport // nil: the target speaks HTTP/1.1
	old        atomic.Bool     // another pool is in its place: connections are closed as soon as they are idle

	mu     sync.Mutex
	kept   []*target              // that speak HTTP/1.1, the one that was used last at the end; guarded by mu, as all below
	shared map[*Upstream]struct{} // that speak HTTP/2
}

// stalled reports whether a request could come onto a connection of HTTP/2 that stands still. net/http does not know that, and nobody knows
// for how long: where the bridge is away, Dial is who decides how long that is waited for.
func (p *pool) stalled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for up := range p.shared {
		if up.paused() {
			return true
		}
	}
	return false
}

func newPool(site *Site, options *grammar.ProxyOptions) *pool {
	p := &pool{site: site, options: options, answerTime: DefaultAnswerTime}
	if options.AnswerTime > 0 {
		p.answerTime = time.Duration(options.AnswerTime)
	}
	if options.H2C {
		p.shared = make(map[*Upstream]struct{})
		p.http2 = &http.Transport{
			DialContext: p.dial, DisableCompression: true, IdleConnTimeout: keepTime, ResponseHeaderTimeout: p.answerTime, MaxResponseHeaderBytes: maxAnswerHead,
			Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: maxBehind},
		}
		p.http2.Protocols.SetUnencryptedHTTP2(true)
	}
	return p
}

var errNoExchange = errors.New("a connection to a target belongs to a request")

// dial opens a connection for HTTP/2.
func (p *pool) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	if x == nil {
		return nil, errNoExchange
	}
	// net/http dials on when the request is over, for others that may come. But what is waited for here is counted as the client's.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(x.ctx, cancel)()
	up, err := p.open(ctx, x)
	if err != nil {
		return nil, err
	}
	up.gone = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.shared, up)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shared[up] = struct{}{}
	return up, nil
}

// open opens a connection for a request.
func (p *pool) open(ctx context.Context, x *exchange) (*Upstream, error) {
	return p.site.Dial(ctx, Call{Visit: x.visit, ID: x.id, Host: x.host, Options: p.options}, func() { p.site.retire(p) })
}

// options are the present ones.
func (s *Site) options() *grammar.ProxyOptions {
	if o := s.Options(); o != nil {
		return o
	}
	return &noOptions
}

// poolOf returns the pool for options: that of all clients, or where a connection is to be used for one client alone, that of the visit.
// That is what the options say, or a login that belongs to the connection.
func (s *Site) poolOf(v *Visit, options *grammar.ProxyOptions) *pool {
	mu, at := &s.mu, &s.pool
	if options.OneClient || v.bound.Load() {
		mu, at = &v.mu, &v.pool
	}
	mu.Lock()
	defer mu.Unlock()
	if *at == nil || (*at).options != options || (*at).old.Load() || (*at).stalled() {
		old := *at
		*at = newPool(s, options)
		if old != nil {
			old.discard()
		}
	}
	return *at
}

var noOptions grammar.ProxyOptions

// retire takes a pool out of use: requests that come are sent on new connections.
func (s *Site) retire(p *pool) {
	s.mu.Lock()
	if s.pool == p {
		s.pool = nil
	}
	s.mu.Unlock()
	p.discard()
}

func (p *pool) discard() {
	p.mu.Lock()
	p.old.Store(true)
	kept := p.kept
	p.kept = nil
	p.mu.Unlock()
	for _, t := range kept {
		if t.disarm() {
			t.up.Close()
		}
	}
	p.tidy()
}

// tidy closes connections of a pool that is out of use.
func (p *pool) tidy() {
	if p.http2 != nil && p.old.Load() {
		p.http2.CloseIdleConnections()
	}
}

// Close closes the connections to the target that no request uses, now or later.
func (s *Site) Close() {
	s.mu.Lock()
	p := s.pool
	s.pool = nil
	s.mu.Unlock()
	if p != nil {
		p.discard()
	}
}
