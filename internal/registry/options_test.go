package registry

import (
	"errors"
	"strings"
	"testing"

	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// TestOptions: a claim with an option that is not known here is denied and says which; one that is changed into what is known is served.
func TestOptions(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	s, _ := w.begin(a, 0)
	claim := func(options string) {
		t.Helper()
		if err := w.Claim(s, 1, Claim{Public: "tcp/9000", Target: "t:1", Options: options}); err != nil {
			t.Fatal(err)
		}
		w.do()
	}
	denied := func(option string) {
		t.Helper()
		if a := w.d.answers[1]; a.Status != wire.ClaimDenied || !strings.Contains(a.Reason, `"`+option+`", which this version does not know: update the proxy`) {
			t.Errorf("answer %+v, want denied for %q", a, option)
		}
	}
	claim(`{"of_a_later_version":1}`)
	denied("of_a_later_version")
	claim(`{"another":1}`)
	denied("another")
	claim("{}")
	if a := w.d.answers[1]; a.Status != wire.ClaimUp {
		t.Errorf("answer %+v, want up", a)
	}
	if o := w.find("tcp/9000").Options(); o == nil {
		t.Error("a route with an offer has no options")
	}
	claim(`{"another":1}`)
	denied("another")
	if rt := w.find("tcp/9000"); rt != nil && rt.Options() != nil {
		t.Error("a denied claim is served")
	}
}

// TestOptionsBounded: what the claims of a session ask for takes no more memory than is allowed, whatever is changed and given back.
func TestOptionsBounded(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	s, _ := w.begin(a, 0)
	long := "{" + strings.Repeat(" ", grammar.MaxProxyOptions-2) + "}"
	claim := func(id uint32) error {
		return w.Claim(s, id, Claim{Public: grammar.Public{Kind: grammar.KindTCP, Port: uint16(1024 + id)}.String(), Options: long})
	}
	const most = grammar.MaxAllProxyOptions / grammar.MaxProxyOptions
	for id := uint32(1); id <= most; id++ {
		for range 2 { // said again they count once
			if err := claim(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Unclaim(s, 1); err != nil {
		t.Fatal(err)
	}
	if err := claim(most + 1); err != nil {
		t.Errorf("a claim in the place of one that was given back: %v", err)
	}
	if _, ok := errors.AsType[*ViolationError](claim(most + 2)); !ok {
		t.Errorf("options of more than %d bytes are no violation", grammar.MaxAllProxyOptions)
	}
}

// TestOptionsBetweenSessions: while a newer session of the key has not said its claims yet, a service is what it was. Who comes then is
// asked for the same password.
func TestOptionsBetweenSessions(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	s, _ := w.begin(a, 0)
	claim := func(s SessionID, options string) {
		t.Helper()
		if err := w.Claim(s, 1, Claim{Public: "tcp/9000", Target: "t:1", Options: options}); err != nil {
			t.Fatal(err)
		}
		w.do()
	}
	claim(s, `{"h2c":true}`)
	rt := w.find("tcp/9000")
	if o := rt.Options(); o == nil || !o.H2C {
		t.Fatalf("the options are %+v; want those of the claim", o)
	}
	next, _ := w.begin(a, s)
	w.do()
	if w.find("tcp/9000") != rt {
		t.Fatal("the service has another route")
	}
	if o := rt.Options(); o == nil || !o.H2C {
		t.Errorf("before the new session has said its claim, the options are %+v; want those of before", o)
	}
	rt.wake()
	if o := rt.Options(); o == nil || !o.H2C {
		t.Errorf("after those who wait were woken, the options are %+v; want those of before", o)
	}
	claim(next, "")
	if o := rt.Options(); o == nil || o.H2C {
		t.Errorf("the options are %+v; want those of the new claim", o)
	}
}
