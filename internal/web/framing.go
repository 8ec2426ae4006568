package web

import (
	"bytes"
	"net/http"
	"sync"
)

// framing watches the head of each request on a connection for what net/http does not tell: that it has both Content-Length and
// Transfer-Encoding, or that one of HTTP/1.0 has the latter, which net/http ignores there. Such a request may be an attempt to hide another
// one from whoever reads the other of the two.
//
// It also counts the lines of a head, of which net/http bounds only the bytes, though it keeps a string for each line, and its bytes.
//
// It knows where a head begins only while nothing was sent ahead of an answer, and no body had an end of its own. Otherwise it is blind, and
// counts what is read between an answer and the next request.
type framing struct {
	mu     sync.Mutex
	blind  bool // guarded by mu, as all below
	fresh  bool // nothing but a head was read since the last answer, which blind framing counts
	http2  bool // the first line is that of HTTP/2's preface: there are no more heads of HTTP/1
	lines  int  // of the head, so far
	size   int  // bytes of the head, so far
	inside bool // of a head
	begun  bool // the head has a line: net/http skips empty ones before it, behind a POST
	length bool // the head has a Content-Length
	coding bool // the head has a Transfer-Encoding
	line   []byte
	behind int64 // bytes behind the head
	single byte  // what the last read brought, if it was one byte
	ones   bool
	body   int64 // how long the body is; negative: that is not known
}

var (
	nameLength = []byte("content-length")
	nameCoding = []byte("transfer-encoding")
	preface    = []byte("pri * http/2.0")
)

// begin expects a head.
func (f *framing) begin() {
	f.inside, f.begun, f.length, f.coding, f.line, f.behind, f.body = true, false, false, false, f.line[:0], 0, 0
	f.lines, f.size = 0, 0
}

// read sees what was read of the connection. It returns how many lines and bytes of a head are there that has not ended before.
func (f *framing) read(b []byte) (lines, size int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ones = len(b) == 1; f.ones {
		f.single = b[0]
	}
	inside := f.inside
	f.readLocked(b)
	switch {
	case f.blind && f.fresh:
		f.lines += lineCount(b)
		return f.lines, 0
	case f.blind || !inside:
		return 0, 0
	}
	return f.lines, f.size
}

// lineCount counts the lines of a head in a part of it, behind which there may be a body.
func lineCount(b []byte) (n int) {
	empty := true // the first line may be the end of one before it
	for _, c := range b {
		switch c {
		case '\n':
			if empty {
				return n
			}
			n++
			empty = true
		case '\r':
		default:
			empty = false
		}
	}
	return n
}

func (f *framing) readLocked(b []byte) {
	for i, c := range b {
		if !f.inside {
			f.behind += int64(len(b) - i)
			return
		}
		f.size++
		switch {
		case c == '\n':
			f.lines++
			line := bytes.TrimRight(f.line, "\r")
			empty := len(line) == 0
			f.http2 = f.http2 || f.lines == 1 && bytes.Equal(line, preface)
			f.inside = !empty || !f.begun
			f.begun = f.begun || !empty
			f.line = f.line[:0]
		case len(f.line) <= len(nameCoding):
			if f.line = append(f.line, lower(c)); c == ':' {
				name := f.line[:len(f.line)-1]
				f.length = f.length || bytes.Equal(name, nameLength)
				f.coding = f.coding || bytes.Equal(name, nameCoding)
			}
		}
	}
}

// check looks at the request whose head was read. mixed: it says its end in two ways, or in one that its version does not have. unsure: it
// may, and nothing may follow it (RFC 9112, section 6.1).
func (f *framing) check(r *http.Request) (mixed, unsure bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.body, f.fresh = r.ContentLength, false
	if f.inside {
		f.blind = true
	}
	old := !r.ProtoAtLeast(1, 1)
	if coded := old || len(r.TransferEncoding) > 0; !coded {
		return false, false
	}
	return !f.blind && f.coding && (f.length || old), f.blind
}

// idle notes that the answer is complete. It reports whether the next head can be told from what is around it.
func (f *framing) idle() (exact bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// net/http reads one byte ahead while an answer is under way, to see whether the client is there.
	ahead := f.ones && f.behind == f.body+1
	if f.blind = f.blind || f.inside || f.body < 0 || f.behind != f.body && !ahead; !f.blind {
		f.begin()
		if ahead {
			f.readLocked([]byte{f.single})
		}
		return true
	}
	f.lines, f.fresh = 0, true
	return f.http2
}
