package proxy

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"reverser/internal/auth"
	"reverser/internal/link"
)

// TestRotate: two secrets of a key count until the new one was used. Neither that nor the change to it ends a session or a connection, and
// the one before is worthless then, whatever is said of the keys later.
func TestRotate(t *testing.T) {
	addr, public := free(t)
	k := key(t, "nas", public)
	old, next := k.Secret, [32]byte{3}
	var used atomic.Int32
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}, Used: func(id [16]byte, secret [32]byte) {
		if id != k.ID || secret != next {
			t.Error("another secret is used")
		}
		used.Add(1)
	}})
	b := w.bridge(k, how{instance: 1}, public)
	u, s := w.pair(b, addr)

	k.Next = &next
	w.setKeys(k)
	talk(t, u, s, "rotated")
	if why := w.attempt(k); !errors.Is(why, link.ErrDuplicate) { // it counts: only the live bridge is in its way
		t.Errorf("with the old secret: %v", why)
	}
	b.cut()
	talk(t, u, s, "back with the old secret")
	if n := used.Load(); n != 0 {
		t.Errorf("the new secret was used %d times", n)
	}

	eventually(t, "the control connection is back", func() bool { return w.log.Count("bridge connected") == 2 })
	b.dialer.SetSecret(next)
	eventually(t, "the new secret is used", func() bool { return used.Load() == 1 })
	talk(t, s, u, "with the new secret")
	eventually(t, "the control connection is replaced", func() bool { return b.renewed.Load() == 1 })
	if n := w.log.Count("bridge lost", "err=EOF"); n != 0 { // a cut is a reset
		t.Errorf("the bridge was lost %d times while its control connection was replaced", n)
	}
	if why := w.attempt(k); !errors.Is(why, link.ErrDenied) || !strings.Contains(why.Error(), "this token was replaced") {
		t.Errorf("with the old secret: %v", why)
	}
	thief := k
	thief.Secret = [32]byte{9}
	if why := w.attempt(thief); !errors.Is(why, auth.ErrRefused) {
		t.Errorf("with no secret of it: %v", why)
	}

	w.setKeys(k) // as the file has it that was not written yet
	b.cut()
	talk(t, u, s, "whatever the file says")
	if why := w.attempt(k); !errors.Is(why, link.ErrDenied) {
		t.Errorf("with the old secret: %v", why)
	}
	k.Secret, k.Next = next, nil
	w.setKeys(k)
	talk(t, u, s, "as it is stored")
	third := [32]byte{4}
	k.Next = &third
	w.setKeys(k)
	talk(t, u, s, "rotated again")
	if n := w.log.Count("bridge session ended"); n != 0 {
		t.Errorf("%d sessions ended", n)
	}
	if n := w.log.Count("the new token of a key is in use", "key=nas"); n != 1 {
		t.Errorf("%d lines say that the token is in use", n)
	}
	k.Secret, k.Next = old, nil // which is another key by now
	w.setKeys(k)
	wantReset(t, u)
}

// TestNewTokenTakesOver: a bridge with the new token takes the place of one that is alive with the old one, which whoever stole it may have.
func TestNewTokenTakesOver(t *testing.T) {
	addr, public := free(t)
	k := key(t, "nas", public)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	thief := w.bridge(k, how{instance: 1}, public)
	u, _ := w.pair(thief, addr)
	next := [32]byte{3}
	k.Next = &next
	w.setKeys(k)
	mine := k
	mine.Secret = next
	b := w.bridge(mine, how{instance: 2}, public)
	wantReset(t, u)
	w.pair(b, addr)
	eventually(t, "the other one hears why", func() bool {
		thief.mu.Lock()
		defer thief.mu.Unlock()
		for _, err := range thief.failed {
			if errors.Is(err, link.ErrDenied) && strings.Contains(err.Error(), "this token was replaced") {
				return true
			}
		}
		return false
	})
	if why := w.attempt(mine); !errors.Is(why, link.ErrDuplicate) { // of two with the new token, the first one stays
		t.Errorf("a second bridge with the new token: %v", why)
	}
}

// TestUnusedTokenIsReplaced: rotating again before the new secret was used replaces it.
func TestUnusedTokenIsReplaced(t *testing.T) {
	_, public := free(t)
	k := key(t, "nas", public)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	first, second := [32]byte{3}, [32]byte{4}
	k.Next = &first
	w.setKeys(k)
	k.Next = &second
	w.setKeys(k)
	mine := k
	mine.Secret = first
	if why := w.attempt(mine); !errors.Is(why, auth.ErrRefused) {
		t.Errorf("with the one that was replaced: %v", why)
	}
	mine.Secret = second
	w.bridge(mine, how{instance: 1}, public)
}

// TestRotateWhileUsed: a key is rotated again while the use of its new token is not stored yet. The session with that one goes on, and uses are
// told one after the other.
func TestRotateWhileUsed(t *testing.T) {
	addr, public := free(t)
	k := key(t, "nas", public)
	first, second := [32]byte{3}, [32]byte{4}
	told, stored, over := make(chan [32]byte), make(chan struct{}), make(chan struct{})
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}, Used: func(_ [16]byte, secret [32]byte) {
		select {
		case told <- secret:
		case <-over:
		}
		select {
		case <-stored:
		case <-over:
		}
	}})
	defer close(over)
	b := w.bridge(k, how{instance: 1}, public)
	u, s := w.pair(b, addr)
	k.Next = &first
	w.setKeys(k)
	b.cut()
	b.dialer.SetSecret(first)
	if secret := <-told; secret != first {
		t.Errorf("the use of %x is told; want that of the first new token", secret[:1])
	}
	k.Next = &second // beside the secret from before: whoever wrote the file did not know of the use
	w.setKeys(k)
	talk(t, u, s, "with the first new token")
	b.cut()
	b.dialer.SetSecret(second)
	eventually(t, "the second new token is used", func() bool {
		secret, _ := w.p.secret(k.ID)
		return secret == second
	})
	select {
	case secret := <-told:
		t.Errorf("the use of %x is told before that of the first one is stored", secret[:1])
	default:
	}
	stored <- struct{}{}
	if secret := <-told; secret != second {
		t.Errorf("the use of %x is told; want that of the second new token", secret[:1])
	}
	stored <- struct{}{}
	talk(t, u, s, "with the second new token")
	if n := w.log.Count("bridge session ended"); n != 0 {
		t.Errorf("%d sessions ended", n)
	}
}
