package link

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Bulk work, a batch at a time, waits for its turn here. The Go scheduler looks for sockets that became ready when one of its
// processors has nothing else to do, and otherwise only every 10 ms: were all of them busy with downloads, each keystroke
// would wait so long at every step. So one of them stays free of bulk, and a download gives way after each batch instead of
// after 10 ms. An echo beside 20 downloads at full speed on two cores took 36 ms (median; p99 80 to 105) without turns, and
// 1.2 ms (12) with them; the downloads lost nothing. Beside one stream each way it went from 1.0 ms (17) to 0.38 (10) when bulk was
// read off its socket in its turn, too.
var turns = newTurnstile(func() int { return runtime.GOMAXPROCS(0) })

// turnstile lets as many through at once as there are processors but one. GOMAXPROCS may change while the program runs: it
// follows the CPU limit of a cgroup.
type turnstile struct {
	procs func() int
	free  chan struct{} // a value for each turn that nobody has
	begun atomic.Uint64

	mu    sync.Mutex
	width int // how many turns there ought to be; guarded by mu, as made
	made  int // how many there are
}

const (
	turnsBetweenLooks = 256  // how often the number of processors is asked for
	mostTurns         = 4096 // at once
)

func newTurnstile(procs func() int) *turnstile {
	return &turnstile{procs: procs, free: make(chan struct{}, mostTurns)}
}

func (t *turnstile) take() {
	if t.begun.Add(1)%turnsBetweenLooks == 1 {
		t.fit()
	}
	<-t.free
}

func (t *turnstile) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.made > t.width {
		t.made--
		return
	}
	t.free <- struct{}{}
}

// fit makes as many turns as the present number of processors allows. A turn too many that is taken is removed when it ends.
func (t *turnstile) fit() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.width = min(max(t.procs()-1, 1), mostTurns)
	for ; t.made < t.width; t.made++ {
		t.free <- struct{}{}
	}
	for ; t.made > t.width; t.made-- {
		select {
		case <-t.free:
		default:
			return
		}
	}
}

// TakeTurn waits until a batch of n bytes may be processed. A small one is not bulk and does not wait. EndTurn, with the same
// n, ends the turn; nothing in between may wait for a socket or a peer. Nor may the callback of a RawConn wait for a turn:
// closing the socket waits for the callback, perhaps with slot.mu held, for which the goroutine that has the turn may wait.
func TakeTurn(n int) {
	if n >= ChunkSize {
		turns.take()
	}
}

// EndTurn ends what TakeTurn began.
func EndTurn(n int) {
	if n >= ChunkSize {
		turns.end()
	}
}

// InTurn calls f in a turn. It is for work of which there may be very much, though each part of it is small: without turns, many parts
// one after the other would keep a processor busy as bulk does. f follows the same rule as what is done between TakeTurn and EndTurn.
func InTurn(f func()) {
	turns.take()
	defer turns.end()
	f()
}

// Pace slows down one source of work, such as the port of one service at which a crowd arrives or a bridge that claims thousands of services. A process
// that does all it can get has no call on a processor left when something comes for another user, and waits until the kernel has served
// all others that want one. One that pauses is woken at once. While 3,000 users of one address came to another key's port, on two
// processors that all shared, the p99 of a neighbour's echoes was 5.0 to 11.1 ms, and 1.5 to 2.1 with the pauses, in five runs each.
//
// The zero Pace is ready. Several goroutines may share one.
type Pace struct {
	mu    sync.Mutex
	n     int // calls since begun; guarded by mu, as begun
	begun time.Time
	until time.Time // when the last pause ends
}

// Pause is the least time in which a crowd is taken.
const Pause = time.Millisecond

// Keep is called after each part of the work, outside of a turn. When a crowd came in less than Pause, so many parts for each processor, it
// sleeps for what is left of it, and so do the others who come meanwhile.
func (p *Pace) Keep(crowd int) {
	if rest := p.count(crowd*runtime.GOMAXPROCS(0), time.Now()); rest > 0 {
		time.Sleep(rest)
	}
}

// count counts a part and returns how long to sleep. Of those who come during a pause each counts for the time behind it. That begins with the
// first who comes then, not when the pause was to end: sleep is often longer than asked for, and nobody makes up for that.
func (p *Pace) count(crowd int, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Before(p.until) {
		if p.n++; p.n >= crowd {
			p.n, p.until = 0, p.until.Add(Pause)
		}
		return p.until.Sub(now)
	}
	switch {
	case p.begun.Before(p.until):
		p.begun = now
	case now.Sub(p.begun) >= Pause:
		p.n, p.begun = 0, now
	}
	if p.n++; p.n < crowd {
		return 0
	}
	p.n, p.until = 0, p.begun.Add(Pause)
	return p.until.Sub(now)
}
