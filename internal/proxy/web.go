package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/link"
	"reverser/internal/registry"
	"reverser/internal/relay"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/web"
	"reverser/internal/wire"
)

// webPort is the port of http/ names, and the server for what speaks HTTP there or elsewhere.
type webPort struct {
	ln     net.Listener // nil: there is none
	gate   *gate        // for those whom no service has let in yet
	server web.Server
	short  map[web.Pool]*traffic.Strain // for want of the server's memory; never changed
	tried  sync.Map                     // what this proxy is to answer itself, by the path that it asks for; see answersItself
}

func (p *Proxy) listenWeb() (err error) {
	if p.cfg.HTTP == "" {
		return nil
	}
	p.web.gate = newNamesGate(p.port.descriptors.Size(sys.ForUsers), p.cfg.Strangers, p.balancers.has)
	p.web.gate.about = "connections to the port for HTTP (http) that reached no service"
	p.web.gate.room.known.load(p.cfg.KnownUsers, time.Now())
	p.web.gate.what = what{
		places: "places at the port for HTTP (http) for who has reached no service",
		port:   "the port for HTTP (http)",
	}
	if p.web.ln, err = sys.Listen(grammar.ListenNetwork("tcp", p.cfg.HTTP), p.cfg.HTTP); err != nil {
		return fmt.Errorf("open the port for HTTP (http %s): %w", p.cfg.HTTP, err)
	}
	return nil
}

// acceptWeb accepts clients. Until a service lets it in, each has a place at the gate, as those have who say nothing: who asks for nothing
// that is served here is among the first to go when others come.
func (p *Proxy) acceptWeb(ln net.Listener) {
	p.acceptThrough(p.web.gate, ln, 0, sys.ForUsers, p.conns.Short(), func(conn net.Conn, pass *pass) {
		user, err := p.introduced(conn, pass)
		if err != nil {
			pass.leave(false)
			traffic.Reset(conn)
			p.port.descriptors.Give(sys.ForUsers)
			return
		}
		p.web.server.Serve(p.webClient(user, pass))
	})
}

// door is what a client of HTTP took when it came.
type door struct {
	descriptor atomic.Bool   // until a service has admitted it, which takes another one
	held       registry.Held // requests that wait for a bridge
	pass       *pass
}

// webClient makes a client of a connection. With TLS it is what TLS is spoken over. It takes over the descriptor and the pass.
func (p *Proxy) webClient(conn net.Conn, pass *pass) *web.Client {
	d := &door{pass: pass}
	d.descriptor.Store(true)
	c := p.web.server.NewClient(conn, func() { pass.leave(true) }, func(entered bool) {
		if !entered {
			pass.leave(false)
		}
		p.giveDoor(d)
	})
	c.Data, c.Unknown = d, !entrance.Client(conn).IsValid()
	return c
}

// unserved reports whether a client that no service has let in may have an answer of the proxy's own.
func unserved(c *web.Client, named bool) bool { return c.Data.(*door).pass.unserved(named) }

func (p *Proxy) giveDoor(d *door) {
	if d.descriptor.CompareAndSwap(true, false) {
		p.port.descriptors.Give(sys.ForUsers)
	}
}

// findSite returns the site of the most specific name for a request.
func (p *Proxy) findSite(secure bool, host, path string) *web.Site {
	if rt := p.find(kindOf(secure), host, path); rt != nil {
		return p.service(rt).site
	}
	return nil
}

// away reports whether a request that has no site is for a service whose bridge went away.
func (p *Proxy) away(secure bool, host, path string) bool {
	for name := range entrance.Names(kindOf(secure), host, path) {
		if p.registry.Away(name) {
			return true
		}
	}
	return false
}

func kindOf(secure bool) grammar.Kind {
	if secure {
		return grammar.KindHTTPS
	}
	return grammar.KindHTTP
}

// before returns what the proxy answers itself, whoever serves the host and path; nil: the request is for a service.
func (p *Proxy) before(r *http.Request) http.HandlerFunc {
	if answer := p.answersItself(r); answer != nil {
		return answer
	}
	return p.proof(r)
}

// newSite makes a site of a route.
func (p *Proxy) newSite(rt *registry.Route) *web.Site {
	return &web.Site{
		Name: rt.Public.String(), Key: rt.Key, Options: rt.Options,
		Inspect: func(o *grammar.ProxyOptions) *inspect.Recorder { return p.record(rt, o) },
		Over:    func() func(web.Request) { return p.requestOver(rt) },
		Enter:   func(v *web.Visit) (func(error), func(uint64, uint64), error) { return p.visit(rt, v) },
		Dial: func(ctx context.Context, call web.Call, retired func()) (*web.Upstream, error) {
			return dialRoute(ctx, rt, call, retired)
		},
	}
}

