package proxy

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"testing"
	"time"
)

var (
	fleetBridges = flag.Int("fleet.bridges", 5000, "bridges of the largest simulated fleet; 100,000 take a minute")
	fleetReal    = flag.String("fleet.real", "", "compare the simulated return with those of real bridges in this `FILE` of bench/compare -out, instead of "+realReturns)
)

// beginnings are how all bridges of a fleet come to a proxy at about the same time.
var beginnings = map[string]func(s *fleetSim){
	"crash": func(s *fleetSim) { // it is started again at once
		s.know()
		s.restart(200 * time.Millisecond)
		for _, b := range s.bridges {
			b.cut()
		}
	},
	"stop": func(s *fleetSim) { // the bridges begin another session when GOAWAY says, and finish what is on the one before
		s.know()
		s.restart(200 * time.Millisecond)
		for i, b := range s.bridges { // as Drain asks them to
			s.at(min(time.Duration(i)*comeBackEach, comeBackMost), b.start)
		}
	},
	"first start": func(s *fleetSim) {
		for _, b := range s.bridges {
			b.start()
		}
	},
}

// play returns when each bridge of a fleet serves, in order.
func play(costs fleetCosts, n int, begin func(*fleetSim)) (s *fleetSim, times []time.Duration) {
	s = newFleetSim(costs, uint64(n))
	s.populate(n)
	s.up = true
	s.served = func(*simBridge, time.Duration) { times = append(times, s.now) }
	begin(s)
	s.run(time.Duration(n)*costs.ideal()*20 + time.Minute)
	return s, times
}

// TestFleetReturns: after a restart of the proxy, and at a first start, all bridges serve in a time that is in proportion to their
// number and not much longer than the processors need; little work is lost; and they come at a steady pace.
func TestFleetReturns(t *testing.T) {
	costs := defaultFleet()
	for _, n := range []int{100, 1000, *fleetBridges} {
		for what, begin := range beginnings {
			t.Run(fmt.Sprintf("%s of %d", what, n), func(t *testing.T) {
				began := time.Now()
				s, times := play(costs, n, begin)
				if len(times) < n {
					t.Fatalf("%d of %d bridges serve after %v", len(times), n, s.now)
				}
				ideal := time.Duration(n) * costs.ideal() / time.Duration(costs.processors)
				last := times[n-1]
				lost := float64(s.used-s.useful) / float64(s.used)
				share := func(of float64) float64 { return float64(times[int(of*float64(n))-1]) / float64(last) }
				t.Logf("all serve after %.1f s, the processors need %.1f s; 10, 50 and 90 %% serve after %.0f, %.0f and %.0f %% of the time; "+
					"%.1f attempts of each bridge, %.0f %% of the work lost (simulated in %.1f s)",
					last.Seconds(), ideal.Seconds(), share(.1)*100, share(.5)*100, share(.9)*100, float64(s.attempts)/float64(n), lost*100, time.Since(began).Seconds())
				if last > ideal*3/2+5*time.Second {
					t.Errorf("all serve after %v, want at most half more than the %v of the processors", last, ideal)
				}
				if lost > .5 {
					t.Errorf("%.0f %% of the work was for connections that came to nothing", lost*100)
				}
				// A few must not wait long behind all the others, nor all for each other.
				if share(.9) < .5 || n >= 1000 && share(.1) > .75 {
					t.Errorf("10 %% serve after %.0f %% of the time, 90 %% after %.0f %%; want a steadier pace", share(.1)*100, share(.9)*100)
				}
			})
		}
	}
}

// TestFleetOfASlowProxy: where a handshake takes 20 times as long, as on a machine that others use, those at the end of the queue
// wait for longer than an attempt lasts. The work that is lost with them must not keep the others away.
func TestFleetOfASlowProxy(t *testing.T) {
	const n, slower = 1000, 20
	costs := defaultFleet()
	for _, cost := range []*time.Duration{&costs.accept, &costs.hello, &costs.finish, &costs.attach, &costs.claim} {
		*cost *= slower
	}
	ideal := n * costs.ideal() / time.Duration(costs.processors)
	for what, begin := range beginnings {
		s, times := play(costs, n, begin)
		if len(times) < n {
			t.Errorf("%s: %d of %d bridges serve after %v", what, len(times), n, s.now)
			continue
		}
		t.Logf("%s: all serve after %.1f s, the processors need %.1f s; %.0f %% of the work lost", what, times[n-1].Seconds(), ideal.Seconds(),
			100*float64(s.used-s.useful)/float64(s.used))
		if times[n-1] > 3*ideal {
			t.Errorf("%s: all serve after %v, want at most three times the %v of the processors", what, times[n-1], ideal)
		}
	}
}

