package traffic

import (
	"maps"
	"math/rand/v2"
	"time"

	"reverser/internal/relay"
	"reverser/internal/wire"
)

// When many keys have taken their halves no place is left. Then an idle user of a key that has many makes way for a user of a key that
// has few, so that a small key's user always gets in.
const (
	mostYielding = 8                      // users at once who were told to make way, and have not left yet; fewer where descriptors are few
	idleAfter    = 10 * time.Second       // how old a connection must be
	idleRate     = 16                     // bytes a second, over its life
	looksPerPart = 16                     // connections that are looked at in each part of the list
	lookAgain    = 100 * time.Millisecond // after nobody was found, for the same key
)

// makeRoom gives a user the place of an idle connection of another key, which it ends. It returns false when there is none.
func (c *Conns) makeRoom(a *Admission) bool {
	l, key := &c.ledger, a.account.key
	l.mu.Lock()
	look := l.places.byKey && len(l.places.leaving) < l.places.yields && time.Since(key.looked) >= lookAgain
	leaving := maps.Clone(l.places.leaving)
	l.mu.Unlock()
	if !look {
		return false
	}
	v := c.idlest(key, leaving)
	if v == nil {
		l.mu.Lock()
		key.looked = time.Now()
		l.mu.Unlock()
		return false
	}
	if !a.replace(v) {
		return false
	}
	v.endBy(&ending{relay.ReasonLimit, wire.CodeLimit})
	return true
}

// idlest returns the pair that is closed so that a user of key gets its place. It looks at a random sample of the pairs, in which the
// largest keys have the most. Among the idle ones it prefers those of the key with the most connections, then the one that moved the
// fewest bytes for its age. A key counts only if it has at least twice as many as key has with the new user, and a pair only if it is
// not leaving already. It returns nil when the sample has no such pair.
func (c *Conns) idlest(key *Account, leaving map[*Admission]bool) (best *Admission) {
	now := time.Now()
	var most int64
	var least float64
	first := rand.IntN(len(c.roster.shards))
	for i := range c.roster.shards {
		var some [looksPerPart]*Admission
		for _, v := range c.roster.shards[(first+i)%len(c.roster.shards)].some(some[:0]) {
			held, age := v.account.key.held.Load(), now.Sub(v.since)
			if leaving[v] || v.account.key == key || held < 2*(key.held.Load()+1) || held < most || age < idleAfter {
				continue
			}
			sent, received := v.pair.Counts()
			rate := float64(sent+received) / age.Seconds()
			if rate <= idleRate && (best == nil || held > most || rate < least) {
				best, most, least = v, held, rate
			}
		}
	}
	return best
}

// some appends as many pairs as there is room for.
func (sh *shard) some(to []*Admission) []*Admission {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	looks := 4 * cap(to) // not all are pairs
	for a := range sh.all {
		if looks--; looks < 0 || len(to) == cap(to) {
			break
		}
		if a.phase == bound {
			to = append(to, a)
		}
	}
	return to
}

// replace charges a and gives it the place of v, which is told to go. Until v has gone, its descriptor counts as one of those that are
// kept for this, so no limit is exceeded. It returns false when v has left already, too many others are leaving, or a limit of a's accounts was
// reached meanwhile.
func (a *Admission) replace(v *Admission) bool {
	l := &a.conns.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.places
	if len(p.leaving) >= p.yields || p.leaving[v] || !v.charged || !v.placed {
		return false
	}
	g, err := a.account.withinLocked(a)
	if err != nil {
		return false
	}
	l.chargeLocked(a, g)
	p.leaving[v] = true
	v.placed, a.placed = false, true
	p.count(holderOf(v.account.key, v.client), -1)
	p.count(holderOf(a.account.key, a.client), 1)
	return true
}
