package wire

import (
	"encoding/binary"
	"fmt"
)

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
	Entry        uint8 // bytes of an entry of the table; 0 when it is encoded: StreamStateLen
	Session      [16]byte
	WantInstance [16]byte // the process that holds the session; zero with ModeNew
	Streams      uint32   // entries of the table that follows
	TableCRC     uint32   // CRC-32C of the encoded entries
	Window       uint32   // initial credit of every stream towards the dialling end, in bytes
	MaxStreams   uint32   // streams that the dialling end accepts in a slot
	Detach       uint32   // milliseconds without a connection after which the dialling end ends the session; 0: not said
	MAC          [32]byte // proof of the session secret; zero with ModeNew
	Name         string   // field 1: of the dialling end's host, for display
	Keepalive    uint32   // field 2, with FeatureIdle: milliseconds of silence after which the dialling end sends PING on slot 0; 0: not said
	// Ask is field 128, with ModeNew: the end only asks what would be answered to it, and what of these it might have. Each PUBLIC ends
	// with a line feed. "": it does not ask.
	Ask string
}

// MaxAsk is how many bytes Attach.Ask and Attached.Answers have, at the most.
const MaxAsk = 3072

const attachLen = 4 + 16 + 16 + 5*4 + 32

// The fields of ATTACH.
const (
	fieldAttachName      = 1
	fieldAttachKeepalive = 2
	fieldAttachAsk       = Critical // who does not know it would begin a session
)

// AppendAttach appends an ATTACH of generation gen.
func AppendAttach(b []byte, gen uint64, a Attach) []byte {
	at := len(b)
	b = AppendHeader(b, TypeAttach, 0, gen, 0)
	b = append(b, byte(a.Mode), a.Slot, entry(a.Entry), 0)
	b = append(b, a.Session[:]...)
	b = append(b, a.WantInstance[:]...)
	b = binary.BigEndian.AppendUint32(b, a.Streams)
	b = binary.BigEndian.AppendUint32(b, a.TableCRC)
	b = binary.BigEndian.AppendUint32(b, a.Window)
	b = binary.BigEndian.AppendUint32(b, a.MaxStreams)
	b = binary.BigEndian.AppendUint32(b, a.Detach)
	b = append(b, a.MAC[:]...)
	b = appendUint32Field(appendTextField(b, fieldAttachName, a.Name, MaxText), fieldAttachKeepalive, a.Keepalive)
	return setLength(appendTextField(b, fieldAttachAsk, a.Ask, MaxAsk), at)
}

func entry(n uint8) uint8 {
	if n == 0 {
		return StreamStateLen
	}
	return n
}

// ParseAttach decodes the payload of an ATTACH. With an *UnsupportedError everything but the unknown field is there, for the
// answer.
func ParseAttach(f Frame) (a Attach, err error) {
	p := f.Payload
	a.Mode, a.Slot, a.Entry = Mode(p[0]), p[1], p[2]
	copy(a.Session[:], p[4:])
	copy(a.WantInstance[:], p[20:])
	a.Streams = binary.BigEndian.Uint32(p[36:])
	a.TableCRC = binary.BigEndian.Uint32(p[40:])
	a.Window = binary.BigEndian.Uint32(p[44:])
	a.MaxStreams = binary.BigEndian.Uint32(p[48:])
	a.Detach = binary.BigEndian.Uint32(p[52:])
	copy(a.MAC[:], p[56:])
	if a.Mode < ModeNew || a.Mode > ModeJoin {
		return a, malformed(TypeAttach, "mode %d", p[0])
	}
	if f.Offset == 0 {
		return a, malformed(TypeAttach, "generation 0")
	}
	if a.Entry < StreamStateLen {
		return a, malformed(TypeAttach, "table entries of %d bytes, want at least %d", a.Entry, StreamStateLen)
	}
	if a.Mode == ModeNew && (a.Slot != 0 || a.Streams != 0 || a.WantInstance != [16]byte{} || a.MAC != [32]byte{}) {
		return a, malformed(TypeAttach, "a new session starts at slot 0 without streams, instance and proof")
	}
	return a, parseFields(TypeAttach, p[attachLen:], func(f Field) (known, ok bool) {
		switch f.Type {
		case fieldAttachAsk:
			return true, a.Mode == ModeNew && len(f.Value) > 0 && f.text(&a.Ask, MaxAsk)
		case fieldAttachName:
			return true, f.text(&a.Name, MaxText)
		case fieldAttachKeepalive:
			return true, f.uint32(&a.Keepalive)
		}
		return false, false
	})
}

