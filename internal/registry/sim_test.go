package registry

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

var (
	simSeeds = flag.Uint64("sim.seeds", 120, "how many seeds TestSimulation tries")
	simFirst = flag.Uint64("sim.first", 1, "the first of them")
	simSeed  = flag.Uint64("sim.seed", 0, "the only seed that TestSimulation tries, with its whole schedule; 0: many")
	simSteps = flag.Int("sim.steps", 500, "about how many steps a seed has")
)

// action is one thing that may happen.
type action struct {
	name   string
	weight int
	do     func(*sim)
}

var actions = []action{
	{"the proxy does", 30, func(w *sim) {
		p := w.proxy()
		for n := w.few(); n > 0 && p.r.step(p); n-- {
		}
	}},
	{"the proxy hears", 20, func(w *sim) {
		l := w.link()
		l.toProxy.write(w)
		for n := w.few(); n > 0 && len(l.toProxy.wire) > 0; n-- {
			l.hear()
			w.check()
		}
	}},
	{"a bridge learns", 16, func(w *sim) {
		l := w.link()
		l.toBridge.write(w)
		for n := w.few(); n > 0; n-- {
			l.learn()
		}
	}},
	{"an OPEN arrives", 22, func(w *sim) {
		if sl := w.flying(); sl != nil {
			sl.deliver()
		}
	}},
	{"a slot", 8, func(w *sim) { sl := w.link().slot(); sl.down = !sl.down && w.pick("down", 3) == 0 }},
	{"time", 8, func(w *sim) { w.link().time() }},
	{"a socket", 10, func(w *sim) { w.proxy().result() }},
	{"a user comes", 45, func(w *sim) { w.proxy().come() }},
	{"a user moves", 70, func(w *sim) {
		p := w.proxy()
		for n := w.few(); n > 0; n-- {
			p.move()
		}
	}},
	{"a user ends", 18, func(w *sim) { w.proxy().hangUp() }},
	{"carriers", 8, func(w *sim) {
		if l := w.link(); l.id != 0 {
			l.up = w.pick("up", 4) > 0
			w.trace("%s up %t", l, l.up)
			l.p.r.LinkUp(l.id, l.up)
		}
	}},
	{"connect", 10, func(w *sim) { w.uplink().connect() }},
	{"cut", 2, func(w *sim) { w.link().cut() }},
	{"cut and back", 3, func(w *sim) {
		if l := w.link(); l.control && l.present() {
			l.cut()
			l.attach()
		}
	}},
	{"reload of a bridge", 4, func(w *sim) { w.bridge().reload() }},
	{"a service goes while a user is on the way", 4, func(w *sim) {
		if sl := w.flying(); sl != nil {
			sl.l.u.b.withdraw(sl.flight[w.pick("stream", len(sl.flight))].service)
		}
	}},
	{"bad reload of a bridge", 1, func(w *sim) { w.bridge().badReload() }},
	{"alter", 3, func(w *sim) { w.bridge().alter() }},
	{"leave", 3, func(w *sim) {
		if l := w.link(); l.id != 0 && !l.ended {
			l.leaving = true
			w.trace("%s is leaving", l)
			l.p.r.Leaving(l.id)
		}
	}},
	{"a new session", 1, func(w *sim) { // the bridge lost the old one, and the proxy does not know
		u := w.uplink()
		if l := u.link; l != nil && !l.leaving {
			l.lose()
			u.begin(l)
		}
	}},
	{"the end", 1, func(w *sim) {
		l := w.link()
		w.trace("%s ends", l)
		l.end()
	}},
	{"restart of a bridge", 1, func(w *sim) { w.bridge().restart() }},
	{"restart of a proxy", 1, func(w *sim) {
		if w.pick("really", 10) == 0 {
			w.proxy().restart()
		}
	}},
	{"policy", 2, func(w *sim) { w.proxy().configure() }},
	{"retry", 2, func(w *sim) { w.proxy().retry() }},
	{"descriptors", 2, func(w *sim) {
		p := w.proxy()
		p.room = w.pick("room", 30)
		w.trace("  room for %d sockets", p.room)
	}},
	{"hand-over of a proxy", 1, func(w *sim) { w.proxy().handover() }},
	{"hand-over of a proxy that is given up", 1, func(w *sim) { w.proxy().giveUpHandover() }},
	{"hand-over of a bridge", 1, func(w *sim) { w.bridge().handover() }},
	{"hand-over of a bridge that is given up", 1, func(w *sim) { w.bridge().giveUpHandover() }},
	{"a bridge lies", 3, func(w *sim) { w.link().lieToProxy() }},
	{"a proxy lies", 5, func(w *sim) { w.link().lieToBridge() }},
}

