package inspect

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// Serve has next answer a request, and keeps what passes.
func (r *Recorder) Serve(w http.ResponseWriter, req *http.Request, next http.Handler) {
	x := r.begin(req)
	if x == nil {
		next.ServeHTTP(w, req)
		return
	}
	rw := &writer{ResponseWriter: w, x: x, asked: upgradeOf(req.Header)}
	var body *requestBody
	if req.Body != nil && req.Body != http.NoBody {
		req = req.WithContext(req.Context()) // a copy: by the type of its own body, the server knows whether a connection can go on
		body = &requestBody{ReadCloser: req.Body, x: x}
		req.Body = body
	} else {
		x.take(&x.request.body, nil, true)
	}
	complete := false
	defer func() {
		rw.finish()
		var trailer http.Header
		if body == nil || body.over.Load() { // else somebody may be reading it, who fills the trailer at its end
			trailer = req.Trailer
		}
		x.end(complete, trailer, rw.trailer())
	}()
	next.ServeHTTP(rw, req)
	complete = true
}

// requestBody is a body that is being read.
type requestBody struct {
	io.ReadCloser
	x    *exchange
	over atomic.Bool // it was read to its end
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 || err != nil {
		b.x.take(&b.x.request.body, p[:n], err == io.EOF)
	}
	if err == io.EOF {
		b.over.Store(true)
	}
	return n, err
}

// writer is where the response is written.
type writer struct {
	http.ResponseWriter
	x        *exchange
	asked    string // what the client wants the connection to become
	hijacked bool
	head     sync.Once
	declared []string // trailers
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols { // else another one follows
		w.begin(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	w.begin(http.StatusOK)
	n, err := w.ResponseWriter.Write(p)
	if n > 0 {
		w.x.take(&w.x.response.body, p[:n], false)
	}
	return n, err
}

// FlushError is for http.ResponseController, which prefers it to Unwrap.
func (w *writer) FlushError() error {
	w.begin(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Flush implements http.Flusher, for whoever does not know of http.ResponseController.
func (w *writer) Flush() { _ = w.FlushError() } // as http.Flusher has it

// begin keeps the head of the response, as it is written now.
func (w *writer) begin(status int) {
	w.head.Do(func() {
		header := w.Header()
		for _, list := range header["Trailer"] {
			for name := range strings.SplitSeq(list, ",") {
				w.declared = append(w.declared, http.CanonicalHeaderKey(strings.TrimSpace(name)))
			}
		}
		upgrade := ""
		if status == http.StatusSwitchingProtocols {
			upgrade = upgradeOf(header)
		}
		w.x.answer(status, header, upgrade)
	})
}

// finish is called when the handler is done with the response.
func (w *writer) finish() {
	if w.hijacked {
		if w.asked != "" { // else it was closed behind the server's back
			w.begin(http.StatusSwitchingProtocols)
		}
		for i := range w.x.socket {
			if d := w.x.socket[i].Swap(nil); d != nil {
				d.end()
			}
		}
	}
	w.head.Do(func() {}) // a handler that gave up before it wrote anything has no response: the connection was closed
}

// trailer is what was written behind the body.
func (w *writer) trailer() http.Header {
	var t http.Header
	add := func(name string, values []string) {
		if t == nil {
			t = make(http.Header)
		}
		t[name] = append(t[name], values...)
	}
	for name, values := range w.Header() {
		if rest, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			add(rest, values)
		}
	}
	for _, name := range w.declared {
		if values := w.Header()[name]; len(values) > 0 {
			add(name, values)
		}
	}
	return t
}

// Hijack gives the connection to whoever carries what it became, such as a WebSocket.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return conn, brw, err
	}
	w.hijacked = true
	return &upgraded{Conn: conn, w: w}, brw, nil
}

// upgraded is a connection that became something else. What is read of it comes from the client, what is written from the target.
type upgraded struct {
	net.Conn
	w    *writer
	once sync.Once
}

func (c *upgraded) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.pass(fromClient, p[:n])
	}
	return n, err
}

// Write keeps what the target says before the client can answer it: the order of both is that in which they were said.
func (c *upgraded) Write(p []byte) (int, error) {
	c.pass(fromTarget, p)
	return c.Conn.Write(p)
}

// CloseWrite ends one direction where the connection can.
func (c *upgraded) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// pass takes bytes of the connection. The head of the response is known by now: whoever hijacks a connection writes it first.
func (c *upgraded) pass(from int, p []byte) {
	c.once.Do(c.begin)
	x := c.w.x
	if d := x.socket[from].Load(); d != nil {
		d.feed(p)
		return
	}
	x.passed(from, len(p))
}

func (c *upgraded) begin() {
	w := c.w
	w.begin(http.StatusSwitchingProtocols)
	if !strings.EqualFold(w.asked, "websocket") {
		return
	}
	clientReset, targetReset, deflate := extensions(w.Header())
	for i, reset := range []bool{clientReset, targetReset} {
		w.x.read(i, deflate, reset)
	}
}

// upgradeOf is what a message with Connection: Upgrade wants the connection to become.
func upgradeOf(h http.Header) string {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(name), "upgrade") {
				return limited(h.Get("Upgrade"))
			}
		}
	}
	return ""
}
