package link

import (
	"bytes"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/wire"
)

// TestClaimsGiveWay: the claims of one batch take their turns one by one, so that somebody else's bulk has its own in between.
func TestClaimsGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := turns
		turns = newTurnstile(func() int { return 2 })
		defer func() { turns = before }()
		w := newScene(t)
		defer w.close()
		e := newEvilBridge(w)
		defer e.close(false)
		px := w.owners.key(evilKey)
		var claims int
		var had atomic.Bool // somebody else had a turn
		px.note(func() {
			px.message = func(wire.Frame) {
				switch claims++; claims {
				case 1:
					go func() {
						TakeTurn(ChunkSize)
						had.Store(true)
						EndTurn(ChunkSize)
					}()
					if synctest.Wait(); had.Load() {
						t.Error("somebody else has a turn while a claim is processed")
					}
				case 3:
					if !had.Load() {
						t.Error("nobody else had a turn in the time of two claims")
					}
				}
			}
		})
		var all []byte
		const many = 100
		for i := range many {
			all = wire.AppendClaim(all, uint32(i+1), wire.Claim{Public: "tcp/9000"})
		}
		e.at[0].say(all)
		px.wait(func() bool { return px.said[wire.TypeClaim] == many })
	})
}

// TestClaimsAtAPace: where very many claims come at once there are pauses between them, and the claims of a usual bridge have none.
func TestClaimsAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScene(t)
		defer w.close()
		e := newEvilBridge(w)
		defer e.close(false)
		px := w.owners.key(evilKey)
		at := tenantCrowd * runtime.GOMAXPROCS(0)
		came := make(chan time.Time, 11*at)
		px.note(func() { px.message = func(wire.Frame) { came <- time.Now() } })
		took := func(n int) time.Duration {
			var all []byte
			for i := range n {
				all = wire.AppendClaim(all, uint32(i+1), wire.Claim{Public: "tcp/9000"})
			}
			e.at[0].say(all)
			first := <-came
			last := first
			for range n - 1 {
				last = <-came
			}
			return last.Sub(first)
		}
		if d := took(at); d != 0 {
			t.Errorf("%d claims took %s, want no pause before the last", at, d)
		}
		time.Sleep(2 * Pause)
		if d := took(10*at + 1); d != 10*Pause {
			t.Errorf("%d claims took %s, want 10 pauses of %s", 10*at+1, d, Pause)
		}
	})
}

// TestKeyHasOnePace: the pace is the key's, whatever its bridges say and however many sessions they have.
func TestKeyHasOnePace(t *testing.T) {
	at := tenantCrowd * runtime.GOMAXPROCS(0)
	goAway := wire.AppendGoAway(nil, wire.GoAway{DrainMillis: 1 << 30})
	for _, c := range []struct {
		what     string
		sessions int
		frame    []byte
		pauses   int
	}{
		{"CLAIMs", 1, wire.AppendClaim(nil, 1, wire.Claim{Public: "tcp/9000"}), 10},
		{"UNCLAIMs", 1, wire.AppendUnclaim(nil, 1), 10},
		{"ROUNDs", 1, wire.AppendRound(nil), 10},
		{"GOAWAYs", 1, goAway, 10},
		{"UNCLAIMs of two sessions", 2, wire.AppendUnclaim(nil, 1), 19},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newScene(t)
				defer w.close()
				e := newEvilBridge(w)
				defer e.close(false)
				voices := []*voice{e.at[0]}
				if c.sessions == 2 {
					e.at[0].say(goAway)
					synctest.Wait()
					w.prove = func(cc *auth.ClientConfig) { cc.Instance[0]++ }
					successor := &evilBridge{w: w, sid: [16]byte{0x52}}
					if st := successor.attach(0, wire.ModeNew); st != wire.StatusOK {
						t.Fatalf("NEW: %s", st)
					}
					defer successor.at[0].conn.Close()
					voices = append(voices, successor.at[0])
				}
				time.Sleep(2 * Pause)
				begin := time.Now()
				for _, v := range voices {
					v.say(append(bytes.Repeat(c.frame, 10*at), wire.AppendEmpty(nil, wire.TypePing, 0, 77)...))
				}
				for _, v := range voices {
					if f, err := v.hear(wire.TypePong); err != nil || f.Offset != 77 {
						t.Fatalf("hear PONG: %v, %v", f, err)
					}
				}
				if d := time.Since(begin); d < time.Duration(c.pauses)*Pause {
					t.Errorf("they took %s, want %d pauses of %s", d, c.pauses, Pause)
				}
			})
		})
	}
}

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

// TestPaceMakesUpForNothing: who slept longer than asked for does no more work behind it. Those who share a pace share what a pause leaves.
func TestPaceMakesUpForNothing(t *testing.T) {
	var p Pace
	const crowd = 4
	at := func(after time.Duration) time.Duration { return p.count(crowd, time.Unix(1, 0).Add(after)) }
	for i, want := range []time.Duration{0, 0, 0, Pause} {
		if rest := at(0); rest != want {
			t.Errorf("part %d: a pause of %s, want %s", i, rest, want)
		}
	}
	const late = Pause + Pause*3/5
	for i, want := range []time.Duration{0, 0, 0, Pause} {
		if rest := at(late); rest != want {
			t.Errorf("part %d behind a long pause: %s, want %s", i, rest, want)
		}
	}
	for i, want := range []time.Duration{Pause, Pause, Pause, 2 * Pause} {
		if rest := at(late); rest != want {
			t.Errorf("part %d of others in the pause: %s, want %s", i, rest, want)
		}
	}
}