// few is how much is done at once: one thing, or a few.
func (w *sim) few() int { return 1 + w.pick("several", 2)*w.pick("few", 6) }

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

// play plays the schedule that pick makes, in so many steps, and then until everything has come to rest.
func play(pick func(string, int) int, steps int, trace func(string, ...any)) (w *sim) {
	w = &sim{pick: pick, trace: trace}
	caught := func() {
		if p := recover(); p != nil {
			w.fail("panic: %v\n%s", p, debug.Stack())
		}
	}
	defer func() {
		defer caught()
		w.close()
	}()
	defer caught()
	w.begin()
	for n := 0; w.err == nil && n < steps; n++ {
		a := w.pickAction()
		w.trace("%d: %s", n, a.name)
		a.do(w)
		w.stats.Steps++
		w.check()
	}
	if w.err == nil {
		w.drain()
	}
	return w
}

// runSeed plays the schedule of a seed. Of its steps it leaves the last ones out if most is not 0.
func runSeed(seed uint64, steps, most int, trace func(string, ...any)) *sim {
	if trace == nil {
		trace = func(string, ...any) {}
	}
	rnd := rand.New(rand.NewPCG(seed, 7))
	n := steps/2 + rnd.IntN(steps)
	if most > 0 {
		n = min(n, most)
	}
	return play(func(_ string, n int) int { return rnd.IntN(n) }, n, trace)
}

// explain finds the shortest beginning of a seed's schedule that fails, and returns the end of it.
func explain(seed uint64, steps, lines int) string {
	most := 2 * steps
	if w := runSeed(seed, steps, 0, nil); w.err != nil {
		most = max(1, w.stats.Steps)
		for lo := 1; lo < most; { // what is found is a failure, though there may be a shorter one
			mid := (lo + most) / 2
			if runSeed(seed, steps, mid, nil).err != nil {
				most = mid
			} else {
				lo = mid + 1
			}
		}
	}
	var log []string
	w := runSeed(seed, steps, most, func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) })
	if w.err != nil {
		log = append(log, "=> "+w.err.Error())
	}
	if skip := len(log) - lines; skip > 0 {
		return fmt.Sprintf("(%d lines before)\n", skip) + strings.Join(log[skip:], "\n")
	}
	return strings.Join(log, "\n")
}

// TestSimulation plays random schedules of everything that may happen to a control plane: see actions, and check for what must hold.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		t.Log(explain(*simSeed, *simSteps, 1<<30))
		if w := runSeed(*simSeed, *simSteps, 0, nil); w.err != nil {
			t.Fatalf("seed %d: %v", *simSeed, w.err)
		}
		return
	}
	var all simStats
	most := *simSeeds
	if testing.Short() || raceEnabled {
		most = min(most, 20)
	}
	for seed := *simFirst; seed < *simFirst+most; seed++ {
		w := runSeed(seed, *simSteps, 0, nil)
		if w.err != nil {
			t.Fatalf("seed %d: %v\nthe schedule (go test -run TestSimulation -sim.seed %d shows all of it):\n%s",
				seed, w.err, seed, explain(seed, *simSteps, 60))
		}
		all.add(w.stats)
	}
	t.Logf("%d seeds: %+v", most, all)
	v := reflect.ValueOf(all)
	var never []string
	for i := range v.NumField() {
		if v.Field(i).Int() == 0 {
			never = append(never, v.Type().Field(i).Name)
		}
	}
	if len(never) > 0 && most >= 50 {
		t.Errorf("never happened: %s", slices.Sorted(slices.Values(never)))
	}
}
