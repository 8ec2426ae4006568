package link

import "testing"

// TestTurnsFollowTheProcessors: their number may change while the program runs, also while all turns are taken.
func TestTurnsFollowTheProcessors(t *testing.T) {
	procs := 2
	turns := newTurnstile(func() int { return procs })
	taken := 0
	// room takes turns until there is none left and returns how many are taken.
	room := func() int {
		turns.fit()
		for len(turns.free) > 0 {
			turns.take()
			taken++
		}
		return taken
	}
	for _, c := range []struct{ procs, want int }{{2, 1}, {9, 8}, {9, 8}, {5, 8}, {6, 8}} {
		procs = c.procs
		if got := room(); got != c.want {
			t.Errorf("with %d processors %d turns are taken at once, want %d", c.procs, got, c.want)
		}
	}
	for ; taken > 0; taken-- {
		turns.end()
	}
	if got := room(); got != 5 {
		t.Errorf("with 6 processors, behind more, %d turns can be taken, want 5", got)
	}
	for range 5 {
		turns.end()
	}
	procs = 1
	if room(); taken != 5+1 { // the five that ended, and the one that a single processor has
		t.Errorf("%d turns were taken in all, want 6", taken)
	}
	turns.end()
	procs = 4
	for range turnsBetweenLooks { // nobody has to ask for it
		turns.take()
		turns.end()
	}
	if n := len(turns.free); n != 3 {
		t.Errorf("%d turns are free with 4 processors, want 3", n)
	}
}
