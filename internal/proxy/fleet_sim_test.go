package proxy

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
)

// fleetSim plays a proxy and very many bridges in virtual time. What decides is the program's own: the room, who is let in and
// whose handshake is computed next, and link.Backoff, when a bridge tries again. What they decide about is modelled: round
// trips, processors that do one thing after the other, and how a bridge goes about a session:
//
//  1. All connections of a bridge break. Each of them is dialled, after the pause of Backoff. Where the proxy announced its stop, the
//     bridge dials one.
//  2. The first that is proven learns that the session is gone: it becomes the control connection of the next one, and the others are
//     given up.
//  3. When it is attached, the bridge claims its port, and dials its carriers. It serves when the claim is answered and a carrier
//     attached.
//
// An attempt is given up after callLimit, and while it is connected and unanswered for stalled another one is made beside it, as in
// link/call.go. Only the jitter of Backoff differs between two runs.
type fleetSim struct {
	fleetCosts
	now    time.Duration
	events eventHeap
	seq    uint64
	rng    *rand.Rand
	room   *room
	up     bool // the proxy listens

	free []time.Duration // when each processor has done what it was given
	work []task          // that no processor has taken yet: first come, first served
	head int

	used     time.Duration // by the processors
	useful   time.Duration // of it for connections that came to serve
	attempts int
	bridges  []*simBridge
	served   func(b *simBridge, took time.Duration)
}

// fleetCosts are the parameters. Those of the processor are measured by the rows of fleets in bench/compare: 0.5 to 0.7 ms for each
// connection, and 0.3 ms for each bridge.
type fleetCosts struct {
	processors int
	accept     time.Duration // a connection, be it to refuse it
	hello      time.Duration // from ClientHello to the server's flight: in turn
	finish     time.Duration // from the client's flight to Welcome
	attach     time.Duration // of a connection
	claim      time.Duration // of a bridge: the socket, the registry and the probe
	carriers   int           // that a bridge dials beside the control connection
	rtt        func(r *rand.Rand) time.Duration
}

func defaultFleet() fleetCosts {
	return fleetCosts{
		processors: 2, accept: 20 * time.Microsecond, hello: 400 * time.Microsecond, finish: 150 * time.Microsecond, attach: 50 * time.Microsecond, claim: 300 * time.Microsecond, carriers: 1,
		rtt: func(r *rand.Rand) time.Duration { return time.Duration(5+r.IntN(95)) * time.Millisecond },
	}
}

// oneMachine is where bench/compare runs its fleets: the bridges compute as much as the proxy does, on the same processors.
func oneMachine() fleetCosts {
	c := defaultFleet()
	c.hello, c.finish, c.attach, c.claim = 2*c.hello, 2*c.finish, 2*c.attach, 2*c.claim
	c.rtt = func(r *rand.Rand) time.Duration { return time.Duration(50+r.IntN(200)) * time.Microsecond }
	return c
}

// ideal is what a bridge costs at the least.
func (c fleetCosts) ideal() time.Duration {
	return time.Duration(1+c.carriers)*(c.accept+c.hello+c.finish+c.attach) + c.claim
}

// The times of link/call.go.
const (
	simCallLimit = 10 * time.Second
	simStalled   = 4 * time.Second // busyWait there: the kernel of a busy proxy acknowledges
	simAbreast   = 3
)

type task struct {
	cost time.Duration
	done func()
}

// simBridge is a bridge.
type simBridge struct {
	sim     *fleetSim
	from    netip.Addr
	rtt     time.Duration
	slots   []*simSlot
	control *simSlot // the one that is the control connection of the session; nil: none is yet
	claimed bool
	serving bool
	broke   time.Duration // since when it does not serve
	tries   int           // attempts to connect
}

// simSlot is a connection that a bridge wants. Slot 0 is first the control connection's.
type simSlot struct {
	b       *simBridge
	round   int // attempts of an earlier round are of no interest
	failed  int // attempts in a row that failed
	under   int // attempts under way
	up      bool
	dialled bool
}

// simAttempt is an attempt to connect, and at the proxy what the gate calls a pass.
type simAttempt struct {
	slot   *simSlot
	round  int
	place  *place // in the room; nil: not there
	over   bool   // its end is known at the bridge, or it was given up there
	proven bool
	cost   time.Duration // what it has used, accept apart
}

func newFleetSim(costs fleetCosts, seed uint64) *fleetSim {
	return &fleetSim{
		fleetCosts: costs, rng: rand.New(rand.NewPCG(seed, 1)), room: newRoom(mostPlaces, costs.processors), free: make([]time.Duration, costs.processors),
		served: func(*simBridge, time.Duration) {},
	}
}

// populate adds bridges, each in a network of its own.
func (s *fleetSim) populate(n int) {
	for i := range n {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 20<<24+uint32(i)<<8+1)
		b := &simBridge{sim: s, from: netip.AddrFrom4(a), rtt: s.rtt(s.rng)}
		for range 1 + s.carriers {
			b.slots = append(b.slots, &simSlot{b: b})
		}
		s.bridges = append(s.bridges, b)
	}
}

