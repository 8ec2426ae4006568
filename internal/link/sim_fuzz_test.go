package link

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

var simUpdate = flag.Bool("sim.update", false, "let TestScheduleOfASeed write the fuzz inputs in testdata")

// schedule is a fuzz input: the choices of a run, one after the other, in as many bytes as each needs.
type schedule struct {
	b    []byte
	over bool
}

// width is how many bytes a choice below n takes.
func width(n int) int {
	w := 1
	for n > 1<<(8*w) {
		w++
	}
	return w
}

func (s *schedule) pick(_ string, n int) int {
	w, v := width(n), 0
	if s.over = s.over || len(s.b) < w; s.over {
		return 0
	}
	for _, c := range s.b[:w] {
		v = v<<8 | int(c)
	}
	s.b = s.b[w:]
	return v % n
}

func (s *schedule) record(v, n int) {
	for i := width(n) - 1; i >= 0; i-- {
		s.b = append(s.b, byte(v>>(8*i)))
	}
}

// runSchedule plays a fuzz input to its end.
func runSchedule(b []byte, trace func(string, ...any)) *sim {
	s := &schedule{b: b}
	return run(s.pick, trace, func(w *sim) bool { return !s.over && w.stats.steps < 3000 })
}

// FuzzSimulation lets the fuzzer write the schedule.
func FuzzSimulation(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		if w := runSchedule(b, nil); w.err != nil {
			var log []string
			runSchedule(b, func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) })
			t.Fatalf("%v\n%s", w.err, tail(log, 100))
		}
	})
}

// TestScheduleOfASeed: a recorded run is the same when it is played again. The inputs in testdata are such records.
func TestScheduleOfASeed(t *testing.T) {
	for seed := uint64(1); seed <= 12; seed++ {
		const steps = 150
		var s schedule
		rnd := rand.New(rand.NewPCG(seed, 3))
		n := steps/2 + int(seed)*10
		var log [2][]string
		w := run(func(_ string, n int) int {
			v := rnd.IntN(n)
			s.record(v, n)
			return v
		}, func(f string, args ...any) { log[0] = append(log[0], fmt.Sprintf(f, args...)) },
			func(w *sim) bool { return w.stats.steps < n })
		again := runSchedule(s.b, func(f string, args ...any) { log[1] = append(log[1], fmt.Sprintf(f, args...)) })
		if w.err != nil || again.err != nil {
			t.Fatalf("seed %d: %v, played again: %v", seed, w.err, again.err)
		}
		for i, line := range log[0] {
			if line == "the faults end" { // what drain chooses is not in the same place
				break
			}
			if i >= len(log[1]) || line != log[1][i] {
				t.Fatalf("seed %d, line %d: %q, played again: %q", seed, i, line, log[1][i])
			}
		}
		if *simUpdate {
			file := filepath.Join("testdata", "fuzz", "FuzzSimulation", fmt.Sprintf("seed-%02d", seed))
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", s.b), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestSimulationRapid drives the same world with a state machine that shrinks a failure to a few actions.
func TestSimulationRapid(t *testing.T) {
	for name, most := range map[string]string{"rapid.steps": "80", "rapid.checks": "1500"} {
		if f := flag.Lookup(name); f.Value.String() == f.DefValue { // too few to get anywhere
			flag.Set(name, most)
			defer flag.Set(name, f.DefValue)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		w := newSim(func(what string, n int) int { return rapid.IntRange(0, n-1).Draw(t, what) })
		w.trace = t.Logf
		machine := make(map[string]func(*rapid.T), len(actions))
		for _, a := range actions {
			machine[a.name] = func(t *rapid.T) {
				if w.step(a); w.err != nil {
					t.Fatal(w.err)
				}
			}
		}
		t.Repeat(machine)
		if w.drain(); w.err != nil {
			t.Fatal(w.err)
		}
	})
}
