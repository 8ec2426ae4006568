package link

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
	"time"

	"reverser/internal/wire"
)

// These peers write their bytes by hand, as somebody would who has spec/PROTOCOL.md alone: nothing here uses the encoders of
// package wire.

// rawFrame is a frame with the payload that parts are together.
func rawFrame(typ byte, stream, offset uint64, parts ...[]byte) []byte {
	payload := bytes.Join(parts, nil)
	b := []byte{typ, 0, byte(len(payload) >> 8), byte(len(payload))}
	b = binary.BigEndian.AppendUint64(b, stream)
	b = binary.BigEndian.AppendUint64(b, offset)
	return append(b, payload...)
}

func rawField(typ byte, size int) []byte {
	return append([]byte{typ, byte(size >> 8), byte(size)}, make([]byte, size)...)
}

// rawFields are what may stand behind the fixed part of any frame, and what is to come of it.
var rawFields = []struct {
	name   string
	fields []byte
	want   wire.ErrCode // 0: the frame is taken
}{
	{"an unknown field", rawField(99, 5), 0},
	{"two unknown fields", append(rawField(100, 0), rawField(127, 1)...), 0},
	{"4,096 bytes of an unknown field", rawField(127, 4093), 0},
	{"4,097 bytes of an unknown field", rawField(127, 4094), wire.ErrFormat},
	{"the same unknown field twice", append(rawField(99, 1), rawField(99, 1)...), wire.ErrFormat},
	{"fields in the wrong order", append(rawField(99, 1), rawField(98, 1)...), wire.ErrFormat},
	{"field 0", rawField(0, 1), wire.ErrFormat},
	{"a field that is cut short", rawField(99, 5)[:7], wire.ErrFormat},
	{"a field without its length", []byte{99, 0}, wire.ErrFormat},
	{"an unknown critical field, and one that is cut short", append(rawField(200, 0), 201, 0), wire.ErrFormat},
}

// TestFieldsOfFrames: what is wrong in the fields of OPEN and GOAWAY costs the connection and not the session, and what may be
// skipped costs nothing, at either end.
func TestFieldsOfFrames(t *testing.T) {
	open := func(id uint64, fields []byte) []byte {
		return rawFrame(4, id, 1<<16, []byte{1, 0xff, 0, 0, 0, 1}, fields) // the reserved byte is ignored
	}
	goAway := func(fields []byte) []byte { return rawFrame(11, 0, 1<<63, []byte{0, 0, 0x75, 0x30}, fields) }
	for _, c := range rawFields {
		t.Run(c.name, func(t *testing.T) {
			withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
				for slot, say := range [][]byte{goAway(c.fields), open(1<<63|2<<8|1, c.fields)} {
					e.at[slot].say(say)
					if code, text := e.at[slot].verdict(); code != c.want {
						t.Errorf("slot %d of the proxy: ERR %d (%s), want %d", slot, code, text, c.want)
					}
				}
				if n := len(w.owners.key(evilKey).streams); (n == 1) != (c.want == 0) {
					t.Errorf("%d streams are to be connected", n)
				}
			})
			withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
				for slot, say := range [][]byte{goAway(c.fields), open(2<<8|1, c.fields)} {
					e.at[slot].say(say)
					if code, text := e.at[slot].verdict(); code != c.want {
						t.Errorf("slot %d of the bridge: ERR %d (%s), want %d", slot, code, text, c.want)
					}
				}
				if n := len(e.br.streams); (n == 1) != (c.want == 0) {
					t.Errorf("%d streams are to be connected", n)
				}
			})
		})
	}
}

