package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// A document is what one process writes for another one that goes on in its place. It consists of records: type u16, length u32,
// and so many bytes, which may be records again. A record with a fixed layout may be longer than a reader knows: fields are added
// behind the others. A reader skips a record that it does not know, unless the highest bit of its type is set: then it cannot go on
// from this document, and says so.

type recordType uint16

// needed is the bit of records that a reader must know.
const needed recordType = 1 << 15

const recordHeader = 6

// beginRecord appends the header of a record. The value follows, and then endRecord.
func beginRecord(b []byte, t recordType) (_ []byte, at int) {
	b = binary.BigEndian.AppendUint16(b, uint16(t))
	b = append(b, 0, 0, 0, 0)
	return b, len(b)
}

// endRecord fills in the length of the record whose value begins at at.
func endRecord(b []byte, at int) []byte {
	binary.BigEndian.PutUint32(b[at-4:], uint32(len(b)-at))
	return b
}

func appendRecord(b []byte, t recordType, value []byte) []byte {
	b, at := beginRecord(b, t)
	return endRecord(append(b, value...), at)
}

// errDocument is the cause of every refusal of a document.
var errDocument = errors.New("the document of another process cannot be used")

func badDocument(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDocument, fmt.Sprintf(format, args...))
}

// errUnknownRecord is what a function that eachRecord calls returns for a type that it does not know.
var errUnknownRecord = errors.New("unknown record")

// eachRecord calls f for the records in b, one after the other.
func eachRecord(b []byte, f func(t recordType, value []byte) error) error {
	for len(b) > 0 {
		if len(b) < recordHeader {
			return badDocument("it ends inside a record's header")
		}
		t, n := recordType(binary.BigEndian.Uint16(b)), binary.BigEndian.Uint32(b[2:])
		if b = b[recordHeader:]; uint64(n) > uint64(len(b)) {
			return badDocument("it ends inside a record of type %#x", uint16(t))
		}
		switch err := f(t, b[:n:n]); {
		case err == errUnknownRecord && t&needed != 0:
			return badDocument("a newer version wrote it: records of type %#x are not known here", uint16(t))
		case err != nil && err != errUnknownRecord:
			return err
		}
		b = b[n:]
	}
	return nil
}

// fields reads a record of fixed layout. What lies behind the fields that are read is of a newer version.
type fields struct {
	b     []byte
	short bool // there were fewer bytes than were asked for
}

func (f *fields) take(n int) []byte {
	if len(f.b) < n {
		f.b, f.short = nil, true
		return make([]byte, n)
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) u8() uint8           { return f.take(1)[0] }
func (f *fields) u16() uint16         { return binary.BigEndian.Uint16(f.take(2)) }
func (f *fields) u32() uint32         { return binary.BigEndian.Uint32(f.take(4)) }
func (f *fields) u64() uint64         { return binary.BigEndian.Uint64(f.take(8)) }
func (f *fields) time() time.Duration { return time.Duration(f.u64()) }
func (f *fields) array16() [16]byte   { return [16]byte(f.take(16)) }
func (f *fields) array32() [32]byte   { return [32]byte(f.take(32)) }

// flags packs booleans, the first one in the lowest bit.
func flags(bits ...bool) (v uint8) {
	for i, bit := range bits {
		if bit {
			v |= 1 << i
		}
	}
	return v
}

// setFlags does the opposite.
func setFlags(v uint8, bits ...*bool) {
	for i, bit := range bits {
		*bit = v>>i&1 != 0
	}
}
