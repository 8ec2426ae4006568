package registry

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// The document of a registry: a version, then parts, each a type, a length and that many bytes. A reader skips parts that it does
// not know. Within a part numbers are uvarints, and a text is its length and its bytes. What the successor reads for itself, the
// policy, is not in it.
const documentVersion = 2

const (
	partSeq = 1 + iota
	partSession
	partHolding
	partSocket
)

// Freeze writes the inputs. They should be at rest: see Done. What is not done by then the successor finds out and does.
func (r *Registry) Freeze() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.freeze()
}

// Thaw returns a registry that goes on where the frozen one stood, under the policy p. way finds the link of each session; nil: it
// is gone, and so are its claims.
func Thaw(doc []byte, p Policy, way func(SessionID) Way) (*Registry, error) {
	co, err := thaw(doc, p, way)
	if err != nil {
		return nil, fmt.Errorf("read the registry's document: %w", err)
	}
	r := &Registry{core: *co, wake: make(chan struct{}, 1)}
	r.view.Store(&View{})
	r.change(func(*core) {})
	return r, nil
}

type encoder struct{ b []byte }

func (e *encoder) num(v uint64)  { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) raw(b []byte)  { e.b = append(e.b, b...) }
func (e *encoder) text(s string) { e.num(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) public(p pub) {
	e.text(string(p.Kind))
	e.text(p.Host)
	e.num(uint64(p.Port))
	e.text(p.Path)
}

func (e *encoder) flags(f ...bool) { e.b = append(e.b, bits(f)) }
func (e *encoder) part(t byte, w func(*encoder)) {
	at := len(e.b) + 5
	e.b = append(e.b, t, 0, 0, 0, 0)
	w(e)
	binary.BigEndian.PutUint32(e.b[at-4:], uint32(len(e.b)-at))
}

type pub = grammar.Public

func bits(f []bool) (b byte) {
	for i, on := range f {
		if on {
			b |= 1 << i
		}
	}
	return b
}

func (co *core) freeze() []byte {
	e := &encoder{b: []byte{documentVersion}}
	e.part(partSeq, func(e *encoder) { e.num(co.seq); e.flags(co.stopping) })
	for _, id := range slices.Sorted(maps.Keys(co.sessions)) {
		e.part(partSession, co.sessions[id].freeze)
	}
	for _, name := range sortedNames(co.holdings) {
		h := co.holdings[name]
		e.part(partHolding, func(e *encoder) {
			e.public(name)
			e.raw(h.key[:])
			e.text(h.group)
			e.num(h.seq)
			e.num(h.granted)
		})
	}
	names := make(map[pub]*socket, len(co.sockets))
	for s, rec := range co.sockets {
		names[s.Public()] = rec
	}
	for _, s := range sortedNames(names) {
		e.part(partSocket, func(e *encoder) {
			e.public(s)
			e.num(uint64(names[s].state))
			e.num(names[s].attempt)
			e.text(names[s].why)
			e.flags(names[s].short)
		})
	}
	return e.b
}

func (s *session) freeze(e *encoder) {
	e.num(uint64(s.id))
	e.raw(s.key[:])
	e.raw(s.secret[:])
	e.text(s.peer)
	e.raw(s.instance[:])
	e.flags(s.wasUp, s.leaving, s.round)
	e.num(uint64(len(s.claims)))
	for _, c := range sortedClaims(s) {
		c.freeze(e)
	}
	e.num(uint64(len(s.inherited)))
	for _, p := range sortedNames(s.inherited) {
		e.public(p)
		e.num(s.inherited[p].place)
		e.text(s.inherited[p].group)
	}
	e.num(uint64(len(s.used)))
	for _, r := range s.used {
		e.num(uint64(r.low))
		e.num(uint64(r.high))
	}
	e.num(uint64(len(s.owed)))
	for _, id := range slices.Sorted(maps.Keys(s.owed)) {
		e.num(uint64(id))
	}
}

func (c *claim) freeze(e *encoder) {
	e.num(uint64(c.id))
	e.text(c.asked.Public)
	e.text(c.asked.Target)
	e.text(c.asked.Group)
	e.num(uint64(c.asked.Weight))
	e.num(uint64(c.asked.Unknown))
	e.text(c.asked.Options)
	e.flags(c.asked.Unhealthy, c.asked.Drained, c.owed)
	e.num(c.born)
	e.num(c.place)
	e.num(uint64(c.told.Status))
	e.public(c.told.Public)
	e.num(uint64(c.told.Why))
	e.raw(c.told.By[:])
	e.public(c.told.Over)
	e.text(c.told.Text)
}

var errDocument = errors.New("it is damaged")

// decoder reads what an encoder wrote. Once something is missing, all that follows is zero and err is set.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) take(n uint64) []byte {
	if uint64(len(d.b)) < n {
		d.b, d.err = nil, errDocument
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) num() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b, d.err = nil, errDocument
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) text() string { return string(d.take(d.num())) }
func (d *decoder) id() (id [16]byte) {
	copy(id[:], d.take(16))
	return id
}
func (d *decoder) secret() (s [32]byte) {
	copy(s[:], d.take(32))
	return s
}
func (d *decoder) public() pub {
	return pub{Kind: grammar.Kind(d.text()), Host: d.text(), Port: uint16(d.num()), Path: d.text()}
}
func (d *decoder) flags(f ...*bool) {
	b := d.take(1)
	for i, on := range f {
		*on = b != nil && b[0]>>i&1 == 1
	}
}

