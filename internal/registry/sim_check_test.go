package registry

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// check looks at the invariants after a step. Their names are those of docs/ARCHITECTURE.md:
//
//	C1  what the index holds is what is found anew from the inputs
//	C2  a name is served by one key, or by one group
//	C3  a socket is open exactly when a held name wants it; no two overlap; never a port of the process itself
//	C4  nobody is routed to a claim that the policy denies
//	C5  what is equal in two policies keeps its route and socket (see apply and begin)
//	C6  nobody is sent away because offers changed: in the simulation a user ends with a service, or because the route was removed
//	C7  at rest every claim was told its answer, every UNCLAIM acknowledged, and nothing is retired
//	C8  no OPEN names a service that the bridge does not have, or another one than the user's (see arrive)
//	C9  each user is charged once to service, key and offer, and given back once; limits of services and of connections hold
//	C16 names without sockets: at most so many are held; a key without a limit of its own takes one only while it has fewer than are free;
//	    none waits that could have a place (see checkPlaces)
//	C10 nothing is left when all is over
//	C11 a thawed registry, or bridge, goes on where the frozen one stood (see handover); one that is given up changes nothing
//	C14 what waits is there once, and nothing waits for a session that is not there
//	C15 nothing outside is called under the lock (see unlocked)
//
// C12 needs a cluster, and C13 visitors: there is no code of them to look at. That the client data of a peer that is no proxy is not
// believed follows from the proxy, which takes no stream of a bridge. I15 belongs to the core of link; here the ids of both claims and
// streams are never used twice.
func (w *sim) check() {
	for _, p := range w.proxies {
		p.check()
	}
}

func (w *simProxy) check() {
	co := &w.r.core
	now := make(map[pub]holding)
	for _, n := range co.names {
		w.checkName(n)
		if n.held != nil {
			now[n.public] = *n.held
		}
	}
	w.checkPlaces(now)
	w.holders = now
	for _, s := range co.sessions {
		if !w.admits(s) {
			w.fail("C4: session %d goes on, and its key was removed", s.id)
		}
	}
	for s := range w.open {
		if s.Port == ownPort {
			w.fail("C3: %s is open, a port of the process", s)
		}
	}
	routes := 0
	for rt := range w.r.View().All {
		routes++
		if n := co.names[rt.Public]; n == nil || n.route != rt || n.held == nil {
			w.fail("C1: the view has a route for %s that nobody holds", rt.Public)
		}
	}
	if routes != len(co.holdings) {
		w.fail("C1: %d routes for %d holdings", routes, len(co.holdings))
	}
	w.checkOffers()
	taken, short := make(map[KeyID]int), 0
	failures := make(map[trials]int)
	for s, rec := range co.sockets {
		if again := rec.again != nil; again != (rec.state == failed) {
			w.fail("C1: %s is in state %d, and to be tried again: %t", s, rec.state, again)
		}
		if rec.state == failed {
			failures[trials{rec.key, rec.short}]++
			if key := co.wanters[s][0].held.key; rec.key != key {
				w.fail("C1: %s of key %x waits for its turn among those of key %x", s, key[0], rec.key[0])
			}
		}
		if rec.state != failed {
			taken[rec.key]++
		} else if rec.short {
			short++
		}
	}
	again := make(map[trials]int)
	for at, waiting := range co.failed {
		again[at] = waiting.Len()
	}
	if !maps.Equal(failures, again) {
		w.fail("C1: of the keys %v sockets failed, and %v are to be tried again", failures, again)
	}
	if !maps.Equal(taken, co.taken) || short != co.short {
		w.fail("C1: keys have %v sockets and are charged for %v; %d wait for descriptors, and %d are counted", taken, co.taken, short, co.short)
	}
	w.checkBounds()
	w.checkAccounts()
	w.checkRetired()
	w.checkThaw()
}

