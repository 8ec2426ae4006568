// Package claims is the bridge's side of what is claimed at a proxy.
//
// It decides which id each service has, what each proxy is told, and how long a service that was removed serves the users who were on
// their way. It is deterministic: it has no clock, no lock, no goroutine, and does no I/O. The caller holds a lock
// around each call. The proxy's side is internal/registry.
package claims

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// The way of a claim through this file:
//
//  1. Services.Apply gives every service an id. A service that was there before keeps its id.
//  2. Link.Attached and Services.Apply put frames into the queue of each link: CLAIM, UNCLAIM, ROUND. Link.Take
//     returns them, and the caller sends them on slot 0 in this order. Say.Append makes their bytes.
//  3. AnswerOf reads a CLAIMED. Link.Claimed takes the proxy's answer to a CLAIM, Link.Unclaimed that to an UNCLAIM.
//  4. Link.Opened finds the service of a new stream. A service that was removed is retired: it serves the streams that
//     the proxy opened before it gave the service back.

// RetireAfter is how long a slot must have been attached, or at rest, since UNCLAIMED, in all, until an OPEN that was sent before
// must have come, or will never come. The proxy does not send a stream that it opened and reset before its turn came.
const RetireAfter = time.Minute

// MaxServices is how many services a bridge may offer, and how many that were removed a link keeps for the streams that
// still may come.
const MaxServices = 16_384

// Services is what the bridge offers, by id. It is the same for all links.
type Services struct {
	last    uint32 // the id that was given last; ids are never used again
	offered map[uint32]*Offered
	byName  map[grammar.Public]*Offered
	links   []*Link
}

// Service is one thing that a bridge is to offer.
type Service struct {
	Public  grammar.Public
	Target  grammar.Target
	Options grammar.Options
	// Handle, when set, takes the connections in place of Target. It is called in a goroutine of its own and closes the
	// connection.
	Handle func(net.Conn)
	// TLS, when set, has the bridge end the users' TLS: Target gets the plain text.
	TLS *tls.Config
}

// TargetName names what a service leads to, for logs and status.
func (s Service) TargetName() string {
	if s.Handle != nil {
		return "this program"
	}
	return s.Target.String()
}

// Offered is one thing that the bridge offers, or offered. It does not change: another target makes another value with the
// same id.
type Offered struct {
	ID uint32
	Service
	options []byte // what its claim says of Service.Options
}

// Link is what one proxy knows of the services: what it was told, what it answered, and what it has to give back.
type Link struct {
	of       *Services
	attach   bool // the control connection is attached
	known    map[uint32]*Claim
	retired  map[uint32]*retired
	answered []*retired // those of retired with marks, in the order of the answers
	slots    map[uint8]slotTime
	queue    []Say
	overflow bool // the proxy gives nothing back
	looks    int  // how often a retired service was looked at; tests bound it
}

// Claim is the state of a service at one proxy.
type Claim struct {
	said    bool           // the proxy has been told of it in this session
	Pending bool           // the last CLAIM has no answer yet
	State   string         // one of the states of status.Service
	Public  grammar.Public // that the proxy serves
	Reason  string         // why it is not up
	Drained bool           // the proxy lets no new users in, by order of its operator
	Answers int            // of the proxy, so far
	Proven  bool           // the public port has answered since the service came up
	Probe   status.Probe   // what came of the last probe of the public port
}

// retired is a service that was removed and serves the streams that the proxy opened before it knew.
type retired struct {
	*Offered
	public   grammar.Public // that the proxy served
	answered bool
	marks    []mark // of the slots that have not reached theirs; none without an answer
}

// mark is the highest stream that the proxy had opened on a slot when it gave a service back.
type mark struct {
	slot   uint8
	stream uint64
	until  time.Duration // when the slot has been attached or at rest that long in all, nothing below the mark can come any more
}

// slotTime is what a slot has seen in this session.
type slotTime struct {
	stream   uint64        // the highest that the proxy opened here
	due      uint64        // the lowest mark that a retired service waits for here; 0: none does
	attached time.Duration // how long it had a connection or needed none, in all
}

// Say is a frame for the proxy.
type Say struct {
	Kind    Kind
	ID      uint32 // 0 with SayRound
	Service *Offered
}

// Kind is what a frame says.
type Kind uint8

// The kinds of frames.
const (
	SayClaim Kind = iota + 1
	SayUnclaim
	SayRound
)

// sayRoundName names ROUND in the queue of the control connection, beside the ids of claims.
const sayRoundName = 1 << 32

