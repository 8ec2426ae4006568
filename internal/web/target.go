package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// A target that speaks HTTP/1.1 is spoken to by the goroutine that serves the request: it writes the request and reads the answer. Only the
// body of a request has one of its own, so that an answer may come before its end. The transport of net/http has two for each connection,
// and passes each request and answer from one to the other.

// continueTime is for how long a body waits for the target's word, where the client waits too. It is longer in tests, whose targets always say
// one.
var continueTime = time.Second

// sentTime is for how long a connection waits for the end of a request whose answer is complete.
const sentTime = 50 * time.Millisecond

// target is a connection to a target. One exchange has it at a time.
type target struct {
	pool   *pool // that keeps it; changes under mu
	opened *pool // that has opened it: the connection may serve no further request when that one is out of use
	bound  bool  // it carries a login, and serves one visit alone
	up     *Upstream

	// Of the exchange that has it.
	x     *exchange
	br    *bufio.Reader
	ahead []byte        // was read of the answer and is not in br yet
	reads bool          // a byte of an answer was read
	sent  chan struct{} // closed when nothing more of the request will be written; nil: it was written already
	wrote bool          // a byte of the request was
	torn  bool          // the rest of the request cannot be written, or is not wanted; the answer may come all the same
	stop  func() bool   // undoes that the end of the exchange closes the connection

	timer *time.Timer

	mu       sync.Mutex
	answered bool // the head of the answer is there, or nobody waits for it any more; guarded by mu, as all below
	armed    bool
	due      time.Time
	late     error // why the timer closes the connection; nil: nobody uses it any more
	why      error // why it was closed here
}

var (
	readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriter(nil) }}
)

// tooSlow is why a target is given up.
type tooSlow string

func (s tooSlow) Error() string { return string(s) }
func (tooSlow) Timeout() bool   { return true }
func (tooSlow) Temporary() bool { return true }

const (
	errNotBegun = tooSlow("the target did not begin its answer in time")
	errNotTaken = tooSlow("the target did not take the request in time")
)

// lost is an error of a connection on which no byte of an answer came.
type lost struct{ error }

func (l lost) Unwrap() error { return l.error }

// RoundTrip implements http.RoundTripper.
func (p *pool) RoundTrip(r *http.Request) (*http.Response, error) {
	x, _ := r.Context().Value(exchangeKey{}).(*exchange)
	if x == nil {
		return nil, errNoExchange
	}
	return p.roundTrip(x, r, func(code int, h http.Header) {
		if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
			trace.Got1xxResponse(code, textproto.MIMEHeader(h))
		}
	})
}

// roundTrip sends a request and returns the answer. early is called with the heads of informational ones before it.
func (p *pool) roundTrip(x *exchange, r *http.Request, early func(code int, h http.Header)) (*http.Response, error) {
	if err := writable(r); err != nil {
		return nil, err
	}
	for t := p.take(); ; t = nil {
		kept := t != nil
		if !kept {
			up, err := p.open(r.Context(), x)
			if err != nil {
				return nil, err
			}
			t = &target{pool: p, opened: p, up: up}
		}
		resp, err := t.exchange(x, r, early)
		if err == nil {
			return resp, nil
		}
		t.over(false)
		// The target may close a connection that was kept at any time. Then it has not seen the request, or does not mind to see it again.
		if l, ok := err.(lost); !kept || !ok || r.Context().Err() != nil || !t.repeatable(r) {
			if ok {
				err = l.error
			}
			return nil, err
		}
	}
}

// ask is roundTrip for a request that asks for no other protocol.
func (p *pool) ask(x *exchange, r *http.Request, early func(code int, h http.Header)) (*http.Response, error) {
	res, err := p.roundTrip(x, r, early)
	if err == nil && res.StatusCode == http.StatusSwitchingProtocols {
		res.Body.Close()
		return nil, errors.New("the target goes over to a protocol that nobody asked for")
	}
	return res, err
}

// writable looks at what net/http's Request.Write does not.
func writable(r *http.Request) error {
	for _, h := range []http.Header{r.Header, r.Trailer} {
		for name, values := range h {
			if !httpguts.ValidHeaderFieldName(name) {
				return fmt.Errorf("the name of the header %q is none", name)
			}
			for _, v := range values {
				if !httpguts.ValidHeaderFieldValue(v) {
					return fmt.Errorf("the value of the header %s has control characters", name)
				}
			}
		}
	}
	if !httpguts.ValidHeaderFieldName(r.Method) { // both are tokens
		return fmt.Errorf("the method %q is none", r.Method)
	}
	return nil
}

