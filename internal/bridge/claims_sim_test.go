package bridge

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// A simulation of the bridge's claims: one bridge with reloads and hand-overs, two honest proxies that open streams for
// users, and links whose control connection loses whatever is under way when it breaks. It has no goroutine and no clock;
// every choice comes from a seed.
//
// Invariants, by their names in the design:
//
//	C5  what is equal before and after a reload keeps its id; a bad reload changes nothing
//	C6  no user is refused because the services changed
//	C7  at rest every claim has its present answer, every UNCLAIM was answered and nothing is retired; ids are not used again
//	C8  a stream reaches the service that its user asked for; no stream above the marks is served
const (
	simSlots   = 3
	simTick    = 20 * time.Second // a stream waits for two of them at the most on a slot that has a connection
	mutantTry  = 3000             // seeds within which each mutant must be noticed
	simActions = 500
)

var claimsSeeds = flag.Uint64("claims.seeds", 300, "how many seeds TestClaimsSimulation tries")

type claimsSim struct {
	rnd    *rand.Rand
	broken string
	err    error

	s       *services
	proxies []*simProxy
	publics map[uint32]grammar.Public // that each id means, for ever
	targets map[uint32]string         // the last target of each id
	stats   claimsStats
}

// claimsStats shows whether the interesting things happen at all.
type claimsStats struct{ users, retired, sessions, breaks, reloads, handovers, lies int }

// simProxy is an honest proxy and its link.
type simProxy struct {
	w *claimsSim
	c *claims

	up       bool // the control connection
	unsent   []say
	toProxy  []say
	unsaid   []simAnswer
	toBridge []simAnswer

	claimed map[uint32]*simClaim
	gone    map[uint32]bool // ids that were given back in this session
	owes    map[uint32]bool // CLAIMs without an answer
	round   bool
	slots   [simSlots + 1]*simSlot
	marks   map[uint32][]wire.Mark // of the answers that the bridge has
}

type simClaim struct {
	public grammar.Public
	target string
	told   string // the last answer
}

// simAnswer is CLAIMED, or with marks UNCLAIMED.
type simAnswer struct {
	id    uint32
	a     answer
	marks []wire.Mark
}

type simSlot struct {
	up      bool
	opened  uint64 // the highest stream
	arrived uint64
	pending []simOpen
}

type simOpen struct {
	stream uint64
	id     uint32
	public grammar.Public
	age    int // ticks with a connection
}

func newClaimsSim(seed uint64, broken string) *claimsSim {
	w := &claimsSim{
		rnd: rand.New(rand.NewPCG(seed, 9)), broken: broken, s: newServices(),
		publics: make(map[uint32]grammar.Public), targets: make(map[uint32]string),
	}
	for range 2 {
		p := &simProxy{w: w, c: w.s.addLink()}
		p.begin()
		w.proxies = append(w.proxies, p)
	}
	return w
}

func (w *claimsSim) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *claimsSim) chance(percent int) bool { return w.rnd.IntN(100) < percent }

// begin makes the state of a new session.
func (p *simProxy) begin() {
	p.breakControl()
	p.claimed, p.gone, p.owes, p.marks = map[uint32]*simClaim{}, map[uint32]bool{}, map[uint32]bool{}, map[uint32][]wire.Mark{}
	for i := range p.slots {
		p.slots[i] = &simSlot{}
	}
}

func (p *simProxy) breakControl() {
	p.up, p.round = false, false
	p.unsent, p.toProxy, p.unsaid, p.toBridge = nil, nil, nil, nil
}

// run does one schedule.
func (w *claimsSim) run() {
	actions := []struct {
		weight int
		do     func(*simProxy)
	}{
		{3, func(*simProxy) { w.reload() }},
		{1, func(*simProxy) { w.badReload() }},
		{1, func(*simProxy) { w.handOver() }},
		{25, (*simProxy).attach},
		{3, (*simProxy).cut},
		{1, (*simProxy).endSession},
		{20, (*simProxy).bridgeWrites},
		{30, (*simProxy).proxyReads},
		{30, (*simProxy).proxyAnswers},
		{30, (*simProxy).bridgeReads},
		{30, (*simProxy).user},
		{40, (*simProxy).deliver},
		{2, (*simProxy).cancel},
		{8, (*simProxy).toggleSlot},
		{4, (*simProxy).time},
		{4, (*simProxy).lie},
	}
	total := 0
	for _, a := range actions {
		total += a.weight
	}
	for range simActions {
		n := w.rnd.IntN(total)
		for _, a := range actions {
			if n -= a.weight; n < 0 {
				a.do(w.proxies[w.rnd.IntN(len(w.proxies))])
				break
			}
		}
		w.check()
		if w.err != nil {
			return
		}
	}
	w.rest()
}

