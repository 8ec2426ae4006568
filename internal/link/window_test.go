package link

import (
	"flag"
	"testing"
	"time"
	"unsafe"

	"reverser/internal/wire"
)

// faucet is a core, a bridge's unless said otherwise, whose streams receive as fast as their windows allow, with a reader that takes everything.
type faucet struct {
	t    testing.TB
	c    *core
	now  time.Duration
	next uint64
	buf  [wire.MaxPayload]byte
}

func newFaucet(t testing.TB, b *share) *faucet {
	return &faucet{t: t, c: newCore(true, 1, b), now: time.Second, next: 1}
}

func (f *faucet) open() *streamCore {
	if !f.c.dials {
		s := f.c.open(wire.Open{})
		s.openSent = true
		return s
	}
	id := f.next<<8 | 1
	f.next++
	o := wire.Frame{Type: wire.TypeOpen, Stream: id, Offset: openWindow, Payload: []byte{1, 0, 0, 0, 0, 1}}
	if _, err := f.c.receive(o, f.now); err != nil {
		f.t.Fatal(err)
	}
	return f.c.streams[id]
}

// pour uses the whole credit up and reads everything, n times, each within a round trip.
func (f *faucet) pour(s *streamCore, n int) {
	for range n {
		for left := s.recv.granted - s.recv.nxt; left > 0; {
			k := min(left, wire.MaxPayload)
			f.take(s, k)
			left -= k
		}
		f.now += time.Millisecond
	}
}

// take receives n bytes and reads them.
func (f *faucet) take(s *streamCore, n uint64) {
	ev, err := f.c.receive(wire.Frame{Type: wire.TypeData, Stream: s.id, Offset: s.recv.nxt, Payload: f.buf[:n]}, f.now)
	if err != nil {
		f.t.Fatal(err)
	}
	f.c.consume(s, len(ev.data), f.now)
}

// TestIdleWindows: credit cannot be taken back, so streams that were fast and fell idle keep their part of the memory for
// windows. Whoever comes later still gets a window that is worth something.
func TestIdleWindows(t *testing.T) {
	t.Run("with all memory", func(t *testing.T) {
		idleWindows(t, NewBudget(0).only(), []idleWindow{{0, maxWindow}, {4, maxWindow / 2}, {16, 1 << 20}, {64, openWindow}, {256, openWindow}, {500, openWindow}})
	})
	t.Run("with the share of a key", func(t *testing.T) {
		idleWindows(t, NewBudget(0).share([16]byte{1}), []idleWindow{{0, 6 << 20}, {4, 3 << 20}, {16, 1 << 20}, {64, openWindow}, {200, openWindow}})
	})
}

// idleWindow is the window that a stream is to get at least beside so many that are idle.
type idleWindow struct {
	idle int
	want uint64
}

func idleWindows(t *testing.T, b *share, table []idleWindow) {
	f := newFaucet(t, b)
	idle := 0
	for _, tt := range table {
		for ; idle < tt.idle; idle++ {
			f.pour(f.open(), 14)
		}
		f.now += 2 * idleGap
		late := f.open()
		f.pour(late, 14)
		got := late.recv.granted - late.recv.consumed
		t.Logf("%3d idle streams hold %3d MiB, the next one gets a window of %4d KiB", idle, f.c.budget.pool.Used()>>20, got>>10)
		if got < tt.want {
			t.Errorf("with %d idle streams the next one gets %d bytes, want %d or more", idle, got, tt.want)
		}
		if used := f.c.budget.pool.Used(); used > f.c.budget.pool.size {
			t.Errorf("%d bytes are charged, there are %d", used, f.c.budget.pool.size)
		}
		f.c.remove(late)
	}
}

