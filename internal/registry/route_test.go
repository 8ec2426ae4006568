package registry

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/link"
	"reverser/internal/wire"
)

// fakeWay is a link whose state the test sets.
type fakeWay struct {
	up     atomic.Bool
	ended  atomic.Bool
	full   atomic.Bool
	opened atomic.Int64
	asked  atomic.Int64 // how often Up was
}

func newWay() *fakeWay {
	w := &fakeWay{}
	w.up.Store(true)
	return w
}

var errFull = errors.New("no room")

func (w *fakeWay) Up() bool { w.asked.Add(1); return w.up.Load() }
func (w *fakeWay) Marks() []wire.Mark {
	return []wire.Mark{{Slot: 1, Stream: uint64(w.opened.Load())}}
}
func (w *fakeWay) Open(wire.Open) (*link.Stream, error) {
	switch {
	case w.ended.Load():
		return nil, link.ErrEnded
	case w.full.Load():
		return nil, errFull
	}
	w.opened.Add(1)
	return new(link.Stream), nil
}

func offerOf(w Way, c Claim) *Offer {
	return newOffer(&claim{session: &session{way: w}, asked: c})
}

func routeOf(offers ...*Offer) *Route {
	rt := newRoute(pub{Kind: "tcp", Port: 9000}, KeyID{})
	rt.set(offers)
	return rt
}

func stays() bool { return false }

// answer is what Take returned.
type answer struct {
	taken Taken
	err   error
	took  time.Duration
}

func take(ctx context.Context, rt *Route, left func() bool) <-chan answer {
	c := make(chan answer, 1)
	begin := time.Now()
	go func() {
		t, err := rt.Take(ctx, User{Left: left})
		c <- answer{t, err, time.Since(begin)}
	}()
	return c
}

func TestTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWay()
		o := offerOf(w, Claim{Target: "127.0.0.1:80"})
		rt := routeOf(o)
		if a := <-take(t.Context(), rt, stays); a.taken.Offer != o || a.taken.Stream == nil || a.err != nil || a.took != 0 {
			t.Errorf("Take while the bridge is there = %+v", a)
		}
		if got := o.Target(); got != "127.0.0.1:80" {
			t.Errorf("Target = %q", got)
		}

		w.up.Store(false)
		if a := <-take(t.Context(), rt, stays); !errors.Is(a.err, ErrAway) || a.took != Hold {
			t.Errorf("Take while it is away = %+v; want ErrAway after %s", a, Hold)
		}

		held := take(t.Context(), rt, stays)
		for range 5 { // of something else: the bridge is still away
			time.Sleep(Hold/5 - time.Second)
			rt.wake()
		}
		synctest.Wait()
		select {
		case a := <-held:
			t.Fatalf("Take = %+v; the bridge is not back", a)
		default:
		}
		w.up.Store(true)
		rt.wake()
		if a := <-held; a.taken.Offer != o || a.err != nil || a.took >= Hold {
			t.Errorf("Take after its return = %+v", a)
		}
	})
}

// TestHoldIsFromTheBeginning: changes on the way do not lengthen it.
func TestHoldIsFromTheBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWay()
		w.up.Store(false)
		rt := routeOf(offerOf(w, Claim{}))
		held := take(t.Context(), rt, stays)
		for range 5 {
			time.Sleep(Hold/5 - time.Millisecond)
			rt.wake()
		}
		if a := <-held; !errors.Is(a.err, ErrAway) || a.took != Hold {
			t.Errorf("Take = %+v; want ErrAway after %s", a, Hold)
		}
	})
}

// TestHeldUsersGo: a user who leaves, a service that is removed, and the end of the proxy end the wait at once.
func TestHeldUsersGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWay()
		w.up.Store(false)
		rt := routeOf(offerOf(w, Claim{}))
		if a := <-take(t.Context(), rt, func() bool { return true }); !errors.Is(a.err, ErrLeft) || a.took != lookEvery {
			t.Errorf("Take of a user who leaves = %+v", a)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone, removed := take(ctx, rt, stays), take(t.Context(), rt, stays)
		synctest.Wait()
		cancel()
		if a := <-gone; !errors.Is(a.err, context.Canceled) {
			t.Errorf("Take = %+v, want context.Canceled", a)
		}
		rt.remove(false)
		if a := <-removed; !errors.Is(a.err, ErrRemoved) || a.took != 0 {
			t.Errorf("Take = %+v, want ErrRemoved at once", a)
		}
		if _, err := rt.Take(t.Context(), User{Left: stays}); !errors.Is(err, ErrRemoved) {
			t.Errorf("Take of a removed route = %v", err)
		}
	})
}

