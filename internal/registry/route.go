package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/wire"
)

// Hold is how long a newcomer waits for a bridge that is away, and MaxHeld how many of one name do. MaxHeldEach is how many requests of one
// connection are among them when half of the places are taken: a few connections of HTTP/2 would take all of them.
const (
	Hold        = 10 * time.Second
	MaxHeld     = 256
	MaxHeldEach = 8
)

const lookEvery = time.Second

// Errors of Route.Take.
var (
	ErrAway    = errors.New("the bridge is away")
	ErrRemoved = errors.New("the service was removed")
	ErrLeft    = errors.New("the client has left")
	ErrDrained = errors.New("the service is drained: it takes no new users")
)

// Way leads to a bridge; a *link.Link is one. A registry calls it without its lock.
type Way interface {
	Open(wire.Open) (*link.Stream, error)
	Up() bool // reports whether a newcomer would arrive at once, as far as this machine knows
	Marks() []wire.Mark
}

// Route is where the users of a name go. It stays the same for as long as the same key or group has the name.
type Route struct {
	Public grammar.Public
	Key    KeyID // that has the name; of a group the one that had it first

	state atomic.Pointer[routeState]
	held  atomic.Int32 // users that wait for an offer
	shut  atomic.Bool  // by an operator: nobody new is let in
	slot  sync.Once
	data  any // guarded by slot
}

// routeState is never changed.
type routeState struct {
	offers  []*Offer
	before  *grammar.ProxyOptions // without offers: those of the first one that there was last; nil: there was none
	removed bool
	away    bool          // removed is true, because the bridge is away: no order took the name
	changed chan struct{} // closed when there is another state, or an offer of this one may be up
}

func newRoute(pub grammar.Public, key KeyID) *Route {
	rt := &Route{Public: pub, Key: key}
	rt.state.Store(&routeState{changed: make(chan struct{})})
	return rt
}

// Data returns what the caller keeps with the route, such as an account. The first call makes it.
func (rt *Route) Data(make func() any) any {
	rt.slot.Do(func() { rt.data = make() })
	return rt.data
}

// set, remove and wake change the state. The caller holds Registry.mu. They never block, because try reads the state without a lock.
func (rt *Route) set(offers []*Offer) {
	if st := rt.state.Load(); !slices.Equal(st.offers, offers) {
		rt.next(&routeState{offers: offers, before: rt.Options()})
	}
}

// remove ends the route. away tells those who wait for it why.
func (rt *Route) remove(away bool) { rt.next(&routeState{removed: true, away: away}) }

func (rt *Route) wake() {
	if st := rt.state.Load(); !st.removed && rt.held.Load() > 0 {
		rt.next(&routeState{offers: st.offers, before: st.before})
	}
}

// drain has nobody new let in, or ends that. Those who wait are told.
func (rt *Route) drain(yes bool) {
	if rt.shut.Swap(yes) != yes {
		rt.wake()
	}
}

// Drained reports whether nobody new is let in.
func (rt *Route) Drained() bool { return rt.shut.Load() }

func (rt *Route) next(st *routeState) {
	st.changed = make(chan struct{})
	close(rt.state.Swap(st).changed)
}

// Up reports whether a newcomer would be served at once.
func (rt *Route) Up() bool {
	return slices.ContainsFunc(rt.state.Load().offers, func(o *Offer) bool { return !o.attrs.Load().Drained && o.way.Up() })
}

// Options are those of the offer that came first, which count for all of them where no offer was chosen yet. While a bridge is away,
// or another one takes its place, they stay what they were: who waits is asked for a password as before. nil: there was no offer yet.
func (rt *Route) Options() *grammar.ProxyOptions {
	st := rt.state.Load()
	if len(st.offers) > 0 {
		return st.offers[0].Options()
	}
	return st.before
}

// Target is what the bridge of the first offer says that it connects users to; "": there is none.
func (rt *Route) Target() string {
	if offers := rt.state.Load().offers; len(offers) > 0 {
		return offers[0].Target()
	}
	return ""
}

// Ways yields the ways to the bridges that serve the name.
func (rt *Route) Ways(yield func(Way) bool) {
	for _, o := range rt.state.Load().offers {
		if !yield(o.way) {
			return
		}
	}
}