func (w *claimsSim) reload() {
	w.stats.reloads++
	var want []Service
	for port := range uint16(5) {
		if w.chance(60) {
			at := fmt.Sprintf("host:%d", 1+w.rnd.IntN(3))
			if id, ok := w.idOf(port + 9000); ok && w.chance(60) {
				at = w.targets[id]
			}
			want = append(want, Service{Public: tcpPort(port + 9000), Target: grammar.Target{Network: "tcp", Address: at}})
		}
	}
	w.rnd.Shuffle(len(want), reflect.Swapper(want))
	before := maps.Clone(w.s.byName)
	switch w.broken {
	case "another target, another id":
		w.s.apply(slices.DeleteFunc(slices.Clone(want), func(s Service) bool {
			old := before[s.Public]
			return old != nil && old.Target != s.Target
		}))
	case "ids are used again":
		defer func() {
			w.s.last = 0
			for id := range w.s.offered {
				w.s.last = max(w.s.last, id)
			}
		}()
	}
	if _, err := w.s.apply(want); err != nil {
		w.fail("apply: %v", err)
	}
	if len(w.s.offered) != len(want) || len(w.s.byName) != len(want) {
		w.fail("C5: %d services are offered, want %d", len(w.s.offered), len(want))
	}
	for _, s := range want {
		svc := w.s.byName[s.Public]
		if svc == nil || w.s.offered[svc.id] != svc {
			w.fail("C5: %s is not offered", s.Public)
			return
		}
		if old := before[s.Public]; old != nil && old.id != svc.id {
			w.fail("C5: %s had id %d, and has %d", s.Public, old.id, svc.id)
		}
		if was, ok := w.publics[svc.id]; ok && (was != s.Public || before[s.Public] == nil) {
			w.fail("C7: id %d means %s, and meant %s before", svc.id, s.Public, was)
		}
		w.publics[svc.id], w.targets[svc.id] = s.Public, s.target()
	}
	for _, p := range w.proxies {
		if w.broken == "a service is dropped when it is removed" {
			clear(p.c.retired)
			p.c.answered = nil
		}
		p.pump()
	}
}

func (w *claimsSim) badReload() {
	before := w.s.freeze()
	two := Service{Public: tcpPort(9000), Target: grammar.Target{Network: "tcp", Address: "host:9"}}
	if _, err := w.s.apply([]Service{two, two}); err == nil {
		w.fail("C5: two services of one PUBLIC were taken")
	}
	if !reflect.DeepEqual(before, w.s.freeze()) {
		w.fail("C5: a bad reload changed something")
	}
}

func tcpPort(port uint16) grammar.Public { return grammar.Public{Kind: grammar.KindTCP, Port: port} }

func (w *claimsSim) idOf(port uint16) (uint32, bool) {
	if svc := w.s.byName[tcpPort(port)]; svc != nil {
		return svc.id, true
	}
	return 0, false
}

// handOver replaces the bridge's process. To the proxies it looks like a break of every slot.
func (w *claimsSim) handOver() {
	w.stats.handovers++
	for _, p := range w.proxies {
		p.breakControl()
		for _, sl := range p.slots {
			sl.up = false
		}
	}
	f := w.s.freeze()
	switch w.broken {
	case "a hand-over forgets the next id":
		f.Last = 0
		for _, o := range f.Offered {
			f.Last = max(f.Last, o.ID)
		}
	case "a hand-over forgets what is retired":
		for i := range f.Links {
			f.Links[i].Retired = nil
		}
	case "a hand-over forgets what the slots saw":
		for i := range f.Links {
			f.Links[i].Slots = nil
		}
	}
	text, _ := json.Marshal(f)
	var g frozenServices
	if err := json.Unmarshal(text, &g); err != nil {
		w.fail("C11: %v", err)
		return
	}
	s, err := thawServices(g)
	if err != nil {
		w.fail("C11: %v", err)
		return
	}
	if !reflect.DeepEqual(s.freeze(), g) {
		w.fail("C11: the successor has another state")
	}
	w.s = s
	for i, p := range w.proxies {
		p.c = s.links[i]
	}
}

