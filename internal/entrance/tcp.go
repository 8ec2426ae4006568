// Package entrance opens public sockets and finds the public name for each connection.
//
// A Set opens and closes the sockets that a registry wants. It hands each connection on under the name of its socket. Probes
// recognises a bridge that proves its port (probe.go). The package does not know who serves a name, or whether anybody does.
//
// Goroutines: one for each socket, its accept loop, and one while it is being opened. Set.Shut closes the sockets and waits for both.
package entrance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"reverser/internal/grammar"
	"reverser/internal/registry"
	"reverser/internal/sys"
	"reverser/internal/traffic"
)

// Config says what a Set does with what it opens.
type Config struct {
	Log     *slog.Logger
	Bind    string                                                       // address of sockets that have none of their own; "": every one
	Listen  func(network, addr string) (net.Listener, error)             // nil: sys.Listen
	Opened  func(s registry.Socket, attempt uint64, err error) (ok bool) // what became of opening a socket; false: nobody wants it any more
	Arrived func(name grammar.Public, conn net.Conn)                     // somebody connected; the next one is accepted when it returns

	Descriptors *sys.Pool // that sockets are taken from; nil: those of the process
}

// Set is the open sockets of a proxy.
type Set struct {
	cfg  Config
	ctx  context.Context // ends with Shut
	stop context.CancelFunc
	wg   sync.WaitGroup
	turn chan struct{} // one element for each socket that is being opened

	mu   sync.Mutex
	open map[registry.Socket]net.Listener // guarded by mu, as all below
	shut bool
}

// openings is how many sockets are opened at once. It bounds the threads that listening may hold up.
const openings = 32

// New returns a Set without a socket.
func New(cfg Config) *Set {
	if cfg.Listen == nil {
		cfg.Listen = sys.Listen
	}
	if cfg.Descriptors == nil {
		cfg.Descriptors = sys.Descriptors()
	}
	s := &Set{cfg: cfg, turn: make(chan struct{}, openings), open: make(map[registry.Socket]net.Listener)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Room returns how many sockets could be opened now.
func (s *Set) Room() int { return s.cfg.Descriptors.Free(sys.ForListeners) }

// errNoDescriptor says that users came first.
var errNoDescriptor = errors.New("no descriptor is left: raise the limit (ulimit -n, LimitNOFILE=)")

// Open begins to open a socket. Config.Opened is called with what became of it. What Room counts is taken when Open returns.
func (s *Set) Open(sock registry.Socket, attempt uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.shut { // else nobody waits for an answer
		taken := s.cfg.Descriptors.Take(sys.ForListeners)
		s.wg.Go(func() { s.serve(sock, attempt, taken) })
	}
}

// serve opens a socket and takes connections there until it is closed.
func (s *Set) serve(sock registry.Socket, attempt uint64, taken bool) {
	var ln net.Listener
	err := errNoDescriptor
	if taken {
		if ln, err = s.listen(sock); err != nil {
			s.cfg.Descriptors.Give(sys.ForListeners)
		}
	}
	if !s.cfg.Opened(sock, attempt, err) && err == nil {
		s.Close(sock)
	}
	if err != nil {
		return
	}
	name := sock.Public() // a tcp/ socket stands for one name
	traffic.Accept(s.ctx, ln, traffic.Crowd, s.cfg.Log, func(conn net.Conn) { s.cfg.Arrived(name, conn) })
}

func (s *Set) listen(sock registry.Socket) (net.Listener, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
	at := sock.Public().At(s.cfg.Bind)
	ln, err := s.cfg.Listen(at.ListenNetwork(), at.ListenAddr())
	if err != nil {
		if hint := sys.PortHint(err); hint != "" {
			err = fmt.Errorf("%w: %s", err, hint)
		}
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		ln.Close()
		return nil, net.ErrClosed
	}
	s.open[sock] = ln
	return ln, nil
}

// Close closes a socket. When it returns, another one can be opened in its place.
func (s *Set) Close(sock registry.Socket) {
	s.mu.Lock()
	ln := s.open[sock]
	delete(s.open, sock)
	s.mu.Unlock()
	if ln != nil {
		s.close(ln)
	}
}

func (s *Set) close(ln net.Listener) {
	ln.Close()
	s.cfg.Descriptors.Give(sys.ForListeners)
}

// Shut closes all sockets, for good, and waits for their goroutines.
func (s *Set) Shut() {
	s.mu.Lock()
	s.shut = true
	lns := s.open
	s.open = nil
	s.mu.Unlock()
	s.stop()
	for _, ln := range lns {
		s.close(ln)
	}
	s.wg.Wait()
}
