package sys

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// machine is one whose addresses a test changes.
type machine struct {
	addrs  atomic.Pointer[map[netip.Addr]bool]
	events chan NetworkEvent
	w      *watcher
}

func newMachine(addrs ...string) *machine {
	m := &machine{events: make(chan NetworkEvent, 100)}
	m.w = &watcher{news: make(chan string), addresses: func() map[netip.Addr]bool { return *m.addrs.Load() }}
	m.have(addrs...)
	return m
}

func (m *machine) have(addrs ...string) {
	set := make(map[netip.Addr]bool)
	for _, a := range addrs {
		set[netip.MustParseAddr(a)] = true
	}
	m.addrs.Store(&set)
}

// start runs f and returns a function that stops it.
func start(t *testing.T, fs ...func(ctx context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(func() { f(ctx) })
	}
	synctest.Wait()
	return func() { cancel(); wg.Wait() }
}

func (m *machine) run(ctx context.Context) { m.w.run(ctx, func(e NetworkEvent) { m.events <- e }) }

func TestABurstIsOneEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine("192.0.2.1")
		defer start(t, m.run)()
		begin := time.Now()
		for range 5 {
			m.w.tell(t.Context(), Routes)
			time.Sleep(100 * time.Millisecond)
		}
		if e := <-m.events; e.Why != Routes || time.Since(begin) != 600*time.Millisecond {
			t.Errorf("%q after %s; want routes 200ms after the last news", e.Why, time.Since(begin))
		}
		begin = time.Now()
		for range 15 { // one that does not end
			m.w.tell(t.Context(), Links)
			time.Sleep(100 * time.Millisecond)
		}
		if len(m.events) != 1 {
			t.Errorf("%d events while news does not end, want 1", len(m.events))
		}
		time.Sleep(time.Second)
		if len(m.events) != 2 {
			t.Errorf("%d events, want another one for the rest", len(m.events))
		}
	})
}

func TestNewsWithoutAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine("192.0.2.1")
		defer start(t, m.run)()
		m.w.tell(t.Context(), Addresses) // its lifetime was prolonged
		time.Sleep(time.Minute)
		m.have("192.0.2.1", "fe80::1")
		m.w.tell(t.Context(), Addresses)
		time.Sleep(time.Minute)
		if len(m.events) != 0 {
			t.Errorf("%d events, want none", len(m.events))
		}
		m.have("192.0.2.2")
		m.w.tell(t.Context(), Addresses)
		e := <-m.events
		for addr, gone := range map[string]bool{"192.0.2.1": true, "192.0.2.2": false, "::ffff:192.0.2.2": false, "127.0.0.9": false} {
			at := &net.TCPAddr{IP: net.ParseIP(addr), Port: 5}
			if got := e.Gone(at); got != gone {
				t.Errorf("Gone(%s) = %t, want %t", at, got, gone)
			}
		}
		if (NetworkEvent{}).Gone(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}) {
			t.Error("an address is gone although none is known")
		}
	})
}

func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine("192.0.2.1")
		defer start(t, m.run, m.w.poll)()
		time.Sleep(time.Hour)
		if len(m.events) != 0 {
			t.Errorf("%d events while nothing changes", len(m.events))
		}
		m.have("192.0.2.2")
		begin := time.Now()
		if e := <-m.events; e.Why != Addresses || time.Since(begin) > pollEvery+settle {
			t.Errorf("%q after %s", e.Why, time.Since(begin))
		}
	})
}

func TestSlept(t *testing.T) {
	for _, c := range []struct {
		wall, mono time.Duration
		want       bool
	}{
		{pollEvery, pollEvery, false},
		{pollEvery + time.Second, pollEvery + time.Second, false}, // a busy machine
		{pollEvery - time.Hour, pollEvery, false},                 // the clock was set back
		{pollEvery + time.Hour, pollEvery, true},                  // the monotonic clock stood still
		{pollEvery + time.Hour, pollEvery + time.Hour, true},      // or went on
	} {
		if got := slept(c.wall, c.mono); got != c.want {
			t.Errorf("slept(%s, %s) = %t, want %t", c.wall, c.mono, got, c.want)
		}
	}
}
