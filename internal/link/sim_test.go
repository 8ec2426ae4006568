package link

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

var (
	simSeeds = flag.Uint64("sim.seeds", 3000, "how many seeds TestSimulation tries")
	simSeed  = flag.Uint64("sim.seed", 0, "the only seed that TestSimulation tries, with its whole schedule; 0: many")
	simSteps = flag.Int("sim.steps", 400, "about how many steps a seed has")
)

// action is one thing that may happen.
type action struct {
	name   string
	weight int
	do     func(*sim)
}

var actions = []action{
	{"deliver", 30, (*sim).deliver},
	{"exchange", 2, (*sim).exchange},
	{"proxy writes", 12, func(w *sim) { w.flush(atProxy) }},
	{"bridge writes", 12, func(w *sim) { w.flush(atBridge) }},
	{"socket writes", 16, (*sim).write},
	{"socket reads", 6, (*sim).read},
	{"time passes", 8, (*sim).pass},
	{"proxy opens", 3, func(w *sim) { w.openStream(atProxy) }},
	{"bridge opens", 3, func(w *sim) { w.openStream(atBridge) }},
	{"FIN", 3, (*sim).finish},
	{"RST", 1, (*sim).reset},
	{"rest", 1, (*sim).cutRest},
	{"close", 1, (*sim).closeSock},
	{"mood", 2, (*sim).mood},
	{"cut", 2, (*sim).cut},
	{"silence", 1, (*sim).mute},
	{"time-out", 1, (*sim).giveUp},
	{"dial", 5, (*sim).redial},
	{"repeat an ATTACH", 1, (*sim).replay},
	{"memory", 1, (*sim).squeeze},
	{"withdraw", 1, (*sim).withdraw},
	{"late end", 1, (*sim).lateEnd},
	{"leak", 6, (*sim).leak},
	{"crash", 1, (*sim).crash},
	{"hand over", 1, (*sim).handOver},
}

func (w *sim) pass() {
	steps := []time.Duration{time.Millisecond, 5 * time.Millisecond, ackDelay, 300 * time.Millisecond, 1500 * time.Millisecond}
	w.now += steps[w.pick("how long", len(steps))]
}

// squeeze lets others take memory for windows, or give it back.
func (w *sim) squeeze() {
	p := w.procs[w.pick("process", 2)]
	if p.squeezed != 0 {
		p.budget.pool.used.Add(-p.squeezed)
		p.squeezed = 0
		return
	}
	if n := p.budget.pool.size - p.budget.pool.Used() - int64(w.pick("what is left", 60_000)); n > 0 {
		p.budget.pool.used.Add(n)
		p.squeezed = n
	}
}

// withdraw lets a process take back what its peer holds and does not use.
func (w *sim) withdraw() {
	p := w.procs[w.pick("process", 2)]
	if p.core == nil {
		return
	}
	if p.core.stall.since != 0 {
		p.core.stall.since -= withdrawAfter
	}
	resets := w.pick("connections", 3)
	events := p.core.withdraw(w.now, func() bool { resets--; return resets >= 0 })
	for _, ev := range events {
		w.stats.withdrawn++
		if k := p.socks[ev.stream]; k != nil {
			k.pair.withdrawn = true
			w.abort(k, "what it holds is needed by others")
		}
	}
	if p.budget.lent.Load() > 0 {
		w.stats.lent++
	}
}

// step does one action and looks at the invariants.
func (w *sim) step(a action) {
	a.do(w)
	w.stats.steps++
	w.check()
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

// run plays the schedule that pick makes as long as more says, and then until everything has come to rest.
func run(pick func(string, int) int, trace func(string, ...any), more func(*sim) bool) (w *sim) {
	w = newSim(pick)
	if trace != nil {
		w.trace = trace
	}
	defer func() {
		if p := recover(); p != nil {
			w.fail("I13: panic: %v\n%s", p, debug.Stack())
		}
	}()
	for w.err == nil && more(w) {
		w.step(w.pickAction())
	}
	w.drain()
	return w
}

// runSeed plays the schedule of a seed.
func runSeed(seed uint64, steps int, trace func(string, ...any)) *sim {
	rnd := rand.New(rand.NewPCG(seed, 3))
	n := steps/2 + rnd.IntN(steps)
	return run(func(_ string, n int) int { return rnd.IntN(n) }, trace, func(w *sim) bool { return w.stats.steps < n })
}

// explain plays a seed again and returns the end of its schedule.
func explain(seed uint64, steps, lines int) string {
	var log []string
	runSeed(seed, steps, func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) })
	return tail(log, lines)
}

func tail(log []string, n int) string {
	if skip := len(log) - n; skip > 0 {
		return fmt.Sprintf("(%d lines before)\n", skip) + strings.Join(log[skip:], "\n")
	}
	return strings.Join(log, "\n")
}

// TestSimulation plays random schedules of everything that may happen to the two ends of a slot: see actions.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		t.Log(explain(*simSeed, *simSteps, 1<<30))
		if w := runSeed(*simSeed, *simSteps, nil); w.err != nil {
			t.Fatalf("seed %d: %v", *simSeed, w.err)
		}
		return
	}
	n := *simSeeds
	if testing.Short() || raceEnabled {
		n = min(n, 300)
	}
	var all simStats
	for seed := uint64(1); seed <= n; seed++ {
		w := runSeed(seed, *simSteps, nil)
		if w.err != nil {
			t.Fatalf("seed %d: %v\nthe schedule (go test -run TestSimulation -sim.seed %d shows all of it):\n%s",
				seed, w.err, seed, explain(seed, *simSteps, 60))
		}
		s := w.stats
		all = simStats{all.steps + s.steps, all.bytes + s.bytes, all.resumes + s.resumes,
			all.stale + s.stale, all.sessions + s.sessions, all.leaks + s.leaks, all.lies + s.lies, all.wrong + s.wrong,
			all.handedOver + s.handedOver, all.carried + s.carried, all.finished + s.finished, all.withdrawn + s.withdrawn, all.lent + s.lent,
			[2]int{all.opened[0] + s.opened[0], all.opened[1] + s.opened[1]}}
	}
	t.Logf("%d seeds: %+v", n, all)
	if all.resumes == 0 || all.stale == 0 || all.leaks == 0 || all.lies == 0 || all.wrong == 0 || all.bytes == 0 || all.opened[atProxy] == 0 || all.opened[atBridge] == 0 || all.carried == 0 || all.finished == 0 || all.withdrawn == 0 || all.lent == 0 {
		t.Errorf("some faults never happened: %+v", all)
	}
}
