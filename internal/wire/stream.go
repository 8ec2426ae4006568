package wire

import (
	"encoding/binary"
	"net/netip"
)

// Open asks the bridge to connect a new stream to a service that it claimed.
type Open struct {
	Service uint16         // id of the claim
	Client  netip.AddrPort // who connected; invalid when unknown
	Local   netip.AddrPort // the public address that was reached; invalid when unknown
}

// AppendOpen appends an OPEN that grants credit bytes for the answer.
func AppendOpen(b []byte, stream, credit uint64, o Open) []byte {
	at := len(b)
	b = AppendHeader(b, TypeOpen, stream, credit, 0)
	b = binary.BigEndian.AppendUint16(b, o.Service)
	b = appendAddr(appendAddr(b, o.Client), o.Local)
	binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at-HeaderLen))
	return b
}

// ParseOpen decodes the payload of an OPEN.
func ParseOpen(f Frame) (o Open, err error) {
	o.Service = binary.BigEndian.Uint16(f.Payload)
	rest := f.Payload[2:]
	var ok bool
	if o.Client, rest, ok = takeAddr(rest); ok {
		o.Local, rest, ok = takeAddr(rest)
	}
	if !ok || len(rest) != 0 {
		return o, malformed(TypeOpen, "bad address")
	}
	return o, nil
}

// An address is its length in bytes (0, 4 or 16), the bytes, and the port.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	ip := a.Addr().Unmap()
	switch {
	case ip.Is4():
		v := ip.As4()
		b = append(append(b, 4), v[:]...)
	case ip.Is6():
		v := ip.As16()
		b = append(append(b, 16), v[:]...)
	default:
		return append(b, 0)
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}

func takeAddr(b []byte) (a netip.AddrPort, rest []byte, ok bool) {
	if len(b) == 0 {
		return a, nil, false
	}
	n := int(b[0])
	if n == 0 {
		return a, b[1:], true
	}
	if (n != 4 && n != 16) || len(b) < 1+n+2 {
		return a, nil, false
	}
	ip, _ := netip.AddrFromSlice(b[1 : 1+n])
	if ip.Is4In6() {
		return a, nil, false // one spelling of an address, so that two parsers never disagree
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[1+n:])), b[1+n+2:], true
}

// EndKind says how a direction of a stream ended.
type EndKind uint8

// The kinds of end.
const (
	FIN EndKind = 1 + iota // after these bytes the sender has nothing more to say
	RST                    // the connection was reset after these bytes; both directions are over
)

func (k EndKind) String() string {
	switch k {
	case FIN:
		return "FIN"
	case RST:
		return "RST"
	}
	return "none"
}

// Code says why a stream was reset. It is for logs; no code changes what the peer does.
type Code uint8

// The codes of END(RST).
const (
	CodeNone        Code = iota
	CodeReset            // the socket was reset by its peer
	CodeRefused          // the target refused the connection
	CodeUnreachable      // the target could not be reached in time
	CodeLimit            // the bridge has no room for another stream
	CodeService          // no such service at the bridge
	CodeDrain            // the process is stopping
	CodeChecksum         // the checksums of a direction differ
	CodeAborted          // the local program gave up the connection
	codeEnd
)

// End closes a direction. CRC is the CRC-32C (Castagnoli, RFC 3720 section 12.1) of all its bytes.
type End struct {
	Kind EndKind
	Code Code
	CRC  uint32
}

const endLen = 8

// AppendEnd appends an END at the final length of the direction.
func AppendEnd(b []byte, stream, final uint64, e End) []byte {
	b = AppendHeader(b, TypeEnd, stream, final, endLen)
	b = append(b, byte(e.Kind), byte(e.Code), 0, 0)
	return binary.BigEndian.AppendUint32(b, e.CRC)
}

// ParseEnd decodes the payload of an END.
func ParseEnd(f Frame) (e End, err error) {
	p := f.Payload
	e = End{EndKind(p[0]), Code(p[1]), binary.BigEndian.Uint32(p[4:])}
	if e.Kind != FIN && e.Kind != RST {
		return e, malformed(TypeEnd, "kind %d", p[0])
	}
	if e.Code >= codeEnd {
		return e, malformed(TypeEnd, "code %d", p[1])
	}
	if p[2] != 0 || p[3] != 0 {
		return e, malformed(TypeEnd, "reserved bytes")
	}
	return e, nil
}