// pump gives the link what the bridge has to say. A later frame of an id replaces one that was not sent.
func (p *simProxy) pump() {
	for _, f := range p.c.take() {
		if !p.up {
			continue
		}
		switch {
		case p.w.broken == "another target is not said" && f.kind == sayClaim && p.claimed[f.id] != nil && p.round:
			continue
		case p.w.broken == "UNCLAIM is not repeated" && f.kind == sayUnclaim && !p.round:
			continue
		}
		if i := slices.IndexFunc(p.unsent, func(g say) bool { return g.id == f.id }); i >= 0 {
			p.unsent[i] = f
		} else {
			p.unsent = append(p.unsent, f)
		}
	}
}

func (p *simProxy) attach() {
	if p.up {
		return
	}
	p.up = true
	p.c.attached()
	p.pump()
}

// cut breaks the control connection. The bridge notices at once, or not before the next connection.
func (p *simProxy) cut() {
	if !p.up {
		return
	}
	p.w.stats.breaks++
	p.breakControl()
	if p.w.chance(50) {
		p.c.detached()
	}
	p.pump()
}

func (p *simProxy) endSession() {
	p.w.stats.sessions++
	p.begin()
	kept, answered := maps.Clone(p.c.retired), slices.Clone(p.c.answered)
	p.c.ended()
	if p.w.broken == "what is retired outlives its session" {
		p.c.retired, p.c.answered = kept, answered
	}
	p.pump()
}

func (p *simProxy) bridgeWrites() {
	n := p.w.rnd.IntN(len(p.unsent) + 1)
	p.toProxy, p.unsent = append(p.toProxy, p.unsent[:n]...), slices.Clone(p.unsent[n:])
}

// proxyReads takes one frame.
func (p *simProxy) proxyReads() {
	if len(p.toProxy) == 0 {
		return
	}
	f := p.toProxy[0]
	p.toProxy = p.toProxy[1:]
	switch f.kind {
	case sayRound:
		p.round = true
	case sayUnclaim:
		p.gone[f.id] = true
		delete(p.claimed, f.id)
		delete(p.owes, f.id)
		p.answer(simAnswer{id: f.id, marks: p.present()})
		p.settle()
	case sayClaim:
		if p.gone[f.id] {
			p.w.fail("C7: id %d is claimed again", f.id)
		}
		k := p.claimed[f.id]
		if k == nil {
			k = &simClaim{public: f.service.Public}
			p.claimed[f.id] = k
		}
		if k.public != f.service.Public {
			p.w.fail("C7: id %d means %s and %s", f.id, k.public, f.service.Public)
		}
		k.target, p.owes[f.id] = f.service.target(), true
	}
}

// present returns the marks of all slots.
func (p *simProxy) present() (marks []wire.Mark) {
	marks = []wire.Mark{}
	for i, sl := range p.slots[1:] {
		if sl.opened > 0 || p.w.chance(50) {
			marks = append(marks, wire.Mark{Slot: uint8(i + 1), Stream: sl.opened})
		}
	}
	return marks
}

// isUp reports whether a claim has its name: the first one of a session has it.
func (p *simProxy) isUp(id uint32) bool {
	for other, k := range p.claimed {
		if other < id && k.public == p.claimed[id].public {
			return false
		}
	}
	return true
}

// now is the present answer to a claim. It names the target, so that an old answer is told from the present one.
func (p *simProxy) now(id uint32) answer {
	state := status.ServiceUp
	if !p.isUp(id) {
		state = status.ServiceRetrying
	}
	return answer{state: state, reason: p.claimed[id].target}
}

// settle says the answers that have changed.
func (p *simProxy) settle() {
	for _, id := range slices.Sorted(maps.Keys(p.claimed)) {
		if k := p.claimed[id]; k.told != "" && k.told != p.now(id).state {
			p.owes[id] = true
		}
	}
}

func (p *simProxy) proxyAnswers() {
	ids := slices.Sorted(maps.Keys(p.owes))
	if len(ids) > 0 {
		id := ids[p.w.rnd.IntN(len(ids))]
		delete(p.owes, id)
		p.claimed[id].told = p.now(id).state
		p.answer(simAnswer{id: id, a: p.now(id)})
	}
	n := p.w.rnd.IntN(len(p.unsaid) + 1)
	p.toBridge, p.unsaid = append(p.toBridge, p.unsaid[:n]...), slices.Clone(p.unsaid[n:])
}

