package leaktest

import (
	"os"
	"os/signal"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

// startLeak returns when the goroutine runs: before that its stack does not show leak.
func startLeak(stop <-chan struct{}) {
	started := make(chan struct{})
	go leak(started, stop)
	<-started
}

func leak(started chan<- struct{}, stop <-chan struct{}) {
	close(started)
	<-stop
}

func TestWaitFindsALeak(t *testing.T) {
	before := goroutines()
	stop := make(chan struct{})
	startLeak(stop)
	left := wait(before, 0)
	close(stop)
	if len(left) != 1 || !strings.Contains(left[0], "leaktest.leak") {
		t.Errorf("wait = %q; want the one stack of leak", left)
	}
	if left := wait(before, settle); len(left) != 0 {
		t.Errorf("wait = %q after the goroutine ended; want none", left)
	}
}

func TestWaitIsPatient(t *testing.T) {
	before := goroutines()
	stop := make(chan struct{})
	startLeak(stop)
	time.AfterFunc(20*time.Millisecond, func() { close(stop) })
	if left := wait(before, settle); len(left) != 0 {
		t.Errorf("wait = %q; want none: the goroutine ends in time", left)
	}
}

func TestWhatWasThereBefore(t *testing.T) {
	stop := make(chan struct{})
	startLeak(stop)
	if left := wait(goroutines(), 0); len(left) != 0 {
		t.Errorf("wait = %q; want none: it was there before", left)
	}
	close(stop)
}

func TestSignalsLoopIsNoLeak(t *testing.T) {
	before := goroutines()
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	signal.Stop(c)
	if left := wait(before, settle); len(left) != 0 {
		t.Errorf("wait = %q; want none: os/signal keeps its goroutine", left)
	}
}