func (s *fleetSim) clock() time.Time { return time.Unix(1e9, 0).Add(s.now) }

// at has something happen after d.
func (s *fleetSim) at(d time.Duration, do func()) {
	s.seq++
	s.events.push(event{s.now + d, s.seq, do})
}

// run lets time pass until limit, or until nothing is to come.
func (s *fleetSim) run(limit time.Duration) {
	for len(s.events) > 0 && s.events[0].at <= limit {
		e := s.events.pop()
		s.now = e.at
		e.do()
	}
	s.now = max(s.now, limit)
}

// compute has a processor do something.
func (s *fleetSim) compute(cost time.Duration, done func()) {
	cost = cost*3/4 + time.Duration(s.rng.Int64N(int64(cost/2)+1)) // the same on average
	s.work = append(s.work, task{cost, done})
	s.dispatch()
}

func (s *fleetSim) dispatch() {
	for s.head < len(s.work) {
		i := slices.Index(s.free, slices.Min(s.free))
		if s.free[i] > s.now {
			return
		}
		t := s.work[s.head]
		s.work[s.head] = task{}
		if s.head++; s.head > 1024 && s.head*2 > len(s.work) {
			s.work, s.head = append(s.work[:0], s.work[s.head:]...), 0
		}
		s.free[i] = s.now + t.cost
		s.used += t.cost
		s.at(t.cost, func() {
			t.done()
			s.dispatch()
		})
	}
}

// know has the proxy know where all bridges come from.
func (s *fleetSim) know() {
	for _, b := range s.bridges {
		s.room.known.add(b.from, s.clock())
	}
}

// restart has another process take the proxy's place after d, which knows the addresses that were saved.
func (s *fleetSim) restart(d time.Duration) {
	s.up = false
	before := s.room.known.all()
	s.room = newRoom(mostPlaces, s.processors)
	s.room.known.load(before, s.clock())
	s.at(d, func() { s.up = true })
}

// cut breaks all connections of a bridge.
func (b *simBridge) cut() {
	if b.serving || b.broke == 0 {
		b.broke = max(b.sim.now, 1)
	}
	b.serving, b.claimed, b.control = false, false, nil
	for _, sl := range b.slots {
		sl.round++
		sl.up, sl.under, sl.failed, sl.dialled = false, 0, 0, true
		sl.later(link.Backoff(0, nil, 0))
	}
}

// start has a bridge begin for the first time.
func (b *simBridge) start() {
	b.broke = max(b.sim.now, 1)
	b.slots[0].dialled = true
	b.slots[0].dial()
}

// later dials after a pause, unless the slot has something else to do by then.
func (sl *simSlot) later(pause time.Duration) {
	round := sl.round
	sl.b.sim.at(pause, func() {
		if sl.round == round && !sl.up && sl.under == 0 {
			sl.dial()
		}
	})
}

// dial makes an attempt.
func (sl *simSlot) dial() {
	b, s := sl.b, sl.b.sim
	a := &simAttempt{slot: sl, round: sl.round}
	sl.under++
	s.attempts++
	b.tries++
	if !s.up { // as far as the SYN will find
		a.failLater(b.rtt, syscall.ECONNREFUSED)
		return
	}
	s.at(3*b.rtt/2, func() { s.compute(s.accept, a.arrive) }) // the ClientHello comes with the ACK
}

// connected has the bridge look after a connection that the proxy took.
func (a *simAttempt) connected() {
	sl, s := a.slot, a.slot.b.sim
	s.at(simCallLimit-3*sl.b.rtt/2, func() { a.fail(context.DeadlineExceeded) })
	s.at(max(simStalled, 4*sl.b.rtt)-sl.b.rtt/2, func() {
		if !a.over && a.round == sl.round && !sl.up && sl.under < simAbreast {
			sl.dial()
		}
	})
}

// failLater is fail when d has passed and nothing can come between.
func (a *simAttempt) failLater(d time.Duration, err error) {
	sl := a.slot
	if sl.under > 1 || a.over {
		sl.b.sim.at(d, func() { a.fail(err) })
		return
	}
	a.over = true
	if a.round != sl.round || sl.up {
		return
	}
	sl.under--
	sl.failed++
	sl.later(d + link.Backoff(sl.failed, err, 0))
}

// fail ends an attempt at the bridge.
func (a *simAttempt) fail(err error) {
	sl := a.slot
	if a.over {
		return
	}
	a.over = true
	if a.place != nil && !a.proven {
		a.slot.b.sim.hangUp(a)
	}
	if a.round != sl.round || sl.up {
		return
	}
	sl.under--
	sl.failed++
	sl.later(link.Backoff(sl.failed, err, 0))
}

// hangUp tells the proxy that the bridge gave a connection up: who is waited for leaves at once, who waits at its turn.
func (s *fleetSim) hangUp(a *simAttempt) {
	s.at(a.slot.b.rtt/2, func() {
		if a.place != nil && (a.place.stage == greeted || a.place.stage == silent) {
			a.leave()
		}
	})
}

