// Package reverser gives a program a listener whose public address is on a proxy somewhere else: the program serves from
// behind a NAT as if it stood there.
//
//	ln, err := reverser.Listen(ctx, reverser.Config{Token: os.Getenv("REVERSER_TOKEN"), Public: "9000"})
//	if err != nil { ... }
//	http.Serve(ln, handler)
//
// The connections that it accepts survive a break of the link to the proxy. `reverser proxy` is the other end, and
// `reverser key add NAME --allow tcp/9000` there makes the token.
package reverser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"reverser/internal/bridge"
	"reverser/internal/grammar"
	"reverser/internal/status"
)

// Config says what Listen asks for.
type Config struct {
	Token  string       // that `reverser key add` printed
	Proxy  string       // host:port of the proxy's link port; "": the token's
	Public string       // what to listen on at the proxy: 9000, tcp/9000, tcp/127.0.0.1:9000
	Log    *slog.Logger // nil: discard
}

// ErrDenied says that the proxy's policy for the key does not allow the public address.
var ErrDenied = errors.New("denied by the proxy")

// Listen connects to the proxy and returns when the public address is open there. It returns an error that wraps
// ErrDenied when the key may not have it, and goes on trying for as long as ctx lives when the proxy cannot be reached or
// the address is taken. Closing the listener gives the address back and resets the connections that are left; so does the
// end of ctx.
func Listen(ctx context.Context, cfg Config) (net.Listener, error) {
	tok, err := grammar.ParseToken(cfg.Token)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	pub, err := grammar.ParsePublic(cfg.Public)
	if err == nil {
		err = pub.Supported()
	}
	if err != nil {
		return nil, fmt.Errorf("public: %w", err)
	}
	l := &listener{pub: pub, conns: make(chan net.Conn), done: make(chan struct{})}
	b, err := bridge.New(bridge.Config{
		Token: tok, Proxies: proxies(cfg.Proxy), Log: cfg.Log, Version: "library",
		Settings: bridge.Settings{Services: []bridge.Service{{Public: pub, Handle: l.hand}}},
	})
	if err != nil {
		return nil, err
	}
	ctx, l.cancel = context.WithCancel(ctx)
	l.running.Go(func() {
		defer context.AfterFunc(ctx, l.finish)()
		b.Run(ctx)
		l.finish()
	})
	s, err := b.Await(ctx, pub)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", pub, err)
	}
	if s.State == status.ServiceDenied {
		l.Close()
		return nil, fmt.Errorf("%w: %s", ErrDenied, s.Reason)
	}
	return l, nil
}

func proxies(addr string) []bridge.Proxy {
	if addr == "" {
		return nil
	}
	return []bridge.Proxy{{Addr: addr}}
}

type listener struct {
	pub     grammar.Public
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// hand passes a connection to Accept.
func (l *listener) hand(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	}
}

func (l *listener) finish() { l.once.Do(func() { close(l.done) }) }

// Accept waits for the next user's connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Close ends the listener and the link behind it.
func (l *listener) Close() error {
	l.finish()
	l.cancel()
	l.running.Wait()
	return nil
}

// Addr is the public address; its IP is unspecified when the proxy listens on all of its own.
func (l *listener) Addr() net.Addr {
	return &net.TCPAddr{IP: net.ParseIP(l.pub.Host), Port: int(l.pub.Port)}
}
