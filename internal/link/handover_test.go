package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/wire"
)

// replaceHost lets another Host go on in the place of the world's, with documents alone, and returns the streams that took the place
// of those of the old one.
func (w *world) replaceHost() map[*Stream]*Stream {
	l := w.px.session()
	l.Freeze()
	doc, before := l.AppendState(nil)
	cfg := w.hostConfig
	cfg.Budget = NewBudget(0)
	w.px = newRecorder()
	cfg.Owner = w.px
	next := NewHost(cfg)
	thawed, after, err := next.Thaw(doc)
	if err != nil {
		w.t.Fatal(err)
	}
	w.sameCharges(l, thawed)
	w.px.link = thawed
	w.mu.Lock()
	old := w.host
	w.host = next
	w.mu.Unlock()
	old.Close(errors.New("another process took its place"))
	return pairUp(w.t, before, after)
}

// replaceDialer does the same with the bridge.
func (w *world) replaceDialer() map[*Stream]*Stream {
	l := w.br.session()
	l.Freeze()
	doc, before := l.AppendState(nil)
	cfg := w.dialerConfig
	cfg.Budget = NewBudget(0)
	w.br = newRecorder()
	cfg.Owner = w.br
	next := NewDialer(cfg)
	thawed, after, err := next.Thaw(doc)
	if err != nil {
		w.t.Fatal(err)
	}
	w.sameCharges(l, thawed)
	w.br.link = thawed
	w.stopDialer()
	ctx, stop := context.WithCancel(w.ctx)
	w.dialer, w.stopDialer = next, stop
	w.wg.Go(func() { next.Run(ctx) })
	return pairUp(w.t, before, after)
}

func (w *world) sameCharges(old, thawed *Link) {
	w.t.Helper()
	if was, is := old.share.pool.Used(), thawed.share.pool.Used(); was != is {
		w.t.Errorf("%d bytes are charged in the new process, %d were in the old one", is, was)
	}
}

func pairUp(t testing.TB, before, after []*Stream) map[*Stream]*Stream {
	t.Helper()
	if len(before) != len(after) {
		t.Fatalf("%d streams of %d were taken over", len(after), len(before))
	}
	m := map[*Stream]*Stream{}
	for i, s := range before {
		if s.id != after[i].id || s.open.Service != after[i].open.Service {
			t.Errorf("stream %#x in the place of stream %#x", after[i].id, s.id)
		}
		m[s] = after[i]
	}
	return m
}

// talk is one direction of a stream.
type talk struct {
	from, to *Stream
	sent     bytes.Buffer
	got      bytes.Buffer
}

func (k *talk) say(seed byte, n int) {
	p := noise(seed, min(n, k.from.TryRoom()))
	k.from.Write(p)
	k.sent.Write(p)
}

// hear reads what has come.
func (k *talk) hear(t *testing.T, n int) {
	p := make([]byte, n)
	k.to.SetReadDeadline(time.Now().Add(time.Nanosecond))
	n, _ = k.to.Read(p)
	k.to.SetReadDeadline(time.Time{})
	k.got.Write(p[:n])
}

// TestHandOver: either process is replaced again and again while bytes are under way, and nobody loses one or gets one twice.
func TestHandOver(t *testing.T) {
	for _, name := range []string{"proxy", "bridge", "both"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 0)
				defer w.close()
				var talks []*talk
				for i := range 6 {
					opener, other := w.px, w.br
					if i%2 == 1 {
						opener, other = w.br, w.px
					}
					a, b := w.openAt(opener, other)
					talks = append(talks, &talk{from: a, to: b}, &talk{from: b, to: a})
				}
				replace := func(f func() map[*Stream]*Stream) {
					for s, next := range f() {
						for _, k := range talks {
							if k.from == s {
								k.from = next
							}
							if k.to == s {
								k.to = next
							}
						}
					}
				}
				for round := range 12 {
					for i, k := range talks {
						k.say(byte(round*16+i), 9000)
						if i%3 != 0 { // some never read until the end
							k.hear(t, 1<<14)
						}
					}
					if round%3 == 1 { // without: what was said has not left yet
						time.Sleep(time.Duration(round) * 10 * time.Millisecond)
					}
					if name != "bridge" {
						replace(w.replaceHost)
					}
					if name != "proxy" {
						replace(w.replaceDialer)
					}
					if round%2 == 0 {
						time.Sleep(time.Second) // all is up again
					}
				}
				var wg sync.WaitGroup
				for i, k := range talks {
					wg.Go(func() {
						k.from.CloseWrite()
						rest, err := io.ReadAll(k.to)
						k.got.Write(rest)
						if err != nil || !bytes.Equal(k.got.Bytes(), k.sent.Bytes()) {
							t.Errorf("direction %d: read %d bytes, %v; want %d equal ones", i, k.got.Len(), err, k.sent.Len())
						}
						if i == 0 && name == "both" && k.from.Resumes() < 12 {
							t.Errorf("%d resumes were counted, there were at least 12", k.from.Resumes())
						}
					})
				}
				wg.Wait()
				time.Sleep(time.Second)
				for _, r := range []*recorder{w.px, w.br} {
					if l := r.session(); l.Streams() != 0 || l.share.pool.Used() != 0 {
						t.Errorf("%d streams are left, %d bytes charged", l.Streams(), l.share.pool.Used())
					}
				}
				a, b := w.open() // under an id that was not used before
				a.Write([]byte("hello"))
				if _, err := io.ReadFull(b, make([]byte, 5)); err != nil {
					t.Errorf("a new stream behind all that: %v", err)
				}
			})
		})
	}
}

