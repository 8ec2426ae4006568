package inspect

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// States of an exchange.
const (
	StateOpen    = "open"
	StateDone    = "done"
	StateAborted = "aborted" // the client or the target went away before the end
)

// Summary is one exchange in short. Its JSON is read by people's scripts: names are added, never changed.
type Summary struct {
	ID       string    `json:"id"`
	Service  string    `json:"service"` // canonical PUBLIC
	Begun    time.Time `json:"begun"`
	Client   string    `json:"client"`
	Method   string    `json:"method"`
	Scheme   string    `json:"scheme"` // http or https, by which the client came
	Host     string    `json:"host"`
	Path     string    `json:"path"`  // what was asked for, with the query
	Proto    string    `json:"proto"` // such as HTTP/1.1
	State    string    `json:"state"`
	Status   int       `json:"status"`              // 0: there is no answer
	Answered float64   `json:"answered"`            // seconds from the beginning to the head of the answer
	Duration float64   `json:"duration"`            // seconds to the end, or so far
	Sent     int64     `json:"sent"`                // bytes of the body of the request
	Received int64     `json:"received"`            // bytes of the body of the answer
	Upgrade  string    `json:"upgrade,omitempty"`   // what the connection became, such as websocket
	Frames   uint64    `json:"frames,omitempty"`    // of a WebSocket, both directions
	ReplayOf string    `json:"replay_of,omitempty"` // the exchange whose request was sent again
}

// Exchange is all that is kept of one exchange.
type Exchange struct {
	Summary
	Request    Message `json:"request"`
	Response   Message `json:"response"`
	LastFrames []Frame `json:"last_frames,omitempty"` // of a WebSocket
}

// Message is one half of an exchange. Values of header fields that are secrets are masked.
type Message struct {
	Header   []Field `json:"header"`
	Trailer  []Field `json:"trailer,omitempty"`
	Omitted  int     `json:"omitted_fields,omitempty"` // of both, for which there was no room
	Body     string  `json:"body"`                     // its beginning
	Encoding string  `json:"encoding"`                 // of Body: text or base64
	Bytes    int64   `json:"bytes"`                    // that passed of the body
	Kept     int     `json:"kept"`                     // of them, how many stand in Body
}

// Frame is one frame of a WebSocket.
type Frame struct {
	At         float64 `json:"at"`   // seconds since the exchange began
	From       string  `json:"from"` // client or target
	Type       string  `json:"type"` // text, binary, continuation, close, ping or pong
	Final      bool    `json:"final"`
	Bytes      uint64  `json:"bytes"`                // of the payload
	Body       string  `json:"body"`                 // its beginning; of a message that was compressed all of it, with its last frame
	Encoding   string  `json:"encoding"`             // of Body: text or base64
	Compressed bool    `json:"compressed,omitempty"` // Body is as it was on the wire
	Cut        bool    `json:"cut,omitempty"`        // the connection ended in the middle of it
}

// ErrNoExchange is the error for an exchange that is not kept, or not any more.
var ErrNoExchange = errors.New("it is not there, or not any more")

// List returns the exchanges of the service, the oldest first.
func (r *Recorder) List() []Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Summary, 0, len(r.list))
	for _, x := range r.list {
		list = append(list, *x.summaryLocked())
	}
	return list
}

// Exchange returns one exchange of the service.
func (r *Recorder) Exchange(id string) (Exchange, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x, err := r.exchangeLocked(id)
	if err != nil {
		return Exchange{}, err
	}
	full := Exchange{Summary: *x.summaryLocked(), Request: x.request.view(), Response: x.response.view()}
	mask(full.Request.Header)
	mask(full.Request.Trailer)
	for _, f := range x.frames.list {
		full.LastFrames = append(full.LastFrames, *f.view())
	}
	return full, nil
}

func (r *Recorder) exchangeLocked(id string) (*exchange, error) {
	n, err := strconv.ParseUint(id, 10, 64)
	if err == nil {
		for _, x := range r.list {
			if x.id == n {
				return x, nil
			}
		}
	}
	return nil, fmt.Errorf("exchange %s of %s: %w: the last %d are kept", id, r.service, ErrNoExchange, Exchanges)
}

func (x *exchange) summaryLocked() *Summary {
	s := &Summary{
		ID: strconv.FormatUint(x.id, 10), Service: x.rec.service, Begun: x.begun, Client: x.client, Method: x.method, Scheme: "http", Host: x.host,
		Path: x.uri, Proto: x.proto, State: [...]string{StateOpen, StateDone, StateAborted}[x.state], Status: x.status, Answered: seconds(x.answered),
		Duration: seconds(x.ended), Sent: x.request.body.bytes, Received: x.response.body.bytes, Upgrade: x.upgrade, Frames: x.frames.count,
	}
	if x.secure {
		s.Scheme = "https"
	}
	if x.state == open {
		s.Duration = seconds(time.Since(x.begun))
	}
	if x.replayOf != 0 {
		s.ReplayOf = strconv.FormatUint(x.replayOf, 10)
	}
	return s
}

func (m *message) view() Message {
	v := Message{Header: slices.Clone(m.header), Trailer: slices.Clone(m.trailer), Omitted: m.omitted, Bytes: m.body.bytes, Kept: len(m.body.kept)}
	if v.Header == nil {
		v.Header = []Field{} // [] in JSON, never null
	}
	v.Body, v.Encoding = encode(m.body.kept, int64(len(m.body.kept)) < m.body.bytes)
	return v
}

func (f *frame) view() *Frame {
	v := &Frame{At: seconds(f.at), From: "client", Type: frameType(f.opcode), Final: f.fin, Bytes: f.bytes, Cut: !f.whole}
	if f.from == fromTarget {
		v.From = "target"
	}
	shown, cut := f.payload, uint64(len(f.payload)) < f.bytes
	if f.text != nil {
		shown, cut = f.text, true
	} else {
		v.Compressed = f.compressed
	}
	v.Body, v.Encoding = encode(shown, cut)
	return v
}

func frameType(opcode byte) string {
	switch opcode {
	case 0:
		return "continuation"
	case 1:
		return "text"
	case 2:
		return "binary"
	case 8:
		return "close"
	case 9:
		return "ping"
	case 10:
		return "pong"
	}
	return "opcode " + strconv.Itoa(int(opcode))
}

// encode makes a text of bytes. Where more follow, the last character may be cut in two.
func encode(b []byte, more bool) (text, encoding string) {
	if utf8.Valid(b) {
		return string(b), "text"
	}
	for i := 1; more && i < utf8.UTFMax && i < len(b); i++ {
		if utf8.RuneStart(b[len(b)-i]) {
			if begun := b[:len(b)-i]; utf8.Valid(begun) && !utf8.FullRune(b[len(b)-i:]) {
				return string(begun), "text"
			}
			break
		}
	}
	return base64.StdEncoding.EncodeToString(b), "base64"
}

func seconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e6 }
