package wire

import "encoding/binary"

// Mode says what an ATTACH wants.
type Mode uint8

// The modes of ATTACH.
const (
	ModeNew    Mode = 1 + iota // a new session; slot 0, generation 1
	ModeResume                 // a slot of a live session again, after its connection broke
	ModeJoin                   // a further slot of a live session, for the first time
)

// Attach binds a connection to a slot of a session. Streams entries of ST follow it.
type Attach struct {
	Mode         Mode
	Slot         uint8
	Session      [16]byte
	WantInstance [16]byte // the proxy process that holds the session; zero with ModeNew
	Streams      uint32   // entries of the table that follows
	TableCRC     uint32   // CRC-32C of the encoded entries
	Window       uint32   // initial credit of every stream towards the bridge, in bytes
	MaxStreams   uint32   // streams that the bridge accepts at once
	Detach       uint32   // milliseconds without a connection after which the bridge ends the session; 0: not said
	MAC          [32]byte // proof of the session secret; zero with ModeNew
	Name         string   // of the bridge's host, for display
}

const attachLen = 1 + 1 + 16 + 16 + 5*4 + 32

// AppendAttach appends an ATTACH of generation gen.
func AppendAttach(b []byte, gen uint64, a Attach) []byte {
	name := cutText(a.Name)
	b = AppendHeader(b, TypeAttach, 0, gen, attachLen+len(name))
	b = append(b, byte(a.Mode), a.Slot)
	b = append(b, a.Session[:]...)
	b = append(b, a.WantInstance[:]...)
	b = binary.BigEndian.AppendUint32(b, a.Streams)
	b = binary.BigEndian.AppendUint32(b, a.TableCRC)
	b = binary.BigEndian.AppendUint32(b, a.Window)
	b = binary.BigEndian.AppendUint32(b, a.MaxStreams)
	b = binary.BigEndian.AppendUint32(b, a.Detach)
	b = append(b, a.MAC[:]...)
	return append(b, name...)
}

// ParseAttach decodes the payload of an ATTACH.
func ParseAttach(f Frame) (a Attach, err error) {
	p := f.Payload
	a.Mode, a.Slot = Mode(p[0]), p[1]
	copy(a.Session[:], p[2:])
	copy(a.WantInstance[:], p[18:])
	a.Streams = binary.BigEndian.Uint32(p[34:])
	a.TableCRC = binary.BigEndian.Uint32(p[38:])
	a.Window = binary.BigEndian.Uint32(p[42:])
	a.MaxStreams = binary.BigEndian.Uint32(p[46:])
	a.Detach = binary.BigEndian.Uint32(p[50:])
	copy(a.MAC[:], p[54:])
	a.Name = string(p[attachLen:])
	if a.Mode < ModeNew || a.Mode > ModeJoin {
		return a, malformed(TypeAttach, "mode %d", p[0])
	}
	if f.Offset == 0 {
		return a, malformed(TypeAttach, "generation 0")
	}
	if a.Mode == ModeNew && (a.Slot != 0 || a.Streams != 0 || a.WantInstance != [16]byte{} || a.MAC != [32]byte{}) {
		return a, malformed(TypeAttach, "a new session starts at slot 0 without streams, instance and proof")
	}
	return a, nil
}

// Status answers an ATTACH.
type Status uint8

// The statuses of ATTACHED.
const (
	StatusOK        Status = 1 + iota
	StatusGone             // the session does not exist (any more)
	StatusDuplicate        // another live bridge holds this key
	StatusDenied           // the key was removed
	StatusLimit            // no room for another session, slot or stream
	StatusDraining         // the proxy is stopping
	StatusStale            // the generation is not above the last one
	statusEnd
)

var statusNames = [...]string{"?", "ok", "gone", "duplicate", "denied", "limit", "draining", "stale"}

func (s Status) String() string {
	if int(s) >= len(statusNames) {
		return "?"
	}
	return statusNames[s]
}

// Attached answers an ATTACH. Streams entries of ST follow it.
type Attached struct {
	Status     Status
	Slot       uint8
	Carriers   uint8  // highest slot that the proxy accepts
	Streams    uint32 // entries of the table that follows
	TableCRC   uint32 // CRC-32C of the encoded entries
	Window     uint32 // initial credit of every stream towards the proxy, in bytes; OPEN carries it again per stream
	MaxStreams uint32 // streams that the proxy opens at once, at the most
	Transfer   uint16 // port that carriers dial; 0: the one that the control connection dialled
	Detach     uint32 // milliseconds without a connection after which the proxy ends the session; 0: not said
	Text       string // for people; why not
}

