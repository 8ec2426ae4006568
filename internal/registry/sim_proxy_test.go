package registry

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// simProxy is the process of a proxy. It is its registry's Doer.
type simProxy struct {
	*sim
	r       *Registry
	policy  Policy
	links   []*simLink // sessions that have not ended here
	pending []simOpen  // sockets that are being opened
	open    map[Socket]uint64
	users   []*simUser // that are not over
	offers  []*Offer   // that were ever seen
	holders map[pub]holding
	crowded map[pub]bool // names that waited for a place
	stopped bool
	room    int // how many sockets may be open

	conns   *traffic.Conns
	limits  map[KeyID]int // connections of a key
	refused map[*traffic.Account]uint64
}

type simOpen struct {
	socket  Socket
	attempt uint64
}

// simUser is somebody who connected to a socket.
type simUser struct {
	name      pub
	route     *Route
	admission *traffic.Admission
	account   *traffic.Account
	picked    *Offer              // to be opened
	tried     map[*Offer]struct{} // since the state was looked at
	changed   <-chan struct{}     // waits for it
	called    *routeState         // whose sessions know that it waits
	held      bool                // counted as one who waits
	taken     Taken               // its place at an offer
	stream    *simStream
	at        *simLink
}

const ownPort = 3010

// errNoRoom is what a link says that has as many streams as its peer takes.
var errNoRoom = errors.New("no room")

var (
	simNames = []string{
		"tcp/9000", "tcp/127.0.0.1:9000", "tcp/0.0.0.0:9000", "tcp/127.0.0.2:9000", "tcp/9001", "tcp/9002", "tcp/9003", "offered", "tcp/80",
		"tcp/3010", "udp/9000", "http/a.example", "http/b.example", "http/c.example", "http/d.example/x", "http/e.example",
	}
	simAllow = [][]string{
		{"tcp/1024-65535", "http/*"}, {"tcp/9000-9001", "http/a.example", "http/b.example"}, {"tcp/9002", "tcp/9003"}, {"tcp/127.0.0.1:9000-9003", "tcp/9001"}, {"tcp/1-65535", "udp/9000", "http/*"}, nil,
	}
	simOffers = [][]string{nil, {"tcp/9001"}, {"tcp/9003", "tcp/9001"}, {"tcp/3010", "tcp/9002"}}
)

func newSimProxy(w *sim) *simProxy {
	p := &simProxy{sim: w, room: 2 + w.pick("room", 30)}
	for i := range simKeys {
		p.policy.Keys = append(p.policy.Keys, simKey(i, simAllow[0]))
	}
	p.policy.Own, p.policy.Named, p.policy.Names = []uint16{ownPort}, []grammar.Kind{grammar.KindHTTP}, 2*w.pick("names", 4)
	p.start()
	return p
}

func (w *simProxy) start() {
	w.r = New(w.policy)
	w.open, w.holders, w.pending, w.offers = make(map[Socket]uint64), make(map[pub]holding), nil, nil
	w.conns = traffic.New(traffic.Config{Max: 1 << 12, Clients: 8})
	w.limits, w.refused = make(map[KeyID]int), make(map[*traffic.Account]uint64)
}

// restart is another process without anything of the one before.
func (w *simProxy) restart() {
	w.trace("a proxy restarts")
	w.stats.ProxyRestarts++
	for len(w.links) > 0 {
		w.links[0].end()
	}
	for len(w.users) > 0 {
		w.over(w.users[0])
	}
	w.checkAccounts()
	w.conns.Close()
	w.start()
}

func simKey(i int, allow []string) Key {
	k := Key{ID: KeyID{byte(i + 1)}, Name: fmt.Sprintf("key%d", i)}
	for _, s := range allow {
		a, err := grammar.ParseAllow(s)
		if err != nil {
			panic(err)
		}
		k.Allow = append(k.Allow, a)
	}
	if i > 0 {
		k.Groups = []string{"g"}
	}
	return k
}

