package link

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/memnet"
)

// echo sends a byte through the stream and returns how long it took to arrive.
func echo(t *testing.T, from, to *Stream) time.Duration {
	t.Helper()
	begin := time.Now()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return time.Since(begin)
}

// session is the present one.
func (r *recorder) session() *Link {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.link
}

// resumes counts the slots that were attached again, as the bridge sees it.
func (w *world) resumes() (n uint64) {
	for _, st := range w.br.session().Status() {
		n += st.Resumes
	}
	return n
}

// hole makes a black hole of every connection that exists now; new ones work.
func (w *world) hole(dir memnet.Dir) {
	for _, c := range w.net.Conns() {
		c.BlackHole(dir)
	}
}

// dials counts the connections that are dialled from now on.
func (w *world) dials() *atomic.Int32 {
	n := new(atomic.Int32)
	w.net.OnConn(func(*memnet.Conn) { n.Add(1) })
	return n
}

func TestASpareReplacesASilentConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, dir := range []memnet.Dir{memnet.Both, memnet.ToDialer} {
			w := newWorld(t, 0)
			a, b := w.open()
			echo(t, a, b)
			w.hole(dir)
			if took := echo(t, a, b); took > pingAfter+dialAfter+replaceAfter {
				t.Errorf("direction %d: silence was mended after %s, want at most %s", dir, took, pingAfter+dialAfter+replaceAfter)
			}
			time.Sleep(pingAfter) // the slots that nobody uses take longer
			time.Sleep(time.Second)
			if got := w.resumes(); got != testCarriers+1 {
				t.Errorf("direction %d: %d slots resumed, want each once", dir, got)
			}
			w.close()
		}
	})
}

func TestASilentBridgeIsDeadForTheProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.open()
		w.net.BlackHole(memnet.ToListener)
		begin := time.Now()
		w.px.wait(func() bool { return !w.px.up[0] && !w.px.up[1] && !w.px.up[2] })
		if took := time.Since(begin); took > deadAfter+time.Second {
			t.Errorf("noticed after %s, want %s", took, deadAfter)
		}
		w.net.Heal()
		echo(t, b, a)
	})
}

// TestAUsedConnectionIsAskedSooner: users wait behind it. An outage of 5 seconds is over for them within one more.
func TestAUsedConnectionIsAskedSooner(t *testing.T) {
	for i := range 20 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			a, b := w.open()
			echo(t, a, b)
			time.Sleep(time.Duration(i) * 200 * time.Millisecond)
			echo(t, a, b)
			w.net.Resend = true
			w.net.SetDials("", memnet.DialHang)
			w.hole(memnet.Both)
			healed := time.AfterFunc(5*time.Second, func() { w.net.SetDials("", memnet.DialConnect) })
			defer healed.Stop()
			if took := echo(t, a, b); took > 6*time.Second {
				t.Errorf("used %s before: silence was mended after %s, want at most 6s", time.Duration(i)*200*time.Millisecond, took)
			}
		})
	}
}

// TestHeardIsNotHealed: behind an outage each end's TCP sends again when its own timer says so. What the bridge hears by then
// does not show that it is heard.
func TestHeardIsNotHealed(t *testing.T) {
	for i := range 20 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			w.net.Resend = true
			w.net.SetLatency(memnet.Both, 10*time.Millisecond)
			a, b := w.open()
			echo(t, a, b)
			w.net.SetDials("", memnet.DialHang)
			w.hole(memnet.Both)
			a.Write([]byte("y"))
			old := w.net.Conns()
			time.Sleep(10*time.Second + time.Duration(i)*50*time.Millisecond)
			w.net.SetDials("", memnet.DialConnect)
			for _, c := range old {
				c.Heal(memnet.ToDialer)
			}
			if took := echo(t, b, a); took > 1200*time.Millisecond {
				t.Errorf("the bridge was heard %s after the path was back", took)
			}
		})
	}
}

// TestSilenceWhileAttaching: the path may go silent again at any moment of the way back.
func TestSilenceWhileAttaching(t *testing.T) {
	for after := time.Duration(0); after <= 1200*time.Millisecond; after += 50 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			w.net.SetLatency(memnet.Both, 50*time.Millisecond)
			w.net.Reset()
			time.Sleep(5 * time.Second)
			a, b := w.open()
			echo(t, a, b)
			w.net.Reset()
			time.Sleep(after)
			w.hole(memnet.Both)
			if took := echo(t, a, b); took > 5*time.Second {
				t.Errorf("silent %s after the break: back after %s, although every new connection works", after, took)
			}
		})
	}
}

