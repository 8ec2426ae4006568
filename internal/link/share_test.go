package link

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// download reads so many bytes at the proxy that the bridge which behaves sends, and returns the bytes of a second.
func (w *scene) download(size int) float64 {
	w.t.Helper()
	a, err := w.owners.key(goodKey).session().Open(wire.Open{})
	if err != nil {
		w.t.Fatal(err)
	}
	b := <-w.br.streams
	begin := time.Now()
	go func() {
		b.Write(make([]byte, size))
		b.CloseWrite()
	}()
	n, err := io.Copy(io.Discard, a)
	if err != nil || n != int64(size) {
		w.t.Errorf("a download of %d bytes: %d, %v", size, n, err)
	}
	a.Close()
	return float64(size) / time.Since(begin).Seconds()
}

// answerPings reads what the proxy says on a slot, and answers its PINGs and nothing else.
func (v *voice) answerPings() {
	v.conn.SetReadDeadline(time.Time{})
	for {
		f, err := readFrame(v.conn, v.buf[:])
		if err != nil {
			return
		}
		if f.Type == wire.TypePing {
			v.say(wire.AppendEmpty(nil, wire.TypePong, 0, f.Offset))
		}
	}
}

// hog opens streams to a bridge that grants all the credit in the world and acknowledges nothing, and has users send as much as there
// is room for.
func (e *evilBridge) hog(streams int) {
	var all []*Stream
	e.w.t.Helper()
	l := e.w.owners.key(evilKey).session()
	for range streams {
		s, err := l.Open(wire.Open{})
		if err != nil {
			e.w.t.Fatal(err)
		}
		all = append(all, s)
		e.at[1].hear(wire.TypeOpen)
		e.at[1].say(wire.AppendAck(nil, s.ID(), 0, 1<<40))
	}
	go e.at[0].answerPings()
	go e.at[1].answerPings()
	synctest.Wait()
	time.Sleep(time.Second)
	for _, s := range all {
		fillStream(s)
	}
}

// fillStream sends as much as there is room for, a read of a socket at a time.
func fillStream(s *Stream) {
	for n := s.TryRoom(); n > 0; n = s.TryRoom() {
		c := NewChunk()
		c.Grow(min(n, len(c.Room())))
		s.Put(c)
	}
	s.Flush()
}

// TestAGreedyKey: a key whose peer acknowledges nothing, with all the credit in the world, does not slow another key down, whether it
// is still there or not.
func TestAGreedyKey(t *testing.T) {
	for _, dead := range []bool{false, true} {
		name := "that is there"
		if dead {
			name = "that is gone"
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newScene(t)
				defer w.close()
				e := newEvilBridge(w)
				for _, c := range w.net.Conns() {
					c.SetBuffer(memnet.Both, 32<<20)
					c.SetLatency(memnet.Both, 25*time.Millisecond)
				}
				const size = 32 << 20
				alone := w.download(size)
				e.hog(100)
				memory := w.host.cfg.Budget
				held := memory.Used()
				if dead {
					e.at[0].conn.Close()
					e.at[1].conn.Close()
				}
				beside := w.download(size)
				t.Logf("%.1f MB/s alone, %.1f MB/s beside a key that holds %d of %d MiB", alone/1e6, beside/1e6, held>>20, memory.Size()>>20)
				if beside < alone/2 {
					t.Errorf("%.1f MB/s, and alone %.1f MB/s", beside/1e6, alone/1e6)
				}
				if most := memory.Size()/2 + 4*ChunkSize; held > most {
					t.Errorf("one key holds %d bytes, want at most %d", held, most)
				}
				if !dead {
					e.at[0].conn.Close()
					e.at[1].conn.Close()
				}
			})
		})
	}
}

// holder is a link without a connection, with streams that hold all the memory that they get.
type holder struct {
	*Link
	streams []*Stream
}

func newHolder(t *testing.T, b *Budget, key byte) *holder {
	h := &holder{Link: newLink(false, newRecorder(), nil, b.share([16]byte{key}), 1)}
	h.share.join(h.Link)
	t.Cleanup(func() { h.share.leave(h.Link) })
	return h
}