// TestMaxHeld: one more than MaxHeld is refused at once, and there is room again when one has gone.
func TestMaxHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWay()
		w.up.Store(false)
		rt := routeOf(offerOf(w, Claim{}))
		ctx, cancel := context.WithCancel(t.Context())
		first := take(ctx, rt, stays)
		var held []<-chan answer
		for range MaxHeld - 1 {
			held = append(held, take(t.Context(), rt, stays))
		}
		synctest.Wait()
		a := <-take(t.Context(), rt, stays)
		if !errors.Is(a.err, ErrAway) || a.took != 0 || !strings.Contains(a.err.Error(), "256 clients wait") {
			t.Errorf("Take = %+v, want a refusal that counts those who wait", a)
		}
		cancel()
		<-first
		held = append(held, take(t.Context(), rt, stays))
		synctest.Wait()
		w.up.Store(true)
		rt.wake()
		for _, c := range held {
			if a := <-c; a.err != nil {
				t.Errorf("Take = %v after the bridge's return", a.err)
			}
		}
		if n := rt.held.Load(); n != 0 {
			t.Errorf("%d users are counted as waiting", n)
		}
	})
}

// TestMaxHeldEach: one connection may have many requests wait, as a page has that is loaded by HTTP/2, until half of the places are taken.
// Then it has a few, and other connections find places.
func TestMaxHeldEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWay()
		w.up.Store(false)
		rt := routeOf(offerOf(w, Claim{}))
		refused, served := 0, make(chan error, 1000)
		ask := func(of *Held, n int) {
			for range n {
				go func() {
					_, err := rt.Take(t.Context(), User{Left: stays, Held: of})
					served <- err
				}()
				synctest.Wait()
			}
			for {
				select {
				case err := <-served:
					if !errors.Is(err, ErrAway) {
						t.Errorf("Take = %v, want ErrAway", err)
					}
					refused++
				default:
					return
				}
			}
		}
		greedy, other := new(Held), new(Held)
		if ask(greedy, 200); refused != 200-MaxHeld/2 {
			t.Errorf("%d of 200 requests of one connection were refused, want %d", refused, 200-MaxHeld/2)
		}
		refused = 0
		if ask(other, 20); refused != 20-MaxHeldEach {
			t.Errorf("%d of 20 requests of another one were refused, want %d", refused, 20-MaxHeldEach)
		}
		w.up.Store(true)
		rt.wake()
		for range MaxHeld/2 + MaxHeldEach {
			if err := <-served; err != nil {
				t.Errorf("Take = %v after the bridge's return", err)
			}
		}
		if n := greedy.n.Load() + other.n.Load() + rt.held.Load(); n != 0 {
			t.Errorf("%d are counted as waiting", n)
		}
	})
}

// TestTakeEnded: a session that ends in this moment is as away as it was a moment later; another offer takes the user, or the
// user waits.
func TestTakeEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, other := newWay(), newWay()
		w.ended.Store(true)
		first, second := offerOf(w, Claim{}), offerOf(other, Claim{Unhealthy: true})
		rt := routeOf(first, second)
		if a := <-take(t.Context(), rt, stays); a.taken.Offer != second || a.err != nil {
			t.Errorf("Take = %+v, want the second offer", a)
		}
		rt.set([]*Offer{first})
		held := take(t.Context(), rt, stays)
		synctest.Wait()
		rt.set([]*Offer{second})
		if a := <-held; a.taken.Offer != second {
			t.Errorf("Take = %+v, want the offer that came", a)
		}
		other.full.Store(true)
		if a := <-take(t.Context(), rt, stays); !errors.Is(a.err, errFull) || a.took != 0 {
			t.Errorf("Take from a bridge that is full = %+v", a)
		}
	})
}

