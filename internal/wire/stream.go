package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Open asks the peer to connect a new stream.
type Open struct {
	Kind     OpenKind // 0 when it is encoded: OpenStream
	Entrance Entrance // field 4: kind of entrance
	Service  uint32   // to a bridge: id of its claim. To a proxy: 0, and Name says what is meant

	Client netip.AddrPort // field 1: who connected; invalid when unknown
	Local  netip.AddrPort // field 2: the public address that was reached; invalid when unknown
	More   *OpenMore      // what most streams have not; nil: nothing
}

// OpenMore is the part of an Open that few streams have. It is apart because every stream keeps its Open.
type OpenMore struct {
	Host    string   // field 3: SNI or Host that the user asked for
	KeyName string   // field 5: name of the visitor's key
	Trace   [16]byte // field 6: id for traces; zero: none
	Name    string   // field 128: a PUBLIC
	Hops    uint8    // field 129: proxies that may still be passed, when HasHops
	HasHops bool
}

// Rest returns what More points to, or nothing.
func (o Open) Rest() OpenMore {
	if o.More == nil {
		return OpenMore{}
	}
	return *o.More
}

// more returns what More points to, to be filled.
func (o *Open) more() *OpenMore {
	if o.More == nil {
		o.More = new(OpenMore)
	}
	return o.More
}

// OpenKind says what an OPEN opens.
type OpenKind uint8

// The kinds of OPEN.
const (
	OpenStream    OpenKind = 1 + iota // a stream of bytes
	OpenDatagrams                     // a flow of datagrams
)

// Entrance says how a user came in.
type Entrance uint8

// The kinds of entrance. One that is not known means EntranceUnknown to its user.
const (
	EntranceUnknown Entrance = iota
	EntranceTCP
	EntranceUDP
	EntranceHTTP
	EntranceHTTPS
	EntranceTLS
	EntrancePrivate
)

const openLen = 1 + 1 + 4

const (
	fieldClient   = 1
	fieldLocal    = 2
	fieldHost     = 3
	fieldEntrance = 4
	fieldKeyName  = 5
	fieldTrace    = 6
	fieldName     = 128
	fieldHops     = 129
)

// maxName bounds the texts of an OPEN that are names: of a host, of a PUBLIC.
const maxName = 255

// AppendOpen appends an OPEN that grants credit bytes for the answer.
func AppendOpen(b []byte, stream, credit uint64, o Open) []byte {
	at := len(b)
	b = AppendHeader(b, TypeOpen, stream, credit, 0)
	b = append(b, max(byte(o.Kind), byte(OpenStream)), 0)
	b = binary.BigEndian.AppendUint32(b, o.Service)
	b = appendAddr(appendAddr(b, fieldClient, o.Client), fieldLocal, o.Local)
	rest := o.Rest()
	b = appendTextField(b, fieldHost, rest.Host, maxName)
	if o.Entrance != EntranceUnknown {
		b = append(b, fieldEntrance, 0, 1, byte(o.Entrance))
	}
	b = appendTextField(b, fieldKeyName, rest.KeyName, MaxText)
	if rest.Trace != [16]byte{} {
		b = append(append(b, fieldTrace, 0, 16), rest.Trace[:]...)
	}
	b = appendTextField(b, fieldName, rest.Name, maxName)
	if rest.HasHops {
		b = append(b, fieldHops, 0, 1, rest.Hops)
	}
	return setLength(b, at)
}

// ParseOpen decodes the payload of an OPEN. An *UnsupportedError says that the stream is to be refused, and nothing is wrong
// otherwise.
func ParseOpen(f Frame) (o Open, err error) {
	o.Kind, o.Service = OpenKind(f.Payload[0]), binary.BigEndian.Uint32(f.Payload[2:])
	var unsupported error
	if o.Kind != OpenStream && o.Kind != OpenDatagrams {
		unsupported = &UnsupportedError{Type: TypeOpen, What: fmt.Sprintf("kind %d", o.Kind)}
	}
	err = parseFields(TypeOpen, f.Payload[openLen:], func(f Field) (known, ok bool) {
		switch f.Type {
		case fieldClient:
			return true, f.addr(&o.Client)
		case fieldLocal:
			return true, f.addr(&o.Local)
		case fieldHost:
			return true, f.text(&o.more().Host, maxName)
		case fieldEntrance:
			return true, f.uint8((*uint8)(&o.Entrance))
		case fieldKeyName:
			return true, f.text(&o.more().KeyName, MaxText)
		case fieldTrace:
			return true, copy(o.more().Trace[:], f.Value) == len(f.Value) && len(f.Value) == len(o.More.Trace)
		case fieldName:
			return true, f.text(&o.more().Name, maxName)
		case fieldHops:
			o.more().HasHops = true
			return true, f.uint8(&o.More.Hops)
		}
		return false, false
	})
	if err == nil {
		err = unsupported
	}
	return o, err
}

// An address is 4 or 16 bytes, and the port.
func appendAddr(b []byte, t uint8, a netip.AddrPort) []byte {
	ip := a.Addr().Unmap()
	switch {
	case ip.Is4():
		v := ip.As4()
		b = append(append(b, t, 0, 4+2), v[:]...)
	case ip.Is6():
		v := ip.As16()
		b = append(append(b, t, 0, 16+2), v[:]...)
	default:
		return b
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}

func (f Field) addr(into *netip.AddrPort) bool {
	n := len(f.Value) - 2
	if n != 4 && n != 16 {
		return false
	}
	ip, _ := netip.AddrFromSlice(f.Value[:n])
	if ip.Is4In6() {
		return false // one spelling of an address, so that two parsers never disagree
	}
	*into = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(f.Value[n:]))
	return true
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

// The codes of END(RST). One that is not known means some other reason.
const (
	CodeNone        Code = iota
	CodeReset            // the socket was reset by its peer
	CodeRefused          // the target refused the connection
	CodeUnreachable      // the target could not be reached in time
	CodeLimit            // no room for another stream
	CodeService          // no such service, or no right to it
	CodeDrain            // the process is stopping
	CodeChecksum         // the checksums of a direction differ
	CodeAborted          // the local program gave up the connection
	CodeUnsupported      // the OPEN needs something that is not known here
	CodeEnded            // an operator ended the connection
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
	return e, nil
}
