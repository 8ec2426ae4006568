package wire

// Datagram is one piece of a datagram of a flow. A datagram crosses in pieces of MaxPayload bytes, the last of which may be
// shorter.
type Datagram struct {
	Number    uint64 // of the datagram in its direction of the flow, below 2^48; they count up, so that a receiver sees what was lost
	Fragment  uint8  // from 0
	Fragments uint8  // 1 to 4
	Data      []byte
}

// MaxDatagram is the largest payload of UDP over IPv4.
const MaxDatagram = 65_507

const (
	maxFragments = (MaxDatagram + MaxPayload - 1) / MaxPayload
	numberMask   = 1<<48 - 1
)

// AppendDatagram appends the frames that carry data, at most MaxDatagram bytes, as the datagram with that number.
func AppendDatagram(b []byte, flow, number uint64, data []byte) []byte {
	fragments := max(1, (len(data)+MaxPayload-1)/MaxPayload)
	for i := range fragments {
		piece := data[i*MaxPayload : min((i+1)*MaxPayload, len(data))]
		b = AppendHeader(b, TypeDatagram, flow, number<<16|uint64(i)<<8|uint64(fragments), len(piece))
		b = append(b, piece...)
	}
	return b
}

// ParseDatagram decodes a DATAGRAM. Data aliases the payload.
func ParseDatagram(f Frame) (d Datagram, err error) {
	d = Datagram{Number: f.Offset >> 16 & numberMask, Fragment: uint8(f.Offset >> 8), Fragments: uint8(f.Offset), Data: f.Payload}
	if d.Fragments == 0 || d.Fragments > maxFragments || d.Fragment >= d.Fragments {
		return d, malformed(TypeDatagram, "fragment %d of %d", d.Fragment, d.Fragments)
	}
	last := d.Fragment == d.Fragments-1
	switch {
	case !last && len(d.Data) != MaxPayload:
		return d, malformed(TypeDatagram, "fragment %d of %d with %d bytes, want %d", d.Fragment, d.Fragments, len(d.Data), MaxPayload)
	case last && d.Fragment > 0 && len(d.Data) == 0:
		return d, malformed(TypeDatagram, "fragment %d of %d is empty", d.Fragment, d.Fragments)
	case int(d.Fragment)*MaxPayload+len(d.Data) > MaxDatagram:
		return d, malformed(TypeDatagram, "more than %d bytes", MaxDatagram)
	}
	return d, nil
}
