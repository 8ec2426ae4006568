package link

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"reverser/internal/wire"
)

// ends is a proxy's and a bridge's core of one slot, with a connection between them that a test moves frames over.
type ends struct {
	t      testing.TB
	p, b   *core
	now    time.Duration
	pb, bp []byte // on their way to the bridge, to the proxy
}

func newEnds(t testing.TB) *ends {
	e := &ends{t: t, p: newCore(false, 1, NewBudget(0).only()), b: newCore(true, 1, NewBudget(0).only()), now: time.Second}
	e.mustResume()
	return e
}

// take applies the first frame in *b at c; received data is consumed at once and appended to the stream's got.
func take(c *core, b *[]byte, now time.Duration, got map[uint64][]byte) error {
	f, n, err := wire.Parse(*b)
	if err != nil {
		return err
	}
	if f.Stream != 0 {
		ev, err := c.receive(f, now)
		if err != nil {
			return err
		}
		if ev.kind == evData {
			if got != nil {
				got[f.Stream] = append(got[f.Stream], ev.data...)
			}
			c.consume(ev.stream, len(ev.data), now)
		}
	}
	*b = (*b)[n:]
	return nil
}

// settle moves everything that both have to say.
func (e *ends) settle() {
	e.t.Helper()
	e.move(ackDelay)
}

// settleFast does the same within a round trip.
func (e *ends) settleFast() {
	e.t.Helper()
	e.move(time.Microsecond)
}

func (e *ends) move(step time.Duration) {
	e.t.Helper()
	for quiet := 0; quiet < 3; quiet++ {
		e.now += step
		e.pb = e.p.bytes(e.pb, 1<<20, e.now)
		e.bp = e.b.bytes(e.bp, 1<<20, e.now)
		for len(e.pb) > 0 {
			quiet = 0
			if err := take(e.b, &e.pb, e.now, nil); err != nil {
				e.t.Fatalf("bridge: %v", err)
			}
		}
		for len(e.bp) > 0 {
			quiet = 0
			if err := take(e.p, &e.bp, e.now, nil); err != nil {
				e.t.Fatalf("proxy: %v", err)
			}
		}
	}
}

// cut loses what is on its way, and both ends notice.
func (e *ends) cut() {
	e.pb, e.bp = nil, nil
	e.p.lost(e.p.bound)
	e.b.lost(e.b.bound)
}

// resume attaches a new connection.
func (e *ends) resume() (pe, be error) {
	e.b.negotiate(wire.FeatureDialOpens)
	gen, tb, _ := e.b.dial()
	tp, _, _, pe := e.p.accept(gen, wire.FeatureDialOpens, parseTable(e.t, tb))
	if pe != nil {
		return pe, nil
	}
	_, be = e.b.resumed(gen, parseTable(e.t, tp))
	return nil, be
}

// TestForgottenBetweenTables: a stream that its opener gives up while its table is on its way to the peer is gone there, too.
func TestForgottenBetweenTables(t *testing.T) {
	e := newEnds(t)
	s := e.b.open(wire.Open{Service: 1})
	e.settle()
	write(e.b, s, make([]byte, floorWindow+1))
	e.cut()
	e.b.negotiate(wire.FeatureDialOpens)
	gen, tb, _ := e.b.dial()
	scarce := func() bool { return true }
	e.b.withdraw(1, scarce)
	if e.b.withdraw(1+withdrawAfter, scarce); e.b.streams[s.id] != nil {
		t.Fatal("the bridge has the stream still")
	}
	tp, _, _, err := e.p.accept(gen, wire.FeatureDialOpens, parseTable(t, tb))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.b.resumed(gen, parseTable(t, tp)); err != nil {
		t.Fatal(err)
	}
	if e.settle(); len(e.p.streams) != 0 {
		t.Error("the proxy has the stream still, and nobody will end it")
	}
}

