package notify

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"reverser/internal/status"
)

// Events are what can be told.
var Events = []string{"bridge-down", "bridge-up", "service-down", "service-up", keyExpiring, certificate}

const (
	keyExpiring = "key-expiring"
	certificate = "certificate"

	stateExpiring = "expiring"
)

// Event is something that has been so for long enough.
type Event struct {
	Event  string    `json:"event"`  // one of Events
	Name   string    `json:"name"`   // of the key of the bridge, the service's PUBLIC, or the host of the certificate
	Reason string    `json:"reason"` // why it is down, where that is known
	Since  time.Time `json:"since"`

	State   string    `json:"state,omitempty"`  // of a certificate: CertificateFailed, stateExpiring, or CertificateValid when it is well again
	Expires time.Time `json:"expires,omitzero"` // of a key or a certificate

	was time.Duration // how long it was down, of one that is up
}

// watch remembers how things are. What changes to and fro within after is not told.
type watch struct {
	after    time.Duration
	known    map[string]bool // the keys that there are; nil: any
	subjects map[subject]*state
	keys     map[string]*expiry
}

type subject struct{ kind, name string } // "bridge", "service" or certificate

type state struct {
	key    string // of a service: the key of its bridge
	up     bool
	reason string
	since  time.Time // of up
	toldUp bool      // what was told last; at first that it is up, which nobody has to be told
	downAt time.Time // since when it was down that was told
	missed time.Time // of a service: since when its bridge is up without it; zero: it is not

	seen time.Time          // of a certificate: when it was there last
	cert status.Certificate // as it was then
}

// expiry is what is to be said of a key that expires.
type expiry struct {
	at    time.Time // when it does
	stage int       // of warnings, how many are due
	since time.Time // of stage
	told  int       // of stage
}

// warnings are how long before its end a key is told of, once each.
var warnings = []time.Duration{7 * 24 * time.Hour, 24 * time.Hour}

const (
	// lastDays is how long before its end a certificate that was not renewed is told of.
	lastDays = 7 * 24 * time.Hour
	// renewal is how long a renewal may take, of which no error is known.
	renewal = time.Hour
)

// notConnected is why a service is down that nobody asks for any more.
const notConnected = "its bridge is not connected"

// claimTime is how long a bridge that is back may take until it has its services again.
const claimTime = time.Minute

// forget is when something that is down, and of which the process knows nothing any more, is not waited for any longer.
const forget = 24 * time.Hour

// look compares a snapshot with what was before and returns what is to be told now.
func (w *watch) look(s status.Snapshot, now time.Time) (events []Event) {
	if w.subjects == nil {
		w.subjects = make(map[subject]*state)
	}
	for sub, st := range w.subjects {
		if key := cmp.Or(st.key, sub.name); sub.kind != certificate && !w.knows(key) {
			delete(w.subjects, sub) // somebody removed the key, and knows
		}
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
		st.key, st.reason, st.missed = key, reason, time.Time{}
		seen[sub] = true
	}
	connected := w.bridges(s)
	for sub, up := range connected {
		note(sub, "", up, "")
	}
	for public, v := range w.services(s) {
		sub := subject{"service", public}
		if st := w.subjects[sub]; st != nil && v.State == status.ServiceDenied && v.Key != st.key && !connected[subject{"bridge", st.key}] && (st.up || now.Sub(st.since) <= forget) {
			note(sub, st.key, false, notConnected) // that others may not have the name is not why it is down
			continue
		}
		note(sub, v.Key, v.Rank() == status.RankUp, cmp.Or(v.Reason, v.State))
	}
	for host, c := range certificates(s, now) {
		sub := subject{certificate, host}
		note(sub, "", !unwell(c, now), c.Error)
		st := w.subjects[sub]
		st.seen, st.cert = now, c
	}
	for sub, st := range w.subjects {
		switch {
		case sub.kind != certificate || seen[sub]:
		case now.Sub(st.seen) > forget:
			delete(w.subjects, sub)
		default: // nobody serves the name at present: there is nothing new to say
			st.up = st.toldUp
		}
	}
	for _, kind := range []string{"bridge", "service"} { // of a service it matters what became of its bridge
		for sub, st := range w.subjects {
			switch {
			case seen[sub] || sub.kind != kind:
			case kind == "service" && (s.Role != "proxy" || w.isUp(subject{"bridge", st.key})):
				if st.missed.IsZero() {
					st.missed = now
				}
				if st.up && st.toldUp || now.Sub(st.missed) > claimTime {
					delete(w.subjects, sub) // somebody took it away, and knows
				}
			case !st.up && now.Sub(st.since) > forget:
				delete(w.subjects, sub)
			case !st.up:
				st.missed = time.Time{}
			default:
				st.up, st.since, st.reason, st.missed = false, now, "", time.Time{}
				if kind == "service" {
					st.reason = notConnected
				}
			}
		}
	}
	for sub, st := range w.subjects {
		if st.up == st.toldUp || now.Sub(st.since) < w.after || !st.missed.IsZero() {
			continue
		}
		e := Event{Event: sub.kind + "-up", Name: sub.name, Since: st.since}
		if st.up {
			e.was = st.since.Sub(st.downAt)
		} else {
			e.Event, e.Reason, st.downAt = sub.kind+"-down", st.reason, st.since
		}
		if sub.kind == certificate {
			e.Event, e.State, e.Expires = certificate, status.CertificateValid, st.cert.NotAfter
			switch {
			case st.up:
			case st.cert.State == status.CertificateFailed:
				e.State = status.CertificateFailed
			default:
				e.State = stateExpiring
			}
			if !st.up && st.cert.Hint != "" {
				e.Reason = strings.TrimPrefix(e.Reason+": "+st.cert.Hint, ": ")
			}
		}
		st.toldUp = st.up
		events = append(events, e)
	}
	events = append(events, w.expiring(s, now)...)
	slices.SortFunc(events, func(a, b Event) int { return cmp.Or(cmp.Compare(a.Event, b.Event), cmp.Compare(a.Name, b.Name)) })
	return events
}

