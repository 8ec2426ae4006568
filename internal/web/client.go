package web

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"reverser/internal/sys"
)

// mostVisits is how many services one connection may visit at once.
const mostVisits = 16

// Client is the connection of a client, below TLS where there is any. It is a net.Conn, and net/http's to close.
type Client struct {
	net.Conn
	Data any // the owner's
	// Unknown says that nobody knows whose connection it is: its address is that of a balancer, which stands for all of its users. It is set
	// before the client is served.
	Unknown bool

	server *Server
	first  func() // called when a service lets it in for the first time
	gone   func() // called at the end
	once   sync.Once
	said   atomic.Bool // first was called, or is not to be any more
	early  atomic.Bool // an answer is complete whose request was not read to its end: nothing follows it
	plain  bool        // no TLS is above it; set when it is served, as framed
	framed bool        // frames sees what is read, above TLS where there is any
	shut   atomic.Bool // a head was refused: nothing is read any more, and net/http has no answer of its own
	stray  atomic.Bool // nobody has let it in, and its next head cannot be told from what is around it
	frames framing
	stream streams
	reads  int                  // of HTTP/2
	late   time.Time            // the read deadline that stream wants, as it was set
	held   []byte               // was read of frames of HTTP/2, and waits; only net/http's reads use it
	tls    *tls.ConnectionState // that net/http does not see, as it is to see no TLS at HTTP/2; nil: it does, or there is none
	ahead  []byte               // was read of the connection before it became net/http's
	paid   atomic.Bool          // all of its requests were simple, and each has its answer, but perhaps for the last bytes, which are being written

	next next

	mu     sync.Mutex
	visits map[*Site]*Visit // guarded by mu, as all below
	order  []*Visit         // the one that was used last at the end
	idle   bool             // it waits for a simple request, the first one or another
	over   bool
	reset  bool
	heads  int64    // bytes that it has of Server.strange
	closed []func() // called when the connection is closed here
}

// NewClient makes a client of a connection. entered, unless nil, is called when a service lets it in for the first time: whoever only gets
// pages of this server's own costs no service anything, and none counts it. gone is called when the connection is over, and told whether
// entered was called before.
func (s *Server) NewClient(conn net.Conn, entered func(), gone func(entered bool)) *Client {
	c := &Client{Conn: conn, server: s, first: entered, visits: make(map[*Site]*Visit)}
	c.frames.begin()
	c.stream.from, c.stream.pool = clientAddr(conn.RemoteAddr()), &s.strange
	c.gone = func() {
		if gone != nil {
			gone(!c.said.CompareAndSwap(false, true))
		}
	}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.clients[c] = struct{}{}
		s.left.Add(1)
	}
	s.mu.Unlock()
	if closed {
		c.once.Do(c.gone)
		conn.Close()
	}
	return c
}

// Address is where the client is, with its port; "": nobody knows.
func (c *Client) Address() string {
	if c.Unknown {
		return ""
	}
	return c.RemoteAddr().String()
}

// addr is the client's address; the zero value where nobody knows it.
func (c *Client) addr() netip.Addr {
	if c.Unknown {
		return netip.Addr{}
	}
	return clientAddr(c.RemoteAddr())
}

// Read implements net.Conn.
func (c *Client) Read(b []byte) (int, error) {
	if c.plain && len(c.held) > 0 {
		return c.readOf(c.Conn, b)
	}
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return c.heard(b[:n], nil, c.Conn)
	}
	if c.strays(b) {
		return 0, c.refused(errStray)
	}
	if c.plain {
		c.limit(c.Conn)
	}
	// What has arrived is noted before it is read, so that hasArrived sees it at every moment: it is still with the kernel, or it was noted.
	if !c.next.begun.Load() {
		if err := c.awaitInput(); err != nil {
			return 0, err
		}
	}
	if !c.plain {
		n, err := c.Conn.Read(b)
		if n > 0 {
			c.next.begun.Store(true)
		}
		return n, err
	}
	return c.readOf(c.Conn, b)
}

// limit sets the read deadline that stream wants.
func (c *Client) limit(conn net.Conn) {
	if late := c.stream.late(); late != c.late {
		c.late = late
		conn.SetReadDeadline(late)
	}
}

