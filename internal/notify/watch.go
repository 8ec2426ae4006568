package notify

import (
	"cmp"
	"slices"
	"time"

	"reverser/internal/status"
)

// Events are what can be told.
var Events = []string{"bridge-down", "bridge-up", "service-down", "service-up"}

// Event is something that has been so for long enough.
type Event struct {
	Event  string    `json:"event"`  // one of Events
	Name   string    `json:"name"`   // of the key of the bridge, or the service's PUBLIC
	Reason string    `json:"reason"` // why it is down, where that is known
	Since  time.Time `json:"since"`

	was time.Duration // how long it was down, of one that is up
}

// watch remembers how things are. What changes to and fro within after is not told.
type watch struct {
	after    time.Duration
	subjects map[subject]*state
}

type subject struct{ kind, name string } // "bridge" or "service"

type state struct {
	key    string // of a service: the key of its bridge
	up     bool
	reason string
	since  time.Time // of up
	toldUp bool      // what was told last; at first that it is up, which nobody has to be told
	downAt time.Time // since when it was down that was told
}

// forget is when something that is down, and of which the process knows nothing any more, is not waited for any longer.
const forget = 24 * time.Hour

// look compares a snapshot with what was before and returns what is to be told now.
func (w *watch) look(s status.Snapshot, now time.Time) (events []Event) {
	if w.subjects == nil {
		w.subjects = make(map[subject]*state)
	}
	seen := make(map[subject]bool)
	note := func(sub subject, key string, up bool, reason string) {
		st := w.subjects[sub]
		if st == nil {
			st = &state{up: up, since: now, toldUp: true}
			w.subjects[sub] = st
		}
		if up != st.up {
			st.up, st.since = up, now
		}
		st.key, st.reason = key, reason
		seen[sub] = true
	}
	for sub, up := range bridges(s) {
		note(sub, "", up, "")
	}
	for _, v := range s.Services {
		note(subject{"service", v.Public}, v.Key, v.State == status.ServiceUp, cmp.Or(v.Reason, v.State))
	}
	for _, kind := range []string{"bridge", "service"} { // of a service it matters what became of its bridge
		for sub, st := range w.subjects {
			switch {
			case seen[sub] || sub.kind != kind:
			case kind == "service" && (s.Role != "proxy" || w.isUp(subject{"bridge", st.key})), !st.up && now.Sub(st.since) > forget:
				delete(w.subjects, sub) // somebody took it away, and knows
			case st.up:
				st.up, st.since, st.reason = false, now, ""
				if kind == "service" {
					st.reason = "its bridge is not connected"
				}
			}
		}
	}
	for sub, st := range w.subjects {
		if st.up == st.toldUp || now.Sub(st.since) < w.after {
			continue
		}
		e := Event{Event: sub.kind + "-up", Name: sub.name, Since: st.since}
		if st.up {
			e.was = st.since.Sub(st.downAt)
		} else {
			e.Event, e.Reason, st.downAt = sub.kind+"-down", st.reason, st.since
		}
		st.toldUp = st.up
		events = append(events, e)
	}
	slices.SortFunc(events, func(a, b Event) int { return cmp.Or(cmp.Compare(a.Event, b.Event), cmp.Compare(a.Name, b.Name)) })
	return events
}

func (w *watch) isUp(sub subject) bool {
	st := w.subjects[sub]
	return st != nil && st.up
}

// bridges are the bridges that a proxy knows, by their keys. A bridge knows itself: it is up when one of its links is.
func bridges(s status.Snapshot) map[subject]bool {
	up := make(map[subject]bool)
	for _, l := range s.Links {
		sub := subject{"bridge", l.Key}
		up[sub] = up[sub] || l.State == status.LinkUp
	}
	return up
}
