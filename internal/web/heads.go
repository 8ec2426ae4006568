package web

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"

	"reverser/internal/share"
)

// The head of an answer is as large as the target likes, and a key chooses its targets. So it is bounded, and nothing is made of it before it
// is there as a whole: net/http holds ten times as much of one that does not end.
const (
	maxAnswerHead = 64 << 10 // bytes of it, of informational ones each for itself
	mostInterim   = 16       // informational answers before an answer
)

// mostLines is how many lines the head of a request may have, that of an answer behind its first one, and a trailer: net/http takes more memory
// for many short lines than for their bytes.
const mostLines = 200

var (
	errLongHead  = fmt.Errorf("the head of the answer has more than %d bytes", maxAnswerHead)
	errManyLines = fmt.Errorf("the head of the answer has more than %d lines", mostLines)
	errTrailer   = fmt.Errorf("the trailer of the answer has more than %d lines", mostLines)
	errInterim   = fmt.Errorf("the target sent more than %d informational answers", mostInterim)
	errHeadRoom  = errors.New("long heads of answers hold as much memory for this key as is left for those of all others")
	errNoEnd     = errors.New("the head of the answer is not complete yet")
)

// headScan looks for the end of a head in what has come of it.
type headScan struct {
	end   int // of the lines that were seen
	lines int
}

// look looks at a head from its first byte on, more of it at each call. nil: it is complete, or has a first line that no answer has, of which
// net/http says what is wrong. errNoEnd: more of it has to come.
func (s *headScan) look(raw []byte) error {
	for {
		n := bytes.IndexByte(raw[s.end:], '\n') + 1
		if n == 0 {
			break
		}
		line := raw[s.end : s.end+n]
		s.end += n
		s.lines++
		switch {
		case s.end > maxAnswerHead:
			return errLongHead
		case s.lines == 1:
			if !isStatusLine(line) {
				return nil
			}
		case len(line) == 1, len(line) == 2 && line[0] == '\r':
			return nil
		case s.lines > mostLines+1:
			return errManyLines
		}
	}
	if len(raw) >= maxAnswerHead {
		return errLongHead
	}
	return errNoEnd
}

// isStatusLine reports whether net/http takes a line for the first one of an answer.
func isStatusLine(line []byte) bool {
	const version = "HTTP/1.1 "
	if len(line) > len(version)+3 && string(line[:len(version)]) == version {
		digits := line[len(version) : len(version)+3]
		if next := line[len(version)+3]; (next == ' ' || next == '\r' || next == '\n') && bytes.IndexFunc(digits, func(c rune) bool { return c < '0' || c > '9' }) < 0 {
			return true
		}
	}
	_, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(line)+"\r\n")), nil)
	return err == nil
}

// await reads until the head of an answer is there as a whole. What does not fit into the buffer is in t.ahead then. long: so it is, and reading the
// head waits for nothing.
func (t *target) await() (long bool, err error) {
	var s headScan
	for {
		raw, _ := t.br.Peek(t.br.Buffered())
		if err := s.look(raw); err != errNoEnd {
			return false, err
		}
		if len(raw) == t.br.Size() {
			return t.awaitLong(&s, raw)
		}
		if _, err := t.br.Peek(len(raw) + 1); err != nil {
			return false, nil // reading the head says it again
		}
	}
}

// awaitLong is await for a head of which raw fills the buffer.
func (t *target) awaitLong(s *headScan, raw []byte) (whole bool, err error) {
	step := len(raw)
	head := raw
	defer t.br.Discard(step)
	for {
		if len(head) == cap(head) || len(head) == step {
			size := min(2*len(head), maxAnswerHead)
			if !t.x.holdHead(size - step) {
				return false, errHeadRoom
			}
			head = append(make([]byte, 0, size), head...)
		}
		n, err := t.Read(head[len(head):min(len(head)+step, cap(head))]) // no more than that is of what comes behind the head
		head = head[:len(head)+n]
		switch end := s.look(head); {
		case end == nil, end == errNoEnd && err != nil:
			t.ahead = slices.Concat(head, t.ahead)
			t.x.holdHead(len(head) - step) // which is less
			return end == nil, nil
		case end != errNoEnd:
			return false, end
		}
	}
}