// repeatable reports whether a request may be sent again (RFC 9110, section 9.2.2).
func (t *target) repeatable(r *http.Request) bool {
	if r.Body != nil {
		return false
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return !t.wrote || r.Header["Idempotency-Key"] != nil || r.Header["X-Idempotency-Key"] != nil
}

// take returns a kept connection that can be used; nil: there is none.
func (p *pool) take() *target {
	for {
		p.mu.Lock()
		i := len(p.kept) - 1
		for i >= 0 && p.kept[i].up.paused() {
			i-- // nobody knows when it goes on: where the bridge is away, Dial knows how long that is waited for
		}
		if i < 0 {
			p.mu.Unlock()
			return nil
		}
		t := p.kept[i]
		p.kept = append(p.kept[:i], p.kept[i+1:]...)
		p.mu.Unlock()
		if t.disarm() && !t.opened.old.Load() && (t.up.Quiet == nil || t.up.Quiet()) {
			return t
		}
		t.up.Close() // its target has closed it, or said something that nobody asked for
	}
}

// keep keeps a connection for requests to come.
func (p *pool) keep(t *target) {
	wait := keepTime
	if t.bound { // on another one the client would have to log in again
		wait = idleTime
	}
	t.arm(wait, nil)
	p.mu.Lock()
	kept := !p.old.Load() && !t.opened.old.Load() && len(p.kept) < mostKept
	if kept {
		p.kept = append(p.kept, t)
	}
	p.mu.Unlock()
	if !kept && t.disarm() {
		t.up.Close()
	}
}

// drop takes a connection out of those that are kept, and reports whether it was one.
func (p *pool) drop(t *target) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, k := range p.kept {
		if k == t {
			p.kept = append(p.kept[:i], p.kept[i+1:]...)
			return true
		}
	}
	return false
}

// arm has the connection closed after d.
func (t *target) arm(d time.Duration, late error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armLocked(d, late)
}

func (t *target) armLocked(d time.Duration, late error) {
	t.armed, t.due, t.late = true, time.Now().Add(d), late
	if t.timer == nil {
		t.timer = time.AfterFunc(d, t.expire)
	} else {
		t.timer.Reset(d)
	}
}

// answer notes that nobody waits for the head of an answer.
func (t *target) answer() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.answered = true
	t.disarmLocked()
}

// disarm undoes arm. false: it was too late, or there was none.
func (t *target) disarm() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.disarmLocked()
}

func (t *target) disarmLocked() bool {
	armed := t.armed
	if t.armed = false; armed {
		t.timer.Stop()
	}
	return armed
}

func (t *target) expire() {
	t.mu.Lock()
	passed := t.armed && !time.Now().Before(t.due)
	late, pool := t.late, t.pool
	if passed {
		t.armed = false
	}
	t.mu.Unlock()
	switch {
	case !passed:
	case late != nil:
		t.fail(late)
	default:
		pool.drop(t)
		t.up.Close()
	}
}

// fail closes the connection under the exchange that has it. What waits for it gets err.
func (t *target) fail(err error) {
	t.mu.Lock()
	if t.why == nil {
		t.why = err
	}
	t.mu.Unlock()
	t.up.Close()
}

// because returns the reason of an error: why the connection was closed here, if it was.
func (t *target) because(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.why != nil {
		return t.why
	}
	return err
}

// exchange sends the request and reads the head of the answer. Whoever gets an answer ends the exchange with its body.
func (t *target) exchange(x *exchange, r *http.Request, early func(code int, h http.Header)) (*http.Response, error) {
	t.x, t.ahead, t.reads, t.wrote, t.torn, t.sent = x, nil, false, false, false, nil
	t.mu.Lock()
	t.answered = false
	t.mu.Unlock()
	t.br = readers.Get().(*bufio.Reader)
	t.br.Reset(t)
	ctx := r.Context()
	t.stop = context.AfterFunc(ctx, func() { t.fail(context.Cause(ctx)) })
	x.took(t.up)
	if loginOfConnection(r.Header["Authorization"]) {
		t.bind()
	}
	var word chan bool
	if r.Body == nil {
		if err := t.write(r); err != nil {
			return nil, t.because(lost{err})
		}
	} else {
		if r.ProtoAtLeast(1, 1) && httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue") {
			word = make(chan bool, 1)
			r = r.WithContext(ctx) // a copy
			r.Body = &waiting{ReadCloser: r.Body, t: t, ctx: ctx, word: word}
		}
		t.sent = make(chan struct{})
		go t.send(r)
	}
	resp, err := t.head(r, early, word)
	if err != nil {
		if !t.reads {
			err = lost{err}
		}
		return nil, t.because(err)
	}
	t.answer()
	if loginOfConnection(resp.Header["Www-Authenticate"]) {
		t.bind()
	}
	switch keep := !resp.Close && !r.Close && resp.StatusCode >= 200; {
	case resp.StatusCode == http.StatusSwitchingProtocols && switches(resp.Header):
		resp.Body = &switched{t}
	case r.Method == http.MethodHead || resp.ContentLength == 0:
		t.over(keep)
		resp.Body = http.NoBody
	default:
		resp.Body = &answer{ReadCloser: resp.Body, res: resp, t: t, keep: keep}
	}
	return resp, nil
}

