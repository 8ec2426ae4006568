package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/logtest"
)

// wastes has so many come from an address at once, of whom those that are let in reach no service, and returns how many those are.
func wastes(w *wasted, from string, n int, now time.Time) (in int) {
	a := netip.MustParseAddr(from)
	for range n {
		if w.over(a, now) == nil {
			w.add(a, now)
			in++
		}
	}
	return in
}

// TestWastedRate: a network of strangers has its burst and then its rate, whatever others do.
func TestWastedRate(t *testing.T) {
	w, now := &wasted{most: mostWasted}, time.Unix(1e9, 0)
	want := func(what, from string, n int) {
		t.Helper()
		if got := wastes(w, from, 1000, now); got != n {
			t.Errorf("%s: %d were let in, want %d", what, got, n)
		}
	}
	want("the first ones", "192.0.2.1", strangerBurst)
	want("a neighbour", "192.0.2.200", 0)
	want("the same in IPv6", "::ffff:192.0.2.1", 0)
	want("somebody else", "198.51.100.1", strangerBurst)
	w = &wasted{most: mostWasted}
	want("a customer in IPv6", "2001:db8:1::1", strangerBurst)
	want("another network of his", "2001:db8:1:ff::1", 0)
	want("another customer", "2001:db8:2::1", strangerBurst)
	now = now.Add(time.Second)
	want("a second later", "2001:db8:1::1", strangerRate)
	now = now.Add(time.Hour)
	want("an hour later", "2001:db8:1::1", strangerBurst)
}

// TestWastedOwe: those who came in before the first of them was counted are owed for, but not for long.
func TestWastedOwe(t *testing.T) {
	w, now := &wasted{most: mostWasted}, time.Unix(1e9, 0)
	a := netip.MustParseAddr("192.0.2.1")
	for range 100_000 {
		w.add(a, now)
	}
	for _, c := range []struct {
		after time.Duration
		in    bool
	}{{0, false}, {mostOwed - 2*time.Second, false}, {mostOwed, true}} {
		if in := w.over(a, now.Add(c.after)) == nil; in != c.in {
			t.Errorf("%s later it is let in: %t, want %t", c.after, in, c.in)
		}
	}
}

// TestWastedByUsers: users of very many networks who ask again and again for a service that is away are let in again as soon as it is there.
func TestWastedByUsers(t *testing.T) {
	const users, each, away = 1000, 2 * time.Second, 6 * time.Second
	w, now := &wasted{most: mostWasted}, time.Unix(1e9, 0)
	up, in := now.Add(away), 0
	for i := 0; now.Before(up.Add(each)); i, now = i+1, now.Add(each/users) {
		user := netip.AddrFrom4([4]byte{20, byte(i % users >> 8), byte(i % users), 1})
		switch why := w.over(user, now); {
		case why != nil && i < users:
			t.Fatalf("user %d is sent away when he comes first: %v", i, why)
		case why != nil && now.After(up.Add(wasteOne)):
			t.Fatalf("%s after the service is there, a user is sent away: %v", now.Sub(up), why)
		case why == nil && now.Before(up):
			w.add(user, now)
			in++
		}
	}
	if again := in - users; again < strangersRate || again > strangersRate*int(away/time.Second) {
		t.Errorf("%d were let in again, want about %d a second", again, strangersRate)
	}
}

// TestWastedSettles: a flood of which very many are let in before the first of them is counted costs little after that.
func TestWastedSettles(t *testing.T) {
	const networks, rate, seconds, takes = 1000, 8000, 30, 50 * time.Millisecond
	for _, n := range []int{1, networks} {
		w, begun := &wasted{most: mostWasted}, time.Unix(1e9, 0)
		type one struct {
			from netip.Addr
			ends time.Time
		}
		var inside []one
		in := 0
		for i := range seconds * rate {
			now := begun.Add(time.Duration(i) * time.Second / rate)
			for len(inside) > 0 && !inside[0].ends.After(now) {
				w.add(inside[0].from, now)
				inside = inside[1:]
			}
			from := netip.AddrFrom4([4]byte{20, byte(i % n >> 8), byte(i % n), 1})
			if w.over(from, now) == nil {
				inside = append(inside, one{from, now.Add(takes)})
				if i > rate {
					in++
				}
			}
		}
		t.Logf("of %d networks, %d a second are let in", n, in/(seconds-1))
		if in/(seconds-1) > rate/20 {
			t.Errorf("of a flood of %d networks, %d a second are let in, want at most %d", n, in/(seconds-1), rate/20)
		}
	}
}

