package inspect

import (
	"bytes"
	"compress/flate"
	"io"
	"sync"
)

const (
	windowSize   = 32 << 10 // of DEFLATE: how far back a message may refer to earlier ones
	deflatedMost = 64 << 10 // bytes of a compressed message that are collected
	inflatedMost = 1 << 20  // bytes that a message may become: a few compressed ones may stand for very many
)

// inflater makes the messages of one direction readable again, where they are compressed (RFC 7692). Messages refer to earlier ones, so all
// of them are needed: after one that is too long the rest stays as it is.
type inflater struct {
	deflate    bool // the ends agreed on it
	on         bool // messages can be read
	reset      bool // each one begins anew
	compressed bool // the message that is being read is
	lost       bool // part of the message is not there
	message    []byte
	window     []byte // the end of what the messages so far became
}

// begin is called at the beginning of each frame, and reports whether its payload is compressed.
func (i *inflater) begin(opcode byte, rsv1 bool) bool {
	switch {
	case opcode >= 8: // a control frame, which may stand in the middle of a message
		return false
	case opcode != 0:
		i.compressed = i.deflate && rsv1
		i.message, i.lost = i.message[:0], false
	}
	return i.compressed
}

// collect takes bytes of the payload, as they are on the wire.
func (i *inflater) collect(d *reader, p []byte) {
	if !i.on || i.lost {
		return
	}
	if len(i.message)+len(p) > deflatedMost || !d.room(&i.message, len(p), deflatedMost) {
		i.lost = true
		return
	}
	at := len(i.message)
	i.message = append(i.message, p...)
	d.unmask(i.message[at:], d.turn)
}

// ending is what the sender left out at the end of a message.
var ending = []byte{0, 0, 0xff, 0xff}

var inflaters = sync.Pool{New: func() any { return flate.NewReader(nil) }}

// inflate returns the beginning of the message that was collected; nil where it cannot be read.
func (i *inflater) inflate(d *reader) (text []byte) {
	if !i.on {
		return nil
	}
	ok := !i.lost && (i.reset || cap(i.window) > 0 || d.room(&i.window, windowSize, windowSize))
	if ok {
		text, ok = i.read()
	}
	if !ok && !i.reset {
		i.on = false // what comes refers to this one
	}
	return text
}

func (i *inflater) read() (text []byte, ok bool) {
	r := inflaters.Get().(io.ReadCloser)
	defer inflaters.Put(r)
	if r.(flate.Resetter).Reset(io.MultiReader(bytes.NewReader(i.message), bytes.NewReader(ending)), i.window) != nil {
		return nil, false
	}
	text = []byte{}
	total := 0
	var piece [4 << 10]byte
	for {
		n, err := r.Read(piece[:])
		text = append(text, piece[:min(n, frameKept-len(text))]...)
		if !i.reset {
			i.slide(piece[:n])
		}
		if total += n; total > inflatedMost {
			return text, false
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF: // there is no last block
			return text, true
		default:
			return nil, false
		}
	}
}

// slide adds to the window, which keeps its size.
func (i *inflater) slide(p []byte) {
	if over := len(i.window) + len(p) - windowSize; over > 0 {
		i.window = i.window[:copy(i.window, i.window[over:])]
	}
	i.window = append(i.window, p...)
}