// readOf reads what a client says, of the connection on which HTTP is spoken.
func (c *Client) readOf(conn net.Conn, b []byte) (n int, err error) {
	if len(c.held) > 0 {
		n = copy(b, c.held)
		c.held = c.held[n:]
		return c.heard(b[:n], nil, conn)
	}
	c.limit(conn)
	if n, err = conn.Read(b); n > 0 {
		c.next.begun.Store(true)
	}
	return c.heard(b[:n], err, conn)
}

// writeOf writes to a client, on the connection on which HTTP is spoken. net/http may take a line that it has half of for a request, and answer it.
func (c *Client) writeOf(conn net.Conn, b []byte) (int, error) {
	if c.shut.Load() {
		return len(b), nil
	}
	n, err := conn.Write(b)
	c.stream.wrote(b[:n])
	return n, err
}

// Write implements net.Conn.
func (c *Client) Write(b []byte) (int, error) {
	if !c.plain {
		return c.Conn.Write(b)
	}
	return c.writeOf(c.Conn, b)
}

// secured is the TLS connection of a client who speaks HTTP/1 inside.
type secured struct {
	*tls.Conn
	client *Client
}

// Read implements net.Conn.
func (s *secured) Read(b []byte) (int, error) {
	if s.client.strays(b) {
		return 0, s.client.refused(errStray)
	}
	return s.client.readOf(s.Conn, b)
}

// Write implements net.Conn.
func (s *secured) Write(b []byte) (int, error) { return s.client.writeOf(s.Conn, b) }

// securedHTTP2 is the TLS connection of a client who speaks HTTP/2 inside. net/http does not see that it is one: it would read and write
// the TLS below, where frames cannot be seen.
type securedHTTP2 struct {
	net.Conn
	client *Client
}

// NetConn returns the connection below TLS.
func (s *securedHTTP2) NetConn() net.Conn { return s.client }

// Read implements net.Conn.
func (s *securedHTTP2) Read(b []byte) (int, error) { return s.client.readOf(s.Conn, b) }

// Write implements net.Conn.
func (s *securedHTTP2) Write(b []byte) (int, error) { return s.client.writeOf(s.Conn, b) }

// mayCarryHTTP2 reports whether a TLS connection is one that HTTP/2 allows (RFC 9113, section 9.2).
func mayCarryHTTP2(state tls.ConnectionState) bool {
	switch state.CipherSuite {
	case tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return true
	}
	return state.Version >= tls.VersionTLS13
}

var (
	errLines = errors.New("the head of a request has too many lines")
	errHeads = errors.New("there is no room for long heads of requests")
	errStray = errors.New("it is not known where the next head begins")
)

// strays reports whether b is for a head that cannot be told from what is around it. net/http reads one byte while an answer is under way, to
// see whether the client is there: that is no head, and the answer to a request that came as a whole is not cut off for it.
func (c *Client) strays(b []byte) bool { return c.stray.Load() && len(b) > 1 }

// refused has the connection end, behind what was written to it.
func (c *Client) refused(why error) error {
	c.shut.Store(true)
	c.early.Store(true)
	return &net.OpError{Op: "read", Net: "tcp", Err: why}
}

// heard looks at what was read. It refuses a head of HTTP/1 that is too long, by a word to whoever sent it.
func (c *Client) heard(b []byte, err error, to io.Writer) (int, error) {
	http2 := c.stream.follows()
	n, err, ok := c.follow(b, err)
	if !ok || http2 {
		c.yield()
		return n, err
	}
	b = b[:n]
	lines, size := c.frames.read(b)
	why := errLines
	switch {
	case c.shut.Load():
	case lines > mostLines:
		c.refuseHead(to, http.StatusRequestHeaderFieldsTooLarge)
	case !c.mayHave(size):
		c.refuseHead(to, http.StatusServiceUnavailable)
		why = errHeads
		c.server.crowded(PoolStrangers, why)
	default:
		return len(b), err
	}
	return 0, c.refused(why)
}

