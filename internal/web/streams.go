package web

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"

	"reverser/internal/share"
)

// What a client of HTTP/2 can have this process hold. The costs are bytes, a little more than what was measured.
const (
	mostHeld       = 64 << 10  // at once, of one whom no service has let in
	mostHeldInside = 128 << 10 // of others, for heads alone
	streamCost     = 16 << 10  // a request of a stranger: its goroutine, and its answer until the client lets it be written
	byteCost       = 2         // a byte of a head as it comes, which is kept until its field is complete
	fieldCost      = 100       // a field of a head, beside the bytes of its name and value
	trailerCost    = 200       // a name in a field that announces trailers, of which net/http makes a table
	replyCost      = 128       // a frame that net/http answers by itself
	shareUnit      = 8 << 10   // what is beyond is taken of a pool in such steps

	mostResets   = 16                // requests that a stranger takes back, or has reset: each may leave a goroutine for a moment
	mostFrames   = 1000              // frames between two requests, of one who was let in those that are of no use
	mostInTurn   = 32                // reads of a client, two for most frames, before others have their turn
	mostUnpacked = maxHeader + 1<<10 // bytes of a head that net/http keeps, at the most
	maxFrame     = 1 << 14           // bytes of a frame: what a server has to take (RFC 9113, section 6.5.2)
)

const waitTime = 2 * headerTime // that a client is held back: longer than a page may take to be written

var (
	errStreams = errors.New("there is no room for more requests of a client of HTTP/2")
	errPreface = errors.New("the client agreed on HTTP/2 and does not speak it")
	errResets  = errors.New("the client took back too many requests")
	errFrames  = errors.New("the client sends frames and asks for nothing")
	errBlock   = errors.New("the head of a request could not be unpacked")
)

// streams follows the frames of a client of HTTP/2 (RFC 9113), and holds back what it sends while this process would have to hold too much
// for it. net/http takes a hundred requests from everybody, and keeps a goroutine, the fields and an answer for each until the client lets
// the answer be written, which may be never: 14 KB for 20 bytes, and 240 KB for a head of many short fields.
//
// A client that is held back is not read until one of its requests is answered. If none is within waitTime, it is reset. Its window updates may
// be among what is not read: then a stranger's page ends after headerTime, and the connection of a client that was let in after waitTime.
type streams struct {
	agreed bool // it is HTTP/2, or nothing: TLS says so. Set before the first read, as from
	from   netip.Addr

	mu      sync.Mutex
	changed sync.Cond // something is held no more, or nothing is followed any more

	matched int            // bytes of the preface that were seen; guarded by mu, as all below
	over    bool           // it is not HTTP/2, or it has gone
	broken  bool           // a head could not be unpacked, which net/http has been left to say
	inside  bool           // a service has let it in
	in, out frames         // from the client and to it
	head    heads          // what is unpacked of heads
	inHead  bool           // a head has begun and not ended
	begun   time.Time      // when what has begun and not ended did: a head, or a frame that is no body; the zero value: nothing has
	open    map[uint32]int // what each request holds whose head is complete, until its answer is written
	block   int            // what the head holds that is being read
	raw     int            // of it, what is held until it is unpacked
	frame   int            // what the frame holds that is being read
	owed    int            // what replies hold that were not written yet
	held    int            // all of it
	resets  int
	idle    int // frames since the last request; of one who was let in, those that are of no use

	pool  *share.Pool // where what is beyond comes from
	short func()      // nil: a stranger is refused then, which is told elsewhere
	extra int64       // that was taken of it
}

const prefaceOfHTTP2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Frames of HTTP/2 (RFC 9113, section 6).
const (
	frameData         = 0
	frameHeaders      = 1
	frameReset        = 3
	frameSettings     = 4
	framePing         = 6
	frameWindow       = 8
	frameContinuation = 9

	flagEndStream  = 1 // of DATA and HEADERS
	flagAck        = 1 // of SETTINGS and PING
	flagEndHeaders = 4
	flagPadded     = 8
	flagPriority   = 0x20
)