// loginOfConnection reports whether a value of Authorization or WWW-Authenticate is of a scheme that logs a connection in, and not a request
// (RFC 4559): whoever sends something on that connection later is taken for the same user.
func loginOfConnection(values []string) bool {
	for _, v := range values {
		for challenge := range strings.SplitSeq(v, ",") {
			scheme := textproto.TrimString(challenge)
			if i := strings.IndexAny(scheme, " \t"); i >= 0 {
				scheme = scheme[:i]
			}
			switch strings.ToLower(scheme) {
			case "ntlm", "negotiate", "nego2", "kerberos", "credssp":
				return true
			}
		}
	}
	return false
}

// bind has the connection serve no other visit from now on, and the visit use no connection that it shares with others.
func (t *target) bind() {
	if t.bound {
		return
	}
	t.bound = true
	v := t.x.visit
	v.bound.Store(true)
	own := v.Site.poolOf(v, t.pool.options)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pool = own
}

// switches reports whether the head of an answer says to which protocol its connection goes over.
func switches(h http.Header) bool {
	return h.Get("Upgrade") != "" && httpguts.HeaderValuesContainsToken(h["Connection"], "Upgrade")
}

// write writes a request with its body. The time for the answer begins with its end.
func (t *target) write(r *http.Request) error {
	w := writers.Get().(*bufio.Writer)
	w.Reset(sender{t})
	var err error
	if t.x.head != nil {
		_, err = w.Write(t.x.head)
	} else {
		err = r.Write(w)
	}
	if err == nil {
		err = w.Flush()
	}
	w.Reset(nil)
	writers.Put(w)
	t.mu.Lock()
	if !t.answered {
		t.armLocked(t.pool.answerTime, errNotBegun)
	}
	t.mu.Unlock()
	return err
}

// send is the goroutine that writes a request with a body.
func (t *target) send(r *http.Request) {
	defer close(t.sent)
	if err := t.write(r); err != nil && !t.torn {
		t.fail(err) // the target must not take it for complete
	}
}

// sender is the connection as what a request is written to.
type sender struct{ t *target }

func (s sender) Write(b []byte) (int, error) {
	n, err := s.t.up.Write(b)
	s.t.wrote = s.t.wrote || n > 0
	if err != nil {
		s.t.torn = true // there may be an answer to read nevertheless, and if there is none, reading fails too
	}
	return n, err
}

// ReadFrom has bodies written as they come.
func (s sender) ReadFrom(r io.Reader) (n int64, err error) {
	b := buffers{}.Get()
	defer buffers{}.Put(b)
	for {
		k, err := r.Read(b)
		if k > 0 {
			w, err := s.Write(b[:k])
			if n += int64(w); err != nil {
				return n, err
			}
		}
		switch err {
		case nil:
		case io.EOF:
			return n, nil
		default:
			return n, err
		}
	}
}

// waiting is a body that the client sends when the target has said that it wants it, or a while after that.
type waiting struct {
	io.ReadCloser
	t    *target
	ctx  context.Context
	word chan bool
}

var errUnwanted = errors.New("the target does not want the body")

func (w *waiting) Read(b []byte) (int, error) {
	if w.word != nil {
		late := time.NewTimer(continueTime)
		defer late.Stop()
		select {
		case wanted := <-w.word:
			if !wanted {
				w.t.torn = true
				return 0, errUnwanted
			}
		case <-late.C:
		case <-w.ctx.Done():
			return 0, context.Cause(w.ctx)
		}
		w.word = nil
	}
	return w.ReadCloser.Read(b)
}

