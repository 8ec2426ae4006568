package web

import (
	"encoding/binary"
	"errors"
	"sync"
)

// What a client of HTTP/2 whom no service has let in can have this process hold. The costs are bytes, a little more than what was measured.
const (
	mostHeld   = 48 << 10  // at once; a client that sends more waits until some of it is answered
	streamCost = 16 << 10  // a request: its goroutine, and its answer until the client lets it be written
	fieldCost  = 100       // a field of a head, beside the bytes of its name and value
	byteCost   = 2         // a byte of a head, which may be packed
	mostBlock  = 256 << 10 // a head: net/http keeps maxHeader bytes of it, in which each field counts for at least 32
	replyCost  = 128       // a frame that net/http answers by itself
	mostResets = 16        // requests that it takes back: each may leave a goroutine behind for a moment
)

var (
	errStreams = errors.New("there is no room for more requests of a client whom no service has let in")
	errPreface = errors.New("the client agreed on HTTP/2 and does not speak it")
	errResets  = errors.New("the client took back too many requests")
)

// streams follows the frames of a client of HTTP/2 (RFC 9113) until a service lets it in, and holds back what it sends while this process would
// have to hold too much for it. net/http takes a hundred requests from everybody, and keeps a goroutine, the fields and an answer for each
// until the client lets the answer be written, which may be never: 14 KB for 20 bytes.
//
// A client that is held back is read no further until one of its requests is answered or a service lets it in. Nothing that it needs for
// that is held back, but for window updates behind more requests than it may have. Then the time for writing a page ends the wait.
type streams struct {
	mu      sync.Mutex
	changed sync.Cond // something is held no more, or nothing is followed any more

	agreed bool // it is HTTP/2, or nothing: TLS says so. Set before the first read

	matched int            // bytes of the preface that were seen; guarded by mu, as all below
	over    bool           // it is not HTTP/2, or a service has let the client in, or it has gone
	in, out frames         // from the client and to it
	open    map[uint32]int // what each request holds whose head is complete, until its answer is written
	block   int            // what the head holds that is being read
	owed    int            // what replies hold that were not written yet
	held    int            // all of it
	extra   int            // that it may hold beyond mostHeld, until all of it is answered
	resets  int
	fields  fieldCount
}

const prefaceOfHTTP2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Frames of HTTP/2 (RFC 9113, section 6).
const (
	frameData         = 0
	frameHeaders      = 1
	frameReset        = 3
	frameSettings     = 4
	framePing         = 6
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

// begun notes that the head of a frame is complete.
func (f *frames) begun() {
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

// isHead reports whether the payload is of the fields of a head.
func (f *frames) isHead() bool { return f.kind() == frameHeaders || f.kind() == frameContinuation }

// mayWait reports whether frames of its kind cost something.
func (f *frames) mayWait() bool {
	switch f.kind() {
	case frameData, frameHeaders, frameContinuation, frameSettings, framePing:
		return true
	}
	return false
}

// follows reports whether what is read are frames of HTTP/2 that are followed.
func (s *streams) follows() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.over && s.matched == len(prefaceOfHTTP2)
}

// end stops following.
func (s *streams) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over, s.open = true, nil
	s.wakeLocked()
}

func (s *streams) wakeLocked() {
	if s.changed.L != nil { // somebody has waited
		s.changed.Broadcast()
	}
}

// read sees what the client sent, and returns how much of it may be passed on now: all, or what is before a frame that may have to wait. Such a
// frame waits when it comes first. more is asked for so many bytes beyond mostHeld where waiting would be in vain.
func (s *streams) read(b []byte, more func(int) bool) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
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
			s.payloadLocked(b[n : n+k])
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
			if begin > 0 && s.in.mayWait() {
				s.in.have = 0
				return begin, nil
			}
			s.in.begun()
			s.frameLocked()
		}
		if s.resets > mostResets {
			return n, errResets
		}
		if !s.fitsLocked(more) {
			return n, errStreams
		}
		if s.in.have == 0 && s.in.left == 0 {
			s.frameEndsLocked()
		}
	}
	return len(b), nil
}

