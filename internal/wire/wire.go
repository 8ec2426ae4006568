// Package wire turns the frames of the link into bytes and back, as spec/PROTOCOL.md writes them down.
//
// Its secret is the layout of every frame. It does no I/O, starts no goroutine and reads no clock. Encoders append to a
// slice that the caller owns; parsers take a slice and allocate nothing for the frames of the data path.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Sizes in bytes.
const (
	HeaderLen  = 20     // type u8, flags u8, length u16, stream u64, offset u64
	MaxPayload = 16_384 // of one frame
	MaxText    = 128    // of a human-readable text in a frame; longer ones are cut by the encoder
)

// Type says what a frame is.
type Type uint8

// The frame types. The comment of each gives the meaning of the header's stream and offset fields, then the payload.
const (
	TypeAttach   Type = 1 + iota // offset: generation; Attach. Bridge to proxy, first frame of a connection
	TypeAttached                 // offset: generation; Attached. Proxy to bridge, the answer
	TypeST                       // offset: index of the first entry; n × StreamState
	TypeOpen                     // stream, offset: credit for the opened stream's answer; Open. Proxy to bridge
	TypeData                     // stream, offset: of the first byte; 1…MaxPayload bytes
	TypeAck                      // stream, offset: everything below is in custody; credit u64
	TypeEnd                      // stream, offset: final length of the direction; End
	TypeForget                   // stream, offset 0; empty. Proxy to bridge
	TypePing                     // offset: value to return; empty
	TypePong                     // offset: value of the PING; empty
	TypeGoAway                   // offset 0; GoAway
	TypeErr                      // offset 0; Err; the sender closes the connection behind it
	TypeClaim                    // offset: claim id; Claim. Bridge to proxy, slot 0
	TypeClaimed                  // offset: claim id; Claimed. Proxy to bridge, slot 0
	TypeUnclaim                  // offset: claim id; empty. Bridge to proxy, slot 0
	typeEnd
)

var typeNames = [...]string{"?", "ATTACH", "ATTACHED", "ST", "OPEN", "DATA", "ACK", "END", "FORGET", "PING", "PONG", "GOAWAY", "ERR", "CLAIM", "CLAIMED", "UNCLAIM"}

func (t Type) String() string {
	if t == 0 || t >= typeEnd {
		return fmt.Sprintf("type %d", uint8(t))
	}
	return typeNames[t]
}

// FlagMore on a CLAIM says that another CLAIM follows; the proxy releases what was claimed before and is not any more
// when it has seen one without the flag.
const FlagMore = 1

// payload bounds by type; a frame outside them is malformed whatever it holds.
var bounds = [typeEnd]struct{ min, max int }{
	TypeAttach:   {attachLen, attachLen + MaxText},
	TypeAttached: {attachedLen, attachedLen + MaxText},
	TypeST:       {StreamStateLen, MaxPayload / StreamStateLen * StreamStateLen},
	TypeOpen:     {2 + 1 + 1, 2 + 19 + 19},
	TypeData:     {1, MaxPayload},
	TypeAck:      {8, 8},
	TypeEnd:      {endLen, endLen},
	TypeForget:   {},
	TypePing:     {},
	TypePong:     {},
	TypeGoAway:   {goAwayLen, goAwayLen},
	TypeErr:      {2, 2 + MaxText},
	TypeClaim:    {2, 2 + 2*255},
	TypeClaimed:  {1 + 16 + 2, 1 + 16 + 2 + 255 + MaxText},
	TypeUnclaim:  {},
}

// ErrTruncated says that the slice ends inside a frame: read more and parse again.
var ErrTruncated = errors.New("truncated frame")

// FormatError says how a frame is malformed.
type FormatError struct {
	Type Type
	What string
}

func (e *FormatError) Error() string { return fmt.Sprintf("malformed %s frame: %s", e.Type, e.What) }

func malformed(t Type, format string, args ...any) error {
	return &FormatError{t, fmt.Sprintf(format, args...)}
}

// Frame is one frame with its payload still in the caller's slice.
type Frame struct {
	Type    Type
	Flags   uint8
	Stream  uint64
	Offset  uint64
	Payload []byte
}