// rawAttach is an ATTACH of slot 1 of a session, whose table has entries of so many bytes.
func (e *evilBridge) rawAttach(v *voice, gen uint64, entry byte, table, fields []byte) []byte {
	b := []byte{2, 1, entry, 0xff}
	b = append(append(b, e.sid[:]...), hostInstance[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(table)/int(entry)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(table, crc32.MakeTable(crc32.Castagnoli)))
	b = append(b, 0, 0, 0x3f, 0xc0, 0, 0, 0x40, 0, 0, 0, 0, 0)
	sum := sha256.Sum256(table)
	proof := hmac.New(sha256.New, e.secret[:])
	proof.Write([]byte("resume"))
	proof.Write(v.conn.Exporter)
	proof.Write(e.sid[:])
	proof.Write(append([]byte{1}, binary.BigEndian.AppendUint64(nil, gen)...))
	proof.Write(sum[:])
	return rawFrame(1, 0, gen, proof.Sum(b), fields)
}

// rawStatus is the status of the next ATTACHED, and 0xff where an ERR came.
func (v *voice) rawStatus() byte {
	f, err := v.hear(wire.TypeAttached)
	if err != nil {
		return 0xff
	}
	return f.Payload[0]
}

// TestFieldsOfATTACH: a proxy skips, refuses or gives up, and the session's own connections notice nothing of what is wrong.
func TestFieldsOfATTACH(t *testing.T) {
	for _, c := range rawFields {
		t.Run(c.name, func(t *testing.T) {
			withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
				v := w.dial(evilKey)
				v.say(e.rawAttach(v, 2, 29, nil, c.fields))
				got := v.rawStatus()
				if (got == 1) != (c.want == 0) || c.want != 0 && got != 0xff {
					t.Errorf("status %d", got)
				}
				if got == 1 {
					e.at[1].conn.Close()
					e.at[1] = v
					return
				}
				v.conn.Close()
				if code, text := e.at[1].verdict(); code != 0 {
					t.Errorf("the session's own connection got ERR %d (%s)", code, text)
				}
			})
		})
	}
}

// TestLongEntries: a table of entries of 255 bytes resumes the slot. Its CRC and proof cover what the proxy does not know.
func TestLongEntries(t *testing.T) {
	const each = 255
	entry := binary.BigEndian.AppendUint64(nil, theID)
	entry = binary.BigEndian.AppendUint64(entry, 5)
	entry = binary.BigEndian.AppendUint64(entry, 1<<20)
	entry = binary.BigEndian.AppendUint32(entry, crc32.Checksum([]byte("hello"), crc32.MakeTable(crc32.Castagnoli)))
	entry = append(entry, bytes.Repeat([]byte{0xab}, each-len(entry))...)
	for name, c := range map[string]struct {
		sent []byte
		want byte
	}{
		"as they were proven":             {entry, 1},
		"another byte of what is skipped": {append(bytes.Clone(entry[:each-1]), 0), 0xff},
	} {
		withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
			v := w.dial(evilKey)
			v.say(append(e.rawAttach(v, 2, each, entry, nil), rawFrame(3, 0, 0, c.sent)...))
			if got := v.rawStatus(); got != c.want {
				t.Errorf("%s: status %d, want %d", name, got, c.want)
			}
			if c.want != 1 {
				v.conn.Close()
				return
			}
			e.at[1].conn.Close()
			e.at[1] = v
			e.stream.Write([]byte("x"))
			if f, err := v.hear(wire.TypeData); err != nil || f.Stream != theID || f.Offset != 5 {
				t.Errorf("DATA of stream %#x at %d, %v; want the stream to go on", f.Stream, f.Offset, err)
			}
		})
	}
}

// rawAttached answers an ATTACH of slot 1 with a table whose entries have so many bytes.
func rawAttached(gen uint64, status, entry byte, table, fields []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{status, 1, 1, entry}, uint32(len(table)/int(entry)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(table, crc32.MakeTable(crc32.Castagnoli)))
	b = append(b, 0, 0, 0x3f, 0xc0, 0, 0, 0x40, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0) // the reserved bytes are ignored
	return rawFrame(2, 0, gen, b, fields)
}