// open makes a stream whose peer grants all the credit in the world.
func (h *holder) open() *Stream {
	s := h.slots[1].core.open(wire.Open{}).whole
	s.bind(h.slots[1])
	s.openSent, s.send.credit = true, 1<<40
	h.streams = append(h.streams, s)
	return s
}

func (h *holder) fill(streams int) *holder {
	h.slots[1].mu.Lock()
	defer h.slots[1].mu.Unlock()
	for range streams {
		fill(h.slots[1].core, &h.open().streamCore)
	}
	return h
}

// alive counts the streams that were not reset.
func (h *holder) alive() (n int) {
	h.slots[1].mu.Lock()
	defer h.slots[1].mu.Unlock()
	for _, s := range h.streams {
		if !s.dead {
			n++
		}
	}
	return n
}

// TestShares: each key that comes gets half of what the others left, and an honest one that comes last has windows worth something.
func TestShares(t *testing.T) {
	b := NewBudget(0)
	left := b.size
	for key := byte(1); key <= 3; key++ {
		got := newHolder(t, b, key).fill(100).share.total()
		if most := left / 2; got > most+ChunkSize || got < most-ChunkSize {
			t.Errorf("key %d holds %d bytes, want half of %d", key, got, left)
		}
		left -= got
		f := newFaucet(t, b.share([16]byte{100}))
		s := f.open()
		f.pour(s, 14)
		t.Logf("beside %d greedy keys a stream has a window of %d KiB", key, s.recv.win>>10)
		if key == 1 && s.recv.win < 3<<20 || s.recv.win < openWindow {
			t.Errorf("a window of %d KiB beside %d greedy keys", s.recv.win>>10, key)
		}
		f.c.remove(s)
	}
	if used := b.Used(); used > b.size {
		t.Errorf("%d bytes are charged, there are %d", used, b.size)
	}
}

// TestOnlyShare: the only proxy of a bridge has all of its memory, whatever number of sessions, and half when there is another one.
func TestOnlyShare(t *testing.T) {
	b := NewBudget(0)
	first, second := b.only(), b.only()
	var links [3]Link
	first.join(&links[0])
	first.join(&links[1])
	if n := first.spare(); n != b.size {
		t.Errorf("the only share may take %d bytes, want %d", n, b.size)
	}
	second.join(&links[2])
	if n := first.spare(); n != b.size/2 {
		t.Errorf("one of two shares may take %d bytes, want %d", n, b.size/2)
	}
	first.leave(&links[0])
	first.leave(&links[1])
	second.leave(&links[2])
	if n := len(b.shares); n != 0 {
		t.Errorf("the budget remembers %d shares", n)
	}
}

// TestSharesGiveWay: a key that has all it may have gives way to one that comes later, without falling to the floor.
func TestSharesGiveWay(t *testing.T) {
	b := NewBudget(0)
	first, second := newFaucet(t, b.share([16]byte{1})), newFaucet(t, b.share([16]byte{2}))
	var streams [2][]*streamCore
	for range 64 {
		streams[0] = append(streams[0], first.open())
	}
	for range 64 {
		streams[1] = append(streams[1], second.open())
	}
	for round := range 40 {
		for i, f := range []*faucet{first, second} {
			if i == 1 && round < 14 {
				continue
			}
			now := f.now
			for _, s := range streams[i] {
				f.now = now // all at once
				f.pour(s, 1)
			}
		}
	}
	one, two := first.c.budget.total(), second.c.budget.total()
	t.Logf("the first holds %d MiB, the second %d MiB", one>>20, two>>20)
	if one > 2*two || two > 2*one {
		t.Errorf("the first holds %d bytes, the second %d", one, two)
	}
	for i := range streams {
		for _, s := range streams[i] {
			if s.recv.win < openWindow {
				t.Fatalf("a busy stream of key %d has a window of %d bytes", i+1, s.recv.win)
			}
		}
	}
}

