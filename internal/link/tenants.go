package link

import (
	"maps"
	"sync"
	"time"
)

// tenants slows the keys of a Host down, each by itself: all sessions of a key have one pace, and all its connections one rate.
type tenants struct {
	mu   sync.Mutex
	of   map[[16]byte]*tenant // guarded by mu, as tidy
	tidy int                  // how many may be known before those that were not seen lately are forgotten
}

// tenant is what is remembered of a key.
type tenant struct {
	pace  Pace
	seen  time.Time
	whole time.Time // when it will have its whole burst of connections again
}

// Connections of a key behind the proof. A bridge that comes back dials up to three times for each of its slots, 15 for the usual five, and never
// waits. The proof itself cannot be refused: which key it is for is known only behind the handshake.
const (
	connRate  = 50 // a second
	connBurst = 200
	connWait  = time.Second / 2 // how long one waits, at the most, before it is refused
)

// tenantForgotten is how long after its last use nothing needs to be known of a key: longer than its burst takes to be whole again.
const tenantForgotten = time.Minute

// minTenants is how many keys are remembered in any case.
const minTenants = 1024

// getLocked returns what is remembered of a key.
func (ts *tenants) getLocked(key [16]byte, now time.Time) *tenant {
	t := ts.of[key]
	if t == nil {
		if len(ts.of) >= max(ts.tidy, minTenants) {
			maps.DeleteFunc(ts.of, func(_ [16]byte, t *tenant) bool { return now.Sub(t.seen) > tenantForgotten })
			ts.tidy = 2 * len(ts.of)
		}
		if ts.of == nil {
			ts.of = make(map[[16]byte]*tenant)
		}
		t = new(tenant)
		ts.of[key] = t
	}
	t.seen = now
	return t
}

// keep is Pace.Keep of a key, for each part of the work that its bridges make. nil keeps no pace: a bridge does what its proxy says.
func (ts *tenants) keep(key [16]byte) {
	if ts == nil {
		return
	}
	ts.mu.Lock()
	t := ts.getLocked(key, time.Now())
	ts.mu.Unlock()
	t.pace.Keep(tenantCrowd)
}

// come counts a connection of a key and returns how long it has to wait. ok is false when it is refused.
func (ts *tenants) come(key [16]byte) (wait time.Duration, ok bool) {
	const each = time.Second / connRate
	now := time.Now()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.getLocked(key, now)
	if t.whole.Before(now) {
		t.whole = now
	}
	if wait = t.whole.Sub(now) - (connBurst-1)*each; wait > connWait {
		return 0, false
	}
	t.whole = t.whole.Add(each)
	return max(wait, 0), true
}