// list calls read for each element of a list.
func (d *decoder) list(read func()) {
	for n := d.num(); n > 0 && d.err == nil; n-- {
		read()
	}
}

func thaw(doc []byte, p Policy, way func(SessionID) Way) (*core, error) {
	co := newCore(p)
	if len(doc) == 0 || doc[0] != documentVersion {
		return nil, errors.New("its version is unknown")
	}
	var sessions []*session
	for d := (&decoder{b: doc[1:]}); len(d.b) > 0; {
		head := d.take(5)
		if head == nil {
			return nil, errDocument
		}
		part := &decoder{b: d.take(uint64(binary.BigEndian.Uint32(head[1:])))}
		switch head[0] {
		case partSeq:
			co.seq = part.num()
			part.flags(&co.stopping)
		case partSession:
			sessions = append(sessions, thawSession(part))
		case partHolding:
			name := part.public()
			h := &holding{key: part.id(), group: part.text(), seq: part.num(), granted: part.num()}
			co.holdings[name] = h
		case partSocket:
			s := socketOf(part.public())
			rec := &socket{state: socketState(part.num()), attempt: part.num(), why: part.text()}
			part.flags(&rec.short)
			co.sockets[s] = rec
		}
		if err := cmp.Or(d.err, part.err); err != nil {
			return nil, err
		}
	}
	if err := co.revive(sessions, way); err != nil {
		return nil, err
	}
	return co, nil
}

func thawSession(d *decoder) *session {
	s := &session{
		id: SessionID(d.num()), key: d.id(), secret: d.secret(), peer: d.text(), instance: d.id(),
		claims: make(map[uint32]*claim), inherited: make(map[pub]inheritance), owed: make(map[uint32]struct{}),
	}
	d.flags(&s.wasUp, &s.leaving, &s.round)
	d.list(func() {
		c := thawClaim(d)
		c.session = s
		s.claims[c.id] = c
		s.options += len(c.asked.Options)
	})
	d.list(func() {
		name := d.public()
		s.inherited[name] = inheritance{place: d.num(), group: d.text()}
	})
	d.list(func() { s.used = append(s.used, interval{uint32(d.num()), uint32(d.num())}) })
	d.list(func() { s.owed[uint32(d.num())] = struct{}{} })
	return s
}

func thawClaim(d *decoder) *claim {
	c := &claim{id: uint32(d.num())}
	c.asked = Claim{Public: d.text(), Target: d.text(), Group: d.text(), Weight: uint32(d.num()), Unknown: uint8(d.num()), Options: d.text()}
	d.flags(&c.asked.Unhealthy, &c.asked.Drained, &c.owed)
	c.born, c.place = d.num(), d.num()
	c.told = Answer{
		Status: wire.ClaimStatus(d.num()), Public: d.public(), Why: Why(d.num()), By: d.id(), Over: d.public(), Text: d.text(),
	}
	return c
}

// revive makes the index of what was read, and settles.
func (co *core) revive(sessions []*session, way func(SessionID) Way) error {
	for s, rec := range co.sockets {
		switch rec.state {
		case open:
			co.bind(s, rec)
		case failed:
			co.addFailed(s) // of no key until its name is settled
		default: // what came of it is not known here, and nobody will say
			delete(co.sockets, s)
		}
	}
	held := slices.SortedFunc(maps.Keys(co.holdings), func(a, b pub) int {
		x, y := co.holdings[a], co.holdings[b]
		return cmp.Or(cmp.Compare(min(y.granted, 1), min(x.granted, 1)), cmp.Compare(x.granted, y.granted), cmp.Compare(x.seq, y.seq))
	})
	for _, name := range held { // first those that have their ports
		n := co.nameOf(name)
		n.held, n.route = co.holdings[name], newRoute(name, co.holdings[name].key)
		co.addPlace(name, n.held.key, 1)
		ov := co.placeOf(n)
		if f := family(co.policy.at(name)); n.granted() {
			ov.granted[f] = append(ov.granted[f], n)
		} else {
			if !ov.block(co, n) {
				return errDocument
			}
			ov.waiting = append(ov.waiting, n)
		}
		co.touch(n)
		co.changed = append(co.changed, n)
	}
	var claims []*claim
	for _, s := range sessions {
		if s.way = way(s.id); s.way == nil {
			continue
		}
		if !co.policy.admits(s) {
			co.effects.add(s.key, effect{do: doEnd, session: s})
			continue
		}
		co.link(s)
		inherited := s.inherited
		s.inherited = make(map[pub]inheritance)
		for _, name := range sortedNames(inherited) {
			co.inherit(s, name, inherited[name])
		}
		for _, c := range s.claims {
			claims = append(claims, c)
		}
	}
	slices.SortFunc(claims, byPlace)
	for _, c := range claims {
		co.policy.judge(c)
		co.enter(c, c.place)
	}
	for _, r := range co.tenants {
		co.renew(r)
	}
	for s := range co.sockets {
		co.touch(co.nameOf(s.Public()))
	}
	co.crowding.freed = true // there may be more places than there were
	co.settle()
	for _, s := range sessions {
		for _, id := range slices.Sorted(maps.Keys(s.owed)) {
			if co.sessions[s.id] == s {
				co.effects.add(s.key, effect{do: doUnclaim, session: s, id: id})
			}
		}
	}
	return nil
}