// frameLocked counts the frame whose head was read.
func (s *streams) frameLocked() {
	f := &s.in
	_, open := s.open[f.id()]
	switch f.kind() {
	case frameHeaders:
		s.fields = fieldCount{}
		if !open {
			s.blockLocked(streamCost)
		}
	case frameData:
		if open { // or it is not kept
			s.addLocked(f.id(), f.left)
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
}

// payloadLocked counts a part of a frame's payload.
func (s *streams) payloadLocked(b []byte) {
	f := &s.in
	for len(b) > 0 && f.isHead() {
		if f.pad < 0 {
			f.pad = int(b[0])
			f.left--
			b = b[1:]
			continue
		}
		if f.skip > 0 {
			k := min(f.skip, len(b))
			f.skip -= k
			f.left -= k
			b = b[k:]
			continue
		}
		k := min(len(b), max(f.left-f.pad, 0))
		if k == 0 {
			break
		}
		before := s.fields.n
		s.fields.read(b[:k])
		s.blockLocked(k*byteCost + (s.fields.n-before)*fieldCost)
		f.left -= k
		b = b[k:]
	}
	f.left -= len(b)
}

// frameEndsLocked has a request begin with the end of its head.
func (s *streams) frameEndsLocked() {
	if s.in.isHead() && s.in.has(flagEndHeaders) {
		n := s.block
		s.block = 0
		s.held -= n
		s.addLocked(s.in.id(), n)
	}
}

func (s *streams) blockLocked(n int) {
	n = min(n, mostBlock-s.block)
	s.block += n
	s.held += n
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
	if len(s.open) == 0 && s.block == 0 {
		s.extra = 0
	}
}

// fitsLocked waits until what is held is not too much. It reports whether that came about.
func (s *streams) fitsLocked(more func(int) bool) bool {
	for !s.over && s.held > mostHeld+s.extra {
		if len(s.open) == 0 { // nothing ends
			if !more(s.held - mostHeld) {
				return false
			}
			s.extra = s.held - mostHeld
			break
		}
		if s.changed.L == nil {
			s.changed.L = &s.mu
		}
		s.changed.Wait()
	}
	return true
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
				return
			}
			f.begun()
		}
		if f.left > 0 {
			continue
		}
		if k := f.kind(); k == frameReset || (k == frameData || k == frameHeaders) && f.has(flagEndStream) {
			s.answeredLocked(f.id())
		}
	}
	if s.held < before {
		s.wakeLocked()
	}
}

// fieldCount counts the fields of a head, without decoding them (RFC 7541, section 6).
type fieldCount struct {
	n       int
	at      fieldPart
	strings int // of the field, that are to come
	length  int // of the string; or its bytes that are to come
	shift   int
}

type fieldPart uint8

const (
	fieldStart  fieldPart = iota
	fieldIndex            // in the rest of a number that is of no interest
	fieldLength           // the length of a string begins
	fieldLonger           // in the rest of the length
	fieldString
)

// read sees a part of a head.
func (c *fieldCount) read(b []byte) {
	for i := 0; i < len(b); i++ {
		x := b[i]
		switch c.at {
		case fieldStart:
			prefix, literal := byte(0x0f), true // a literal that is not to be indexed
			switch {
			case x&0x80 != 0:
				prefix, literal = 0x7f, false // indexed
			case x&0x40 != 0:
				prefix = 0x3f // a literal to be indexed
			case x&0x20 != 0:
				prefix, literal = 0x1f, false // the size of the table
			}
			if prefix != 0x1f {
				c.n++
			}
			c.strings = 0
			if literal {
				if c.strings = 1; x&prefix == 0 {
					c.strings = 2 // the name, too
				}
			}
			if x&prefix == prefix {
				c.at = fieldIndex
			} else {
				c.next()
			}
		case fieldIndex:
			if x&0x80 == 0 {
				c.next()
			}
		case fieldLength:
			c.strings--
			c.length, c.shift = int(x&0x7f), 0
			if c.length == 0x7f {
				c.at = fieldLonger
			} else {
				c.string()
			}
		case fieldLonger:
			if c.shift <= 21 { // net/http takes no longer ones
				c.length += int(x&0x7f) << c.shift
				c.shift += 7
			}
			if x&0x80 == 0 {
				c.string()
			}
		case fieldString:
			k := min(c.length, len(b)-i)
			i += k - 1
			if c.length -= k; c.length == 0 {
				c.next()
			}
		}
	}
}

// string begins with the bytes of a string.
func (c *fieldCount) string() {
	if c.at = fieldString; c.length == 0 {
		c.next()
	}
}

// next goes on behind a number or a string.
func (c *fieldCount) next() {
	if c.at = fieldStart; c.strings > 0 {
		c.at = fieldLength
	}
}
