package registry

import (
	"fmt"
	"maps"
	"slices"

	"reverser/internal/wire"
)

// simBridge is the process of a bridge.
type simBridge struct {
	*sim
	key      int
	instance byte
	next     uint32
	services map[uint32]*simService
	retired  map[uint32]*simService
	link     *simLink // nil: no session
}

// simService is a service at the bridge.
type simService struct {
	id     uint32
	claim  Claim
	answer Answer
	marks  []wire.Mark // of UNCLAIMED
	over   bool        // UNCLAIMED came
}

// simLink is a session. It is the registry's Way.
type simLink struct {
	b        *simBridge
	id       SessionID
	control  bool // slot 0 has a connection
	up       bool // the carriers have
	ended    bool
	leaving  bool
	toProxy  []simFrame
	toBridge []simFrame
	opened   [simSlots]uint64
	arrived  [simSlots]uint64
	flight   [simSlots][]simStream
}

type simKind int

const (
	simClaim simKind = iota
	simUnclaim
	simRound
	simAnswer
)

type simFrame struct {
	kind  simKind
	id    uint32
	claim Claim
	told  Answer
	marks []wire.Mark
}

type simStream struct {
	id, service uint32
	user        *simUser
}

// simUser is somebody who connected to a socket.
type simUser struct {
	name    pub
	route   *Route
	picked  *Offer              // to be opened
	tried   map[*Offer]struct{} // since the state was looked at
	changed <-chan struct{}     // waits for it
	taken   Taken
	at      *simLink
}

// end is the end of a session, at both ends.
func (l *simLink) end() {
	if l.ended {
		return
	}
	l.ended, l.control, l.up = true, false, false
	for i := range l.flight {
		for _, s := range l.flight[i] {
			if s.user != nil {
				l.b.stats.lost++
			}
		}
		l.flight[i] = nil
	}
	l.toProxy, l.toBridge = nil, nil
	if b := l.b; b.link == l {
		b.link = nil
		b.retired = make(map[uint32]*simService) // it was for this session
	}
	l.b.r.End(l.id)
}

func (b *simBridge) restart() {
	b.instance++
	b.next = 1
	b.services, b.retired = make(map[uint32]*simService), make(map[uint32]*simService)
	for _, o := range b.bridges {
		if o != b && o.key == b.key && o.services != nil && b.pick("the same services", 2) == 0 {
			for _, id := range slices.Sorted(maps.Keys(o.services)) {
				b.add(o.services[id].claim.Public)
			}
			return
		}
	}
	for range 1 + b.pick("services", 4) {
		b.expose()
	}
}

// expose adds a service. A bridge has a name once, but for one that does not know better.
func (b *simBridge) expose() {
	public := simNames[b.pick("name", len(simNames))]
	for _, s := range b.services {
		if s.claim.Public == public && b.pick("twice", 20) > 0 {
			return
		}
	}
	b.add(public)
}

func (b *simBridge) add(public string) {
	s := &simService{id: b.next, claim: Claim{Public: public}}
	b.next++
	b.alter(s)
	b.services[s.id] = s
	b.sayClaim(s)
}

func (b *simBridge) alter(s *simService) {
	s.claim.Weight = uint32(b.pick("weight", 3))
	s.claim.Unhealthy = b.pick("unhealthy", 4) == 0
	s.claim.Drained = b.pick("drained", 8) == 0
	s.claim.Target = fmt.Sprint("t", b.pick("target", 3))
	s.claim.Group = []string{"", "g"}[b.pick("group", 2)]
}

func (b *simBridge) sayClaim(s *simService) {
	if b.link != nil {
		say(&b.link.toProxy, b.link.control, simFrame{kind: simClaim, id: s.id, claim: s.claim})
	}
}

// giveBack takes a service out. It stays as retired until no stream to it can come.
func (b *simBridge) giveBack(s *simService) {
	b.trace("  bridge of session %v gives claim %d back", b.session(), s.id)
	delete(b.services, s.id)
	b.stats.unclaims++
	if b.link == nil {
		return // nobody knows of it
	}
	b.retired[s.id] = s
	say(&b.link.toProxy, b.link.control, simFrame{kind: simUnclaim, id: s.id})
}

func (b *simBridge) session() SessionID {
	if b.link == nil {
		return 0
	}
	return b.link.id
}

// repeat is what a bridge says after slot 0 was attached.
func (l *simLink) repeat() {
	for _, id := range slices.Sorted(maps.Keys(l.b.services)) {
		l.b.sayClaim(l.b.services[id])
	}
	for _, id := range slices.Sorted(maps.Keys(l.b.retired)) {
		if !l.b.retired[id].over {
			say(&l.toProxy, true, simFrame{kind: simUnclaim, id: id})
		}
	}
	l.toProxy = append(l.toProxy, simFrame{kind: simRound})
}