func (c *Client) refuseHead(to io.Writer, status int) {
	fmt.Fprintf(to, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%[1]d %[2]s", status, http.StatusText(status))
}

// mayHave reports whether a client may have a head of so many bytes. All of those whom no service has let in share the room for long ones.
func (c *Client) mayHave(size int) bool {
	return size <= longHead || c.said.Load() || c.mayTake(size-longHead)
}

// mayTake reports whether a client may have so many bytes of the room for long heads.
func (c *Client) mayTake(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if want := (int64(n) + longHead - 1) / longHead * longHead; !c.over && c.heads < want {
		if !c.server.strange.Take(clientAddr(c.RemoteAddr()), want-c.heads) {
			return false
		}
		c.heads = want
	}
	return true
}

// giveHeads gives back what mayTake took.
func (c *Client) giveHeads() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveHeadsLocked()
}

func (c *Client) giveHeadsLocked() {
	if c.heads > 0 {
		c.server.strange.Give(clientAddr(c.RemoteAddr()), c.heads)
		c.heads = 0
	}
}

// answered notes that an answer of net/http's is complete.
func (c *Client) answered() {
	exact := c.frames.idle()
	c.giveHeads()
	if c.framed && !exact && !c.said.Load() {
		c.stray.Store(true)
	}
}

// awaitInput waits until a read of the connection returns at once, and notes it, where the connection can tell.
func (c *Client) awaitInput() error {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		there := sys.Readable(int(fd))
		if there {
			c.next.begun.Store(true)
		}
		return there
	})
}

// next is what is known of the next request of a client whom net/http serves.
type next struct {
	handedOver atomic.Bool   // net/http serves the client
	http2      atomic.Bool   // by HTTP/2
	requests   atomic.Uint64 // that net/http has begun with
	begun      atomic.Bool   // something was read behind the last one, or behind its answer, or is about to be read
	bodied     atomic.Bool   // the last one has a body
}

// handed notes that net/http serves the client from now on, and that so many bytes of a request were read.
func (n *next) handed(ahead int, http2 bool) {
	n.begun.Store(ahead > 0)
	n.http2.Store(http2)
	n.handedOver.Store(true)
}

// begins notes that net/http serves a request.
func (n *next) begins(r *http.Request) {
	n.requests.Add(1)
	n.http2.Store(r.ProtoMajor > 1)
	n.bodied.Store(r.Body != http.NoBody)
}

// changes notes what net/http is at with the connection.
func (n *next) changes(state http.ConnState) {
	switch {
	case state == http.StateActive: // a head was read, and nothing is read ahead yet
		n.begun.Store(false)
	case state == http.StateIdle && n.bodied.Load(): // what was read may have been the body
		n.begun.Store(false)
	}
}

// hasArrived reports whether something of a request has arrived that net/http has not begun with. With HTTP/2 what was read may be of something
// else, so only what nobody has read counts: a client knows by GOAWAY which requests were not served.
func (c *Client) hasArrived() bool {
	return c.next.handedOver.Load() && !c.busy() && (c.hasAsked() || c.next.begun.Load() && !c.next.http2.Load())
}

// onClose has f called when the connection is closed here.
func (c *Client) onClose(f func()) {
	c.mu.Lock()
	over := c.over
	if !over {
		c.closed = append(c.closed, f)
	}
	c.mu.Unlock()
	if over {
		f()
	}
}

// entered says that a service has let the client in.
func (c *Client) entered() {
	if c.said.CompareAndSwap(false, true) && c.first != nil {
		c.first()
	}
	c.stream.enter(&c.server.users, func() { c.server.crowded(PoolUsers, errStreams) })
	c.giveHeads()
}

// earlyTime is for how long the rest of a request is read whose answer is complete: a system that closes a connection on which something
// was not read resets it, and the reset may overtake the answer.
const earlyTime = 500 * time.Millisecond

// SetReadDeadline implements net.Conn. The rest of a request whose answer is complete has a limit, whatever net/http says.
func (c *Client) SetReadDeadline(t time.Time) error {
	if t.IsZero() && c.early.Load() {
		t = time.Now().Add(earlyTime)
	}
	return c.Conn.SetReadDeadline(t)
}

// Close implements net.Conn. The client leaves every service.
func (c *Client) Close() error {
	if c.early.CompareAndSwap(true, false) && !c.resets() && c.CloseWrite() == nil && c.Conn.SetReadDeadline(time.Now().Add(earlyTime)) == nil {
		io.Copy(io.Discard, c.Conn) // its end is that of the connection, whatever it is
	}
	c.orderly()
	err := c.Conn.Close()
	c.once.Do(c.leave)
	return err
}

