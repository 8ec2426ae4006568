package notify

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"reverser/internal/status"
)

// at is a proxy with these bridges connected, each with a service of its own that is up.
func at(bridges ...string) status.Snapshot {
	s := status.Snapshot{Role: "proxy"}
	for _, b := range bridges {
		s.Links = append(s.Links, status.Link{Key: b, State: status.LinkUp})
		s.Services = append(s.Services, status.Service{Public: "tcp/" + b, Key: b, State: status.ServiceUp})
	}
	return s
}

func with(s status.Snapshot, change func(*status.Snapshot)) status.Snapshot {
	change(&s)
	return s
}

func TestWatch(t *testing.T) {
	away := with(at("a"), func(s *status.Snapshot) {
		s.Services[0].State, s.Services[0].Reason = status.ServiceAway, "the bridge is draining"
	})
	drained := with(away, func(s *status.Snapshot) {
		s.Services = slices.Clone(s.Services)
		s.Services[0].Drained = true
	})
	down := with(at("a"), func(s *status.Snapshot) { s.Links[0].State = status.LinkDown })
	bare := with(at("a"), func(s *status.Snapshot) { s.Services = nil }) // it has claimed nothing so far, or has no service any more
	type step struct {
		after int // seconds since the step before
		s     status.Snapshot
		want  []string
	}
	for name, steps := range map[string][]step{
		"nothing happens": {{0, at("a"), nil}, {100, at("a"), nil}},
		"a bridge goes and comes": {{0, at("a"), nil}, {10, at(), nil}, {29, at(), nil}, {1, at(), []string{"bridge-down a", "service-down tcp/a"}}, {500, at(), nil},
			{1, at("a"), nil}, {30, at("a"), []string{"bridge-up a", "service-up tcp/a"}}, {500, at("a"), nil}},
		"a flap":                    {{0, at("a"), nil}, {1, at(), nil}, {29, at(), nil}, {1, at("a"), nil}, {100, at("a"), nil}},
		"a flap within an outage":   {{0, at("a"), nil}, {1, at(), nil}, {30, at(), []string{"bridge-down a", "service-down tcp/a"}}, {5, at("a"), nil}, {20, at(), nil}, {100, at(), nil}},
		"a link that is lost":       {{0, at("a"), nil}, {1, down, nil}, {30, down, []string{"bridge-down a"}}},
		"a service alone":           {{0, at("a"), nil}, {1, away, nil}, {30, away, []string{"service-down tcp/a"}}, {1, at("a"), nil}, {30, at("a"), []string{"service-up tcp/a"}}},
		"a service that is drained": {{0, at("a"), nil}, {1, drained, nil}, {100, drained, nil}, {1, away, nil}, {30, away, []string{"service-down tcp/a"}}, {1, drained, nil}, {30, drained, []string{"service-up tcp/a"}}},
		"never up":                  {{0, down, nil}, {30, down, []string{"bridge-down a"}}},
		"one of two":                {{0, at("a", "b"), nil}, {1, at("b"), nil}, {30, at("b"), []string{"bridge-down a", "service-down tcp/a"}}},
		"a service that is removed": {{0, at("a"), nil}, {1, with(at("a"), func(s *status.Snapshot) { s.Services = nil }), nil}, {100, with(at("a"), func(s *status.Snapshot) { s.Services = nil }), nil}},
		"a bridge that claims later": {{0, at("a"), nil}, {1, at(), nil}, {30, at(), []string{"bridge-down a", "service-down tcp/a"}}, {1, bare, nil}, {1, at("a"), nil},
			{30, at("a"), []string{"bridge-up a", "service-up tcp/a"}}, {1, bare, nil}, {1, at("a"), nil}, {100, at("a"), nil}},
		"a bridge that goes again before it claims": {{0, at("a"), nil}, {1, at(), nil}, {30, at(), []string{"bridge-down a", "service-down tcp/a"}}, {1, bare, nil}, {1, at(), nil},
			{100, at("a"), nil}, {30, at("a"), []string{"bridge-up a", "service-up tcp/a"}}},
		"a service that is removed while it is down": {{0, at("a"), nil}, {1, at(), nil}, {30, at(), []string{"bridge-down a", "service-down tcp/a"}}, {1, bare, nil},
			{30, bare, []string{"bridge-up a"}}, {100, bare, nil}, {1, at("a"), nil}, {30, at("a"), nil}},
		"a service that is removed before it is told down": {{0, at("a"), nil}, {1, at(), nil}, {1, bare, nil}, {30, bare, nil}, {100, bare, nil}},
		"one that never comes back":                        {{0, at("a"), nil}, {1, at(), nil}, {30, at(), []string{"bridge-down a", "service-down tcp/a"}}, {2 * 24 * 3600, at(), nil}, {1, at("a"), nil}, {30, at("a"), nil}},
	} {
		w := watch{after: 30 * time.Second}
		now := time.Unix(1_000_000, 0)
		for i, step := range steps {
			now = now.Add(time.Duration(step.after) * time.Second)
			var got []string
			for _, e := range w.look(step.s, now) {
				got = append(got, e.Event+" "+e.Name)
			}
			if !slices.Equal(got, step.want) {
				t.Errorf("%s, step %d: told %q, want %q", name, i, got, step.want)
			}
		}
		if n := len(w.subjects); n > 4 {
			t.Errorf("%s: %d subjects are remembered", name, n)
		}
	}
}

