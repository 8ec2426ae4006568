// Command compare measures reverser beside other ways to the same servers, in one run on one machine, so that the ratios
// between them mean something on whatever machine it runs.
//
// In the order in which a run meets them:
//
//  1. tools.go      finds the programs and says which packages are missing
//  2. bed.go        starts the servers (nginx, iperf3, echo) in a place (host.go): loopback, or with a distance between
//  3. contender.go  starts the ways to them
//  4. rows.go       what is measured, and the goals
//  5. load.go       bulk and requests: runs iperf3 and wrk, and reads what they print
//  6. idle.go       what connections cost: memory, and CPU against their number
//  7. latency.go    first bytes and keystrokes, alone and beside others
//  8. report.go     medians, ratios, goals, disturbed rounds: the table and the JSON
//  9. chart.go, page.go   the same as a picture, and in docs/PERFORMANCE.md
//
// Rows about many bridges of one proxy have files of their own: fleet.go and fleethelper.go, and return.go for their picture. So have
// those about names instead of ports: names.go.
//
// process.go starts and ends processes, usage.go reads from /proc what they use. helper.go and echo.go are what this
// program does in processes of its own. Everything that starts one runs on the main goroutine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// The kernel ends the children of a thread that ends (see own), so they are started by the one thread that lives as
// long as the program.
func init() { runtime.LockOSThread() }

type settings struct {
	Size    string `json:"size"` // full, quick or part
	Rounds  int    `json:"rounds"`
	Seconds int    `json:"seconds"`
	Conns   int    `json:"conns"`
	Rows    string `json:"rows,omitempty"`
	Fleets  string `json:"fleets,omitempty"`
	peers   string
	absent  []string // what the limits of this machine leave out
}