func (p *simProxy) answer(a simAnswer) {
	if !p.up {
		return
	}
	if i := slices.IndexFunc(p.unsaid, func(b simAnswer) bool { return b.id == a.id }); i >= 0 {
		p.unsaid[i] = a
	} else {
		p.unsaid = append(p.unsaid, a)
	}
}

// bridgeReads takes one answer.
func (p *simProxy) bridgeReads() {
	if len(p.toBridge) == 0 {
		return
	}
	a := p.toBridge[0]
	p.toBridge = p.toBridge[1:]
	if a.marks == nil {
		if _, err := p.c.claimed(a.id, a.a); err != nil {
			p.w.fail("an honest answer is refused: %v", err)
		}
		return
	}
	if err := p.c.unclaimed(a.id, a.marks); err != nil {
		p.w.fail("an honest answer is refused: %v", err)
	}
	if p.marks[a.id] == nil {
		p.marks[a.id] = a.marks
	}
	if p.w.broken == "a service is dropped when it was given back" {
		delete(p.c.retired, a.id)
		p.c.answered = slices.DeleteFunc(p.c.answered, func(r *retired) bool { return r.id == a.id })
	}
	p.pump()
}

// user comes to a service that is up. Its stream may have to wait for a connection of the slot.
func (p *simProxy) user() {
	var ids []uint32
	for _, id := range slices.Sorted(maps.Keys(p.claimed)) {
		if p.claimed[id].told == status.ServiceUp && p.isUp(id) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return
	}
	id, slot := ids[p.w.rnd.IntN(len(ids))], 1+p.w.rnd.IntN(simSlots)
	sl := p.slots[slot]
	sl.opened = on(uint8(slot), sl.opened>>8+1)
	sl.pending = append(sl.pending, simOpen{stream: sl.opened, id: id, public: p.claimed[id].public})
}

// deliver brings one OPEN to the bridge.
func (p *simProxy) deliver() {
	if sl := p.slots[1+p.w.rnd.IntN(simSlots)]; sl.up && len(sl.pending) > 0 {
		p.arrive(sl)
	}
}

func (p *simProxy) arrive(sl *simSlot) {
	o := sl.pending[0]
	sl.pending = sl.pending[1:]
	wasRetired := p.c.retired[o.id] != nil
	svc, _ := p.c.opened(o.id, o.stream)
	if p.w.broken == "a slot does not remember what it saw" {
		clear(p.c.slots)
	}
	sl.arrived = o.stream
	switch {
	case svc == nil:
		p.w.fail("C6: the user of stream %#x is refused: id %d, %s", o.stream, o.id, o.public)
	case svc.Public != o.public:
		p.w.fail("C8: the user of %s reached %s", o.public, svc.Public)
	case svc.target() != p.w.targets[o.id]:
		p.w.fail("C8: the user of %s reached %s, want %s", o.public, svc.target(), p.w.targets[o.id])
	}
	p.w.stats.users++
	if wasRetired {
		p.w.stats.retired++
	}
}

// cancel is a user who leaves before the stream was sent.
func (p *simProxy) cancel() {
	if sl := p.slots[1+p.w.rnd.IntN(simSlots)]; len(sl.pending) > 0 {
		i := p.w.rnd.IntN(len(sl.pending))
		sl.pending = slices.Delete(sl.pending, i, i+1)
	}
}

func (p *simProxy) toggleSlot() {
	sl := p.slots[1+p.w.rnd.IntN(simSlots)]
	sl.up = !sl.up || p.w.chance(60)
}

// time passes. What has waited long on a slot with a connection arrives.
func (p *simProxy) time() {
	for i, sl := range p.slots[1:] {
		if sl.up {
			for len(sl.pending) > 0 && sl.pending[0].age > 0 {
				p.arrive(sl)
			}
			for j := range sl.pending {
				sl.pending[j].age++
			}
		}
		if sl.up || p.w.broken == "time without a connection counts" {
			p.c.tick(uint8(i+1), simTick)
		}
		if p.w.broken == "one slot's time counts for all" && sl.up {
			for _, r := range p.c.answered {
				for j := range r.marks {
					r.marks[j].until -= simTick
				}
			}
			p.c.drop()
		}
	}
	p.pump()
}