// TestFreezeAndThawHere: a hand-over that comes to nothing is a pause.
func TestFreezeAndThawHere(t *testing.T) {
	for _, dials := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			a, b := w.open()
			r := w.px
			if dials {
				r, a, b = w.br, b, a
			}
			l := r.session()
			waits := make(chan error, 1)
			for a.TryRoom() > 0 {
				a.Send(filled(min(a.TryRoom(), ChunkSize)))
				synctest.Wait()
			}
			go func() {
				_, err := a.Room(nil)
				waits <- err
			}()
			synctest.Wait()
			l.Freeze()
			if err := <-waits; err != ErrFrozen {
				t.Errorf("Room of a frozen stream = %v, want ErrFrozen", err)
			}
			if _, err := l.Open(wire.Open{}); err != ErrFrozen {
				t.Errorf("Open on a frozen link = %v, want ErrFrozen", err)
			}
			if a.TryRoom() != 0 {
				t.Error("a frozen stream has room")
			}
			wrote := make(chan error, 1)
			go func() {
				_, err := a.Write([]byte("more"))
				wrote <- err
			}()
			first, _ := l.AppendState(nil)
			time.Sleep(8 * time.Second) // the peer tries again and again
			if st := l.Status(); st[0].Up || st[1].Up {
				t.Error("a frozen link got a connection")
			}
			second, _ := l.AppendState(nil)
			if moved := differences(first, second); moved > 40 { // the clock, and the checksum of all
				t.Errorf("a frozen link changed: %d bytes of %d differ", moved, len(first))
			}
			select {
			case err := <-wrote:
				t.Fatalf("Write on a frozen link = %v, want it to wait", err)
			default:
			}
			l.Thaw()
			go io.Copy(io.Discard, b)
			if err := <-wrote; err != nil {
				t.Errorf("Write behind the thaw = %v", err)
			}
		})
	}
}

func filled(n int) *Chunk {
	c := NewChunk()
	c.Grow(min(n, len(c.Room())))
	return c
}

func differences(a, b []byte) (n int) {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			n++
		}
	}
	return n + max(len(a), len(b)) - min(len(a), len(b))
}

// sluggish is a Receiver that takes nothing until it is told to.
type sluggish struct {
	ended   chan wire.EndKind
	aborted chan time.Time
}

func newSluggish() *sluggish {
	return &sluggish{make(chan wire.EndKind, 2), make(chan time.Time, 1)}
}

func (*sluggish) Receive([][]byte) int                { return 0 }
func (*sluggish) Behind() bool                        { return false }
func (*sluggish) Backlogged()                         {}
func (r *sluggish) Ended(k wire.EndKind, _ wire.Code) { r.ended <- k }
func (r *sluggish) Abort(wire.Code)                   { r.aborted <- time.Now() }

