package proxy

import (
	"testing"
	"time"

	"reverser/internal/link"
	"reverser/internal/status"
)

// leave has a bridge announce its stop, and waits until the proxy knows.
func (b *bridge) leave(drain time.Duration) {
	b.w.t.Helper()
	b.mu.Lock()
	l := b.link
	b.mu.Unlock()
	l.GoAway(drain)
	eventually(b.w.t, "the proxy knows that the bridge is stopping", func() bool {
		for _, l := range b.w.p.Status().Links {
			if l.State == status.LinkDraining {
				return true
			}
		}
		return false
	})
}

// TestSuccessorOfABridge: a bridge that is stopping serves on until another process claims what it has. That one takes the users
// from then on, and the old one finishes what it has over its own link, also behind a break.
func TestSuccessorOfABridge(t *testing.T) {
	addr, pub := free(t)
	gone, pubGone := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	old := w.bridge(k, how{instance: 1}, pub, pubGone)
	u1, s1 := w.pair(old, addr)
	atProxy := w.p.port.host.Link(k.ID)
	old.leave(time.Minute)
	u2, s2 := w.pair(old, addr) // nobody else is there yet
	successor := w.bridge(k, how{instance: 2}, pub)
	eventually(t, "what the successor does not claim is closed", func() bool { return refused(gone) })
	for range 3 {
		w.pair(successor, addr)
	}
	talk(t, u1, s1, "still")
	talk(t, u2, s2, "still")
	old.cut()
	talk(t, u1, s1, "behind a break")
	w.setKeys(k) // all claims are decided again
	w.pair(successor, addr)
	if st := w.p.Status(); len(st.Links) != 2 || st.Links[0].State == st.Links[1].State {
		t.Errorf("links %+v, want two of which one is draining", st.Links)
	}
	old.mu.Lock()
	ended := old.ended
	old.mu.Unlock()
	if len(ended) != 0 {
		t.Errorf("the old bridge's session ended: %v", ended)
	}
	for _, s := range []interface{ Close() error }{u1, u2, s1, s2} {
		s.Close()
	}
	eventually(t, "the old bridge's pairs are over", func() bool { return len(w.p.Status().Pairs) == 4 })
	eventually(t, "both ends know", func() bool { return atProxy.Streams() == 0 }) // a bridge waits for that before it ends
	old.stop()
	<-old.done
	eventually(t, "the old session is over", func() bool { return len(w.p.Status().Links) == 1 })
	w.pair(successor, addr)
}

// TestSecondBridgeBesideOneThatStays: only a bridge that is stopping has a successor.
func TestSecondBridgeBesideOneThatStays(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	second := w.dial(k, how{instance: 2}, pub)
	eventually(t, "the second bridge is refused", func() bool { second.mu.Lock(); defer second.mu.Unlock(); return len(second.failed) > 0 })
	w.pair(b, addr)
}

// TestUsersWaitForTheSuccessor: a service manager starts the next process when the last one has ended.
func TestUsersWaitForTheSuccessor(t *testing.T) {
	shorten(t, &returnTime) // the first user waits during it, and no longer than registry.Hold
	lengthen(t, &awaitSuccessor)
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	old := w.bridge(k, how{instance: 1}, pub)
	old.leave(0)
	early := w.user(addr) // the old process takes nobody any more
	old.stop()
	<-old.done
	eventually(t, "the old session is over", func() bool { return len(w.p.Status().Links) == 0 })
	late := w.user(addr)
	eventually(t, "both users are held", func() bool { return w.p.conns.Load().Held == 2 })
	successor := w.bridge(k, how{instance: 2, silent: true}, pub)
	for range 2 {
		early.Write([]byte("?"))
		late.Write([]byte("?"))
		s := successor.stream()
		b := make([]byte, 1)
		if _, err := s.Read(b); err != nil || b[0] != '?' {
			t.Errorf("the successor read %q, %v", b, err)
		}
	}
}

// shorten has the proxy of a test wait only a moment.
func shorten(t *testing.T, wait *time.Duration) {
	before := *wait
	t.Cleanup(func() { *wait = before }) // when the proxy has ended
	*wait = 50 * time.Millisecond
}

// lengthen has the proxy of a test wait for longer than a busy machine takes.
func lengthen(t *testing.T, wait *time.Duration) {
	before := *wait
	t.Cleanup(func() { *wait = before })
	*wait = limit
}

// silence has the bridge dial no more.
func (b *bridge) silence() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mute = true
}