// Status answers an ATTACH.
type Status uint8

// The statuses of ATTACHED. One that is not known is a refusal.
const (
	StatusOK          Status = 1 + iota
	StatusGone               // the session does not exist (any more)
	StatusDuplicate          // another live process holds this key
	StatusDenied             // the key was removed, or may not do this
	StatusLimit              // no room for another session, slot or stream
	StatusDraining           // the proxy is stopping
	StatusStale              // the generation is not above the last one
	StatusUnsupported        // the ATTACH needs something that is not known here
	statusEnd
)

var statusNames = [...]string{"?", "ok", "gone", "duplicate", "denied", "limit", "draining", "stale", "unsupported"}

func (s Status) String() string {
	if s == 0 || s >= statusEnd {
		return fmt.Sprintf("status %d", uint8(s))
	}
	return statusNames[s]
}

// Attached answers an ATTACH. Streams entries of ST follow it.
type Attached struct {
	Status     Status
	Slot       uint8
	Carriers   uint8  // highest slot that the accepting end takes
	Entry      uint8  // bytes of an entry of the table; 0 when it is encoded: StreamStateLen
	Streams    uint32 // entries of the table that follows
	TableCRC   uint32 // CRC-32C of the encoded entries
	Window     uint32 // initial credit of every stream towards the accepting end, in bytes; OPEN carries it again per stream
	MaxStreams uint32 // streams that the accepting end accepts in a slot
	Transfer   uint16 // port that carriers dial; 0: the one that the control connection dialled
	Detach     uint32 // milliseconds without a connection after which the accepting end ends the session; 0: not said
	Text       string // field 1, for people; why not
	ComeBack   uint32 // field 2: milliseconds after which to try again; 0: not said
	// Answers is field 3, the answer to Attach.Ask: for each PUBLIC, in order, why it would not be had, or nothing, and a line feed. Those
	// at the end may be left out.
	Answers string
}

const attachedLen = 4 + 4*4 + 4 + 4

// The fields of ATTACHED and of GOAWAY.
const (
	fieldText     = 1
	fieldComeBack = 2
	fieldAnswers  = 3 // of ATTACHED alone
)

// AppendAttached appends an ATTACHED of generation gen.
func AppendAttached(b []byte, gen uint64, a Attached) []byte {
	at := len(b)
	b = AppendHeader(b, TypeAttached, 0, gen, 0)
	b = append(b, byte(a.Status), a.Slot, a.Carriers, entry(a.Entry))
	b = binary.BigEndian.AppendUint32(b, a.Streams)
	b = binary.BigEndian.AppendUint32(b, a.TableCRC)
	b = binary.BigEndian.AppendUint32(b, a.Window)
	b = binary.BigEndian.AppendUint32(b, a.MaxStreams)
	b = binary.BigEndian.AppendUint16(b, a.Transfer)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, a.Detach)
	b = appendUint32Field(appendTextField(b, fieldText, a.Text, MaxText), fieldComeBack, a.ComeBack)
	return setLength(appendTextField(b, fieldAnswers, a.Answers, MaxAsk), at)
}

