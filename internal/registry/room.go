package registry

import (
	"cmp"
	"slices"

	"reverser/internal/grammar"
)

// loss is what a session loses when its key claims too much: a claim, or a name that it inherited.
type loss struct {
	claim  *claim // nil: inherited
	public grammar.Public
	place  uint64
}

// drop forgets a claim.
func (co *core) drop(c *claim) {
	s := c.session
	co.leave(c)
	delete(s.claims, c.id)
	s.options -= len(c.asked.Options)
}

// claimed is how much a key claims in all its sessions.
func (r *tenant) claimed() (n int) {
	for _, s := range r.sessions {
		n += len(s.claims) + len(s.inherited)
	}
	return n
}

// roomFor reports whether a session may claim one more: its key claims less than it may, or something of an older session can go for it, or
// something that it inherited itself.
func (co *core) roomFor(s *session) bool {
	if s.tenant.claimed() < MaxClaims || len(s.inherited) > 0 {
		return true
	}
	return slices.ContainsFunc(s.tenant.sessions, func(o *session) bool { return o.id < s.id && len(o.claims)+len(o.inherited) > 0 })
}

// makeRoom takes from a key what it claims too much because of c: the same name of an older session, which c has taken over, else something
// of the oldest session, and at last what its own session inherited.
func (co *core) makeRoom(c *claim) {
	r := c.session.tenant
	if r.claimed() <= MaxClaims {
		return
	}
	for _, s := range r.sessions {
		if s == c.session {
			break
		}
		if o := s.first[c.public]; o != nil && c.name != nil {
			co.drop(o)
			return
		}
		if _, heir := s.inherited[c.public]; heir && c.name != nil {
			co.giveUp(s, c.public)
			return
		}
	}
	for _, s := range r.sessions {
		if co.lose(s, s == c.session) || s == c.session {
			return
		}
	}
}

// lose has a session lose the least of what it has, a name that it inherited first, and only that if inheritedOnly is true. It reports whether there
// was anything.
func (co *core) lose(s *session, inheritedOnly bool) bool {
	for {
		if len(s.losses) == 0 {
			s.losses = s.listLosses(inheritedOnly)
		}
		if len(s.losses) == 0 {
			return false
		}
		l := s.losses[len(s.losses)-1]
		s.losses = s.losses[:len(s.losses)-1]
		if _, there := s.inherited[l.public]; l.claim == nil && there {
			co.giveUp(s, l.public)
			return true
		}
		if l.claim != nil && s.claims[l.claim.id] == l.claim && !inheritedOnly {
			co.drop(l.claim)
			return true
		}
	}
}

// listLosses lists what a session may lose, the first last: inherited names, claims that have no name or not the first of their session for
// it, then the others; of each the latest in line first.
func (s *session) listLosses(inheritedOnly bool) (all []loss) {
	for pub, h := range s.inherited {
		all = append(all, loss{nil, pub, h.place})
	}
	if !inheritedOnly {
		for _, c := range s.claims {
			all = append(all, loss{c, c.public, c.place})
		}
	}
	rank := func(l loss) int {
		switch {
		case l.claim == nil:
			return 2
		case l.claim.name == nil || s.first[l.public] != l.claim:
			return 1
		}
		return 0
	}
	slices.SortFunc(all, func(a, b loss) int {
		born := func(l loss) uint64 {
			if l.claim == nil {
				return 0
			}
			return l.claim.born
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.place, b.place), cmp.Compare(born(a), born(b)))
	})
	return all
}
