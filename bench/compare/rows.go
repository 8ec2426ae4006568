package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A kind is a row of the table: what is measured, and how good it has to be.
type kind struct {
	Name  string `json:"name"`
	Unit  string `json:"unit"`
	Low   bool   `json:"low"` // less is better
	Goals []goal `json:"goals,omitempty"`
}

// A goal is how good reverser has to be: Factor times another contender's figure of the same round, or, without one,
// Factor itself. Whether that is a least or a most follows from the kind.
type goal struct {
	Than   string  `json:"than,omitempty"`
	Factor float64 `json:"factor"`
}

// A probe is a way to measure: what it does to one contender yields a figure for each of its kinds.
type probe struct {
	name  string
	kinds []kind
	who   []string // nil: everybody but nginxes
	once  bool     // in the first round only
	path  string   // the condition of the far bed that it wants; "" is loopback
	run   func(ctx context.Context, b *bed, c *contender, set settings) (figures []float64, note string, err error)
}

// nothing is the figure of a contender that has none for a kind.
var nothing = math.NaN()

// core are the contenders of rows that would take too long with all of them.
var core = []string{direct, haproxy, reverser, earlier}

// between are those that have processes in the path.
var between = []string{haproxy, reverser, earlier}

// The round trips of the far bed, and its loss.
const (
	near  = "20 ms"
	far   = "100 ms"
	lossy = "20 ms and 1 % loss"
)

// probes are all rows, in the order in which they are measured and printed. The goals are those of this project.
func probes(set settings) []probe {
	var all []probe
	add := func(p probe) { all = append(all, p) }
	var everybody []string
	if set.Size == "quick" {
		everybody = core // but for the first rows
	}

	// Bulk.
	for _, streams := range []int{1, 8, 64} {
		for _, dir := range []struct{ name, flag string }{{"up", ""}, {"down", "-R"}} {
			name := fmt.Sprintf("bulk %s, %s", dir.name, plural(streams, "stream"))
			p := probe{name: name, run: bulk(streams, dir.flag), who: core}
			rate := kind{Name: name, Unit: "Gbit/s"}
			cost := kind{Name: name + ": CPU per GB", Unit: "s", Low: true}
			if streams == 1 {
				p.who = nil
				rate.Goals = []goal{{haproxy, 1.2}, {frp, 2.2}}
				cost.Goals = []goal{{"", 2.0}}
			}
			p.kinds = append([]kind{rate, cost}, perHalf(cost)...)
			add(p)
		}
	}

	// Requests.
	for _, conns := range []int{1, 50, 500} {
		name := fmt.Sprintf("requests, %s kept alive", plural(conns, "connection"))
		p := probe{name: name, run: requests(conns), who: core}
		p.kinds = requestKinds(name)
		if conns == 50 {
			p.who = nil
			p.kinds[0].Goals = []goal{{haproxy, 1.0}}
			p.kinds[2].Goals = []goal{{haproxy, 1.0}}
		}
		add(p)
	}
	single := probe{name: "requests, one per connection", run: requests(50, "-H", "Connection: close")}
	single.kinds = requestKinds(single.name)
	single.kinds[0].Goals = []goal{{haproxy, 1.0}, {frp, 2.5}}
	add(single)

	// Size.
	idle := kind{Name: "memory per idle connection", Unit: "KB", Low: true, Goals: []goal{{"", 10}}}
	quiet := kind{Name: fmt.Sprintf("CPU of %d idle connections", set.Conns), Unit: "% of a core", Low: true, Goals: []goal{{"", 2}}}
	flight := kind{Name: "memory per connection, 64 KB in flight", Unit: "KB", Low: true}
	if set.Conns > 0 {
		add(probe{name: "idle", kinds: []kind{idle, quiet}, who: between, run: weighIdle})
		add(probe{name: "in flight", kinds: []kind{flight}, who: between, run: weighFlight})
		sizes := scaleSizes(set)
		p := probe{name: "scale", who: between, run: scale}
		for _, n := range sizes {
			p.kinds = append(p.kinds, kind{Name: fmt.Sprintf("CPU per 100 k echoes, %s", plural(n, "connection")), Unit: "s", Low: true})
		}
		p.kinds = append(p.kinds, kind{Name: fmt.Sprintf("CPU per echo, %d to %d connections", sizes[len(sizes)-1], sizes[0]), Unit: ratioUnit, Low: true,
			Goals: []goal{{"", 1.3}}})
		add(p)
	}

	// Latency.
	add(probe{name: "latency on loopback", who: everybody, run: latency(100, 5*time.Millisecond), kinds: latencyKinds("loopback", nil)})
	add(probe{name: "echo beside bulk", who: everybody, run: besideBulk, kinds: []kind{
		{Name: "echo beside bulk both ways: p50", Unit: "ms", Low: true},
		{Name: "echo beside bulk both ways: p99", Unit: "ms", Low: true, Goals: []goal{{direct, 2}}},
	}})
	add(probe{name: "echo beside stalled readers", who: everybody, run: besideStalled, kinds: []kind{
		{Name: "echo beside 50 stalled readers: p50", Unit: "ms", Low: true},
		{Name: "echo beside 50 stalled readers: p99", Unit: "ms", Low: true, Goals: []goal{{direct, 2}}},
	}})

	// Names.
	all = append(all, nameProbes(set)...)

	// Once for each program.
	add(probe{name: "start-up", run: startup, kinds: []kind{{Name: "start-up, until a user is served", Unit: "ms", Low: true}}})
	add(probe{name: "size", run: size, kinds: []kind{{Name: "size of the programs", Unit: "MB", Low: true}}})

	// Fleets.
	for _, s := range set.fleets() {
		add(fleetProbe(s))
	}

	// Distance.
	for _, p := range []string{near, far} {
		add(probe{name: "latency over " + p, path: p, who: everybody, run: latency(5, 20*time.Millisecond), kinds: latencyKinds(p, []goal{{direct, 1.1}})})
	}
	for _, dir := range []struct{ name, flag string }{{"up", ""}, {"down", "-R"}} {
		name, who := "bulk "+dir.name+" over "+far+", 1 stream", everybody
		if dir.name == "up" {
			who = core
		}
		add(probe{name: name, path: far, who: who, run: farBulk(dir.flag), kinds: []kind{{Name: name, Unit: "Mbit/s", Goals: []goal{{direct, 0.9}}}}})
	}
	name := "bulk down over " + lossy + ", 1 stream"
	add(probe{name: name, path: lossy, who: everybody, run: farBulk("-R"), kinds: []kind{{Name: name, Unit: "Mbit/s"}}})
	return all
}

