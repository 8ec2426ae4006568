// Package admin is how the command line talks to a live process: HTTP over the
// unix socket in the state directory.
//
//	GET    /api/v1/status       the status.Snapshot; with ?pairs=false, its list of connections is empty
//	GET    /api/v1/keys         the keys, without their secrets
//	POST   /api/v1/keys         {"name","allow","max_services"} makes a key; the answer has its token
//	DELETE /api/v1/keys/NAME    ends a key
//	POST   /api/v1/reload       reads the settings again; the answer is a Reloaded
//	POST   /api/v1/notify/test  sends a message to each [[notify]]; the answer says what became of it
//
//	GET    /api/v1/services/SERVICE/exchanges             what was exchanged last; with ?follow=true, events as they happen
//	GET    /api/v1/services/SERVICE/exchanges/ID          all of one
//	POST   /api/v1/services/SERVICE/exchanges/ID/replay   sends its request again; the answer is the new one
//
// Whoever can open the socket may do everything: its mode lets only the
// process's own user in. The package reads snapshots, edits the stored keys and
// passes orders on; it knows neither proxy nor bridge. The socket is answered also when the process
// is out of file descriptors: what users and bridges take comes from sys.Pool, which keeps some for it.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"reverser/internal/escape"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/status"
)

// UsageError is a refusal of what was asked, as against a failure to do it.
// It crosses the socket, so that the command line can exit with 2.
type UsageError struct{ Err error }

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
	Warnings    []string `json:"warnings"`    // about the configuration
}

// Server answers on the admin socket. Status must be set; a bridge has no Keys.
type Server struct {
	Status func() status.Snapshot
	Keys   Keys
	Orders Orders // nil: it takes none
	// Inspected returns what is kept of the exchanges of a service; nil: nothing is. Without the function the process speaks no HTTP.
	Inspected func(grammar.Public) *inspect.Recorder
	// TestNotices sends a message to each [[notify]].
	TestNotices func(context.Context) []Notified
	Log         *slog.Logger // nil discards
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

// Serve answers on l until ctx ends, and closes l. Nothing is at work for a
// request any more when it returns.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	handler := &counted{Handler: s.handler(ctx)}
	defer handler.end()
	srv := &http.Server{
		Handler:        handler,
		ReadTimeout:    requestTimeout,
		WriteTimeout:   requestTimeout,
		IdleTimeout:    requestTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
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
	err := srv.Serve(&bounded{Listener: l, places: make(chan struct{}, maxConnections), done: ctx.Done()})
	if stop() {
		srv.Close()
		return fmt.Errorf("serve the admin socket: %w", err)
	}
	<-done
	return nil
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
	return &placed{Conn: conn, leave: sync.OnceFunc(func() { <-b.places })}, nil
}

// placed is a connection that gives its place back.
type placed struct {
	net.Conn
	leave func()
}

func (p *placed) Close() error {
	defer p.leave()
	return p.Conn.Close()
}

// CloseWrite lets net/http end an answer before it gives up on the rest of the question.
func (p *placed) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
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

func (s *Server) handler(stopping context.Context) http.Handler {
	mux := http.NewServeMux()
	methods := make(map[string][]string) // of a path
	handle := func(method, path string, h http.HandlerFunc) {
		mux.HandleFunc(method+" "+path, h)
		methods[path] = append(methods[path], method)
	}
	handle("GET", "/api/v1/status", func(w http.ResponseWriter, r *http.Request) {
		snap := s.Status()
		if r.URL.Query().Get("pairs") == "false" {
			snap.Pairs = nil
		}
		reply(w, http.StatusOK, snap)
	})
	if s.Keys != nil {
		handle("GET", "/api/v1/keys", s.listKeys)
		handle("POST", "/api/v1/keys", s.addKey)
		handle("DELETE", "/api/v1/keys/{name}", s.removeKey)
	} else {
		mux.HandleFunc("/api/v1/keys", noKeys)
		mux.HandleFunc("/api/v1/keys/{name}", noKeys)
	}
	handle("POST", "/api/v1/reload", s.reload)
	handle("POST", "/api/v1/notify/test", s.testNotices)
	s.handleInspect(stopping, handle)
	for path, methods := range methods {
		allow := strings.Join(methods, ", ")
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { // else "/" would take it, with 404
			w.Header().Set("Allow", allow)
			refuse(w, http.StatusMethodNotAllowed, fmt.Errorf("%s takes %s, not %s", r.URL.Path, allow, r.Method))
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, fmt.Errorf("there is no %s", r.URL.Path))
	})
	return mux
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

type errorReply struct {
	Error string `json:"error"`
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
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		code := http.StatusBadRequest
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			code = http.StatusRequestEntityTooLarge
		}
		refuse(w, code, fmt.Errorf("read the request: %w", err))
		return
	}
	token, err := s.Keys.Add(req)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusCreated, keyReply{req.Name, token})
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

func noKeys(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusConflict, errors.New("this state directory belongs to a bridge: keys are managed on the proxy"))
}

func fail(w http.ResponseWriter, err error) {
	if _, ok := errors.AsType[*UsageError](err); ok {
		refuse(w, http.StatusConflict, err)
		return
	}
	refuse(w, http.StatusInternalServerError, err)
}

func refuse(w http.ResponseWriter, code int, err error) {
	reply(w, code, errorReply{err.Error()})
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // an answer may hold a token
	w.WriteHeader(code)
	// Whoever asks with another program than ours may print the answer on a terminal. The reader is gone if this fails; there is nobody to tell.
	_ = json.NewEncoder(escape.NewWriter(w)).Encode(v)
}

// drain reads what is left, so that the connection ends without a reset.
func drain(r io.ReadCloser) {
	io.Copy(io.Discard, io.LimitReader(r, maxRequest))
	r.Close()
}