// ParseAttached decodes the payload of an ATTACHED.
func ParseAttached(f Frame) (a Attached, err error) {
	p := f.Payload
	a = Attached{
		Status: Status(p[0]), Slot: p[1], Carriers: p[2], Entry: p[3],
		Streams:    binary.BigEndian.Uint32(p[4:]),
		TableCRC:   binary.BigEndian.Uint32(p[8:]),
		Window:     binary.BigEndian.Uint32(p[12:]),
		MaxStreams: binary.BigEndian.Uint32(p[16:]),
		Transfer:   binary.BigEndian.Uint16(p[20:]),
		Detach:     binary.BigEndian.Uint32(p[24:]),
	}
	if a.Status == StatusOK && a.Entry < StreamStateLen {
		return a, malformed(TypeAttached, "table entries of %d bytes, want at least %d", a.Entry, StreamStateLen)
	}
	rest := textAndComeBack(&a.Text, &a.ComeBack)
	return a, parseFields(TypeAttached, p[attachedLen:], func(f Field) (known, ok bool) {
		if f.Type == fieldAnswers {
			return true, f.text(&a.Answers, MaxAsk)
		}
		return rest(f)
	})
}

func textAndComeBack(text *string, comeBack *uint32) func(Field) (known, ok bool) {
	return func(f Field) (known, ok bool) {
		switch f.Type {
		case fieldText:
			return true, f.text(text, MaxText)
		case fieldComeBack:
			return true, f.uint32(comeBack)
		}
		return false, false
	}
}

// StreamState is one entry of a resume table: what the sender of the table has of a stream's incoming direction.
type StreamState struct {
	Stream uint64
	RcvNxt uint64 // everything below is in custody; one more than the final length when END is
	Credit uint64 // the peer may send up to here
	CRC    uint32 // CRC-32C of the bytes below RcvNxt
}

// StreamStateLen is the length of one entry in bytes, as this package writes it.
const StreamStateLen = 8 + 8 + 8 + 4 + 1

// MaxTable is how many entries a table has at the most.
const MaxTable = 65_536

// AppendStreamState appends one entry to the encoded table.
func AppendStreamState(b []byte, s StreamState) []byte {
	b = binary.BigEndian.AppendUint64(b, s.Stream)
	b = binary.BigEndian.AppendUint64(b, s.RcvNxt)
	b = binary.BigEndian.AppendUint64(b, s.Credit)
	b = binary.BigEndian.AppendUint32(b, s.CRC)
	return append(b, 0)
}

// ParseTable decodes an encoded table whose entries have entry bytes each. What an entry has beyond StreamStateLen bytes is
// skipped. Entries come in strictly increasing order of streams.
func ParseTable(b []byte, entry int) ([]StreamState, error) {
	if entry < StreamStateLen || len(b)%entry != 0 {
		return nil, malformed(TypeST, "table of %d bytes in entries of %d", len(b), entry)
	}
	t := make([]StreamState, 0, len(b)/entry)
	for last := uint64(0); len(b) > 0; b = b[entry:] {
		s := StreamState{
			Stream: binary.BigEndian.Uint64(b),
			RcvNxt: binary.BigEndian.Uint64(b[8:]),
			Credit: binary.BigEndian.Uint64(b[16:]),
			CRC:    binary.BigEndian.Uint32(b[24:]),
		}
		if s.Stream <= last {
			return nil, malformed(TypeST, "stream %d after %d", s.Stream, last)
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
	Text        string // field 1, for people
	ComeBack    uint32 // field 2: milliseconds after which the receiver may come back; 0: not said
}

const goAwayLen = 4

// AppendGoAway appends a GOAWAY.
func AppendGoAway(b []byte, g GoAway) []byte {
	at := len(b)
	b = AppendHeader(b, TypeGoAway, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, g.DrainMillis)
	return setLength(appendUint32Field(appendTextField(b, fieldText, g.Text, MaxText), fieldComeBack, g.ComeBack), at)
}

// ParseGoAway decodes the payload of a GOAWAY.
func ParseGoAway(f Frame) (g GoAway, err error) {
	g.DrainMillis = binary.BigEndian.Uint32(f.Payload)
	return g, parseFields(TypeGoAway, f.Payload[goAwayLen:], textAndComeBack(&g.Text, &g.ComeBack))
}

// ErrCode says why a connection is given up.
type ErrCode uint16

// The codes of ERR. One that is not known is an error like any other.
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
	ErrClaimInvalid                    // a frame about a claim that cannot be decoded, or contradicts an earlier one
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
