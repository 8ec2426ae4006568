package reverser

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"

	"reverser/internal/bridge"
	"reverser/internal/escape"
	"reverser/internal/grammar"
	"reverser/internal/status"
	"reverser/internal/via"
)

// Client is one link to a proxy with any number of listeners on it. A proxy takes one link of a key at a time, so a program
// that needs several public addresses gets them from one Client. Its zero value needs a Token; the fields are not changed
// after the first call of a method.
type Client struct {
	Token string       // that `reverser key add` printed
	Proxy string       // host:port of the proxy's link port; "": the token's
	Via   string       // an HTTP proxy or SOCKS5 server on the way out, http://[user:password@]host:port or socks5://…; "": none
	Log   *slog.Logger // nil: discard

	mu        sync.Mutex
	bridge    *bridge.Bridge // nil before the first Listen; guarded by mu, as all below
	way       via.Choice
	stop      context.CancelFunc
	listeners map[grammar.Public]*listener
	closed    bool
	ended     func() // called when the link is gone; nil: nobody waits
	running   sync.WaitGroup
}

// Listen returns a listener when the public address is open at the proxy: 9000, tcp/9000, tcp/127.0.0.1:9000. It returns an error
// that wraps [ErrDenied] when the key may not have it. While the proxy cannot be reached, refuses the key or cannot open the
// address, Listen goes on trying until ctx ends; the error then wraps the context's and names the last cause. Once Listen has
// returned, the end of ctx does nothing.
//
// Closing the listener gives the address back. Connections that were accepted go on.
func (c *Client) Listen(ctx context.Context, public string) (net.Listener, error) {
	return c.listen(ctx, public, nil)
}

func (c *Client) listen(ctx context.Context, public string, s *sharedClient) (net.Listener, error) {
	pub, err := grammar.ParsePublic(public)
	if err == nil {
		err = pub.Supported()
	}
	if err != nil {
		return nil, fmt.Errorf("public: %w", err)
	}
	l := &listener{client: c, shared: s, pub: pub, conns: make(chan net.Conn), done: make(chan struct{}), ctx: context.Background()}
	if s != nil {
		l.ctx = ctx
	}
	b, err := c.add(l)
	if err != nil {
		return nil, err
	}
	st, err := b.Await(ctx, pub)
	switch {
	case err != nil:
		err = fmt.Errorf("listen on %s: %w", pub, err)
	case st.State == status.ServiceDenied:
		err = fmt.Errorf("%w: %s", ErrDenied, st.Reason)
	}
	if err != nil {
		l.finish() // a user may have come already
		c.remove(l)
		return nil, escaped{err}
	}
	if at, err := grammar.ParsePublic(st.Public); err == nil {
		l.addr = &net.TCPAddr{IP: net.ParseIP(at.Host), Port: int(at.Port)}
	}
	l.stop = context.AfterFunc(l.ctx, func() { l.Close() })
	return l, nil
}

// escaped is an error that may quote the proxy. Programs print it on terminals.
type escaped struct{ err error }

func (e escaped) Error() string { return escape.Text(e.err.Error()) }
func (e escaped) Unwrap() error { return e.err }

// add offers what l listens on, and connects to the proxy before the first time.
func (c *Client) add(l *listener) (*bridge.Bridge, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	if c.bridge == nil {
		if err := c.connectLocked(); err != nil {
			return nil, err
		}
	}
	if c.listeners[l.pub] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: fmt.Errorf("%s: %w", l.pub, syscall.EADDRINUSE)}
	}
	c.listeners[l.pub] = l
	if err := c.applyLocked(); err != nil {
		delete(c.listeners, l.pub)
		return nil, err
	}
	return c.bridge, nil
}