// hear is the proxy's reader of slot 0.
func (l *simLink) hear() {
	if len(l.toProxy) == 0 {
		return
	}
	f := l.toProxy[0]
	l.toProxy = l.toProxy[1:]
	var err error
	switch f.kind {
	case simClaim:
		l.b.trace("session %d: CLAIM %d %+v", l.id, f.id, f.claim)
		err = l.b.r.Claim(l.id, f.id, f.claim)
	case simUnclaim:
		l.b.trace("session %d: UNCLAIM %d", l.id, f.id)
		err = l.b.r.Unclaim(l.id, f.id)
	case simRound:
		l.b.trace("session %d: ROUND", l.id)
		l.b.r.Round(l.id)
	}
	if err != nil {
		l.b.fail("an honest bridge breaks a rule: %v", err)
	}
}

// learn is the bridge's reader of slot 0.
func (l *simLink) learn() {
	if len(l.toBridge) == 0 {
		return
	}
	f := l.toBridge[0]
	l.toBridge = l.toBridge[1:]
	b := l.b
	switch f.kind {
	case simAnswer:
		if s := b.services[f.id]; s != nil {
			s.answer = f.told
		}
	case simUnclaim:
		if s := b.retired[f.id]; s != nil {
			s.over, s.marks = true, f.marks
			b.stats.retired++
		}
		b.forget()
	}
}

// forget drops the retired services that no stream can be for any more.
func (b *simBridge) forget() {
	for id, s := range b.retired {
		gone := s.over
		for _, m := range s.marks {
			gone = gone && b.link.arrived[m.Slot-1] >= m.Stream
		}
		if gone {
			delete(b.retired, id)
		}
	}
}

// arrive delivers the next OPEN of a slot.
func (l *simLink) arrive(slot int) {
	if len(l.flight[slot]) == 0 {
		return
	}
	s := l.flight[slot][0]
	l.flight[slot] = l.flight[slot][1:]
	l.arrived[slot] = uint64(s.id)
	b := l.b
	svc := b.services[s.service]
	if svc == nil {
		svc = b.retired[s.service]
	}
	switch {
	case svc == nil:
		l.b.fail("C8: an OPEN names service %d, which the bridge of session %d does not have", s.service, l.id)
	case s.user != nil && svc.claim.Public != "offered" && svc.claim.Public != s.user.name.String():
		l.b.fail("C8: a user of %s comes to %s", s.user.name, svc.claim.Public)
	}
	b.stats.served++
	b.forget()
}

// connect lets a bridge begin a session, or attach slot 0 again.
func (b *simBridge) connect() {
	if l := b.link; l != nil {
		if l.control {
			return
		}
		l.control = true
		b.trace("session %d: slot 0 is back", l.id)
		l.repeat()
		return
	}
	var old *simLink
	for _, o := range b.bridges {
		if o.key == b.key && o.link != nil && !o.link.leaving {
			old = o.link
		}
	}
	if old != nil && old.up && b.pick("still alive", 4) > 0 {
		return // refused
	}
	b.begin(old)
}

// begin begins a session, in the place of another one if old is not nil.
func (b *simBridge) begin(old *simLink) {
	l := &simLink{b: b}
	s := Session{Key: KeyID{byte(b.key + 1)}, Peer: "host", Instance: [16]byte{b.instance}, Way: l}
	before := make(map[pub]*Route)
	if old != nil {
		s.Replaces = old.id
		for n := range b.r.View().All {
			if name := b.r.core.names[n.Public]; name.held.key == s.Key {
				before[n.Public] = n
			}
		}
	}
	id, err := b.r.Begin(s)
	if err != nil {
		b.trace("no session for key %d: %v", b.key, err)
		return
	}
	l.id, l.control, b.link = id, true, l
	b.retired = make(map[uint32]*simService)
	b.trace("session %d of key %d begins, in the place of %d", id, b.key, s.Replaces)
	if old != nil {
		b.stats.replaced++
		for n, rt := range before {
			if b.r.View().Find(n) != rt && old.inherits(n) {
				b.fail("C5: %s lost its route when its session was replaced", n)
			}
		}
		old.end()
	} else if slices.ContainsFunc(b.bridges, func(o *simBridge) bool { return o != b && o.key == b.key && o.link != nil }) {
		b.stats.successors++
	}
	l.repeat()
}

// inherits reports whether the claims of a link are all that a name of its key needs to be kept.
func (l *simLink) inherits(n pub) bool {
	for _, o := range l.b.bridges {
		if o.link != nil && o.key == l.b.key && o.link != l && o.link.id != l.b.link.id {
			return false
		}
	}
	return true
}