// TestWatchOfARemovedKey: the bridge of a key that was removed, and its services, are nothing to tell, whether they were down before or not, and
// also while their end is on its way.
func TestWatchOfARemovedKey(t *testing.T) {
	for name, down := range map[string]bool{"while it is up": false, "while it is down": true} {
		w := watch{known: map[string]bool{"a": true, "b": true}}
		now := time.Unix(1_000_000, 0)
		look := func(when string, s status.Snapshot, want ...string) {
			t.Helper()
			now = now.Add(time.Second)
			var got []string
			for _, e := range w.look(s, now) {
				got = append(got, e.Event+" "+e.Name)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s, %s: told %q, want %q", name, when, got, want)
			}
		}
		look("at first", at("a", "b"))
		if down {
			look("at its end", at("b"), "bridge-down a", "service-down tcp/a")
		}
		w.known = map[string]bool{"b": true}
		look("as it is removed", at("a", "b"))
		look("after that", at("b"))
		if n := len(w.subjects); n != 2 {
			t.Errorf("%s: %d subjects are remembered; want 2", name, n)
		}
		w.known = map[string]bool{"a": true, "b": true}
		look("with another key of that name", at("a", "b"))
		look("when that one's bridge goes", at("b"), "bridge-down a", "service-down tcp/a")
	}
}

// A bridge is up when one of its links is. A service that it gives up is nothing to tell.
func TestWatchOfABridge(t *testing.T) {
	s := func(states ...string) status.Snapshot {
		s := status.Snapshot{Role: "bridge", Services: []status.Service{{Public: "tcp/9000", State: status.ServiceUp}}}
		for _, state := range states {
			s.Links = append(s.Links, status.Link{Key: "0123", State: state})
		}
		return s
	}
	w := watch{}
	now := time.Unix(1_000_000, 0)
	look := func(s status.Snapshot, want string) {
		t.Helper()
		now = now.Add(time.Second)
		var got []string
		for _, e := range w.look(s, now) {
			got = append(got, e.words())
		}
		if fmt.Sprint(got) != want {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	look(s(status.LinkUp, status.LinkDown), "[]")
	look(s(status.LinkDown, status.LinkDown), "[bridge 0123 is down since "+now.Add(time.Second).Format("2006-01-02 15:04:05 MST")+"]")
	look(s(status.LinkDown, status.LinkUp), "[bridge 0123 is up again, after 1s]")
	none := s(status.LinkUp)
	none.Services = nil
	look(none, "[]")
	look(none, "[]")
}

// Several keys may claim one name. It is up while one of the claims is, and what is said of it is of the claim that comes nearest to that.
func TestWatchOfSeveralClaims(t *testing.T) {
	const why = `key "bob" may not have tcp/a`
	claims := func(state, order string) status.Snapshot { // alice's service in a state, and bob's claim of it
		s := at("bob")
		s.Services = nil
		if state != "gone" {
			s.Links = append(s.Links, status.Link{Key: "alice", State: status.LinkUp})
			s.Services = append(s.Services, status.Service{Public: "tcp/a", Key: "alice", State: state})
		}
		if state == status.ServiceAway {
			s.Services[0].Reason = "no connection for data"
		}
		s.Services = append(s.Services, status.Service{Public: "tcp/a", Key: "bob", State: status.ServiceDenied, Reason: why})
		if order == "bob first" {
			slices.Reverse(s.Services)
		}
		return s
	}
	for _, order := range []string{"alice first", "bob first"} {
		for _, after := range []int{0, 30} {
			w := watch{after: time.Duration(after) * time.Second}
			now := time.Unix(1_000_000, 0)
			look := func(s status.Snapshot, want ...string) {
				t.Helper()
				now = now.Add(time.Second)
				if first := w.look(s, now); after > 0 && len(first) > 0 {
					t.Errorf("%s, after %d s: told %v at once", order, after, first)
				} else if after > 0 {
					now = now.Add(30 * time.Second)
					s.Services = slices.Clone(s.Services)
					first = w.look(s, now)
					check(t, first, want)
				} else {
					check(t, first, want)
				}
			}
			look(claims(status.ServiceUp, order))
			now = now.Add(2 * forget) // it was up for long
			for range 2 {
				look(claims("gone", order), "bridge-down alice ", "service-down tcp/a its bridge is not connected")
				look(claims("gone", order))
				look(claims(status.ServiceUp, order), "bridge-up alice ", "service-up tcp/a ")
				look(claims(status.ServiceAway, order), "service-down tcp/a no connection for data")
				look(claims(status.ServiceUp, order), "service-up tcp/a ")
			}
			drained := claims(status.ServiceAway, order)
			for i := range drained.Services {
				drained.Services[i].Drained = drained.Services[i].Key == "alice"
			}
			look(drained)
		}
	}
	w := watch{}
	check(t, w.look(claims("gone", ""), time.Unix(1_000_000, 0)), []string{"service-down tcp/a " + why})
	check(t, w.look(claims("gone", ""), time.Unix(1_000_001, 0)), nil)
}

// check wants these events, each with its reason.
func check(t *testing.T, events []Event, want []string) {
	t.Helper()
	var got []string
	for _, e := range events {
		got = append(got, e.Event+" "+e.Name+" "+e.Reason)
	}
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}