// TestFlappingBridge: one that breaks once a second costs its neighbours nothing, while some of them come and go: in the same fleet they
// need as many attempts, as much of the processors and as long as a minute before.
func TestFlappingBridge(t *testing.T) {
	const n, churn, seconds = 10_000, 50, 60 // so many break each second
	s := newFleetSim(defaultFleet(), 1)
	s.populate(n)
	s.up = true
	for _, b := range s.bridges {
		b.start()
	}
	s.run(time.Minute)
	flapping, neighbours := s.bridges[0], s.bridges[1:]
	for _, b := range s.bridges {
		if !b.serving {
			t.Fatal("not all serve after a minute")
		}
	}
	type cost struct {
		took        []time.Duration // until each neighbour served again
		tries, lost int             // of neighbours; those who do not serve at the end
		used        time.Duration   // processors, by all
	}
	live := func(flaps bool) (c cost) {
		s.served = func(b *simBridge, d time.Duration) {
			if b != flapping {
				c.took = append(c.took, d)
			}
		}
		for _, b := range neighbours {
			b.tries = 0
		}
		before := s.used
		for range seconds {
			if flaps {
				flapping.cut()
			}
			for range churn {
				neighbours[s.rng.IntN(len(neighbours))].cut()
			}
			s.run(s.now + time.Second)
		}
		s.run(s.now + 20*time.Second)
		for _, b := range neighbours {
			if c.tries += b.tries; !b.serving {
				c.lost++
			}
		}
		c.used = s.used - before
		slices.Sort(c.took)
		return c
	}
	quiet, flapped := live(false), live(true)
	at := func(c cost, share float64) time.Duration { return c.took[int(share*float64(len(c.took)-1))] }
	t.Logf("without and with a bridge that flaps: p50 %v and %v, p99 %v and %v, %.3f and %.3f attempts for each return, processors %v and %v",
		at(quiet, .5), at(flapped, .5), at(quiet, .99), at(flapped, .99), float64(quiet.tries)/float64(len(quiet.took)), float64(flapped.tries)/float64(len(flapped.took)), quiet.used, flapped.used)
	if quiet.lost+flapped.lost != 0 {
		t.Errorf("%d and %d neighbours do not serve at the end", quiet.lost, flapped.lost)
	}
	if a, b := quiet.tries*len(flapped.took), flapped.tries*len(quiet.took); b > a+a/100 {
		t.Errorf("%d attempts for %d returns of neighbours, without a bridge that flaps %d for %d", flapped.tries, len(flapped.took), quiet.tries, len(quiet.took))
	}
	for _, share := range []float64{.5, .99} { // of virtual time
		if a, b := at(quiet, share), at(flapped, share); b > a*11/10 {
			t.Errorf("with a bridge that flaps, %.0f %% of the others serve again after %v, without it after %v", share*100, b, a)
		}
	}
	if each := (flapped.used - quiet.used) / seconds; each > 10*defaultFleet().ideal() {
		t.Errorf("a bridge that flaps costs %v each time, want not much more than the %v of one that returns", each, defaultFleet().ideal())
	}
}

// realReturns has the curve of a return of a real fleet, as bench/compare measured it on two processors: when 0, 1, 2 … 100 % of the bridges
// served, in seconds. Beside other work on the same processors the curve is that work's.
// Another file of its option -out, with the time of each bridge, can be compared with -fleet.real.
const realReturns = "testdata/returns.json"

// TestFleetLikeReal compares the simulated return with real ones: how many bridges serve at each part of the time until all do.
func TestFleetLikeReal(t *testing.T) {
	file := cmp.Or(*fleetReal, realReturns)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var measured struct {
		Returns []struct {
			Fleet, Contender string
			Bridges          int
			Times            []float64
		}
	}
	if err := json.Unmarshal(text, &measured); err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, real := range measured.Returns {
		n, last := real.Bridges, len(real.Times)-1
		if real.Contender != "reverser" || file != realReturns && len(real.Times) < n {
			continue
		}
		compared++
		s, times := play(oneMachine(), n, beginnings["stop"])
		if len(times) < n {
			t.Fatalf("%d of %d simulated bridges serve", len(times), n)
		}
		off := 0.0
		at := func(of float64) (simulated, measured float64) {
			return float64(times[int(of*float64(n-1))]) / float64(times[n-1]), real.Times[int(of*float64(last))] / real.Times[last]
		}
		for i := range 101 {
			a, b := at(float64(i) / 100)
			off = max(off, math.Abs(a-b))
		}
		half, halfReal := at(.5)
		most, mostReal := at(.9)
		t.Logf("%s: all serve after %.2f s, in the simulation after %.2f s; 50 and 90 %% after %.2f and %.2f of the time, simulated %.2f and %.2f; "+
			"the curves are %.2f of the time apart at the most; %.1f attempts of each bridge simulated", real.Fleet, real.Times[last], times[n-1].Seconds(),
			halfReal, mostReal, half, most, off, float64(s.attempts)/float64(n))
		if off > .35 {
			t.Errorf("%s: the real curve is %.2f of the time away from the simulated one", real.Fleet, off)
		}
	}
	if compared == 0 {
		t.Errorf("%s has no return of a fleet of reverser", file)
	}
}