// TestFieldsOfATTACHED: a bridge skips what it may, and an answer that is wrong costs the connection, not the session. The entries of
// the table are longer than the bridge knows.
func TestFieldsOfATTACHED(t *testing.T) {
	const each = 40
	entry := binary.BigEndian.AppendUint64(nil, theID)
	entry = binary.BigEndian.AppendUint64(entry, 5)
	entry = binary.BigEndian.AppendUint64(entry, 1<<20)
	entry = binary.BigEndian.AppendUint32(entry, crc32.Checksum([]byte("hello"), crc32.MakeTable(crc32.Castagnoli)))
	entry = append(entry, bytes.Repeat([]byte{0xab}, each-len(entry))...)
	for _, c := range rawFields {
		t.Run(c.name, func(t *testing.T) {
			withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
				e.at[1].conn.Close()
				v, _, gen := e.expect()
				e.at[1] = v
				v.say(append(rawAttached(gen, 1, each, entry, c.fields), rawFrame(3, 0, 0, entry)...))
				if c.want == 0 {
					e.stream.Write([]byte("x"))
					if f, err := v.hear(wire.TypeData); err != nil || f.Stream != theID || f.Offset != 5 {
						t.Errorf("DATA of stream %#x at %d, %v; want the stream to go on", f.Stream, f.Offset, err)
					}
					return
				}
				if f, err := v.hear(wire.TypeErr); err != nil || wire.ParseErr(f).Code != c.want {
					t.Errorf("%s, %v; want ERR %d", f.Type, err, c.want)
				}
				if got := e.next(); got != wire.ModeResume {
					t.Errorf("the bridge's next ATTACH has mode %d, want %d", got, wire.ModeResume)
				}
			})
		})
	}
}

// TestCounterZero: the counters of ids begin with 1, so an id with counter 0 was never opened and cannot be.
func TestCounterZero(t *testing.T) {
	cases := func(own, peer uint64) map[string][]byte {
		return map[string][]byte{
			"OPEN":              rawFrame(4, peer|1, 1<<16, []byte{1, 0, 0, 0, 0, 1}),
			"ACK":               rawFrame(6, own|1, 0, make([]byte, 8)),
			"DATA":              rawFrame(5, own|1, 0, []byte("x")),
			"END of the peer's": rawFrame(7, peer|1, 0, []byte{1, 0, 0, 0, 0, 0, 0, 0}),
		}
	}
	for name, say := range cases(0, 1<<63) {
		t.Run(name, func(t *testing.T) {
			withEvilBridge(t, true, func(t *testing.T, w *scene, e *evilBridge) {
				e.at[1].say(say)
				if code, text := e.at[1].verdict(); code != wire.ErrUnexpected {
					t.Errorf("ERR %d (%s), want %d", code, text, wire.ErrUnexpected)
				}
			})
		})
	}
	for name, say := range cases(1<<63, 0) {
		t.Run(name, func(t *testing.T) {
			withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
				e.at[1].say(say)
				if code, text := e.at[1].verdict(); code != wire.ErrUnexpected {
					t.Errorf("ERR %d (%s), want %d", code, text, wire.ErrUnexpected)
				}
			})
		})
	}
}

// TestCounterZeroInATable: such an entry contradicts everything, whoever's id it is.
func TestCounterZeroInATable(t *testing.T) {
	for _, id := range []uint64{1, 1<<63 | 1} {
		withEvilBridge(t, true, func(t *testing.T, w *scene, e *evilBridge) {
			v := w.dial(evilKey)
			defer v.conn.Close()
			entry := append(binary.BigEndian.AppendUint64(nil, id), make([]byte, 21)...)
			v.say(append(e.rawAttach(v, 2, 29, entry, nil), rawFrame(3, 0, 0, entry)...))
			if f, err := v.hear(wire.TypeErr); err != nil || wire.ParseErr(f).Code != wire.ErrResume {
				t.Errorf("stream %#x in a table: %s, %v; want ERR %d", id, f.Type, err, wire.ErrResume)
			}
		})
	}
}