func main() {
	if len(os.Args) > 1 && helpers[os.Args[1]] != nil {
		os.Exit(runHelper(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: 1 when the measurement broke or was interrupted, 2 when it could not begin.
func run(args []string, stdout, stderr io.Writer) int {
	set := settings{Size: "full"}
	var out, doc, fleets, names, returns string
	var quick, list bool
	fl := flag.NewFlagSet("compare", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.Usage = func() {
		fmt.Fprint(stderr, "Compare reverser with other ways to the same servers, on this machine.\n\nUsage: go run ./bench/compare [flags]\n\n")
		fl.PrintDefaults()
	}
	fl.BoolVar(&quick, "quick", false, "3 minutes to see that everything works, instead of figures: 1 round, 1 second, 1000 connections")
	fl.IntVar(&set.Rounds, "rounds", 3, "how many times each figure is measured")
	fl.IntVar(&set.Seconds, "seconds", 2, "how many seconds one measurement takes")
	fl.IntVar(&set.Conns, "conns", 10000, "connections for the rows of idle and of very many ones, as far as the limit of open files goes; 0 leaves those out")
	fl.StringVar(&set.Fleets, "fleets", "100,400/1,1000", "`SIZES` of fleets of bridges, 400/1 for 400 behind one address, as far as the limit of open files goes; \"\" leaves those rows out")
	fl.StringVar(&returns, "return", "", "draw the return of the fleets after a restart of the proxy into this `FILE`")
	fl.StringVar(&set.Rows, "rows", "", "measure only rows that match this regular `EXPRESSION`")
	fl.BoolVar(&list, "list", false, "print the names of the rows")
	fl.StringVar(&set.peers, "peers", "", "look in this `DIRECTORY` before the PATH for frps, frpc, rathole, chisel, ssh and sshd, and for "+earlierProgram+", reverser of another revision")
	fl.StringVar(&out, "out", "", "write table, numbers and chart into this `DIRECTORY`")
	fl.StringVar(&fleets, "fleetdoc", "", "put the table of the fleets between the marks of this `FILE`")
	fl.StringVar(&names, "namedoc", "", "put the table of the names between the marks of this `FILE`")
	fl.StringVar(&doc, "doc", "", "after a full run, put the table between the marks of this `FILE`")
	if err := fl.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	fail := func(code int, err error) int {
		fmt.Fprintln(stderr, "compare:", err)
		return code
	}
	given := make(map[string]bool)
	fl.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if quick {
		set.Size = "quick"
		for name, v := range map[string]string{"rounds": "1", "seconds": "1", "conns": "1000", "fleets": "100"} {
			if !given[name] {
				_ = fl.Set(name, v)
			}
		}
	}
	switch {
	case fl.NArg() > 0:
		return fail(2, fmt.Errorf("unexpected argument %q: see -help", fl.Arg(0)))
	case set.Rounds < 1 || set.Seconds < 1:
		return fail(2, errors.New("-rounds and -seconds must be at least 1"))
	case set.Conns != 0 && set.Conns < 20:
		return fail(2, errors.New("-conns must be at least 20, or 0"))
	}
	// HAProxy has two files for a connection, and some more.
	const spare = 600
	have := raiseFileLimit(uint64(2*set.Conns + spare))
	if most := int(have)/2 - spare/2; set.Conns > most && runtime.GOOS == "linux" {
		if given["conns"] {
			return fail(2, fmt.Errorf("-conns %d needs %d open files, the limit is %d: raise it with `ulimit -n %d` or give a smaller -conns",
				set.Conns, 2*set.Conns+spare, have, 2*set.Conns+spare))
		}
		set.Conns = most
	}
	if err := set.checkFleets(given["fleets"]); err != nil {
		return fail(2, err)
	}
	all := probes(set)
	if set.Rows != "" {
		set.Size = "part"
	}
	probes, err := choose(all, set.Rows)
	if err != nil {
		return fail(2, err)
	}
	if list {
		for _, p := range probes {
			for _, k := range p.kinds {
				fmt.Fprintln(stdout, k.Name)
			}
		}
		return 0
	}
	if runtime.GOOS != "linux" {
		return fail(2, fmt.Errorf("this comparison runs on Linux only, not on %s: it needs /proc and splice", runtime.GOOS))
	}
	tools, err := findTools(set.peers)
	if err != nil {
		return fail(2, err)
	}
	if out != "" { // before the run, which is too long to find out afterwards
		if err := os.MkdirAll(out, 0o755); err != nil {
			return fail(2, fmt.Errorf("make the directory of -out: %w", err))
		}
	}
	pages := []struct {
		page
		table func(*report) string
		now   bool
	}{
		{page{file: doc, by: "bench"}, (*report).bench, set.Size == "full"},
		{page{file: names, by: "bench-names"}, (*report).names, true},
		{page{file: fleets, by: "fleets"}, (*report).fleets, true},
	}
	for _, p := range pages {
		if p.file == "" {
			continue
		}
		if err := p.open(); err != nil {
			return fail(2, err)
		}
	}

	// SIGPIPE too: `compare | head` must not leave processes and files behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	rep, err := measure(ctx, tools, set, probes, stderr)
	if ctx.Err() != nil {
		return fail(1, errors.New("interrupted"))
	}
	if err != nil {
		return fail(1, err)
	}
	if err := rep.print(stdout); err != nil {
		return fail(1, err)
	}
	if out != "" {
		if err := rep.save(filepath.Join(out, set.Size)); err != nil {
			return fail(1, err)
		}
	}
	if returns != "" {
		if err := os.WriteFile(returns, []byte(rep.drawReturns()), 0o644); err != nil {
			return fail(1, err)
		}
	}
	for _, p := range pages {
		if p.file == "" || !p.now {
			continue
		}
		if err := p.write(p.table(rep)); err != nil {
			return fail(1, err)
		}
	}
	if len(rep.Failures) > 0 {
		return fail(1, fmt.Errorf("%d measurements failed: see below the table", len(rep.Failures)))
	}
	return 0
}

// measure does all rounds. What it started and wrote is gone when it returns.
func measure(ctx context.Context, tools tools, set settings, probes []probe, progress io.Writer) (rep *report, err error) {
	var beds []*bed
	defer func() {
		for _, b := range beds {
			err = errors.Join(err, b.close())
		}
	}()
	newBed := func(at place) (*bed, error) {
		b, err := newBed(at, tools)
		if err == nil {
			beds = append(beds, b)
		}
		return b, err
	}

	loadBefore := loadAverage()
	fmt.Fprintf(progress, "building reverser and starting the servers; load %s\n", loadBefore)
	near, err := newBed(loopback)
	if err != nil {
		return nil, err
	}
	program, err := build(ctx, near.dir)
	if err != nil {
		return nil, err
	}
	near.reverser = program
	if err := near.serve(ctx); err != nil {
		return nil, err
	}
	rep = &report{Machine: describe(ctx, near), Settings: set, Absent: append(tools.absent(), set.absent...)}
	rep.Machine.LoadBefore = loadBefore

	local, away := splitProbes(probes)
	var dist *distance
	var distant *bed
	if len(away) > 0 {
		if dist, err = newDistance(); err != nil {
			rep.Absent = append(rep.Absent, fmt.Sprintf("rows over a distance are not measured: %v", err))
			away = nil
		} else {
			defer dist.close()
			if distant, err = newBed(dist.place); err != nil {
				return nil, err
			}
			distant.reverser = program
			if err := distant.serve(ctx); err != nil {
				return nil, err
			}
		}
	}

	var field []way
	for _, w := range ways {
		if tools.have(w) {
			field = append(field, w)
			rep.Columns = append(rep.Columns, column{w.name, w.title})
		}
	}
	for round := range set.Rounds {
		m := &meter{rep: rep, round: round, progress: progress, loadBefore: loadAverage()}
		if err := m.measure(ctx, near, field, local); err != nil {
			return nil, err
		}
		for _, probes := range byPath(away) {
			// First the path, then the connections: BBR for one believes for ten seconds in a round trip that was shorter.
			if err := dist.set(probes[0].path); err != nil {
				return nil, err
			}
			if err := m.measure(ctx, distant, field, probes); err != nil {
				return nil, err
			}
		}
		rep.Rounds = append(rep.Rounds, m.info())
	}
	rep.Returns = near.returns
	rep.Machine.LoadAfter = loadAverage()
	rep.finish()
	return rep, nil
}

// splitProbes separates those that want a distance.
func splitProbes(all []probe) (here, away []probe) {
	for _, p := range all {
		if p.path == "" {
			here = append(here, p)
		} else {
			away = append(away, p)
		}
	}
	return here, away
}

// byPath separates probes that follow each other and want different paths.
func byPath(probes []probe) (parts [][]probe) {
	for i, p := range probes {
		if i == 0 || p.path != probes[i-1].path {
			parts = append(parts, nil)
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], p)
	}
	return parts
}

// have reports whether all programs of a way are there.
func (t tools) have(w way) bool {
	for _, program := range w.programs {
		if t[program] == "" {
			return false
		}
	}
	return true
}

// A meter measures a round.
type meter struct {
	rep        *report
	round      int
	progress   io.Writer
	loadBefore string
	took       time.Duration // of all measurements
	others     time.Duration // CPU that processes used meanwhile that are none of this program's
}

func (m *meter) info() roundInfo {
	r := roundInfo{LoadBefore: m.loadBefore}
	if m.took > 0 {
		r.Others = m.others.Seconds() / m.took.Seconds()
	}
	return r
}

// measure starts the field on a bed and measures each row once for each contender that it wants. What fails is noted:
// the other figures of a long run are not lost with it.
func (m *meter) measure(ctx context.Context, b *bed, field []way, probes []probe) error {
	var there []*contender
	defer func() {
		for _, c := range there {
			c.stop()
		}
	}()
	for _, w := range field {
		if !wanted(probes, w.name) {
			continue
		}
		c, err := b.compete(ctx, w, 4000)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			m.rep.fail("round %d: %s: %v", m.round+1, w.name, err)
		default:
			there = append(there, c)
		}
	}
	for _, p := range probes {
		if p.once && m.round > 0 {
			continue
		}
		fmt.Fprintf(m.progress, "round %d of %d: %-34s", m.round+1, m.rep.Settings.Rounds, p.name)
		for i := range there {
			// Whoever comes first finds the machine in another state than whoever comes last: take turns.
			c := there[(m.round+i)%len(there)]
			if !p.wants(c.name) || !c.alive() {
				continue
			}
			if err := m.one(ctx, b, c, p); err != nil {
				return err
			}
		}
		fmt.Fprintln(m.progress)
	}
	return nil
}

func wanted(probes []probe, name string) bool {
	for _, p := range probes {
		if p.wants(name) {
			return true
		}
	}
	return false
}

// one measures the rows of p for c.
func (m *meter) one(ctx context.Context, b *bed, c *contender, p probe) error {
	before, start := allTasks().others(os.Getpid()), time.Now()
	figures, note, err := p.run(ctx, b, c, m.rep.Settings)
	took := time.Since(start)
	others := max(0, allTasks().others(os.Getpid())-before) // less when a child of another one is counted by nobody
	m.took, m.others = m.took+took, m.others+others
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		fmt.Fprintf(m.progress, "  %s failed", c.name)
		m.rep.fail("%s, %s, round %d: %v", p.name, c.name, m.round+1, c.explain(err))
		return nil
	}
	if !math.IsNaN(figures[0]) {
		fmt.Fprintf(m.progress, "  %s %s", c.name, figure(figures[0]))
	}
	share := 0.0
	if took > 10*tick { // less is too coarse
		share = others.Seconds() / took.Seconds()
	}
	for i, v := range figures {
		m.rep.add(p.name, p.kinds[i], c.name, sample{m.round + 1, v, share}, note)
		note = "" // once
	}
	return nil
}