// Name is the same for frames of which a later one takes the place of an earlier one that was not sent.
func (f Say) Name() uint64 {
	if f.Kind == SayRound {
		return sayRoundName
	}
	return uint64(f.ID)
}

// Append appends the frame.
func (f Say) Append(b []byte) []byte {
	switch f.Kind {
	case SayClaim:
		return wire.AppendClaim(b, f.ID, wire.Claim{Public: f.Service.Public.String(), Target: f.Service.TargetName(), Options: f.Service.options})
	case SayUnclaim:
		return wire.AppendUnclaim(b, f.ID)
	}
	return wire.AppendRound(b)
}

// New returns what a bridge without services and proxies has.
func New() *Services {
	return &Services{offered: make(map[uint32]*Offered), byName: make(map[grammar.Public]*Offered)}
}

// AddLink adds a proxy that is to serve all services.
func (s *Services) AddLink() *Link {
	c := &Link{of: s, known: make(map[uint32]*Claim), retired: make(map[uint32]*retired), slots: make(map[uint8]slotTime)}
	for id, svc := range s.offered {
		c.known[id] = newClaim(svc)
	}
	s.links = append(s.links, c)
	return c
}

func newClaim(svc *Offered) *Claim {
	return &Claim{Pending: true, State: status.ServiceAway, Public: svc.Public}
}

// Apply makes want what the bridge offers, as a whole or, with an error, not at all. It returns the ids of the services
// that were added, changed for the proxy, or removed.
func (s *Services) Apply(want []Service) (changed []uint32, err error) {
	if len(want) > MaxServices {
		return nil, fmt.Errorf("%d services, one bridge exposes at most %d", len(want), MaxServices)
	}
	wanted := make(map[grammar.Public]bool, len(want))
	options, all := make([][]byte, len(want)), 0
	added := 0
	for i, w := range want {
		if wanted[w.Public] {
			return nil, fmt.Errorf("%s is there twice", w.Public)
		}
		if options[i], err = w.Options.Proxy.Encode(); err != nil {
			return nil, fmt.Errorf("%s: %w", w.Public, err)
		}
		if all += len(options[i]); all > grammar.MaxAllProxyOptions {
			return nil, fmt.Errorf("the options of all services for the proxy are more than %d bytes", grammar.MaxAllProxyOptions)
		}
		wanted[w.Public] = true
		if s.byName[w.Public] == nil {
			added++
		}
	}
	if uint64(s.last)+uint64(added) > 1<<32-1 {
		return nil, errors.New("this process has given all numbers of services: restart it")
	}
	for _, id := range s.IDs() { // first, so that the proxy has room for the new ones and their names are free
		if old := s.offered[id]; !wanted[old.Public] {
			s.remove(old)
			changed = append(changed, id)
		}
	}
	for i, w := range want {
		if s.offer(w, options[i]) {
			changed = append(changed, s.byName[w.Public].ID)
		}
	}
	return changed, nil
}

// Offered returns the service that has the id; nil: it is not offered.
func (s *Services) Offered(id uint32) *Offered { return s.offered[id] }

// Find returns the service of a public name; nil: it is not offered.
func (s *Services) Find(public grammar.Public) *Offered { return s.byName[public] }