// TestWastedInAll: of strangers from very many networks those are let in of whose network none came lately, and no more of the others than
// there may be in all.
func TestWastedInAll(t *testing.T) {
	const networks = 10_000
	w, now := &wasted{most: mostWasted}, time.Unix(1e9, 0)
	from := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 1}) }
	in, first := 0, 0
	const seconds, rate = 30, 8000
	for i := range seconds * rate {
		now = now.Add(time.Second / rate)
		if i == networks {
			first = in
		}
		if w.over(from(i%networks), now) == nil {
			w.add(from(i%networks), now)
			in++
		}
		if i%rate == 0 {
			if why := w.over(netip.AddrFrom4([4]byte{30, 0, byte(i / rate), 1}), now); why != nil {
				t.Fatalf("somebody of whose network nobody has come is sent away: %v", why)
			}
		}
	}
	if first != networks {
		t.Errorf("%d of the first %d were let in, want all", first, networks)
	}
	if rest := in - first; rest > seconds*strangersRate || rest < seconds*strangersRate/2 {
		t.Errorf("%d were let in later in %d s, want at most %d a second and nearly as many", rest, seconds, strangersRate)
	}
	if why := w.over(from(1), now); !errors.Is(why, errWastage) {
		t.Errorf("one more: %v, want %v", why, errWastage)
	}
	if why := w.over(from(1), now.Add(wastedMemory)); why != nil {
		t.Errorf("a minute later: %v", why)
	}
}

// TestWastedMemoryIsBounded: as many networks as there may be are remembered, the latest ones.
func TestWastedMemoryIsBounded(t *testing.T) {
	w, now := &wasted{most: 50}, time.Unix(1e9, 0)
	for i := range 300 {
		wastes(w, fmt.Sprintf("10.%d.%d.1", i/250, i%250), strangerBurst, now)
	}
	if n, m := w.blocks.order.Len(), len(w.blocks.at); n != 50 || m != 50 {
		t.Errorf("%d networks are in order and %d remembered, want 50", n, m)
	}
	if w.over(netip.MustParseAddr("10.1.49.1"), now) == nil {
		t.Error("the last one is forgotten")
	}
}

// TestNamesGate: who reached a service is known and comes as often as they like, and so does who stands for many. The others are sent away
// at once when too many of them reached none.
func TestNamesGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newNamesGate(1<<20, 0, func(a netip.Addr) bool { return a == netip.MustParseAddr("203.0.113.1") })
		g.about, g.what.port = "they reached none", "the port"
		j := logtest.New(slog.LevelDebug)
		log := slog.New(j)
		come := func(addr string, n int, served bool) (in int) {
			for range n {
				c := from(addr)
				p := g.enter(log, c)
				if p == nil {
					if !c.closed {
						t.Error("who is sent away is not closed")
					}
					continue
				}
				in++
				p.leave(served)
			}
			return in
		}
		crowd := make([]*pass, 0, 1000) // all at once, of whom nobody has been let in yet
		for range cap(crowd) {
			crowd = append(crowd, g.enter(log, from("192.0.2.1")))
		}
		for i, p := range crowd {
			if p == nil {
				t.Fatalf("number %d of a crowd behind one address is sent away", i)
			}
			p.leave(true)
		}
		if n := come("192.0.2.1", 1000, false); n != 1000 {
			t.Errorf("%d of 1000 connections of a known address were let in", n)
		}
		if n := come("203.0.113.1", 1000, false); n != 1000 {
			t.Errorf("%d of 1000 connections of who stands for many were let in", n)
		}
		if len(g.appendTo(nil)) != 0 || len(j.All()) != 0 {
			t.Errorf("something is said to be short before somebody was sent away: %v, %q", g.appendTo(nil), j.All())
		}
		if n := come("192.0.2.2", 1000, false); n != strangerBurst {
			t.Errorf("%d of 1000 strangers were let in, want %d", n, strangerBurst)
		}
		if n := len(g.slots); n != 0 || g.room.classes[strangers].places != 0 {
			t.Errorf("%d slots and %d places are taken", n, g.room.classes[strangers].places)
		}
		if short := g.appendTo(nil); len(short) != 1 || short[0].What != "connections a second for strangers of one network at the port" || short[0].Used != 1000-strangerBurst+strangerRate || short[0].Limit != strangerRate || short[0].Largest.Client != "192.0.2.0/24" || short[0].Hint == "" {
			t.Errorf("status says %+v", short)
		}
		if j.Count("they reached none", "count=1 ", "last_remote=192.0.2.2:") != 1 || j.Count("running short") != 1 || len(j.All()) != 2 {
			t.Errorf("the log says %q, want one line of each kind", j.All())
		}
		time.Sleep(time.Minute)
		if n := come("192.0.2.2", 1, true); n != 1 {
			t.Error("a minute later nobody is let in")
		}
		if n := come("192.0.2.2", 1000, false); n != 1000 {
			t.Errorf("%d of 1000 were let in of an address that is known meanwhile", n)
		}
		if n := come("192.0.2.3", 100, false); n != strangerBurst {
			t.Errorf("%d of 100 neighbours of a known address were let in, want %d", n, strangerBurst)
		}
		if j.Count("they reached none", fmt.Sprintf("count=%d ", 1000-strangerBurst)) != 1 {
			t.Errorf("the next minute's line does not count who came since: %q", j.All())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(g.appendTo(nil)) != 0 || j.Count("no longer running short") != 2 {
			t.Errorf("it is still said to be short: %v, %q", g.appendTo(nil), j.All())
		}
		g.closeAll()
	})
}