func (c *Client) leave() {
	c.stream.end()
	c.mu.Lock()
	c.over = true
	c.giveHeadsLocked()
	all := c.order
	c.order = nil
	clear(c.visits)
	closed := c.closed
	c.closed = nil
	c.mu.Unlock()
	for _, f := range closed {
		f()
	}
	for _, v := range all {
		v.leave()
	}
	c.gone()
	c.server.mu.Lock()
	delete(c.server.clients, c)
	c.server.mu.Unlock()
	c.server.left.Done()
}

// busy reports whether a service is at a request of the client.
func (c *Client) busy() bool {
	c.mu.Lock()
	all := slices.Clone(c.order)
	c.mu.Unlock()
	return slices.ContainsFunc(all, func(v *Visit) bool { return !v.idle() })
}

func (c *Client) isOver() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

func (c *Client) resets() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reset
}

// Reset closes the connection with RST, so that what was sent is not taken for complete.
func (c *Client) Reset() {
	c.resetAtClose()
	c.Close()
}

// resetAtClose has the connection closed with RST, whoever closes it.
func (c *Client) resetAtClose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset = true
	c.lingerLocked(0)
}

// orderly has the connection closed with FIN behind all that was written, unless it is to be reset. It comes last: until then the kernel
// resets the connection if this process dies (sys.Listen), so that nobody takes what they have of an answer for all of it.
func (c *Client) orderly() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reset {
		c.lingerLocked(-1)
	}
}

// lingerLocked says how the kernel ends the connection when it is closed.
func (c *Client) lingerLocked(sec int) {
	for conn := c.Conn; conn != nil; {
		if l, ok := conn.(interface{ SetLinger(int) error }); ok {
			l.SetLinger(sec)
			break
		}
		below, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = below.NetConn()
	}
}

// setIdle says whether the client is waited for, for a simple request.
func (c *Client) setIdle(idle bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = idle
}

// wake has a read that waits for a simple request fail, unless something has arrived.
func (c *Client) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle {
		c.Conn.SetReadDeadline(time.Now())
	}
}

// hasAsked reports whether something has arrived of the client that nobody has read yet.
func (c *Client) hasAsked() (asked bool) {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	if raw, err := conn.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { asked = sys.Readable(int(fd)) })
	}
	return asked
}

// CloseWrite ends the direction to the client, where the connection can.
func (c *Client) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Visit is a client's time at one service: the exchanges of one connection with it.
type Visit struct {
	Client *Client
	Site   *Site
	Data   any // the owner's, set by Site.Enter

	served         atomic.Bool   // a request had a connection to the target
	resumes        atomic.Uint64 // under exchanges that are over
	sent, received atomic.Uint64
	bound          atomic.Bool                 // it has logged a connection to the target in, and shares none with other clients
	left           func(broken error)          // told when it is over
	moved          func(sent, received uint64) // told of bytes

	mu      sync.Mutex
	running map[*exchange]context.CancelCauseFunc // guarded by mu, as all below
	pool    *pool                                 // where connections are not shared with other clients
	over    bool
	broken  error // why an exchange of it did not come to its end; nil: all did
}

// Errors of visits.
var (
	errTooMany = errors.New("the connection has requests under way at too many services")
	errEnded   = errors.New("the client's connection to the service was ended")
	errBroken  = errors.New("an exchange did not come to its end")
)

// visit returns the client's visit at a site, and begins it if it is the first request.
func (c *Client) visit(site *Site) (*Visit, error) {
	c.mu.Lock()
	if v := c.visits[site]; v != nil {
		i := slices.Index(c.order, v)
		copy(c.order[i:], c.order[i+1:])
		c.order[len(c.order)-1] = v
		c.mu.Unlock()
		return v, nil
	}
	var old *Visit
	if len(c.order) >= mostVisits {
		i := slices.IndexFunc(c.order, (*Visit).idle)
		if i < 0 {
			c.mu.Unlock()
			return nil, errTooMany
		}
		old = c.order[i]
		c.order = slices.Delete(c.order, i, i+1)
		delete(c.visits, old.Site)
	}
	c.mu.Unlock()
	if old != nil {
		old.leave()
	}
	v := &Visit{Client: c, Site: site, running: make(map[*exchange]context.CancelCauseFunc)}
	left, moved, err := site.Enter(v)
	if err != nil {
		return nil, err
	}
	c.entered()
	v.mu.Lock()
	v.left, v.moved = left, moved
	ended := v.over // meanwhile
	v.mu.Unlock()
	if ended {
		v.leave()
		return nil, errEnded
	}
	c.mu.Lock()
	other := c.visits[site] // of another request of the same connection
	if other == nil && !c.over {
		c.visits[site] = v
		c.order = append(c.order, v)
	}
	over := c.over
	c.mu.Unlock()
	switch {
	case over:
		v.leave()
		return nil, net.ErrClosed
	case other != nil:
		v.leave()
		return other, nil
	}
	return v, nil
}