// checkPlaces: who holds a name without a socket has a place, before the step those in w.holders and after it those in now.
func (w *simProxy) checkPlaces(now map[pub]holding) {
	co, most := &w.r.core, w.policy.Names
	held, of := 0, make(map[KeyID]int)
	for name, h := range now {
		if placed(name) {
			held++
			of[h.key]++
		}
	}
	if held != co.crowding.held || !maps.Equal(of, co.crowding.of) {
		w.fail("C1: keys hold %v names without sockets, and %v are counted", of, co.crowding.of)
	}
	limited := func(key KeyID) bool {
		k := w.r.core.policy.keys[key]
		return k != nil && k.MaxServices > 0
	}
	left := func(key KeyID) bool { return held < most && (limited(key) || of[key] < most-held) }
	waiting, crowded := 0, make(map[pub]bool)
	for name, n := range co.names {
		if !placed(name) || n.held != nil {
			continue
		}
		keys := make(map[KeyID]bool)
		for c := range co.candidates(n) {
			keys[c.key] = true
		}
		waiting += len(keys)
		for key := range keys {
			if crowded[name] = true; most == 0 || left(key) {
				w.fail("C16: %s waits, and key %x, which holds %d names, could have it: %d of %d are held", name, key[0], of[key], held, most)
			}
		}
	}
	listed := 0
	for _, r := range co.tenants {
		listed += len(r.awaiting)
	}
	if waiting != co.crowding.waiting || waiting != listed {
		w.fail("C1: %d names wait for a place, %d are counted, %d listed", waiting, co.crowding.waiting, listed)
	}
	for name := range w.crowded {
		if _, got := now[name]; got {
			w.stats.Placed++
		}
	}
	w.crowded = crowded
	if most == 0 {
		return
	}
	if held > most {
		w.fail("C16: %d names without sockets are held, of at most %d", held, most)
	}
	gained := make(map[KeyID]int) // names that nobody held before
	for name, h := range now {
		if _, had := w.holders[name]; placed(name) && !had {
			gained[h.key]++
		}
	}
	for key, n := range gained {
		others := 0 // what others took in the same step may have been free
		for name, h := range now {
			if placed(name) && h.key != key && w.holders[name].key != h.key {
				others++
			}
		}
		passed := false // within a group, a name passes on with its place
		for name, h := range now {
			passed = passed || placed(name) && h.key == key && w.holders[name].key != key && w.holders[name].key != KeyID{}
		}
		if !limited(key) && !passed && of[key] > most-held+1+others {
			w.fail("C16: key %x took %d names, and holds %d of the %d that are held; there are %d", key[0], n, of[key], held, most)
		}
	}
}

