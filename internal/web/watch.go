package web

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"reverser/internal/inspect"
)

// Request is what became of a request.
type Request struct {
	ID                 string
	Client             string
	Method, Host, Path string // as the client wrote them; Path with the query
	Proto              string
	Status             int    // 0: there was no answer
	Sent, Received     uint64 // bytes of bodies, or of what the connection became
	Duration           time.Duration
	UserAgent, Referer string
}

// watched has the exchange served, under the eyes of those who want to see it.
func (x *exchange) watched(w http.ResponseWriter, r *http.Request) {
	if over := x.site.over(); over != nil {
		t := &tally{ResponseWriter: w}
		w = t
		if r.Body != nil && r.Body != http.NoBody {
			r = r.WithContext(r.Context()) // a copy: by the type of its own body, net/http knows whether a connection can go on
			r.Body = &tallied{r.Body, t}
		}
		begun := time.Now()
		defer func() {
			over(Request{
				ID: x.id.String(), Client: x.client.Address(), Method: r.Method, Host: r.Host, Path: r.RequestURI, Proto: r.Proto,
				Status: t.status, Sent: t.sent.Load(), Received: t.received.Load(), Duration: time.Since(begun), UserAgent: r.UserAgent(), Referer: r.Referer(),
			})
		}()
	}
	if rec := x.site.recorder(); rec != nil {
		rec.Serve(w, r, http.HandlerFunc(x.serve))
		return
	}
	x.serve(w, r)
}

// recorder is what keeps the exchanges; nil: nothing does.
func (s *Site) recorder() *inspect.Recorder {
	if s.Inspect == nil {
		return nil
	}
	if o := s.Options(); o == nil || o.Inspect {
		return s.Inspect(o)
	}
	return nil
}

// over is where what becomes of requests is told; nil: nowhere.
func (s *Site) over() func(Request) {
	if s.Over == nil {
		return nil
	}
	return s.Over()
}

// tally counts what is written of an answer.
type tally struct {
	http.ResponseWriter
	status         int
	sent, received atomic.Uint64
}

// Unwrap is for http.ResponseController.
func (t *tally) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *tally) WriteHeader(status int) {
	if t.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		t.status = status
	}
	t.ResponseWriter.WriteHeader(status)
}

func (t *tally) Write(p []byte) (int, error) {
	if t.status == 0 {
		t.status = http.StatusOK
	}
	n, err := t.ResponseWriter.Write(p)
	t.received.Add(uint64(n))
	return n, err
}

// FlushError is for http.ResponseController.
func (t *tally) FlushError() error {
	if t.status == 0 {
		t.status = http.StatusOK
	}
	return http.NewResponseController(t.ResponseWriter).Flush()
}

// Hijack is for a connection that becomes something else.
func (t *tally) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err != nil {
		return conn, brw, err
	}
	if t.status == 0 {
		t.status = http.StatusSwitchingProtocols
	}
	return &tallyConn{conn, t}, brw, nil
}

// tallyConn counts what passes a connection that became something else.
type tallyConn struct {
	net.Conn
	t *tally
}

func (c *tallyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.t.sent.Add(uint64(n))
	return n, err
}

func (c *tallyConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.t.received.Add(uint64(n))
	return n, err
}

// CloseWrite ends one direction.
func (c *tallyConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Conn.Close()
}

// tallied is the body of a request, counted.
type tallied struct {
	io.ReadCloser
	t *tally
}

func (b *tallied) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.t.sent.Add(uint64(n))
	return n, err
}

// Again serves a request of an earlier client once more. The request has that client's address, "" where nobody knew it, and in its context
// the one that the client reached (http.LocalAddrContextKey). Its answer goes to w alone.
// It panics with http.ErrAbortHandler when the answer is broken off.
func (s *Server) Again(site *Site, w http.ResponseWriter, r *http.Request) {
	client, unknown := netip.ParseAddrPort(r.RemoteAddr)
	gone := &nobody{client: net.TCPAddrFromAddrPort(client), local: &net.TCPAddr{}, closed: make(chan struct{})}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		gone.local = local
	}
	c := s.NewClient(gone, nil, nil)
	c.Unknown = unknown != nil
	defer c.Close()
	x := &exchange{server: s, client: c, site: site, id: newID(), host: r.Host}
	ctx := context.WithValue(r.Context(), clientKey{}, c)
	ctx = context.WithValue(ctx, http.ServerContextKey, &s.http) // so that ReverseProxy says by a panic that an answer was broken off
	x.watched(w, r.WithContext(ctx))
}

// nobody is the connection of a client that is not there any more.
type nobody struct {
	client, local net.Addr
	closed        chan struct{}
	once          atomic.Bool
}

func (n *nobody) Read([]byte) (int, error) {
	<-n.closed
	return 0, net.ErrClosed
}

func (n *nobody) Close() error {
	if n.once.CompareAndSwap(false, true) {
		close(n.closed)
	}
	return nil
}

func (n *nobody) Write(p []byte) (int, error)      { return len(p), nil }
func (n *nobody) LocalAddr() net.Addr              { return n.local }
func (n *nobody) RemoteAddr() net.Addr             { return n.client }
func (n *nobody) SetDeadline(time.Time) error      { return nil }
func (n *nobody) SetReadDeadline(time.Time) error  { return nil }
func (n *nobody) SetWriteDeadline(time.Time) error { return nil }
