package traffic

import (
	"container/list"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/relay"
	"reverser/internal/share"
	"reverser/internal/sys"
)

// Account counts the connections of a service or key. What it has counted stays when they are over, and never becomes less.
//
// A pair adds its bytes to its service's account, chunk by chunk. A key's account adds up its services' when it is read.
type Account struct {
	Key     [16]byte
	Service string // canonical PUBLIC; "" in a key's account

	ledger *ledger
	key    *Account // nil in a key's account

	sent, received atomic.Uint64
	pairs          atomic.Int64  // at present
	total          atomic.Uint64 // pairs that were made
	turnedAway     atomic.Uint64 // connections that did not become a pair
	members        members       // of a key
	removed        atomic.Bool   // of a key: there is none any more
	held           atomic.Int64  // of a key: places that its users have; changes under ledger.mu
	target         target        // of a service: whether it answers
	unlisted       bool          // the key has too many services: what this one counted goes to the key when a pair is over

	// Guarded by ledger.mu.
	now      int // admissions: pairs, and what is on the way to one
	limits   Limits
	ended    map[relay.Reason]uint64
	refusals map[Refusal]uint64
	others   guest               // the account of those that have none
	services map[string]*Account // of a key
	refusal  notice              // for the log
	looked   time.Time           // of a key: when nobody was found to make way
	turns    turns               // of a key
	notices  notices             // of a key: for the log
}

// Limits are what an account allows; 0: no limit.
type Limits struct {
	Connections int // at once
	PerClient   int // of one client at once: of an IPv4 address, of a network of 64 bits in IPv6
}

// LimitError says that a connection would be one too many.
type LimitError struct {
	What string // whose limit it is: "service", "key" or "client"
	Max  int
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("limit of the %s: at most %d connections at once", e.What, e.Max)
}

// Refusal says why a connection did not become a pair.
type Refusal string

// The refusals.
const (
	RefusedDrain       Refusal = "drain"              // the process was stopping
	RefusedFull        Refusal = "descriptors"        // as many connections as the descriptor limit allows
	RefusedShare       Refusal = "share"              // the key's or client's share of the descriptors is used up
	RefusedDials       Refusal = "dials"              // too many targets were being dialled
	RefusedLimit       Refusal = "limit"              // a limit of an account
	RefusedAway        Refusal = "away"               // the bridge was away for too long, or too many waited for it
	RefusedDrained     Refusal = "drained"            // an operator lets nobody in
	RefusedRemoved     Refusal = "service-removed"    // the service was removed meanwhile
	RefusedLeft        Refusal = "client-left"        // the client did not wait
	RefusedHandshake   Refusal = "handshake"          // the client's TLS handshake failed, or was not over in time
	RefusedTarget      Refusal = "target-refused"     // the target refused the connection
	RefusedUnreachable Refusal = "target-unreachable" // the target did not answer in time, or there is no way to it
	RefusedHeader      Refusal = "proxy-protocol"     // a balancer did not say by a header whose connection it is
)

func refusal(err error) Refusal {
	switch err {
	case ErrFull:
		return RefusedFull
	case ErrKeyShare, ErrClientShare:
		return RefusedShare
	case ErrDraining:
		return RefusedDrain
	}
	return RefusedLimit
}

// Usage is what an account counted.
type Usage struct {
	Admitted       int    // at present: pairs, and what is on the way to one
	Pairs          int    // at present
	Total          uint64 // pairs that were made
	Sent, Received uint64 // bytes from clients to targets, and back
	Ended          map[relay.Reason]uint64
	Refused        map[Refusal]uint64
}

// Usage returns what was counted so far.
func (a *Account) Usage() Usage {
	a.ledger.mu.Lock()
	defer a.ledger.mu.Unlock()
	u := Usage{Admitted: a.now, Ended: make(map[relay.Reason]uint64), Refused: make(map[Refusal]uint64)}
	a.addLocked(&u)
	for _, s := range a.services {
		s.addLocked(&u)
	}
	return u
}

func (a *Account) addLocked(u *Usage) {
	u.Pairs += int(a.pairs.Load())
	u.Total += a.total.Load()
	u.Sent += a.sent.Load()
	u.Received += a.received.Load()
	for r, n := range a.ended {
		u.Ended[r] += n
	}
	for r, n := range a.refusals {
		u.Refused[r] += n
	}
}

// addPair counts pairs that are there at present.
func (a *Account) addPair(n int64) {
	a.pairs.Add(n)
	if a.unlisted {
		a.key.pairs.Add(n)
	}
}

// SetLimits says what the account allows from now on. Connections that are there already stay.
func (a *Account) SetLimits(l Limits) {
	a.ledger.mu.Lock()
	defer a.ledger.mu.Unlock()
	a.limits = l
}