// checkBounds: what waits is there once.
func (w *simProxy) checkBounds() {
	co := &w.r.core
	tells, sockets, retires, unclaims := make(map[*claim]int), make(map[Socket]int), make(map[*Offer]int), make(map[claimOf]int)
	for _, e := range co.effects.all() {
		switch {
		case e.claim != nil:
			tells[e.claim]++
		case e.offer != nil:
			retires[e.offer]++
		case e.socket != Socket{}:
			sockets[e.socket]++
		case e.id != 0:
			unclaims[claimOf{e.session.id, e.id}]++
		}
	}
	for c, n := range tells {
		if n > 1 {
			w.fail("C14: claim %d of session %d is to be told %d times", c.id, c.session.id, n)
		}
	}
	for s, n := range sockets {
		if n > 1 {
			w.fail("C14: %s is to be looked at %d times", s, n)
		}
	}
	for o, n := range retires {
		if n > 1 {
			w.fail("C14: claim %d of session %d is to be retired %d times", o.id, o.Session, n)
		}
	}
	for c, n := range unclaims {
		if n > 1 {
			w.fail("C14: claim %d of session %d has %d answers to UNCLAIM", c.id, c.session, n)
		}
	}
	for _, waiting := range co.waiting {
		for s := range waiting {
			if !co.covered(s) {
				w.fail("C14: %s waits, and its port is free", s)
			}
		}
	}
	bound := make(map[place][3]int)
	for s, rec := range co.sockets {
		if of := bound[placeOf(s.Public())]; rec.state != failed {
			of[family(s.Public())]++
			bound[placeOf(s.Public())] = of
		}
		for o, other := range co.sockets {
			if s != o && s.Public().Overlaps(o.Public()) && rec.state != failed && other.state != failed {
				w.fail("C3: %s and %s are both open, or may be", s, o)
			}
		}
	}
	if !maps.Equal(bound, co.bound) {
		w.fail("C1: of the ports %v may be open, and %v are counted", bound, co.bound)
	}
	held := make(map[*Route]int32)
	for _, u := range w.users {
		if u.held {
			held[u.route]++
		}
	}
	for rt := range w.r.View().All {
		if n := rt.held.Load(); n != held[rt] || n > MaxHeld {
			w.fail("C14: %d users wait for %s, and %d are counted", held[rt], rt.Public, n)
		}
	}
	called := make(map[*callers]map[*Route]int)
	for _, u := range w.users {
		if u.called == nil {
			continue
		}
		for _, o := range u.called.offers {
			if called[o.callers] == nil {
				called[o.callers] = make(map[*Route]int)
			}
			called[o.callers][u.route]++
		}
	}
	for _, s := range co.sessions {
		if !maps.Equal(s.callers.routes, called[&s.callers]) {
			w.fail("C14: session %d is called by %d routes, and knows %d", s.id, len(called[&s.callers]), len(s.callers.routes))
		}
	}
	places := make(map[*Offer]int64)
	for _, u := range w.users {
		if u.taken.Offer != nil {
			places[u.taken.Offer]++
		}
	}
	for rt := range w.r.View().All {
		for _, o := range rt.state.Load().offers {
			if n := places[o]; o.users.Load() != n {
				w.fail("C9: claim %d of session %d counts %d users, and has %d", o.id, o.Session, o.users.Load(), n)
			}
		}
	}
}

type claimOf struct {
	session SessionID
	id      uint32
}

// checkAccounts: each user is charged once.
func (w *simProxy) checkAccounts() {
	services, keys, total := make(map[*traffic.Account]int), make(map[KeyID]int), 0
	for _, u := range w.users {
		services[u.account]++
		keys[u.account.Key]++
		total++
	}
	for a, n := range w.refused {
		now := a.Usage()
		var refused uint64
		for _, r := range now.Refused {
			refused += r
		}
		if now.Admitted != services[a] || refused != n {
			w.fail("C9: %s counts %d users and %d refused, there are %d and %d", a.Service, now.Admitted, refused, services[a], n)
		}
	}
	for a, n := range services {
		if got := a.Usage().Admitted; got != n {
			w.fail("C9: %s counts %d users, there are %d", a.Service, got, n)
		}
	}
	for i := range simKeys {
		id := KeyID{byte(i + 1)}
		if got := w.conns.KeyAccount(id).Usage().Admitted; got != keys[id] {
			w.fail("C9: key %x counts %d users, there are %d", id[0], got, keys[id])
		}
	}
	if load := w.conns.Load(); load.Unbound()+load.Pairs != total {
		w.fail("C9: %+v are counted, there are %d", load, total)
	}
}

// checkRetired: a bridge drops what was given back as soon as every slot has reached its mark.
func (w *simProxy) checkRetired() {
	for _, l := range w.links {
		if !l.present() {
			continue
		}
		for id, marks := range l.marks {
			if svc, _ := l.u.c.Retired(id); svc != nil && !slices.ContainsFunc(marks, func(m wire.Mark) bool { return l.slots[m.Slot-1].arrived < m.Stream }) {
				w.fail("C7: service %d of session %d is still retired, although every slot has reached its mark", id, l.id)
			}
		}
	}
}