// User is a connection that wants to be served.
type User struct {
	Open wire.Open   // without the service
	Left func() bool // reports whether the user has left; asked now and then while they wait
	In   bool        // the user was let in before: that a name is drained does not concern them
	Held *Held       // of the connection, if several users come on it
}

// Held counts the users of one connection who wait for a bridge.
type Held struct{ n atomic.Int32 }

// Taken is a user's place at an offer.
type Taken struct {
	Stream *link.Stream
	Offer  *Offer
}

// Leave gives the place back.
func (t Taken) Leave() { t.Offer.users.Add(-1) }

// Take opens a stream for a user. While no offer is up it waits up to Hold for one.
func (rt *Route) Take(ctx context.Context, u User) (Taken, error) {
	if rt.Drained() && !u.In {
		return Taken{}, ErrDrained
	}
	t, changed, err := rt.try(u.Open)
	if changed == nil {
		return t, err
	}
	defer rt.held.Add(-1)
	held := rt.held.Add(1)
	if held > MaxHeld {
		return t, fmt.Errorf("%w, and %d clients wait for it already", ErrAway, MaxHeld)
	}
	if u.Held != nil {
		defer u.Held.n.Add(-1)
		if u.Held.n.Add(1) > MaxHeldEach && held > MaxHeld/2 {
			return t, fmt.Errorf("%w, and %d clients wait for it already, with %d requests of this connection", ErrAway, held-1, MaxHeldEach)
		}
	}
	late, look := time.NewTimer(Hold), time.NewTicker(lookEvery)
	defer late.Stop()
	defer look.Stop()
	for {
		// The first round repeats the attempt above: a change that came before this user was counted did not wake it.
		st := rt.state.Load()
		if rt.Drained() && !u.In {
			return Taken{}, ErrDrained
		}
		st.call(rt, 1)
		if t, changed, err = rt.try(u.Open); changed == (<-chan struct{})(st.changed) { // else other offers are to be called
			select {
			case <-changed:
			case <-look.C:
				if u.Left() {
					changed, err = nil, ErrLeft
				}
			case <-late.C:
				changed, err = nil, ErrAway
			case <-ctx.Done():
				changed, err = nil, ctx.Err()
			}
		}
		st.call(rt, -1)
		if changed == nil {
			return t, err
		}
	}
}

// call counts users of a route who wait for the sessions that serve it.
func (st *routeState) call(rt *Route, n int) {
	for _, o := range st.offers {
		o.callers.add(rt, n)
	}
}

// callers are the routes with users who wait for one session. A session that is up again wakes them, and looks at none of the thousands
// of others that it may serve.
type callers struct {
	mu     sync.Mutex
	routes map[*Route]int // with how many users; guarded by mu
}

func (c *callers) add(rt *Route, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.routes == nil {
		c.routes = make(map[*Route]int)
	}
	if c.routes[rt] += n; c.routes[rt] == 0 {
		delete(c.routes, rt)
	}
}

// wake has those who wait look again. Registry.mu is held.
func (c *callers) wake() {
	c.mu.Lock()
	routes := slices.Collect(maps.Keys(c.routes))
	c.mu.Unlock()
	for _, rt := range routes {
		rt.wake()
	}
}

// try opens a stream at the best offer. If none is up, it returns what is closed when that may have changed.
func (rt *Route) try(o wire.Open) (t Taken, changed <-chan struct{}, err error) {
	var tried map[*Offer]struct{}
	var full error
	st := rt.state.Load()
	for !st.removed {
		best, rest := st.best(tried), []*Offer(nil)
		for ranked := false; best != nil; best, rest = firstUp(rest) {
			s, err := best.open(o)
			switch {
			case err == nil:
				return Taken{s, best}, nil, nil
			case !errors.Is(err, errRetired) && !errors.Is(err, link.ErrEnded): // a retired offer or an ended link counts as away: the next state will not have it
				full = err
			}
			if tried == nil {
				tried = make(map[*Offer]struct{})
			}
			if tried[best] = struct{}{}; !ranked {
				ranked, rest = true, st.ranked(tried)
			}
		}
		last := st
		if st = rt.state.Load(); st != last { // there may be others by now
			continue
		}
		if full != nil {
			return t, nil, full
		}
		return t, st.changed, nil
	}
	if st.away {
		return t, nil, ErrAway
	}
	return t, nil, ErrRemoved
}

