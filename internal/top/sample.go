package top

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"reverser/internal/escape"
	"reverser/internal/status"
	"reverser/internal/units"
)

// sample is the state of the process at one moment, with how fast it moves bytes.
type sample struct {
	at             time.Time
	snap           status.Snapshot
	sent, received float64 // bytes a second, of all
	connections    int
	lists          [kinds][]item
	totals         map[string]counts // by what they are counted for
}

// counts are bytes since some beginning.
type counts struct{ sent, received uint64 }

// kind is what a list has.
type kind int

const (
	pairs kind = iota
	services
	links
	kinds
)

// item is one line of a list.
type item struct {
	id             string
	name           string    // what it is sorted by, and looked for in
	fault          bool      // of a service or link that is not up: such ones come first
	sent, received float64   // bytes a second
	total          uint64    // bytes since the beginning
	since          time.Time // of that; services have none
	connections    int       // of a service
	at             int       // its place in the snapshot's list
}

// take makes a sample of a snapshot. before is the one before it, without a snapshot at first.
func take(at time.Time, snap status.Snapshot, before sample) sample {
	// The process's own clock says what lies between two snapshots, however long they were under way.
	seconds := snap.UptimeSeconds - before.snap.UptimeSeconds
	if before.totals != nil && seconds == 0 { // the same one
		before.at = at
		return before
	}
	s := sample{at: at, snap: snap, totals: make(map[string]counts, len(snap.Pairs)+len(snap.Services)+len(snap.Keys))}
	// A process that was started meanwhile counts from zero.
	first := before.totals == nil || seconds < 0
	rate := func(what string, sent, received uint64, since time.Time) (float64, float64) {
		s.totals[what] = counts{sent, received}
		was, known := before.totals[what]
		switch {
		case first || sent < was.sent || received < was.received:
			return 0, 0
		case !known && since.Before(before.at.Add(-time.Minute)): // it has counted for longer than we have looked
			return 0, 0
		}
		return float64(sent-was.sent) / seconds, float64(received-was.received) / seconds
	}
	ofKey := make(map[string]item, len(snap.Keys))
	for _, k := range snap.Keys {
		sent, received := rate("key "+k.Key, k.Sent, k.Received, before.at)
		ofKey[k.Key] = item{sent: sent, received: received, total: k.Sent + k.Received, connections: k.Connections}
		s.sent += sent
		s.received += received
		s.connections += k.Connections
	}
	for i, p := range snap.Pairs {
		it := item{id: p.ID, at: i, name: p.Service + " " + p.Client + " " + p.Target, since: p.Since, total: p.Sent + p.Received}
		it.sent, it.received = rate("pair "+p.ID, p.Sent, p.Received, p.Since)
		s.lists[pairs] = append(s.lists[pairs], it)
	}
	for i, v := range snap.Services {
		id := "service " + v.Public + " " + v.Key
		it := item{id: id, at: i, name: v.Public + " " + v.Target + " " + v.Key, total: v.Sent + v.Received, connections: v.Connections, fault: v.State != status.ServiceUp}
		it.sent, it.received = rate(id, v.Sent, v.Received, before.at)
		s.lists[services] = append(s.lists[services], it)
	}
	several := make(map[string]int)
	for _, l := range snap.Links {
		several[l.Key]++
	}
	for i, l := range snap.Links {
		var it item
		if several[l.Key] == 1 { // of several, it is not known which carried what
			it = ofKey[l.Key]
		}
		it.id, it.at, it.name, it.since = "link "+l.Key+" "+l.Bridge+" "+l.Remote, i, l.Key+" "+l.Remote+" "+l.Bridge, l.Since
		it.fault = l.State != status.LinkUp
		s.lists[links] = append(s.lists[links], it)
	}
	return s
}

// up is how many of a list are as they should be.
func (s sample) up(k kind) (n int) {
	for _, it := range s.lists[k] {
		if !it.fault {
			n++
		}
	}
	return n
}