// Counts returns the bytes of bodies, from the client to the target and back.
func (v *Visit) Counts() (sent, received uint64) { return v.sent.Load(), v.received.Load() }

// End aborts the exchanges of the visit. The connection goes on if it is at other services as well. reset, unless nil, is called with
// each connection to the target that such an exchange has for itself, before it is closed.
func (v *Visit) End(reset func(target net.Conn)) {
	c := v.Client
	c.mu.Lock()
	if c.visits[v.Site] == v {
		delete(c.visits, v.Site)
		c.order = slices.DeleteFunc(c.order, func(o *Visit) bool { return o == v })
	}
	alone := len(c.order) == 0
	c.mu.Unlock()
	if alone {
		c.resetAtClose() // or an exchange that breaks closes the connection as if it were complete
	}
	running := v.stop()
	for x := range running { // before the end of the client closes them, which says less
		if up := x.upstream.Load(); reset != nil && up != nil && !x.options.H2C && up.user.Load() == x {
			reset(up.Conn)
		}
	}
	if alone {
		c.Close()
	}
	for _, cancel := range running {
		cancel(errEnded)
	}
	v.leave()
}

// stop lets no exchange begin any more, and returns those that run.
func (v *Visit) stop() map[*exchange]context.CancelCauseFunc {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.over = true
	for x := range v.running {
		v.breakLocked(x)
	}
	return maps.Clone(v.running)
}

func (v *Visit) idle() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.running) == 0
}

// leave is the end of a visit.
func (v *Visit) leave() {
	for _, cancel := range v.stop() {
		cancel(errEnded)
	}
	v.mu.Lock()
	left := v.left
	v.left = nil
	broken := v.broken
	pool := v.pool
	v.mu.Unlock()
	if pool != nil {
		pool.discard()
	}
	if left != nil {
		left(broken)
	}
}

// begin adds an exchange to the visit.
func (v *Visit) begin(x *exchange, cancel context.CancelCauseFunc) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over {
		return errEnded
	}
	v.running[x] = cancel
	return nil
}

// end takes an exchange from the visit. The first word counts.
func (v *Visit) end(x *exchange, complete bool) {
	x.dropHead()
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.running[x]; !ok {
		return
	}
	delete(v.running, x)
	v.resumes.Add(x.resumed())
	if !complete {
		v.breakLocked(x)
	}
}

// breakLocked notes why an exchange does not come to its end. The first reason counts, but for an order.
func (v *Visit) breakLocked(x *exchange) {
	why := errBroken
	if broke := x.broke.Load(); broke != nil {
		why = fmt.Errorf("%w: %w", ErrBroke, *broke)
	}
	if up := x.upstream.Load(); up != nil && up.ended() {
		v.broken, why = nil, ErrEnded
	}
	v.broken = cmp.Or(v.broken, why)
}

// Served reports whether a request of the visit had a connection to the target.
func (v *Visit) Served() bool { return v.served.Load() }

// Paused reports whether the visit waits for a connection to the target that has none itself.
func (v *Visit) Paused() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for x := range v.running {
		if up := x.upstream.Load(); up != nil && up.Paused != nil && up.Paused() {
			return true
		}
	}
	return false
}

// Resumes counts how often a connection to the target stood still and went on.
func (v *Visit) Resumes() uint64 {
	n := v.resumes.Load()
	v.mu.Lock()
	defer v.mu.Unlock()
	for x := range v.running {
		n += x.resumed()
	}
	return n
}

func (v *Visit) count(sent, received int) {
	if sent == 0 && received == 0 {
		return
	}
	v.sent.Add(uint64(sent))
	v.received.Add(uint64(received))
	v.moved(uint64(sent), uint64(received))
}