// visit counts a client in at a service, as a pair: one for each connection and service.
func (p *Proxy) visit(rt *registry.Route, v *web.Visit) (left func(error), moved func(uint64, uint64), err error) {
	a, err := p.conns.Admit(p.service(rt).account, entrance.Client(v.Client.Conn), traffic.NoWait)
	switch {
	case errors.Is(err, traffic.ErrDraining):
		return nil, nil, fmt.Errorf("%w: %w", web.ErrShut, err)
	case err != nil:
		return nil, nil, fmt.Errorf("%w: %w", web.ErrLimit, err)
	}
	if rt.Drained() {
		a.Refuse(traffic.RefusedDrained, "client refused", "service", a.Service(), "client", v.Client.Address(), "err", registry.ErrDrained)
		return nil, nil, fmt.Errorf("%w: %w", web.ErrShut, registry.ErrDrained)
	}
	if d, ok := v.Client.Data.(*door); ok {
		p.giveDoor(d)
	}
	vr := &visitor{visit: v, wg: &p.wg}
	v.Data = a
	a.BindPair(vr, rt.Target())
	return vr.left, a.Moved, nil
}

// visitor is a web.Visit as traffic sees it.
type visitor struct {
	visit *web.Visit
	wg    *sync.WaitGroup

	mu     sync.Mutex
	ended  func(relay.Reason) // guarded by mu, as all below
	reason relay.Reason       // why it was ended here; "": it was not
}

// Start implements traffic.Pair.
func (v *visitor) Start(_ *relay.Poller, ended func(relay.Reason)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended = ended
}

// End implements traffic.Pair. The bridge is told the code too, where the client has connections to the target for itself.
func (v *visitor) End(reason relay.Reason, code wire.Code) {
	v.mu.Lock()
	first := v.reason == ""
	if first {
		v.reason = reason
	}
	v.mu.Unlock()
	if first {
		v.wg.Go(func() {
			v.visit.End(func(target net.Conn) {
				if c, ok := target.(*targetConn); ok {
					c.Stream.Reset(code)
				}
			})
		})
	}
}

// left is called once, when the visit is over.
func (v *visitor) left(broken error) {
	v.mu.Lock()
	switch {
	case v.reason != "":
	case broken == nil:
		v.reason = relay.ReasonEOF
	case errors.Is(broken, web.ErrEnded):
		v.reason = relay.ReasonEnded
	case errors.Is(broken, web.ErrRemoved):
		v.reason = relay.ReasonRemoved
	case errors.Is(broken, web.ErrAway):
		v.reason = relay.ReasonDrain
	case errors.Is(broken, web.ErrLost):
		v.reason = relay.ReasonLinkLost
	case errors.Is(broken, web.ErrBroke):
		v.reason = relay.ReasonTargetReset
	default:
		v.reason = relay.ReasonClientReset
	}
	reason := v.reason
	v.mu.Unlock()
	v.ended(reason)
}

// Counts, HalfClosed, Paused and Resumes implement traffic.Pair.
func (v *visitor) Counts() (sent, received uint64) { return v.visit.Counts() }

// HalfClosed implements traffic.Pair.
func (v *visitor) HalfClosed() bool { return false }

// Paused implements traffic.Pair.
func (v *visitor) Paused() bool { return v.visit.Paused() }

// Resumes implements traffic.Pair.
func (v *visitor) Resumes() uint64 { return v.visit.Resumes() }

// dialRoute opens a stream for a request. While the bridge is away, it waits as other users do.
func dialRoute(ctx context.Context, rt *registry.Route, call web.Call, retired func()) (*web.Upstream, error) {
	client := call.Visit.Client
	by := wire.EntranceHTTP
	if rt.Public.Kind == grammar.KindHTTPS {
		by = wire.EntranceHTTPS
	}
	var held *registry.Held
	if d, ok := client.Data.(*door); ok {
		held = &d.held
	}
	a := call.Visit.Data.(*traffic.Admission)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(a.Holding(), func() { cancel(web.ErrAway) })()
	t, err := rt.Take(ctx, registry.User{
		Open: wire.Open{
			Client: entrance.Client(client.Conn), Local: traffic.AddrPort(client.LocalAddr()), Entrance: by,
			More: &wire.OpenMore{Host: call.Host, Trace: call.ID},
		},
		Left: func() bool { return ctx.Err() != nil },
		In:   call.Visit.Served(),
		Held: held,
	})
	switch {
	case errors.Is(err, registry.ErrAway), errors.Is(err, context.Canceled) && a.Holding().Err() != nil:
		return nil, fmt.Errorf("%w: %w", web.ErrAway, err)
	case errors.Is(err, registry.ErrDrained): // while the request waited
		return nil, fmt.Errorf("%w: %w", web.ErrShut, err)
	case errors.Is(err, registry.ErrRemoved):
		return nil, web.ErrRemoved
	case errors.Is(err, registry.ErrLeft), errors.Is(err, context.Canceled):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", web.ErrLimit, err)
	}
	if !slices.Equal(t.Offer.Options().BasicAuth, call.Options.BasicAuth) { // they were changed while the request waited
		t.Stream.Reset(wire.CodeReset)
		t.Stream.Close()
		t.Leave()
		return nil, fmt.Errorf("%w: the passwords of the service were changed", web.ErrAway)
	}
	forget := t.Offer.WhenRetired(retired)
	leave := func() {
		forget()
		t.Leave()
	}
	return &web.Upstream{Conn: &targetConn{Stream: t.Stream, leave: leave}, Paused: t.Stream.Paused, Resumes: t.Stream.Resumes, Quiet: t.Stream.Quiet, ID: call.ID}, nil
}

