package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

func second(w *world, instance byte) (*recorder, func()) {
	br, _, stop := secondDialer(w, instance)
	return br, stop
}

func secondDialer(w *world, instance byte) (*recorder, *Dialer, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	br2 := newRecorder()
	d2 := NewDialer(DialerConfig{
		Owner: br2, Carriers: testCarriers,
		Auth:   auth.ClientConfig{KeyID: [16]byte{1}, Secret: [32]byte{2}, Pin: auth.Pin(testIdentity().Leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{instance}},
		Dial:   Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) { return w.net.Dial(ctx, "proxy:3010") }),
		Failed: func(int, error, time.Duration) {},
	})
	w.wg.Go(func() { d2.Run(ctx) })
	return br2, d2, cancel
}

// The key is removed while a new bridge waits for the old one's silence.
func TestRemovedKeyGetsASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		var admit atomic.Bool
		admit.Store(true)
		w.host.cfg.Admit = func([16]byte, [32]byte, bool) error {
			if admit.Load() {
				return nil
			}
			return errors.New("the key was removed")
		}
		old := w.px.link
		for _, c := range w.net.Conns() {
			c.BlackHole(memnet.Both)
		}
		w.stop()
		br2, cancel := second(w, 8)
		time.Sleep(time.Second) // in Ping
		admit.Store(false)
		old.Kill(errors.New("the key was removed")) // what Proxy.dropKey does
		time.Sleep(100 * time.Millisecond)
		if n := len(w.host.Links()); n != 0 {
			t.Errorf("%d sessions of a removed key", n)
		}
		br2.mu.Lock()
		t.Log("attached slots of the removed key:", br2.up)
		br2.mu.Unlock()
		cancel()
		w.ln.Close()
		time.Sleep(time.Minute)
		w.host.Close(errors.New("over"))
		w.wg.Wait()
	})
}

type killer struct {
	*recorder
	n atomic.Int64
}

func (k *killer) Attached(l *Link, slot int) {
	if slot == 0 {
		k.n.Add(1)
		time.AfterFunc(10*time.Millisecond, func() { l.Kill(errors.New("protocol violation, say")) })
	}
}

// Sessions that end as soon as they began.
func TestNoBackoffAfterAShortSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		k := &killer{recorder: newRecorder()}
		w.host.cfg.Owner = k
		w.net.Reset()
		w.px.link.Kill(errors.New("x"))
		time.Sleep(time.Minute)
		if n := k.n.Load(); n > 100 {
			t.Errorf("%d sessions in a minute", n)
		}
		w.close()
	})
}

func TestBackoff(t *testing.T) {
	for _, err := range []error{nil, errors.New("x"), auth.ErrRefused, &peerRefusal{status: 5}} {
		for n := range 200 {
			for _, streams := range []int{0, 1} {
				d, most := Backoff(n, err, streams), 90*time.Second
				switch {
				case errors.Is(err, auth.ErrRefused):
				case n == 0:
					most = 75 * time.Millisecond
				case n <= 60 || streams > 0:
					most = 1500 * time.Millisecond
				default:
					most = 15 * time.Second
				}
				if d <= 0 || d > most {
					t.Fatalf("Backoff(%d, %v, %d) = %s, want at most %s", n, err, streams, d, most)
				}
			}
		}
	}
}

// What the peer says of when to come back is obeyed within reason, and who needs an update is in no hurry.
// TestBackoffOfACrowd: bridges that a full proxy sent away come back ever later, and not in step. Those with users do not wait so long.
func TestBackoffOfACrowd(t *testing.T) {
	for _, err := range []error{
		fmt.Errorf("%w (EOF)", auth.ErrClosed), &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNRESET)},
	} {
		for n, want := range map[int]time.Duration{0: 50 * time.Millisecond, 1: 250 * time.Millisecond, 3: time.Second, 5: 4 * time.Second, 100: 4 * time.Second} {
			least, most := time.Hour, time.Duration(0)
			for range 200 {
				d := Backoff(n, err, 0)
				least, most = min(least, d), max(most, d)
			}
			if least < want/2 || most > want*3/2 || most-least < want/2 {
				t.Errorf("after %d attempts with %v: %s to %s, want %s to %s", n, err, least, most, want/2, want*3/2)
			}
			if d := Backoff(n, err, 1); d > 1500*time.Millisecond {
				t.Errorf("after %d attempts with %v users wait %s", n, err, d)
			}
		}
	}
}