func (c *Client) connectLocked() error {
	tok, err := grammar.ParseToken(c.Token)
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	cfg := bridge.Config{Token: tok, Log: c.Log, Version: "library"}
	if c.Via != "" {
		if c.way.Way, err = via.Parse(c.Via); err != nil {
			return fmt.Errorf("via: %w", err)
		}
		cfg.Settings.Via = c.way
	}
	if c.Proxy != "" {
		cfg.Proxies = []bridge.Proxy{{Addr: c.Proxy}}
	}
	if c.bridge, err = bridge.New(cfg); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop, c.listeners = stop, make(map[grammar.Public]*listener)
	b := c.bridge
	c.running.Go(func() {
		b.Run(ctx)
		stop()
		c.mu.Lock()
		ended := c.ended
		c.mu.Unlock()
		if ended != nil {
			ended()
		}
	})
	return nil
}

// applyLocked has the bridge offer what the listeners listen on.
func (c *Client) applyLocked() error {
	services := make([]bridge.Service, 0, len(c.listeners))
	for _, l := range c.listeners {
		services = append(services, bridge.Service{Public: l.pub, Handle: l.hand})
	}
	_, err := c.bridge.Apply(context.Background(), bridge.Settings{Services: services, Via: c.way})
	return err
}

// remove takes back what l listens on.
func (c *Client) remove(l *listener) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listeners[l.pub] == l {
		delete(c.listeners, l.pub)
		c.applyLocked() // fewer services are always taken
	}
}

// Close closes all listeners, resets the connections that are left, and ends the link.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	stop := c.stop
	for _, l := range c.listeners {
		l.finish()
	}
	c.mu.Unlock()
	if stop != nil {
		stop()
	}
	c.running.Wait()
	return nil
}

// finish ends the link when the proxy has what was sent, and calls ended when it is gone. There are no listeners and connections any
// more.
func (c *Client) finish(ended func()) {
	c.mu.Lock()
	c.closed, c.ended = true, ended
	b := c.bridge
	c.mu.Unlock()
	if b == nil {
		ended()
		return
	}
	b.Drain()
}

// listener is a public address at the proxy.
type listener struct {
	client *Client
	shared *sharedClient // nil: the client is the program's
	pub    grammar.Public
	addr   *net.TCPAddr
	conns  chan net.Conn
	ctx    context.Context // its end closes the listener
	done   chan struct{}   // closed by finish
	once   sync.Once
	closed sync.Once
	stop   func() bool
}

// conn is a connection that the program closes.
type conn struct {
	stream
	once   sync.Once
	closed func()
}

// stream is a *link.Stream.
type stream interface {
	net.Conn
	CloseWrite() error
}

func (c *conn) Close() error {
	err := c.stream.Close()
	c.once.Do(c.closed)
	return err
}

// hand passes a connection to Accept.
func (l *listener) hand(c net.Conn) {
	if l.shared != nil && l.shared.enter() {
		c = &conn{stream: c.(stream), closed: func() { l.shared.leave() }}
	}
	select {
	case l.conns <- c:
	case <-l.ctx.Done():
		c.Close()
	case <-l.done:
		c.Close()
	}
}

func (l *listener) finish() { l.once.Do(func() { close(l.done) }) }

// Accept waits for the next user's connection.
func (l *listener) Accept() (net.Conn, error) {
	if !l.over() {
		select {
		case c := <-l.conns:
			if !l.over() {
				return c, nil
			}
			c.Close() // both were ready
		case <-l.ctx.Done():
		case <-l.done:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
}

// over reports whether the listener was closed. It sees the end of the context before Close has run for it.
func (l *listener) over() bool {
	select {
	case <-l.done:
		return true
	default:
		return l.ctx.Err() != nil
	}
}

// Close gives the public address back. Connections that were accepted go on.
func (l *listener) Close() error {
	l.finish()
	l.closed.Do(func() {
		l.stop()
		l.client.remove(l)
		if l.shared != nil && l.shared.leave() {
			<-l.shared.ended
		}
	})
	return nil
}

// Addr is the public address; its IP is unspecified when the proxy listens on all of its own.
func (l *listener) Addr() net.Addr { return l.addr }