// TestHandOverOfWhatStillDelivers: a stream that was reset has bytes for a user who is slow. The core has forgotten it; it goes
// over with its bytes and the rest of its time.
func TestHandOverOfWhatStillDelivers(t *testing.T) {
	for _, reads := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			a, b := w.open()
			before := newSluggish()
			a.SetReceiver(before)
			sent := noise(7, 40_000)
			b.Write(sent)
			b.Reset(wire.CodeReset)
			synctest.Wait()
			a.slot.mu.Lock()
			forgotten := a.forgotten
			a.slot.mu.Unlock()
			if !forgotten {
				t.Fatal("the proxy has not forgotten the stream")
			}
			time.Sleep(4 * time.Second)
			a.Freeze()
			doc := AppendFinished(nil, []*Stream{a})
			time.Sleep(time.Minute) // counts no more
			budget := NewBudget(0)
			streams, err := ThawFinished(doc, budget)
			if err != nil || len(streams) != 1 {
				t.Fatalf("ThawFinished = %d streams, %v", len(streams), err)
			}
			if was := a.slot.core.budget.pool.Used(); budget.Used() != was || was == 0 {
				t.Errorf("%d bytes are charged, %d were", budget.Used(), was)
			}
			s := streams[0]
			after := newSluggish()
			thawedAt := time.Now()
			s.SetReceiver(after)
			if !reads {
				if late := (<-after.aborted).Sub(thawedAt); late < 6*time.Second || late > 6100*time.Millisecond {
					t.Errorf("it was given up after %s, with 6 seconds left", late)
				}
				return
			}
			var got []byte
			for p := s.Backlog(); p != nil; p = s.Backlog() {
				got = append(got, p...)
				s.Consumed(len(p))
			}
			if !bytes.Equal(got, sent) {
				t.Errorf("%d bytes were delivered, want %d equal ones", len(got), len(sent))
			}
			if k := <-after.ended; k != wire.RST {
				t.Errorf("Ended with %s, want RST", k)
			}
			if n := budget.Used(); n != 0 {
				t.Errorf("%d bytes stay charged", n)
			}
			if len(before.aborted) != 0 {
				t.Error("the old process ended the stream, whose socket is not its own any more")
			}
			if _, err := s.Room(nil); !errors.Is(err, ErrReset) {
				t.Errorf("Room = %v, want ErrReset", err)
			}
		})
	}
}

// TestHandOverOfARest: what a socket had left when it was reset goes on to be sent, and is given up in its time.
func TestHandOverOfARest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.open()
		b.SetReceiver(newSluggish())
		for a.TryRoom() > 0 {
			a.Send(filled(a.TryRoom()))
			synctest.Wait()
		}
		a.SendRest(filled(5000))
		a.Reset(wire.CodeReset)
		time.Sleep(4 * time.Second)
		next := w.replaceHost()[a]
		begin := time.Now()
		for {
			next.slot.mu.Lock()
			given := next.send.q.end < next.send.max // the END stands behind what went out
			next.slot.mu.Unlock()
			if given {
				break
			}
			if time.Since(begin) > time.Minute {
				t.Fatal("it is never given up")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(begin); d < 6*time.Second || d > 27*time.Second {
			t.Errorf("it was given up after %s", d)
		}
	})
}

