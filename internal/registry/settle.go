package registry

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strconv"

	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// settle derives for every name that was touched, in this order: who holds it; whether a name that overlaps stands in its way; its
// sockets; its offers; the answers to its claims. Settling twice changes nothing.
func (co *core) settle() {
	if len(co.touched) == 0 && !co.crowding.freed {
		return
	}
	batch := co.touched
	co.touched = nil
	slices.SortFunc(batch, func(a, b *name) int { return comparePublic(a.public, b.public) })
	for _, n := range batch {
		n.touched = false
		co.hold(n)
	}
	co.fill()
	for len(co.dirty) > 0 {
		ov := co.dirty[0]
		co.dirty = co.dirty[1:]
		ov.decide(co)
	}
	more := co.touched // those that are blocked now, or no longer, or have got a place
	co.touched = nil
	slices.SortFunc(more, func(a, b *name) int { return comparePublic(a.public, b.public) })
	batch = append(batch, more...)
	for _, n := range batch {
		co.finish(n)
	}
	co.settled += len(batch)
}

// shares reports whether a claim of a key, for a group, is of the key or group that holds the name.
func (h *holding) shares(key KeyID, group string) bool {
	return key == h.key || group != "" && group == h.group
}

// granted reports whether a name is held, and none that overlaps is in its way.
func (n *name) granted() bool { return n.held != nil && n.held.granted != 0 }

// eligible reports whether a claim may have its name at all.
func (co *core) eligible(c *claim) bool {
	r := c.session.tenant
	return c.session.id >= r.newest && co.within(r, c.name)
}

// within reports whether a name is within the limit of a key.
func (co *core) within(r *tenant, n *name) bool {
	return r.rank(r.names[n.public].place) < r.within
}

// hold decides which key or group has a name. A holder keeps the name for as long as one of its claims is there, or a session that
// inherited it. Then the first in line gets it whose key may hold one name more.
func (co *core) hold(n *name) {
	var same, own, group, first *candidate
	better := func(a **candidate, c candidate) {
		if *a == nil || c.place < (*a).place {
			*a = &c
		}
	}
	if h := n.held; h != nil {
		for c := range co.candidates(n) {
			switch {
			case c.key == h.key && c.group == h.group:
				better(&same, c)
			case c.key == h.key:
				better(&own, c)
			case h.shares(c.key, c.group):
				better(&group, c)
			}
		}
	}
	if keep := cmp.Or(same, own, group); keep != nil {
		if keep.key != n.held.key {
			co.addPlace(n.public, n.held.key, -1)
			co.addPlace(n.public, keep.key, 1)
		}
		n.held.key, n.held.group = keep.key, keep.group
		return
	}
	if n.held != nil {
		if n.away {
			co.away.remember(n.public, co.policy.keys[n.held.key])
		}
		co.placeOf(n).lose(co, n)
		co.addPlace(n.public, n.held.key, -1)
		delete(co.holdings, n.public)
		n.held = nil
		co.setRoute(n, nil)
	}
	var awaiting []*tenant
	for c := range co.candidates(n) {
		if co.placeLeft(n.public, c.key) {
			better(&first, c)
		} else {
			awaiting = append(awaiting, co.tenants[c.key])
		}
	}
	if first != nil {
		awaiting = nil
	}
	co.await(n, awaiting)
	if first != nil {
		co.away.forget(n.public)
		n.held = &holding{key: first.key, group: first.group, seq: first.place}
		co.holdings[n.public] = n.held
		co.addPlace(n.public, first.key, 1)
		co.placeOf(n).gain(co, n)
		co.setRoute(n, newRoute(n.public, first.key))
	}
}

// candidate is a key, or a group, that may have a name.
type candidate struct {
	key   KeyID
	group string
	place uint64
}

// candidates yields who may have a name at all.
func (co *core) candidates(n *name) iter.Seq[candidate] {
	return func(yield func(candidate) bool) {
		for _, c := range n.claims {
			if co.eligible(c) && !yield(candidate{c.session.key, c.asked.Group, c.place}) {
				return
			}
		}
		for _, heir := range n.heirs {
			s := heir.session
			h := s.inherited[n.public]
			if s.id >= s.tenant.newest && co.within(s.tenant, n) && co.policy.permits(s, n.public) && !yield(candidate{s.key, h.group, h.place}) {
				return
			}
		}
	}
}

// finish derives what follows from who holds a name.
func (co *core) finish(n *name) {
	n.touched, n.away = false, false
	co.want(n)
	co.serve(n)
	now := co.outcome(n)
	if n.all || now != n.said {
		n.asked = n.claims
	}
	for _, c := range n.asked {
		if c.name == n {
			co.review(c)
		}
	}
	n.said, n.all, n.asked = now, false, nil
	if len(n.claims) == 0 && len(n.heirs) == 0 {
		delete(co.names, n.public)
	}
}