func TestTheSpareGoesWhenTheOldOneSpeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.open()
		n := w.dials()
		w.hole(memnet.ToDialer)
		w.net.SetLatency(memnet.ToListener, 200*time.Millisecond) // keeps the spares in their handshakes
		for n.Load() == 0 {
			time.Sleep(100 * time.Millisecond)
		}
		w.net.Heal()
		time.Sleep(time.Minute)
		if got := w.resumes(); got != 0 {
			t.Errorf("%d slots were attached again, want none", got)
		}
		if got := len(w.net.Conns()); got != testCarriers+1 {
			t.Errorf("%d connections, want the first %d alone", got, testCarriers+1)
		}
		echo(t, a, b)
	})
}

func TestAMovedHostIsBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.net.SetLatency(memnet.Both, 10*time.Millisecond)
		a, b := w.open()
		echo(t, a, b)
		away := netip.MustParseAddr("10.7.0.1")
		w.net.Move(away)
		w.dialer.Changed(func(at net.Addr) bool { return at.(*net.TCPAddr).AddrPort().Addr() != away })
		if took := echo(t, a, b); took > 250*time.Millisecond {
			t.Errorf("back after %s, want a few round trips of 20ms", took)
		}
		time.Sleep(time.Second)
		if got := w.resumes(); got != testCarriers+1 {
			t.Errorf("%d slots resumed, want each once", got)
		}
	})
}

// A path of a second there and back is slow and not silent.
func TestSpareOfASlowPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.net.SetLatency(memnet.Both, 500*time.Millisecond)
		time.Sleep(time.Minute) // measures the round trip
		n := w.dials()
		for range 10 {
			time.Sleep(time.Minute)
			w.dialer.Changed(nil)
		}
		if n.Load() != 0 || w.resumes() != 0 {
			t.Errorf("%d dialled, %d slots attached again; want none", n.Load(), w.resumes())
		}
	})
}

// TestSlowPath: where a round trip takes longer than the patience with a fast path, slots come back all the same, and new sessions
// get their carriers.
func TestSlowPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.open()
		echo(t, a, b)
		w.net.SetLatency(memnet.Both, 1100*time.Millisecond)
		w.net.Reset()
		if took := echo(t, a, b); took > 12*time.Second {
			t.Errorf("a slot was back after %s, want TCP's, TLS's, the proofs' and ATTACH's round trips of 2.2s", took)
		}
		w.px.session().Kill(errStopped)
		w.br.wait(func() bool { return !w.br.up[0] })
		begin := time.Now()
		w.br.wait(w.br.allUp(testCarriers))
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("a new session was whole after %s", took)
		}
	})
}

func TestAnswerTime(t *testing.T) {
	for _, tt := range []struct {
		handshake time.Duration
		table     int
		want      time.Duration
	}{
		{time.Millisecond, 0, resumeTimeout},
		{3 * time.Second, 100, 6 * time.Second},
		{time.Millisecond, 3 * slowTable, resumeTimeout + 6*time.Second},
		{9 * time.Second, 10 * slowTable, attachTimeout},
	} {
		if got := answerTime(tt.handshake, tt.table); got != tt.want {
			t.Errorf("answerTime(%s, %d) = %s, want %s", tt.handshake, tt.table, got, tt.want)
		}
	}
}

// After a change of the network that spares the local address the connections are asked.
func TestChangeOfTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.net.SetLatency(memnet.Both, 10*time.Millisecond)
		a, b := w.open()
		echo(t, a, b)
		n := w.dials()
		for range 200 {
			w.dialer.Changed(nil)
			time.Sleep(10 * time.Second) // a PING is due at the same time
		}
		for _, sl := range w.br.session().slots {
			sl.mu.Lock()
			if sl.core.glitches != 0 {
				t.Errorf("slot %d counts %d glitches: each of two PINGs may be answered", sl.index, sl.core.glitches)
			}
			sl.mu.Unlock()
		}
		if got := w.resumes(); got != 0 || n.Load() != 0 {
			t.Errorf("%d slots were attached again, %d dialled: connections that answer stay", got, n.Load())
		}
		w.hole(memnet.Both)
		w.dialer.Changed(nil)
		if took := echo(t, a, b); took > replaceAfter+250*time.Millisecond {
			t.Errorf("back after %s, want %s", took, replaceAfter)
		}
	})
}

