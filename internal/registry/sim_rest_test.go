package registry

import (
	"maps"
	"slices"

	"reverser/internal/claims"
	"reverser/internal/grammar"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// drain lets everything come to rest, looks, and ends all.
func (w *sim) drain() {
	w.calm = true
	for _, p := range w.proxies {
		switch w.pick("roomy", 4) {
		case 0, 1:
			p.room = 1000
		case 2:
			p.room = min(p.room, w.pick("room", 10))
		}
	}
	w.trace("to rest")
	for _, p := range w.proxies {
		for _, l := range slices.Clone(p.links) { // of bridges that have begun another one
			if !l.present() {
				l.end()
			}
		}
		for _, l := range p.links {
			if !l.control {
				l.attach()
			}
			l.up = true
			p.r.LinkUp(l.id, true)
		}
	}
	for range 6 { // an answer may open what waited for it
		for _, p := range w.proxies {
			p.retry()
		}
		for n := 0; !w.quiet() && w.err == nil; n++ {
			for _, p := range w.proxies {
				p.settleDown()
			}
			if w.check(); n > 10_000 {
				w.fail("C7: nothing comes to rest")
			}
		}
	}
	for range 4 {
		for _, p := range w.proxies {
			for _, l := range p.links {
				l.time()
			}
		}
	}
	for _, p := range w.proxies {
		p.rest()
	}
	for _, p := range w.proxies {
		if w.err == nil {
			p.finale()
		}
	}
}

// quiet reports whether nothing is under way any more.
func (w *sim) quiet() bool {
	for _, p := range w.proxies {
		if p.r.core.effects.n+len(p.pending) > 0 {
			return false
		}
		for _, l := range p.links {
			if !l.toProxy.empty() || !l.toBridge.empty() || slices.ContainsFunc(l.slots[:], func(sl *simSlot) bool { return len(sl.flight) > 0 }) {
				return false
			}
		}
	}
	return true
}

// settleDown moves everything on by one step.
func (w *simProxy) settleDown() {
	w.finish()
	for _, l := range slices.Clone(w.links) {
		l.toProxy.write(w.sim)
		l.toBridge.write(w.sim)
		l.hear()
		w.check()
		l.learn()
		for _, sl := range l.slots {
			sl.down = false
			sl.deliver()
		}
	}
}

// finale lets the users finish, stops the proxy or not, ends all sessions, and looks at what is left.
func (w *simProxy) finale() {
	for range 100 * (len(w.users) + 1) {
		w.move()
	}
	for _, u := range w.users {
		if u.changed != nil && (u.route.Up() || w.r.View().Find(u.name) != u.route) {
			w.fail("C6: a user of %s waits, and nobody wakes them", u.name)
		}
	}
	if w.pick("stop", 4) == 0 {
		w.stop()
	}
	for len(w.links) > 0 {
		w.links[0].end()
	}
	w.finish()
	w.check()
	for len(w.users) > 0 {
		w.over(w.users[0])
	}
	w.checkAccounts()
	co := &w.r.core
	left := len(co.sessions) + len(co.names) + len(co.holdings) + len(co.sockets) + len(co.tenants) + len(co.places) + len(co.wanters) +
		len(co.bound) + len(co.waiting) + len(co.taken) + len(co.failed) + co.crowding.held + len(co.crowding.of) + len(co.crowding.tenants) + co.crowding.waiting + co.short + len(co.looking) + co.effects.n + len(w.open)
	if left != 0 {
		w.fail("C10: with all sessions over something is left: %+v, open %v", co, w.open)
	}
	if load := w.conns.Load(); load != (traffic.Load{}) {
		w.fail("C10: with all users over something is left: %+v", load)
	}
}

// stop is what a proxy does that drains: nobody comes any more, who was let in is served, and bridges may go on to talk.
func (w *simProxy) stop() {
	w.trace("the proxy stops")
	w.stats.Stops++
	w.stopped = true
	w.conns.Shut()
	w.r.Stop()
	w.come()
	for _, b := range w.bridges {
		b.reload()
	}
	for range 30 {
		l := w.link()
		l.toProxy.write(w.sim)
		l.hear()
		w.r.step(w)
		w.sim.check()
	}
	w.finish()
	w.check()
	if len(w.open) != 0 {
		w.fail("C10: the proxy stops, and %v are open", w.open)
	}
	for rt := range w.r.View().All { // a user who was accepted just now
		if b := rt.state.Load().best(nil); b != nil && b.retired {
			w.fail("C6: %s is served no more, though the proxy has only stopped to take newcomers", rt.Public)
		}
	}
}

// rest looks at what holds once nothing moves.
func (w *simProxy) rest() {
	co := &w.r.core
	for _, l := range w.links {
		s, b := co.sessions[l.id], l.u.b
		for _, id := range b.s.IDs() {
			svc, c := b.s.Offered(id), s.claims[id]
			if c == nil {
				w.fail("C7: claim %d of session %d is not known", id, s.id)
				return
			}
			if a := co.answer(c); a.Status == 0 || a != c.told {
				w.fail("C7: the answer to claim %d of session %d is %+v, it was told %+v", id, s.id, a, c.told)
			}
			_, there := co.words(c, c.told)
			want := w.asRead(id, Told{Answer: c.told, Bridge: there}.Claimed())
			if k := l.u.c.Known(id); k.Pending || k.State != want.State || c.told.Why == WhyDenied && k.Reason != want.Reason {
				w.fail("C7: the bridge of session %d knows %+v of claim %d, which was told %+v", s.id, *k, id, want)
			}
			if c.asked.Target != svc.TargetName() || c.asked.Public != svc.Public.String() || c.asked.Group != b.attrs[id].Group {
				w.fail("C7: claim %d of session %d is %+v, and the service %s to %s", id, s.id, c.asked, svc.Public, svc.TargetName())
			}
		}
		if n := len(l.u.c.Unconfirmed(slices.Collect(maps.Keys(b.publics)))); n != 0 || len(s.owed) != 0 {
			w.fail("C7: session %d has %d services without an answer and %d UNCLAIMs", s.id, n, len(s.owed))
		}
		for id := range b.publics {
			if svc, _ := l.u.c.Retired(id); svc != nil {
				w.fail("C7: service %d of session %d is retired still", id, s.id)
			}
		}
		if len(s.claims) != len(b.s.IDs()) {
			w.fail("C7: session %d has %d claims of %d", s.id, len(s.claims), len(b.s.IDs()))
		}
	}
	served := make(map[KeyID]int)
	wanted := 0
	for _, n := range co.names {
		of := make(map[KeyID]bool)
		for _, c := range n.serving {
			of[c.session.key] = true
			if slices.ContainsFunc(c.session.tenant.sessions, func(s *session) bool { return s.id > c.session.id && s.round && s.way.(*simLink).up }) {
				w.fail("C6: session %d still serves %s, after a newer one said all its claims", c.session.id, n.public)
			}
		}
		for id := range of {
			served[id]++
		}
		if n.granted() && !placed(n.public) {
			rec := co.sockets[socketOf(n.public)]
			if rec != nil && rec.short {
				w.stats.Short++
				if w.holds(n.held.key) < w.Room() {
					w.fail("C3: %s waits for descriptors, though key %x has %d and %d are free", n.public, n.held.key[0], w.holds(n.held.key), w.Room())
				}
				continue
			}
			wanted++
			if w.open[socketOf(n.public)] == 0 {
				w.fail("C3: %s is held and not open", n.public)
			}
		}
		for _, c := range n.claims {
			a := co.answer(c)
			if w.free(n, c) && a.Why != WhyShort && a.Why != WhyCrowded && a.Status != wire.ClaimUp {
				w.fail("C2: nobody else wants %s, and the answer is %+v", n.public, a)
			}
		}
	}
	for id, n := range served {
		if most := co.policy.keys[id].MaxServices; most > 0 && n > most {
			w.fail("C9: key %x has %d names, at most %d", id[0], n, most)
		}
	}
	if wanted != len(w.open) {
		w.fail("C3: %d sockets are open, %d are wanted", len(w.open), wanted)
	}
}

// asRead is what a bridge reads of a CLAIMED, whose text may be cut.
func (w *simProxy) asRead(id uint32, c wire.Claimed) claims.Answer {
	f, _, err := wire.Parse(wire.AppendClaimed(nil, id, c))
	if err != nil {
		w.fail("%v", err)
		return claims.Answer{}
	}
	_, c, _ = wire.ParseClaimed(f)
	return claims.AnswerOf(c)
}

// free reports whether nothing stands in the way of a claim, by another rule than the core's: the only claim of its port.
func (w *simProxy) free(n *name, c *claim) bool {
	for _, s := range w.r.core.sessions {
		for _, o := range s.claims {
			if o != c && (placeOf(o.public) == placeOf(n.public) || o.public == (grammar.Public{})) {
				return false
			}
		}
	}
	r := c.session.tenant
	return w.r.core.policy.keys[r.id].MaxServices == 0 && len(r.sessions) == 1
}
