package inspect

import (
	"encoding/binary"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Where bytes of a connection come from.
const (
	fromClient = iota
	fromTarget
)

// frame is one frame of a WebSocket (RFC 6455, section 5.2).
type frame struct {
	at         time.Duration // since the exchange began
	from       int
	opcode     byte
	fin        bool
	compressed bool   // the payload is as it is on the wire
	whole      bool   // all of it passed
	bytes      uint64 // of the payload
	payload    []byte // its beginning
	text       []byte // the beginning of the message that ends with this frame, where frames are compressed
}

// frames is what is kept of a WebSocket.
type frames struct {
	list  []frame // the oldest first
	kept  int     // bytes of their payloads
	count uint64  // that passed
}

// reader reads the frames of one direction.
type reader struct {
	x    *exchange
	from int

	mu     sync.Mutex // the end of an exchange may come while the connection is still carried
	over   bool       // guarded by mu, as all below
	head   [14]byte   // of the frame that is being read
	have   int        // bytes of head
	inside bool       // all of head was read
	frame  frame
	left   uint64 // bytes of the payload that are to come
	key    [4]byte
	turn   int // of key, for the next byte
	charge int64
	inflater
}

// read begins to read frames of one direction.
func (x *exchange) read(from int, deflate, reset bool) {
	d := &reader{x: x, from: from}
	if deflate {
		d.inflater = inflater{deflate: true, on: true, reset: reset}
	}
	x.rec.mu.Lock()
	defer x.rec.mu.Unlock()
	if !x.dropped {
		x.socket[from].Store(d)
	}
}

// feed takes the next bytes of the direction.
func (d *reader) feed(p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.x.passed(d.from, len(p))
	for len(p) > 0 && !d.over {
		if !d.inside {
			p = d.readHead(p)
			continue
		}
		n := int(min(uint64(len(p)), d.left))
		d.readPayload(p[:n])
		p = p[n:]
		if d.left == 0 {
			d.frameOver()
		}
	}
}

// headSize is the size of a frame's head, as far as its first two bytes tell.
func headSize(b [2]byte) (n int) {
	n = 2
	switch b[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if b[1]&0x80 != 0 {
		n += 4
	}
	return n
}

// readHead takes bytes of the head, and returns those behind it.
func (d *reader) readHead(p []byte) []byte {
	for len(p) > 0 {
		d.head[d.have] = p[0]
		d.have++
		p = p[1:]
		if d.have < 2 || d.have < headSize([2]byte(d.head[:2])) {
			continue
		}
		d.inside = true
		f := frame{at: time.Since(d.x.begun), from: d.from, opcode: d.head[0] & 0x0f, fin: d.head[0]&0x80 != 0}
		rest := d.head[2:d.have]
		switch n := d.head[1] & 0x7f; n {
		case 126:
			f.bytes = uint64(binary.BigEndian.Uint16(rest))
		case 127:
			f.bytes = binary.BigEndian.Uint64(rest)
		default:
			f.bytes = uint64(n)
		}
		d.key, d.turn = [4]byte{}, 0
		if d.head[1]&0x80 != 0 {
			d.key = [4]byte(d.head[d.have-4 : d.have])
		}
		f.compressed = d.begin(f.opcode, d.head[0]&0x40 != 0)
		d.frame, d.left = f, f.bytes
		if d.left == 0 {
			d.frameOver()
		}
		break
	}
	return p
}

// readPayload takes bytes of the payload.
func (d *reader) readPayload(p []byte) {
	d.left -= uint64(len(p))
	f := &d.frame
	if n := min(len(p), frameKept-len(f.payload)); n > 0 && d.room(&f.payload, n, frameKept) {
		at := len(f.payload)
		f.payload = append(f.payload, p[:n]...)
		d.unmask(f.payload[at:], d.turn)
	}
	if f.compressed {
		d.collect(d, p)
	}
	d.turn = (d.turn + len(p)) % 4
}

func (d *reader) unmask(p []byte, turn int) {
	if d.key == [4]byte{} {
		return
	}
	for i := range p {
		p[i] ^= d.key[(turn+i)%4]
	}
}

// room makes room for n bytes in a buffer. false: there is no memory for it.
func (d *reader) room(b *[]byte, n, limit int) bool {
	capacity := grown(cap(*b), len(*b), n, limit)
	more := int64(capacity - cap(*b))
	if more == 0 {
		return true
	}
	if !d.x.charge(more) {
		return false
	}
	d.charge += more
	*b = append(make([]byte, 0, capacity), *b...)
	return true
}

// frameOver keeps a frame that has passed.
func (d *reader) frameOver() {
	f := d.frame
	f.whole = d.left == 0
	if f.whole && f.compressed && f.fin {
		if f.text = d.inflate(d); f.text != nil { // nobody reads the other one
			d.x.refund(int64(cap(f.payload)))
			d.charge -= int64(cap(f.payload))
			f.payload = nil
		}
	}
	d.have, d.inside, d.frame = 0, false, frame{}
	d.charge -= int64(cap(f.payload))
	d.x.keep(f)
}

// end keeps what there is of the last frame, and gives back what the reader holds.
func (d *reader) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inside {
		d.frameOver()
	}
	d.over = true
	d.x.refund(d.charge)
	d.charge, d.inflater = 0, inflater{}
}

// frameCost is about what a frame takes beside its payload.
const frameCost = 128

// keep adds a frame, whose payload is charged, to those of the exchange.
func (x *exchange) keep(f frame) {
	// Payloads live long in buffers that were made for longer ones.
	size, charged := len(f.payload)+len(f.text), cap(f.payload)
	fits := x.charge(int64(frameCost + len(f.text)))
	r := x.rec
	r.mu.Lock()
	defer r.mu.Unlock()
	if x.dropped {
		return
	}
	fr := &x.frames
	fr.count++
	if !fits {
		x.charged -= int64(charged)
		r.store.release(r, int64(charged))
		return
	}
	if len(f.payload) < cap(f.payload) {
		f.payload = append(make([]byte, 0, len(f.payload)), f.payload...)
		back := int64(charged - cap(f.payload))
		x.charged -= back
		r.store.release(r, back)
	}
	fr.list = append(fr.list, f)
	fr.kept += size
	for len(fr.list) > framesKept || fr.kept > payloadKept && len(fr.list) > 1 {
		old := fr.list[0]
		fr.list[0] = frame{}
		fr.list = fr.list[1:]
		fr.kept -= len(old.payload) + len(old.text)
		back := int64(frameCost + len(old.text) + cap(old.payload))
		x.charged -= back
		r.store.release(r, back)
	}
	if len(r.followers) > 0 {
		r.tellLocked(Event{Exchange: x.summaryLocked(), Frame: f.view()})
	}
}

// passed counts bytes of a connection that became something else.
func (x *exchange) passed(from, n int) {
	x.rec.mu.Lock()
	defer x.rec.mu.Unlock()
	m := &x.request
	if from == fromTarget {
		m = &x.response
	}
	m.body.bytes += int64(n)
}

// extensions reads what the target said about compression (RFC 7692): whether messages may be compressed, and which end begins each of
// them anew.
func extensions(h http.Header) (clientReset, targetReset, deflate bool) {
	for _, list := range h["Sec-Websocket-Extensions"] {
		for one := range strings.SplitSeq(list, ",") {
			words := strings.Split(one, ";")
			if !strings.EqualFold(strings.TrimSpace(words[0]), "permessage-deflate") {
				continue
			}
			deflate = true
			for _, w := range words[1:] {
				switch strings.ToLower(strings.TrimSpace(w)) {
				case "client_no_context_takeover":
					clientReset = true
				case "server_no_context_takeover":
					targetReset = true
				}
			}
		}
	}
	return clientReset, targetReset, deflate
}
