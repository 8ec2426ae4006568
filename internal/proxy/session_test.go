package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// TestOfferedLost: the port that the proxy offers stops with the right to it. Who is connected finishes.
func TestOfferedLost(t *testing.T) {
	addr, pub := free(t)
	_, otherPub := free(t)
	offer, err := grammar.ParsePublic(pub)
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{Settings: Settings{Keys: []Key{key(t, "nas", pub)}, Offer: []grammar.Public{offer}}})
	b := w.bridge(key(t, "nas"), how{instance: 1}, "offered")
	u, s := w.pair(b, addr)
	w.setKeys(key(t, "nas", otherPub))
	if !refused(addr) {
		t.Error("the port is open, though the key may not have it")
	}
	b.wantClaim(0, wire.ClaimDenied, "denied: the policy of key")
	talk(t, u, s, "still here")
	w.setKeys(key(t, "nas", pub))
	b.wantClaim(0, wire.ClaimUp)
	w.pair(b, addr)
	talk(t, s, u, "and back")
}

// TestUnclaimedInTurn: an UNCLAIM, of which one bridge may send very many, is answered in a turn.
func TestUnclaimedInTurn(t *testing.T) {
	var n atomic.Int64
	takeTurn = func(f func()) { n.Add(1); link.InTurn(f) }
	t.Cleanup(func() { takeTurn = link.InTurn })
	_, pub := free(t)
	nas := key(t, "nas", pub)
	w := start(t, Config{Settings: Settings{Keys: []Key{nas}}})
	b := w.bridge(nas, how{instance: 1}, pub)
	b.wantClaim(0, wire.ClaimUp)
	before := n.Load()
	b.unclaim(0)
	if got := n.Load() - before; got != 1 {
		t.Errorf("%d turns for the answer, want 1", got)
	}
}

