// Package admin is how the command line and the page talk to a live process: HTTP over the
// unix socket in the state directory.
//
// openapi.yaml describes all that is answered, and is an answer itself: GET /api/v1/openapi.yaml. Each part
// of the API has a file here with its handlers, the calls of [Client] for them, and a function that [Server.newAPI] calls to register
// them. Errors are problems as in RFC 9457.
//
// Whoever can open the socket may do everything: its mode lets only the
// process's own user in. A TCP address, which [Server.ServeTCP] serves, may be asked by anybody, pages in browsers included: guard.go
// stands in front of it. The package reads snapshots, edits the stored keys and
// passes orders on; it knows neither proxy nor bridge. The socket is answered also when the process
// is out of file descriptors: what users and bridges take comes from sys.Pool, which keeps some for it.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"reverser/internal/events"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/status"
)

// UsageError is a refusal of what was asked, as against a failure to do it.
// It crosses the socket, so that the command line can exit with 2.
type UsageError struct {
	Err error
	// Code is the status of HTTP that says so: 400 if what was asked makes no sense, 404 if it is about something that is not there, and
	// 409, also for 0, if it cannot be done as things are.
	Code int
}

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Orders are what a process does when it is told to. Errors that are of what was asked are a [*UsageError].
type Orders interface {
	// Reload puts the settings in force as they are now: all, or with an error none.
	Reload(context.Context) (Reloaded, error)
}

// Notified is what became of a test of one [[notify]].
type Notified struct {
	To    string `json:"to"`
	Error string `json:"error"` // "" if it took the message
}

// Reloaded is what a reload did, in words for people.
type Reloaded struct {
	Changed     []string `json:"changed"`     // one for each setting that is different
	Unconfirmed []string `json:"unconfirmed"` // what the other end has not confirmed so far
	Warnings    []string `json:"warnings"`    // about the configuration, and services that the other end does not serve
}

// Page serves a page and the files that it loads. It is asked by GET and HEAD only. At a TCP address the files are for everybody, and so is the
// page for browsers: none may hold anything of the process.
type Page interface {
	http.Handler
	Has(path string) bool // the path is that of the page or of one of its files
}

// Server answers on the admin socket, and at a TCP address. Status must be set; a bridge has no Keys.
type Server struct {
	Status func() status.Snapshot
	Keys   Keys
	Orders Orders // nil: it takes none
	// End resets the connections that are meant, and returns how many they were.
	End func(Which) int
	// Drain lets nobody new in to some services, or undoes that; nil: it is no order for this process.
	Drain func(context.Context, DrainOrder) (Drained, error)
	// Inspected returns what is kept of the exchanges of a service; nil: nothing is. Without the function the process speaks no HTTP.
	Inspected func(grammar.Public) *inspect.Recorder
	// Events is what was logged last; nil: nothing is kept.
	Events *events.Log
	Usage  Usage // nil: it keeps none
	// Metrics answers scrapes of Prometheus; nil: there are none.
	Metrics http.Handler
	// TestNotices sends a message to each [[notify]].
	TestNotices func(context.Context) []Notified
	// Doctor returns what only the process itself can look at for `reverser doctor`; nil: nothing is.
	Doctor func(context.Context) []status.Check
	Page   Page         // for people, with a browser; nil: there is none
	Log    *slog.Logger // nil discards

	examining sync.Mutex // held while Doctor looks
	watchOnce sync.Once
	watch     *watch
}

const (
	maxRequest = 1 << 20
	maxHeader  = 16 << 10 // net/http takes 4 KiB more
	// A stuck client must not hold a descriptor for ever.
	requestTimeout = 10 * time.Second
	stopGrace      = time.Second
	// So many are answered at once; the descriptors that nothing else may take are enough for them and for what they read and write.
	maxConnections = 8
)

// Serve answers on the admin socket l until ctx ends, and closes l. Nothing is at work for a
// request any more when it returns.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	a := s.newAPI(ctx, maxConnections/2)
	a.handleProfiles()
	srv := &http.Server{
		Handler:        a.handler(),
		ReadTimeout:    requestTimeout,
		WriteTimeout:   requestTimeout,
		IdleTimeout:    requestTimeout,
		MaxHeaderBytes: maxHeader,
	}
	return s.run(ctx, srv, &bounded{Listener: l, places: make(chan struct{}, maxConnections), done: ctx.Done()}, false)
}