// frames finds the frames in the bytes of one direction.
type frames struct {
	head [9]byte
	have int // bytes of head
	left int // bytes of the payload that are to come
	skip int // bytes of them before the fields of a head
	pad  int // bytes of them behind the fields; -1: the next byte says how many
}

func (f *frames) kind() byte         { return f.head[3] }
func (f *frames) has(flag byte) bool { return f.head[4]&flag != 0 }
func (f *frames) id() uint32         { return binary.BigEndian.Uint32(f.head[5:]) &^ (1 << 31) }

// isHead reports whether the payload is of the fields of a head.
func (f *frames) isHead() bool { return f.kind() == frameHeaders || f.kind() == frameContinuation }

// useless reports whether a frame asks for nothing, brings nothing and answers nothing. Browsers send a few of some kinds with each request.
func (f *frames) useless() bool {
	switch f.kind() {
	case frameHeaders, frameReset, framePing, frameWindow:
		return false
	case frameSettings:
		return f.has(flagAck)
	case frameData:
		return f.left == 0 && !f.has(flagEndStream)
	case frameContinuation:
		return f.left == 0
	}
	return true
}

// begin notes that the head of a frame is complete.
func (f *frames) begin() {
	f.have = 0
	f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
	f.skip, f.pad = 0, 0
	if f.kind() == frameHeaders {
		if f.has(flagPadded) {
			f.pad = -1
		}
		if f.has(flagPriority) {
			f.skip = 5
		}
	}
}

// fields passes the bytes of a payload that are of fields, and counts all of them.
func (f *frames) fields(b []byte, pass func([]byte)) {
	for len(b) > 0 {
		k := 1
		switch {
		case f.pad < 0:
			f.pad = int(b[0])
		case f.skip > 0:
			k = min(f.skip, len(b))
			f.skip -= k
		case f.left <= f.pad:
			k = len(b)
		default:
			k = min(len(b), f.left-f.pad)
			pass(b[:k])
		}
		f.left -= k
		b = b[k:]
	}
}

// follows reports whether what is read are frames of HTTP/2.
func (s *streams) follows() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.over && s.matched == len(prefaceOfHTTP2)
}

// late returns until when what has begun must have ended; the zero value: there is no limit.
func (s *streams) late() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun.IsZero() {
		return s.begun
	}
	return s.begun.Add(headerTime)
}

// enter says that a service has let the client in. pool is where what it holds beyond its own comes from now, and short is called when that has
// nothing left for it, without a lock.
func (s *streams) enter(pool *share.Pool, short func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inside {
		return
	}
	s.giveLocked()
	s.inside, s.pool, s.short = true, pool, short
	s.wakeLocked()
}

// end stops following.
func (s *streams) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveLocked()
	s.over, s.open = true, nil
	s.wakeLocked()
}

func (s *streams) wakeLocked() {
	if s.changed.L != nil { // somebody has waited
		s.changed.Broadcast()
	}
}

// read sees what the client sent, and returns how much of it may be passed on now: all, or what is before a frame that may have to wait. Such a
// frame waits when it comes first.
func (s *streams) read(b []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return 0, errBlock
	}
	defer s.timeLocked()
	begin := 0 // of the frame whose head is being read
	for n < len(b) && !s.over {
		switch {
		case s.matched < len(prefaceOfHTTP2):
			s.over = b[n] != prefaceOfHTTP2[s.matched]
			s.matched++
			n++
			if s.over && s.agreed {
				return n, errPreface
			}
			continue
		case s.in.left > 0:
			k := min(len(b)-n, s.in.left)
			if s.in.isHead() {
				s.in.fields(b[n:n+k], s.unpackLocked)
			} else {
				s.in.left -= k
			}
			n += k
		default:
			if s.in.have == 0 {
				begin = n
			}
			s.in.head[s.in.have] = b[n]
			s.in.have++
			n++
			if s.in.have < len(s.in.head) {
				continue
			}
			if begin > 0 {
				s.in.have = 0
				return begin, nil
			}
			s.in.begin()
			err = s.frameLocked()
		}
		if err == nil && !s.fitsLocked() {
			err = errStreams
		}
		if err != nil {
			return n, err
		}
		if s.in.left == 0 {
			s.frameEndsLocked()
		}
	}
	return len(b), nil
}

