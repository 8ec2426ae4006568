package registry

import (
	"fmt"
	"slices"
	"testing"

	"reverser/internal/grammar"
)

// TestAway: a name whose bridge went away is remembered until somebody claims it, its key loses it, or a day is over; what an order took is
// not. A key has no more of them than services.
func TestAway(t *testing.T) {
	a, b := testKey(0, "http/*", "https/*", "tls/*"), testKey(1, "http/*")
	a.MaxServices = 3
	names := []string{"http/a.example", "http/a.example/x", "https/a.example"}
	day := func(w *world) {
		for range hoursAway {
			w.change((*core).hourPassed)
		}
	}
	for name, c := range map[string]struct {
		end  bool // the session ends before then
		then func(w *world, s SessionID)
		want []string
	}{
		"there":            {false, func(*world, SessionID) {}, nil},
		"away":             {true, func(*world, SessionID) {}, names},
		"away for an hour": {true, func(w *world, _ SessionID) { w.change((*core).hourPassed) }, names},
		"away for a day":   {true, func(w *world, _ SessionID) { day(w) }, nil},
		"given back":       {false, func(w *world, s SessionID) { w.Unclaim(s, 1); w.End(s) }, names[1:]},
		"claimed by another key": {true, func(w *world, _ SessionID) {
			s, _ := w.begin(b, 0)
			w.claim(s, 1, names[0])
			w.Unclaim(s, 1)
		}, names[1:]},
		"key removed": {true, func(w *world, _ SessionID) { w.Configure(Policy{Keys: []Key{b}, Named: w.core.policy.Named}) }, nil},
		"policy changed": {true, func(w *world, _ SessionID) {
			w.Configure(Policy{Keys: []Key{testKey(0, "https/*"), b}, Named: w.core.policy.Named})
		}, names[2:]},
		"more than the limit": {true, func(w *world, _ SessionID) {
			s, _ := w.begin(a, 0)
			w.claim(s, 1, "http/more.example")
			w.End(s)
		}, names},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Configure(Policy{Keys: []Key{a, b}, Named: []grammar.Kind{grammar.KindHTTP, grammar.KindHTTPS, grammar.KindTLS}})
			s, _ := w.begin(a, 0)
			for i, public := range append(names, "tls/b.example") {
				w.claim(s, uint32(i+1), public)
			}
			if c.end {
				w.End(s)
			}
			view := w.View()
			c.then(w, s)
			var got []string
			for pub := range w.AllAway() {
				got = append(got, pub.String())
				if !w.Away(pub) {
					t.Errorf("%s is away and is not", pub)
				}
			}
			if slices.Sort(got); !slices.Equal(got, c.want) {
				t.Errorf("away: %q; want %q", got, c.want)
			}
			if len(got) < len(names) && c.end && w.View() == view {
				t.Error("those who look at views do not see it")
			}
		})
	}
}

// TestMaxAway: there is an end to what is remembered.
func TestMaxAway(t *testing.T) {
	a := newAway()
	for k := range byte(8) {
		for i := range maxAwayEach + 1 {
			a.remember(grammar.Public{Kind: grammar.KindHTTP, Host: fmt.Sprintf("%d.%d.example", i, k)}, &Key{ID: KeyID{k}})
		}
		if n := a.keys[KeyID{k}]; n > maxAwayEach {
			t.Errorf("%d names of one key", n)
		}
	}
	if len(a.names) != maxAway {
		t.Errorf("%d names; want %d", len(a.names), maxAway)
	}
}
