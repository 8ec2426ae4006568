package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(leakCheck{m}, map[string]func(){
		"reverser": main,
	})
}

// leakCheck fails a run that leaves goroutines behind.
type leakCheck struct{ m *testing.M }

func (l leakCheck) Run() int {
	code := l.m.Run()
	if code != 0 {
		return code
	}
	var stacks string
	// Goroutines that were told to end may need a moment to do it.
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		if stacks = leaked(); stacks == "" {
			return 0
		}
	}
	fmt.Fprintf(os.Stderr, "goroutines left behind:\n\n%s\n", stacks)
	return 1
}

// leaked is the stacks of every goroutine but this one and the runtime's.
func leaked() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for i, g := range strings.Split(string(buf), "\n\n") {
		if i == 0 || strings.Contains(g, "os/signal.loop") || strings.Contains(g, "os/signal.signal_recv") {
			continue
		}
		left = append(left, g)
	}
	return strings.Join(left, "\n\n")
}