// headRoom is the memory for long heads, from the first byte that does not fit into a connection's buffer until the exchange is over. A key may
// have as much of it as is left for all others.
type headRoom struct {
	mu   sync.Mutex
	size int // guarded by mu, as all below
	used int
	of   map[any]int // by key
}

// defaultHeadRoom is how large it is where the owner says nothing.
const defaultHeadRoom = 16 << 20

// change gives a key n bytes, or takes them back. false: there is no room for them.
func (h *headRoom) change(key any, n int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n > 0 && cmp.Or(h.size, defaultHeadRoom)-h.used-n < h.of[key]+n {
		return false
	}
	if h.of == nil {
		h.of = make(map[any]int)
	}
	h.used += n
	if h.of[key] += n; h.of[key] == 0 {
		delete(h.of, key)
	}
	return true
}

// taken returns how much of it is taken, and by which key most.
func (h *headRoom) taken() Taken {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := Taken{Taken: share.Taken{Used: int64(h.used), Size: int64(cmp.Or(h.size, defaultHeadRoom))}}
	for key, n := range h.of {
		if int64(n) > t.ByLargest {
			t.Key, t.ByLargest = key, int64(n)
		}
	}
	return t
}

// Pool is memory of a server that several share.
type Pool int

// The pools.
const (
	PoolAnswers   Pool = iota // for long heads of answers; keys share it
	PoolStrangers             // for requests of clients whom no service has let in; addresses share it
	PoolUsers                 // for heads of requests of HTTP/2 of others; addresses share it
)

// Taken is how much of a pool is taken.
type Taken struct {
	share.Taken     // its Largest is not of PoolAnswers
	Key         any // of PoolAnswers, of the Site that has most; nil: nobody has anything
}

// Taken returns how much of a pool is taken, and by whom most.
func (s *Server) Taken(p Pool) Taken {
	s.prepare()
	pool := &s.strange
	switch p {
	case PoolAnswers:
		return s.heads.taken()
	case PoolUsers:
		pool = &s.users
	}
	return Taken{Taken: pool.Taken()}
}

func (s *Server) crowded(p Pool, why error) {
	if s.Crowded != nil {
		s.Crowded(p, why)
	}
}

// holdHead has the exchange hold n bytes of a long head, and no others. false: there is no room for them.
func (x *exchange) holdHead(n int) bool {
	if !x.server.heads.change(x.site.Key, n-int(x.longHead.Load())) {
		x.server.crowded(PoolAnswers, errHeadRoom)
		return false
	}
	x.longHead.Store(int64(n))
	return true
}

// dropHead is the end of holdHead.
func (x *exchange) dropHead() {
	if n := int(x.longHead.Swap(0)); n > 0 {
		x.server.heads.change(x.site.Key, -n)
	}
}

// bounded sends requests to targets that speak HTTP/2. net/http bounds the bytes of a head there.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(r)
	if err == nil && manyLines(res.Header) {
		res.Body.Close()
		return nil, errManyLines
	}
	return res, err
}

// countInterim returns what is called with each informational answer to a request.
func countInterim() func(int, textproto.MIMEHeader) error {
	n := 0
	return func(_ int, h textproto.MIMEHeader) error {
		switch n++; {
		case n > mostInterim:
			return errInterim
		case manyLines(http.Header(h)):
			return errManyLines
		}
		return nil
	}
}

// manyLines reports whether a trailer, or what a target that speaks HTTP/2 sends for a head, has more lines than it may.
func manyLines(h http.Header) bool {
	n := 0
	for _, values := range h {
		n += len(values)
	}
	return n > mostLines
}