// lie asks what would happen if the proxy named a service that it has given back.
func (p *simProxy) lie() {
	ids := slices.Sorted(maps.Keys(p.marks))
	if len(ids) == 0 {
		return
	}
	id, slot := ids[p.w.rnd.IntN(len(ids))], uint8(1+p.w.rnd.IntN(simSlots))
	above := p.slots[slot].arrived
	for _, m := range p.marks[id] {
		if m.Slot == slot {
			above = max(above, m.Stream)
		}
	}
	p.w.stats.lies++
	s, err := thawServices(p.w.s.freeze())
	if err != nil {
		p.w.fail("C11: %v", err)
		return
	}
	c := s.links[slices.Index(p.w.proxies, p)]
	if p.w.broken == "marks do not count" {
		for _, r := range c.retired {
			r.answered = false
		}
	}
	if svc, _ := c.opened(id, above+1<<8); svc != nil {
		p.w.fail("C8: a stream above the marks of id %d is served", id)
	}
}

// check looks at what holds at any time: a service is dropped as soon as every slot has reached its mark.
func (w *claimsSim) check() {
	for _, p := range w.proxies {
		for id, marks := range p.marks {
			if p.c.retired[id] == nil {
				continue
			}
			if !slices.ContainsFunc(marks, func(m wire.Mark) bool { return p.slots[m.Slot].arrived < m.Stream }) {
				w.fail("C7: id %d is still retired, although every slot has reached its mark", id)
			}
		}
	}
}

// rest lets everything come to rest, and checks what must hold then.
func (w *claimsSim) rest() {
	for _, p := range w.proxies {
		p.attach()
		for i := range 10 * simActions {
			for _, sl := range p.slots[1:] {
				sl.up = true
			}
			p.bridgeWrites()
			p.proxyReads()
			p.proxyAnswers()
			p.bridgeReads()
			if i%50 == 0 {
				p.time()
			}
		}
		if len(p.unsent)+len(p.toProxy)+len(p.owes)+len(p.unsaid)+len(p.toBridge) > 0 {
			w.fail("the simulation is not at rest")
		}
	}
	w.check()
	for _, p := range w.proxies {
		if len(p.claimed) != len(w.s.offered) || !p.round {
			w.fail("C7: %d services are claimed, want %d; ROUND came: %v", len(p.claimed), len(w.s.offered), p.round)
		}
		for id, svc := range w.s.offered {
			k, at := p.c.known[id], p.claimed[id]
			switch {
			case at == nil || at.public != svc.Public || at.target != svc.target():
				w.fail("C7: %s is not claimed as it is", svc.Public)
			case k.pending || k.state != status.ServiceUp || k.reason != svc.target():
				w.fail("C7: the answer for %s is %+v, want up and %s", svc.Public, *k, svc.target())
			}
		}
		if len(p.c.known) != len(w.s.offered) || len(p.c.retired)+len(p.c.answered) > 0 {
			w.fail("C7: %d services are retired at rest", len(p.c.retired))
		}
	}
}

func TestClaimsSimulation(t *testing.T) {
	var all claimsStats
	for seed := range *claimsSeeds {
		w := newClaimsSim(seed, "")
		if w.run(); w.err != nil {
			t.Fatalf("seed %d: %v", seed, w.err)
		}
		all.users += w.stats.users
		all.retired += w.stats.retired
		all.sessions += w.stats.sessions
		all.breaks += w.stats.breaks
		all.reloads += w.stats.reloads
		all.handovers += w.stats.handovers
		all.lies += w.stats.lies
	}
	t.Logf("%+v", all)
	if *claimsSeeds >= 100 && (all.users < 10*int(*claimsSeeds) || all.retired < all.users/20 || all.lies < int(*claimsSeeds)/2) {
		t.Errorf("%+v: too little of what is to be tested happens", all)
	}
}

// TestClaimsMutants breaks one rule after the other and wants the simulation to notice.
func TestClaimsMutants(t *testing.T) {
	for _, broken := range []string{
		"another target, another id",
		"another target is not said",
		"ids are used again",
		"a service is dropped when it is removed",
		"a service is dropped when it was given back",
		"UNCLAIM is not repeated",
		"marks do not count",
		"a slot does not remember what it saw",
		"time without a connection counts",
		"one slot's time counts for all",
		"what is retired outlives its session",
		"a hand-over forgets the next id",
		"a hand-over forgets what is retired",
		"a hand-over forgets what the slots saw",
	} {
		t.Run(broken, func(t *testing.T) {
			for seed := range uint64(mutantTry) {
				w := newClaimsSim(seed, broken)
				if w.run(); w.err != nil {
					t.Logf("seed %d: %v", seed, w.err)
					return
				}
			}
			t.Errorf("nobody noticed in %d seeds", mutantTry)
		})
	}
}
