package inspect

import (
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Recorder keeps the last exchanges of one service. It comes from [Store.Record].
type Recorder struct {
	store   *Store
	service string
	again   http.Handler
	used    atomic.Int64 // as the store's

	mu        sync.Mutex
	over      bool        // guarded by mu, as all below
	list      []*exchange // the oldest first; their fields that say so are guarded by mu, too
	followers map[*follower]struct{}
}

// exchange is one request and what came of it. Its request line and times are written once, at the beginning.
type exchange struct {
	rec      *Recorder
	id       uint64
	client   string
	local    net.Addr // that the client reached; nil: not known
	method   string
	host     string
	uri      string
	proto    string
	cut      bool  // uri is not all of it
	secure   bool  // it came over TLS
	length   int64 // of the request's body; -1: not known
	begun    time.Time
	replayOf uint64

	// What is read of a WebSocket, for each direction; nil: nothing, or no more. Whoever carries that direction uses it.
	socket [2]atomic.Pointer[reader]

	dropped  bool  // guarded by rec.mu, as all below
	charged  int64 // of the store
	state    state
	status   int
	answered time.Duration // since begun
	ended    time.Duration
	request  message
	response message
	upgrade  string // what became of the connection, such as websocket
	frames   frames
}

// state is how far an exchange is.
type state uint8

const (
	open    state = iota
	done          // the handler returned
	aborted       // the handler gave up: the client or the target went away
)

// message is one half of an exchange.
type message struct {
	header  []Field
	trailer []Field
	omitted int // fields of both for which there was no room
	body    body
}

// body is the beginning of a body.
type body struct {
	kept  []byte
	bytes int64 // that passed
	whole bool  // its end was read
	short bool  // less is kept for want of memory
}

// Field is a header field.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// exchangeCost is about what an exchange takes beside what it holds.
const exchangeCost = 1024

// begin returns the record of a request, or nil when nothing is kept.
func (r *Recorder) begin(req *http.Request) *exchange {
	x := &exchange{
		rec: r, id: r.store.ids.Add(1), client: strings.Clone(req.RemoteAddr), method: limited(req.Method), host: limited(req.Host),
		uri: limited(req.RequestURI), proto: req.Proto, secure: req.TLS != nil, length: req.ContentLength, begun: time.Now(),
	}
	x.local, _ = req.Context().Value(http.LocalAddrContextKey).(net.Addr)
	again, isAgain := req.Context().Value(replayKey{}).(replay)
	x.replayOf, x.cut = again.of, len(req.RequestURI) > lineKept
	x.request.header, x.request.omitted = fields(req.Header)
	n := exchangeCost + x.request.size() + int64(len(x.client)+len(x.method)+len(x.host)+len(x.uri))
	if !r.store.reserve(r, n) {
		return nil
	}
	x.charged = n
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		r.store.release(r, n)
		return nil
	}
	if len(r.list) >= Exchanges {
		r.evictLocked()
	}
	r.list = append(r.list, x)
	if isAgain {
		select {
		case again.begun <- x:
		default: // a handler that has it served twice
		}
	}
	return x
}

// evict drops an exchange: the oldest that is over, or else the oldest. false: there is none.
func (r *Recorder) evict() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		return false
	}
	r.evictLocked()
	return true
}

func (r *Recorder) evictLocked() {
	i := max(slices.IndexFunc(r.list, func(x *exchange) bool { return x.state != open }), 0)
	r.dropLocked(r.list[i])
	r.list = slices.Delete(r.list, i, i+1)
}

// dropLocked forgets an exchange, which may be under way.
func (r *Recorder) dropLocked(x *exchange) {
	x.dropped = true
	r.store.release(r, x.charged)
	x.charged = 0
	x.request, x.response, x.frames = message{}, message{}, frames{}
	for i := range x.socket {
		x.socket[i].Store(nil)
	}
}

func (r *Recorder) shut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	for _, x := range r.list {
		r.dropLocked(x)
	}
	r.list = nil
	for f := range r.followers {
		f.endLocked()
	}
}

