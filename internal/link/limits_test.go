package link

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

type sink struct {
	ended func(wire.EndKind, wire.Code)
	s     *Stream
	wg    sync.WaitGroup
	short atomic.Bool
}

func (k *sink) Receive(b [][]byte) int { return 0 }
func (k *sink) Behind() bool           { return false }
func (k *sink) Backlogged() {
	k.wg.Go(func() {
		for b := k.s.Backlog(); b != nil; b = k.s.Backlog() {
			time.Sleep(300 * time.Microsecond)
			k.s.Consumed(len(b))
		}
	})
}
func (k *sink) Ended(kind wire.EndKind, c wire.Code) { k.ended(kind, c) }
func (k *sink) Abort(wire.Code)                      {}

// A receiver is told of an end while the next one comes: the kind and the code that it is told belong together.
func TestEndedCodeRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		both := 0
		for i := range 200 {
			a, b := w.open()
			done := make(chan struct{})
			told := map[wire.EndKind]wire.Code{}
			k := &sink{s: a, ended: func(kind wire.EndKind, code wire.Code) {
				if _, again := told[kind]; again {
					t.Errorf("%s was told twice", kind)
				}
				told[kind] = code
				time.Sleep(time.Millisecond) // a receiver's system calls
				if kind == wire.RST {
					close(done)
				}
			}}
			a.SetReceiver(k)
			b.Write([]byte("x"))
			b.CloseWrite()
			time.Sleep(time.Duration(i%40) * 50 * time.Microsecond)
			b.Reset(wire.CodeRefused)
			<-done
			k.wg.Wait()
			fin, first := told[wire.FIN]
			if first {
				both++
			}
			if told[wire.RST] != wire.CodeRefused || fin != wire.CodeNone {
				t.Fatalf("told %v; want FIN, if it was told, with code %d, and RST with code %d", told, wire.CodeNone, wire.CodeRefused)
			}
		}
		if both == 0 || both == 200 {
			t.Errorf("FIN was told %d times of 200; want some RSTs that overtook it", both)
		}
	})
}

// What peers make a sender hold is in the budget too.
func TestSendSideIsInTheBudget(t *testing.T) {
	c := newCore(false, 1, NewBudget(1<<20).only())
	held := 0
	for range 20 {
		s := c.open(wire.Open{})
		s.openSent = true
		if _, err := c.receive(wire.Frame{Type: wire.TypeAck, Stream: s.id, Payload: []byte{0x10, 0, 0, 0, 0, 0, 0, 0}}, time.Second); err != nil {
			t.Fatal(err)
		}
		for n := s.send.room(c.budget); n > 0; n = s.send.room(c.budget) {
			s.send.q.write(make([]byte, min(n, 1<<20)))
			c.touch(s)
		}
		held += int(s.send.q.end)
	}
	if held > 2<<20 {
		t.Errorf("a peer made this process hold %d MiB of unacknowledged bytes, budget 1 MiB, charged %d", held>>20, c.budget.pool.Used())
	}
}

// PONGs that nobody asked for are counted.
func TestPongFlood(t *testing.T) {
	w := newWorld(t, 0)
	defer w.close()
	l := w.px.link
	c := l.slots[0].cur
	l.slots[0].mu.Lock()
	defer l.slots[0].mu.Unlock()
	for i := 0; i < 1_000_000; i++ {
		if err := c.applyLink(wire.Frame{Type: wire.TypePong, Offset: 1}); err != nil {
			t.Logf("closed after %d", i)
			return
		}
	}
	t.Error("a million unsolicited PONGs were taken")
}

// A peer that goes on writing after Close gets a reset.
func TestCloseThenPeerWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.open()
		b.Close()
		time.Sleep(time.Second)
		var err error
		n := 0
		for range 1000 {
			var k int
			k, err = a.Write(make([]byte, 10_000))
			n += k
			if err != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err == nil {
			t.Errorf("wrote %d bytes to a closed stream and never got a reset; streams left at the bridge: %d", n, w.br.link.Status()[1].Streams+w.br.link.Status()[2].Streams)
		}
	})
}

// The proxy stops while a new bridge waits for the old one's silence.
func TestCloseDuringTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		for _, c := range w.net.Conns() {
			c.BlackHole(memnet.Both) // the old bridge vanished
		}
		w.stop()
		ctx, cancel := context.WithCancel(context.Background())
		br2 := newRecorder()
		d2 := NewDialer(DialerConfig{
			Owner: br2, Carriers: testCarriers,
			Auth:   auth.ClientConfig{KeyID: [16]byte{1}, Secret: [32]byte{2}, Pin: auth.Pin(testIdentity().Leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{8}},
			Dial:   Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) { return w.net.Dial(ctx, "proxy:3010") }),
			Failed: func(int, error, time.Duration) {},
		})
		w.wg.Go(func() { d2.Run(ctx) })
		time.Sleep(time.Second) // find is in Ping
		closed := make(chan struct{})
		go func() {
			w.ln.Close()
			w.host.Close(errors.New("test over"))
			close(closed)
		}()
		time.Sleep(30 * time.Second)
		select {
		case <-closed:
			if n := len(w.host.Links()); n != 0 {
				t.Errorf("Host.Close returned, %d links live on 30 s later", n)
			}
		default:
			t.Errorf("Host.Close hangs; links %d", len(w.host.Links()))
		}
		cancel()
		w.wg.Wait()
		<-closed
	})
}

// What streams that fell idle keep leaves a busy one a window.
func TestIdleChargeCore(t *testing.T) {
	c := newCore(false, 1, NewBudget(0).only())
	c.rtt = 50 * time.Millisecond
	now := time.Second
	p := make([]byte, ChunkSize)
	for range 20 {
		s := c.open(wire.Open{})
		s.openSent = true
		for s.recv.nxt < 64<<20 { // 640 MB/s, then idle
			if s.recv.nxt+ChunkSize > s.recv.granted {
				t.Fatal("no credit")
			}
			ev, err := c.receive(wire.Frame{Type: wire.TypeData, Stream: s.id, Offset: s.recv.nxt, Payload: p}, now)
			if err != nil {
				t.Fatal(err)
			}
			c.consume(ev.stream, len(p), now)
			now += 25 * time.Microsecond
		}
	}
	now += time.Hour
	t.Logf("idle for an hour: %d of %d MiB charged", c.budget.pool.Used()>>20, c.budget.pool.size>>20)
	s := c.open(wire.Open{})
	s.openSent = true
	for s.recv.nxt < 64<<20 && s.recv.nxt+ChunkSize <= s.recv.granted {
		ev, _ := c.receive(wire.Frame{Type: wire.TypeData, Stream: s.id, Offset: s.recv.nxt, Payload: p}, now)
		c.consume(ev.stream, len(p), now)
		now += 25 * time.Microsecond
	}
	if s.recv.win < 1<<20 {
		t.Errorf("the only busy stream gets a window of %d KiB", s.recv.win>>10)
	}
}