// SetKeys says which keys there are from now on, and what each allows. Connections that are there already stay. The account of a key that
// was removed is dropped if it counted nothing. Otherwise it is kept, since no counter may become less.
func (c *Conns) SetKeys(limits map[[16]byte]Limits) {
	l := &c.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	l.present = maps.Clone(limits)
	unused := make(map[*Account]bool)
	for id, k := range l.keys {
		_, there := limits[id]
		before := k.removed.Swap(!there)
		k.limits = limits[id]
		// Users may be on the way to a service of a key that has just been removed: it is left for the next time.
		if !there && (before || len(k.services) == 0) && k.unusedLocked() {
			unused[k] = true
		}
	}
	l.dropLocked(unused)
	for id, most := range limits {
		if most != (Limits{}) {
			l.keyLocked(id).limits = most
		}
	}
	l.places.alone = len(limits) == 1
	l.places.unblockLocked()
}

// unusedLocked reports whether the account of a key, and those of its services, counted nothing. ledger.mu is held.
func (k *Account) unusedLocked() bool {
	if k.now != 0 || k.held.Load() != 0 || k.total.Load() != 0 || k.turnedAway.Load() != 0 {
		return false
	}
	for _, s := range k.services {
		if s.total.Load() != 0 || s.turnedAway.Load() != 0 || s.refusal.due {
			return false
		}
	}
	return true
}

// dropLocked forgets the accounts of those keys. ledger.mu is held.
func (l *ledger) dropLocked(keys map[*Account]bool) {
	if len(keys) == 0 {
		return
	}
	services := false
	for k := range keys {
		delete(l.keys, k.Key)
		services = services || len(k.services) > 0
	}
	l.tenants = without(l.tenants, func(k *Account) bool { return keys[k] })
	if !services {
		return
	}
	l.services = without(l.services, func(s *Account) bool { return keys[s.key] })
	for _, g := range slices.Clone(l.listed) {
		if keys[g.service.key] {
			l.evictLocked(g)
		}
	}
}

// without returns a copy of a list without those for which drop returns true.
func without(list []*Account, drop func(*Account) bool) []*Account {
	left := make([]*Account, 0, len(list))
	for _, a := range list {
		if !drop(a) {
			left = append(left, a)
		}
	}
	return left
}

// charge counts a connection that arrives for the service, and gives it a place, unless it would be one too many. With a waiter the
// place is to come.
func (a *Account) charge(ad *Admission, patience Patience) (*waiter, error) {
	l := a.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	g, err := a.withinLocked(ad)
	if err != nil {
		return nil, err
	}
	h := holderOf(a.key, ad.client)
	if patience == Wait {
		l.awaitLocked()
	}
	if err = l.places.take(h); err == nil {
		l.chargeLocked(ad, g)
		ad.placed = true
		return nil, nil
	}
	if err == ErrClientShare || patience == NoWait {
		return nil, err
	}
	w, err := l.waitLocked(h, err)
	if w != nil {
		l.chargeLocked(ad, g)
	}
	return w, err
}

// guestLocked returns the account of a connection's client, unless the connection would be more than a limit allows. ledger.mu is held.
func (a *Account) withinLocked(ad *Admission) (*guest, error) {
	switch k := a.key; {
	case a.limits.Connections > 0 && a.now >= a.limits.Connections:
		return nil, &LimitError{"service", a.limits.Connections}
	case k.limits.Connections > 0 && k.now >= k.limits.Connections:
		return nil, &LimitError{"key", k.limits.Connections}
	}
	g := a.ledger.guestLocked(a, ad.client, true)
	if most := a.limits.PerClient; most > 0 && g.now >= most && g != &a.others {
		return nil, &LimitError{"client", most}
	}
	return g, nil
}

// force counts a connection whatever the limits say.
func (a *Account) force(ad *Admission) {
	l := a.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	l.chargeLocked(ad, l.guestLocked(a, ad.client, true))
	l.places.force(holderOf(a.key, ad.client))
	ad.placed = true
}

func (l *ledger) chargeLocked(ad *Admission, g *guest) {
	ad.account.now++
	ad.account.key.now++
	l.takeLocked(g)
	ad.guest, ad.charged = g, true
}

// giveBack is the end of what charge counted. reason is "" when no pair came of it.
func (a *Account) giveBack(ad *Admission, reason relay.Reason, sent, received uint64) {
	a.uncharge(ad, reason, sent, received)
	if ad.placed {
		a.ledger.places.pool.Give(sys.ForUsers) // without the lock: it calls those who wait
	}
}

func (a *Account) uncharge(ad *Admission, reason relay.Reason, sent, received uint64) {
	l := a.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	a.now--
	a.key.now--
	ad.charged = false
	if len(l.places.leaving) > 0 {
		delete(l.places.leaving, ad)
	}
	if ad.placed {
		l.places.count(holderOf(a.key, ad.client), -1)
	}
	if reason != "" {
		if a.ended == nil {
			a.ended = make(map[relay.Reason]uint64)
		}
		a.ended[reason]++
		if a.unlisted {
			a.key.addLost(reason, sent, received)
		}
		ad.guest.total++
	}
	l.giveLocked(ad.guest)
}