// wantLeft waits until the session of a bridge has ended because the bridge left.
func (w *world) wantLeft() {
	w.t.Helper()
	eventually(w.t, "the session of the bridge that left is over", func() bool {
		return len(w.p.Status().Links) == 0 && w.log.Count("bridge session ended", link.ErrLeft.Error()) == 1
	})
}

// TestLeavingBridgeIsCut: a bridge that was stopping, had no connection left, and whose link broke is not waited for.
func TestLeavingBridgeIsCut(t *testing.T) {
	shorten(t, &returnTime)
	_, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	b.leave(time.Hour)
	b.silence()
	b.cut()
	w.wantLeft()
}

// TestLeavingBridgeIsCutUnderUsers: the same where its last users leave while its link is broken. A user who resets is told of to a bridge
// that comes back, but is waited for no longer; one who stays is.
func TestLeavingBridgeIsCutUnderUsers(t *testing.T) {
	shorten(t, &returnTime)
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	u1, _ := w.pair(b, addr)
	u2, _ := w.pair(b, addr)
	b.leave(time.Hour)
	b.silence()
	b.cut()
	l := w.p.port.host.Link(k.ID)
	eventually(t, "the link is broken", func() bool { return !l.Alive() })
	u1.SetLinger(0)
	u1.Close()
	eventually(t, "the first user's reset is noted", func() bool { return w.log.Count("pair released", "client-reset") == 1 })
	if l.Finished() || l.Err() != nil {
		t.Error("the session is over although a user is there")
	}
	u2.SetLinger(0)
	u2.Close()
	eventually(t, "the second user's reset is noted", func() bool { return w.log.Count("pair released", "client-reset") == 2 })
	w.wantLeft()
	w.idle() // the log has the end of a pair before it is counted
}

// TestLeavingBridgeStays: the session of a bridge that has not ended by itself when its own limit was over is ended.
func TestLeavingBridgeStays(t *testing.T) {
	shorten(t, &leaveGrace)
	_, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	b.silence()
	b.mu.Lock()
	l := b.link
	b.mu.Unlock()
	l.GoAway(10 * time.Millisecond)
	w.wantLeft()
}

// TestLeavingBridgeGoesOn: a bridge that wants no new users for a moment, while young connections may end, has its whole time behind that.
func TestLeavingBridgeGoesOn(t *testing.T) {
	// On a busy machine the first limit may be over before the bridge has said that there is more time.
	for grace, intime := 50*time.Millisecond, false; !intime && !t.Failed(); grace *= 4 {
		t.Run(grace.String(), func(t *testing.T) { intime = leavesAndGoesOn(t, grace) })
		if grace > limit {
			t.Fatal("a bridge that leaves cannot go on in time")
		}
	}
}

// leavesAndGoesOn reports whether the bridge said that there is more time before the first limit was over.
func leavesAndGoesOn(t *testing.T, grace time.Duration) (intime bool) {
	shorten(t, &leaveGrace)
	leaveGrace = grace
	_, pub := free(t)
	_, other := free(t)
	busy, gone := key(t, "nas", "tcp/1024-65535"), key(t, "other", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{busy, gone}}})
	w.bridge(busy, how{instance: 1}, pub)
	w.bridge(gone, how{instance: 2}, other)
	l := w.p.port.host.Link(busy.ID)
	begin := time.Now()
	w.p.GoingAway(l, 0)
	w.p.GoingAway(l, time.Hour)
	intime = time.Since(begin) < grace
	w.p.GoingAway(l, 0)
	w.p.GoingAway(w.p.port.host.Link(gone.ID), leaveGrace) // so that its end comes later than that of the first GOAWAY
	eventually(t, "the session of the other bridge is over", func() bool {
		return w.log.Count("bridge session ended", link.ErrLeft.Error()) >= 1
	})
	if err := l.Err(); err != nil && intime {
		t.Errorf("the session of the bridge that had time left ended: %v", err)
	}
	return intime
}

// TestNoSuccessor: the ports of a bridge that left are given up when nobody comes for them, and who waited is told.
func TestNoSuccessor(t *testing.T) {
	shorten(t, &awaitSuccessor)
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	old := w.bridge(k, how{instance: 1}, pub)
	old.leave(0)
	u := w.user(addr)
	old.stop()
	<-old.done
	wantReset(t, u)
	eventually(t, "the port is closed", func() bool { return refused(addr) })
}
