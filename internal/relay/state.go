package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// State is a frozen pair as data: what another process needs besides the socket's descriptor and the stream.
type State struct {
	// Of the owner.
	ID                      uint64
	Since                   time.Time
	Service, Target, Client string

	Side            Side
	Out, In         uint64 // bytes from the socket, to the socket
	OutDone, InDone bool   // the socket's EOF was read; its own was sent
	FinSent         bool
	Poisoned        bool // a write failed
	Fresh           bool // nothing was written yet
	Head            []byte
	Reset           Reason        // of a RST that waits until the socket's peer has what was written; "": none
	ResetIn         time.Duration // how long it waits at the most
}

// stateVersion is what AppendState writes, and the highest that ParseState reads. It changes when an older reader would go wrong, fields
// that it may skip apart.
const stateVersion = 1

// A state is version u8, then fields: type u8, length u32, value; the types ascend. A reader skips a field below 128 that it does not
// know, and refuses one from 128 on.
const (
	fieldID      = 1 // u64
	fieldSince   = 2 // nanoseconds since 1970, u64
	fieldService = 3
	fieldTarget  = 4
	fieldClient  = 5
	fieldSide    = 128 // u8
	fieldFlags   = 129 // u16
	fieldBytes   = 130 // out u64, in u64
	fieldHead    = 131
	fieldReset   = 132 // time left u64, reason
)

// Flags.
const (
	flagOutDone = 1 << iota
	flagInDone
	flagFinSent
	flagPoisoned
	flagFresh
	flagsKnown = 1<<iota - 1
)

// mostState bounds what is read: names, and a head of any size that there may be.
const mostState = 1 << 24

// AppendState appends the state.
func AppendState(b []byte, st State) []byte {
	b = append(b, stateVersion)
	field := func(t byte, value ...byte) {
		b = binary.BigEndian.AppendUint32(append(b, t), uint32(len(value)))
		b = append(b, value...)
	}
	u64 := func(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
	field(fieldID, u64(st.ID)...)
	if !st.Since.IsZero() {
		field(fieldSince, u64(uint64(st.Since.UnixNano()))...)
	}
	for i, text := range []string{st.Service, st.Target, st.Client} {
		if text != "" {
			field(byte(fieldService+i), []byte(text)...)
		}
	}
	field(fieldSide, byte(st.Side))
	flags := uint16(0)
	for i, is := range []bool{st.OutDone, st.InDone, st.FinSent, st.Poisoned, st.Fresh} {
		if is {
			flags |= 1 << i
		}
	}
	field(fieldFlags, byte(flags>>8), byte(flags))
	field(fieldBytes, binary.BigEndian.AppendUint64(u64(st.Out), st.In)...)
	if len(st.Head) > 0 {
		field(fieldHead, st.Head...)
	}
	if st.Reset != "" {
		field(fieldReset, append(u64(uint64(st.ResetIn)), st.Reset...)...)
	}
	return b
}

var errState = errors.New("relay: no state of a pair")

// ParseState returns the state that b holds. It keeps no part of b.
func ParseState(b []byte) (st State, err error) {
	if len(b) < 1 || len(b) > mostState {
		return State{}, errState
	}
	if b[0] == 0 || b[0] > stateVersion {
		return State{}, fmt.Errorf("relay: state of a pair in version %d, this program reads %d", b[0], stateVersion)
	}
	var seen [256]bool
	last := -1
	for b = b[1:]; len(b) > 0; {
		if len(b) < 5 {
			return State{}, errState
		}
		t, n := b[0], binary.BigEndian.Uint32(b[1:])
		if b = b[5:]; uint64(n) > uint64(len(b)) || int(t) <= last {
			return State{}, errState
		}
		last, seen[t] = int(t), true
		if err := st.setField(t, b[:n]); err != nil {
			return State{}, err
		}
		b = b[n:]
	}
	if !seen[fieldSide] || !seen[fieldFlags] || !seen[fieldBytes] {
		return State{}, errState
	}
	return st, nil
}

func (st *State) setField(t byte, v []byte) error {
	size := map[byte]int{fieldID: 8, fieldSince: 8, fieldSide: 1, fieldFlags: 2, fieldBytes: 16}
	if n, fixed := size[t]; fixed && len(v) != n {
		return errState
	}
	switch t {
	case fieldID:
		st.ID = binary.BigEndian.Uint64(v)
	case fieldSince:
		st.Since = time.Unix(0, int64(binary.BigEndian.Uint64(v)))
	case fieldService:
		st.Service = string(v)
	case fieldTarget:
		st.Target = string(v)
	case fieldClient:
		st.Client = string(v)
	case fieldSide:
		if st.Side = Side(v[0]); st.Side > Target {
			return errState
		}
	case fieldFlags:
		flags := binary.BigEndian.Uint16(v)
		if flags&^flagsKnown != 0 {
			return fmt.Errorf("relay: state of a pair with unknown flags %#x", flags)
		}
		st.OutDone, st.InDone, st.FinSent = flags&flagOutDone != 0, flags&flagInDone != 0, flags&flagFinSent != 0
		st.Poisoned, st.Fresh = flags&flagPoisoned != 0, flags&flagFresh != 0
	case fieldBytes:
		st.Out, st.In = binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
	case fieldHead:
		st.Head = append([]byte(nil), v...)
	case fieldReset:
		if len(v) <= 8 || binary.BigEndian.Uint64(v) > uint64(time.Hour) {
			return errState
		}
		st.ResetIn, st.Reset = time.Duration(binary.BigEndian.Uint64(v)), Reason(v[8:])
	default:
		if t >= 128 {
			return fmt.Errorf("relay: state of a pair with an unknown field %d", t)
		}
	}
	return nil
}