// TestUnservedRequests: of the pages that a connection asks for every eighth is counted, from the first one on, and its end is not; one that
// asks for what is served elsewhere or was served is not counted, and is known.
func TestUnservedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newNamesGate(1<<20, 0, func(netip.Addr) bool { return false })
		owed := func(addr string) time.Duration {
			had, _ := g.judge.wasted.blocks.get(wastedBlock(netip.MustParseAddr(addr)))
			return time.Until(had.whole)
		}
		h := g.enter(quiet, from("192.0.1.1"))
		for i := range 100 { // as one connection of HTTP/2 may at once
			if !h.unserved(false) {
				t.Fatalf("number %d of 100 pages for a new address is none", i)
			}
		}
		h.leave(false)
		if owed := owed("192.0.1.1"); owed != 13*wasteEach {
			t.Errorf("100 pages count for %s, want %s", owed, 13*wasteEach)
		}
		p := g.enter(quiet, from("192.0.2.1"))
		n := 0
		for p.unserved(false) {
			n++
		}
		if n != 8*strangerBurst {
			t.Errorf("%d pages for one connection, want %d", n, 8*strangerBurst)
		}
		p.leave(false)
		if g.enter(quiet, from("192.0.2.2")) != nil {
			t.Error("the network of who asked for too many pages is let in")
		}
		q := g.enter(quiet, from("198.51.100.1"))
		q.unserved(false)
		q.leave(false)
		if owed := owed("198.51.100.1"); owed != wasteEach {
			t.Errorf("a page and the end of its connection count for %s, want %s", owed, wasteEach)
		}
		k := g.enter(quiet, from("203.0.113.1"))
		for range 1000 {
			if !k.unserved(true) {
				t.Fatal("who asks for a name of a bridge that is away is sent away")
			}
		}
		k.leave(false)
		if _, had := g.judge.wasted.blocks.get(wastedBlock(netip.MustParseAddr("203.0.113.1"))); had || !g.room.known.has(netip.MustParseAddr("203.0.113.1"), time.Now()) {
			t.Error("who asks for a name of a bridge that is away is counted, or not known")
		}
		g.closeAll()
	})
}

// TestWhoIsSentAway: status names the limit for which most are sent away in a second, and the network of which those most are: its number
// if it is its own limit, that of all if it is the limit of all.
func TestWhoIsSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newNamesGate(1<<20, 0, func(netip.Addr) bool { return false })
		g.what.port = "the port"
		defer g.closeAll()
		come := func(addr string, n int) {
			for range n {
				if p := g.enter(quiet, from(addr)); p != nil {
					p.leave(false)
				}
			}
		}
		want := func(what string, of string, used, limit int64, client string) {
			t.Helper()
			if short := g.appendTo(nil); len(short) != 1 || short[0].What != "connections a second for "+of+" at the port" || short[0].Used != used || short[0].Limit != limit || short[0].Largest.Client != client {
				t.Errorf("%s: status says %+v; want %d of %d for %s, most for %s", what, short, used, limit, of, client)
			}
		}
		const one, all = "strangers of one network", "all strangers"
		come("192.0.2.1", strangerBurst+300)
		come("198.51.100.1", strangerBurst+100)
		come("203.0.113.1", strangerBurst+1)
		want("two networks, and a third one last", one, strangerRate+300, strangerRate, "192.0.2.0/24")
		time.Sleep(time.Second)
		come("198.51.100.1", strangerRate+5) // and somebody else has most of the next second
		want("a second that is not over", one, strangerRate+300, strangerRate, "192.0.2.0/24")
		time.Sleep(time.Second)
		want("the next second", one, strangerRate+5, strangerRate, "198.51.100.0/24")
		time.Sleep(3 * time.Second)
		want("nobody any more", one, strangerRate, strangerRate, "198.51.100.0/24")
		g.mu.Lock()
		g.judge.wasted.all = time.Now().Add(time.Hour)
		g.mu.Unlock()
		come("192.0.2.1", 50)
		come("198.51.100.1", 10)
		come("203.0.113.1", 1)
		want("all together", all, strangersRate+61, strangersRate, "192.0.2.0/24")
		come("20.0.0.1", strangerBurst) // is new, and let in once
		want("all together and one more", all, strangersRate+61+strangerBurst-1, strangersRate, "192.0.2.0/24")
	})
}
