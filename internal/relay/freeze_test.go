package relay

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/link"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// chain is a pair as its peers see it: one Pair after the other, over the same connection and stream.
type chain struct {
	t      testing.TB
	poller *Poller
	over   chan struct{}
	reason Reason // once over is closed

	mu   sync.Mutex
	pair *Pair // the present one
}

func newChain(t testing.TB, poller *Poller, p *Pair) *chain {
	c := &chain{t: t, poller: poller, over: make(chan struct{}), pair: p}
	p.Start(poller, c.ended)
	return c
}

func (c *chain) ended(r Reason) {
	c.reason = r
	close(c.over)
}

// swap freezes the pair and lets it go on: in place, or as another Pair over a copy of the descriptor. It reports false when the pair is
// over.
func (c *chain) swap(inPlace bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch err := c.pair.Freeze(); {
	case err == ErrOver:
		return false
	case err != nil:
		c.t.Error(err)
		return false
	case inPlace:
		c.pair.Thaw()
		return true
	}
	doc := AppendState(nil, c.pair.State())
	f, err := c.pair.Descriptor()
	if err != nil {
		c.t.Error(err)
		return false
	}
	stream := c.pair.stream
	c.pair.GiveAway()
	st, err := ParseState(doc)
	if err != nil {
		c.t.Error(err)
		return false
	}
	conn, err := sys.Adopt(f)
	if err != nil {
		c.t.Error(err)
		return false
	}
	c.pair = Restore(st, conn, stream)
	c.pair.Start(c.poller, c.ended)
	return true
}

// counts are those of the present pair.
func (c *chain) counts() (sent, received uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pair.Counts()
}

// swapped is a tunnel whose pairs are frozen and go on again and again, until both are over.
type swapped struct {
	user, server   conn
	client, target *chain
	wg             sync.WaitGroup
	swaps          atomic.Int32
}

func (w *world) swapped(l *link.Link, k sockets, inPlace bool, seed uint64) *swapped {
	w.t.Helper()
	px, br := w.open(l)
	s := &swapped{}
	var accepted, dialled net.Conn
	s.user, accepted = k.user(w.t)
	s.server, dialled = k.server(w.t)
	s.client = newChain(w.t, w.pollerFor(k), New(Client, accepted, px, nil))
	s.target = newChain(w.t, w.pollerFor(k), New(Target, dialled, br, nil))
	for i, c := range []*chain{s.client, s.target} {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		s.wg.Go(func() {
			for c.swap(inPlace || random.IntN(4) == 0) {
				s.swaps.Add(1)
				pause := time.NewTimer(time.Duration(random.IntN(2000)) * time.Microsecond)
				select {
				case <-c.over:
				case <-pause.C:
				}
				pause.Stop()
			}
			<-c.over
		})
	}
	return s
}

// close ends what is left.
func (s *swapped) close() {
	for _, c := range []conn{s.user, s.server} {
		c.SetLinger(0)
		c.Close()
	}
	s.wg.Wait()
}

// ways are those in which a pair goes on.
var ways = []struct {
	name    string
	k       sockets
	inPlace bool
}{
	{"in place", loopback, true}, {"handed over", loopback, false}, {"no poller, in place", alone, true},
	{"no poller, handed over", alone, false}, {"memory, in place", inMemory, true},
}

// eachWay runs the test for each of them that this system has.
func eachWay(t *testing.T, test func(t *testing.T, k sockets, inPlace bool)) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			if runtime.GOOS == "windows" && !way.inPlace {
				t.Skip("a socket stays tied to its process here")
			}
			t.Parallel()
			test(t, way.k, way.inPlace)
		})
	}
}