// Bulk data that had arrived when the network changed is read behind the change, and says nothing about the path.
func TestOldBytesAreNoLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.net.SetLatency(memnet.Both, 50*time.Millisecond)
		a, b := w.open()
		want := noise(1, 1<<20+100<<10)
		go func() { a.Write(want); a.CloseWrite() }()
		io.ReadFull(b, make([]byte, 1<<20))
		w.hole(memnet.Both)
		w.dialer.Changed(nil)
		begin := time.Now()
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, want[1<<20:]) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("it took %s: the connection was not replaced", took)
		}
	})
}

// back is what the return from outages of many lengths took, sorted.
func back(t *testing.T, w *world, lengths []time.Duration, begin, end func(), returned func()) []time.Duration {
	var took []time.Duration
	for _, d := range lengths {
		begin()
		time.Sleep(d)
		end()
		healed := time.Now()
		returned()
		took = append(took, time.Since(healed))
		time.Sleep(5 * time.Second)
	}
	slices.Sort(took)
	t.Logf("back after %s (median), %s (95 of 100), %s (longest)", took[len(took)/2], took[len(took)*95/100], took[len(took)-1])
	return took
}

func outages(n int, from, to time.Duration) (ds []time.Duration) {
	for i := range n {
		ds = append(ds, from+(to-from)*time.Duration(i)/time.Duration(n))
	}
	return ds
}

func TestBackWithinTwoSeconds(t *testing.T) {
	const limit = 2 * time.Second
	for _, c := range []struct {
		name    string
		mode    memnet.DialMode
		lengths []time.Duration
	}{
		{"dials hang", memnet.DialHang, outages(100, 16*time.Second, 100*time.Second)},
		{"dials hang for long", memnet.DialHang, outages(20, 200*time.Second, 280*time.Second)},
		{"dials are refused", memnet.DialRefuse, outages(100, time.Second, 59*time.Second)},
		{"dials are refused for long", memnet.DialRefuse, outages(20, 200*time.Second, 280*time.Second)},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 0)
				defer w.close()
				w.net.Resend = true
				w.net.SetLatency(memnet.Both, 10*time.Millisecond)
				a, b := w.open()
				took := back(t, w, c.lengths, func() {
					w.net.SetDials("", c.mode)
					if c.mode == memnet.DialHang {
						w.hole(memnet.Both)
					} else {
						w.net.Reset()
					}
				}, func() {
					w.net.SetDials("", memnet.DialConnect)
				}, func() {
					echo(t, a, b)
					w.br.wait(w.br.allUp(testCarriers))
				})
				if p95 := took[len(took)*95/100]; p95 > limit {
					t.Errorf("95 of 100 were back within %s, want %s", p95, limit)
				}
				if len(w.br.ended) != 0 {
					t.Errorf("the session ended: %v", w.br.ended)
				}
			})
		})
	}
}

// Without a session the bridge asks again every second for the first minute.
func TestANewSessionWithinThreeSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		took := back(t, w, outages(50, time.Second, 45*time.Second), func() {
			w.net.SetDials("", memnet.DialRefuse)
			w.px.session().Kill(errStopped) // as if the proxy had died
			w.br.wait(func() bool { return !w.br.up[0] })
		}, func() {
			w.net.SetDials("", memnet.DialConnect)
		}, func() {
			w.br.wait(w.br.allUp(testCarriers))
		})
		if last := took[len(took)-1]; last > 3*time.Second {
			t.Errorf("the longest way back took %s, want 3s", last)
		}
	})
}

// live counts the connections that were not closed.
type live struct {
	net.Conn
	once sync.Once
	n    *atomic.Int32
}

func (l *live) Close() error {
	l.once.Do(func() { l.n.Add(-1) })
	return l.Conn.Close()
}

