package metrics

import (
	"cmp"
	"maps"
	"slices"

	"reverser/internal/escape"
	"reverser/internal/status"
)

// labels are the services with series of their own.
//
// A service gets its label when it is up, or was and its bridge is away, if there is room and its key has less than its share: a quarter of
// what is free. So one key leaves room for all others, and what it asks for in vain takes none. A service that nobody asks for any more
// keeps its series until another needs the place.
//
// No counter becomes less when a service loses its label or gets it again: see counted.
type labels struct {
	most int
	held map[string]*label        // by the name
	now  uint64                   // scrapes
	last map[string]*status.Tally // what services had counted at the last one

	// counted is what a service that has a label counted as "other", and what one that has lost it counted under its own name. The rest of
	// what it counted belongs to the series that it is in at present.
	counted map[string]*status.Tally
}

type label struct {
	key  string // whose share it is of; "" at a bridge, where there is one
	seen uint64 // the scrape at which somebody asked for the service, or had a connection to it
}

// share is the part of the free labels that one key may have.
const share = 4

// update is how services are at present. It gives labels to those that get one, and returns which of those with a label are up.
func (l *labels) update(services []status.Service, sums map[string]*status.Tally) (ups map[string]bool) {
	if l.held == nil {
		l.held, l.counted = make(map[string]*label), make(map[string]*status.Tally)
	}
	l.now++
	claims := make(map[string]*status.Service, len(services)) // by the name, the best
	var order []string
	for i := range services {
		svc := &services[i]
		name := escape.Text(svc.Public)
		had, there := claims[name]
		if !there || svc.Rank() > had.Rank() {
			claims[name] = svc
		}
		if !there && l.held[name] == nil {
			order = append(order, name)
		}
	}

	ups = make(map[string]bool)
	living := make(map[string]int) // by key
	used := 0
	for name, h := range l.held {
		svc, claimed := claims[name]
		if claimed {
			ups[name] = svc.Rank() == status.RankUp
		}
		if claimed = claimed && svc.State != status.ServiceDenied; claimed {
			h.key = svc.Key
		}
		if t := sums[name]; claimed || t != nil && t.Open > 0 {
			h.seen = l.now
			living[h.key]++
			used++
		}
	}
	var gone []string // those to be taken from, the one that is gone for longest first
	for _, name := range order {
		svc := claims[name]
		if used >= l.most {
			break
		}
		if svc.Rank() < status.RankAway || svc.Key != "" && share*living[svc.Key] >= l.most-used {
			continue
		}
		if len(l.held) >= l.most {
			if gone == nil {
				gone = l.gone()
			}
			l.turn(gone[0])
			delete(l.held, gone[0])
			delete(ups, gone[0]) // a key may be denied it
			gone = gone[1:]
		}
		l.turn(name)
		l.held[name] = &label{svc.Key, l.now}
		living[svc.Key]++
		used++
		ups[name] = svc.Rank() == status.RankUp
	}
	return ups
}

// gone are the services with a label that were not seen at this scrape.
func (l *labels) gone() []string {
	var list []string
	for name, h := range l.held {
		if h.seen < l.now {
			list = append(list, name)
		}
	}
	slices.SortFunc(list, func(a, b string) int { return cmp.Or(cmp.Compare(l.held[a].seen, l.held[b].seen), cmp.Compare(a, b)) })
	return list
}

// turn is when a service gets a label or loses it: what it has counted since the last scrape belongs to the other series.
func (l *labels) turn(name string) {
	if last := l.last[name]; last != nil {
		t := less(last, l.counted[name])
		l.counted[name] = &t
	}
}

// split is what is shown, by label.
func (l *labels) split(sums map[string]*status.Tally) map[string]*status.Tally {
	shown := make(map[string]*status.Tally, len(l.held)+1)
	rest := new(status.Tally)
	l.last = sums
	for name, sum := range sums {
		before := l.counted[name]
		t := less(sum, before)
		if l.held[name] == nil {
			shown[other] = rest
			rest.Open += t.Open
			addTo(rest, &t)
			continue
		}
		shown[name] = &t
		if before != nil {
			shown[other] = rest
			addTo(rest, before)
		}
	}
	return shown
}

// less is what was counted since.
func less(t, since *status.Tally) status.Tally {
	if since == nil {
		return *t
	}
	d := status.Tally{Open: t.Open, Sent: t.Sent - since.Sent, Received: t.Received - since.Received, Ended: maps.Clone(t.Ended), Refused: maps.Clone(t.Refused)}
	for reason := range d.Ended {
		d.Ended[reason] -= since.Ended[reason]
	}
	for reason := range d.Refused {
		d.Refused[reason] -= since.Refused[reason]
	}
	return d
}

// addTo adds what never becomes less.
func addTo(sum, t *status.Tally) {
	sum.Sent += t.Sent
	sum.Received += t.Received
	add(&sum.Ended, t.Ended)
	add(&sum.Refused, t.Refused)
}

func add(to *map[string]uint64, n map[string]uint64) {
	if *to == nil && len(n) > 0 {
		*to = make(map[string]uint64, len(n))
	}
	for k, v := range n {
		(*to)[k] += v
	}
}