// TestManyIdleStreams: connections that do nothing, or little at a time, leave room for one that is busy.
func TestManyIdleStreams(t *testing.T) {
	busy := func(t *testing.T, f *faucet) {
		t.Helper()
		s := f.open()
		f.pour(s, 14)
		if got := s.recv.granted - s.recv.consumed; got < 1<<20 {
			t.Errorf("the only busy stream has a window of %d KiB; %d of %d MiB are charged", got>>10, f.c.budget.pool.Used()>>20, f.c.budget.pool.size>>20)
		}
	}
	t.Run("that never said anything", func(t *testing.T) {
		f := newFaucet(t, NewBudget(0).only())
		f.c = newCore(false, 1, f.c.budget)
		for range 10_000 {
			f.open()
		}
		busy(t, f)
	})
	t.Run("that said much once and little now and then", func(t *testing.T) {
		f := newFaucet(t, NewBudget(0).only())
		var all []*streamCore
		for range 3000 {
			all = append(all, f.open())
		}
		for _, s := range all {
			f.pour(s, 4)
		}
		for range 10 {
			f.now += 2 * idleGap
			for _, s := range all {
				f.take(s, 6<<10)
			}
		}
		busy(t, f)
	})
}

var outageStreams = flag.Int("sim.outage", 1000, "streams of TestMemoryOfAnOutage; the memory for windows goes with them")

// TestMemoryOfAnOutage: some streams have grown and are idle, all users stop reading while the services send, and then the
// link breaks and everybody goes on sending. What a process holds stays within the floors and the memory for windows.
func TestMemoryOfAnOutage(t *testing.T) {
	n := *outageStreams
	size := int64(n) * defaultPool / 10_000
	e := newEnds(t)
	e.p.budget.pool.size, e.b.budget.pool.size = size, size
	var users []*streamCore
	for range n {
		users = append(users, e.p.open(wire.Open{}))
	}
	e.settle()
	for range 12 { // within a round trip, so that windows grow
		for _, s := range users[:n/100] {
			peer := e.b.streams[s.id]
			write(e.p, s, make([]byte, s.send.room(e.p.budget)))
			write(e.b, peer, make([]byte, peer.send.room(e.b.budget)))
		}
		e.settleFast()
	}
	grown := e.p.budget.pool.Used()
	e.now += 2 * idleGap

	lazy := map[*streamCore]uint64{} // what the user has not read
	for _, s := range users {
		peer := e.b.streams[s.id]
		fill(e.b, peer)
		for b := e.b.bytes(nil, 1<<30, e.now); len(b) > 0; {
			f, k, err := wire.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if f.Stream == 0 {
				b = b[k:]
				continue
			}
			ev, err := e.p.receive(f, e.now)
			if err != nil {
				t.Fatal(err)
			}
			if ev.kind == evData {
				lazy[ev.stream] += uint64(len(ev.data))
			}
			b = b[k:]
		}
	}
	e.cut()
	for _, s := range users {
		fill(e.p, s)
		fill(e.b, e.b.streams[s.id])
	}
	for _, c := range []*core{e.p, e.b} {
		held, memory := int64(0), 0
		for _, s := range c.streams {
			for k := s.send.q.head; k != nil; k = k.next {
				memory += int(unsafe.Sizeof(*k))
			}
			held += int64(s.send.q.end-s.send.q.base) + s.recv.held()
		}
		// A stream that finds memory left may take one read more.
		most := 2*floorWindow*int64(n) + size + ChunkSize
		t.Logf("the end that dials, %v: %d streams hold %d KiB, %d KiB are possible", c.dials, n, held>>10, most>>10)
		t.Logf("charged were %d KiB before, and are %d of %d KiB; chunks to send take %d KiB",
			grown>>10, c.budget.pool.Used()>>10, size>>10, memory>>10)
		if held > most || c.budget.pool.Used() > size+ChunkSize {
			t.Errorf("%d bytes are held, %d are possible", held, most)
		}
		if !c.dials && held < most/2 {
			t.Errorf("%d bytes are held: this was no outage worth its name", held)
		}
	}

	e.mustResume()
	e.settle()
	for s, n := range lazy {
		e.p.consume(s, int(n), e.now)
	}
	for _, s := range users {
		e.p.end(s, wire.FIN, 0)
		e.b.end(e.b.streams[s.id], wire.FIN, 0)
	}
	e.settle()
	if p, b := e.p.budget.pool.Used(), e.b.budget.pool.Used(); p != 0 || b != 0 || len(e.p.streams)+len(e.b.streams) != 0 {
		t.Errorf("left: %d and %d bytes, %d and %d streams", p, b, len(e.p.streams), len(e.b.streams))
	}
}