// TestRefusalArrives: a proxy reads all of an ATTACH that it refuses for a critical field, the table included. Who closes a socket
// with bytes unread resets it, and a bridge that still writes would not hear the refusal.
func TestRefusalArrives(t *testing.T) {
	var table, frames []byte
	for i := range uint64(20_000) {
		table = append(binary.BigEndian.AppendUint64(table, (i+1)<<8|1), make([]byte, 21)...)
	}
	for i := 0; i < 20_000; i += 500 {
		frames = append(frames, rawFrame(3, 0, uint64(i), table[29*i:29*(i+500)])...)
	}
	withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
		v := w.dial(evilKey)
		defer v.conn.Close()
		if _, err := v.conn.Write(append(e.rawAttach(v, 2, 29, table, rawField(200, 1)), frames...)); err != nil {
			t.Errorf("the table was not taken: %v", err)
		}
		if f, err := v.hear(wire.TypeAttached); err != nil || f.Payload[0] != 8 {
			t.Errorf("%s, %v; want status 8", f.Type, err)
		}
	})
}

// TestComplaintsArrive: what an end says of an ATTACH or ATTACHED that is wrong arrives although it does not read what follows.
func TestComplaintsArrive(t *testing.T) {
	long := bytes.Repeat(rawFrame(9, 0, 1, nil), 50_000) // PING where ST is due
	hears := func(t *testing.T, v *voice, say []byte) {
		t.Helper()
		if _, err := v.conn.Write(say); err != nil {
			t.Errorf("the frames were not taken: %v", err)
		}
		if f, err := v.hear(wire.TypeErr); err != nil || wire.ParseErr(f).Code != wire.ErrFormat {
			t.Errorf("%s, %v; want ERR %d", f.Type, err, wire.ErrFormat)
		}
		v.conn.Close()
	}
	entry := append(binary.BigEndian.AppendUint64(nil, theID), make([]byte, 21)...)
	withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
		v := w.dial(evilKey)
		hears(t, v, append(e.rawAttach(v, 2, 29, entry, nil), long...))
	})
	withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
		e.at[1].conn.Close()
		v, _, gen := e.expect()
		hears(t, v, append(rawAttached(gen, 1, 29, entry, nil), long...))
	})
}

// TestMarksOfSlotsThatAreNot: a proxy said how many slots it takes, so it has opened nothing in others.
func TestMarksOfSlotsThatAreNot(t *testing.T) {
	l := newLink(true, nil, nil, NewBudget(0).only(), 4)
	l.reach = 2
	for slot := uint8(1); slot < 7; slot++ {
		err := l.CheckMarks([]wire.Mark{{Slot: slot, Stream: 1<<8 | uint64(slot)}})
		if p, wrong := errors.AsType[*violationError](err); wrong != (slot > 2) || wrong && (p.code != wire.ErrClaimInvalid || !p.fatal) {
			t.Errorf("a mark of slot %d, where the proxy takes 2: %v", slot, err)
		}
		if err := l.CheckMarks([]wire.Mark{{Slot: slot}}); err != nil {
			t.Errorf("a mark of 0 for slot %d: %v", slot, err)
		}
		if l.CheckMarks([]wire.Mark{{Slot: slot, Stream: uint64(slot)}}) == nil {
			t.Errorf("a mark with counter 0 for slot %d is taken", slot)
		}
	}
}

// TestLongDrains: a time that a GOAWAY cannot say is not said as a short one.
func TestLongDrains(t *testing.T) {
	for drain, want := range map[time.Duration]uint32{
		0: 0, -time.Second: 0, time.Minute: 60_000, 50 * 24 * time.Hour: 1<<32 - 1, 1<<63 - 1: 1<<32 - 1,
	} {
		l := newLink(false, nil, nil, NewBudget(0).only(), 1)
		l.GoAway(drain)
		if got := l.slots[0].core.goAway.DrainMillis; got != want {
			t.Errorf("GoAway(%s) says %d ms, want %d", drain, got, want)
		}
	}
}