// TestWithdraw: what a stalled peer holds is withdrawn when others ask, from the largest holder first and no more than is needed.
func TestWithdraw(t *testing.T) {
	ask := func(l *holder, d time.Duration, each func()) {
		for begin := time.Now(); time.Since(begin) < d; {
			l.share.ask()
			each()
			time.Sleep(withdrawEvery + time.Millisecond)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(0)
		first, second, small := newHolder(t, b, 1).fill(100), newHolder(t, b, 2).fill(100), newHolder(t, b, 3)
		small.slots[1].mu.Lock()
		s := small.open()
		write(s.slot.core, &s.streamCore, make([]byte, 100_000))
		small.slots[1].mu.Unlock()
		ask(small, withdrawAfter-time.Second, func() {})
		if n := first.alive() + second.alive(); n != 200 {
			t.Fatalf("%d of 200 streams are left before their time", n)
		}
		ask(small, 5*time.Second, func() {})
		t.Logf("%d and %d of 100 streams are left, %d MiB are charged", first.alive(), second.alive(), b.Used()>>20)
		if used := b.Used(); used > b.size/2 || used < b.size/2-maxWindow {
			t.Errorf("%d bytes are charged, want about %d", used, b.size/2)
		}
		if first.alive() == 100 || second.alive() != 100 || small.alive() != 1 {
			t.Error("the largest holder should have lost streams, and nobody else")
		}
		before := first.alive()
		ask(small, withdrawAfter*2, func() {})
		if first.alive() != before {
			t.Error("streams were withdrawn though half of the memory was free")
		}
	})
	synctest.Test(t, func(t *testing.T) { // who acknowledges keeps what it holds
		b := NewBudget(0)
		slow, dead, small := newHolder(t, b, 1).fill(100), newHolder(t, b, 2).fill(100), newHolder(t, b, 3)
		small.fill(1)
		s := &slow.streams[0].streamCore
		s.send.nxt, s.send.max = 1000, 1000
		ask(small, 2*withdrawAfter, func() {
			slow.slots[1].mu.Lock()
			defer slow.slots[1].mu.Unlock()
			if _, err := slow.slots[1].core.receive(wire.Frame{Type: wire.TypeAck, Stream: s.id, Offset: s.send.una + 1, Payload: make([]byte, 8)}, 0); err != nil {
				t.Fatal(err)
			}
		})
		if slow.alive() != 100 || dead.alive() == 100 {
			t.Errorf("of 100 streams each, %d are left to who acknowledges and %d to who does not", slow.alive(), dead.alive())
		}
	})
	synctest.Test(t, func(t *testing.T) { // with nobody who asks, nothing happens
		b := NewBudget(0)
		alone := newHolder(t, b, 1).fill(100)
		newHolder(t, b, 2)
		ask(alone, 2*withdrawAfter, func() {})
		if alone.alive() != 100 {
			t.Errorf("%d of 100 streams are left", alone.alive())
		}
	})
}

// TestLendCredit: credit that nobody can use without a connection does not keep others from theirs, and is charged again when the peer is
// back.
func TestLendCredit(t *testing.T) {
	b := NewBudget(0)
	key := b.share([16]byte{1})
	f := newFaucet(t, key)
	var all []*streamCore
	for range 100 {
		s := f.open()
		f.pour(s, 14)
		all = append(all, s)
	}
	held := b.Used()
	f.c.lost(f.c.bound) // there never was a connection
	scarce := func() bool { return false }
	f.c.withdraw(f.now, scarce)
	if b.Used() != held {
		t.Errorf("%d bytes are charged at once, were %d", b.Used(), held)
	}
	f.now += withdrawAfter
	f.c.withdraw(f.now, scarce)
	if b.Used() != 0 || key.total() != held {
		t.Errorf("%d bytes are charged to all and %d to the key, want 0 and %d", b.Used(), key.total(), held)
	}
	if key.spare() > (b.size-2*held)/2 {
		t.Errorf("the key may take %d bytes more for what it lent", key.spare())
	}
	f.c.remove(all[0])
	f.c.takeBack()
	if b.Used() != key.total() || b.lent.Load() != 0 || b.Used() >= held || b.Used() < held-maxWindow {
		t.Errorf("%d bytes are charged when the peer is back, %d lent", b.Used(), b.lent.Load())
	}
	for _, s := range all[1:] {
		f.c.remove(s)
	}
	if b.Used() != 0 || key.total() != 0 {
		t.Errorf("%d and %d bytes are left", b.Used(), key.total())
	}
}