const attachedLen = 4 + 4*4 + 4 + 4

// AppendAttached appends an ATTACHED of generation gen.
func AppendAttached(b []byte, gen uint64, a Attached) []byte {
	text := cutText(a.Text)
	b = AppendHeader(b, TypeAttached, 0, gen, attachedLen+len(text))
	b = append(b, byte(a.Status), a.Slot, a.Carriers, 0)
	b = binary.BigEndian.AppendUint32(b, a.Streams)
	b = binary.BigEndian.AppendUint32(b, a.TableCRC)
	b = binary.BigEndian.AppendUint32(b, a.Window)
	b = binary.BigEndian.AppendUint32(b, a.MaxStreams)
	b = binary.BigEndian.AppendUint16(b, a.Transfer)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, a.Detach)
	return append(b, text...)
}

// ParseAttached decodes the payload of an ATTACHED.
func ParseAttached(f Frame) (a Attached, err error) {
	p := f.Payload
	a = Attached{
		Status: Status(p[0]), Slot: p[1], Carriers: p[2],
		Streams:    binary.BigEndian.Uint32(p[4:]),
		TableCRC:   binary.BigEndian.Uint32(p[8:]),
		Window:     binary.BigEndian.Uint32(p[12:]),
		MaxStreams: binary.BigEndian.Uint32(p[16:]),
		Transfer:   binary.BigEndian.Uint16(p[20:]),
		Detach:     binary.BigEndian.Uint32(p[24:]),
		Text:       string(p[attachedLen:]),
	}
	if a.Status == 0 || a.Status >= statusEnd {
		return a, malformed(TypeAttached, "status %d", p[0])
	}
	if p[3] != 0 || p[22] != 0 || p[23] != 0 {
		return a, malformed(TypeAttached, "reserved bytes")
	}
	return a, nil
}

// StreamState is one entry of a resume table: what the sender of the table has of a stream's incoming direction.
type StreamState struct {
	Stream uint64
	RcvNxt uint64 // everything below is in custody; one more than the final length when END is
	Credit uint64 // the peer may send up to here
	CRC    uint32 // CRC-32C of the bytes below RcvNxt
}

// StreamStateLen is the length of one entry in bytes.
const StreamStateLen = 8 + 8 + 8 + 4 + 1

// AppendStreamState appends one entry to the encoded table.
func AppendStreamState(b []byte, s StreamState) []byte {
	b = binary.BigEndian.AppendUint64(b, s.Stream)
	b = binary.BigEndian.AppendUint64(b, s.RcvNxt)
	b = binary.BigEndian.AppendUint64(b, s.Credit)
	b = binary.BigEndian.AppendUint32(b, s.CRC)
	return append(b, 0)
}

// ParseTable decodes an encoded table. Entries come in strictly increasing order of streams.
func ParseTable(b []byte) ([]StreamState, error) {
	if len(b)%StreamStateLen != 0 {
		return nil, malformed(TypeST, "table of %d bytes", len(b))
	}
	t := make([]StreamState, 0, len(b)/StreamStateLen)
	for last := uint64(0); len(b) > 0; b = b[StreamStateLen:] {
		s := StreamState{
			Stream: binary.BigEndian.Uint64(b),
			RcvNxt: binary.BigEndian.Uint64(b[8:]),
			Credit: binary.BigEndian.Uint64(b[16:]),
			CRC:    binary.BigEndian.Uint32(b[24:]),
		}
		if s.Stream <= last {
			return nil, malformed(TypeST, "stream %d after %d", s.Stream, last)
		}
		if b[28] != 0 {
			return nil, malformed(TypeST, "reserved bits %#x", b[28])
		}
		last = s.Stream
		t = append(t, s)
	}
	return t, nil
}

// AppendTable appends the ST frames that carry an encoded table.
func AppendTable(b, table []byte) []byte {
	const most = MaxPayload / StreamStateLen * StreamStateLen
	for i := 0; i < len(table); i += most {
		part := table[i:min(i+most, len(table))]
		b = AppendHeader(b, TypeST, 0, uint64(i/StreamStateLen), len(part))
		b = append(b, part...)
	}
	return b
}

// GoAway announces that the sender is stopping.
type GoAway struct {
	DrainMillis uint32 // connections that live longer are reset
}

const goAwayLen = 4