// TestDocuments: what a reader does with what it does not know, and with what is wrong.
func TestDocuments(t *testing.T) {
	l := newLink(false, nil, nil, NewBudget(0).only(), 2)
	l.limit, l.role = time.Minute, wire.RoleBridge
	for range 3 {
		s, err := l.Open(wire.Open{Service: 7})
		if err != nil {
			t.Fatal(err)
		}
		s.Send(filled(100))
	}
	good, _ := l.AppendState(nil)
	records := good[documentHeader:]
	doc := func(parts ...[]byte) []byte { return seal(append(appendSeal(nil), slices.Concat(parts...)...), 0) }
	session := recordHeader + int(binary.BigEndian.Uint32(records[2:]))
	edit := func(f func(b []byte)) []byte { b := bytes.Clone(records); f(b); return doc(b) }
	for name, c := range map[string]struct {
		doc  []byte
		want string // in the error; empty: none
	}{
		"as it was written":                 {good, ""},
		"with a record that may be skipped": {doc(records, appendRecord(nil, 0x7fff, []byte("news"))), ""},
		"with a record that is needed":      {doc(records, appendRecord(nil, 0xffff, nil)), "newer version"},
		"with a longer record":              {edit(func(b []byte) {}), ""},
		"of another version":                {func() []byte { b := bytes.Clone(good); b[5]++; return b }(), "version 2"},
		"of something else":                 {append([]byte("RVXX"), good[4:]...), "none of a link"},
		"with another byte":                 {func() []byte { b := bytes.Clone(good); b[len(b)-1]++; return b }(), "checksum"},
		"empty":                             {nil, "none of a link"},
		"without slots":                     {doc(records[:session]), "0 slots"},
		"without a session":                 {doc(records[session:]), "wrong place"},
		"of the other end":                  {edit(func(b []byte) { b[recordHeader] |= 1 }), "session"},
		"cut":                               {doc(records[:len(records)-1]), "ends inside"},
	} {
		t.Run(name, func(t *testing.T) {
			budget := NewBudget(0)
			_, streams, err := thawLink(c.doc, false, new(Link), budget.share)
			switch {
			case c.want == "" && (err != nil || len(streams) != 3):
				t.Errorf("%d streams, %v; want three", len(streams), err)
			case c.want != "" && (!errors.Is(err, errDocument) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v; want a refusal that says %q", err, c.want)
			case c.want != "" && budget.Used() != 0:
				t.Errorf("%d bytes stay charged for a document that was refused", budget.Used())
			}
		})
	}
}

// TestClockOfADocument: times move with the clock of the process that reads them.
func TestClockOfADocument(t *testing.T) {
	f := newFaucet(t, NewBudget(0).only())
	s := f.open()
	f.pour(s, 3)
	doc, _ := f.c.freeze(nil, f.now)
	const ahead = 5 * time.Hour
	c, streams, err := thawCore(doc, f.now+ahead, NewBudget(0).only())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := streams[0].recv.last, s.recv.last+ahead; got != want {
		t.Errorf("the last data came at %s, want %s", got, want)
	}
	if got, want := streams[0].recv.epoch, s.recv.epoch+ahead; got != want {
		t.Errorf("the window's epoch is %s, want %s", got, want)
	}
	if c.budget.pool.Used() != f.c.budget.pool.Used() || c.budget.pool.Used() == 0 {
		t.Errorf("%d bytes are charged, %d were", c.budget.pool.Used(), f.c.budget.pool.Used())
	}
}

// FuzzThaw: whatever a document says, nobody panics or takes memory out of proportion, and what is accepted can be written again and
// works.
func FuzzThaw(f *testing.F) {
	e := newEnds(f)
	for _, c := range []*core{e.p, e.b} {
		s := c.open(wire.Open{Service: 3})
		write(c, s, []byte("hello"))
	}
	e.settle()
	for _, s := range e.p.sorted() {
		write(e.p, s, noise(1, 20_000))
	}
	for _, c := range []*core{e.p, e.b} {
		b, _ := c.freeze(nil, e.now)
		f.Add(b)
	}
	s := e.b.sorted()[0]
	e.b.end(s, wire.FIN, 0)
	e.b.remove(s)
	f.Add(freezeFinished(nil, []*Stream{s.whole}, e.now))
	l := newLink(true, nil, nil, NewBudget(0).only(), 1)
	l.limit, l.role = time.Minute, wire.RoleBridge
	state, _ := l.AppendState(nil)
	f.Add(state[documentHeader:])
	f.Fuzz(func(t *testing.T, b []byte) {
		const now = time.Hour
		if c, streams, err := thawCore(b, now, NewBudget(0).only()); err == nil {
			mem := 0
			for _, s := range streams {
				for _, q := range []*queue{&s.send.q, &s.recv.q} {
					for k := q.head; k != nil; k = k.next {
						mem += len(k.mem)
					}
				}
			}
			if most := 2*len(streams)*len(new(Chunk).mem) + 2*len(b); mem > most {
				t.Errorf("%d bytes for a document of %d", mem, len(b))
			}
			again, _ := c.freeze(nil, now)
			d, _, err := thawCore(again, now, NewBudget(0).only())
			if err != nil {
				t.Fatalf("what was accepted and written again: %v", err)
			}
			if third, _ := d.freeze(nil, now); !bytes.Equal(again, third) {
				t.Error("it is another one when it is written again")
			}
			if c.budget.pool.Used() != d.budget.pool.Used() || c.budget.pool.Used() < 0 {
				t.Errorf("%d bytes are charged, and %d", c.budget.pool.Used(), d.budget.pool.Used())
			}
			use(c, now)
			for _, s := range streams {
				c.remove(&s.streamCore)
			}
			if c.budget.pool.Used() != 0 {
				t.Errorf("%d bytes stay charged", c.budget.pool.Used())
			}
		}
		if streams, err := thawFinished(b, now, NewBudget(0).only()); err == nil {
			c := newCore(false, 1, NewBudget(0).only())
			for _, s := range streams {
				c.consume(&s.streamCore, 0, now)
			}
		}
		thawLink(append(appendSeal(nil), b...), true, new(Link), NewBudget(0).share)
		thawLink(seal(append(appendSeal(nil), b...), 0), true, new(Link), NewBudget(0).share)
	})
}

// use lets a core from a document resume with a peer that has everything, or nothing, and speak.
func use(c *core, now time.Duration) {
	var table []wire.StreamState
	for _, s := range c.sorted() {
		if s.id%2 == 0 || !c.mine(s.id) {
			table = append(table, wire.StreamState{Stream: s.id, RcvNxt: s.send.max, Credit: s.send.credit + 1000, CRC: crc32.Checksum(nil, castagnoli)})
		}
	}
	if _, err := c.apply(table); err != nil {
		return
	}
	c.bound = 1
	for range 10 {
		c.bytes(nil, 1<<16, now)
	}
	c.table()
}