// charge takes n bytes more for an exchange. false: there is no room, or the exchange was dropped.
func (x *exchange) charge(n int64) bool {
	r := x.rec
	if n == 0 {
		return true
	}
	if !r.store.reserve(r, n) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if x.dropped {
		r.store.release(r, n)
		return false
	}
	x.charged += n
	return true
}

// refund gives back what charge took.
func (x *exchange) refund(n int64) {
	x.rec.mu.Lock()
	defer x.rec.mu.Unlock()
	if !x.dropped {
		x.charged -= n
		x.rec.store.release(x.rec, n)
	}
}

// grown is the capacity that a buffer gets which holds have bytes and is to hold n more, at most limit.
func grown(capacity, have, n, limit int) int {
	if have+n <= capacity {
		return capacity
	}
	return min(max(2*capacity, have+n, 512), max(limit, have+n))
}

// take keeps the beginning of what passes of a body. Whoever carries that body calls it, one call at a time.
func (x *exchange) take(b *body, p []byte, end bool) {
	r := x.rec
	r.mu.Lock()
	b.bytes += int64(len(p))
	b.whole = b.whole || end
	p = p[:min(len(p), BodyKept-len(b.kept))]
	capacity := grown(cap(b.kept), len(b.kept), len(p), BodyKept)
	more := capacity - cap(b.kept)
	idle := x.dropped || b.short || len(p) == 0
	if !idle && more == 0 {
		b.kept = append(b.kept, p...)
	}
	r.mu.Unlock()
	if idle || more == 0 {
		return
	}
	room := x.charge(int64(more))
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case x.dropped:
	case !room:
		b.short = true
	default:
		b.kept = append(append(make([]byte, 0, capacity), b.kept...), p...)
	}
}

// answer is the head of the response.
func (x *exchange) answer(status int, header http.Header, upgrade string) {
	list, omitted := fields(header)
	mask(list)
	m := message{header: list}
	if !x.charge(m.size()) {
		list, omitted = nil, len(list)
	}
	r := x.rec
	r.mu.Lock()
	defer r.mu.Unlock()
	x.status, x.answered, x.upgrade = status, time.Since(x.begun), upgrade
	if x.dropped {
		return
	}
	x.response.header, x.response.omitted = list, omitted
	if upgrade != "" { // it may be open for hours
		r.tellLocked(Event{Exchange: x.summaryLocked()})
	}
}

// end is the end of the exchange. complete reports whether the handler did not give up.
func (x *exchange) end(complete bool, request, response http.Header) {
	var trailers [2]message
	for i, h := range []http.Header{request, response} {
		trailers[i].trailer, trailers[i].omitted = fields(h)
	}
	mask(trailers[1].trailer)
	if !x.charge(trailers[0].size() + trailers[1].size()) {
		trailers = [2]message{}
	}
	r := x.rec
	r.mu.Lock()
	defer r.mu.Unlock()
	x.state, x.ended = done, time.Since(x.begun)
	if !complete {
		x.state = aborted
	}
	if x.dropped {
		return
	}
	for i, m := range []*message{&x.request, &x.response} {
		m.trailer = trailers[i].trailer
		m.omitted += trailers[i].omitted
	}
	r.tellLocked(Event{Exchange: x.summaryLocked()})
}

// size is about what the fields take.
func (m *message) size() (n int64) {
	for _, list := range [][]Field{m.header, m.trailer} {
		for _, f := range list {
			n += int64(len(f.Name) + len(f.Value) + 2*16)
		}
	}
	return n
}

// fields returns a copy of a header, sorted, and how many fields found no room in it. The strings of a request's header share one piece of
// memory with what is not kept, hence the copy.
func fields(h http.Header) (list []Field, omitted int) {
	room := headerKept
	for _, name := range sortedNames(h) {
		for _, value := range h[name] {
			if room -= len(name) + len(value); room < 0 {
				room, omitted = 0, omitted+1
				continue
			}
			list = append(list, Field{strings.Clone(name), strings.Clone(value)})
		}
	}
	return list, omitted
}

func sortedNames(h http.Header) []string {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// limited is a copy of the beginning of a text.
func limited(s string) string { return strings.Clone(s[:min(len(s), lineKept)]) }
