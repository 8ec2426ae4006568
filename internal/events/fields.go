package events

import (
	"bytes"
	"encoding/json"
	"errors"
)

// Fields say more about an event, in the order of the log line. In JSON they are an object.
type Fields []Field

// Field is a name and a text, a number, a truth value or nil. A number that was read from JSON is a [json.Number].
type Field struct {
	Name  string
	Value any
}

// MarshalJSON implements [json.Marshaler].
func (f Fields) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, field := range f {
		if i > 0 {
			b = append(b, ',')
		}
		for j, part := range []any{field.Name, field.Value} {
			if j > 0 {
				b = append(b, ':')
			}
			text, err := json.Marshal(part)
			if err != nil {
				return nil, err
			}
			b = append(b, text...)
		}
	}
	return append(b, '}'), nil
}

// UnmarshalJSON implements [json.Unmarshaler]. It keeps the order.
func (f *Fields) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil {
		return err
	} else if t != json.Delim('{') {
		return errors.New("the fields of an event are an object")
	}
	*f = Fields{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return err
		}
		field := Field{Name: name.(string)}
		if err := dec.Decode(&field.Value); err != nil {
			return err
		}
		*f = append(*f, field)
	}
	return nil
}
