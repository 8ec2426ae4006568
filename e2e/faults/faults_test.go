//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reverser/internal/leaktest"
)

// bin is the program that is tested.
var bin string

func TestMain(m *testing.M) {
	if text := os.Getenv(attackEnv); text != "" {
		os.Exit(attackMain(text))
	}
	flag.Parse()
	// Most scenarios wait for most of their time, whatever the number of processors; the others take turns by themselves.
	flag.Set("test.parallel", "32")
	raiseFileLimit()
	dir, err := os.MkdirTemp("", "reverser-faults-")
	if err == nil {
		bin = filepath.Join(dir, "reverser")
		// Without the race detector, also where the test has it: five times slower, the program would be late for every promise.
		// Package e2e runs the one that has it.
		err = buildReverser(context.Background(), bin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	noise() // not while something is measured
	leaktest.Main(m)
}

func TestScenarios(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.id, func(t *testing.T) {
			t.Parallel()
			r := runScenario(t.Context(), s, settings{size: ci, race: raceEnabled, bin: bin})
			if r.skipped != "" {
				if os.Getenv("CI") == "true" {
					t.Fatal(r.skipped)
				}
				t.Skip(r.skipped)
			}
			t.Logf("%s, %v\n%s", s.name, r.took, strings.Join(r.figures, "\n"))
			for _, m := range r.missed {
				t.Logf("beyond the promise: %s", m)
			}
			for _, b := range r.broken {
				t.Error(b)
			}
			for _, l := range r.logs {
				t.Log(l)
			}
		})
	}
}

// The picture is drawn from a measurement, and is well-formed.
func TestPicture(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "outage.svg")
	about, err := drawOutage(t.Context(), settings{size: ci, race: raceEnabled, bin: bin}, file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) && os.Getenv("CI") != "true" {
		t.Skip(about)
	}
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("the picture is no XML: %v", err)
		}
	}
	t.Log(about)
}

// The report replaces what stands between its marks, and nothing else.
func TestReport(t *testing.T) {
	t.Parallel()
	kept, missed, broken := new(result), new(result), new(result)
	kept.note("a figure | with a bar")
	missed.miss("too slow")
	broken.fail("a byte is wrong")
	r := &report{machine: "a machine.", size: normal, list: scenarios[:4], results: []*result{kept, missed, broken, {skipped: "no root"}}}
	file := filepath.Join(t.TempDir(), "doc")
	if err := os.WriteFile(file, []byte("before\n"+beginMark+"old"+endMark+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.into(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	for _, want := range []string{"before\n" + beginMark, endMark + "\nafter\n", `a figure \| with a bar`, "| kept |", "**missed**: too slow",
		"**broken**: a byte is wrong", "**not run**: no root", "**1** kept every promise"} {
		if !strings.Contains(got, want) {
			t.Errorf("the report has no %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "old") {
		t.Error("the old table is still there")
	}
}

func TestFlowTellsHowBytesAreWrong(t *testing.T) {
	f := newFlow(0)
	for _, c := range []struct {
		at   int64 // which bytes come at 1000
		want string
	}{{900, "doubled"}, {1100, "lost"}} {
		if err := f.locate(1000, noiseAt(f.seed, c.at, 100)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("bytes of %d at 1000: %v; want %q", c.at, err, c.want)
		}
	}
}
