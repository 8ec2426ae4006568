package relay

import (
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/wire"
)

// resetWaits reports whether the pair waits for its socket's peer before it resets.
func (p *Pair) resetWaits() bool {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	return p.life.reset != nil
}

// TestWaitingResetsHaveNoGoroutine: pairs whose users do not read what was written before a reset. It is not parallel: it counts.
func TestWaitingResetsHaveNoGoroutine(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("each pair has a goroutine here, or there is no way to ask for the socket's send queue")
	}
	w, l := newWorld(t)
	defer w.close()
	const pairs = 30
	var wg sync.WaitGroup
	var waiting []*end
	before := runtime.NumGoroutine() + 10 // the poller's, and what the link has not begun yet
	for range pairs {
		px, br := w.open(l)
		user, accepted := loopback.user(t)
		defer user.Close()
		user.(*net.TCPConn).SetReadBuffer(16 << 10)
		p := run(&wg, &w.poller, New(Client, accepted, px, nil))
		waiting = append(waiting, p)
		br.Write(make([]byte, 40_000))
		eventually(t, "the kernel has everything", func() bool { _, n := p.Counts(); return n == 40_000 })
		br.Reset(wire.CodeReset)
	}
	for _, p := range waiting {
		eventually(t, "the pair waits for the kernel", p.resetWaits)
	}
	eventually(t, "pairs that wait have no goroutine", func() bool { return runtime.NumGoroutine() <= before })
	for _, p := range waiting {
		p.End(ReasonDrain, wire.CodeDrain)
	}
	wg.Wait()
}

// TestLooksDoNotGrowWithPairs: how often queues are asked for in a while has a limit, be there few pairs that wait or many; each is
// asked for, and given up in the end.
func TestLooksDoNotGrowWithPairs(t *testing.T) {
	for _, pairs := range []int{1, 100, 20_000} {
		synctest.Test(t, func(t *testing.T) {
			var rs resets
			var wg sync.WaitGroup
			asked := 0
			for range pairs {
				wg.Add(1)
				rs.add(&reset{
					until: time.Now().Add(flushLimit), carryOut: wg.Done,
					flushed: func() bool { asked++; return false },
				}, time.Now())
			}
			wg.Wait()
			rs.close()
			if most := min(70*pairs, int(flushLimit/looks[0])*looksAtOnce+2*pairs); asked < pairs || asked > most {
				t.Errorf("%d pairs: asked %d times; want %d at least and %d at the most", pairs, asked, pairs, most)
			}
		})
	}
}

// TestResetThatIsDropped: one that was taken back is not carried out, wherever it waits.
func TestResetThatIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rs resets
		var all []*reset
		for range 3 {
			r := &reset{until: time.Now().Add(flushLimit)}
			rs.add(r, time.Now())
			all = append(all, r)
		}
		for _, i := range []int{1, 0, 2} {
			if !rs.drop(all[i]) || rs.drop(all[i]) {
				t.Errorf("reset %d was not dropped once", i)
			}
		}
		time.Sleep(time.Minute) // a look at one of them would panic
		rs.close()
	})
}