// best returns the offer for a newcomer: one that is up, healthy rather than not, with the fewest users for its weight.
func (st *routeState) best(not map[*Offer]struct{}) (best *Offer) {
	for _, o := range st.offers {
		if _, tried := not[o]; !tried && !o.attrs.Load().Drained && (best == nil || o.before(best)) && o.way.Up() {
			best = o
		}
	}
	return best
}

// ranked returns the offers for a newcomer, the best first.
func (st *routeState) ranked(not map[*Offer]struct{}) []*Offer {
	loads := make([]load, 0, len(st.offers))
	for _, o := range st.offers {
		if _, tried := not[o]; !tried && !o.attrs.Load().Drained {
			loads = append(loads, o.load())
		}
	}
	slices.SortStableFunc(loads, load.compare)
	offers := make([]*Offer, len(loads))
	for i, l := range loads {
		offers[i] = l.Offer
	}
	return offers
}

// firstUp returns the first offer that is up, and those behind it.
func firstUp(offers []*Offer) (first *Offer, rest []*Offer) {
	for i, o := range offers {
		if o.way.Up() {
			return o, offers[i+1:]
		}
	}
	return nil, nil
}

// Offer is a claim that gets users.
type Offer struct {
	Key     KeyID
	Session SessionID

	way     Way
	callers *callers // of the session
	id      uint32   // of the claim
	attrs   atomic.Pointer[attrs]
	users   atomic.Int64

	mu      sync.RWMutex
	retired bool                 // guarded by mu, as all below
	told    map[*func()]struct{} // see WhenRetired
}

func newOffer(c *claim) *Offer {
	o := &Offer{Key: c.session.key, Session: c.session.id, way: c.session.way, callers: &c.session.callers, id: c.id}
	o.attrs.Store(newAttrs(c.asked))
	return o
}

// attrs are what a claim says of an offer. They are never changed.
type attrs struct {
	Claim
	options grammar.ProxyOptions
}

func newAttrs(c Claim) *attrs {
	o, _ := grammar.ParseProxyOptions([]byte(c.Options)) // a claim with others is denied
	return &attrs{c, o}
}

func understood(options string) bool {
	_, err := grammar.ParseProxyOptions([]byte(options))
	return err == nil
}

// Options are what the bridge asks of the proxy. The same pointer means the same options.
func (o *Offer) Options() *grammar.ProxyOptions { return &o.attrs.Load().options }

// Target is what the bridge says that it connects users to.
func (o *Offer) Target() string { return o.attrs.Load().Target }

func (o *Offer) before(p *Offer) bool { return o.load().compare(p.load()) < 0 }

// load is what decides among offers, as it was at one moment.
type load struct {
	*Offer
	unhealthy     int // or 0
	users, weight int64
}

func (o *Offer) load() load {
	a := o.attrs.Load()
	l := load{Offer: o, users: o.users.Load(), weight: int64(max(a.Weight, 1))}
	if a.Unhealthy {
		l.unhealthy = 1
	}
	return l
}

// compare is negative if a newcomer goes to a rather than to b: healthy offers first, then the offer with fewer users for its weight.
func (a load) compare(b load) int {
	return cmp.Or(cmp.Compare(a.unhealthy, b.unhealthy), cmp.Compare(a.users*b.weight, b.users*a.weight))
}

var errRetired = errors.New("the offer was retired")

// open opens a stream, unless the offer was retired: then no stream to it is opened any more, and the marks that are read after
// retire are above those of all its streams.
func (o *Offer) open(open wire.Open) (*link.Stream, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.retired {
		return nil, errRetired
	}
	o.users.Add(1)
	open.Service = o.id
	s, err := o.way.Open(open)
	if err != nil {
		o.users.Add(-1)
	}
	return s, err
}

func (o *Offer) retire() {
	o.mu.Lock()
	o.retired = true
	told := o.told
	o.told = nil
	o.mu.Unlock()
	for f := range told {
		(*f)()
	}
}

// WhenRetired has f called when no stream is opened to the offer any more, at once if that is so already. f returns soon. Whoever calls stop
// is not interested any longer.
func (o *Offer) WhenRetired(f func()) (stop func()) {
	o.mu.Lock()
	retired := o.retired
	if !retired {
		if o.told == nil {
			o.told = make(map[*func()]struct{})
		}
		o.told[&f] = struct{}{}
	}
	o.mu.Unlock()
	if retired {
		f()
	}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.told, &f)
	}
}
