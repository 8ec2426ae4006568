package route

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// bridges is a proxy's Host on a network in memory; dial connects a bridge to it.
type bridges struct {
	t    *testing.T
	net  *memnet.Net
	host *link.Host
	up   chan *link.Link // a link, whenever its carrier attached at the proxy
	down chan *link.Link
	stop context.CancelFunc
	wg   sync.WaitGroup
}

type owner struct{ *bridges }

func (owner) Opened(*link.Stream)                  {}
func (owner) Message(*link.Link, wire.Frame) error { return nil }
func (owner) GoingAway(*link.Link, time.Duration)  {}
func (owner) Ended(*link.Link, error)              {}
func (o owner) Attached(l *link.Link, slot int) {
	if slot == 1 {
		o.up <- l
	}
}
func (o owner) Detached(l *link.Link, slot int, _ error) {
	if slot == 1 {
		o.down <- l
	}
}

var identity = sync.OnceValue(func() tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, _ := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

const proxyAddr = "proxy:3010"

// listen starts the proxy's side. The test ends with stop and wait.
func listen(t *testing.T) *bridges {
	b := &bridges{t: t, net: &memnet.Net{}, up: make(chan *link.Link, 16), down: make(chan *link.Link, 16)}
	sc := &auth.ServerConfig{Identity: identity(), Instance: [16]byte{9}, Lookup: func([16]byte) ([32]byte, bool) { return [32]byte{2}, true }}
	b.host = link.NewHost(link.HostConfig{
		Owner: owner{b}, Log: slog.New(slog.DiscardHandler), Instance: sc.Instance, Carriers: 1,
		Admit: func([16]byte, [32]byte) bool { return true }, Draining: func() bool { return false },
	})
	ln, err := b.net.Listen(proxyAddr)
	if err != nil {
		t.Fatal(err)
	}
	tc := sc.TLS()
	b.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() {
				if ac, err := auth.Server(c, tc, sc); err == nil {
					b.host.Serve(ac)
				}
			})
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = func() {
		cancel()
		ln.Close()
		b.host.Close(errors.New("test over"))
		b.wg.Wait()
	}
	b.dial(ctx)
	return b
}

// none is the bridge's Owner.
type none struct{ owner }

func (none) Attached(*link.Link, int)        {}
func (none) Detached(*link.Link, int, error) {}

func (b *bridges) dial(ctx context.Context) {
	d := link.NewDialer(link.DialerConfig{
		Owner: none{}, Log: slog.New(slog.DiscardHandler), Carriers: 1,
		Auth:    auth.ClientConfig{KeyID: [16]byte{1}, Secret: [32]byte{2}, Pin: auth.Pin(identity().Leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{7}},
		Dial:    link.Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) { return b.net.Dial(ctx, proxyAddr) }),
		Failed:  func(int, error, time.Duration) {},
		Backoff: func(int, error, int) time.Duration { return 100 * time.Millisecond },
	})
	b.wg.Go(func() { d.Run(ctx) })
}

// cut takes the bridge away until join.
func (b *bridges) cut() {
	b.net.SetDials(proxyAddr, memnet.DialRefuse)
	b.net.Reset()
	<-b.down
}

func (b *bridges) join() {
	b.net.SetDials(proxyAddr, memnet.DialConnect)
	<-b.up
}