// refused counts a connection that did not become a pair.
func (a *Account) refused(why Refusal, client netip.AddrPort) {
	a.ledger.mu.Lock()
	defer a.ledger.mu.Unlock()
	for _, to := range []*Account{a, a.key} {
		if to == a.key && !a.unlisted {
			break
		}
		if to.refusals == nil {
			to.refusals = make(map[Refusal]uint64)
		}
		to.refusals[why]++
		to.turnedAway.Add(1)
	}
	a.ledger.guestLocked(a, client, false).refused++
}

// TurnAway counts a connection that was never admitted, of a client that is not known.
func (a *Account) TurnAway(why Refusal) { a.refused(why, netip.AddrPort{}) }

// addLost counts a pair of an unlisted service at its key. ledger.mu is held.
func (a *Account) addLost(reason relay.Reason, sent, received uint64) {
	if a.ended == nil {
		a.ended = make(map[relay.Reason]uint64)
	}
	a.ended[reason]++
	a.total.Add(1)
	a.sent.Add(sent)
	a.received.Add(received)
}

// maxServices is how many services of one key have an account that is kept. Further ones have it as long as somebody holds it.
const maxServices = 16_384

// ledger holds all accounts of a process.
type ledger struct {
	mu     sync.Mutex
	keys   map[[16]byte]*Account // guarded by mu, as all below
	guests map[guestID]*guest
	listed []*guest   // the same, for whoever reads them part by part
	idle   *list.List // of *guest: those without a connection, the one that is so for longest first
	most   int        // guests

	present map[[16]byte]Limits // the keys that there are; nil: nobody has said so

	// Appended to or replaced, never changed: whoever has a copy of the slice may read it without the lock.
	tenants  []*Account // of keys
	services []*Account // of services, but for unlisted ones

	places places
}

// guest is the account of one client at one service. A pair adds its bytes to it as they move.
type guest struct {
	guestID
	sent, received atomic.Uint64

	// Guarded by ledger.mu.
	now            int           // admissions
	total, refused uint64        // pairs that are over; connections that did not become one
	place          int           // in ledger.listed
	idle           *list.Element // in ledger.idle; nil: it has a connection, or is one for others
}

type guestID struct {
	service *Account
	block   netip.Prefix
}

func (l *ledger) init(clients int) {
	l.keys, l.guests, l.idle, l.most = make(map[[16]byte]*Account), make(map[guestID]*guest), list.New(), clients
}

func (l *ledger) key(id [16]byte) *Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keyLocked(id)
}

func (l *ledger) findKey(id [16]byte) *Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keys[id]
}

func (l *ledger) keyLocked(id [16]byte) *Account {
	k := l.keys[id]
	if k == nil {
		k = &Account{Key: id, ledger: l, services: make(map[string]*Account)}
		_, there := l.present[id]
		k.removed.Store(l.present != nil && !there)
		l.keys[id] = k
		l.tenants = append(l.tenants, k)
	}
	return k
}

func (l *ledger) service(key [16]byte, name string) *Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.keyLocked(key)
	if a := k.services[name]; a != nil {
		return a
	}
	a := &Account{Key: key, Service: name, ledger: l, key: k, unlisted: len(k.services) >= maxServices}
	a.others.service = a
	if !a.unlisted {
		k.services[name] = a
		l.services = append(l.services, a)
	}
	return a
}

func (l *ledger) find(key [16]byte, name string) *Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.keys[key]
	if k == nil {
		return nil
	}
	return k.services[name]
}

// guestLocked returns the account of a client, and makes one if make is set and there is room: the client that is without a
// connection for longest loses its account to it.
func (l *ledger) guestLocked(a *Account, client netip.AddrPort, make bool) *guest {
	if !client.IsValid() {
		return &a.others
	}
	id := guestID{a, share.Block(client.Addr())}
	if g := l.guests[id]; g != nil {
		return g
	}
	if !make {
		return &a.others
	}
	if len(l.guests) >= l.most {
		oldest := l.idle.Front()
		if oldest == nil {
			return &a.others
		}
		l.evictLocked(oldest.Value.(*guest))
	}
	g := &guest{guestID: id, place: len(l.listed)}
	g.idle = l.idle.PushBack(g)
	l.listed = append(l.listed, g)
	l.guests[id] = g
	return g
}

// evictLocked drops the account of a client without a connection. What it counted goes to the account of the others.
func (l *ledger) evictLocked(g *guest) {
	l.idle.Remove(g.idle)
	delete(l.guests, g.guestID)
	last := len(l.listed) - 1
	l.listed[g.place], l.listed[last].place = l.listed[last], g.place
	l.listed[last] = nil
	l.listed = l.listed[:last]
	o := &g.service.others
	o.total += g.total
	o.refused += g.refused
	o.sent.Add(g.sent.Load())
	o.received.Add(g.received.Load())
}

func (l *ledger) takeLocked(g *guest) {
	g.now++
	if g.idle != nil {
		l.idle.Remove(g.idle)
		g.idle = nil
	}
}

func (l *ledger) giveLocked(g *guest) {
	g.now--
	if g.now == 0 && g != &g.service.others {
		g.idle = l.idle.PushBack(g)
	}
}