func parseTable(t testing.TB, b []byte) []wire.StreamState {
	t.Helper()
	table, err := wire.ParseTable(b, wire.StreamStateLen)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func (e *ends) mustResume() {
	e.t.Helper()
	if pe, be := e.resume(); pe != nil || be != nil {
		e.t.Fatalf("resume: proxy %v, bridge %v", pe, be)
	}
}

func write(c *core, s *streamCore, p []byte) {
	s.send.q.write(p)
	c.touch(s)
}

func TestGenerations(t *testing.T) {
	stale := func(err error) bool {
		r, ok := errors.AsType[*ownRefusal](err)
		return ok && r.status == wire.StatusStale
	}
	e := newEnds(t)
	e.b.negotiate(wire.FeatureDialOpens)
	older, tb, _ := e.b.dial()
	newer, _, _ := e.b.dial()
	if e.b.current(older) || e.b.current(newer) || e.b.current(0) {
		t.Error("the bridge goes on with an old connection, or with one that was not answered")
	}
	tp, _, _, err := e.p.accept(newer, wire.FeatureDialOpens, parseTable(t, tb))
	if err != nil {
		t.Fatal(err)
	}
	for _, gen := range []uint64{0, older, newer, newer + maxGenJump + 1, 1<<64 - 1} {
		if _, _, _, err := e.p.accept(gen, 0, nil); !stale(err) || !e.p.current(newer) {
			t.Errorf("accept(%d) after %d: %v, want a refusal that changes nothing", gen, newer, err)
		}
	}
	e.p.lost(older)
	if !e.p.current(newer) {
		t.Error("the end of an old connection ended the new one")
	}
	if _, err := e.b.resumed(older, parseTable(t, tp)); err != errFenced || e.b.current(older) {
		t.Errorf("the answer to an attempt that was overtaken: %v", err)
	}
	if _, err := e.b.resumed(newer, parseTable(t, tp)); err != nil || !e.b.current(newer) {
		t.Errorf("the answer to the last attempt: %v", err)
	}
	if _, err := e.b.resumed(newer, parseTable(t, tp)); err != errFenced {
		t.Errorf("a second answer: %v", err)
	}
	if _, _, _, err := e.p.accept(newer+maxGenJump, wire.FeatureDialOpens, nil); err != nil {
		t.Errorf("a jump that is just allowed: %v", err)
	}
}

func TestOpenedInTheOrderOfIDsAfterAResume(t *testing.T) {
	for _, dials := range []bool{false, true} {
		e := newEnds(t)
		opener, other := e.p, e.b
		if dials {
			opener, other = e.b, e.p
		}
		lost := opener.open(wire.Open{})
		opener.bytes(nil, 1<<20, e.now)
		e.cut()
		during := opener.open(wire.Open{})
		e.mustResume()
		e.settle()
		for _, s := range []*streamCore{lost, during} {
			if other.streams[s.id] == nil {
				t.Errorf("the opener dials, %v: stream %d never opened at the other end", dials, s.id)
			}
		}
	}
}

// TestEachEndHasItsOwnNumbers: what one end opens takes nothing from the other one, neither ids nor room.
func TestEachEndHasItsOwnNumbers(t *testing.T) {
	e := newEnds(t)
	for _, c := range []*core{e.p, e.b} {
		c.limits.open, c.limits.accept = 2, 2
	}
	var ids [2][]uint64
	for i, c := range []*core{e.p, e.b} {
		for !c.full() {
			ids[i] = append(ids[i], c.open(wire.Open{}).id)
		}
	}
	e.settle()
	want := [2][]uint64{{1<<8 | 1, 2<<8 | 1}, {dialled | 1<<8 | 1, dialled | 2<<8 | 1}}
	if !slices.Equal(ids[0], want[0]) || !slices.Equal(ids[1], want[1]) {
		t.Errorf("ids %#x of the one end and %#x of the other; want %#x", ids[0], ids[1], want)
	}
	if p, b := e.p.ids, e.b.ids; p.own != 2 || p.others != 2 || b.own != 2 || b.others != 2 || len(e.p.streams) != 4 {
		t.Errorf("the ends count %+v and %+v; want two of each", p, b)
	}
	if e.p.ids.seen != want[1][1] || e.b.ids.seen != want[0][1] {
		t.Errorf("the highest OPENs: %#x and %#x; want %#x and %#x", e.p.ids.seen, e.b.ids.seen, want[1][1], want[0][1])
	}
}

func TestResetBeforeTheOpenWentOut(t *testing.T) {
	e := newEnds(t)
	quiet := e.p.open(wire.Open{})
	e.p.end(quiet, wire.RST, wire.CodeReset)
	spoke := e.p.open(wire.Open{})
	write(e.p, spoke, []byte("hello"))
	e.p.end(spoke, wire.RST, wire.CodeReset)
	got := map[uint64][]byte{}
	for b := e.p.bytes(nil, 1<<20, e.now); len(b) > 0; {
		if err := take(e.b, &b, e.now, got); err != nil {
			t.Fatal(err)
		}
	}
	if e.b.streams[quiet.id] != nil || string(got[spoke.id]) != "hello" {
		t.Errorf("bridge got %v, and %d streams", got, len(e.b.streams))
	}
}

func TestChecksumMismatch(t *testing.T) {
	for _, at := range []string{"bridge", "proxy", "resume"} {
		t.Run(at, func(t *testing.T) {
			e := newEnds(t)
			s := e.p.open(wire.Open{})
			e.settle()
			from, half := e.p, s
			if at == "proxy" {
				from, half = e.b, e.b.streams[s.id]
			}
			write(from, half, []byte("hello"))
			half.send.q.tail.crc ^= 1
			if at == "resume" {
				from.bytes(nil, 1<<20, e.now)
				e.cut()
				e.b.streams[s.id].recv.nxt = 5 // as if it had arrived, with another sum
				e.mustResume()
			} else {
				from.end(half, wire.FIN, 0)
			}
			e.settle()
			if fails := e.p.ChecksumFails + e.b.ChecksumFails; fails == 0 {
				t.Error("nobody noticed")
			}
			if len(e.p.streams) != 0 || len(e.b.streams) != 0 {
				t.Errorf("left: proxy %d, bridge %d streams", len(e.p.streams), len(e.b.streams))
			}
		})
	}
}

// TestChecksumMismatchFoundTwice: the bridge finds it at the FIN, the proxy at the resume behind it. The stream is reset;
// the session goes on.
func TestChecksumMismatchFoundTwice(t *testing.T) {
	e := newEnds(t)
	s := e.p.open(wire.Open{})
	write(e.p, s, []byte("hello"))
	s.send.q.tail.crc ^= 1
	e.p.end(s, wire.FIN, 0)
	for b := e.p.bytes(nil, 1<<20, e.now); len(b) > 0; {
		if err := take(e.b, &b, e.now, nil); err != nil {
			t.Fatal(err)
		}
	}
	e.cut()
	e.mustResume()
	e.settle()
	if len(e.p.streams) != 0 || len(e.b.streams) != 0 {
		t.Errorf("left: proxy %d, bridge %d streams", len(e.p.streams), len(e.b.streams))
	}
}

// TestChecksumMismatchBeforeALazyReader: what the reset stream had not delivered is given up, and so is its charge.
func TestChecksumMismatchBeforeALazyReader(t *testing.T) {
	e := newEnds(t)
	s := e.p.open(wire.Open{})
	e.settle()
	peer := e.b.streams[s.id]
	arrive := func(n int) {
		write(e.b, peer, make([]byte, n))
		for b := e.b.bytes(nil, 1<<20, e.now); len(b) > 0; {
			f, n, err := wire.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if f.Stream != 0 {
				if _, err := e.p.receive(f, e.now); err != nil {
					t.Fatal(err)
				}
			}
			b = b[n:]
		}
	}
	arrive(30_000)
	write(e.p, s, []byte("hello"))
	e.p.bytes(nil, 1<<20, e.now)
	e.cut()
	e.b.streams[s.id].recv.nxt = 5 // as if it had arrived, with another sum
	e.mustResume()
	arrive(30_000)
	e.b.end(peer, wire.FIN, 0)
	e.settle()
	if n := e.p.budget.pool.Used(); n != 0 || len(e.p.streams) != 0 {
		t.Errorf("%d bytes stay charged, %d streams are left", n, len(e.p.streams))
	}
}

// TestWhatAnEndedStreamStillDeliversStaysCharged: a user who reads slowly holds the bytes in front of an end too, also when
// the protocol is done with the stream.
func TestWhatAnEndedStreamStillDeliversStaysCharged(t *testing.T) {
	for _, kind := range []wire.EndKind{wire.FIN, wire.RST} {
		t.Run(kind.String(), func(t *testing.T) {
			e := newEnds(t)
			s := e.p.open(wire.Open{})
			e.settle()
			write(e.b, e.b.streams[s.id], make([]byte, openWindow))
			e.b.end(e.b.streams[s.id], kind, 0)
			for b := e.b.bytes(nil, 1<<20, e.now); len(b) > 0; {
				f, n, err := wire.Parse(b)
				if err != nil {
					t.Fatal(err)
				}
				if f.Stream != 0 {
					if _, err := e.p.receive(f, e.now); err != nil {
						t.Fatal(err)
					}
				}
				b = b[n:]
			}
			e.p.end(s, wire.FIN, 0)
			e.settle()
			if !s.forgotten {
				t.Fatal("the proxy is not done with the stream")
			}
			for left := openWindow; left > 0; left -= 1 << 10 {
				if got, want := e.p.budget.pool.Used(), int64(max(left-floorWindow, 0)); got != want {
					t.Fatalf("%d bytes wait for the user and %d are charged, want %d", left, got, want)
				}
				e.p.consume(s, 1<<10, e.now)
			}
		})
	}
}

func TestViolations(t *testing.T) {
	const id = 1<<8 | 1
	data := func(off uint64, n int) wire.Frame {
		return wire.Frame{Type: wire.TypeData, Stream: id, Offset: off, Payload: make([]byte, n)}
	}
	end := func(off uint64, kind wire.EndKind) wire.Frame {
		f, _, _ := wire.Parse(wire.AppendEnd(nil, id, off, wire.End{Kind: kind}))
		return f
	}
	ack := func(stream, off uint64) wire.Frame {
		f, _, _ := wire.Parse(wire.AppendAck(nil, stream, off, 0))
		return f
	}
	tests := []struct {
		name   string
		bridge bool // the end that receives
		frames []wire.Frame
		want   wire.ErrCode // of the last frame; 0: none
	}{
		{"data with a gap", true, []wire.Frame{data(1, 1)}, wire.ErrGap},
		{"data beyond the credit", true, []wire.Frame{data(0, 10), data(10, floorWindow)}, wire.ErrCredit},
		{"data that overflows", true, []wire.Frame{data(^uint64(0)-1, 10)}, wire.ErrOverflow},
		{"data below is trimmed", true, []wire.Frame{data(0, 10), data(5, 10), data(0, 3)}, 0},
		{"data after end", true, []wire.Frame{end(0, wire.FIN), data(0, 1)}, wire.ErrAfterEnd},
		{"end below what came", true, []wire.Frame{data(0, 10), end(5, wire.FIN)}, wire.ErrAfterEnd},
		{"end beyond what came", true, []wire.Frame{end(5, wire.FIN)}, wire.ErrGap},
		{"end again", true, []wire.Frame{end(0, wire.FIN), end(0, wire.FIN)}, 0},
		{"two ends that differ", true, []wire.Frame{end(0, wire.FIN), end(0, wire.RST)}, wire.ErrAfterEnd},
		{"reset after end", true, []wire.Frame{end(0, wire.FIN), end(1, wire.RST)}, 0},
		{"fin after fin", true, []wire.Frame{end(0, wire.FIN), end(1, wire.FIN)}, wire.ErrGap},
		{"ack beyond what was sent", true, []wire.Frame{ack(id, 1)}, wire.ErrAckBeyond},
		{"ack that goes back", false, []wire.Frame{ack(id, 0), ack(id, 0)}, 0},
		{"ack of a stream never opened", false, []wire.Frame{ack(5<<8|1, 0)}, wire.ErrUnexpected},
		{"frame of another slot", false, []wire.Frame{ack(1<<8|2, 0)}, wire.ErrUnexpected},
		{"open of a live id", true, []wire.Frame{{Type: wire.TypeOpen, Stream: id, Payload: []byte{1, 0, 0, 0, 0, 1}}}, 0},
		{"open of an own id", false, []wire.Frame{{Type: wire.TypeOpen, Stream: id, Payload: []byte{1, 0, 0, 0, 0, 1}}}, wire.ErrUnexpected},
		{"forget of an own id", false, []wire.Frame{{Type: wire.TypeForget, Stream: id}}, wire.ErrUnexpected},
		{"open of a forgotten id", true, []wire.Frame{{Type: wire.TypeForget, Stream: id}, {Type: wire.TypeOpen, Stream: id, Payload: []byte{1, 0, 0, 0, 0, 1}}}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnds(t)
			e.p.open(wire.Open{})
			b := e.p.bytes(nil, 1<<20, e.now)
			if err := take(e.b, &b, e.now, nil); err != nil {
				t.Fatal(err)
			}
			c := e.p
			if tt.bridge {
				c = e.b
			}
			var err error
			for i, f := range tt.frames {
				var ev event
				if ev, err = c.receive(f, e.now); err != nil && i < len(tt.frames)-1 {
					t.Fatalf("frame %d: %v", i, err)
				}
				if ev.kind == evOpened {
					t.Error("the target would be dialled a second time")
				}
			}
			var p *violationError
			if got := errors.As(err, &p); got != (tt.want != 0) || got && p.code != tt.want {
				t.Errorf("last frame: %v, want code %d", err, tt.want)
			}
		})
	}
}