func public(t *testing.T, s string) grammar.Public {
	t.Helper()
	p, err := grammar.ParsePublic(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var keyA, keyB = [16]byte{1}, [16]byte{2}

func TestClaim(t *testing.T) {
	tab := NewTable()
	one, two := &link.Link{}, &link.Link{}
	pub := public(t, "tcp/9000")
	d, isNew, err := tab.Claim(pub, keyA, "nas", one, 3, "127.0.0.1:80")
	if err != nil || !isNew || d.Public != pub || d.Key != keyA || d.KeyName != "nas" {
		t.Fatalf("Claim = %+v, %t, %v", d, isNew, err)
	}
	if l, id, target := d.Link(); l != one || id != 3 || target != "127.0.0.1:80" {
		t.Errorf("Link = %p, %d, %q", l, id, target)
	}

	_, _, err = tab.Claim(pub, keyB, "desk", two, 0, "x")
	var taken *TakenError
	if !errors.As(err, &taken) || taken.By != "nas" || taken.Public != pub || !strings.Contains(err.Error(), `tcp/9000 is held by key "nas"`) {
		t.Errorf("Claim by another key = %v, want a TakenError that names the holder", err)
	}
	if l, _, _ := d.Link(); l != one {
		t.Error("a claim that was refused changed the destination")
	}

	again, isNew, err := tab.Claim(pub, keyA, "nas", two, 5, "unix:/s")
	if again != d || isNew || err != nil {
		t.Errorf("Claim by the next link of the key = %p, %t, %v; want %p, false, nil", again, isNew, err, d)
	}
	if l, id, target := d.Link(); l != two || id != 5 || target != "unix:/s" {
		t.Errorf("Link = %p, %d, %q; want the new link's", l, id, target)
	}

	tab.Remove(d)
	if _, isNew, err := tab.Claim(pub, keyB, "desk", two, 0, "x"); !isNew || err != nil {
		t.Errorf("Claim after Remove = %t, %v; want a new destination", isNew, err)
	}
	tab.Remove(d) // the old one: not the present holder's
	if _, _, err := tab.Claim(pub, keyA, "nas", one, 0, "x"); !errors.As(err, &taken) {
		t.Errorf("Claim = %v; removing an old destination took the new one out", err)
	}
}

// answer is what Wait returned.
type answer struct {
	l      *link.Link
	id     uint32
	target string
	err    error
	took   time.Duration
}

func wait(ctx context.Context, d *Destination) <-chan answer {
	c := make(chan answer, 1)
	begin := time.Now()
	go func() {
		l, id, target, err := d.wait(ctx, func() bool { return false })
		c <- answer{l, id, target, err, time.Since(begin)}
	}()
	return c
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := listen(t)
		defer b.stop()
		l := <-b.up
		d, _, err := NewTable().Claim(public(t, "9000"), keyA, "nas", l, 7, "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		if a := <-wait(t.Context(), d); a.l != l || a.id != 7 || a.target != "127.0.0.1:80" || a.err != nil || a.took != 0 {
			t.Errorf("Wait while the bridge is there = %+v", a)
		}

		b.cut()
		late := wait(t.Context(), d)
		if a := <-late; !errors.Is(a.err, ErrAway) || a.took != Hold || a.l != nil {
			t.Errorf("Wait while it is away = %+v; want ErrAway after %s", a, Hold)
		}

		held := wait(t.Context(), d)
		time.Sleep(Hold - time.Second)
		d.Changed() // of something else: the bridge is still away
		synctest.Wait()
		select {
		case a := <-held:
			t.Fatalf("Wait = %+v; the bridge is not back", a)
		default:
		}
		b.join()
		d.Changed()
		if a := <-held; a.l != l || a.err != nil || a.took >= Hold+time.Second {
			t.Errorf("Wait after its return = %+v", a)
		}

		b.cut()
		ctx, cancel := context.WithCancel(t.Context())
		gone := wait(ctx, d)
		synctest.Wait()
		cancel()
		if a := <-gone; !errors.Is(a.err, context.Canceled) {
			t.Errorf("Wait = %+v, want context.Canceled", a)
		}
	})
}

// TestHoldIsFromTheBeginning: changes on the way do not lengthen it.
func TestHoldIsFromTheBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := listen(t)
		defer b.stop()
		d, _, _ := NewTable().Claim(public(t, "9000"), keyA, "nas", <-b.up, 0, "x")
		b.cut()
		held := wait(t.Context(), d)
		for range 5 {
			time.Sleep(Hold/5 - time.Millisecond)
			d.Changed()
		}
		if a := <-held; !errors.Is(a.err, ErrAway) || a.took != Hold {
			t.Errorf("Wait = %+v; want ErrAway after %s", a, Hold)
		}
	})
}

// TestTakeover: whoever waits for the old link gets the new one.
func TestTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := listen(t)
		defer b.stop()
		old := <-b.up
		tab := NewTable()
		d, _, _ := tab.Claim(public(t, "9000"), keyA, "nas", old, 0, "old")
		old.Kill(errors.New("over")) // its bridge comes back with a new session
		held := wait(t.Context(), d)
		next := <-b.up
		if next == old {
			t.Fatal("the session did not end")
		}
		synctest.Wait()
		if _, isNew, err := tab.Claim(public(t, "9000"), keyA, "nas", next, 4, "new"); isNew || err != nil {
			t.Fatalf("Claim = %t, %v", isNew, err)
		}
		if a := <-held; a.l != next || a.id != 4 || a.target != "new" || a.err != nil {
			t.Errorf("Wait = %+v, want the new link", a)
		}
	})
}