// TestRetiredOffer: a user who found an offer before it was retired finds it closed, and another one takes them.
func TestRetiredOffer(t *testing.T) {
	w, other := newWay(), newWay()
	first, second := offerOf(w, Claim{}), offerOf(other, Claim{})
	rt := routeOf(first)
	st := rt.state.Load()
	found := st.best(nil)
	rt.set([]*Offer{second})
	first.retire()
	if _, err := found.open(wire.Open{}); !errors.Is(err, errRetired) {
		t.Errorf("open of a retired offer = %v", err)
	}
	if taken, err := rt.Take(t.Context(), User{Left: stays}); err != nil || taken.Offer != second {
		t.Errorf("Take = %+v, %v", taken, err)
	}
	if n := w.opened.Load(); n != 0 {
		t.Errorf("%d streams were opened at the retired offer", n)
	}
}

// TestBalance: newcomers go where the fewest are for the weight; unhealthy offers come last, drained ones never.
func TestBalance(t *testing.T) {
	one := offerOf(newWay(), Claim{Weight: 1})
	three := offerOf(newWay(), Claim{Weight: 3})
	sick := offerOf(newWay(), Claim{Weight: 9, Unhealthy: true})
	drained := offerOf(newWay(), Claim{Weight: 9, Drained: true})
	rt := routeOf(drained, sick, one, three)
	var all []Taken
	for range 40 {
		taken, err := rt.Take(t.Context(), User{Left: stays})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, taken)
	}
	if a, b, c, d := one.users.Load(), three.users.Load(), sick.users.Load(), drained.users.Load(); a != 10 || b != 30 || c != 0 || d != 0 {
		t.Errorf("the users went %d, %d, %d, %d; want 10, 30, 0, 0", a, b, c, d)
	}
	for _, taken := range all {
		taken.Leave()
	}
	one.way.(*fakeWay).up.Store(false)
	three.way.(*fakeWay).up.Store(false)
	if taken, err := rt.Take(t.Context(), User{Left: stays}); err != nil || taken.Offer != sick {
		t.Errorf("Take = %+v, %v; want the offer that is not healthy, for want of another", taken, err)
	}
	if !rt.Up() {
		t.Error("Up = false")
	}
	sick.way.(*fakeWay).up.Store(false)
	if rt.Up() {
		t.Error("Up = true with a drained offer only")
	}
}

// TestLargeGroup: a newcomer to a large group whose bridges are all away, or have no room, looks at each of them about once.
func TestLargeGroup(t *testing.T) {
	const bridges = 1000
	for name, set := range map[string]func(*fakeWay){
		"away":    func(w *fakeWay) { w.up.Store(false) },
		"full":    func(w *fakeWay) { w.full.Store(true) },
		"ending":  func(w *fakeWay) { w.ended.Store(true) },
		"healthy": func(*fakeWay) {},
	} {
		t.Run(name, func(t *testing.T) {
			var offers []*Offer
			for i := range bridges {
				w := newWay()
				set(w)
				offers = append(offers, offerOf(w, Claim{Weight: uint32(i % 7)}))
				offers[i].users.Store(int64(i * 31 % 97))
			}
			rt := routeOf(offers...)
			_, _, err := rt.try(wire.Open{})
			if (name == "full") != errors.Is(err, errFull) {
				t.Errorf("try = %v", err)
			}
			var asked int64
			for _, o := range offers {
				asked += o.way.(*fakeWay).asked.Load()
			}
			if asked > 2*bridges {
				t.Errorf("%d bridges were asked %d times whether they are up", bridges, asked)
			}
		})
	}
}

// TestRanked: the offers are tried in the order in which best would choose them.
func TestRanked(t *testing.T) {
	var offers []*Offer
	for i := range 50 {
		offers = append(offers, offerOf(newWay(), Claim{Weight: uint32(i % 4), Unhealthy: i%5 == 0, Drained: i%11 == 0}))
		offers[i].users.Store(int64(i * 13 % 29))
	}
	st := routeOf(offers...).state.Load()
	tried := make(map[*Offer]struct{})
	for i, o := range st.ranked(nil) {
		best := st.best(tried)
		if best == nil || o.before(best) || best.before(o) {
			t.Fatalf("rank %d is another one than the best of the rest", i)
		}
		tried[o] = struct{}{}
	}
	if len(tried) != 45 || st.best(tried) != nil {
		t.Errorf("%d offers are ranked, want those that are not drained", len(tried))
	}
}