// targetConn is a stream to a target, as web sees it.
type targetConn struct {
	*link.Stream
	leave func()
	once  sync.Once
}

// Read implements net.Conn. Its error says what the bridge said.
func (c *targetConn) Read(b []byte) (int, error) {
	n, err := c.Stream.Read(b)
	return n, c.explain(err)
}

// Write implements net.Conn. It may meet a reset before Read does.
func (c *targetConn) Write(b []byte) (int, error) {
	n, err := c.Stream.Write(b)
	return n, c.explain(err)
}

// resets are what the codes of a bridge's resets mean for a request.
var resets = map[wire.Code]error{
	wire.CodeRefused: web.ErrRefused, wire.CodeUnreachable: web.ErrUnreachable, wire.CodeLimit: web.ErrLimit, wire.CodeService: web.ErrRemoved,
	wire.CodeDrain: web.ErrAway, wire.CodeEnded: web.ErrEnded,
	wire.CodeAborted: web.ErrLost,
}

// explain adds to an error what the bridge said.
func (c *targetConn) explain(err error) error {
	if errors.Is(err, link.ErrReset) {
		if why := resets[c.Stream.Code()]; why != nil {
			return fmt.Errorf("%w: %w", why, err)
		}
	}
	return err
}

// Close implements net.Conn.
func (c *targetConn) Close() error {
	c.once.Do(c.leave)
	return c.Stream.Close()
}

// Reset closes the connection so that the target sees a reset.
func (c *targetConn) Reset() {
	c.Stream.Reset(wire.CodeReset)
	c.Close()
}

// webFailed logs a request that a page answered.
func (p *Proxy) webFailed(f web.Failure) {
	if f.Visit == nil || f.Status == http.StatusBadRequest {
		p.webRefused(f)
		return
	}
	args := []any{"service", f.Site.Name, "client", f.Client.Address(), "request", f.ID, "status", f.Status, "err", f.Err}
	if f.Opened != "" && f.Opened != f.ID {
		args = append(args, "opened", f.Opened) // by an earlier request, whose id the bridge has
	}
	a := f.Visit.Data.(*traffic.Admission)
	switch {
	case errors.Is(f.Err, web.ErrRefused):
		a.NotReached(traffic.RefusedTarget, nil)
	case errors.Is(f.Err, web.ErrUnreachable):
		a.NotReached(traffic.RefusedUnreachable, nil)
	}
	a.Note("request not answered by its target", args...)
}

// webRefused logs a request that came to no service, or whose end shows that it is malformed. What strangers ask for is of interest to those who look for it.
func (p *Proxy) webRefused(f web.Failure) {
	level, who, service := slog.LevelDebug, any(p.web.gate), ""
	switch {
	case errors.Is(f.Err, web.ErrLimit), errors.Is(f.Err, web.ErrAway), errors.Is(f.Err, web.ErrShut):
		return // it has been said
	case f.Site != nil && f.Status != 401 && f.Status != 400: // 401 is how a browser learns that a password is needed
		level, who, service = slog.LevelInfo, f.Site, f.Site.Name
	}
	args := []any{"client", f.Client.Address(), "request", f.ID, "status", f.Status}
	if service != "" {
		args = append(args, "service", service)
	}
	if f.Err != nil {
		args = append(args, "err", f.Err)
	}
	p.say.Say(level, who, "request refused", args...)
}

// find returns the route of the most specific name for a host and a path; nil: nobody serves it.
func (p *Proxy) find(kind grammar.Kind, host, path string) *registry.Route {
	view := p.registry.View()
	for name := range entrance.Names(kind, host, path) {
		if rt := view.Find(name); rt != nil {
			return rt
		}
	}
	return nil
}
