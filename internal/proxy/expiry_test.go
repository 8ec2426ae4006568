package proxy

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"reverser/internal/link"
	"reverser/internal/registry"
	"reverser/internal/wire"
)

// clock is a wall clock that tests set.
type clock struct{ at atomic.Int64 }

func (c *clock) set(t time.Time) { c.at.Store(t.UnixNano()) }
func (c *clock) now() time.Time  { return time.Unix(0, c.at.Load()) }

// TestKeyExpires: at its moment a key's connections are reset as those of a removed key, its link ends with a word that says why, and its
// bridge is refused with that word, until the key gets more time. Another key notices nothing.
func TestKeyExpires(t *testing.T) {
	addr, public := free(t)
	otherAddr, otherPublic := free(t)
	begin := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	var c clock
	c.set(begin)
	k, other := key(t, "guest", public), key(t, "nas", otherPublic)
	k.Expires, other.Expires = begin.Add(time.Hour), begin.Add(1000*time.Hour)
	w := start(t, Config{Now: c.now, Settings: Settings{Keys: []Key{k, other}}})
	b, ob := w.bridge(k, how{instance: 1}, public), w.bridge(other, how{instance: 2}, otherPublic)
	u, s := w.pair(b, addr)
	ou, os := w.pair(ob, otherAddr)

	c.set(begin.Add(time.Hour - time.Second))
	w.p.expire()
	talk(t, u, s, "still")
	c.set(begin.Add(time.Hour))
	wantReset(t, u) // the proxy looks by itself
	eventually(t, "the bridge has the reason", func() bool { return s.Code() == wire.CodeService })
	eventually(t, "it is in the log", func() bool {
		return w.log.Count("key expired", "key=guest", "expired=2026-11-29T13:00:00Z") == 1 && w.log.Count("pair released", "reason=service-removed") == 1
	})
	eventually(t, "the link has ended for it", func() bool {
		return w.log.Count("bridge session ended", "the key expired at 2026-11-29T13:00:00Z") == 1
	})
	eventually(t, "its port is closed", func() bool { return refused(addr) })
	talk(t, ou, os, "the other goes on")

	snap := w.p.Status()
	for _, sk := range snap.Keys {
		if want := sk.Key == "guest"; sk.Expired != want || sk.Expires.IsZero() {
			t.Errorf("status shows %+v", sk)
		}
	}
	if n := len(snap.Keys); n != 2 {
		t.Errorf("status shows %d keys", n)
	}

	// Whoever has not proven the key learns nothing of it.
	wrong := k
	wrong.Secret = [32]byte{9}
	if why := w.attempt(wrong); why == nil || errors.Is(why, link.ErrDenied) || strings.Contains(why.Error(), "expired") {
		t.Errorf("with a wrong secret: %v", why)
	}
	if why := w.attempt(k); !errors.Is(why, link.ErrDenied) || !strings.Contains(why.Error(), "the key expired at 2026-11-29T13:00:00Z") {
		t.Errorf("with the key: %v", why)
	}

	b.stop()
	<-b.done
	k.Expires = begin.Add(2 * time.Hour)
	w.setKeys(k, other)
	again := w.bridge(k, how{instance: 3}, public)
	w.pair(again, addr)
	talk(t, ou, os, "and on")
}

// TestClockJumps: the clock alone says whether a key has expired, wherever it goes.
func TestClockJumps(t *testing.T) {
	addr, public := free(t)
	begin := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	var c clock
	c.set(begin)
	k := key(t, "guest", public)
	k.Expires = begin.Add(time.Hour)
	w := start(t, Config{Now: c.now, Settings: Settings{Keys: []Key{k}}})
	first := w.bridge(k, how{instance: 1}, public)
	u, s := w.pair(first, addr)

	c.set(begin.AddDate(-1, 0, 0))
	w.p.expire()
	talk(t, u, s, "a year back")
	c.set(begin.AddDate(1, 0, 0))
	w.p.expire()
	wantReset(t, u)
	if why := w.attempt(k); !errors.Is(why, link.ErrDenied) {
		t.Errorf("a year ahead: %v", why)
	}
	first.stop()
	<-first.done
	c.set(begin)
	w.p.expire()
	eventually(t, "the log says that it is honoured again", func() bool { return w.log.Count("key is honoured again") == 1 }) // the proxy looks by itself too, and may be at it
	again := w.bridge(k, how{instance: 2}, public)
	w.pair(again, addr)
	w.setKeys(k) // a reload says nothing new
	if n := w.log.Count("key expired: its bridge"); n != 1 {
		t.Errorf("%d lines say that it has expired", n)
	}
}

// TestNewTimeIsOver: a key whose new time has passed when it is put in force has expired, and the log says so.
func TestNewTimeIsOver(t *testing.T) {
	begin := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	var c clock
	c.set(begin)
	k := key(t, "guest", "tcp/9000")
	w := start(t, Config{Now: c.now, Settings: Settings{Keys: []Key{k}}})
	for i := range 2 { // of a key that never expired, and of one that did
		k.Expires = begin.Add(time.Duration(i) * time.Second)
		c.set(k.Expires.Add(time.Millisecond)) // while it was stored
		w.setKeys(k)
		if n := w.log.Count("key expired", "key=guest"); n != i+1 {
			t.Errorf("the log says %d times that the key expired, want %d", n, i+1)
		}
		k.Expires = begin.Add(time.Hour)
		w.setKeys(k)
	}
	if n := w.log.Count("honoured again"); n != 0 {
		t.Error("an edit that gives a key more time is told as a clock that was set back")
	}
}

// TestExpiredAtTheStart: a key whose time was over before the proxy began is refused, and nothing is logged about it.
func TestExpiredAtTheStart(t *testing.T) {
	_, public := free(t)
	k := key(t, "guest", public)
	k.Expires = time.Now().Add(-time.Hour)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	if why := w.attempt(k); !errors.Is(why, link.ErrDenied) {
		t.Errorf("%v", why)
	}
	if _, err := w.p.registry.Begin(registry.Session{Key: k.ID}); !errors.Is(err, registry.ErrNoKey) {
		t.Errorf("Begin = %v", err)
	}
}

// attempt returns why a bridge is refused.
func (w *world) attempt(k Key) error {
	w.t.Helper()
	b := w.dial(k, how{instance: 77})
	var why error
	eventually(w.t, "the attempt is over", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.failed) > 0 {
			why = b.failed[0]
		}
		return why != nil || len(b.up) > 0
	})
	b.stop()
	<-b.done
	return why
}