// head reads the head of the answer, and passes informational ones on.
func (t *target) head(r *http.Request, early func(code int, h http.Header), word chan<- bool) (*http.Response, error) {
	if _, err := t.br.Peek(1); err != nil {
		if err == io.EOF {
			err = errors.New("the target has closed the connection without an answer")
		}
		return nil, err
	}
	t.reads = true
	for interim := 0; ; {
		long, err := t.await()
		if err != nil {
			return nil, err
		}
		raw := t.ahead // where a long head is
		if !long {
			raw, _ = t.br.Peek(t.br.Buffered())
		}
		var resp *http.Response
		read := func() { resp, err = readAnswer(t.br, r, raw) }
		if turn := t.x.server.InTurn; long && turn != nil {
			turn(read)
		} else {
			read()
		}
		if err != nil {
			return nil, err
		}
		if resp.StatusCode < 100 {
			return nil, fmt.Errorf("the status of the answer is %03d, which is none", resp.StatusCode)
		}
		if resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols {
			if interim++; interim > mostInterim {
				return nil, errInterim
			}
			withoutHops(resp.Header)
			early(resp.StatusCode, resp.Header)
			if resp.StatusCode == http.StatusContinue && word != nil {
				word <- true
				word = nil
			}
			t.x.dropHead()
			continue
		}
		if word != nil {
			word <- !resp.Close // a connection that goes on needs the whole request
		}
		return resp, nil
	}
}

// Read reads what the target says. Before it waits, the client gets what there is of the answer.
func (t *target) Read(b []byte) (int, error) {
	if len(t.ahead) > 0 {
		n := copy(b, t.ahead)
		if t.ahead = t.ahead[n:]; len(t.ahead) == 0 {
			t.ahead = nil // what it was part of may be large
		}
		return n, nil
	}
	if t.x.unflushed && (t.up.Quiet == nil || t.up.Quiet()) {
		t.x.flush()
	}
	n, err := t.up.Read(b)
	for err == nil && n < len(b) && t.up.Quiet != nil && !t.up.Quiet() { // what has come is passed on at once, in few writes
		var more int
		more, err = t.up.Read(b[n:])
		n += more
	}
	if n > 0 {
		err = nil // it will be said again
	}
	return n, err
}

// over ends the exchange. keep: the connection may be used for others.
func (t *target) over(keep bool) {
	t.answer()
	if !t.stop() {
		keep = false // it is being closed
	}
	if keep && t.sent != nil {
		late := time.NewTimer(sentTime)
		select {
		case <-t.sent:
		case <-late.C:
			keep = false
		}
		late.Stop()
	}
	keep = keep && !t.torn && t.br.Buffered() == 0 && t.ahead == nil && t.because(nil) == nil
	t.br.Reset(nil)
	readers.Put(t.br)
	t.br = nil
	if !keep {
		t.up.Close()
		return
	}
	t.x = nil
	t.pool.keep(t)
}

// answer is the body of an answer.
type answer struct {
	io.ReadCloser
	res   *http.Response
	t     *target
	keep  bool
	ended bool
	err   error // behind what was read
}

func (a *answer) Read(b []byte) (int, error) {
	if a.ended {
		return 0, a.err
	}
	n, err := a.ReadCloser.Read(b)
	if n > 0 {
		a.t.x.unflushed = true
	}
	if err == io.EOF && manyLines(a.res.Trailer) {
		a.res.Trailer, err = nil, errTrailer
	}
	if err != nil {
		a.ended, a.err = true, err
		if x := a.t.x; err != io.EOF {
			if why := a.t.because(nil); why != nil {
				a.err = why
			} else {
				why = err
				x.broke.Store(&why)
			}
			if n == 0 {
				x.flush() // what came before
			} else {
				err = nil
			}
		}
		a.t.over(a.keep && a.err == io.EOF)
	}
	return n, err
}

// Close implements io.Closer. What was not read of the answer is given up with the connection.
func (a *answer) Close() error {
	if !a.ended {
		a.ended, a.err = true, http.ErrBodyReadAfterClose
		a.t.over(false)
	}
	return nil
}

// switched is a connection that has left HTTP.
type switched struct{ t *target }

func (s *switched) Read(b []byte) (int, error) {
	if s.t.br.Buffered() > 0 || s.t.ahead != nil {
		return s.t.br.Read(b)
	}
	return s.t.up.Read(b)
}

func (s *switched) Write(b []byte) (int, error) { return s.t.up.Write(b) }
func (s *switched) CloseWrite() error           { return s.t.up.CloseWrite() }

func (s *switched) Close() error {
	s.t.stop()
	return s.t.up.Close()
}