// TestEndBetween: a session that ends after it was found and before a stream is opened costs nobody a connection.
func TestEndBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := listen(t)
		defer b.stop()
		tab := NewTable()
		d, _, _ := tab.Claim(public(t, "9000"), keyA, "nas", <-b.up, 3, "old")
		tries := 0
		s, target, err := d.open(t.Context(), wire.Open{}, nil, func(l *link.Link, o wire.Open) (*link.Stream, error) {
			if tries++; tries == 1 {
				l.Kill(link.ErrReplaced)
				go func() { tab.Claim(public(t, "9000"), keyA, "nas", <-b.up, 4, "new") }()
			}
			s, err := l.Open(o)
			if err == nil && o.Service != 4 {
				t.Errorf("opened as service %d, the new session's is 4", o.Service)
			}
			return s, err
		})
		if s == nil || target != "new" || err != nil || tries != 2 {
			t.Errorf("%d tries, stream %v to %q, %v; want the second to succeed", tries, s, target, err)
		}
	})
}

// TestLeaving: who gives up while the bridge is away gives the place to somebody else.
func TestLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := listen(t)
		defer b.stop()
		d, _, _ := NewTable().Claim(public(t, "9000"), keyA, "nas", <-b.up, 0, "x")
		b.cut()
		begin := time.Now()
		left := func() bool { return time.Since(begin) > 3*time.Second/2 }
		if _, _, err := d.Open(t.Context(), wire.Open{}, left); !errors.Is(err, ErrLeft) || time.Since(begin) != 2*lookEvery {
			t.Errorf("Open = %v after %s; want ErrLeft at the second look", err, time.Since(begin))
		}
		if d.held != 0 {
			t.Errorf("%d are held, want none", d.held)
		}
	})
}

func TestHeldAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := listen(t)
		defer b.stop()
		l := <-b.up
		d, _, _ := NewTable().Claim(public(t, "9000"), keyA, "nas", l, 0, "x")
		b.cut()
		for round := range 2 { // the places come free again
			var held []<-chan answer
			for range MaxHeld {
				held = append(held, wait(t.Context(), d))
			}
			synctest.Wait()
			if a := <-wait(t.Context(), d); !errors.Is(a.err, ErrAway) || a.took != 0 || !strings.Contains(a.err.Error(), "256 clients wait") {
				t.Errorf("round %d: one more = %+v; want ErrAway at once", round, a)
			}
			if round == 0 {
				for _, h := range held {
					if a := <-h; !errors.Is(a.err, ErrAway) || a.took != Hold {
						t.Fatalf("Wait = %+v; want ErrAway after %s", a, Hold)
					}
				}
				continue
			}
			b.join()
			d.Changed()
			for _, h := range held {
				if a := <-h; a.l != l || a.err != nil {
					t.Fatalf("Wait = %+v, want the link", a)
				}
			}
		}
	})
}

func TestRemoveWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := listen(t)
		defer b.stop()
		tab := NewTable()
		d, _, _ := tab.Claim(public(t, "9000"), keyA, "nas", <-b.up, 0, "x")
		b.cut()
		held := wait(t.Context(), d)
		synctest.Wait()
		tab.Remove(d)
		if a := <-held; !errors.Is(a.err, ErrRemoved) || a.took != 0 {
			t.Errorf("Wait = %+v; want ErrRemoved at once", a)
		}
		b.join()
		if a := <-wait(t.Context(), d); !errors.Is(a.err, ErrRemoved) {
			t.Errorf("Wait = %+v; want ErrRemoved, be the bridge there or not", a)
		}
	})
}

// TestNothingIsOpenedBehindRemove: who was on the way when a destination is removed is through before Remove returns, or is told.
func TestNothingIsOpenedBehindRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := listen(t)
		defer b.stop()
		l := <-b.up
		for range 50 {
			tab := NewTable()
			d, _, err := tab.Claim(public(t, "9000"), keyA, "nas", l, 7, "x")
			if err != nil {
				t.Fatal(err)
			}
			var removed atomic.Bool
			var users sync.WaitGroup
			for range 8 {
				users.Go(func() {
					s, _, err := d.open(t.Context(), wire.Open{}, nil, func(l *link.Link, o wire.Open) (*link.Stream, error) {
						if removed.Load() {
							t.Error("a stream is opened to what was removed")
						}
						return l.Open(o)
					})
					if err != nil && !errors.Is(err, ErrRemoved) {
						t.Errorf("Open = %v", err)
					}
					if s != nil {
						s.Reset(wire.CodeAborted)
					}
				})
			}
			tab.Remove(d)
			removed.Store(true)
			users.Wait()
		}
	})
}