// What answers takes connections and is silent: attempts stay few, and end.
func TestAttemptsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		ln, err := n.Listen("proxy:3010")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		var open, failed atomic.Int32
		d := NewDialer(DialerConfig{
			Owner: newRecorder(), Carriers: testCarriers,
			Dial: Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) {
				c, err := n.Dial(ctx, "proxy:3010")
				if err != nil {
					return nil, err
				}
				open.Add(1)
				return &live{Conn: c, n: &open}, nil
			}),
			Failed: func(int, error, time.Duration) { failed.Add(1) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { d.Run(ctx); close(done) }()
		for i := range 100 {
			time.Sleep(time.Second)
			if i%7 == 0 {
				d.Changed(nil)
			}
			synctest.Wait() // one that gave way to a new one is closed by then
			if got := open.Load(); got < 1 || got > maxAttempts {
				t.Errorf("%d attempts at once, want 1 to %d", got, maxAttempts)
			}
		}
		if failed.Load() == 0 {
			t.Error("no attempt was ever given up")
		}
		cancel()
		<-done
		if got := open.Load(); got != 0 {
			t.Errorf("%d connections were left open", got)
		}
	})
}

// A proxy that is busy answers late: the bridge waits for the connection that it has, and makes no other one beside it.
func TestNoSecondAttemptBesideOneThatIsConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		ln, err := n.Listen("proxy:3010")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		var dials atomic.Int32
		d := NewDialer(DialerConfig{
			Owner: newRecorder(), Carriers: testCarriers,
			Dial: Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) {
				dials.Add(1)
				return n.Dial(ctx, "proxy:3010")
			}),
			Failed: func(int, error, time.Duration) {},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		begin := time.Now()
		go func() { d.Run(ctx); close(done) }()
		for _, c := range []struct {
			at   time.Duration
			want int32
		}{{time.Second, 1}, {busyWait - time.Second, 1}, {busyWait + 500*time.Millisecond, 2}} {
			time.Sleep(c.at - time.Since(begin))
			if got := dials.Load(); got != c.want {
				t.Errorf("%d attempts after %s, want %d", got, c.at, c.want)
			}
		}
		cancel()
		<-done
	})
}

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.net.SetLatency(memnet.Both, 10*time.Millisecond)
		time.Sleep(time.Second) // the first PINGs are answered
		ping := func() (bool, time.Duration) {
			begin := time.Now()
			alive := w.px.session().Ping(3 * time.Second)
			return alive, time.Since(begin)
		}
		if alive, took := ping(); !alive || took != 20*time.Millisecond {
			t.Errorf("Ping = %t after %s; want true after one round trip of 20ms", alive, took)
		}
		time.Sleep(time.Second) // the other slots' answers too
		w.net.BlackHole(memnet.ToListener)
		if alive, took := ping(); alive || took != 3*time.Second {
			t.Errorf("Ping of a silent bridge = %t after %s; want false after 3s", alive, took)
		}
		w.net.Heal()
		time.Sleep(10 * time.Second)
		w.net.SetDials("", memnet.DialHang)
		time.AfterFunc(time.Millisecond, w.net.Reset)
		if alive, took := ping(); alive || took > 10*time.Millisecond {
			t.Errorf("Ping of a connection that breaks = %t after %s; want false at once", alive, took)
		}
	})
}

// TestAnAnswerWhileItIsAsked: a connection whose answer arrives before its question is out of hand is alive, however long it was silent
// before: a check that asks late must not go by what was heard until then. Whether the answer is so quick is up to the scheduler, so it
// is tried often.
func TestAnAnswerWhileItIsAsked(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldOn(t, 0, 0, ln, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", ln.Addr().String())
	})
	defer w.close()
	sl := w.br.session().slots[0]
	quick := 0
	for range 2000 {
		sl.mu.Lock()
		c := sl.cur
		if c == nil {
			t.Fatal("the connection was given up though it had answered")
		}
		c.dismissWriter()
		if c.writer == absent {
			const silence = 25 * time.Second
			since := sl.link.now() - silence
			c.lastRead.Store(int64(since))
			c.streamsAt, c.askedAt, c.pingedAt, c.sentAt, c.suspectSince = since, since, since, since, 0
			c.checkLocked()
			if time.Duration(c.lastRead.Load()) > since {
				quick++
			}
			if sl.cur != c {
				t.Errorf("the connection was given up though it had answered (%d answers were so quick)", quick)
			}
		}
		failed := t.Failed()
		sl.mu.Unlock()
		if failed {
			return
		}
		runtime.Gosched()
	}
	t.Logf("%d answers were quick", quick)
}