// TestApply: what is equal stays as it is, and every setting can change.
func TestApply(t *testing.T) {
	addr, pub := free(t)
	otherAddr, otherPub := free(t)
	k, other := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k, other}}})
	// A probe that comes late, when the port is another claim's, is a user.
	b, o := w.bridge(k, how{instance: 1}, pub), w.bridge(other, how{instance: 2, silent: true}, otherPub)
	u, s := w.pair(b, addr)
	ou, os := w.pair(o, otherAddr)
	rt := w.route(pub)
	answers := func() int { b.mu.Lock(); defer b.mu.Unlock(); return b.answers }
	before := answers()
	for i := range 20 {
		other := other
		other.Name = fmt.Sprint("desk", i)
		if i%2 == 0 {
			other.Allow = nil
		}
		set := Settings{Keys: []Key{k, other}, Drain: time.Duration(i) * time.Second, ResumeWithin: time.Minute}
		if err := w.p.Apply(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 && !refused(otherAddr) {
			t.Errorf("the other key's port is open after Apply in round %d", i)
		}
		o.wantClaim(0, map[bool]wire.ClaimStatus{true: wire.ClaimDenied, false: wire.ClaimUp}[i%2 == 0])
	}
	if w.route(pub) != rt || answers() != before {
		t.Errorf("what did not change was touched: %d answers more", answers()-before)
	}
	talk(t, u, s, "here")
	talk(t, ou, os, "removed services finish")
	if st := w.p.Status(); len(st.Pairs) != 2 || len(st.Links) != 2 || st.Links[0].Key != "desk19" {
		t.Errorf("status %+v", st)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.stop()
	<-w.done
	if err := w.p.Apply(ctx, Settings{}); err != nil {
		t.Errorf("Apply after the end = %v", err)
	}
}

// TestSlowListen: a port that takes long to open holds up nobody, not even another claim of the same bridge.
func TestSlowListen(t *testing.T) {
	slowAddr, slowPub := free(t)
	addr, pub := free(t)
	otherAddr, otherPub := free(t)
	k, other := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535")
	w := prepare(t, Config{Settings: Settings{Keys: []Key{k, other}}})
	opened := make(chan struct{})
	open := sync.OnceFunc(func() { close(opened) })
	w.p.entrances = entrance.New(entrance.Config{Log: w.p.log, Opened: w.p.registry.Opened, Arrived: w.p.arrived,
		Listen: func(network, addr string) (net.Listener, error) {
			if addr == slowAddr {
				<-opened
			}
			return sys.Listen(network, addr)
		}})
	w.run()
	t.Cleanup(open)
	b := w.dial(k, how{instance: 1}, slowPub, pub)
	t.Cleanup(open)
	b.wantClaim(1, wire.ClaimUp)
	w.pair(b, addr)
	o := w.bridge(other, how{instance: 2}, otherPub)
	t.Cleanup(open)
	w.pair(o, otherAddr)
	if c := b.claim(0); c.Status != 0 {
		t.Errorf("the claim is answered with %v before its port is open", c.Status)
	}
	if !b.link.Ping(limit) {
		t.Error("the control connection is silent while the port is being opened")
	}
	b.unclaim(0) // and can be given back meanwhile
	open()
	eventually(t, "the port is closed again", func() bool { return refused(slowAddr) })
}

// TestAttachAgain: the answers after a break of the control connection are the same, and nothing is probed once more.
func TestAttachAgain(t *testing.T) {
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	var pubs []string
	for range 50 {
		_, pub := free(t)
		pubs = append(pubs, pub)
	}
	b := w.bridge(k, how{instance: 1}, pubs...)
	count := func() (answers, nonces int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.answers, b.nonces
	}
	if _, n := count(); n != len(pubs) {
		t.Errorf("%d nonces for %d new services", n, len(pubs))
	}
	for round := range 3 {
		b.cut()
		eventually(t, "all is answered again", func() bool { n, _ := count(); return n >= (round+2)*len(pubs) })
	}
	if _, n := count(); n != len(pubs) {
		t.Errorf("%d nonces after breaks, want none beyond the first %d", n, len(pubs))
	}
	if n := w.log.Count("service up"); n > len(pubs) {
		t.Errorf("%d lines say that a service is up", n)
	}
}

// TestKilledBridge: a bridge that was killed has its ports at once when it is started again. They were never closed.
func TestKilledBridge(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	old := w.bridge(k, how{instance: 1}, pub)
	u, _ := w.pair(old, addr)
	rt := w.route(pub)
	old.mu.Lock()
	old.mute = true
	old.mu.Unlock()
	old.cut()
	next := w.bridge(k, how{instance: 2}, pub)
	wantReset(t, u)
	if w.route(pub) != rt {
		t.Error("the port was given up meanwhile")
	}
	w.pair(next, addr)
	eventually(t, "status shows the new session only", func() bool {
		st := w.p.Status()
		return len(st.Links) == 1 && len(st.Services) == 1
	})
}

// TestNobodyReplaces: a session that was replaced by one that never came leaves nothing behind.
func TestNobodyReplaces(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	l := w.p.port.host.Link(k.ID)
	b.mu.Lock()
	b.mute = true
	b.mu.Unlock()
	l.Kill(link.ErrReplaced)
	w.p.sessions.mu.Lock()
	old := w.p.sessions.replaced[k.ID]
	w.p.sessions.mu.Unlock()
	if old.id == 0 || refused(addr) {
		t.Fatal("the port does not wait for the newer session")
	}
	old.timer.Reset(0) // its time is over
	eventually(t, "the port is closed", func() bool { return refused(addr) })
	eventually(t, "status shows nothing", func() bool {
		st := w.p.Status()
		return len(st.Links) == 0 && len(st.Services) == 0
	})
}

// TestSuccessor: a bridge that is stopping serves newcomers until another one with its key is up, and finishes its own connections.
func TestSuccessor(t *testing.T) {
	addr, pub := free(t)
	gone, gonePub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	old := w.bridge(k, how{instance: 1}, pub, gonePub)
	u, s := w.pair(old, addr)
	atProxy := w.p.port.host.Link(k.ID)
	old.link.GoAway(time.Hour)
	eventually(t, "the proxy knows", func() bool {
		st := w.p.Status()
		return len(st.Links) == 1 && st.Links[0].State == status.LinkDraining
	})
	u2, s2 := w.pair(old, addr)
	rt := w.route(pub)
	next := w.bridge(k, how{instance: 2}, pub)
	eventually(t, "the successor has said all that it claims", func() bool { return refused(gone) })
	for range 10 {
		w.pair(next, addr)
	}
	if w.route(pub) != rt {
		t.Error("the port was given up meanwhile")
	}
	talk(t, u, s, "still")
	talk(t, s2, u2, "here")
	if st := w.p.Status(); len(st.Links) != 2 || len(st.Services) != 2 { // the old one's other service, too
		t.Errorf("status: %d links, %d services; want 2, 2", len(st.Links), len(st.Services))
	}
	// A break of its link is none of the end.
	old.cut()
	talk(t, u, s, "again")
	for _, c := range []*net.TCPConn{u, u2} {
		c.Close()
	}
	s.Close()
	s2.Close()
	eventually(t, "its connections are over", func() bool { return atProxy.Streams() == 0 }) // a bridge waits for that before it ends
	old.stop()
	<-old.done
	eventually(t, "the old link is over", func() bool { return len(w.p.Status().Links) == 1 })
	w.pair(next, addr)
	if n := w.log.Count("bridge lost"); n > 1 {
		t.Errorf("%d lines about a bridge that left", n)
	}
}

// TestServiceRemoved: users of a service that a bridge gives back finish; the port is closed before the bridge hears of it.
func TestServiceRemoved(t *testing.T) {
	addr, pub := free(t)
	otherAddr, otherPub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub, otherPub)
	u, s := w.pair(b, addr)
	marks := b.unclaim(0)
	if len(marks) == 0 || marks[0].Stream != s.ID() {
		t.Errorf("marks %v, want the stream %#x", marks, s.ID())
	}
	if !refused(addr) {
		t.Error("the port is open")
	}
	talk(t, u, s, "still here")
	w.pair(b, otherAddr)
	if got := b.unclaim(0); len(got) != len(marks) {
		t.Errorf("UNCLAIM again is answered with %v", got)
	}
}