func TestBackoffThatThePeerAsksFor(t *testing.T) {
	for asked, want := range map[time.Duration]time.Duration{3 * time.Second: 3 * time.Second, time.Hour: time.Minute} {
		for range 50 {
			if d := Backoff(1, &peerRefusal{status: wire.StatusDraining, comeBack: asked}, 5); d < want/2 || d > want*3/2 {
				t.Errorf("asked for %s: %s, want about %s", asked, d, want)
			}
		}
	}
	for n, least := range map[int]time.Duration{0: 50 * time.Millisecond, 1: 50 * time.Millisecond, 3: 200 * time.Millisecond, 6: 500 * time.Millisecond, 1000: 500 * time.Millisecond} {
		if d := Backoff(n, &peerRefusal{status: wire.StatusDenied, comeBack: time.Millisecond}, 5); d < least {
			t.Errorf("after %d refusals that ask for a millisecond: %s, want %s at least", n, d, least)
		}
	}
	for _, err := range []error{&auth.FeatureError{Missing: 1}, &peerRefusal{status: wire.StatusUnsupported}} {
		if d := Backoff(10, err, 0); d < 30*time.Second {
			t.Errorf("%v: the next attempt comes after %s", err, d)
		}
	}
}

// TestASecondBridgeWhileTheControlConnectionIsAway: the first one is alive as long as any of its connections is.
func TestASecondBridgeWhileTheControlConnectionIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.net.SetLatency(memnet.Both, time.Millisecond)
		old := w.px.session()
		_, cancel := second(w, 8)
		defer cancel()
		for range 600 { // whenever the second one asks, now and then the control connection has just been cut
			time.Sleep(time.Second)
			sl := old.slots[0]
			sl.mu.Lock()
			if sl.cur != nil {
				sl.cur.conn.Conn.Close()
			}
			sl.mu.Unlock()
			if err := old.Err(); err != nil {
				t.Fatalf("the session of a bridge whose carriers are up ended: %v", err)
			}
		}
	})
}

// While the proxy drains, a bridge that was restarted is refused, but first its former self is buried: nobody waits for those streams.
func TestDrainingBuriesTheDead(t *testing.T) {
	for name, dead := range map[string]bool{"dead": true, "alive": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 0)
				w.net.SetLatency(memnet.Both, time.Millisecond)
				old := w.px.link
				var draining atomic.Bool
				w.host.cfg.Draining = draining.Load
				if dead {
					for _, c := range w.net.Conns() {
						c.BlackHole(memnet.Both)
					}
					w.stop()
				}
				draining.Store(true)
				br2, cancel := second(w, 8)
				time.Sleep(oldLinkTimeout + time.Second)
				if err := old.Err(); dead != errors.Is(err, ErrReplaced) {
					t.Errorf("the old session: %v", err)
				}
				if n := len(w.host.Links()); (n == 1) == dead {
					t.Errorf("%d sessions", n)
				}
				br2.mu.Lock()
				if len(br2.up) != 0 {
					t.Errorf("the new bridge was let in: %v", br2.up)
				}
				br2.mu.Unlock()
				cancel()
				w.stop()
				w.ln.Close()
				w.host.Close(errors.New("over"))
				time.Sleep(time.Minute)
				w.wg.Wait()
			})
		})
	}
}

