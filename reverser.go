// Package reverser gives a program a listener whose public address is on a proxy somewhere else: the program serves from
// behind a NAT as if it stood there.
//
//	ln, err := reverser.Listen(ctx, reverser.Config{Token: os.Getenv("REVERSER_TOKEN"), Public: "9000"})
//	if err != nil { ... }
//	http.Serve(ln, handler)
//
// The connections that it accepts survive a break of the link to the proxy. `reverser proxy` is the other end, and
// `reverser key add NAME --allow tcp/9000` there makes the token. A [Client] has several listeners on one link.
package reverser

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
)

// Config says what Listen asks for.
type Config struct {
	Token  string       // that `reverser key add` printed
	Proxy  string       // host:port of the proxy's link port; "": the token's
	Public string       // what to listen on at the proxy: 9000, tcp/9000, tcp/127.0.0.1:9000
	Log    *slog.Logger // nil: discard; the first listener of a token decides
}

// ErrDenied says that the proxy's policy for the key does not allow the public address.
var ErrDenied = errors.New("denied by the proxy")

// Listen connects to the proxy and returns when the public address is open there. It is [Client.Listen] on a client that all
// listeners of a token and proxy in this program share: the link ends when the last of these listeners and of their
// connections is closed. The end of ctx closes the listener.
func Listen(ctx context.Context, cfg Config) (net.Listener, error) {
	s, err := shared.join(ctx, cfg)
	if err != nil {
		return nil, err
	}
	ln, err := s.client.listen(ctx, cfg.Public, s)
	if err != nil {
		if s.leave() {
			<-s.ended
		}
		return nil, err
	}
	return ln, nil
}

// sharing holds the clients that listeners of a token share.
type sharing struct {
	mu      sync.Mutex
	clients map[sharedKey]*sharedClient // guarded by mu
}

type sharedKey struct{ token, proxy string }

// sharedClient is a client that ends with the last that uses it.
type sharedClient struct {
	key    sharedKey
	client *Client
	users  int           // listeners and connections; guarded by sharing.mu
	ended  chan struct{} // closed when the client's link is gone
}

var shared = sharing{clients: make(map[sharedKey]*sharedClient)}

// join returns the client of a token, and counts one more that uses it. A link that is ending is waited for: the proxy takes one
// link of a key.
func (sh *sharing) join(ctx context.Context, cfg Config) (*sharedClient, error) {
	key := sharedKey{cfg.Token, cfg.Proxy}
	for {
		sh.mu.Lock()
		s := sh.clients[key]
		if s == nil {
			s = &sharedClient{key: key, client: &Client{Token: cfg.Token, Proxy: cfg.Proxy, Log: cfg.Log}, ended: make(chan struct{})}
			sh.clients[key] = s
		} else if s.users == 0 {
			sh.mu.Unlock()
			select {
			case <-s.ended:
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		s.users++
		sh.mu.Unlock()
		return s, nil
	}
}

// enter counts one more that uses the client. It reports false when nobody does any more: the client is ending.
func (s *sharedClient) enter() bool {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if s.users == 0 {
		return false
	}
	s.users++
	return true
}

// leave counts one less, and reports whether it was the last one: then the link ends when the proxy has what was sent.
func (s *sharedClient) leave() (last bool) {
	shared.mu.Lock()
	s.users--
	last = s.users == 0
	shared.mu.Unlock()
	if last {
		s.client.finish(s.end)
	}
	return last
}

// end is called when the link is gone.
func (s *sharedClient) end() {
	shared.mu.Lock()
	delete(shared.clients, s.key)
	shared.mu.Unlock()
	close(s.ended)
}
