package link

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// nextProxy serves another process of the proxy at the world's address, whose port the first one has freed.
func nextProxy(w *world, instance byte) (*recorder, *Host) {
	w.t.Helper()
	w.ln.Close()
	synctest.Wait()
	ln, err := w.net.Listen("proxy:3010")
	if err != nil {
		w.t.Fatal(err)
	}
	w.ln = ln
	px := newRecorder()
	cfg := &auth.ServerConfig{Identity: testIdentity(), Instance: [16]byte{instance}, Lookup: func([16]byte) ([32]byte, bool) { return [32]byte{2}, true }}
	h := NewHost(HostConfig{
		Owner: px, Instance: cfg.Instance, Carriers: testCarriers,
		Admit: func([16]byte, [32]byte, bool) error { return nil }, Draining: func() bool { return false },
	})
	tc := cfg.TLS()
	w.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				if ac, err := auth.Server(c, tc, cfg); err == nil {
					h.Serve(ac)
				}
			})
		}
	})
	return px, h
}

// stopProxy does what a proxy that stops does with its links.
func stopProxy(h *Host) {
	for _, l := range h.Links() {
		l.GoAway(time.Minute)
		l.StopResuming()
	}
}

// exchangeBytes moves bytes in both directions of a stream.
func exchangeBytes(t *testing.T, px, br *Stream) {
	t.Helper()
	for _, s := range [][2]*Stream{{px, br}, {br, px}} {
		if _, err := s[0].Write([]byte("still")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(s[1], b); err != nil || string(b) != "still" {
			t.Fatalf("read %q, %v", b, err)
		}
	}
}

// TestProxyIsSucceeded: the bridge begins a session with the process that took the proxy's place, beside the old one, whose
// streams go on until they end.
func TestProxyIsSucceeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		px, br := w.open()
		before := w.px.session()
		old := w.host
		stopProxy(old)
		successor, h := nextProxy(w, 10)
		time.Sleep(2 * time.Second)
		successor.mu.Lock()
		now := successor.link
		successor.mu.Unlock()
		if now == nil || !now.Up() {
			t.Fatal("there is no session with the successor after 2 s")
		}
		exchangeBytes(t, px, br)
		s, err := now.Open(wire.Open{})
		if err != nil {
			t.Fatal(err)
		}
		exchangeBytes(t, s, <-w.br.streams)
		if err := before.Err(); err != nil {
			t.Errorf("the old session ended: %v", err)
		}
		old.Close(errors.New("the old process has ended"))
		time.Sleep(time.Second)
		if err := now.Err(); err != nil {
			t.Errorf("the end of the old process ended the session with the new one: %v", err)
		}
		if _, err := br.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Errorf("a stream of the process that has ended: %v, want a reset", err)
		}
		w.close()
		h.Close(errors.New("test over"))
		w.wg.Wait()
	})
}

// TestProxyAlwaysStopping: a proxy that says in each session at once that it stops is not dialled again without a pause.
func TestProxyAlwaysStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		seen := make(map[*Link]bool)
		for begin := time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(time.Millisecond) {
			for _, l := range w.host.Links() {
				if !seen[l] {
					seen[l] = true
					l.GoAway(time.Minute)
				}
			}
		}
		if n := len(seen); n < 5 || n > 60 {
			t.Errorf("%d sessions in 20 s; want some, and a pause between them", n)
		}
		w.close()
		w.host.Close(errors.New("test over"))
		w.wg.Wait()
	})
}

// TestProxySaysWhenToComeBack: the bridge begins its session with the successor then, or a minute later at most, and what it has goes
// on meanwhile. When its network changes it waits no longer.
func TestProxySaysWhenToComeBack(t *testing.T) {
	for _, asked := range []struct{ comeBack, want time.Duration }{{3 * time.Second, 3 * time.Second}, {time.Hour, time.Minute}, {time.Hour, 10 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0)
			px, br := w.open()
			old := w.host
			for _, l := range old.Links() {
				l.GoAwayFor(time.Hour, asked.comeBack)
				l.StopResuming()
			}
			begin := time.Now()
			successor, h := nextProxy(w, 10)
			if asked.want < min(asked.comeBack, mostComeBack) {
				time.AfterFunc(asked.want, func() { w.dialer.Changed(nil) })
			}
			time.Sleep(asked.want - time.Millisecond)
			synctest.Wait()
			session := func() *Link {
				successor.mu.Lock()
				defer successor.mu.Unlock()
				return successor.link
			}
			if session() != nil {
				t.Errorf("asked to come back after %s the bridge was there %s later", asked.comeBack, time.Since(begin))
			}
			exchangeBytes(t, px, br)
			time.Sleep(time.Second)
			if session() == nil {
				t.Errorf("asked to come back after %s the bridge was not there %s later", asked.comeBack, time.Since(begin))
			}
			exchangeBytes(t, px, br)
			w.close()
			old.Close(errors.New("test over"))
			h.Close(errors.New("test over"))
			w.wg.Wait()
		})
	}
}

