package registry

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"testing"
)

var (
	simSeeds = flag.Uint64("sim.seeds", 300, "how many seeds TestSimulation tries")
	simSeed  = flag.Uint64("sim.seed", 0, "the only seed that TestSimulation tries, with its whole schedule; 0: many")
	simSteps = flag.Int("sim.steps", 300, "about how many steps a seed has")
)

// action is one thing that may happen.
type action struct {
	name   string
	weight int
	do     func(*sim)
}

var actions = []action{
	{"the proxy does", 30, func(w *sim) { w.r.step(w) }},
	{"the proxy hears", 20, func(w *sim) { w.link().hear() }},
	{"a bridge learns", 16, func(w *sim) { w.link().learn() }},
	{"an OPEN arrives", 30, func(w *sim) { l := w.link(); l.arrive(w.pick("slot", simSlots)) }},
	{"a socket", 10, (*sim).result},
	{"a user comes", 14, (*sim).come},
	{"a user moves", 30, (*sim).move},
	{"carriers", 8, func(w *sim) {
		if l := w.link(); l.id != 0 {
			l.up = w.pick("up", 4) > 0
			w.trace("session %d up %t", l.id, l.up)
			w.r.LinkUp(l.id, l.up)
		}
	}},
	{"connect", 8, func(w *sim) { w.bridge().connect() }},
	{"cut", 2, func(w *sim) {
		l := w.link()
		l.control, l.toProxy, l.toBridge = false, nil, nil
		w.trace("session %d: slot 0 is cut", l.id)
	}},
	{"expose", 4, func(w *sim) { w.bridge().expose() }},
	{"alter", 3, func(w *sim) {
		b := w.bridge()
		if s := b.any(); s != nil {
			b.alter(s)
			b.sayClaim(s)
		}
	}},
	{"give back", 3, func(w *sim) {
		b := w.bridge()
		if s := b.any(); s != nil {
			b.giveBack(s)
		}
	}},
	{"leave", 3, func(w *sim) {
		if l := w.link(); l.id != 0 && !l.ended {
			l.leaving = true
			w.trace("session %d is leaving", l.id)
			w.r.Leaving(l.id)
		}
	}},
	{"a new session", 1, func(w *sim) { // the bridge lost the old one, and the proxy does not know
		b := w.bridge()
		if l := b.link; l != nil && !l.leaving {
			b.begin(l)
		}
	}},
	{"the end", 1, func(w *sim) {
		l := w.link()
		w.trace("session %d ends", l.id)
		l.end()
	}},
	{"restart", 1, func(w *sim) {
		b := w.bridge()
		if b.link != nil {
			b.link.end()
		}
		w.trace("bridge restarts")
		b.restart()
	}},
	{"policy", 2, (*sim).configure},
	{"retry", 2, (*sim).retry},
	{"descriptors", 2, func(w *sim) {
		w.room = w.pick("room", 10)
		w.trace("room for %d sockets", w.room)
	}},
	{"hand-over", 1, (*sim).handover},
}

func (w *sim) bridge() *simBridge { return w.bridges[w.pick("bridge", len(w.bridges))] }

// link returns the link of a bridge, or one that has ended.
func (w *sim) link() *simLink {
	if b := w.bridge(); b.link != nil {
		return b.link
	}
	return &simLink{b: w.bridges[0], ended: true}
}

func (b *simBridge) any() *simService {
	n := len(b.services)
	if n == 0 {
		return nil
	}
	n = b.pick("service", n)
	for id := uint32(1); ; id++ {
		if s := b.services[id]; s != nil {
			if n == 0 {
				return s
			}
			n--
		}
	}
}

func (w *sim) pickAction() action {
	total := 0
	for _, a := range actions {
		total += a.weight
	}
	n := w.pick("action", total)
	for _, a := range actions {
		if n -= a.weight; n < 0 {
			return a
		}
	}
	panic("unreachable")
}

// runSeed plays the schedule of a seed, and then until everything has come to rest.
func runSeed(seed uint64, steps int, trace func(string, ...any)) (w *sim) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	w = newSim(func(_ string, n int) int { return rnd.IntN(n) }, trace)
	defer func() {
		if p := recover(); p != nil {
			w.fail("panic: %v\n%s", p, debug.Stack())
		}
	}()
	for n := steps/2 + rnd.IntN(steps); w.err == nil && w.stats.steps < n; w.stats.steps++ {
		w.pickAction().do(w)
		w.check()
	}
	if w.err == nil {
		w.drain()
	}
	return w
}

func explain(seed uint64, steps, lines int) string {
	var log []string
	runSeed(seed, steps, func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) })
	if skip := len(log) - lines; skip > 0 {
		return fmt.Sprintf("(%d lines before)\n", skip) + strings.Join(log[skip:], "\n")
	}
	return strings.Join(log, "\n")
}

// TestSimulation plays random schedules of everything that may happen to a registry: see actions, and check for what must hold.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		t.Log(explain(*simSeed, *simSteps, 1<<30))
		if w := runSeed(*simSeed, *simSteps, nil); w.err != nil {
			t.Fatalf("seed %d: %v", *simSeed, w.err)
		}
		return
	}
	var all simStats
	most := *simSeeds
	if testing.Short() || raceEnabled {
		most = min(most, 60)
	}
	for seed := uint64(1); seed <= most; seed++ {
		w := runSeed(seed, *simSteps, nil)
		if w.err != nil {
			t.Fatalf("seed %d: %v\nthe schedule (go test -run TestSimulation -sim.seed %d shows all of it):\n%s",
				seed, w.err, seed, explain(seed, *simSteps, 40))
		}
		s := w.stats
		all = simStats{all.steps + s.steps, all.served + s.served, all.retired + s.retired, all.waited + s.waited, all.removed + s.removed,
			all.lost + s.lost, all.short + s.short, all.replaced + s.replaced, all.successors + s.successors, all.policies + s.policies,
			all.handovers + s.handovers, all.failed + s.failed, all.unclaims + s.unclaims, all.group + s.group, all.stops + s.stops}
	}
	t.Logf("%d seeds: %+v", most, all)
	if all.served == 0 || all.retired == 0 || all.waited == 0 || all.removed == 0 || all.replaced == 0 || all.successors == 0 ||
		all.handovers == 0 || all.short == 0 || all.failed == 0 || all.group == 0 || all.stops == 0 {
		t.Errorf("some things never happened: %+v", all)
	}
}