// fill writes as long as there is room, a read of a socket at a time.
func fill(c *core, s *streamCore) {
	for n := s.send.room(c.budget); n > 0; n = s.send.room(c.budget) {
		write(c, s, make([]byte, min(n, ChunkSize)))
	}
}

// TestAQueueIsNoDistance: a stream that fills a queue on the path measures long round trips, by its own doing. Its window grows on a
// path that is long, and not for that.
func TestAQueueIsNoDistance(t *testing.T) {
	for _, tt := range []struct {
		name       string
		path, each time.Duration // the round trip of the empty path, and what a window takes on it
		grows      bool
	}{
		{"256 kbit/s and a short way", time.Millisecond, 2 * time.Second, false},
		{"10 Mbit/s and a short way", time.Millisecond, 50 * time.Millisecond, true},
		{"5 Mbit/s and a long way", 100 * time.Millisecond, 100 * time.Millisecond, true},
		{"2 Mbit/s by satellite", 600 * time.Millisecond, 600 * time.Millisecond, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFaucet(t, NewBudget(0).only())
			s := f.open()
			f.c.measured(tt.path, f.now)
			for range 10 {
				for left := s.recv.win; left > 0; {
					k := min(left, wire.MaxPayload)
					f.now += tt.each * time.Duration(k) / openWindow
					f.take(s, k)
					left -= k
				}
				f.c.measured(tt.path+tt.each, f.now) // behind a whole window
				if s.recv.win > openWindow {
					break
				}
			}
			if grew := s.recv.win > openWindow; grew != tt.grows {
				t.Errorf("the window is %d KiB, want it to grow: %t", s.recv.win>>10, tt.grows)
			}
		})
	}
}

// TestShortest: it forgets what is minutes old, and at once what a measurement without traffic contradicts.
func TestShortest(t *testing.T) {
	var s shortest
	now := time.Second
	for _, tt := range []struct {
		after, rtt time.Duration
		quiet      bool
		want       time.Duration
	}{
		{0, 10, false, 10},
		{time.Second, 500, false, 10},
		{time.Second, 8, false, 8},
		{shortestPeriod, 500, false, 8},
		{shortestPeriod, 500, false, 500},
		{time.Second, 20, false, 20},
		{time.Second, 300, true, 300},
		{time.Second, 400, false, 300},
	} {
		now += tt.after
		s.add(tt.rtt, now, tt.quiet)
		if got := s.get(); got != tt.want {
			t.Errorf("%s later, after %d: %d, want %d", tt.after, tt.rtt, got, tt.want)
		}
	}
}

// TestBudgetSaysWhoHasMost: whoever runs the process hears that memory is short, and whose sessions hold most.
func TestBudgetSaysWhoHasMost(t *testing.T) {
	b := NewBudget(1000)
	short := 0
	b.Short = func() { short++ }
	if _, n := b.Largest(); n != 0 {
		t.Errorf("nobody holds %d bytes", n)
	}
	b.share([16]byte{1}).add(100)
	b.share([16]byte{2}).add(600)
	if key, n := b.Largest(); key != [16]byte{2} || n != 600 {
		t.Errorf("Largest = %x, %d", key, n)
	}
	b.withdraw()
	if short != 1 {
		t.Errorf("Short was called %d times", short)
	}
}
