package inspect

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	replaysAtOnce = 8
	replayLimit   = time.Minute
	replayWait    = 5 * time.Second // how long Replay waits for the end
)

// replays is the requests that are being sent again.
type replays struct {
	ctx    context.Context // ends with Close
	stop   context.CancelFunc
	places chan struct{} // one element a request

	mu      sync.Mutex
	over    bool // guarded by mu
	running sync.WaitGroup
}

// ErrNoReplay is the error for a request that cannot be sent again.
var ErrNoReplay = errors.New("it cannot be sent again")

// ErrReplays is the error for a request that would be sent again while too many are.
var ErrReplays = errors.New("too many requests are being sent again already")

// replay is in the context of a request that is sent again.
type replay struct {
	of    uint64
	begun chan<- *exchange // has room for it
}

type replayKey struct{}

// Replay sends the request of an exchange again, through the service's own way, with the secrets of its header and the address of its
// client, and returns the new exchange: when it is over, or as far as it is after 5 seconds. A request whose body is not kept whole is refused.
func (r *Recorder) Replay(ctx context.Context, id string) (Summary, error) {
	p, service := &r.store.replays, r.service
	select {
	case p.places <- struct{}{}:
	default:
		return Summary{}, fmt.Errorf("exchange %s of %s: %w: %d", id, service, ErrReplays, replaysAtOnce)
	}
	begun, done := make(chan *exchange, 1), make(chan error, 1)
	req, cancel, err := r.request(p.ctx, id, begun)
	if err == nil && !p.run(func() {
		defer func() { <-p.places }()
		defer cancel()
		done <- r.serveAgain(req)
	}) {
		cancel()
		err = context.Canceled // the process stops
	}
	if err != nil {
		<-p.places
		return Summary{}, err
	}
	limit := time.NewTimer(replayWait)
	defer limit.Stop()
	select {
	case err := <-done:
		if err != nil {
			return Summary{}, err
		}
	case <-ctx.Done():
	case <-limit.C:
	}
	select {
	case x := <-begun:
		x.rec.mu.Lock() // of another recorder, when the service has got one meanwhile
		defer x.rec.mu.Unlock()
		return *x.summaryLocked(), nil
	default:
		return Summary{}, fmt.Errorf("exchange %s of %s was sent again, and is not kept: there is no memory for it, or the service was removed", id, service)
	}
}

// request is the request of an exchange as the server would have it.
func (r *Recorder) request(ctx context.Context, id string, begun chan<- *exchange) (*http.Request, context.CancelFunc, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x, err := r.exchangeLocked(id)
	if err != nil {
		return nil, nil, err
	}
	if why := x.unrepeatableLocked(); why != "" {
		return nil, nil, fmt.Errorf("exchange %s of %s: %w: %s", id, r.service, ErrNoReplay, why)
	}
	u, err := url.ParseRequestURI(x.uri)
	if err != nil {
		return nil, nil, fmt.Errorf("exchange %s of %s: %w: %w", id, r.service, ErrNoReplay, err)
	}
	body := bytes.Clone(x.request.body.kept)
	req := &http.Request{
		Method: x.method, URL: u, Proto: x.proto, Header: header(x.request.header), Host: x.host,
		RequestURI: x.uri, RemoteAddr: x.client, ContentLength: int64(len(body)), Body: http.NoBody,
	}
	req.ProtoMajor, req.ProtoMinor, _ = http.ParseHTTPVersion(x.proto)
	if x.length < 0 { // chunked, or HTTP/2 without a length
		req.ContentLength = -1
	}
	if len(body) > 0 || x.length < 0 {
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	if len(x.request.trailer) > 0 {
		req.Trailer = header(x.request.trailer)
	}
	if x.secure {
		req.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: hostOf(x.host)}
	}
	ctx, cancel := context.WithTimeout(ctx, replayLimit)
	ctx = context.WithValue(ctx, http.LocalAddrContextKey, x.local)
	return req.WithContext(context.WithValue(ctx, replayKey{}, replay{x.id, begun})), cancel, nil
}

// unrepeatableLocked says why the request of an exchange cannot be sent again; "": it can.
func (x *exchange) unrepeatableLocked() string {
	b := &x.request.body
	switch {
	case x.method == http.MethodConnect || upgradeOf(header(x.request.header)) != "":
		return "its connection became something else, such as a WebSocket"
	case x.request.omitted > 0 || x.cut:
		return "its header is longer than what is kept of it"
	case b.bytes > BodyKept:
		return fmt.Sprintf("its body is longer than the %d bytes that are kept of it", BodyKept)
	case b.bytes > int64(len(b.kept)):
		return "there was no memory to keep its body"
	case !b.whole && x.length != b.bytes && x.state == open:
		return "its body has not arrived whole"
	case !b.whole && x.length != b.bytes:
		return "its body was not read to the end"
	}
	return ""
}

// serveAgain has the service answer a request. An error says that the handler failed as no handler should.
func (r *Recorder) serveAgain(req *http.Request) (err error) {
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler { // as a server does
			err = fmt.Errorf("the request was sent again, and its handler panicked: %v", v)
		}
	}()
	r.again.ServeHTTP(&nowhere{header: make(http.Header)}, req)
	return nil
}

// run runs f, which close waits for. false: everything is over.
func (p *replays) run(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return false
	}
	p.running.Go(f)
	return true
}

func (p *replays) close() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.stop()
	p.running.Wait()
}

// nowhere is a client that nobody is at.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) WriteHeader(int)             {}
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n *nowhere) Flush()                      {}

func header(list []Field) http.Header {
	h := make(http.Header)
	for _, f := range list {
		h[f.Name] = append(h[f.Name], f.Value)
	}
	return h
}

func hostOf(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}