// outcome is what the answers to the claims of a name follow from, their own keys and sessions apart.
type outcome struct {
	key   KeyID
	group string
	held  bool
	over  grammar.Public
	state socketState // of the first socket that is not open
	why   string
	short bool
}

func (co *core) outcome(n *name) (o outcome) {
	if n.held == nil {
		return o
	}
	o.key, o.group, o.held = n.held.key, n.held.group, true
	if n.blocked != nil {
		o.over = n.blocked.public
	}
	for _, s := range socketsOf(n.public) {
		if rec := co.sockets[s]; rec == nil {
			return o
		} else if o.state, o.why, o.short = rec.state, rec.why, rec.short; rec.state != open {
			return o
		}
	}
	o.state = open
	return o
}

// want has the sockets of a name opened or closed.
func (co *core) want(n *name) {
	wanted := n.granted() && !co.stopping
	for _, s := range socketsOf(n.public) {
		at := slices.Index(co.wanters[s], n)
		switch {
		case wanted && at < 0:
			co.wanters[s] = append(co.wanters[s], n)
		case !wanted && at >= 0:
			if co.wanters[s] = slices.Delete(co.wanters[s], at, at+1); len(co.wanters[s]) == 0 {
				delete(co.wanters, s)
			}
		}
		if wanted {
			co.charge(s, n.held.key)
		}
		co.lookAt(s)
	}
}

// serve decides which claims get the users of a name. Of several sessions of one key it is the newest that was up: a bridge that is
// stopping serves until its successor does.
func (co *core) serve(n *name) {
	before := n.serving
	n.serving = nil
	if n.granted() {
		for _, c := range n.claims {
			if co.eligible(c) && n.held.shares(c.session.key, c.asked.Group) {
				n.serving = append(n.serving, c)
			}
		}
		n.serving = newestOfEach(n.serving)
	}
	offers := make([]*Offer, 0, len(n.serving))
	for _, c := range n.serving {
		if c.offer == nil {
			c.offer = newOffer(c)
		}
		offers = append(offers, c.offer)
	}
	if n.route != nil {
		n.route.set(offers)
		n.route.drain(co.policy.drains(n.public, n.held.key))
	}
	for _, o := range n.left {
		co.retire(o)
	}
	n.left = nil
	for _, c := range before {
		if c.name == n && c.offer != nil && !slices.Contains(n.serving, c) {
			co.retire(c.offer)
			c.offer = nil
		}
	}
}

// retire has an offer retired.
func (co *core) retire(o *Offer) {
	if s := co.sessions[o.Session]; s != nil {
		s.retiring++
	}
	co.effects.add(o.Key, effect{do: doRetire, offer: o})
}

func newestOfEach(cs []*claim) []*claim {
	if len(cs) < 2 {
		return cs
	}
	newest := make(map[*tenant]SessionID)
	for _, c := range cs {
		if c.session.wasUp {
			newest[c.session.tenant] = max(newest[c.session.tenant], c.session.id)
		}
	}
	return slices.DeleteFunc(cs, func(c *claim) bool { return c.session.id < newest[c.session.tenant] })
}

// setRoute gives a name another route. Who waits for the old one learns that it is gone.
func (co *core) setRoute(n *name, r *Route) {
	if n.route != nil {
		n.route.remove(n.away)
	}
	n.route = r
	co.changed = append(co.changed, n)
}

// review has the bridge told about a claim, if there is anything new to say.
func (co *core) review(c *claim) {
	co.looks++
	if a := co.answer(c); !c.queued && a.Status != 0 && (c.owed || a != c.told) {
		c.queued = true
		co.effects.add(c.session.key, effect{do: doTell, claim: c})
	}
}

// answer is what there is to say about a claim.
func (co *core) answer(c *claim) Answer {
	a := Answer{Status: wire.ClaimRetrying, Public: c.public}
	if c.denied != "" {
		a.Status, a.Why, a.Text = wire.ClaimDenied, WhyDenied, c.denied
		return a
	}
	n, s := c.name, c.session
	switch first := s.first[c.public]; {
	case co.stopping && !c.owed: // GOAWAY has said it
		return Answer{}
	case co.stopping:
		a.Why = WhyStopping
		return a
	case first != c:
		a.Why = WhyTwice
		return a
	case !co.within(s.tenant, n):
		a.Why, a.Text = WhyLimit, strconv.Itoa(s.tenant.key.MaxServices)
		return a
	case n.held == nil && s.tenant.names[n.public].awaits:
		a.Why = WhyCrowded
		return a
	case n.held == nil: // or the claim would have it
		a.Why = WhyReplaced
		return a
	case !n.held.shares(s.key, c.asked.Group):
		a.Why, a.By = WhyHeld, n.held.key
		return a
	case !n.granted():
		a.Why, a.Over = WhyOverlap, n.blocked.public
		return a
	}
	switch o := co.outcome(n); o.state {
	case open:
		if a.Status = wire.ClaimUp; co.policy.drains(n.public, n.held.key) {
			a.Text = DrainedText
		}
		return a
	case failed:
		if o.short {
			a.Why = WhyShort
			return a
		}
		a.Why, a.Text = WhySocket, o.why
		return a
	}
	return Answer{} // the socket is being opened
}