func TestFloodOfFramesThatDoNothing(t *testing.T) {
	e := newEnds(t)
	f, _, _ := wire.Parse(wire.AppendAck(nil, 1<<8|1, 0, 0))
	s := e.p.open(wire.Open{})
	e.settle()
	e.p.end(s, wire.RST, 0)
	e.settle()
	for i := 0; ; i++ {
		if _, err := e.p.receive(f, e.now); err != nil {
			return
		}
		if i > glitchLimit {
			t.Fatal("the flood goes on for ever")
		}
	}
}

func TestBadTables(t *testing.T) {
	const id = 1<<8 | 1
	for name, st := range map[string]wire.StreamState{
		"less than acknowledged": {Stream: id, RcvNxt: 2},
		"more than sent":         {Stream: id, RcvNxt: 11},
		"never opened":           {Stream: 9<<8 | 1},
		"another slot":           {Stream: 1<<8 | 2},
		"another slot, the peer": {Stream: dialled | 1<<8 | 2},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnds(t)
			s := e.p.open(wire.Open{})
			write(e.p, s, []byte("hello"))
			e.settle()
			write(e.p, s, []byte("world"))
			e.p.bytes(nil, 1<<20, e.now)
			e.cut()
			var p *violationError
			if _, err := e.p.apply([]wire.StreamState{st}); !errors.As(err, &p) || p.code != wire.ErrResume || !p.fatal {
				t.Errorf("apply = %v, want a session that ends with code %d", err, wire.ErrResume)
			}
		})
	}
}

