package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Field is a typed value behind the fixed part of a frame or of a token: type u8, length u16, value. Types ascend, and each
// comes once. A field of a type below Critical is skipped where it is not known; what carries an unknown one of the other
// types is refused.
type Field struct {
	Type  uint8
	Value []byte
}

// Critical is the first type of those that must be known.
const Critical = 128

// MaxFields is how many bytes all fields of a frame or token have together, at the most.
const MaxFields = 4096

// AppendField appends one field. The caller appends fields in the order of their types.
func AppendField(b []byte, t uint8, v []byte) []byte {
	b = append(b, t)
	b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
	return append(b, v...)
}

// Fields reads fields, one after the other.
type Fields struct {
	rest []byte
	last uint8 // type of the field before
	err  error
}

// ReadFields returns a reader of the fields that b consists of.
func ReadFields(b []byte) Fields {
	if len(b) > MaxFields {
		return Fields{err: fmt.Errorf("fields of %d bytes, want at most %d", len(b), MaxFields)}
	}
	return Fields{rest: b}
}

// Next returns the next field, whose value aliases what is read; false: there is none, or what follows is no field, which Err
// tells.
func (r *Fields) Next() (f Field, ok bool) {
	if r.err != nil || len(r.rest) == 0 {
		return f, false
	}
	if len(r.rest) < 3 {
		r.err = errors.New("the last field is cut short")
		return f, false
	}
	f.Type = r.rest[0]
	n := 3 + int(binary.BigEndian.Uint16(r.rest[1:]))
	switch {
	case f.Type <= r.last:
		r.err = fmt.Errorf("field %d after %d", f.Type, r.last)
		return f, false
	case n > len(r.rest):
		r.err = fmt.Errorf("field %d of %d bytes, %d are there", f.Type, n-3, len(r.rest)-3)
		return f, false
	}
	f.Value = r.rest[3:n:n]
	r.rest, r.last = r.rest[n:], f.Type
	return f, true
}

// Err says why Next stopped before the end.
func (r *Fields) Err() error { return r.err }

// UnsupportedError says that a frame needs something that is not known here.
type UnsupportedError struct {
	Type  Type
	Field uint8 // critical and not known; 0: it is something else, which What says
	What  string
}

func (e *UnsupportedError) Error() string {
	if e.Field != 0 {
		return fmt.Sprintf("%s frame with field %d, which must be known and is not known here", e.Type, e.Field)
	}
	return fmt.Sprintf("%s frame with %s, which is not known here", e.Type, e.What)
}

// parseFields gives take every field of a frame of type t. take reports whether it knows the field, and whether its value is
// well-formed. The error is an *UnsupportedError when the only thing wrong is that a critical field is not known.
func parseFields(t Type, b []byte, take func(Field) (known, ok bool)) error {
	var unknown error
	r := ReadFields(b)
	for f, more := r.Next(); more; f, more = r.Next() {
		known, ok := take(f)
		switch {
		case !known && f.Type >= Critical && unknown == nil:
			unknown = &UnsupportedError{Type: t, Field: f.Type}
		case known && !ok:
			return malformed(t, "field %d with a bad value", f.Type)
		}
	}
	if r.Err() != nil {
		return malformed(t, "%s", r.Err())
	}
	return unknown
}

func appendTextField(b []byte, t uint8, s string, most int) []byte {
	if s == "" {
		return b
	}
	s = cut(s, most)
	b = append(b, t, byte(len(s)>>8), byte(len(s)))
	return append(b, s...)
}

func appendUint32Field(b []byte, t uint8, v uint32) []byte {
	if v == 0 {
		return b
	}
	return binary.BigEndian.AppendUint32(append(b, t, 0, 4), v)
}

func (f Field) text(into *string, most int) bool {
	if len(f.Value) > most {
		return false
	}
	*into = string(f.Value)
	return true
}

func (f Field) uint32(into *uint32) bool {
	if len(f.Value) != 4 {
		return false
	}
	*into = binary.BigEndian.Uint32(f.Value)
	return true
}

func (f Field) uint8(into *uint8) bool {
	if len(f.Value) != 1 {
		return false
	}
	*into = f.Value[0]
	return true
}