// place is what overlaps at all: a port, or a name that shares one with others.
type place struct {
	kind grammar.Kind
	port uint16
	name string
}

// overlaps are the names of one port that are held. Of two whose addresses cover each other only one is granted the port. It keeps
// it for as long as it is held; then those that wait get their turn in the order of their holdings.
type overlaps struct {
	at      place
	waiting []*name    // by holding.seq
	granted [3][]*name // by family, each by holding.granted; a wild address has a family of its own
	dirty   bool
}

// families of bind addresses.
const (
	familyWild = iota // it covers others
	family4
	family6
)

func (co *core) placeOf(n *name) *overlaps {
	at := placeOf(n.public)
	ov := co.places[at]
	if ov == nil {
		ov = &overlaps{at: at}
		co.places[at] = ov
	}
	return ov
}

func placeOf(pub grammar.Public) place {
	switch pub.Kind {
	case grammar.KindTCP:
		return place{kind: pub.Kind, port: pub.Port}
	case grammar.KindHTTPS, grammar.KindTLS:
		return place{kind: grammar.KindTLS, name: pub.Host}
	}
	return place{kind: pub.Kind, name: pub.Host + pub.Path}
}

// gain adds a name that is held from now on.
func (ov *overlaps) gain(co *core, n *name) {
	if !ov.dirty {
		if !ov.block(co, n) {
			ov.grant(co, n)
			return
		}
	}
	at, _ := slices.BinarySearchFunc(ov.waiting, n, func(a, b *name) int { return cmp.Compare(a.held.seq, b.held.seq) })
	ov.waiting = slices.Insert(ov.waiting, at, n)
}

// lose takes a name out before its holding goes.
func (ov *overlaps) lose(co *core, n *name) {
	list, by := &ov.waiting, func(h *holding) uint64 { return h.seq }
	if n.held.granted != 0 {
		list, by = &ov.granted[family(co.policy.at(n.public))], func(h *holding) uint64 { return h.granted }
		if !ov.dirty {
			ov.dirty = true
			co.dirty = append(co.dirty, ov)
		}
	}
	at, _ := slices.BinarySearchFunc(*list, n, func(a, b *name) int { return cmp.Compare(by(a.held), by(b.held)) })
	*list = slices.Delete(*list, at, at+1)
	n.blocked = nil
}

// decide gives those that wait their turn.
func (ov *overlaps) decide(co *core) {
	ov.dirty = false
	ov.waiting = slices.DeleteFunc(ov.waiting, func(n *name) bool {
		was := n.blocked
		if was != nil && was.granted() && was.held.granted == n.behind {
			return false // it still stands in the way, and nobody was granted the port earlier
		}
		if !ov.block(co, n) {
			ov.grant(co, n)
		}
		if n.blocked != was || n.blocked == nil {
			co.touch(n)
		}
		return n.blocked == nil
	})
	if len(ov.waiting)+len(ov.granted[familyWild])+len(ov.granted[family4])+len(ov.granted[family6]) == 0 {
		delete(co.places, ov.at)
	}
}

func (ov *overlaps) grant(co *core, n *name) {
	n.held.granted = co.next()
	f := family(co.policy.at(n.public))
	ov.granted[f] = append(ov.granted[f], n)
}

// block notes what stands in the way of n. It reports whether anything does.
func (ov *overlaps) block(co *core, n *name) bool {
	co.looks++
	if n.blocked = ov.obstacle(co, n); n.blocked == nil {
		return false
	}
	n.behind = n.blocked.held.granted
	return true
}

// obstacle returns the name that has been granted the port for the longest, of those that overlap n.
func (ov *overlaps) obstacle(co *core, n *name) *name {
	var first *name
	at := co.policy.at(n.public)
	try := func(o *name) {
		if co.policy.at(o.public).Overlaps(at) && (first == nil || o.held.granted < first.held.granted) {
			first = o
		}
	}
	for _, o := range ov.granted[familyWild] {
		try(o)
	}
	if family(at) == familyWild { // it covers all of a family or none
		for _, f := range ov.granted[family4:] {
			if len(f) > 0 {
				try(f[0])
			}
		}
	} else if twin, ok := co.policy.twin(n.public); ok { // two other addresses of one family never cover each other
		if o := co.names[twin]; o != nil && o.granted() {
			try(o)
		}
	}
	return first
}

func family(pub grammar.Public) int {
	switch addr, err := netip.ParseAddr(pub.Host); {
	case err != nil || addr.IsUnspecified() || pub.Kind.Named():
		return familyWild
	case addr.Is4():
		return family4
	}
	return family6
}