// IDs returns the ids of all services in order.
func (s *Services) IDs() []uint32 {
	ids := make([]uint32, 0, len(s.offered))
	for id := range s.offered {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// offer adds a service, or changes it. It reports whether the proxies must be told.
func (s *Services) offer(w Service, options []byte) bool {
	old := s.byName[w.Public]
	svc := &Offered{Service: w, options: options}
	if old != nil {
		svc.ID = old.ID
	} else {
		s.last++
		svc.ID = s.last
	}
	s.offered[svc.ID], s.byName[w.Public] = svc, svc
	if old != nil && old.TargetName() == svc.TargetName() && bytes.Equal(old.options, svc.options) {
		return false
	}
	for _, c := range s.links {
		if old == nil {
			c.known[svc.ID] = newClaim(svc)
		}
		c.claim(svc)
	}
	return true
}

func (s *Services) remove(svc *Offered) {
	delete(s.offered, svc.ID)
	delete(s.byName, svc.Public)
	for _, c := range s.links {
		c.retire(svc)
	}
}

// claim queues a CLAIM. While the control connection is away nothing is queued: Attached repeats all.
func (c *Link) claim(svc *Offered) {
	k := c.known[svc.ID]
	k.Pending = true
	if c.attach {
		k.said = true
		c.queue = append(c.queue, Say{SayClaim, svc.ID, svc})
	}
}

// retire queues an UNCLAIM and keeps the service for the streams that are on their way. A service that the proxy was never
// told of is forgotten.
func (c *Link) retire(svc *Offered) {
	k := c.known[svc.ID]
	delete(c.known, svc.ID)
	if !k.said {
		return
	}
	c.retired[svc.ID] = &retired{Offered: svc, public: k.Public}
	if c.attach {
		c.queue = append(c.queue, Say{SayUnclaim, svc.ID, svc})
	}
	if len(c.retired) <= MaxServices {
		return
	}
	if len(c.answered) == 0 {
		c.overflow = true
		return
	}
	delete(c.retired, c.answered[0].ID) // it has waited longest
	c.answered = c.answered[1:]
}

// Attached is called when slot 0 has a connection. Everything is said again: what is to be given back first, so that the proxy
// has room for what comes behind it.
func (c *Link) Attached() {
	c.attach, c.queue = true, nil
	for _, r := range c.retired {
		if !r.answered {
			c.queue = append(c.queue, Say{SayUnclaim, r.ID, r.Offered})
		}
	}
	slices.SortFunc(c.queue, func(a, b Say) int { return cmp.Compare(a.ID, b.ID) })
	for _, id := range c.of.IDs() {
		c.claim(c.of.offered[id])
	}
	c.queue = append(c.queue, Say{Kind: SayRound})
}

// Detached is called when slot 0 has lost its connection.
func (c *Link) Detached() { c.attach, c.queue = false, nil }

// Ended is called when the session is over: no stream of it can come any more, and the proxy of the next session knows
// nothing.
func (c *Link) Ended() {
	c.Detached()
	c.overflow = false
	c.answered = nil
	clear(c.retired)
	clear(c.slots)
	for _, k := range c.known {
		k.said, k.Proven, k.Pending, k.State, k.Reason, k.Drained, k.Probe = false, false, true, status.ServiceAway, "", false, status.Probe{}
	}
}

// Left holds the services of a session whose proxy is stopping. The session continues beside its successor.
type Left struct {
	of      *Services
	retired map[uint32]*retired
}

// Leave is Ended for a session that continues beside its successor. Left keeps its retired services until that session ends.
func (c *Link) Leave() *Left {
	l := &Left{c.of, c.retired}
	c.retired = make(map[uint32]*retired)
	c.Ended()
	return l
}

// Opened returns the service of a stream that the proxy opened, as Link.Opened does. An id means the same at every proxy.
func (l *Left) Opened(id uint32, stream uint64) (svc *Offered, public grammar.Public) {
	if svc = l.of.offered[id]; svc != nil {
		return svc, svc.Public
	}
	if r := l.retired[id]; r != nil && r.mayOpen(stream) {
		return r.Offered, r.public
	}
	return nil, public
}

// Take returns the frames that are to be sent, in this order, and forgets them.
func (c *Link) Take() []Say {
	q := c.queue
	c.queue = nil
	return q
}

// Excess is not nil when the proxy has answered so few UNCLAIMs that the session must end.
func (c *Link) Excess() error {
	if !c.overflow {
		return nil
	}
	return fmt.Errorf("the proxy has not given back %d services that were removed", len(c.retired))
}

// Answer is the proxy's answer to a CLAIM.
type Answer struct {
	State  string         // one of the states of status.Service
	Public grammar.Public // that is served, or is not; it counts where the bridge's own configuration names no port
	Reason string

	Drained bool // it is up, but no new users come, by order of the proxy's operator
}

// states are the states of services by the status that the proxy says. An unknown status means that the service is not up.
var states = map[wire.ClaimStatus]string{wire.ClaimUp: status.ServiceUp, wire.ClaimDenied: status.ServiceDenied}

// AnswerOf returns what a CLAIMED says.
func AnswerOf(c wire.Claimed) Answer {
	a := Answer{State: states[c.Status], Reason: c.Text, Drained: c.Drained && c.Status == wire.ClaimUp}
	if a.State == "" {
		a.State = status.ServiceRetrying
	}
	if pub, err := grammar.ParsePublic(c.Public); err == nil && pub.Kind != grammar.KindOffered {
		a.Public = pub
		if a.State == status.ServiceDenied && strings.HasPrefix(a.Reason, a.State+": ") { // there was no room for the name
			a.Reason = pub.String() + " " + a.Reason
		}
	}
	return a
}

// Heard is a claim before and after an answer. The zero value means that the answer changed nothing: the service was removed.
type Heard struct {
	Service     *Offered
	Before, Now Claim
}

// Known returns what the proxy has said of a service that is offered, else nil. Its value changes.
func (c *Link) Known(id uint32) *Claim { return c.known[id] }

// Retired returns a service that was removed and still serves, and the public name that the proxy served; nil: it is none.
func (c *Link) Retired(id uint32) (svc *Offered, public grammar.Public) {
	if r := c.retired[id]; r != nil {
		svc, public = r.Offered, r.public
	}
	return svc, public
}

// Claimed takes an answer to a CLAIM. An error says that the proxy broke the protocol.
func (c *Link) Claimed(id uint32, a Answer) (h Heard, err error) {
	if id == 0 || id > c.of.last {
		return h, fmt.Errorf("an answer for service %d, which was never claimed", id)
	}
	k := c.known[id]
	if k == nil || !k.said { // it was removed meanwhile
		return h, nil
	}
	h.Service, h.Before = c.of.offered[id], *k
	k.Pending, k.State, k.Reason, k.Drained = false, a.State, a.Reason, a.Drained
	k.Answers++
	if h.Service.Public.Kind == grammar.KindOffered && a.Public != (grammar.Public{}) {
		k.Public = a.Public // also of a service that is denied: people want to know what
	}
	if a.State != status.ServiceUp {
		k.Proven, k.Probe = false, status.Probe{}
	}
	h.Now = *k
	return h, nil
}

// Proved notes that the public port of a service answered, if the answer is still the proxy's last one.
func (c *Link) Proved(id uint32, answers int) {
	if k := c.known[id]; k != nil && k.Answers == answers && k.State == status.ServiceUp {
		k.Proven = true
	}
}

// Probed notes what came of a probe of the public port, under the same condition.
func (c *Link) Probed(id uint32, answers int, outcome status.Probe) {
	if k := c.known[id]; k != nil && k.Answers == answers && k.State == status.ServiceUp {
		k.Probe = outcome
	}
}

// Unclaimed takes the answer to an UNCLAIM: no stream above the marks names the service. An error says that the proxy broke
// the protocol.
func (c *Link) Unclaimed(id uint32, marks []wire.Mark) error {
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
			r.marks = append(r.marks, mark{m.Slot, m.Stream, c.slots[m.Slot].attached + RetireAfter})
		}
	}
	if !c.reached(r) {
		c.answered = append(c.answered, r)
	}
	return nil
}

