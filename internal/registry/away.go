package registry

import (
	"cmp"
	"sync"

	"reverser/internal/grammar"
)

// maxAway is how many names whose bridges went away are remembered, and maxAwayEach those of a key without a limit of its own.
const (
	maxAway     = 16_384
	maxAwayEach = maxAway / 4
)

// hoursAway is for how long they are.
const hoursAway = 24

// away remembers http/ and https/ names whose bridges went away: their sessions ended, no order took the names, and nobody claims them. Who
// asks for one is told to come again, and not that there is nothing. A name is forgotten when somebody claims it, when its key may not
// have it any more, and after hoursAway. A name for which there is no room is not remembered. A proxy that starts knows of none.
type away struct {
	mu    sync.RWMutex
	names map[grammar.Public]absence // guarded by mu, as all below
	keys  map[KeyID]int              // how many names of a key there are
	hour  int                        // the present one, since the start
}

// absence is whose a name was, and in which hour its bridge went away.
type absence struct {
	key  KeyID
	hour int
}

func newAway() *away {
	return &away{names: make(map[grammar.Public]absence), keys: make(map[KeyID]int)}
}

// remember adds a name of a key.
func (a *away) remember(pub grammar.Public, key *Key) {
	if pub.Kind != grammar.KindHTTP && pub.Kind != grammar.KindHTTPS {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.names) < maxAway && a.keys[key.ID] < cmp.Or(key.MaxServices, maxAwayEach) {
		a.names[pub] = absence{key.ID, a.hour}
		a.keys[key.ID]++
	}
}

// forget forgets a name, if it is there.
func (a *away) forget(pub grammar.Public) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetLocked(pub)
}

func (a *away) forgetLocked(pub grammar.Public) {
	was, there := a.names[pub]
	if !there {
		return
	}
	delete(a.names, pub)
	if a.keys[was.key]--; a.keys[was.key] == 0 {
		delete(a.keys, was.key)
	}
}

// tidy forgets what the policy does not allow, and what is too old now that so many hours have passed. It reports whether there was any.
func (a *away) tidy(p *policy, hours int) (did bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hour += hours
	for pub, was := range a.names {
		if key := p.keys[was.key]; key == nil || !key.Allow.Permits(pub) || a.hour-was.hour >= hoursAway {
			a.forgetLocked(pub)
			did = true
		}
	}
	return did
}

// Away reports whether the bridge of a http/ or https/ name went away, and nobody serves the name since.
func (r *Registry) Away(pub grammar.Public) bool {
	a := r.core.away
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, there := a.names[pub]
	return there
}

// AllAway returns all such names, with their keys.
func (r *Registry) AllAway() map[grammar.Public]KeyID {
	a := r.core.away
	a.mu.RLock()
	defer a.mu.RUnlock()
	all := make(map[grammar.Public]KeyID, len(a.names))
	for pub, was := range a.names {
		all[pub] = was.key
	}
	return all
}