// run has srv serve until ctx ends. With mayClose, others may close l before that: whoever is being answered is then served to the end.
func (s *Server) run(ctx context.Context, srv *http.Server, l net.Listener, mayClose bool) error {
	handler := &counted{Handler: srv.Handler}
	defer handler.end()
	srv.Handler = handler
	srv.ErrorLog = slog.NewLogLogger(s.log().Handler(), slog.LevelDebug)
	// A request that is being answered may be writing the keys: let it end, but
	// do not let a client that never asks anything hold up the stop.
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if mayClose && errors.Is(err, net.ErrClosed) {
		srv.Shutdown(ctx)
		err = nil
	}
	if stop() {
		srv.Close()
		if err != nil {
			return fmt.Errorf("serve the API at %s: %w", l.Addr(), err)
		}
		return nil
	}
	<-done
	return nil
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// bounded is a listener with so many connections at once; the next ones wait in the kernel.
type bounded struct {
	net.Listener
	places chan struct{}
	done   <-chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.places <- struct{}{}:
	case <-b.done:
		return nil, net.ErrClosed
	}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.places
		return nil, err
	}
	return &placed{halfCloser: halfCloser{conn}, leave: sync.OnceFunc(func() { <-b.places })}, nil
}

// placed is a connection that gives its place back.
type placed struct {
	halfCloser
	leave func()
}

func (p *placed) Close() error {
	defer p.leave()
	return p.Conn.Close()
}

// halfCloser is a connection whose CloseWrite is that of the one below: it lets net/http end an answer before it gives up on the rest of the
// question.
type halfCloser struct{ net.Conn }

func (h halfCloser) CloseWrite() error {
	if c, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// counted is a handler whose requests can be waited for: one outlives its
// connection, and may be writing the keys, which are the next process's as soon
// as Serve has returned.
type counted struct {
	http.Handler
	mu      sync.Mutex
	over    bool // guarded by mu
	running sync.WaitGroup
}

func (c *counted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		panic(http.ErrAbortHandler) // or the answer would be 200
	}
	c.running.Add(1)
	c.mu.Unlock()
	defer c.running.Done()
	c.Handler.ServeHTTP(w, r)
}

// end lets no request begin any more and waits for those that run.
func (c *counted) end() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.running.Wait()
}

type notifiedReply struct {
	Results []Notified `json:"results"`
}

// noticeLimit leaves time for the answer.
const noticeLimit = requestTimeout - 2*time.Second

func (s *Server) testNotices(w http.ResponseWriter, r *http.Request) {
	results := notifiedReply{Results: []Notified{}}
	if s.TestNotices != nil {
		ctx, cancel := context.WithTimeout(r.Context(), noticeLimit)
		defer cancel()
		results.Results = append(results.Results, s.TestNotices(ctx)...)
	}
	reply(w, http.StatusOK, results)
}

type keyReply struct {
	Name  string `json:"name"`
	Token string `json:"token"`
}

type keysReply struct {
	Keys []KeyInfo `json:"keys"`
}

func (s *Server) listKeys(w http.ResponseWriter, _ *http.Request) {
	keys, err := s.Keys.List()
	if err != nil {
		fail(w, err)
		return
	}
	if keys == nil {
		keys = []KeyInfo{}
	}
	reply(w, http.StatusOK, keysReply{keys})
}

func (s *Server) addKey(w http.ResponseWriter, r *http.Request) {
	var req NewKey
	if !read(w, r, &req) {
		return
	}
	token, err := s.Keys.Add(req)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusCreated, keyReply{req.Name, token})
}

func (s *Server) editKey(w http.ResponseWriter, r *http.Request) {
	var edit KeyEdit
	if !read(w, r, &edit) {
		return
	}
	k, err := s.Keys.Edit(r.PathValue("name"), edit)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusOK, k)
}

func (s *Server) rotateKey(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	token, err := s.Keys.Rotate(name)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusOK, keyReply{name, token})
}

func (s *Server) removeKey(w http.ResponseWriter, r *http.Request) {
	if err := s.Keys.Remove(r.PathValue("name")); err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	if s.Orders == nil {
		refuse(w, http.StatusConflict, errors.New("this process has no configuration to read again"))
		return
	}
	done, err := s.Orders.Reload(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	for _, list := range []*[]string{&done.Changed, &done.Unconfirmed, &done.Warnings} {
		if *list == nil {
			*list = []string{} // [] in JSON, never null
		}
	}
	reply(w, http.StatusOK, done)
}

// withKeys returns h for a process that has keys, which a bridge has not.
func (s *Server) withKeys(h http.HandlerFunc) http.HandlerFunc {
	if s.Keys != nil {
		return h
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusConflict, errors.New("this state directory belongs to a bridge: keys are managed on the proxy"))
	}
}

// drain reads what is left, so that the connection ends without a reset.
func drain(r io.ReadCloser) {
	io.Copy(io.Discard, io.LimitReader(r, maxRequest))
	r.Close()
}