// order is what a list is sorted by.
type order int

const (
	byRate order = iota
	byTotal
	byAge // services, which have none, by their connections
	byName
	orders
)

func (o order) of(k kind) string {
	switch {
	case o == byRate:
		return "rate"
	case o == byTotal:
		return "total"
	case o == byName:
		return "name"
	case k == services:
		return "connections"
	}
	return "age"
}

// arrange returns the items of a list that have a text in them, in an order.
func arrange(list []item, o order, reversed bool, filter string) []item {
	kept := make([]item, 0, len(list))
	filter = strings.ToLower(filter)
	for _, it := range list {
		if filter == "" || strings.Contains(strings.ToLower(escape.Text(it.name)), filter) {
			kept = append(kept, it)
		}
	}
	slices.SortStableFunc(kept, func(a, b item) int {
		if a.fault != b.fault {
			if a.fault {
				return -1
			}
			return 1
		}
		by := 0
		switch o {
		case byRate:
			by = cmp.Compare(b.sent+b.received, a.sent+a.received)
		case byTotal:
			by = cmp.Compare(b.total, a.total)
		case byAge:
			by = cmp.Or(a.since.Compare(b.since), cmp.Compare(b.connections, a.connections))
		}
		if by == 0 {
			by = cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.id, b.id))
		}
		if reversed {
			by = -by
		}
		return by
	})
	return kept
}

// troubles are what is wrong with the process, in lines, the worst first.
func (s sample) troubles() (lines []string) {
	snap := s.snap
	say := func(parts ...string) { lines = append(lines, strings.Join(parts, "")) }
	if snap.Stopping {
		say("the process is stopping")
	}
	if u := snap.Unstored; u != nil {
		say("NOT STORED: ", u.What(), ": ", u.Error)
	}
	for _, fault := range snap.Faults {
		say("FAULT: ", fault)
	}
	if snap.Role == "bridge" && len(s.lists[links]) == 0 {
		say("there is no link")
	}
	for _, p := range snap.Pressure {
		say("short of ", p.What, ": ", p.Hint)
	}
	for _, l := range snap.Links {
		if l.State != status.LinkUp {
			say("link ", l.Key, " to ", l.Remote, " is ", l.State)
		}
	}
	for _, v := range snap.Services {
		if v.State != status.ServiceUp {
			say(v.Public, " is ", v.State, colon(v.Why()))
		}
	}
	for _, k := range snap.Keys {
		switch left := k.Expires.Sub(s.at); {
		case k.Expires.IsZero() || left > status.Soon:
		case k.Expired:
			say("key ", k.Key, " expired ", units.Span(-left), " ago")
		default:
			say("key ", k.Key, " expires in ", units.Span(left))
		}
	}
	for _, c := range snap.Certificates {
		switch {
		case c.State == status.CertificateFailed:
			say("certificate of ", c.Host, " failed", colon(c.Error))
		case c.Error == "":
			if c.EndsSoon(s.at) {
				say("certificate of ", c.Host, " expires in ", units.Span(c.NotAfter.Sub(s.at)))
			}
		case c.State == status.CertificateValid:
			say("certificate of ", c.Host, " was not renewed", colon(c.Error))
		default:
			say("certificate of ", c.Host, " has not come yet", colon(c.Error))
		}
	}
	if r := snap.Reload; r != nil && r.Error != "" {
		say("the last reload was refused: ", strings.ReplaceAll(r.Error, "\n", "; "))
	}
	if u := snap.Usage; u != nil && u.Error != "" {
		say("usage cannot be stored, and is kept in memory: ", u.Error)
	}
	if u := snap.Usage; u != nil && u.PutAside != "" {
		say("the file of usage was damaged and put aside as ", u.PutAside, colon(u.Damage))
	}
	if l := snap.AccessLog; l != nil && l.Error != "" {
		say("the access log cannot be written: ", l.Error)
	}
	return lines
}

func colon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}