func requestKinds(name string) []kind {
	cost := kind{Name: name + ": CPU per 100 k", Unit: "s", Low: true}
	return append([]kind{
		{Name: name, Unit: "1000/s"},
		{Name: name + ": p50", Unit: "ms", Low: true},
		{Name: name + ": p99", Unit: "ms", Low: true},
		{Name: name + ": p99.9", Unit: "ms", Low: true},
		cost,
	}, perHalf(cost)...)
}

func perHalf(k kind) (kinds []kind) {
	for _, half := range halves {
		kinds = append(kinds, kind{Name: k.Name + ", " + half, Unit: k.Unit, Low: true})
	}
	return kinds
}

func latencyKinds(path string, goals []goal) []kind {
	return []kind{
		{Name: "first byte of a new connection, " + path, Unit: "ms", Low: true, Goals: goals},
		{Name: "echo of a keystroke, " + path, Unit: "ms", Low: true},
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// choose keeps the probes whose name, or the name of one of whose rows, matches.
func choose(all []probe, pattern string) ([]probe, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("-rows: %w", err)
	}
	chosen := slices.DeleteFunc(all, func(p probe) bool {
		return !re.MatchString(p.name) && !slices.ContainsFunc(p.kinds, func(k kind) bool { return re.MatchString(k.Name) })
	})
	if len(chosen) == 0 {
		return nil, fmt.Errorf("-rows %q matches no row: -list prints them", pattern)
	}
	return chosen, nil
}

func (p probe) wants(contender string) bool {
	if p.who == nil {
		return contender != nginxes
	}
	return slices.Contains(p.who, contender)
}

func startup(_ context.Context, _ *bed, c *contender, _ settings) ([]float64, string, error) {
	if c.took == 0 {
		return []float64{nothing}, "", nil
	}
	return []float64{c.took.Seconds() * 1e3}, "", nil
}

func size(_ context.Context, _ *bed, c *contender, _ settings) ([]float64, string, error) {
	var sum int64
	for _, path := range c.programs {
		if strings.HasSuffix(path, "-keygen") {
			continue // it takes no part
		}
		if target, err := filepath.EvalSymlinks(path); err == nil {
			path = target
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, "", err
		}
		sum += info.Size()
	}
	if sum == 0 {
		return []float64{nothing}, "", nil
	}
	return []float64{float64(sum) / 1e6}, "", nil
}