// TestFreezeUnderTraffic: bytes go both ways, one side finishes after the other, and the pairs at both ends are frozen all the time. Each byte
// arrives once, each end is an end, and the counts go on.
func TestFreezeUnderTraffic(t *testing.T) {
	eachWay(t, func(t *testing.T, k sockets, inPlace bool) {
		w, l := newWorld(t)
		defer w.close()
		for seed := range uint64(4) {
			s := w.swapped(l, k, inPlace, seed)
			up, down := noise(byte(seed), 1_500_000), noise(byte(seed+99), 900_000)
			random := rand.New(rand.NewPCG(seed, 7))
			sizes := []int{1, 100, 16_320, 70_000, 300_000}
			var wg sync.WaitGroup
			for _, x := range []struct {
				c          conn
				send, want []byte
				size       int
			}{{s.user, up, down, sizes[random.IntN(5)]}, {s.server, down, up, sizes[random.IntN(5)]}} {
				wg.Go(func() {
					step := len(x.send) / 8
					for rest := x.send; len(rest) > 0; {
						n := min(max(x.size, len(x.send)/300), len(rest))
						if _, err := x.c.Write(rest[:n]); err != nil {
							t.Errorf("seed %d: write: %v", seed, err)
							break
						}
						if len(rest)/step != (len(rest)-n)/step {
							before := s.swaps.Load()
							eventually(t, "pairs are frozen", func() bool { return s.swaps.Load() > before })
						}
						rest = rest[n:]
					}
					x.c.CloseWrite()
				})
				wg.Go(func() {
					if got, err := readAll(x.c); err != nil || !bytes.Equal(got, x.want) {
						t.Errorf("seed %d: read %d bytes, %v; want %d equal ones, EOF", seed, len(got), err, len(x.want))
					}
				})
			}
			wg.Wait()
			<-s.client.over
			<-s.target.over
			s.close()
			for name, c := range map[string]*chain{"client": s.client, "target": s.target} {
				if c.reason != ReasonEOF {
					t.Errorf("seed %d: the %s's reason is %q, want eof", seed, name, c.reason)
				}
				if sent, received := c.counts(); sent != uint64(len(up)) || received != uint64(len(down)) {
					t.Errorf("seed %d: the %s counts %d, %d; want %d, %d", seed, name, sent, received, len(up), len(down))
				}
			}
		}
		eventually(t, "the memory is given back", func() bool { return w.budget.Used() == 0 })
	})
}

// TestFreezeAndReset: one side resets in the middle. The other sees the bytes before that, and a reset: never an end.
func TestFreezeAndReset(t *testing.T) {
	eachWay(t, func(t *testing.T, k sockets, inPlace bool) {
		w, l := newWorld(t)
		defer w.close()
		for seed := range uint64(12) {
			fromServer, finished, slow := seed&1 != 0, seed&2 != 0, seed&4 != 0
			s := w.swapped(l, k, inPlace, seed)
			from, to, near := s.user, s.server, s.client
			reason := ReasonClientReset
			if fromServer {
				from, to, near, reason = s.server, s.user, s.target, ReasonTargetReset
			}
			want := noise(byte(seed), 200_000)
			if k.name == inMemory.name {
				want = want[:60_000] // what it holds for a reader who waits
			}
			var wg sync.WaitGroup
			var got []byte
			var err error
			begin := make(chan struct{})
			wg.Go(func() {
				<-begin
				got, err = readAll(to)
				if finished && err == nil { // the FIN, behind which the reset comes
					for deadline := time.Now().Add(limit); err == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
						_, err = to.Write([]byte("x"))
					}
				}
			})
			if !slow {
				close(begin)
			}
			if _, err := from.Write(want); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the pair has read everything", func() bool { // a reset throws away what the kernel has not delivered
				sent, received := near.counts()
				return sent+received >= uint64(len(want))
			})
			if finished {
				from.CloseWrite()
			}
			from.SetLinger(0)
			from.Close()
			if slow {
				close(begin)
			}
			wg.Wait()
			if k.name == inMemory.name { // has no queue to ask for: a reset may overtake the last bytes
				want = want[:min(len(got), len(want))]
			}
			if !bytes.Equal(got, want) || !sys.Reset(err) {
				t.Errorf("seed %d: read %d bytes, %v; want %d equal ones, then a reset", seed, len(got), err, len(want))
			}
			<-s.client.over
			<-s.target.over
			if s.client.reason != reason || s.target.reason != reason {
				t.Errorf("seed %d: reasons %q, %q; want %q", seed, s.client.reason, s.target.reason, reason)
			}
			s.close()
		}
		eventually(t, "the memory is given back", func() bool { return w.budget.Used() == 0 })
	})
}

// handOver freezes the pair, gives its socket away and returns what it was.
func handOver(t *testing.T, p *Pair) (State, net.Conn) {
	t.Helper()
	if err := p.Freeze(); err != nil {
		t.Fatal(err)
	}
	f, err := p.Descriptor()
	if err != nil {
		t.Skip(err)
	}
	st := p.State()
	p.GiveAway()
	conn, err := sys.Adopt(f)
	if err != nil {
		t.Fatal(err)
	}
	return st, conn
}

// TestFrozenHead: what is left of a head is part of the state, and still goes first.
func TestFrozenHead(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	defer user.Close()
	head := noise(3, 64<<10)
	c := newChain(t, &w.poller, New(Client, accepted, px, head))
	eventually(t, "the first credit is used", func() bool { return px.TryRoom() == 0 })
	st, conn := handOver(t, c.pair)
	if st.Out == 0 || !bytes.Equal(st.Head, head[st.Out:]) {
		t.Errorf("%d bytes of the head are left, %d were sent of %d", len(st.Head), st.Out, len(head))
	}
	user.Write([]byte("tail"))
	user.CloseWrite()
	c.pair = Restore(st, conn, px)
	c.pair.Start(&w.poller, c.ended)
	br.SetReadDeadline(time.Now().Add(limit))
	if got, err := io.ReadAll(br); err != nil || !bytes.Equal(got, append(bytes.Clone(head), "tail"...)) {
		t.Errorf("read %d bytes, %v; want the head and the tail", len(got), err)
	}
	br.CloseWrite()
	<-c.over
	if sent, _ := c.counts(); sent != uint64(len(head)+4) || c.reason != ReasonEOF {
		t.Errorf("%q after %d bytes; want eof after %d", c.reason, sent, len(head)+4)
	}
}

