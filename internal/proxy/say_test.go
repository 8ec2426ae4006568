package proxy

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestTalker: a bridge that has a lot said is counted after a while, and nobody else's lines are.
func TestTalker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		k := newTalker(slog.New(j))
		go k.run()
		for i := range 500 {
			k.info([16]byte{1}, "service up", "service", i)
		}
		k.warn([16]byte{2}, "service up", "service", "other")
		k.warn([16]byte{1}, "service denied", "service", "same")
		synctest.Wait()
		if n := j.count("service up"); n != linesAtOnce+1 {
			t.Errorf("%d lines at once, want %d and the other's", n, linesAtOnce)
		}
		if n := j.count("service=other") + j.count("service denied"); n != 2 {
			t.Errorf("%d lines of another kind, want 2", n)
		}
		time.Sleep(3 * time.Second)
		if j.count("service=499", fmt.Sprint("lines_left_out=", 499-linesAtOnce)) != 1 {
			t.Errorf("the log does not say what was left out: %q", *j.lines)
		}
		k.info([16]byte{1}, "service up", "service", "later")
		k.stop()
		if j.count("service=later") != 1 {
			t.Error("a later line is missing")
		}
	})
}

// TestTalkerBehindASlowLog: who says something never waits, and learns nothing of it; the log says that lines are missing.
func TestTalkerBehindASlowLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		stuck := make(chan struct{})
		hold := func(string) { <-stuck }
		j.hold.Store(&hold)
		k := newTalker(slog.New(j))
		go k.run()
		for i := range 3 * linesWait {
			k.info([16]byte{byte(i), byte(i >> 8)}, "bridge connected")
		}
		synctest.Wait()
		close(stuck)
		k.stop()
		said := j.count("bridge connected")
		if said < linesWait || j.count("the log was too slow", fmt.Sprint("lines_left_out=", 3*linesWait-said)) != 1 {
			t.Errorf("%d lines, want at least %d, and a count of the others", said, linesWait)
		}
	})
}
