package registry

import (
	"cmp"
	"slices"

	"reverser/internal/grammar"
)

// This is the index of core: which claims want which name. Events change it, and settle reads it. Each claim and each inherited name is
// listed at its name, and each key has its names in the order in which it asked for them.

// enter puts a claim that judge has seen among those who want its name; at is its place in line unless its key has one already.
func (co *core) enter(c *claim, at uint64) {
	if c.denied != "" {
		c.place = at
		co.review(c)
		return
	}
	n := co.nameOf(c.public)
	c.name, c.place = n, at
	s := c.session
	if ws := s.tenant.names[c.public]; ws != nil {
		c.place = ws.place
	}
	co.count(s.tenant, n, c.place)
	if _, mine := s.inherited[c.public]; mine {
		co.giveUp(s, c.public)
	}
	if s.first[c.public] != nil {
		s.more[c.public] = append(s.more[c.public], c)
		co.review(c)
		return
	}
	co.lead(c)
}

// lead makes a claim the one of its session for its name.
func (co *core) lead(c *claim) {
	n := c.name
	c.session.first[c.public] = c
	at, _ := slices.BinarySearchFunc(n.claims, c, byPlace)
	n.claims = slices.Insert(n.claims, at, c)
	n.asked = append(n.asked, c)
	co.visit(n)
}

// leave is the end of what enter began.
func (co *core) leave(c *claim) {
	n, s := c.name, c.session
	if n == nil {
		return
	}
	c.name = nil
	if c.offer != nil {
		n.left = append(n.left, c.offer)
		c.offer = nil
	}
	co.uncount(s.tenant, n)
	co.visit(n)
	more := s.more[n.public]
	if s.first[n.public] != c {
		for i, o := range slices.Backward(more) {
			if o == c {
				s.setMore(n.public, slices.Delete(more, i, i+1))
				break
			}
		}
		return
	}
	delete(s.first, n.public)
	n.claims = slices.DeleteFunc(n.claims, func(o *claim) bool { return o == c })
	if len(more) > 0 {
		s.setMore(n.public, more[1:])
		co.lead(more[0])
	}
}

func (s *session) setMore(pub grammar.Public, more []*claim) {
	if len(more) == 0 {
		delete(s.more, pub)
		return
	}
	s.more[pub] = more
}

func (co *core) inherit(s *session, pub grammar.Public, h inheritance) {
	n := co.nameOf(pub)
	s.inherited[pub] = h
	n.heirs = append(n.heirs, s.heir)
	co.count(s.tenant, n, h.place)
	co.touch(n)
}

func (co *core) giveUp(s *session, pub grammar.Public) {
	n := co.names[pub]
	at := slices.Index(n.heirs, s.heir)
	if at < 0 {
		return
	}
	delete(s.inherited, pub)
	n.heirs = slices.Delete(n.heirs, at, at+1)
	co.uncount(s.tenant, n)
	co.touch(n)
}

// count adds a name to those that a key wants. Where the key may not have so many, the last one in line is out.
func (co *core) count(r *tenant, n *name, at uint64) {
	ws := r.names[n.public]
	if ws == nil {
		ws = &wish{name: n, place: at, size: sizeOf(n.public)}
		r.names[n.public] = ws
		r.queue(ws, co.touch)
	}
	ws.refs++
}

func (co *core) uncount(r *tenant, n *name) {
	ws := r.names[n.public]
	if ws.refs--; ws.refs > 0 {
		return
	}
	if ws.awaits {
		co.setAwaits(r, ws, false)
	}
	delete(r.names, n.public)
	r.dequeue(ws, co.touch)
}

// sizeOf is how many services a name counts as: a range of ports counts each of them.
func sizeOf(pub grammar.Public) int { return max(len(socketsOf(pub)), 1) }

// queue puts a wish in its place in line. changed is called for each name that is over the limit now.
func (r *tenant) queue(ws *wish, changed func(*name)) {
	i := r.rank(ws.place)
	r.order = slices.Insert(r.order, i, ws)
	if i <= r.within {
		r.within++
		r.size += ws.size
	}
	r.fit(changed)
}

// dequeue takes a wish out of the line. changed is called for each name that is within the limit now.
func (r *tenant) dequeue(ws *wish, changed func(*name)) {
	i := r.rank(ws.place)
	r.order = slices.Delete(r.order, i, i+1)
	if i < r.within {
		r.within--
		r.size -= ws.size
	}
	r.fit(changed)
}

// fit finds how many of the wishes the limit allows, the earliest first. It looks only at those for which that changes.
func (r *tenant) fit(changed func(*name)) {
	if r.key == nil { // its sessions are about to end
		return
	}
	most := r.key.MaxServices
	for r.within > 0 && most > 0 && r.size > most {
		r.within--
		r.size -= r.order[r.within].size
		changed(r.order[r.within].name)
	}
	for r.within < len(r.order) && (most == 0 || r.size+r.order[r.within].size <= most) {
		r.size += r.order[r.within].size
		changed(r.order[r.within].name)
		r.within++
	}
}

// rank is where a place stands in the order.
func (r *tenant) rank(at uint64) int {
	i, _ := slices.BinarySearchFunc(r.order, at, func(ws *wish, at uint64) int { return cmp.Compare(ws.place, at) })
	return i
}

// renew finds the newest session of a key that has taken over everything from older ones.
func (co *core) renew(r *tenant) {
	newest := SessionID(0)
	for _, s := range r.sessions {
		if s.wasUp && s.round {
			newest = s.id
		}
	}
	if newest == r.newest {
		return
	}
	r.newest = newest
	for _, s := range r.sessions {
		for _, c := range s.first {
			co.touch(c.name)
		}
		for pub := range s.inherited {
			co.touch(co.names[pub])
		}
	}
}

func (co *core) nameOf(pub grammar.Public) *name {
	n := co.names[pub]
	if n == nil {
		n = &name{public: pub}
		co.names[pub] = n
	}
	return n
}

// touch has a name settled, and the answers to all of its claims looked at.
func (co *core) touch(n *name) {
	n.all = true
	co.visit(n)
}

// visit has a name settled. The answers to its claims are looked at if what they follow from has changed.
func (co *core) visit(n *name) {
	if !n.touched {
		n.touched = true
		co.touched = append(co.touched, n)
	}
}

func byPlace(a, b *claim) int {
	return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.born, b.born))
}

func sortedClaims(s *session) []*claim {
	cs := make([]*claim, 0, len(s.claims))
	for _, c := range s.claims {
		cs = append(cs, c)
	}
	slices.SortFunc(cs, byPlace)
	return cs
}

func sortedNames[V any](m map[grammar.Public]V) []grammar.Public {
	names := make([]grammar.Public, 0, len(m))
	for pub := range m {
		names = append(names, pub)
	}
	slices.SortFunc(names, comparePublic)
	return names
}

func comparePublic(a, b grammar.Public) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Path, b.Path))
}
