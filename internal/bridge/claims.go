package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// The way of a claim through this file:
//
//  1. services.apply gives every service an id. A service that was there before keeps its id.
//  2. claims.attached and services.apply put frames into the queue of each link: CLAIM, UNCLAIM, ROUND. claims.take
//     returns them, and the caller sends them on slot 0 in this order.
//  3. claims.claimed takes the proxy's answer to a CLAIM, claims.unclaimed that to an UNCLAIM.
//  4. claims.opened finds the service of a new stream. A service that was removed is retired: it serves the streams that
//     the proxy opened before it gave the service back.
//
// All of it is deterministic: it has no clock, no lock and does no I/O. The caller holds a lock around each call.

// retireAfter is how long a slot must have been attached since UNCLAIMED, in all, until an OPEN that was sent before must
// have come, or will never come. The proxy does not send a stream that it opened and reset before its turn came.
const retireAfter = time.Minute

// maxServices is how many services a bridge may offer, and how many that were removed a link keeps for the streams that
// still may come.
const maxServices = 16_384

// services is what the bridge offers, by id. It is the same for all links.
type services struct {
	last    uint32 // the id that was given last; ids are never used again
	offered map[uint32]*service
	byName  map[grammar.Public]*service
	links   []*claims
}

// service is one thing that the bridge offers, or offered. It does not change: another target makes another value with the
// same id.
type service struct {
	id uint32
	Service
}

// claims is what one proxy knows of the services: what it was told, what it answered, and what it has to give back.
type claims struct {
	of       *services
	attach   bool // the control connection is attached
	known    map[uint32]*claim
	retired  map[uint32]*retired
	answered []*retired // those of retired with marks, in the order of the answers
	slots    map[uint8]slotTime
	queue    []say
	overflow bool // the proxy gives nothing back
	looks    int  // how often a retired service was looked at; tests bound it
}

// claim is the state of a service at one proxy.
type claim struct {
	said    bool           // the proxy has been told of it in this session
	pending bool           // the last CLAIM has no answer yet
	state   string         // one of the states of status.Service
	public  grammar.Public // that the proxy serves
	reason  string         // why it is not up
	answers int            // of the proxy, so far
	proven  bool           // the public port has answered since the service came up
}

// retired is a service that was removed and serves the streams that the proxy opened before it knew.
type retired struct {
	*service
	public   grammar.Public // that the proxy served
	answered bool
	marks    []mark // of the slots that have not reached theirs; none without an answer
}

// mark is the highest stream that the proxy had opened on a slot when it gave a service back.
type mark struct {
	slot   uint8
	stream uint64
	until  time.Duration // when the slot has been attached that long in all, nothing below the mark can come any more
}

// slotTime is what a slot has seen in this session.
type slotTime struct {
	stream   uint64        // the highest that the proxy opened here
	due      uint64        // the lowest mark that a retired service waits for here; 0: none does
	attached time.Duration // how long it had a connection, in all
}

// say is a frame for the proxy.
type say struct {
	kind    sayKind
	id      uint32 // 0 with sayRound
	service *service
}

type sayKind uint8

const (
	sayClaim sayKind = iota + 1
	sayUnclaim
	sayRound
)

func newServices() *services {
	return &services{offered: make(map[uint32]*service), byName: make(map[grammar.Public]*service)}
}

// addLink adds a proxy that is to serve all services.
func (s *services) addLink() *claims {
	c := &claims{of: s, known: make(map[uint32]*claim), retired: make(map[uint32]*retired), slots: make(map[uint8]slotTime)}
	for id, svc := range s.offered {
		c.known[id] = newClaim(svc)
	}
	s.links = append(s.links, c)
	return c
}

func newClaim(svc *service) *claim {
	return &claim{pending: true, state: status.ServiceAway, public: svc.Public}
}

// apply makes want what the bridge offers, as a whole or, with an error, not at all. It returns the ids of the services
// that were added, changed for the proxy, or removed.
func (s *services) apply(want []Service) (changed []uint32, err error) {
	if len(want) > maxServices {
		return nil, fmt.Errorf("%d services, one bridge exposes at most %d", len(want), maxServices)
	}
	wanted := make(map[grammar.Public]bool, len(want))
	added := 0
	for _, w := range want {
		if wanted[w.Public] {
			return nil, fmt.Errorf("%s is there twice", w.Public)
		}
		wanted[w.Public] = true
		if s.byName[w.Public] == nil {
			added++
		}
	}
	if uint64(s.last)+uint64(added) > 1<<32-1 {
		return nil, errors.New("this process has given all numbers of services: restart it")
	}
	for _, id := range s.ids() { // first, so that the proxy has room for the new ones and their names are free
		if old := s.offered[id]; !wanted[old.Public] {
			s.remove(old)
			changed = append(changed, id)
		}
	}
	for _, w := range want {
		if s.offer(w) {
			changed = append(changed, s.byName[w.Public].id)
		}
	}
	return changed, nil
}

