// Package wire turns the frames of the link into bytes and back, as spec/PROTOCOL.md writes them down.
//
// It alone knows the layout of a frame. It does no I/O, starts no goroutine and reads no clock. Encoders append to a
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
	TypeAttach    Type = 1 + iota // offset: generation; Attach. Dialling end, first frame of a connection
	TypeAttached                  // offset: generation; Attached. Accepting end, the answer
	TypeST                        // offset: index of the first entry; n × entry of a table
	TypeOpen                      // stream, offset: credit for the opened stream's answer; Open. From the opener
	TypeData                      // stream, offset: of the first byte; 1…MaxPayload bytes
	TypeAck                       // stream, offset: everything below is in custody; credit u64
	TypeEnd                       // stream, offset: final length of the direction; End
	TypeForget                    // stream, offset reserved; empty. From the opener
	TypePing                      // offset: value to return; empty
	TypePong                      // offset: value of the PING; empty
	TypeGoAway                    // offset reserved; GoAway
	TypeErr                       // offset reserved; Err; the sender closes the connection behind it
	TypeClaim                     // offset: claim id; Claim. Bridge to proxy, slot 0
	TypeClaimed                   // offset: claim id; Claimed. Proxy to bridge, slot 0
	TypeUnclaim                   // offset: claim id; empty. Bridge to proxy, slot 0
	TypeUnclaimed                 // offset: claim id; marks. Proxy to bridge, slot 0
	TypeRound                     // offset reserved; empty. Bridge to proxy, slot 0: everything that it claims has been said
	TypeDatagram                  // stream: the flow; offset: number u48, fragment u8, fragments u8; 0…MaxPayload bytes
	typeEnd

	// 19 PEERS, 20 WANT and 21 CALL are reserved for clusters of proxies.

	// TypeSkip is the first type of those that are skipped by their length where they are not known.
	TypeSkip Type = 128
)

var typeNames = [...]string{
	"?", "ATTACH", "ATTACHED", "ST", "OPEN", "DATA", "ACK", "END", "FORGET", "PING", "PONG", "GOAWAY", "ERR", "CLAIM", "CLAIMED", "UNCLAIM",
	"UNCLAIMED", "ROUND", "DATAGRAM",
}

func (t Type) String() string {
	if !t.known() {
		return fmt.Sprintf("type %d", uint8(t))
	}
	return typeNames[t]
}

func (t Type) known() bool { return t != 0 && t < typeEnd }

// ofStream reports whether the frame belongs to a stream, and not to the link.
func (t Type) ofStream() bool {
	switch t {
	case TypeOpen, TypeData, TypeAck, TypeEnd, TypeForget, TypeDatagram:
		return true
	}
	return false
}

// criticalFlags are the flags that must be known; none is yet. The others are ignored where they are not known.
const criticalFlags = 0x0f

// bounds are the lengths that a payload may have, by type; a frame outside them is malformed whatever it holds.
var bounds = [typeEnd]struct{ min, max int }{
	TypeAttach:    {attachLen, attachLen + MaxFields},
	TypeAttached:  {attachedLen, attachedLen + MaxFields},
	TypeST:        {1, MaxPayload},
	TypeOpen:      {openLen, openLen + MaxFields},
	TypeData:      {1, MaxPayload},
	TypeAck:       {8, 8},
	TypeEnd:       {endLen, endLen},
	TypeForget:    {},
	TypePing:      {},
	TypePong:      {},
	TypeGoAway:    {goAwayLen, goAwayLen + MaxFields},
	TypeErr:       {2, 2 + MaxText},
	TypeClaim:     {2, 2 + 2*255 + MaxFields},
	TypeClaimed:   {1 + 16 + 2, 1 + 16 + 2 + 255 + MaxText + MaxFields},
	TypeUnclaim:   {},
	TypeUnclaimed: {1, 1 + 255*markLen + MaxFields},
	TypeRound:     {},
	TypeDatagram:  {0, MaxPayload},
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
// ErrTruncated when b ends inside the frame and a *FormatError when no further byte can make it valid. A frame of a type
// from TypeSkip on is returned with whatever it holds, for the caller to skip.
func Parse(b []byte) (f Frame, n int, err error) {
	if len(b) < HeaderLen {
		if len(b) > 0 && !Type(b[0]).known() && Type(b[0]) < TypeSkip {
			return f, 0, malformed(Type(b[0]), "unknown type")
		}
		return f, 0, ErrTruncated
	}
	f.Type, f.Flags = Type(b[0]), b[1]
	size := int(binary.BigEndian.Uint16(b[2:]))
	f.Stream = binary.BigEndian.Uint64(b[4:])
	f.Offset = binary.BigEndian.Uint64(b[12:])
	if err := f.check(size); err != nil {
		return f, 0, err
	}
	if len(b) < HeaderLen+size {
		return f, 0, ErrTruncated
	}
	f.Payload = b[HeaderLen : HeaderLen+size : HeaderLen+size]
	return f, HeaderLen + size, nil
}

// check judges a frame by its header, whose payload is of size bytes.
func (f Frame) check(size int) error {
	if !f.Type.known() {
		if f.Type < TypeSkip {
			return malformed(f.Type, "unknown type")
		}
		if size > MaxPayload {
			return malformed(f.Type, "payload of %d bytes, want at most %d", size, MaxPayload)
		}
		return nil
	}
	if f.Flags&criticalFlags != 0 {
		return malformed(f.Type, "unknown flags %#x", f.Flags&criticalFlags)
	}
	if lim := bounds[f.Type]; size < lim.min || size > lim.max {
		return malformed(f.Type, "payload of %d bytes, want %d to %d", size, lim.min, lim.max)
	}
	switch of := f.Type.ofStream(); {
	case of && f.Stream == 0:
		return malformed(f.Type, "no stream")
	case !of && f.Stream != 0:
		return malformed(f.Type, "stream %d in a frame of the link", f.Stream)
	}
	return nil
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

// AppendEmpty appends a frame without payload: FORGET, PING, PONG.
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

// setLength writes the length of the payload into the header that stands at b[at:], where the frame that b ends with begins.
func setLength(b []byte, at int) []byte {
	binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at-HeaderLen))
	return b
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
