package relay

import (
	"bytes"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"
)

var states = []State{
	{},
	{ID: 7, Since: time.Unix(1_800_000_000, 123), Service: "tcp/9000", Target: "nas:80", Client: "192.0.2.1:5", Side: Target, Out: 1 << 40, In: 3,
		OutDone: true, FinSent: true, Head: []byte("GET / HTTP/1.1"), Reset: ReasonTargetReset, ResetIn: 3 * time.Second},
	{InDone: true, Poisoned: true, Fresh: true, Head: make([]byte, 64<<10)},
}

func TestState(t *testing.T) {
	for _, want := range states {
		b := AppendState([]byte("before"), want)[6:]
		got, err := ParseState(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseState = %+v, %v\nwant %+v", got, err, want)
		}
		for n := range min(len(b), 300) {
			if _, err := ParseState(b[:n]); err == nil && n < len(AppendState(nil, State{})) {
				t.Errorf("%d bytes of %d are a state", n, len(b))
			}
		}
	}
}

// TestRestoredCounts: a pair that was handed over has counted what it had.
func TestRestoredCounts(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	defer near.Close()
	p := New(Target, near, nil, nil)
	p.outward.bytes.set(3)
	p.inward.bytes.set(5)
	got := Restore(p.State(), near, nil)
	if sent, received := got.Counts(); sent != 5 || received != 3 || got.side != Target {
		t.Errorf("%d sent, %d received at side %d; want 5 and 3 at the target", sent, received, got.side)
	}
}

// TestStateOfOthers: what a newer program wrote is read where that does no harm, and refused by name where it does.
func TestStateOfOthers(t *testing.T) {
	b := AppendState(nil, states[0])
	insert := func(at int, field ...byte) []byte { return append(append(bytes.Clone(b[:at]), field...), b[at:]...) }
	if got, err := ParseState(insert(14, 77, 0, 0, 0, 1, 9)); err != nil || !reflect.DeepEqual(got, states[0]) {
		t.Errorf("with a field that may be skipped: %+v, %v", got, err)
	}
	for name, tc := range map[string]struct {
		b    []byte
		want string
	}{
		"version":        {append([]byte{2}, b[1:]...), "version 2"},
		"critical field": {insert(len(b), 200, 0, 0, 0, 0), "field 200"},
		"flag":           {bytes.Replace(b, []byte{fieldFlags, 0, 0, 0, 2, 0, 0}, []byte{fieldFlags, 0, 0, 0, 2, 1, 0}, 1), "flags 0x100"},
		"twice":          {insert(1, b[1:14]...), "no state"},
		"empty":          {nil, "no state"},
		"no fields":      {b[:1], "no state"},
		"side":           {bytes.Replace(b, []byte{fieldSide, 0, 0, 0, 1, 0}, []byte{fieldSide, 0, 0, 0, 1, 2}, 1), "no state"},
		"too long":       {insert(len(b), fieldHead, 0xff, 0xff, 0xff, 0xff, 1), "no state"},
	} {
		if _, err := ParseState(tc.b); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want an error with %q", name, err, tc.want)
		}
	}
}

func FuzzState(f *testing.F) {
	for _, st := range states {
		f.Add(AppendState(nil, st))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := ParseState(b)
		if err != nil {
			return
		}
		again, err := ParseState(AppendState(nil, st))
		if err != nil || !reflect.DeepEqual(st, again) {
			t.Fatalf("%+v, %v\nwas %+v", again, err, st)
		}
	})
}