func (w *simProxy) unlocked(where string) {
	if !w.r.mu.TryLock() {
		w.fail("C15: %s is called under the lock", where)
		return
	}
	w.r.mu.Unlock()
}

// forget ends the users of a session that is over.
func (w *simProxy) forget(l *simLink) {
	w.links = slices.DeleteFunc(w.links, func(o *simLink) bool { return o == l })
	for _, u := range slices.Clone(w.users) {
		if u.at == l {
			w.stats.Lost++
			w.over(u)
		}
	}
	for _, sl := range l.slots {
		sl.flight = nil
	}
}

// Up implements Way.
func (l *simLink) Up() bool { return l.up && !l.ended }

// Marks implements Way.
func (l *simLink) Marks() (marks []wire.Mark) {
	l.p.unlocked("Marks")
	for _, sl := range l.slots {
		marks = append(marks, wire.Mark{Slot: sl.number, Stream: sl.opened})
	}
	return marks
}

// Open implements Way.
func (l *simLink) Open(o wire.Open) (*link.Stream, error) {
	l.p.unlocked("Way.Open")
	if l.ended {
		return nil, link.ErrEnded
	}
	if !l.p.calm && l.p.pick("no room", 16) == 0 {
		return nil, errNoRoom
	}
	sl := l.slot()
	sl.opened = (sl.opened>>8+1)<<8 | uint64(sl.number)
	sl.flight = append(sl.flight, &simStream{id: sl.opened, service: o.Service})
	l.p.trace("  OPEN %#x for service %d of %s", sl.opened, o.Service, l)
	return new(link.Stream), nil
}

// The Doer.

// Room implements Doer.
func (w *simProxy) Room() int {
	w.unlocked("Doer.Room")
	return max(w.room-len(w.open)-len(w.pending), 0)
}

// holds counts the sockets that a key has, or is about to have.
func (w *simProxy) holds(key KeyID) (n int) {
	of := func(s Socket) {
		if rec := w.r.core.sockets[s]; rec != nil && rec.key == key {
			n++
		}
	}
	for s := range w.open {
		of(s)
	}
	for _, p := range w.pending {
		of(p.socket)
	}
	return n
}

// retry is what Run does now and then.
func (w *simProxy) retry() {
	room := w.Room()
	w.r.change(func(co *core) {
		co.room = room
		co.retry()
	})
}

func (w *simProxy) Open(s Socket, attempt uint64) {
	w.unlocked("Doer.Open")
	if key := w.r.core.names[s.Public()].held.key; w.holds(key) >= w.Room() {
		w.fail("C14: %s is opened for key %x, which has %d sockets, with room for %d", s, key[0], w.holds(key), w.Room())
	}
	w.trace("  begin to open %s (%d)", s, attempt)
	w.pending = append(w.pending, simOpen{s, attempt})
}

func (w *simProxy) Close(s Socket) {
	w.unlocked("Doer.Close")
	w.trace("  close %s", s)
	if w.open[s] == 0 {
		w.fail("C3: %s is closed, and was not open", s)
	}
	delete(w.open, s)
}

func (w *simProxy) Tell(t Told) {
	w.unlocked("Doer.Tell")
	l := t.Way.(*simLink)
	w.trace("  tell session %d of claim %d: %v %s", t.Session, t.ID, t.Status, t.Reason)
	if t.Why == WhyCrowded {
		w.stats.Crowded++
	}
	if !t.News && t.Fresh {
		w.fail("a service that was up is told as fresh")
	}
	if (t.Reason == "") != (t.Status == wire.ClaimUp) {
		w.fail("status %d is told with the reason %q", t.Status, t.Reason)
	}
	if l.control && !l.ended {
		l.toBridge.say(uint64(t.ID), wire.AppendClaimed(nil, t.ID, t.Claimed()))
	}
}