// ids returns the ids of all services in order.
func (s *services) ids() []uint32 {
	ids := make([]uint32, 0, len(s.offered))
	for id := range s.offered {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// offer adds a service, or changes it. It reports whether the proxies must be told.
func (s *services) offer(w Service) bool {
	old := s.byName[w.Public]
	svc := &service{Service: w}
	if old != nil {
		svc.id = old.id
	} else {
		s.last++
		svc.id = s.last
	}
	s.offered[svc.id], s.byName[w.Public] = svc, svc
	if old != nil && old.target() == svc.target() {
		return false
	}
	for _, c := range s.links {
		if old == nil {
			c.known[svc.id] = newClaim(svc)
		}
		c.claim(svc)
	}
	return true
}

func (s *services) remove(svc *service) {
	delete(s.offered, svc.id)
	delete(s.byName, svc.Public)
	for _, c := range s.links {
		c.retire(svc)
	}
}

// claim queues a CLAIM. While the control connection is away nothing is queued: attached repeats all.
func (c *claims) claim(svc *service) {
	k := c.known[svc.id]
	k.pending = true
	if c.attach {
		k.said = true
		c.queue = append(c.queue, say{sayClaim, svc.id, svc})
	}
}

// retire queues an UNCLAIM and keeps the service for the streams that are on their way. A service that the proxy was never
// told of is forgotten.
func (c *claims) retire(svc *service) {
	k := c.known[svc.id]
	delete(c.known, svc.id)
	if !k.said {
		return
	}
	c.retired[svc.id] = &retired{service: svc, public: k.public}
	if c.attach {
		c.queue = append(c.queue, say{sayUnclaim, svc.id, svc})
	}
	if len(c.retired) <= maxServices {
		return
	}
	if len(c.answered) == 0 {
		c.overflow = true
		return
	}
	delete(c.retired, c.answered[0].id) // it has waited longest
	c.answered = c.answered[1:]
}

// attached is called when slot 0 has a connection. Everything is said again: what is to be given back first, so that the proxy
// has room for what comes behind it.
func (c *claims) attached() {
	c.attach, c.queue = true, nil
	for _, r := range c.retired {
		if !r.answered {
			c.queue = append(c.queue, say{sayUnclaim, r.id, r.service})
		}
	}
	slices.SortFunc(c.queue, func(a, b say) int { return cmp.Compare(a.id, b.id) })
	for _, id := range c.of.ids() {
		c.claim(c.of.offered[id])
	}
	c.queue = append(c.queue, say{kind: sayRound})
}

// detached is called when slot 0 has lost its connection.
func (c *claims) detached() { c.attach, c.queue = false, nil }

// ended is called when the session is over: no stream of it can come any more, and the proxy of the next session knows
// nothing.
func (c *claims) ended() {
	c.detached()
	c.overflow = false
	c.answered = nil
	clear(c.retired)
	clear(c.slots)
	for _, k := range c.known {
		k.said, k.proven, k.pending, k.state, k.reason = false, false, true, status.ServiceAway, ""
	}
}

// take returns the frames that are to be sent, in this order, and forgets them.
func (c *claims) take() []say {
	q := c.queue
	c.queue = nil
	return q
}

// excess is not nil when the proxy has answered so few UNCLAIMs that the session must end.
func (c *claims) excess() error {
	if !c.overflow {
		return nil
	}
	return fmt.Errorf("the proxy has not given back %d services that were removed", len(c.retired))
}

// answer is the proxy's answer to a CLAIM.
type answer struct {
	state  string         // one of the states of status.Service
	public grammar.Public // that is served; it counts where the bridge's own configuration names no port
	reason string
}

// heard is a claim before and after an answer. The zero value says that the answer was of no interest.
type heard struct {
	service     *service
	before, now claim
}

// claimed takes an answer to a CLAIM. An error says that the proxy broke the protocol.
func (c *claims) claimed(id uint32, a answer) (h heard, err error) {
	if id == 0 || id > c.of.last {
		return h, fmt.Errorf("an answer for service %d, which was never claimed", id)
	}
	k := c.known[id]
	if k == nil || !k.said { // it was removed meanwhile
		return h, nil
	}
	h.service, h.before = c.of.offered[id], *k
	k.pending, k.state, k.reason = false, a.state, a.reason
	k.answers++
	if a.state == status.ServiceUp {
		if h.service.Public.Kind == grammar.KindOffered && a.public != (grammar.Public{}) {
			k.public = a.public
		}
	} else {
		k.proven = false
	}
	h.now = *k
	return h, nil
}

// proved notes that the public port of a service answered, if the answer is still the proxy's last one.
func (c *claims) proved(id uint32, answers int) {
	if k := c.known[id]; k != nil && k.answers == answers && k.state == status.ServiceUp {
		k.proven = true
	}
}

// unclaimed takes the answer to an UNCLAIM: no stream above the marks names the service. An error says that the proxy broke
// the protocol.
func (c *claims) unclaimed(id uint32, marks []wire.Mark) error {
	switch {
	case id == 0 || id > c.of.last:
		return fmt.Errorf("service %d given back, which was never claimed", id)
	case c.known[id] != nil:
		return fmt.Errorf("service %d given back, which is still claimed", id)
	}
	for i, m := range marks {
		if m.Slot == 0 || m.Stream != 0 && uint8(m.Stream) != m.Slot || m.Stream>>63 != 0 || i > 0 && m.Slot <= marks[i-1].Slot {
			return fmt.Errorf("service %d given back with a mark of %#x for slot %d, which no stream of the proxy can have there", id, m.Stream, m.Slot)
		}
	}
	r := c.retired[id]
	if r == nil || r.answered { // said twice around a break
		return nil
	}
	r.answered = true
	for _, m := range marks {
		if m.Stream > 0 {
			r.marks = append(r.marks, mark{m.Slot, m.Stream, c.slots[m.Slot].attached + retireAfter})
		}
	}
	if !c.reached(r) {
		c.answered = append(c.answered, r)
	}
	return nil
}

// drop forgets the retired services that no stream can name any more.
func (c *claims) drop() {
	for slot, at := range c.slots {
		at.due = 0
		c.slots[slot] = at
	}
	c.answered = slices.DeleteFunc(c.answered, c.reached)
}

// reached forgets r if no stream can name it any more. It reports whether that is so, and else notes what r waits for.
func (c *claims) reached(r *retired) bool {
	c.looks++
	r.marks = slices.DeleteFunc(r.marks, func(m mark) bool {
		at := c.slots[m.slot]
		return at.stream >= m.stream || at.attached >= m.until
	})
	for _, m := range r.marks {
		at := c.slots[m.slot]
		if at.due == 0 || m.stream < at.due {
			at.due = m.stream
		}
		c.slots[m.slot] = at
	}
	if len(r.marks) == 0 {
		delete(c.retired, r.id)
	}
	return len(r.marks) == 0
}

// opened returns the service of a stream that the proxy opened, and the public name that the user came to. It returns nil
// for a service that is not offered any more: the stream gets a reset.
func (c *claims) opened(id uint32, stream uint64) (svc *service, public grammar.Public) {
	if svc = c.of.offered[id]; svc != nil {
		public = c.known[id].public
	} else if r := c.retired[id]; r != nil && r.mayOpen(stream) {
		svc, public = r.service, r.public
	}
	slot := uint8(stream)
	if at := c.slots[slot]; stream > at.stream {
		at.stream = stream
		c.slots[slot] = at
		if at.due > 0 && stream >= at.due {
			c.drop()
		}
	}
	return svc, public
}

// mayOpen reports whether an honest proxy can have opened the stream before it gave the service back.
func (r *retired) mayOpen(stream uint64) bool {
	return !r.answered || slices.ContainsFunc(r.marks, func(m mark) bool { return m.slot == uint8(stream) && stream <= m.stream })
}

// tick says that a slot has had a connection for d more. It is needed while waiting reports true.
func (c *claims) tick(slot uint8, d time.Duration) {
	at := c.slots[slot]
	at.attached += d
	c.slots[slot] = at
	c.drop()
}

// waiting reports whether retired services wait for time to pass.
func (c *claims) waiting() bool { return len(c.answered) > 0 }

// unconfirmed returns which of the services the proxy has not yet answered for as they are now.
func (c *claims) unconfirmed(ids []uint32) (open []uint32) {
	for _, id := range ids {
		k, r := c.known[id], c.retired[id]
		if k != nil && k.pending || r != nil && !r.answered {
			open = append(open, id)
		}
	}
	return open
}

// name names a service that is offered or retired.
func (c *claims) name(id uint32) string {
	if svc := c.of.offered[id]; svc != nil {
		return svc.Public.String()
	}
	if r := c.retired[id]; r != nil {
		return r.Public.String()
	}
	return "?"
}