// TestFrozenReset: a reset that waits until the user has the bytes before it waits on in the next pair, and is never an end.
func TestFrozenReset(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("no way to ask for the socket's send queue, or to hand a socket over")
	}
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	defer user.Close()
	user.(*net.TCPConn).SetReadBuffer(16 << 10)
	c := newChain(t, &w.poller, New(Client, accepted, px, nil))
	want := noise(5, 40_000)
	br.Write(want)
	eventually(t, "the kernel has everything", func() bool { _, n := c.counts(); return n == uint64(len(want)) })
	br.Reset(wire.CodeReset)
	eventually(t, "the pair waits for the kernel", c.pair.resetWaits)
	if !c.swap(true) || !c.pair.resetWaits() { // in place first
		t.Fatal("the reset does not wait any more")
	}
	st, conn := handOver(t, c.pair)
	if st.Reset != ReasonTargetReset || st.ResetIn <= 0 || st.ResetIn > limit {
		t.Errorf("reset %q in %s; want %q in %s at the most", st.Reset, st.ResetIn, ReasonTargetReset, limit)
	}
	c.pair = Restore(st, conn, px)
	c.pair.Start(&w.poller, c.ended)
	user.(*net.TCPConn).SetReadBuffer(1 << 20)
	if got, err := readAll(user); !bytes.Equal(got, want) || !sys.Reset(err) {
		t.Errorf("read %d bytes, %v; want %d equal ones, then ECONNRESET", len(got), err, len(want))
	}
	<-c.over
	if c.reason != ReasonTargetReset {
		t.Errorf("reason %q, want %q", c.reason, ReasonTargetReset)
	}
}

// TestFrozenEndsLater: what would end a frozen pair does so when it is thawed: an order, the end of the session, the peer's reset.
func TestFrozenEndsLater(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end  func(p *Pair, far *link.Stream, l *link.Link)
		want Reason
	}{
		"order":         {func(p *Pair, _ *link.Stream, _ *link.Link) { p.End(ReasonRemoved, wire.CodeService) }, ReasonRemoved},
		"session":       {func(_ *Pair, _ *link.Stream, l *link.Link) { l.Kill(errors.New("over")) }, ReasonLinkLost},
		"peer's reset":  {func(_ *Pair, far *link.Stream, _ *link.Link) { far.Reset(wire.CodeReset) }, ReasonTargetReset},
		"late delivery": {func(p *Pair, _ *link.Stream, _ *link.Link) { p.Abort(wire.CodeChecksum) }, ReasonChecksum},
	} {
		t.Run(name, func(t *testing.T) {
			w, l := newWorld(t)
			defer w.close()
			px, br := w.open(l)
			user, accepted := loopback.user(t)
			defer user.Close()
			c := newChain(t, &w.poller, New(Client, accepted, px, nil))
			if err := c.pair.Freeze(); err != nil {
				t.Fatal(err)
			}
			if err := c.pair.Freeze(); err != ErrOver {
				t.Errorf("Freeze of a frozen pair = %v", err)
			}
			tc.end(c.pair, br, l)
			// It stays as it was: the user's bytes wait, and nothing is said.
			if _, err := user.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			if c.pair.over() {
				t.Error("the frozen pair ended")
			}
			c.pair.Thaw()
			if got, err := readAll(user); len(got) != 0 || !sys.Reset(err) {
				t.Errorf("read %q, %v; want ECONNRESET", got, err)
			}
			<-c.over
			if c.reason != tc.want {
				t.Errorf("reason %q, want %q", c.reason, tc.want)
			}
			if err := c.pair.Freeze(); err != ErrOver {
				t.Errorf("Freeze of a pair that is over = %v", err)
			}
		})
	}
}

// untouched is a socket that notes who changes the connection itself.
type untouched struct {
	*net.TCPConn
	changed atomic.Int32
}

func (u *untouched) SetLinger(int) error { u.changed.Add(1); return nil }

func (u *untouched) CloseWrite() error { u.changed.Add(1); return u.TCPConn.CloseWrite() }