// timeLocked notes since when something is unfinished.
func (s *streams) timeLocked() {
	unfinished := s.inHead || s.in.have > 0 || s.in.left > 0 && s.in.kind() != frameData
	switch {
	case !unfinished || s.over:
		s.begun = time.Time{}
	case s.begun.IsZero():
		s.begun = time.Now()
	}
}

// frameLocked counts the frame whose head was read.
func (s *streams) frameLocked() error {
	f := &s.in
	_, open := s.open[f.id()]
	if !s.inside || f.useless() {
		s.idle++
	}
	s.frame = min(f.left, maxFrame) // net/http takes no more
	switch f.kind() {
	case frameHeaders:
		s.inHead = true
		if !open {
			s.idle = 0
			if !s.inside {
				s.block += streamCost
				s.held += streamCost
			}
		}
	case frameData:
		if open && !s.inside {
			s.addLocked(f.id(), s.frame)
		}
		if open || s.inside {
			s.frame = 0
		}
	case frameReset:
		if open {
			s.resets++
			s.answeredLocked(f.id())
		}
	case framePing, frameSettings:
		if !f.has(flagAck) {
			s.owed += replyCost
			s.held += replyCost
		}
	}
	s.held += s.frame
	switch {
	case s.idle > mostFrames:
		return errFrames
	case s.resets > mostResets && !s.inside:
		return errResets
	}
	return nil
}

// unpackLocked counts what a part of a head holds.
func (s *streams) unpackLocked(b []byte) {
	before := s.head.cost
	s.broken = !s.head.unpack(b) || s.broken
	s.raw += byteCost * len(b)
	n := s.head.cost - before + byteCost*len(b)
	s.block += n
	s.held += n
}

// frameEndsLocked has a request begin with the end of its head.
func (s *streams) frameEndsLocked() {
	s.held -= s.frame
	s.frame = 0
	if s.in.isHead() && s.in.has(flagEndHeaders) {
		s.held -= s.block
		s.addLocked(s.in.id(), s.block-s.raw)
		s.block, s.raw, s.inHead = 0, 0, false
		s.broken = !s.head.end() || s.broken
	}
}

func (s *streams) addLocked(id uint32, n int) {
	if s.open == nil {
		s.open = make(map[uint32]int)
	}
	s.open[id] += n
	s.held += n
}

func (s *streams) answeredLocked(id uint32) {
	s.held -= s.open[id]
	delete(s.open, id)
	if s.held <= s.mostLocked() {
		s.giveLocked()
	}
}

func (s *streams) mostLocked() int {
	if s.inside {
		return mostHeldInside
	}
	return mostHeld
}

func (s *streams) giveLocked() {
	if s.extra > 0 {
		s.pool.Give(s.from, s.extra)
		s.extra = 0
	}
}

// fitsLocked waits until what is held is not too much. It reports whether that came about. Strangers have to wait for their own answers first;
// what is beyond comes from a pool when there is none under way. Others wait when the pool has nothing left for them.
func (s *streams) fitsLocked() bool {
	told := false
	for !s.over {
		want := int64(s.held-s.mostLocked()+shareUnit-1) / shareUnit * shareUnit
		switch {
		case want <= s.extra:
			return true
		case (s.inside || len(s.open) == 0) && s.pool != nil && s.pool.Take(s.from, want-s.extra):
			s.extra = want
			return true
		}
		if s.short != nil && !told {
			told = true
			s.mu.Unlock()
			s.short()
			s.mu.Lock()
			continue
		}
		if len(s.open) == 0 || !s.waitLocked() {
			return false
		}
		s.begun = time.Time{} // it was this process that waited
	}
	return true
}

