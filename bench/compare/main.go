// Command compare measures reverser, two HAProxies in a row and the direct connection side by side, in one run on
// loopback, so that the ratio between them means something on whatever machine it runs.
//
// In the order in which a run meets them:
//
//  1. tools.go      finds the programs and says which packages are missing
//  2. bed.go        starts the servers (nginx, iperf3, echo) and the contenders in front of them
//  3. load.go       bulk and requests: runs iperf3 and wrk, and reads what they print
//  4. idle.go       resident memory per idle connection
//  5. report.go     medians, ratios, goals: the table and the JSON
//
// process.go starts and ends processes. Everything that starts one runs on the main goroutine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// The kernel ends the children of a thread that ends (see own), so they are started by the one thread that lives as
// long as the program.
func init() { runtime.LockOSThread() }

type settings struct {
	Rounds  int `json:"rounds"`
	Seconds int `json:"seconds"`
	Conns   int `json:"conns"`
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit code: 1 when the measurement broke or was interrupted, 2 when it could not begin.
func run(args []string, stdout, stderr io.Writer) int {
	var set settings
	var out string
	fl := flag.NewFlagSet("compare", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.Usage = func() {
		fmt.Fprint(stderr, "Compare reverser with two HAProxies in a row and with the direct connection, on loopback.\n\nUsage: go run ./bench/compare [flags]\n\n")
		fl.PrintDefaults()
	}
	fl.IntVar(&set.Rounds, "rounds", 3, "how many times each figure is measured")
	fl.IntVar(&set.Seconds, "seconds", 5, "how many seconds one measurement takes")
	fl.IntVar(&set.Conns, "conns", 4000, "idle connections for the memory row, 0 leaves it out")
	fl.StringVar(&out, "out", "", "write the raw numbers to this `FILE` as JSON")
	if err := fl.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	fail := func(code int, err error) int {
		fmt.Fprintln(stderr, "compare:", err)
		return code
	}

	switch {
	case fl.NArg() > 0:
		return fail(2, fmt.Errorf("unexpected argument %q: see -help", fl.Arg(0)))
	case set.Rounds < 1 || set.Seconds < 1 || set.Conns < 0:
		return fail(2, errors.New("-rounds and -seconds must be at least 1, -conns at least 0"))
	case runtime.GOOS != "linux":
		return fail(2, fmt.Errorf("this comparison runs on Linux only, not on %s: it needs /proc and splice", runtime.GOOS))
	}
	tools, err := findTools()
	if err != nil {
		return fail(2, err)
	}
	if need, have := uint64(2*set.Conns+200), fileLimit(); have < need {
		return fail(2, fmt.Errorf("-conns %d needs %d open files, the limit is %d: raise it with `ulimit -n %d` or give a smaller -conns",
			set.Conns, need, have, need))
	}
	save, err := openOut(out)
	if err != nil {
		return fail(2, err)
	}
	defer save.discard()

	// SIGPIPE too: `compare | head` must not leave processes and files behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	rep, err := measure(ctx, tools, set, stderr)
	if ctx.Err() != nil {
		return fail(1, errors.New("interrupted"))
	}
	if err != nil {
		return fail(1, err)
	}
	if err := rep.print(stdout); err != nil {
		return fail(1, err)
	}
	if err := save.write(rep); err != nil {
		return fail(1, err)
	}
	return 0
}

// measure does all rounds. What it started and wrote is gone when it returns.
func measure(ctx context.Context, tools tools, set settings, progress io.Writer) (rep *report, err error) {
	b, err := newBed(tools)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	fmt.Fprintln(progress, "building reverser and starting the servers")
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	if err := b.serve(ctx); err != nil {
		return nil, err
	}
	rep = &report{Machine: describe(ctx, b), Settings: set}
	for round := range set.Rounds {
		if err := b.round(ctx, rep, round, progress); err != nil {
			return nil, err
		}
	}
	rep.Machine.LoadAfter = loadAverage()
	return rep, nil
}

// round measures each row once for each contender.
func (b *bed) round(ctx context.Context, rep *report, round int, progress io.Writer) error {
	field, err := b.contenders(ctx)
	if err != nil {
		return err
	}
	for _, m := range loads {
		fmt.Fprintf(progress, "round %d of %d: %-28s", round+1, rep.Settings.Rounds, m.Name)
		for i := range field {
			// Whoever comes first finds the machine in another state than whoever comes last: take turns.
			c := field[(round+i)%len(field)]
			v, note, err := m.run(ctx, b, c, rep.Settings.Seconds)
			if err != nil {
				fmt.Fprintln(progress)
				return fmt.Errorf("%s, %s: %w", m.Name, c.name, c.explain(err))
			}
			fmt.Fprintf(progress, "  %s %s", c.name, figure(v))
			rep.add(m.kind, round, c.name, v, note)
		}
		fmt.Fprintln(progress)
	}
	for _, c := range field {
		c.stop()
	}
	if rep.Settings.Conns == 0 {
		return nil
	}

	fmt.Fprintf(progress, "round %d of %d: %-28s", round+1, rep.Settings.Rounds, idle.Name)
	defer fmt.Fprintln(progress)
	for i := range 2 {
		name := []string{haproxy, reverser}[(round+i)%2]
		v, err := b.idle(ctx, name, rep.Settings.Conns)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", idle.Name, name, err)
		}
		fmt.Fprintf(progress, "  %s %s", name, figure(v))
		rep.add(idle, round, name, v, "")
	}
	return nil
}