// TestGiveAwayOnlyCloses: whoever gives a socket away neither ends nor changes the connection, and it is reset with its last descriptor.
func TestGiveAwayOnlyCloses(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	defer br.Reset(wire.CodeAborted)
	user, accepted := loopback.user(t)
	defer user.Close()
	tcp, ok := accepted.(*net.TCPConn)
	if !ok {
		t.Fatalf("accepted a %T", accepted)
	}
	u := &untouched{TCPConn: tcp}
	p := New(Client, u, px, nil)
	p.Start(&w.poller, func(r Reason) { t.Errorf("the pair ended: %s", r) })
	br.Write([]byte("hello"))
	b := make([]byte, 5)
	if _, err := io.ReadFull(user, b); err != nil {
		t.Fatal(err)
	}
	st, conn := handOver(t, p)
	p.End(ReasonDrain, wire.CodeDrain) // somebody who does not know yet
	p.Thaw()
	if n := u.changed.Load(); n != 0 {
		t.Errorf("%d calls changed the connection", n)
	}
	user.Write([]byte("there"))
	next := Restore(st, conn, px)
	over := make(chan Reason, 1)
	next.Start(&w.poller, func(r Reason) { over <- r })
	br.SetReadDeadline(time.Now().Add(limit))
	if _, err := io.ReadFull(br, b); string(b) != "there" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	next.End(ReasonDrain, wire.CodeDrain)
	<-over
	if got, err := readAll(user); len(got) != 0 || !sys.Reset(err) {
		t.Errorf("read %q, %v; want ECONNRESET", got, err)
	}
}

// TestFreezeWaitsForNobody: not for a user who reads nothing, nor for credit, nor for a silent one; and what was stuck is whole
// behind it.
func TestFreezeWaitsForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, l := newWorld(t)
		defer w.close()
		px, br := w.open(l)
		user, accepted := inMemory.user(t)
		c := newChain(t, &w.poller, New(Client, accepted, px, nil))
		up, down := noise(1, 1<<20), noise(2, 1<<20)
		var wg sync.WaitGroup
		wg.Go(func() { user.Write(up); user.CloseWrite() })
		wg.Go(func() { br.Write(down); br.CloseWrite() })
		for range 5 {
			time.Sleep(time.Minute) // everything is stuck
			begin := time.Now()
			if !c.swap(true) {
				t.Fatal("the pair is over")
			}
			if d := time.Since(begin); d != 0 {
				t.Errorf("freezing took %s", d)
			}
		}
		wg.Go(func() {
			if got, err := io.ReadAll(br); err != nil || !bytes.Equal(got, up) {
				t.Errorf("the bridge read %d bytes, %v; want %d equal ones", len(got), err, len(up))
			}
		})
		if got, err := io.ReadAll(user); err != nil || !bytes.Equal(got, down) {
			t.Errorf("the user read %d bytes, %v; want %d equal ones", len(got), err, len(down))
		}
		wg.Wait()
		<-c.over
		if c.reason != ReasonEOF {
			t.Errorf("reason %q, want eof", c.reason)
		}
	})
}

// TestFrozenPairHasNothing: no goroutine, no place at the poller.
func TestFrozenPairHasNothing(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	for _, k := range []sockets{loopback, alone, inMemory} {
		px, br := w.open(l)
		user, accepted := k.user(t)
		c := newChain(t, w.pollerFor(k), New(Client, accepted, px, nil))
		br.Write([]byte("hello"))
		if _, err := io.ReadFull(user, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if err := c.pair.Freeze(); err != nil {
			t.Fatal(err)
		}
		c.pair.wg.Wait()
		if c.pair.watched() {
			t.Errorf("%s: the poller knows the pair", k.name)
		}
		user.Write([]byte("x"))
		br.Write([]byte("y"))
		if sent, received := c.counts(); sent != 0 || received != 5 {
			t.Errorf("%s: %d, %d bytes moved", k.name, sent, received)
		}
		c.pair.Thaw()
		c.pair.End(ReasonDrain, wire.CodeDrain)
		<-c.over
		user.Close()
	}
}

// TestPoisonedStaysPoisoned: where a write had the reset, an EOF is none in the next pair either.
func TestPoisonedStaysPoisoned(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	for _, poisoned := range []bool{false, true} {
		px, br := w.open(l)
		user, accepted := loopback.user(t)
		st, err := ParseState(AppendState(nil, State{FinSent: true, InDone: true, Poisoned: poisoned}))
		if err != nil {
			t.Fatal(err)
		}
		c := newChain(t, &w.poller, Restore(st, accepted, px))
		user.Close()
		<-c.over
		br.SetReadDeadline(time.Now().Add(limit))
		_, err = io.ReadAll(br)
		if want := map[bool]Reason{false: ReasonEOF, true: ReasonClientReset}[poisoned]; c.reason != want || (err != nil) != poisoned {
			t.Errorf("poisoned: %t: reason %q, read %v; want %q", poisoned, c.reason, err, want)
		}
		br.Reset(wire.CodeAborted)
	}
}