// drop forgets the retired services that no stream can name any more.
func (c *Link) drop() {
	for slot, at := range c.slots {
		at.due = 0
		c.slots[slot] = at
	}
	c.answered = slices.DeleteFunc(c.answered, c.reached)
}

// reached forgets r if no stream can name it any more. It reports whether that is so, and else notes what r waits for.
func (c *Link) reached(r *retired) bool {
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
		delete(c.retired, r.ID)
	}
	return len(r.marks) == 0
}

// Opened returns the service of a stream that the proxy opened, and the public name that the user came to. It returns nil
// for a service that is not offered any more: the stream gets a reset.
func (c *Link) Opened(id uint32, stream uint64) (svc *Offered, public grammar.Public) {
	if svc = c.of.offered[id]; svc != nil {
		public = c.known[id].Public
	} else if r := c.retired[id]; r != nil && r.mayOpen(stream) {
		svc, public = r.Offered, r.public
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

// Tick adds d to the time for which a slot has had a connection, or needed none because the proxy has no stream there. The caller
// calls it while Waiting reports true.
func (c *Link) Tick(slot uint8, d time.Duration) {
	at := c.slots[slot]
	at.attached += d
	c.slots[slot] = at
	c.drop()
}

// Waiting reports whether retired services wait for time to pass.
func (c *Link) Waiting() bool { return len(c.answered) > 0 }

// Unconfirmed returns which of the services the proxy has not yet answered for as they are now.
func (c *Link) Unconfirmed(ids []uint32) (open []uint32) {
	for _, id := range ids {
		k, r := c.known[id], c.retired[id]
		if k != nil && k.Pending || r != nil && !r.answered {
			open = append(open, id)
		}
	}
	return open
}

// Name names a service that is offered or retired.
func (c *Link) Name(id uint32) string {
	if svc := c.of.offered[id]; svc != nil {
		return svc.Public.String()
	}
	if r := c.retired[id]; r != nil {
		return r.Public.String()
	}
	return "?"
}