// TestSuccessors attach beside bridges that are stopping, which finish their streams; but not any number of them.
func TestSuccessors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		w.net.SetLatency(memnet.Both, time.Millisecond)
		first := w.px.link
		s, err := first.Open(wire.Open{})
		if err != nil {
			t.Fatal(err)
		}
		at, ends := w.br, []func(){w.stop}
		all := []*Link{first}
		for i := range maxBeside + 1 {
			at.session().GoAway(time.Hour)
			time.Sleep(time.Second)
			br, cancel := second(w, byte(20+i))
			ends = append(ends, cancel)
			time.Sleep(2 * time.Second)
			at = br
			all = append(all, w.host.Link([16]byte{1}))
		}
		if first.Err() == nil {
			t.Error("the oldest link goes on beside too many others")
		}
		for i, l := range all[1:] {
			if err := l.Err(); err != nil || l.Peer() != [16]byte{byte(20 + i)} {
				t.Errorf("successor %d (instance %x): %v", i, l.Peer(), err)
			}
		}
		if n := len(w.host.Links()); n != maxBeside+1 {
			t.Errorf("%d links, want %d", n, maxBeside+1)
		}
		s.Reset(wire.CodeAborted)
		// The newest is not stopping: nobody attaches beside it.
		br, cancel := second(w, 99)
		ends = append(ends, cancel)
		time.Sleep(oldLinkTimeout + time.Second)
		br.mu.Lock()
		if len(br.up) != 0 {
			t.Errorf("a second live bridge was let in: %v", br.up)
		}
		br.mu.Unlock()
		for _, end := range ends {
			end()
		}
		w.ln.Close()
		w.host.Close(errors.New("over"))
		time.Sleep(time.Minute)
		w.wg.Wait()
		if n := len(w.host.beside) + len(w.host.byKey) + len(w.host.bySID); n != 0 {
			t.Errorf("%d links are remembered", n)
		}
	})
}

// TestSecretsOfASession: connections of a session prove an old and a new secret in any order. Once one has proven the new one, another
// bridge that has it is a duplicate; until then it takes over.
func TestSecretsOfASession(t *testing.T) {
	const control, carrier = 0, 1
	type step struct {
		slot   int
		mode   wire.Mode
		secret [32]byte
	}
	for name, c := range map[string]struct {
		steps []step
		want  wire.Status
	}{
		"a late JOIN with the old one": {[]step{{control, wire.ModeNew, testSecret}, {control, wire.ModeResume, nextSecret}, {carrier, wire.ModeJoin, testSecret}}, wire.StatusDuplicate},
		"a JOIN with the new one":      {[]step{{control, wire.ModeNew, testSecret}, {carrier, wire.ModeJoin, nextSecret}}, wire.StatusDuplicate},
		"the old one alone":            {[]step{{control, wire.ModeNew, testSecret}, {carrier, wire.ModeJoin, testSecret}}, wire.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newScene(t)
				defer w.close()
				w.net.SetLatency(memnet.Both, time.Millisecond) // a sign of life is one that came later than the last
				e := &evilBridge{w: w, sid: [16]byte{0x51}}
				for _, s := range c.steps {
					w.prove = func(cc *auth.ClientConfig) { cc.Secret = s.secret }
					if st := e.attach(s.slot, s.mode); st != wire.StatusOK {
						t.Fatalf("slot %d, mode %d: %s", s.slot, s.mode, st)
					}
				}
				w.wg.Go(func() { // the session is alive
					for {
						f, err := e.at[control].hear(wire.TypePing)
						if err != nil {
							return
						}
						e.at[control].say(wire.AppendEmpty(nil, wire.TypePong, 0, f.Offset))
					}
				})
				w.prove = func(cc *auth.ClientConfig) { cc.Secret, cc.Instance = nextSecret, [16]byte{0xef} }
				second := &evilBridge{w: w, sid: [16]byte{0x52}}
				if st := second.attach(control, wire.ModeNew); st != c.want {
					t.Errorf("another bridge with the new secret: %s, want %s", st, c.want)
				}
				for _, v := range []*voice{e.at[control], e.at[carrier], second.at[control]} {
					if v != nil {
						v.conn.Close()
					}
				}
			})
		})
	}
}