// leave takes an attempt out of the room.
func (a *simAttempt) leave() {
	s := a.slot.b.sim
	s.room.leave(a.place)
	a.place = nil
	s.next()
}

// next gives turns to those whose turn it is.
func (s *fleetSim) next() {
	for p := s.room.next(); p != nil; p = s.room.next() {
		a := p.conn.(*simAttempt)
		if a.over { // it hung up
			s.room.leave(p)
			a.place = nil
			continue
		}
		a.compute(s.hello, func() { a.greeted() })
	}
}

// compute has the proxy work for a connection.
func (a *simAttempt) compute(cost time.Duration, done func()) {
	a.cost += cost
	a.slot.b.sim.compute(cost, done)
}

// arrive brings a connection with its first record to the room.
func (a *simAttempt) arrive() {
	b, s := a.slot.b, a.slot.b.sim
	if !s.up {
		a.failLater(b.rtt/2, syscall.ECONNRESET)
		return
	}
	p, victim, _, ok := s.room.enter(b.from, s.clock())
	if victim != nil {
		out := victim.conn.(*simAttempt)
		out.place = nil
		s.at(out.slot.b.rtt/2, func() { out.fail(auth.ErrClosed) })
	}
	if !ok {
		a.failLater(b.rtt/2, auth.ErrClosed)
		return
	}
	a.connected()
	a.place, p.conn = p, a
	if s.room.heard(p, s.clock()) != nil {
		a.leave()
		s.at(b.rtt/2, func() { a.fail(auth.ErrClosed) })
		return
	}
	s.next()
}

// greeted sends the server's flight, and waits for the client's.
func (a *simAttempt) greeted() {
	b, s := a.slot.b, a.slot.b.sim
	if a.place == nil { // the proxy crashed, or somebody else needed the place
		return
	}
	s.room.rest(a.place)
	s.next()
	if a.over {
		a.leave()
		return
	}
	s.at(b.rtt, func() {
		if a.over || a.place == nil {
			return
		}
		a.compute(s.finish, func() {
			if a.place == nil {
				return
			}
			a.proven = true
			s.room.leave(a.place)
			s.room.known.add(b.from, s.clock())
			a.place = nil
			s.next()
			s.at(b.rtt/2, func() { a.welcome() })
		})
	})
}

// welcome is when the bridge has a proven connection.
func (a *simAttempt) welcome() {
	sl, b := a.slot, a.slot.b
	s := b.sim
	if a.over || a.round != sl.round || sl.up || !s.up {
		return
	}
	a.over = true
	sl.up = true
	if b.control == nil { // the session before is gone: this is the control connection of the next one
		b.control = sl
		for _, other := range b.slots {
			if other != sl {
				other.round++
				other.under, other.failed, other.dialled = 0, 0, false
			}
		}
	}
	round := sl.round
	s.at(b.rtt/2, func() {
		a.compute(s.attach, func() {
			s.useful += a.cost + s.accept
			s.at(b.rtt/2, func() {
				if sl.round == round {
					b.attached(sl)
				}
			})
		})
	})
}

// attached is when the bridge knows that a connection has its slot.
func (b *simBridge) attached(sl *simSlot) {
	s := b.sim
	if sl != b.control {
		b.check()
		return
	}
	for _, other := range b.slots {
		if other != sl && !other.dialled {
			other.dialled = true
			other.dial()
		}
	}
	round := sl.round
	s.at(b.rtt/2, func() {
		s.compute(s.claim, func() {
			s.useful += s.claim
			s.at(b.rtt/2, func() {
				if sl.round == round {
					b.claimed = true
					b.check()
				}
			})
		})
	})
}

// check notes when the bridge serves.
func (b *simBridge) check() {
	if b.serving || !b.claimed {
		return
	}
	for _, sl := range b.slots {
		if sl != b.control && sl.up {
			b.serving = true
			b.sim.served(b, b.sim.now-b.broke)
			b.broke = 0
			return
		}
	}
}

// event is something that happens.
type event struct {
	at  time.Duration
	seq uint64 // of two at once the first that was planned comes first
	do  func()
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// eventHeap is container/heap without its interfaces, which cost half of the time.
type eventHeap []event

func (h *eventHeap) push(e event) {
	*h = append(*h, e)
	for i := len(*h) - 1; i > 0; {
		up := (i - 1) / 2
		if !(*h)[i].before((*h)[up]) {
			break
		}
		(*h)[i], (*h)[up] = (*h)[up], (*h)[i]
		i = up
	}
}

func (h *eventHeap) pop() event {
	old := *h
	first, last := old[0], len(old)-1
	old[0] = old[last]
	old[last] = event{}
	*h = old[:last]
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			break
		}
		if down+1 < last && old[down+1].before(old[down]) {
			down++
		}
		if !old[down].before(old[i]) {
			break
		}
		old[i], old[down] = old[down], old[i]
		i = down
	}
	return first
}