// TestPortHeldByOther: a port that another key has, under another bind address, is waited for, whatever the system would allow.
func TestPortHeldByOther(t *testing.T) {
	addr, pub := free(t)
	_, port, _ := net.SplitHostPort(addr)
	k, other := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k, other}}})
	b := w.bridge(k, how{instance: 1}, pub)
	o := w.dial(other, how{instance: 2}, "tcp/"+port)
	o.wantClaim(0, wire.ClaimRetrying, "overlaps "+pub, "another key")
	for _, s := range w.p.Status().Services {
		if s.Key == "desk" && !strings.Contains(s.Reason, `held by key "nas"`) {
			t.Errorf("status of %s: %q", s.Public, s.Reason)
		}
	}
	b.unclaim(0)
	o.wantClaim(0, wire.ClaimUp)
	if c, err := net.Dial("tcp", addr); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	if _, err := net.Listen("tcp", addr); !errors.Is(err, syscall.EADDRINUSE) {
		t.Skipf("this system opens an address twice: %v", err) // which is why the proxy decides
	}
}

// TestApplyUnderLoad: other settings, again and again, while users are there and more come: none of them notices.
func TestApplyUnderLoad(t *testing.T) {
	const applies, connected, comers = 200, 100, 4
	addr, pub := free(t)
	_, otherPub := free(t)
	_, offerPub := free(t)
	offer, err := grammar.ParsePublic(offerPub)
	if err != nil {
		t.Fatal(err)
	}
	k, other := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k, other}}})
	b := w.bridge(k, how{instance: 1}, pub)
	w.bridge(other, how{instance: 2}, otherPub, "offered")
	over, quiet := make(chan struct{}), make(chan struct{})
	var echoes, users sync.WaitGroup
	echoes.Go(func() {
		for {
			select {
			case s := <-b.streams:
				echoes.Go(func() {
					io.Copy(s, s)
					s.Close()
				})
			case <-quiet:
				return
			}
		}
	})
	exchange := func(c net.Conn) error {
		c.SetDeadline(time.Now().Add(limit))
		got := make([]byte, 5)
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
			return fmt.Errorf("read %q: %w", got, err)
		}
		return nil
	}
	var served atomic.Int64
	user := func() (net.Conn, error) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			err = exchange(c)
		}
		return c, err
	}
	for range connected {
		c, err := user()
		if err != nil {
			t.Fatal(err)
		}
		users.Go(func() {
			defer c.Close()
			for {
				select {
				case <-over:
					return
				default:
				}
				if err := exchange(c); err != nil {
					t.Errorf("a user who was there: %v", err)
					return
				}
			}
		})
	}
	for range comers {
		users.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				c, err := user()
				if err != nil {
					t.Errorf("a user who comes: %v", err)
					return
				}
				c.Close()
				served.Add(1)
			}
		})
	}
	rt := w.route(pub)
	for i := range applies {
		k, other := k, other
		set := Settings{Drain: time.Duration(i+1) * time.Second}
		switch i % 4 {
		case 0:
			other.Allow = nil
		case 1:
			set.Offer = []grammar.Public{offer}
		case 2:
			k.Name = fmt.Sprint("nas", i)
		}
		if set.Keys = []Key{k, other}; i%4 == 3 {
			set.Keys = []Key{k}
		}
		if err := w.p.Apply(t.Context(), set); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "users came meanwhile", func() bool { return served.Load() > 100 })
	close(over)
	users.Wait()
	close(quiet)
	echoes.Wait()
	if w.route(pub) != rt {
		t.Error("the service got another route")
	}
	w.setKeys(k, other)
}

// TestNameOfARemovedKey: what a key counted shortly before its removal is booked under its name, which whoever counts asks for once in some
// seconds.
func TestNameOfARemovedKey(t *testing.T) {
	addr, public := free(t)
	k := key(t, "nas", public)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	w.pair(w.bridge(k, how{instance: 1}, public), addr)
	w.setKeys()
	var names []string
	for c := range w.p.Counted {
		names = append(names, w.p.KeyName(c.Key))
	}
	if len(names) != 1 || names[0] != "nas" {
		t.Errorf("the keys %q have counted; want nas", names)
	}
	k.Name = "desk"
	w.setKeys(k)
	if name := w.p.KeyName(k.ID); name != "desk" {
		t.Errorf("the key is called %q; want desk", name)
	}
	for i := range mostRemoved + 1 {
		w.setKeys(Key{Name: fmt.Sprint(i), ID: [16]byte{byte(i), byte(i >> 8)}})
	}
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if n := len(w.p.removed); n > mostRemoved {
		t.Errorf("%d names are kept", n)
	}
}