// services are those of a process, by their PUBLIC. Of several claims of one name there is the best, and of two that are alike the one
// of the key that had the best before.
func (w *watch) services(s status.Snapshot) map[string]status.Service {
	best := make(map[string]status.Service, len(s.Services))
	for _, v := range s.Services {
		if !w.knows(v.Key) {
			continue // its end is on its way
		}
		had, there := best[v.Public]
		if there && v.Rank() == had.Rank() {
			st := w.subjects[subject{"service", v.Public}]
			there = st == nil || st.key != v.Key
		} else if there {
			there = v.Rank() < had.Rank()
		}
		if !there {
			best[v.Public] = v
		}
	}
	return best
}

// expiring are the keys of which it is to be told now that they expire soon.
func (w *watch) expiring(s status.Snapshot, now time.Time) (events []Event) {
	before := w.keys
	w.keys = make(map[string]*expiry)
	for _, k := range s.Keys {
		if k.Expires.IsZero() {
			continue
		}
		x := before[k.Key]
		if x == nil || !x.at.Equal(k.Expires) { // it was given another end
			x = &expiry{at: k.Expires}
		}
		w.keys[k.Key] = x
		left, stage := k.Expires.Sub(now), 0
		for stage < len(warnings) && left <= warnings[stage] {
			stage++
		}
		if stage != x.stage {
			x.stage, x.since = stage, now
		}
		if left <= 0 || x.stage <= x.told || now.Sub(x.since) < w.after { // that it has ended is word of its bridge
			continue
		}
		x.told = x.stage
		events = append(events, Event{
			Event: keyExpiring, Name: k.Key, Since: x.since, Expires: k.Expires, was: left,
			Reason: "`reverser key edit` with --expires gives it more time",
		})
	}
	return events
}

// certificates are those of a process, by their hosts. Of several for one host there is the one that is not well.
func certificates(s status.Snapshot, now time.Time) map[string]status.Certificate {
	all := make(map[string]status.Certificate)
	for _, c := range s.Certificates {
		if had, there := all[c.Host]; !there || !unwell(had, now) {
			all[c.Host] = c
		}
	}
	return all
}

// unwell reports whether somebody has to look after a certificate: it could not be issued, or it ends soon and was not renewed in time.
func unwell(c status.Certificate, now time.Time) bool {
	switch {
	case c.State == status.CertificateFailed:
		return true
	case c.NotAfter.IsZero() || c.NotAfter.Sub(now) > lastDays:
		return false
	case c.RenewAt.IsZero(): // it does not come by itself
		return true
	case c.Error != "":
		return !now.Before(c.RenewAt)
	}
	return now.Sub(c.RenewAt) > renewal
}

// knows reports whether there is a key of that name.
func (w *watch) knows(key string) bool { return w.known == nil || w.known[key] }

func (w *watch) isUp(sub subject) bool {
	st := w.subjects[sub]
	return st != nil && st.up
}

// bridges are the bridges that a proxy knows, by their keys. A bridge knows itself: it is up when one of its links is.
func (w *watch) bridges(s status.Snapshot) map[subject]bool {
	up := make(map[subject]bool)
	for _, l := range s.Links {
		if !w.knows(l.Key) {
			continue
		}
		sub := subject{"bridge", l.Key}
		up[sub] = up[sub] || l.State == status.LinkUp
	}
	return up
}