// AppendGoAway appends a GOAWAY.
func AppendGoAway(b []byte, g GoAway) []byte {
	b = AppendHeader(b, TypeGoAway, 0, 0, goAwayLen)
	return binary.BigEndian.AppendUint32(b, g.DrainMillis)
}

// ParseGoAway decodes the payload of a GOAWAY.
func ParseGoAway(f Frame) GoAway { return GoAway{binary.BigEndian.Uint32(f.Payload)} }

// ErrCode says why a connection is given up.
type ErrCode uint16

// The codes of ERR.
const (
	ErrFormat       ErrCode = 1 + iota // malformed frame
	ErrUnexpected                      // a frame that has no place here: wrong direction, state or slot
	ErrEmptyData                       // reserved: DATA that carries nothing is malformed already
	ErrGap                             // DATA or END beyond what was received
	ErrCredit                          // DATA beyond the credit
	ErrOverflow                        // offset + length, or the credit of an OPEN, beyond 2^62
	ErrAfterEnd                        // DATA after END, or a second END that differs
	ErrAckBeyond                       // ACK of bytes that were never sent
	ErrResume                          // the resume tables contradict each other
	ErrFlood                           // too many frames that do nothing
	ErrClaimInvalid                    // CLAIM that cannot be decoded
)

// Err gives up a connection.
type Err struct {
	Code ErrCode
	Text string
}

// AppendErr appends an ERR.
func AppendErr(b []byte, e Err) []byte {
	text := cutText(e.Text)
	b = AppendHeader(b, TypeErr, 0, 0, 2+len(text))
	b = binary.BigEndian.AppendUint16(b, uint16(e.Code))
	return append(b, text...)
}

// ParseErr decodes the payload of an ERR.
func ParseErr(f Frame) Err {
	return Err{ErrCode(binary.BigEndian.Uint16(f.Payload)), string(f.Payload[2:])}
}

// Claim asks for a public address.
type Claim struct {
	Public string // canonical PUBLIC
	Target string // for display only
}

// AppendClaim appends a CLAIM with id; more says that another follows at once.
func AppendClaim(b []byte, id uint16, c Claim, more bool) []byte {
	at := len(b)
	b = AppendHeader(b, TypeClaim, 0, uint64(id), 0)
	b = appendString(appendString(b, c.Public), c.Target)
	binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at-HeaderLen))
	if more {
		b[at+1] = FlagMore
	}
	return b
}

// ParseClaim decodes the payload of a CLAIM.
func ParseClaim(f Frame) (c Claim, err error) {
	var ok bool
	rest := f.Payload
	if c.Public, rest, ok = takeString(rest); ok {
		c.Target, rest, ok = takeString(rest)
	}
	if !ok || len(rest) != 0 || f.Offset > 0xffff {
		return c, malformed(TypeClaim, "bad text")
	}
	return c, nil
}

// ClaimStatus answers a CLAIM.
type ClaimStatus uint8

// The statuses of CLAIMED.
const (
	ClaimUp       ClaimStatus = 1 + iota // the public address is open
	ClaimDenied                          // the policy of the key does not allow it
	ClaimRetrying                        // it cannot be opened now; the proxy goes on trying
	claimEnd
)

// Claimed answers a CLAIM, and tells later changes of it.
type Claimed struct {
	Status ClaimStatus
	Nonce  [16]byte // what the bridge's probe sends to the public address; zero: do not probe
	Public string   // the public address that is served
	Text   string   // why not
}

// AppendClaimed appends a CLAIMED with the id of the claim.
func AppendClaimed(b []byte, id uint16, c Claimed) []byte {
	at := len(b)
	b = AppendHeader(b, TypeClaimed, 0, uint64(id), 0)
	b = append(b, byte(c.Status))
	b = append(b, c.Nonce[:]...)
	b = appendString(appendString(b, c.Public), cutText(c.Text))
	binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at-HeaderLen))
	return b
}

// ParseClaimed decodes the payload of a CLAIMED.
func ParseClaimed(f Frame) (c Claimed, err error) {
	c.Status = ClaimStatus(f.Payload[0])
	copy(c.Nonce[:], f.Payload[1:])
	rest := f.Payload[17:]
	var ok bool
	if c.Public, rest, ok = takeString(rest); ok {
		c.Text, rest, ok = takeString(rest)
	}
	if !ok || len(rest) != 0 || len(c.Text) > MaxText || c.Status == 0 || c.Status >= claimEnd || f.Offset > 0xffff {
		return c, malformed(TypeClaimed, "bad status or text")
	}
	return c, nil
}
