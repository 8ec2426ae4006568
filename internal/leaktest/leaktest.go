// Package leaktest fails a package's tests when they leave goroutines behind.
//
// A package asks for it with one function in main_test.go:
//
//	func TestMain(m *testing.M) { leaktest.Main(m) }
//
// One whose TestMain does more calls Run there. internal/archtest wants one of the two in every package with tests.
//
// A goroutine counts as left behind when it was not there before the first test and does not belong to the runtime.
// The package starts none.
package leaktest

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// settle is how long goroutines that were told to end may take to do it.
const settle = 30 * time.Second

// Main runs the tests and exits, with 1 if they passed but left goroutines behind.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run runs the tests and returns the code to exit with. It takes whatever runs like a *testing.M.
func Run(m interface{ Run() int }) int {
	before := goroutines()
	code := m.Run()
	if code != 0 {
		return code
	}
	if left := wait(before, settle); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "leaktest: %d goroutines were left behind:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		return 1
	}
	return 0
}

// wait returns the stacks of the goroutines that are not in before, nil as soon as there are none.
func wait(before map[string]string, limit time.Duration) []string {
	pause := time.Millisecond
	for end := time.Now().Add(limit); ; pause = min(2*pause, 100*time.Millisecond) {
		var left []string
		for id, stack := range goroutines() {
			if _, old := before[id]; !old {
				left = append(left, stack)
			}
		}
		if len(left) == 0 || !time.Now().Before(end) {
			return left
		}
		time.Sleep(pause) // nothing tells when a goroutine of somebody else ends
	}
}

// goroutines returns the stack of every goroutine but the caller's and the runtime's own, by id.
func goroutines() map[string]string {
	buf := make([]byte, 64<<10)
	n := runtime.Stack(buf, true)
	for n == len(buf) { // cut short
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	all := make(map[string]string)
	for i, stack := range strings.Split(string(buf[:n]), "\n\n") {
		if i == 0 || expected(stack) {
			continue // the first is the caller's
		}
		id, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		all[id] = stack
	}
	return all
}

// expected reports whether a goroutine stays by design: os/signal keeps one for good after the first Notify, and the fuzzing
// engine's end with the process.
func expected(stack string) bool {
	for _, name := range []string{"os/signal.loop", "os/signal.signal_recv", "internal/fuzz."} {
		if strings.Contains(stack, name) {
			return true
		}
	}
	return false
}