// TestRandomBreaks drives two cores through random schedules of writes, reads, ends, half-delivered batches, and breaks at
// any frame, and checks that every stream delivers what was sent, once and in order, and that nothing is left.
func TestRandomBreaks(t *testing.T) {
	for seed := range uint64(100) {
		if err := randomRun(t, seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func randomRun(t testing.TB, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	e := newEnds(t)
	type half struct{ want []byte }
	want := [2]map[uint64]*half{{}, {}} // sent by the proxy, by the bridge
	got := [2]map[uint64][]byte{{}, {}} // received by the bridge, by the proxy
	cores := [2]*core{e.p, e.b}
	var all []*streamCore
	up := true
	steps := 300
	for i := 0; i < steps || len(e.p.streams)+len(e.b.streams) > 0; i++ {
		if i > steps+4000 {
			return fmt.Errorf("does not come to rest: proxy %d, bridge %d streams", len(e.p.streams), len(e.b.streams))
		}
		e.now += time.Duration(rnd.IntN(20)) * time.Millisecond
		winding := i >= steps
		switch k := rnd.IntN(10); {
		case k == 0 && !winding && len(all) < 12:
			all = append(all, cores[rnd.IntN(2)].open(wire.Open{}))
		case k <= 2 && !winding || winding && k <= 3:
			side := rnd.IntN(2)
			for _, s := range cores[side].streams {
				if n := min(s.send.room(cores[side].budget), rnd.IntN(40_000)); n > 0 && !winding {
					p := make([]byte, n)
					x := rnd.Uint32()
					for j := range p {
						x = x*1664525 + 1013904223
						p[j] = byte(x >> 24)
					}
					if want[side][s.id] == nil {
						want[side][s.id] = &half{}
					}
					want[side][s.id].want = append(want[side][s.id].want, p...)
					write(cores[side], s, p)
				}
				if winding || rnd.IntN(12) == 0 {
					cores[side].end(s, wire.FIN, 0)
				}
			}
		case k == 4 && rnd.IntN(3) == 0:
			e.cut()
			up = false
		case !up:
			if pe, be := e.resume(); pe != nil || be != nil {
				return fmt.Errorf("resume: %v, %v", pe, be)
			}
			up = true
		default:
			e.pb = e.p.bytes(e.pb, rnd.IntN(60_000), e.now)
			e.bp = e.b.bytes(e.bp, rnd.IntN(60_000), e.now)
			for n := rnd.IntN(12); n > 0 && len(e.pb) > 0; n-- {
				if err := take(e.b, &e.pb, e.now, got[0]); err != nil {
					return fmt.Errorf("bridge: %w", err)
				}
			}
			for n := rnd.IntN(12); n > 0 && len(e.bp) > 0; n-- {
				if err := take(e.p, &e.bp, e.now, got[1]); err != nil {
					return fmt.Errorf("proxy: %w", err)
				}
			}
		}
	}
	for side := range want {
		for id, h := range want[side] {
			if !bytes.Equal(got[side][id], h.want) {
				return fmt.Errorf("side %d stream %d: %d bytes arrived, %d equal ones were sent", side, id, len(got[side][id]), len(h.want))
			}
		}
	}
	for _, c := range cores {
		if n := c.budget.pool.Used(); n != 0 {
			return fmt.Errorf("%d bytes are still charged", n)
		}
		if c.ChecksumFails != 0 {
			return fmt.Errorf("%d checksums failed", c.ChecksumFails)
		}
	}
	return nil
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	e := newEnds(t)
	s := e.p.open(wire.Open{})
	e.settle()
	peer := e.b.streams[s.id]
	buf := make([]byte, 0, 1<<20)
	var out bundle // not of the pool, which loses what it is given now and then under the race detector
	out.reset()
	said := func(c *core) []byte {
		defer out.reset()
		return c.bytesBy(&out, buf[:0], batch, e.now)
	}
	p := make([]byte, 4096)
	round := func() {
		write(e.p, s, p)
		b := said(e.p)
		for len(b) > 0 {
			f, n, _ := wire.Parse(b)
			b = b[n:]
			if f.Stream == 0 {
				continue
			}
			ev, err := e.b.receive(f, e.now)
			if err != nil {
				t.Fatal(err)
			}
			if ev.kind == evData {
				e.b.consume(peer, len(ev.data), e.now)
			}
		}
		e.now += ackDelay
		b = said(e.b)
		for len(b) > 0 {
			f, n, _ := wire.Parse(b)
			b = b[n:]
			if f.Stream == 0 {
				continue
			}
			if _, err := e.p.receive(f, e.now); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(1000, round); n > 0.5 {
		t.Errorf("%.2f allocations a round, want none", n)
	}
}
