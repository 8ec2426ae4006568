//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	if text := os.Getenv(attackEnv); text != "" {
		os.Exit(attackMain(text))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

const usageText = `Break what a tunnel depends on, with real processes, and measure what its users see.

Usage, in the repository, as root: go run ./e2e/faults [flags]

Without -run it writes its table into docs/RELIABILITY.md and draws docs/outage.svg. It takes about a quarter of an hour,
with -full several hours.

`

// run returns the exit code: 1 when bytes or connections were wrong or the run was interrupted, 2 when it could not begin.
func run(args []string, stdout, stderr io.Writer) int {
	var set settings
	var only, doc, picture, peerDir string
	var isFull, quick bool
	fl := flag.NewFlagSet("faults", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.Usage = func() { fmt.Fprint(stderr, usageText); fl.PrintDefaults() }
	fl.BoolVar(&isFull, "full", false, "every scenario at the size of its promise")
	fl.BoolVar(&quick, "quick", false, "every scenario at the size of the tests")
	fl.StringVar(&only, "run", "", "only these `SCENARIOS`, such as F4,F8; nothing is written")
	fl.DurationVar(&set.soak, "soak", 0, "run the soak alone, for so long; nothing is written")
	fl.StringVar(&doc, "doc", "docs/RELIABILITY.md", "`FILE` whose table is replaced")
	fl.StringVar(&picture, "picture", "docs/outage.svg", "`FILE` for the picture of an outage")
	fl.StringVar(&peerDir, "peers", "", "`DIRECTORY` with other programs to measure beside (frps, frpc, rathole, chisel), besides PATH")
	if err := fl.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	fail := func(code int, err error) int {
		fmt.Fprintln(stderr, "faults:", err)
		return code
	}
	switch {
	case fl.NArg() > 0:
		return fail(2, fmt.Errorf("unexpected argument %q: see -help", fl.Arg(0)))
	case isFull && quick:
		return fail(2, errors.New("-full or -quick, not both"))
	case isFull:
		set.size = full
	case !quick:
		set.size = normal
	}
	list := scenarios
	if set.soak > 0 {
		only = "L9"
	}
	if only != "" {
		list = nil
		for id := range strings.SplitSeq(only, ",") {
			i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.id == id })
			if i < 0 {
				return fail(2, fmt.Errorf("no scenario is called %q", id))
			}
			list = append(list, scenarios[i])
		}
	}

	// Whatever was started ends with ctx, also at Ctrl-C.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	raiseFileLimit()
	dir, err := os.MkdirTemp("", "reverser-faults-")
	if err != nil {
		return fail(2, err)
	}
	defer os.RemoveAll(dir)
	set.bin = filepath.Join(dir, "reverser")
	if err := buildReverser(ctx, set.bin); err != nil {
		return fail(2, err)
	}
	noise() // not while something is measured
	r := &report{machine: describeMachine(ctx), size: set.size, list: list}
	r.results = runAll(ctx, list, set, stderr)
	if only == "" && ctx.Err() == nil {
		fmt.Fprintln(stderr, "the picture, and other programs beside")
		if r.picture, err = drawOutage(ctx, set, picture); err != nil {
			return fail(1, fmt.Errorf("draw the outage: %w", err))
		}
		r.peers = measurePeers(ctx, set, peerDir, stderr)
	}
	if err := context.Cause(ctx); err != nil {
		return fail(1, err)
	}
	if only == "" {
		err = r.into(doc)
	} else {
		_, err = io.WriteString(stdout, r.table())
	}
	if err != nil {
		return fail(1, err)
	}
	for _, res := range r.results {
		if len(res.broken) > 0 {
			return 1
		}
	}
	return 0
}

// runAll runs the scenarios that mostly wait beside each other, and then the others one at a time.
func runAll(ctx context.Context, list []scenario, set settings, progress io.Writer) []*result {
	results := make([]*result, len(list))
	one := func(i int) {
		results[i] = runScenario(ctx, list[i], set)
		fmt.Fprintf(progress, "%-4s %-34s %6s  %s\n", list[i].id, list[i].name, seconds(results[i].took), results[i].verdict())
	}
	const beside = 4
	turn := make(chan struct{}, beside)
	var wg sync.WaitGroup
	for i, s := range list {
		if !s.busy {
			turn <- struct{}{}
			wg.Go(func() { one(i); <-turn })
		}
	}
	wg.Wait()
	for i, s := range list {
		if s.busy {
			one(i)
		}
	}
	return results
}

// buildReverser builds the program that is looked at.
func buildReverser(ctx context.Context, bin string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "reverser/cmd/reverser")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build (run this inside the repository): %w\n%s", err, out)
	}
	return nil
}

// describeMachine says what the figures depend on.
func describeMachine(ctx context.Context) string {
	read := func(name string) string { b, _ := os.ReadFile(name); return strings.TrimSpace(string(b)) }
	value := func(text, key string) string {
		for line := range strings.Lines(text) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
				return strings.TrimSpace(v)
			}
		}
		return "unknown"
	}
	out, _ := exec.CommandContext(ctx, "go", "version").Output()
	version := strings.TrimPrefix(strings.TrimSpace(string(out)), "go version ")
	revision := "unknown"
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output(); err == nil {
		revision = strings.TrimSpace(string(out))
	}
	cpuinfo := read("/proc/cpuinfo")
	var memory int64
	fmt.Sscan(value(read("/proc/meminfo"), "MemTotal"), &memory)
	load, _, _ := strings.Cut(read("/proc/loadavg"), " ")
	return fmt.Sprintf("%d cores of %s, %d GiB of memory, Linux %s, %s, revision %s, %s. Load when it began: %s.",
		strings.Count(cpuinfo, "processor\t"), value(cpuinfo, "model name"), memory>>20, kernel(read("/proc/sys/kernel/osrelease")), version, revision,
		time.Now().UTC().Format("2 January 2006"), load)
}

// kernel is the version alone, without what distributors add.
func kernel(release string) string {
	v, _, _ := strings.Cut(release, "-")
	return v
}