func (w *simProxy) Unclaimed(way Way, id uint32) {
	w.unlocked("Doer.Unclaimed")
	l := way.(*simLink)
	w.trace("  UNCLAIMED %d of session %d", id, l.id)
	for _, o := range w.offers {
		if o.way == way && o.id == id && !o.retired {
			w.fail("C8: claim %d of %s is given back, and users may still be sent there", id, l)
		}
	}
	if !slices.Contains(l.gone, id) {
		l.gone = append(l.gone, id)
	}
	if l.control && !l.ended {
		l.toBridge.say(uint64(id), wire.AppendUnclaimed(nil, id, way.Marks()))
	}
}

func (w *simProxy) End(way Way) {
	w.unlocked("Doer.End")
	w.trace("  end session %d", way.(*simLink).id)
	way.(*simLink).end()
}

// allowed reports what the policy says, without the registry.
func (w *simProxy) allowed(id KeyID, name pub) bool {
	for _, k := range w.policy.Keys {
		if k.ID == id {
			return k.Allow.Permits(name) && name.Port != ownPort && (name.Kind == grammar.KindTCP || name.Kind == grammar.KindHTTP)
		}
	}
	return false
}

// admits reports whether the key of a session is still the one that it proved.
func (w *simProxy) admits(s *session) bool {
	return slices.ContainsFunc(w.policy.Keys, func(k Key) bool { return k.ID == s.key && k.Incarnation == s.secret })
}

func (w *simProxy) configure() {
	p := Policy{Own: []uint16{ownPort}, Named: w.policy.Named, Names: w.policy.Names}
	for i := range simKeys {
		if w.pick("keep", 3) > 0 {
			if at := slices.IndexFunc(w.policy.Keys, func(k Key) bool { return k.ID == KeyID{byte(i + 1)} }); at >= 0 {
				p.Keys = append(p.Keys, w.policy.Keys[at])
				continue
			}
		}
		if w.pick("removed", 5) == 0 {
			continue
		}
		k := simKey(i, simAllow[cmp.Or(w.pick("allow", 2*len(simAllow)), 0)%len(simAllow)])
		if w.pick("limit", 4) == 0 {
			k.MaxServices = 1 + w.pick("max", 3)
		}
		if w.pick("secret", 10) == 0 {
			k.Incarnation[0] = byte(w.pick("which", 3))
		}
		if w.pick("no group", 4) == 0 {
			k.Groups = nil
		}
		p.Keys = append(p.Keys, k)
	}
	p.Offer = w.policy.Offer
	if w.pick("offer", 2) == 0 {
		p.Offer = nil
		for _, s := range simOffers[w.pick("offers", len(simOffers))] {
			name, _ := grammar.ParsePublic(s)
			p.Offer = append(p.Offer, name)
		}
	}
	w.apply(p)
}

func (w *simProxy) apply(p Policy) {
	w.trace("policy %+v", p)
	w.stats.Policies++
	old := newPolicy(w.policy)
	kept := make(map[pub]*Route)
	attempts := make(map[Socket]uint64)
	for rt := range w.r.View().All {
		h := w.r.core.names[rt.Public].held
		was, now := old.keys[h.key], newPolicy(p).keys[h.key]
		if now != nil && was.equal(now) && slices.Equal(w.policy.Offer, p.Offer) {
			kept[rt.Public] = rt
			if w.r.core.names[rt.Public].granted() {
				attempts[socketOf(rt.Public)] = w.open[socketOf(rt.Public)]
			}
		}
	}
	w.policy = p
	w.r.Configure(p)
	id := KeyID{byte(1 + w.pick("key", simKeys))}
	w.limits[id] = w.pick("connections", 5) // 0: no limit
	w.conns.KeyAccount(id).SetLimits(traffic.Limits{Connections: w.limits[id]})
	for n, rt := range kept {
		if w.r.View().Find(n) != rt {
			w.fail("C5: %s lost its route, and nothing of its key changed", n)
		}
	}
	for w.pick("later", 2) == 0 && w.r.step(w) {
	}
	for s, at := range attempts {
		if w.open[s] != at && at != 0 {
			w.fail("C5: %s was opened anew, and nothing of its key changed", s)
		}
	}
}