// TestSlotOfAStoppingProxyBreaks: no connection comes back to a proxy that freed its port. What was on the one that broke is
// reset at both ends at once, and the rest goes on.
func TestSlotOfAStoppingProxyBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		var px, br [2]*Stream
		for i := range px {
			px[i], br[i] = w.open()
		}
		if px[0].slot == px[1].slot {
			t.Fatal("both streams are on one carrier")
		}
		old := w.host
		stopProxy(old)
		_, h := nextProxy(w, 10)
		time.Sleep(time.Second)
		px[0].slot.mu.Lock()
		c := px[0].slot.cur.conn.Conn
		px[0].slot.mu.Unlock()
		c.Close()
		time.Sleep(2 * time.Second)
		for _, s := range []*Stream{px[0], br[0]} {
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
				t.Errorf("a stream of the connection that broke: %v, want a reset", err)
			}
		}
		exchangeBytes(t, px[1], br[1])
		w.close()
		old.Close(errors.New("test over"))
		h.Close(errors.New("test over"))
		w.wg.Wait()
	})
}

// TestProxyIsReplacedWithoutAWord: the bridge finds another process at the address when a connection breaks, before it heard a
// GOAWAY. What has a connection to the old one goes on.
func TestProxyIsReplacedWithoutAWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		px, br := w.open()
		old := w.host
		successor, h := nextProxy(w, 10)
		control := w.px.session().slots[0]
		control.mu.Lock()
		c := control.cur.conn.Conn
		control.mu.Unlock()
		c.Close()
		time.Sleep(2 * time.Second)
		successor.mu.Lock()
		now := successor.link
		successor.mu.Unlock()
		if now == nil || !now.Up() {
			t.Error("there is no session with the successor after 2 s")
		}
		exchangeBytes(t, px, br)
		w.close()
		old.Close(errors.New("test over"))
		h.Close(errors.New("test over"))
		w.wg.Wait()
	})
}

// TestManySuccessors: processes that follow each other quickly leave a bounded number of sessions behind.
func TestManySuccessors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		var stop []func()
		leaving, last := w.br, w.dialer
		for i := range maxBeside + 3 {
			leaving.mu.Lock()
			l := leaving.link
			leaving.mu.Unlock()
			last.Last()
			l.GoAway(time.Hour)
			time.Sleep(time.Second)
			br, d, cancel := secondDialer(w, byte(20+i))
			stop = append(stop, cancel)
			br.wait(br.allUp(testCarriers))
			leaving, last = br, d
		}
		time.Sleep(time.Second)
		if n := len(w.host.Links()); n != maxBeside+1 {
			t.Errorf("%d sessions of one key, want the present one and %d beside it", n, maxBeside)
		}
		for _, cancel := range stop {
			cancel()
		}
		w.close()
	})
}

// TestGoAwayWithNoTimeLeft: nobody is sent to a bridge that takes nobody any more, and it knows whom it was sent before.
func TestGoAwayWithNoTimeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.net.SetLatency(memnet.Both, 50*time.Millisecond)
		l := w.px.session()
		w.br.mu.Lock()
		mine := w.br.link
		w.br.mu.Unlock()
		mine.GoAway(time.Minute)
		time.Sleep(time.Second)
		if !l.Leaving() || !l.Connected() {
			t.Fatalf("leaving %t, connected %t; want a link that is leaving and serves", l.Leaving(), l.Connected())
		}
		for n := 0; ; n++ { // the proxy opens streams until it hears of it
			if n == 10 {
				mine.GoAway(0)
				go func() { mine.Settle(time.Minute); w.br.streams <- nil }()
			}
			s, err := l.Open(wire.Open{})
			if errors.Is(err, ErrEnded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			s.Write([]byte{byte(n)})
			time.Sleep(5 * time.Millisecond)
		}
		if l.Connected() {
			t.Error("the link says that it takes streams")
		}
		here, settled := 0, false
		time.Sleep(time.Minute)
		for len(w.br.streams) > 0 {
			s := <-w.br.streams
			if settled = settled || s == nil; s == nil {
				continue
			}
			if here++; settled {
				t.Error("a stream came after Settle had returned")
			}
		}
		if !settled {
			t.Error("Settle did not return")
		}
		if here == 0 {
			t.Error("no stream came")
		}
	})
}

// TestLast: a Dialer that is to begin no more sessions ends with the one that it has.
func TestLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.dialer.Last()
		px, br := w.open()
		w.net.Reset() // it goes on to resume
		time.Sleep(5 * time.Second)
		exchangeBytes(t, px, br)
		w.px.session().Kill(errors.New("over"))
		time.Sleep(time.Minute)
		if n := len(w.host.Links()); n != 0 {
			t.Errorf("%d sessions, want none after the last one", n)
		}
		done := make(chan struct{})
		d := NewDialer(DialerConfig{Owner: newRecorder(), Dial: Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}), Failed: func(int, error, time.Duration) {}})
		go func() { d.Run(t.Context()); close(done) }()
		synctest.Wait()
		d.Last() // while it dials
		<-done
	})
}