// waitLocked waits until something is held no more, for up to waitTime: whoever has gone meanwhile is not seen, as nothing is read.
func (s *streams) waitLocked() bool {
	if s.changed.L == nil {
		s.changed.L = &s.mu
	}
	late := false
	timer := time.AfterFunc(waitTime, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		late = true
		s.changed.Broadcast()
	})
	s.changed.Wait()
	timer.Stop()
	return !late
}

// wrote sees what was written to the client: answers end with it, and replies.
func (s *streams) wrote(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.matched < len(prefaceOfHTTP2) {
		return
	}
	before := s.held
	s.held -= s.owed
	s.owed = 0
	for f := &s.out; len(b) > 0; {
		if f.left > 0 {
			k := min(len(b), f.left)
			f.left -= k
			b = b[k:]
		} else {
			k := copy(f.head[f.have:], b)
			f.have += k
			b = b[k:]
			if f.have < len(f.head) {
				break
			}
			f.begin()
		}
		if f.left > 0 {
			continue
		}
		_, open := s.open[f.id()]
		switch k := f.kind(); {
		case !open:
		case k == frameReset:
			s.resets++
			s.answeredLocked(f.id())
		case (k == frameData || k == frameHeaders) && f.has(flagEndStream):
			s.answeredLocked(f.id())
		}
	}
	if s.held < before {
		s.wakeLocked()
	}
}

// heads unpacks the heads of one client (RFC 7541), as net/http does, to count what that keeps of each.
type heads struct {
	decoder *hpack.Decoder // nil: there was no head yet
	cost    int            // of the head, so far
	size    int            // of the head, as net/http counts it
}

// unpack unpacks a part of a head. false: it cannot be.
func (h *heads) unpack(b []byte) bool {
	if h.decoder == nil {
		h.decoder = hpack.NewDecoder(4096, h.field) // the size that is agreed on, which net/http does not change
		h.decoder.SetMaxStringLength(mostUnpacked)
	}
	_, err := h.decoder.Write(b)
	return err == nil
}

func (h *heads) field(f hpack.HeaderField) {
	h.size += int(f.Size())
	if h.size > mostUnpacked {
		h.decoder.SetEmitEnabled(false)
		return
	}
	h.cost += fieldCost + len(f.Name) + len(f.Value)
	switch f.Name {
	case "trailer":
		h.cost += trailerCost * strings.Count(f.Value, ",")
	case "cookie":
		h.cost += len(f.Value) // net/http joins them
	}
}

// end is the end of a head. false: it cannot be unpacked.
func (h *heads) end() bool {
	h.cost, h.size = 0, 0
	if h.decoder == nil {
		return true
	}
	h.decoder.SetEmitEnabled(true)
	return h.decoder.Close() == nil
}

// follow looks at what was read, and returns how much of it goes on. false: nothing does, and the connection is to end.
func (c *Client) follow(b []byte, err error) (int, error, bool) {
	n, why := c.stream.read(b)
	if why != nil {
		if why == errStreams && !c.said.Load() {
			c.server.crowded(PoolStrangers, why)
		}
		c.shut.Store(true)
		c.resetAtClose() // nothing that is worth waiting for is on its way to the client
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: why}, false
	}
	if n < len(b) {
		c.held = append(bytes.Clone(b[n:]), c.held...)
		err = nil // it comes again
	}
	return n, err, true
}

// yield gives others their turn when many frames were read. net/http hands each from a goroutine to another one, and two that do so keep a
// processor for as long as the scheduler lets them, 10 ms: with hundreds of such clients nobody else would have one for seconds.
func (c *Client) yield() {
	if c.reads++; c.reads%mostInTurn == 0 {
		runtime.Gosched()
	}
}