func (w *simProxy) checkName(n *name) {
	if n.touched {
		w.fail("C1: %s was not settled", n.public)
	}
	for _, c := range n.serving {
		switch h := n.held; {
		case !w.allowed(c.session.key, n.public):
			w.fail("C4: %s is served by key %x, whose policy does not allow it", n.public, c.session.key[0])
		case c.session.key != h.key && (h.group == "" || c.asked.Group != h.group):
			w.fail("C2: %s is held by key %x, group %q, and served by key %x, group %q", n.public, h.key[0], h.group, c.session.key[0], c.asked.Group)
		case c.asked.Group != "" && !slices.Contains(w.r.core.policy.keys[c.session.key].Groups, c.asked.Group):
			w.fail("C2: the policy of key %x does not allow group %q", c.session.key[0], c.asked.Group)
		}
		if most := w.r.core.policy.keys[c.session.key].MaxServices; most > 0 {
			first := 0
			for pub, ws := range c.session.tenant.names {
				if ws.place <= c.session.tenant.names[n.public].place {
					first += sizeOf(pub)
				}
			}
			if first > most {
				w.fail("C9: key %x has %s, its service %d by age, and the limit is %d", c.session.key[0], n.public, first, most)
			}
		}
		for _, d := range n.serving {
			if c != d && c.session == d.session {
				w.fail("C2: session %d serves %s twice", c.session.id, n.public)
			}
		}
		if len(n.serving) > 1 && c.session.key != n.held.key {
			w.stats.Group++
		}
	}
	if rec := w.r.core.sockets[socketOf(n.public)]; n.granted() && !w.r.core.stopping && rec != nil && rec.state != failed && rec.key != n.held.key {
		w.fail("C9: %s is held by key %x and charged to key %x", n.public, n.held.key[0], rec.key[0])
	}
	if n.granted() && !n.route.Up() {
		for _, c := range n.claims {
			newer := slices.ContainsFunc(n.claims, func(o *claim) bool {
				return o.session.key == c.session.key && o.session.id > c.session.id && o.session.wasUp
			})
			able := c.session.id >= c.session.tenant.newest && w.r.core.within(c.session.tenant, n) && n.held.shares(c.session.key, c.asked.Group)
			if c.session.way.Up() && !c.asked.Drained && able && !newer {
				w.fail("C6: users of %s wait, though session %d could serve them", n.public, c.session.id)
			}
		}
	}
	for _, c := range n.claims {
		if c.place != c.session.tenant.names[n.public].place {
			w.fail("C1: claim %d of session %d has a place of its own for %s", c.id, c.session.id, n.public)
		}
	}
	// Of two names that overlap at most one gets sockets.
	for _, o := range w.r.core.names {
		if n != o && n.public.Overlaps(o.public) && n.granted() && o.granted() {
			w.fail("C3: %s and %s are both to be open", n.public, o.public)
		}
	}
	if n.held != nil && !n.granted() && (n.blocked == nil || !n.blocked.granted() || !n.blocked.public.Overlaps(n.public)) {
		w.fail("C3: %s waits for its port, and nobody has it", n.public)
	}
	// Who has a name keeps it.
	before, had := w.holders[n.public]
	if had && n.held != nil && n.held.key != before.key && (before.group == "" || n.held.group != before.group) {
		for _, c := range n.claims {
			r := c.session.tenant
			if c.session.key == before.key && c.session.id >= r.newest && w.r.core.policy.keys[r.id].MaxServices == 0 {
				w.fail("C6: %s went from key %x to key %x, though the first one claims it", n.public, before.key[0], n.held.key[0])
			}
		}
	}
}

// checkOffers: with all effects done, whoever is not in the view is retired.
func (w *simProxy) checkOffers() {
	live := make(map[*Offer]bool)
	for rt := range w.r.View().All {
		newest := make(map[KeyID]SessionID)
		offers := rt.state.Load().offers
		for _, o := range offers {
			if l := o.way.(*simLink); l.up {
				newest[o.Key] = max(newest[o.Key], o.Session)
			}
		}
		for _, o := range offers {
			if !slices.Contains(w.offers, o) {
				w.offers = append(w.offers, o)
			}
			live[o] = true
			switch {
			case o.retired:
				w.fail("C6: a retired offer of %s is in the view", rt.Public)
			case o.Session < newest[o.Key]:
				w.fail("C6: session %d still gets users of %s, though session %d is up", o.Session, rt.Public, newest[o.Key])
			}
		}
	}
	if w.r.core.effects.n > 0 {
		return
	}
	for _, o := range w.offers {
		if !live[o] && !o.retired {
			w.fail("C4: claim %d of session %d is in no route, and can be opened", o.id, o.Session)
		}
	}
	w.offers = slices.DeleteFunc(w.offers, func(o *Offer) bool { return o.retired })
}