// handover puts another process in the place of the present one. What is not done by then the successor does.
func (w *simProxy) handover() {
	done := w.pick("at rest", 3) > 0
	if done {
		w.finish()
	}
	w.trace("hand-over of a proxy")
	w.stats.Handovers++
	next := w.thaw(w.r.Freeze())
	if next == nil {
		return
	}
	if n := next.core.effects.n; n != 0 && done {
		w.fail("C11: the thawed registry wants %d things done", n)
	}
	w.r, w.offers, w.pending = next, nil, nil
	for _, l := range slices.Clone(w.links) {
		if next.core.sessions[l.id] == nil {
			l.end()
		}
		l.cut()
	}
	for _, u := range slices.Clone(w.users) {
		if u.stream != nil {
			u.taken.Offer = nil // it counts in another process; nobody has a place at the offers of this one
			continue
		}
		u.picked, u.tried, u.changed, u.called, u.held = nil, nil, nil, nil, false
		if u.route = next.View().Find(u.name); u.route == nil {
			w.stats.Removed++
			u.route = newRoute(u.name, KeyID{})
			u.route.remove(false)
		}
	}
}

func (w *simProxy) thaw(doc []byte) *Registry {
	next, err := Thaw(doc, w.policy, w.way)
	if err != nil {
		w.fail("C11: %v", err)
		return nil
	}
	return next
}

// giveUpHandover does the steps of a hand-over up to one of them, and goes on.
func (w *simProxy) giveUpHandover() {
	w.stats.GivenUp++
	if w.pick("at rest", 2) == 0 {
		w.finish()
	}
	before, effects, view := w.r.core.derived(), w.r.core.effects.n, w.r.View()
	doc := w.r.Freeze()
	switch w.pick("given up after", 4) {
	case 0: // the state was written
	case 1: // a part of it was read
		Thaw(doc[:w.pick("read", len(doc))], w.policy, w.way)
	case 2: // it was read
		w.thaw(doc)
	case 3: // the successor knows of another policy, and has begun
		if next := w.thaw(doc); next != nil {
			next.Configure(Policy{})
			next.Stop()
		}
	}
	if again := w.r.Freeze(); !slices.Equal(doc, again) || w.r.core.derived() != before || w.r.core.effects.n != effects || w.r.View() != view {
		w.fail("C11: a hand-over that was given up changes something:\n%s\nand there was\n%s", w.r.core.derived(), before)
	}
}

func (w *simProxy) way(id SessionID) Way {
	for _, l := range w.links {
		if l.id == id {
			return l
		}
	}
	return nil
}

// finish does all effects, those that opening sockets brings included.
func (w *simProxy) finish() {
	for {
		for w.r.step(w) {
		}
		if len(w.pending) == 0 {
			return
		}
		w.result()
	}
}

// result ends the opening of a socket.
func (w *simProxy) result() {
	if len(w.pending) == 0 {
		return
	}
	i := w.pick("which socket", len(w.pending))
	p := w.pending[i]
	w.pending = slices.Delete(w.pending, i, i+1)
	if !w.calm && w.pick("socket fails", 4) == 0 {
		w.stats.Failed++
		w.trace("%s cannot be opened", p.socket)
		w.r.Opened(p.socket, p.attempt, errors.New("address in use"))
		return
	}
	for s := range w.open {
		if s.Public().Overlaps(p.socket.Public()) {
			w.fail("C3: %s is opened beside %s", p.socket, s)
		}
	}
	w.trace("%s is open", p.socket)
	w.open[p.socket] = p.attempt
	if !w.r.Opened(p.socket, p.attempt, nil) {
		w.fail("C3: nobody wants to know that %s is open", p.socket)
	}
}
