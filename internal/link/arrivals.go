package link

import (
	"maps"
	"slices"
	"sync"

	"reverser/internal/auth"
)

// attemptsOfASlot is how many connections of a key may be under way to each slot: a bridge makes up to three attempts at once.
const attemptsOfASlot = 3

// arrivals are connections to a Host that are authenticated and not attached yet. A key that has too many loses the oldest one that has not said
// ATTACH, or else the oldest.
type arrivals struct {
	most int // of a key

	mu     sync.Mutex
	of     map[[16]byte][]*arrival // by key, the oldest first; guarded by mu, as closed
	closed bool
}

type arrival struct {
	conn *auth.Conn
	said bool // ATTACH
}

// enter admits a connection; false: the Host was closed.
func (a *arrivals) enter(conn *auth.Conn) bool {
	a.mu.Lock()
	mine, closed := a.of[conn.KeyID], a.closed
	var evicted *auth.Conn
	if !closed {
		if len(mine) >= a.most {
			i := max(slices.IndexFunc(mine, func(v *arrival) bool { return !v.said }), 0)
			evicted = mine[i].conn
			mine = slices.Delete(mine, i, i+1)
		}
		a.of[conn.KeyID] = append(mine, &arrival{conn: conn})
	}
	a.mu.Unlock()
	if evicted != nil {
		evicted.Close()
	}
	return !closed
}

// said notes that a connection has said ATTACH.
func (a *arrivals) said(conn *auth.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range a.of[conn.KeyID] {
		v.said = v.said || v.conn == conn
	}
}

// leave says that a connection is attached or gone.
func (a *arrivals) leave(conn *auth.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if mine := slices.DeleteFunc(a.of[conn.KeyID], func(v *arrival) bool { return v.conn == conn }); len(mine) > 0 {
		a.of[conn.KeyID] = mine
	} else {
		delete(a.of, conn.KeyID)
	}
}

// close ends them all, and lets no more in.
func (a *arrivals) close() {
	a.mu.Lock()
	a.closed = true
	all := slices.Concat(slices.Collect(maps.Values(a.of))...)
	a.mu.Unlock()
	for _, v := range all {
		v.conn.Close()
	}
}