// checkThaw: what a fresh core derives from the document is what the present one holds.
func (w *simProxy) checkThaw() {
	doc := w.r.core.freeze()
	fresh, err := thaw(doc, w.policy, w.way)
	if err != nil {
		w.fail("C11: %v", err)
		return
	}
	if got, want := fresh.derived(), w.r.core.derived(); got != want {
		w.fail("C1: from the inputs follows\n%s\nand the index has\n%s", got, want)
	}
	for _, e := range fresh.effects.all() {
		if e.claim == nil {
			continue
		}
		if c := w.r.core.sessions[e.claim.session.id].claims[e.claim.id]; !c.queued {
			w.fail("C7: claim %d of session %d is to be told, and nothing is on its way", c.id, c.session.id)
		}
	}
	for id, s := range w.r.core.sessions {
		for _, c := range s.claims {
			if c.queued && w.r.core.answer(c).Status != 0 && c.owed != fresh.sessions[id].claims[c.id].owed {
				w.fail("C11: the document does not say that claim %d of session %d has no answer", c.id, id)
			}
		}
		if !maps.Equal(s.owed, fresh.sessions[id].owed) {
			w.fail("C11: the document does not say which UNCLAIMs of session %d have no answer", id)
		}
	}
	before := w.r.core.settled
	w.r.change(func(co *core) {
		effects := co.effects.n
		for _, n := range co.names {
			co.touch(n)
		}
		co.settle()
		if co.effects.n != effects || len(co.changed) != 0 {
			w.fail("C1: to settle again brings %d effects", co.effects.n-effects)
		}
	})
	w.r.core.settled = before
}

// derived is what follows from the inputs, as a text.
func (co *core) derived() string {
	var b strings.Builder
	for _, p := range sortedNames(co.names) {
		n := co.names[p]
		fmt.Fprintf(&b, "%s", p)
		if n.held != nil {
			fmt.Fprintf(&b, " held %x %q", n.held.key[0], n.held.group)
		}
		if n.blocked != nil {
			fmt.Fprintf(&b, " blocked by %s", n.blocked.public)
		}
		for _, c := range n.claims {
			fmt.Fprintf(&b, " claim %d/%d", c.session.id, c.id)
		}
		for _, c := range n.serving {
			fmt.Fprintf(&b, " serves %d/%d", c.session.id, c.id)
		}
		if n.route != nil {
			for _, o := range n.route.state.Load().offers {
				fmt.Fprintf(&b, " offer %d/%d %+v", o.Session, o.id, *o.attrs.Load())
			}
		}
		fmt.Fprintln(&b)
	}
	for _, id := range slices.Sorted(maps.Keys(co.sessions)) {
		s := co.sessions[id]
		fmt.Fprintf(&b, "session %d, newest %d\n", id, s.tenant.newest)
		for _, c := range sortedClaims(s) {
			fmt.Fprintf(&b, "claim %d place %d %s: %+v\n", c.id, c.place, c.public, co.answer(c))
		}
	}
	wanted := make(map[pub]bool)
	for s := range co.wanters {
		wanted[s.Public()] = true
	}
	fmt.Fprintln(&b, sortedNames(wanted))
	return b.String()
}

// all are the effects, in no order among keys.
func (q *queue) all() (all []effect) {
	for _, key := range q.turn {
		all = append(all, q.of[key]...)
	}
	if len(all) != q.n || len(q.turn) != len(q.of) {
		panic(fmt.Sprintf("%d effects are counted, %d are there; %d keys have turns, %d have effects", q.n, len(all), len(q.turn), len(q.of)))
	}
	return all
}