// Parse reads the frame at the start of b and returns it with its length. The payload aliases b. It returns
// ErrTruncated when b ends inside the frame and a *FormatError when no further byte can make it valid.
func Parse(b []byte) (f Frame, n int, err error) {
	if len(b) < HeaderLen {
		if len(b) > 0 && (b[0] == 0 || Type(b[0]) >= typeEnd) {
			return f, 0, malformed(Type(b[0]), "unknown type")
		}
		return f, 0, ErrTruncated
	}
	f.Type, f.Flags = Type(b[0]), b[1]
	size := int(binary.BigEndian.Uint16(b[2:]))
	f.Stream = binary.BigEndian.Uint64(b[4:])
	f.Offset = binary.BigEndian.Uint64(b[12:])
	if f.Type == 0 || f.Type >= typeEnd {
		return f, 0, malformed(f.Type, "unknown type")
	}
	if f.Flags != 0 && !(f.Type == TypeClaim && f.Flags == FlagMore) {
		return f, 0, malformed(f.Type, "reserved flags %#x", f.Flags)
	}
	if lim := bounds[f.Type]; size < lim.min || size > lim.max {
		return f, 0, malformed(f.Type, "payload of %d bytes, want %d to %d", size, lim.min, lim.max)
	}
	if f.Type == TypeST && size%StreamStateLen != 0 {
		return f, 0, malformed(f.Type, "payload of %d bytes, want whole entries of %d", size, StreamStateLen)
	}
	if f.Offset != 0 && (f.Type == TypeForget || f.Type == TypeGoAway || f.Type == TypeErr) {
		return f, 0, malformed(f.Type, "reserved offset %#x", f.Offset)
	}
	switch f.Type {
	case TypeOpen, TypeData, TypeAck, TypeEnd, TypeForget:
		if f.Stream == 0 {
			return f, 0, malformed(f.Type, "no stream")
		}
	default:
		if f.Stream != 0 {
			return f, 0, malformed(f.Type, "stream %d in a frame of the link", f.Stream)
		}
	}
	if len(b) < HeaderLen+size {
		return f, 0, ErrTruncated
	}
	f.Payload = b[HeaderLen : HeaderLen+size : HeaderLen+size]
	return f, HeaderLen + size, nil
}

// AppendHeader appends the header of a frame whose payload of size bytes the caller appends next.
func AppendHeader(b []byte, t Type, stream, offset uint64, size int) []byte {
	b = append(b, byte(t), 0, byte(size>>8), byte(size))
	b = binary.BigEndian.AppendUint64(b, stream)
	return binary.BigEndian.AppendUint64(b, offset)
}

// AppendFrame appends f as it is. It is the inverse of Parse.
func AppendFrame(b []byte, f Frame) []byte {
	at := len(b)
	b = AppendHeader(b, f.Type, f.Stream, f.Offset, len(f.Payload))
	b[at+1] = f.Flags
	return append(b, f.Payload...)
}

// AppendAck appends an ACK: everything below rcvNxt is in custody, and the peer may send up to credit.
func AppendAck(b []byte, stream, rcvNxt, credit uint64) []byte {
	b = AppendHeader(b, TypeAck, stream, rcvNxt, 8)
	return binary.BigEndian.AppendUint64(b, credit)
}

// AckCredit returns the credit in an ACK.
func AckCredit(f Frame) uint64 { return binary.BigEndian.Uint64(f.Payload) }

// AppendEmpty appends a frame without payload: FORGET, PING, PONG, UNCLAIM.
func AppendEmpty(b []byte, t Type, stream, offset uint64) []byte {
	return AppendHeader(b, t, stream, offset, 0)
}

func cutText(s string) string { return cut(s, MaxText) }

// cut returns at most n bytes of s and no part of a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := n; i > n-utf8.UTFMax; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i]
		}
	}
	return s[:n] // no UTF-8
}

func appendString(b []byte, s string) []byte {
	s = cut(s, 255)
	return append(append(b, byte(len(s))), s...)
}

func takeString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return "", nil, false
	}
	end := 1 + int(b[0]) // as an int: in a byte, 1+255 is 0
	return string(b[1:end]), b[end:], true
}
