package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// told is what a Doer did.
type told struct {
	t       testing.TB
	r       *Registry
	answers map[uint32]Told
	log     []string
	fails   map[Socket]bool
	room    int // beside the sockets that are open
	open    int
}

func (d *told) Room() int { return d.room - d.open }

func (d *told) note(format string, args ...any) { d.log = append(d.log, fmt.Sprintf(format, args...)) }

func (d *told) Open(s Socket, attempt uint64) {
	d.note("open %s", s)
	var err error
	if d.fails[s] {
		err = errors.New("no luck")
	} else {
		d.open++
	}
	if !d.r.Opened(s, attempt, err) {
		d.t.Errorf("nobody wants to know about %s", s)
	}
}
func (d *told) Close(s Socket) {
	d.open--
	d.note("close %s", s)
}
func (d *told) Tell(a Told) {
	d.answers[a.ID] = a
	d.note("tell %d: %d", a.ID, a.Status)
}
func (d *told) Unclaimed(w Way, id uint32) { d.note("unclaimed %d %v", id, w.Marks()) }
func (d *told) End(Way)                    { d.note("end") }

// world is a registry whose effects the test does with do.
type world struct {
	*Registry
	t *testing.T
	d *told
}

func newWorld(t *testing.T, keys ...Key) *world {
	r := New(Policy{Keys: keys, Own: []uint16{3010}})
	return &world{r, t, &told{t: t, r: r, answers: make(map[uint32]Told), fails: make(map[Socket]bool), room: 1 << 20}}
}

// do does all effects, and returns what they were.
func (w *world) do() []string {
	w.t.Helper()
	w.d.log = nil
	for w.step(w.d) {
	}
	return w.d.log
}

func (w *world) begin(k Key, replaces SessionID) (SessionID, *fakeWay) {
	w.t.Helper()
	way := newWay()
	id, err := w.Begin(Session{Key: k.ID, Way: way, Replaces: replaces})
	if err != nil {
		w.t.Fatal(err)
	}
	w.LinkUp(id, true)
	return id, way
}

func (w *world) claim(s SessionID, id uint32, public string) {
	w.t.Helper()
	if err := w.Claim(s, id, Claim{Public: public, Target: "t:" + public}); err != nil {
		w.t.Fatal(err)
	}
}

// want looks at the last answer to a claim.
func (w *world) want(id uint32, status wire.ClaimStatus, reason, bridge string) {
	w.t.Helper()
	if a := w.d.answers[id]; a.Status != status || a.Reason != reason || a.Bridge != bridge {
		w.t.Errorf("claim %d: %d %q %q; want %d %q %q", id, a.Status, a.Reason, a.Bridge, status, reason, bridge)
	}
}

func (w *world) find(public string) *Route {
	p, err := grammar.ParsePublic(public)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.View().Find(p)
}

func testKey(i int, allow ...string) Key { return simKey(i, allow) }

// TestWords: what the operators of proxy and bridge read.
func TestWords(t *testing.T) {
	a, b := testKey(0, "tcp/9000-9010"), testKey(1, "tcp/1024-65535")
	a.MaxServices = 2
	w := newWorld(t, a, b)
	one, _ := w.begin(a, 0)
	two, _ := w.begin(b, 0)
	w.d.fails[Socket{Kind: "tcp", Port: 9004}] = true
	for i, public := range []string{"tcp/9000", "tcp/9000", "tcp/80", "tcp/9001", "tcp/9002", "tcp/127.0.0.1:9000"} {
		w.claim(one, uint32(i+1), public)
	}
	for i, public := range []string{"tcp/9000", "tcp/127.0.0.1:9000", "tcp/3010", "udp/53", "tcp/9004", "offered", "x/y"} {
		w.claim(two, uint32(i+11), public)
	}
	w.do()
	same := func(id uint32, status wire.ClaimStatus, reason string) {
		w.t.Helper()
		w.want(id, status, reason, reason)
	}
	same(1, wire.ClaimUp, "")
	same(2, wire.ClaimRetrying, "tcp/9000 leads to t:tcp/9000 already, another service of the same bridge")
	same(3, wire.ClaimDenied, `tcp/80 denied: the policy of key "key0" allows tcp/9000-9010`)
	same(4, wire.ClaimUp, "")
	same(5, wire.ClaimRetrying, `tcp/9002 is more than the limit max-services of key "key0", 2`)
	same(6, wire.ClaimRetrying, `tcp/127.0.0.1:9000 is more than the limit max-services of key "key0", 2`)
	w.want(11, wire.ClaimRetrying, `tcp/9000 is held by key "key0"`, "tcp/9000 is held by another key")
	w.want(12, wire.ClaimRetrying, `tcp/127.0.0.1:9000 overlaps tcp/9000, which is held by key "key0"`,
		"tcp/127.0.0.1:9000 overlaps tcp/9000, which is held by another key")
	same(13, wire.ClaimDenied, "tcp/3010 denied: the link itself uses this port")
	same(14, wire.ClaimDenied, `udp/53 denied: the policy of key "key1" allows tcp/1024-65535`)
	same(15, wire.ClaimRetrying, "open tcp/9004 on the proxy: no luck")
	same(16, wire.ClaimDenied, `offered denied: the proxy offers no public port: WorkPort in its file does, or the bridge names one that key "key1" is allowed (tcp/1024-65535)`)
	if a := w.d.answers[17]; a.Status != wire.ClaimDenied || !strings.HasPrefix(a.Reason, "denied: public") {
		t.Errorf("%+v", a)
	}
	// The first one goes; whoever waited gets what is free.
	if err := w.Unclaim(one, 1); err != nil {
		t.Fatal(err)
	}
	w.do()
	same(2, wire.ClaimUp, "")
	w.d.fails = nil
	w.change((*core).retry)
	w.do()
	w.want(12, wire.ClaimRetrying, `tcp/127.0.0.1:9000 overlaps tcp/9000, which is held by key "key0"`,
		"tcp/127.0.0.1:9000 overlaps tcp/9000, which is held by another key")
	w.End(one)
	w.do()
	same(11, wire.ClaimUp, "")
	same(15, wire.ClaimUp, "")
	w.Stop()
	w.claim(two, 11, "tcp/9000")
	if got := w.do(); !slices.Contains(got, "close tcp/9000") || !slices.Contains(got, "close tcp/9004") {
		t.Errorf("Stop does %q", got)
	}
	same(11, wire.ClaimRetrying, StoppingText)
	if len(w.Services()) != 7 {
		t.Errorf("%d services", len(w.Services()))
	}
}

// TestOrder: a service is out of the view, and its offer retired, before its bridge may drop it.
func TestOrder(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	s, way := w.begin(a, 0)
	w.claim(s, 1, "tcp/9000")
	w.do()
	rt := w.find("tcp/9000")
	o := rt.state.Load().offers[0]
	way.opened.Store(17)
	if err := w.Unclaim(s, 1); err != nil {
		t.Fatal(err)
	}
	if w.find("tcp/9000") != nil {
		t.Error("users still find it")
	}
	if _, err := rt.Take(t.Context(), User{Left: stays}); !errors.Is(err, ErrRemoved) {
		t.Errorf("Take = %v", err)
	}
	if got, want := w.do(), []string{"close tcp/9000", "unclaimed 1 [{1 17}]"}; !slices.Equal(got, want) {
		t.Errorf("UNCLAIM: %q, want %q", got, want)
	}
	if !o.retired {
		t.Error("the offer is not retired")
	}
	if err := w.Unclaim(s, 1); err != nil {
		t.Fatal(err)
	}
	w.Unclaim(s, 99) // not known
	if got, want := w.do(), []string{"unclaimed 1 [{1 17}]", "unclaimed 99 [{1 17}]"}; !slices.Equal(got, want) {
		t.Errorf("UNCLAIM again: %q, want %q", got, want)
	}
}

// TestWhyARouteGoes: who waits for a name learns whether its bridge is away, or an order took the name.
func TestWhyARouteGoes(t *testing.T) {
	a, b := testKey(0, "tcp/1024-65535"), testKey(1, "tcp/1024-65535")
	for name, c := range map[string]struct {
		event func(w *world, s SessionID)
		want  error
	}{
		"the session ended": {func(w *world, s SessionID) { w.End(s) }, ErrAway},
		"the session ended, and another key waits for the name": {func(w *world, s SessionID) {
			other, _ := w.begin(b, 0)
			w.claim(other, 1, "tcp/9000")
			w.End(s)
		}, ErrAway},
		"the session that inherited it ended": {func(w *world, s SessionID) {
			heir, _ := w.begin(a, s)
			w.End(heir)
		}, ErrAway},
		"UNCLAIM":                 {func(w *world, s SessionID) { w.Unclaim(s, 1) }, ErrRemoved},
		"the key was removed":     {func(w *world, s SessionID) { w.Configure(Policy{Keys: []Key{b}}) }, ErrRemoved},
		"the key may not have it": {func(w *world, s SessionID) { w.Configure(Policy{Keys: []Key{testKey(0, "tcp/1"), b}}) }, ErrRemoved},
		"a successor does not claim it": {func(w *world, s SessionID) {
			heir, _ := w.begin(a, s)
			w.Round(heir)
		}, ErrRemoved},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, a, b)
			s, _ := w.begin(a, 0)
			w.claim(s, 1, "tcp/9000")
			rt := w.find("tcp/9000")
			c.event(w, s)
			if _, err := rt.Take(t.Context(), User{Left: stays}); err != c.want {
				t.Errorf("Take = %v; want %v", err, c.want)
			}
		})
	}
}

// TestViolations end the session; the registry itself changes nothing for it.
func TestViolations(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	s, _ := w.begin(a, 0)
	violates := func(err error, words string) {
		t.Helper()
		if _, ok := errors.AsType[*ViolationError](err); !ok || !strings.Contains(err.Error(), words) {
			t.Errorf("error %v, want a violation with %q", err, words)
		}
	}
	w.claim(s, 1, "tcp/9000")
	violates(w.Claim(s, 0, Claim{Public: "tcp/9001"}), "claim id 0")
	violates(w.Unclaim(s, 0), "claim id 0")
	violates(w.Claim(s, 1, Claim{Public: "tcp/9001"}), "cannot become")
	w.Unclaim(s, 1)
	violates(w.Claim(s, 1, Claim{Public: "tcp/9000"}), "not used again")
	for i := range MaxClaims {
		w.claim(s, uint32(i+2), fmt.Sprintf("tcp/127.0.0.1:%d", 1024+i))
	}
	violates(w.Claim(s, MaxClaims+2, Claim{Public: "tcp/9000"}), "more than 16384 claims")
	w.claim(s, 2, "tcp/127.0.0.1:1024") // but those that are there may be said again
	for id := uint32(1 << 20); ; id += 2 {
		if err := w.Unclaim(s, id); err != nil {
			violates(err, "scattered")
			break
		}
	}
	other, _ := w.begin(a, 0)
	for id := uint32(1); ; id++ {
		if err := w.Unclaim(other, id); err != nil {
			violates(err, "wait for an answer")
			break
		}
	}
	w.End(s)
	if err := w.Claim(s, 0, Claim{}); err != nil {
		t.Errorf("Claim of a session that ended = %v", err)
	}
}

// TestFresh: an answer is marked when the service came up, not each time that it is said again.
func TestFresh(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	s, _ := w.begin(a, 0)
	fresh := func(id uint32, want bool) {
		t.Helper()
		w.do()
		if a := w.d.answers[id]; a.Status != wire.ClaimUp || a.Fresh != want {
			t.Errorf("claim %d: %+v, want fresh %t", id, a, want)
		}
	}
	w.claim(s, 1, "tcp/9000")
	fresh(1, true)
	w.claim(s, 1, "tcp/9000")
	fresh(1, false)
	w.Configure(Policy{})
	w.do()
	w.Configure(Policy{Keys: []Key{a}})
	s, _ = w.begin(a, 0)
	w.claim(s, 1, "tcp/9000")
	fresh(1, true)
}

// TestInheritAgain: names that a session inherited and did not claim pass on to the next one, at no cost, and go when that has said all that
// it claims.
func TestInheritAgain(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	s, _ := w.begin(a, 0)
	const n = 1000
	for i := range uint32(n) {
		w.claim(s, i+1, fmt.Sprint("tcp/", 9000+i))
	}
	w.do()
	s, _ = w.begin(a, s)
	w.do()
	route := w.find("tcp/9500")
	for range 5 {
		before, looks := w.core.settled, w.core.looks
		if s, _ = w.begin(a, s); w.core.settled-before+w.core.looks-looks != 0 {
			t.Errorf("a session that claims nothing has %d names settled", w.core.settled-before)
		}
		if did := w.do(); len(did) != 0 || w.find("tcp/9500") != route {
			t.Errorf("a session that claims nothing does %q", did)
		}
	}
	w.claim(s, n, "tcp/9001")
	s, _ = w.begin(a, s)
	w.claim(s, n+1, "tcp/9500")
	w.Round(s)
	w.do()
	if len(w.core.names) != 1 || w.find("tcp/9500") != route || w.d.open != 1 {
		t.Errorf("%d names are left, and %d sockets; want the one that was claimed", len(w.core.names), w.d.open)
	}
	w.End(s)
	w.do()
	if co := &w.core; len(co.names)+len(co.sockets)+len(co.tenants) != 0 {
		t.Errorf("something is left: %d names, %d sockets", len(co.names), len(co.sockets))
	}
}

// TestInheritFromSucceeded: a name that a session inherited, and lost because a newer one had said all that it claims, is had again by one
// that is newer still.
func TestInheritFromSucceeded(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	first, _ := w.begin(a, 0)
	w.claim(first, 1, "tcp/9000")
	second, _ := w.begin(a, first) // inherits it
	third, _ := w.begin(a, 0)
	w.Round(third)
	w.do()
	if w.find("tcp/9000") != nil || w.d.open != 0 {
		t.Error("a name is held that the newest session does not claim")
	}
	w.begin(a, second)
	w.do()
	if w.find("tcp/9000") == nil || w.d.open != 1 {
		t.Error("a name is not held that the newest session inherited")
	}
}

// TestChangedTarget: a user reads what an offer is at any time, so what was read does not change when the claim is changed again.
func TestChangedTarget(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	s, _ := w.begin(a, 0)
	w.claim(s, 1, "tcp/9000")
	w.do()
	o := (<-take(t.Context(), w.find("tcp/9000"), stays)).taken.Offer
	change := func(target string) {
		t.Helper()
		if err := w.Claim(s, 1, Claim{Public: "tcp/9000", Target: target}); err != nil {
			t.Fatal(err)
		}
		w.do()
		if got := o.Target(); got != target {
			t.Errorf("Target = %q; want %q", got, target)
		}
	}
	change("second:1")
	read := o.attrs.Load()
	change("third:1")
	if read.Target != "second:1" {
		t.Errorf("what a user read is %q now; want it as it was", read.Target)
	}
}

// TestOfferedLost: the port that the proxy offers goes with the right to it, and its users with it.
func TestOfferedLost(t *testing.T) {
	a, b := testKey(0, "tcp/9000"), testKey(1, "tcp/9000")
	offer := []grammar.Public{{Kind: "tcp", Port: 9000}}
	w := newWorld(t)
	w.Configure(Policy{Keys: []Key{a, b}, Offer: offer})
	s, _ := w.begin(a, 0)
	w.claim(s, 1, "offered")
	w.do()
	if w.want(1, wire.ClaimUp, "", ""); w.d.answers[1].Public != offer[0] {
		t.Errorf("the claim is for %s", w.d.answers[1].Public)
	}
	rt := w.find("tcp/9000")
	o := rt.state.Load().offers[0]
	w.Configure(Policy{Keys: []Key{testKey(0, "tcp/9001"), b}, Offer: offer})
	if got := w.do(); !slices.Contains(got, "close tcp/9000") || !o.retired || w.find("tcp/9000") != nil {
		t.Errorf("the right to the port is gone: %q, retired %t", got, o.retired)
	}
	w.want(1, wire.ClaimDenied, `tcp/9000 denied: the policy of key "key0" allows tcp/9001`, `tcp/9000 denied: the policy of key "key0" allows tcp/9001`)
	if a := w.d.answers[1]; a.Public != offer[0] {
		t.Errorf("%s is denied, want the port that is offered", a.Public)
	}
	// And to another port with the offer.
	w.Configure(Policy{Keys: []Key{testKey(0, "tcp/9001"), b}, Offer: []grammar.Public{{Kind: "tcp", Port: 9001}}})
	if got := w.do(); !slices.Contains(got, "open tcp/9001") || !w.d.answers[1].Fresh {
		t.Errorf("another port is offered: %q, %+v", got, w.d.answers[1])
	}
	// A port that it may not have, and another one: what is denied has the name of the time.
	for _, port := range []uint16{9002, 9003} {
		w.Configure(Policy{Keys: []Key{testKey(0, "tcp/9001"), b}, Offer: []grammar.Public{{Kind: "tcp", Port: port}}})
		w.do()
		if a := w.d.answers[1]; a.Status != wire.ClaimDenied || a.Public.Port != port || w.Services()[0].Public != fmt.Sprintf("tcp/%d", port) {
			t.Errorf("tcp/%d is offered: %+v, %+v", port, a, w.Services())
		}
	}
}

// TestGroup: a name stays with its group when the key that had it goes; another claim of the next key does not take it away from it.
func TestGroup(t *testing.T) {
	a, b := testKey(1, "tcp/9000"), testKey(2, "tcp/9000")
	w := newWorld(t, a, b)
	one, _ := w.begin(b, 0) // beside its successor, without the group
	w.claim(one, 1, "tcp/9000")
	other, _ := w.begin(a, 0)
	grouped := func(s SessionID) {
		if err := w.Claim(s, 2, Claim{Public: "tcp/9000", Group: "g"}); err != nil {
			t.Fatal(err)
		}
	}
	grouped(other)
	w.End(one)
	one, _ = w.begin(b, 0)
	w.claim(one, 1, "tcp/9000")
	two, _ := w.begin(b, 0)
	grouped(two)
	w.do()
	w.Configure(Policy{Keys: []Key{b}})
	w.do()
	for range 2 {
		if h := w.core.holdings[grammar.Public{Kind: "tcp", Port: 9000}]; h == nil || h.key != b.ID || h.group != "g" {
			t.Fatalf("the name is held by %+v, want key %x in the group", h, b.ID[0])
		}
		w.change(func(co *core) { co.touch(co.names[grammar.Public{Kind: "tcp", Port: 9000}]) })
	}
}

// TestDone: when it returns, what was decided before has been done.
func TestDone(t *testing.T) {
	a := testKey(0, "tcp/1024-65535")
	w := newWorld(t, a)
	s, _ := w.begin(a, 0)
	w.claim(s, 1, "tcp/9000")
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	if err := w.Done(canceled()); !errors.Is(err, context.Canceled) {
		t.Errorf("Done without anybody who does = %v", err)
	}
	go func() {
		defer close(stopped)
		w.Run(ctx, w.d)
	}()
	for range 100 {
		rt := w.find("tcp/9000")
		o := rt.state.Load().offers[0]
		w.Configure(Policy{Keys: []Key{testKey(0)}})
		if err := w.Done(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := o.open(wire.Open{}); !errors.Is(err, errRetired) {
			t.Fatalf("a user enters under the old policy: %v", err)
		}
		w.Configure(Policy{Keys: []Key{a}})
	}
	cancel()
	<-stopped
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// TestDocument: what is cut off is an error or a registry, never a panic; a part that is not known is skipped.
func TestDocument(t *testing.T) {
	a, b := testKey(0, "tcp/1024-65535"), testKey(1, "tcp/1024-65535")
	p := Policy{Keys: []Key{a, b}}
	w := newWorld(t, a, b)
	s, way := w.begin(a, 0)
	s2, _ := w.begin(b, 0)
	w.claim(s, 1, "tcp/9000")
	w.claim(s, 2, "tcp/80")
	w.claim(s2, 1, "tcp/127.0.0.1:9000")
	w.do()
	w.Unclaim(s, 2)
	doc := w.Freeze()
	ways := func(SessionID) Way { return way }
	for n := range doc {
		if r, err := Thaw(doc[:n], p, ways); err == nil {
			r.Freeze()
		}
	}
	for _, bad := range [][]byte{nil, {0}, {documentVersion + 1}, append([]byte{documentVersion}, 1, 0xff, 0, 0, 0)} {
		if _, err := Thaw(bad, p, ways); err == nil {
			t.Errorf("Thaw(%x) is a registry", bad)
		}
	}
	r, err := Thaw(append(doc, 200, 0, 0, 0, 3, 1, 2, 3), p, ways)
	if err != nil || r.core.derived() != w.core.derived() {
		t.Errorf("Thaw = %v, with a part that is not known", err)
	}
	r, err = Thaw(doc, Policy{Keys: []Key{b}}, ways)
	if err != nil {
		t.Fatal(err)
	}
	d := &told{t: t, r: r, answers: make(map[uint32]Told), room: 1 << 20}
	for r.step(d) {
	}
	if !slices.Equal(d.log, []string{"end", "close tcp/9000", "open tcp/127.0.0.1:9000", "tell 1: 1"}) {
		t.Errorf("without the first key: %q", d.log)
	}
}

// TestCost: an event costs what it touches, however many sessions and claims there are.
func TestCost(t *testing.T) {
	keys := make([]Key, 300)
	for i := range keys {
		keys[i] = testKey(0, "tcp/1024-65535")
		keys[i].ID = KeyID{byte(i), byte(i >> 8), 1}
	}
	w := newWorld(t, keys...)
	for i, k := range keys {
		s, _ := w.begin(k, 0)
		w.claim(s, 1, "tcp/9000")                           // contested by all
		w.claim(s, 2, fmt.Sprintf("tcp/%d", 10_000+i))      // its own
		w.claim(s, 3, fmt.Sprintf("tcp/127.0.0.1:%d", 999)) // denied
	}
	w.do()
	s, _ := w.begin(keys[0], 0)
	for i := range 2000 {
		before := w.core.settled
		w.claim(s, uint32(i+1), fmt.Sprintf("tcp/127.0.0.1:%d", 20_000+i))
		if n := w.core.settled - before; n != 1 {
			t.Fatalf("a claim settles %d names", n)
		}
	}
	before := w.core.settled
	w.Unclaim(s, 77)
	if n := w.core.settled - before; n > 2 {
		t.Errorf("an UNCLAIM settles %d names", n)
	}
	before = w.core.settled
	keys[17].MaxServices = 1
	w.Configure(Policy{Keys: keys})
	if n := w.core.settled - before; n > 4 {
		t.Errorf("another limit for one key settles %d names", n)
	}
}

// TestLinkUpWakesCallers: a session that comes back wakes the routes whose users wait for it, and looks at no other.
func TestLinkUpWakesCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := testKey(0, "tcp/1024-65535")
		w := newWorld(t, k)
		s, way := w.begin(k, 0)
		for i := range uint32(1000) {
			w.claim(s, i+1, fmt.Sprintf("tcp/%d", 10_000+i))
		}
		w.do()
		way.up.Store(false)
		w.LinkUp(s, false)
		taken := []<-chan answer{take(t.Context(), w.find("tcp/10007"), stays), take(t.Context(), w.find("tcp/10007"), stays), take(t.Context(), w.find("tcp/10900"), stays)}
		synctest.Wait()
		called, idle := w.core.sessions[s].callers.routes, w.find("tcp/10001").state.Load()
		if len(called) != 2 || called[w.find("tcp/10007")] != 2 || called[w.find("tcp/10900")] != 1 {
			t.Errorf("called by %v", called)
		}
		way.up.Store(true)
		w.LinkUp(s, true)
		for _, c := range taken {
			if a := <-c; a.err != nil || a.took != 0 {
				t.Errorf("Take = %v after %v", a.err, a.took)
			}
		}
		if len(called) != 0 || w.find("tcp/10001").state.Load() != idle {
			t.Errorf("called by %v still, or a route was woken that nobody waits for", called)
		}
	})
}

// TestFloods: what waits is bounded, whatever a bridge says while nothing is done.
func TestFloods(t *testing.T) {
	k := testKey(0, "tcp/1024-65535")
	k.Groups = []string{"g"}
	for name, say := range map[string]func(r *Registry, s SessionID, i int) error{
		"UNCLAIM again": func(r *Registry, s SessionID, _ int) error { return r.Unclaim(s, 1) },
		"CLAIM again":   func(r *Registry, s SessionID, _ int) error { return r.Claim(s, 2, Claim{Public: "tcp/9000"}) },
		"another target": func(r *Registry, s SessionID, i int) error {
			return r.Claim(s, 2, Claim{Public: "tcp/9000", Target: fmt.Sprint(i)})
		},
		"another group": func(r *Registry, s SessionID, i int) error {
			return r.Claim(s, 2, Claim{Public: "tcp/9000", Group: []string{"", "g"}[i%2]})
		},
		"other claims": func(r *Registry, s SessionID, i int) error {
			return cmp.Or(r.Claim(s, uint32(i+3), Claim{Public: "tcp/9000"}), r.Unclaim(s, uint32(i+3)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := New(Policy{Keys: []Key{k}})
			s, err := r.Begin(Session{Key: k.ID, Way: newWay()})
			for i := 0; i < 4*maxOwed && err == nil; i++ {
				err = say(r, s, i)
			}
			if _, ended := errors.AsType[*ViolationError](err); err != nil && !ended {
				t.Fatal(err)
			}
			if n := r.core.effects.n; n > 3*maxOwed {
				t.Errorf("%d effects wait", n)
			}
		})
	}
}

// TestManyClaimsOfOneSession: a bridge with many claims holds nobody up while it comes, changes and goes. The names are all different, all
// the same, addresses of one port that wait for one that overlaps them, or such that are opened.
func TestManyClaimsOfOneSession(t *testing.T) {
	for name, public := range map[string]func(i int) string{
		"different": func(i int) string { return fmt.Sprintf("tcp/%d", 1024+i) },
		"the same":  func(int) string { return "tcp/9000" },
		"one port":  func(i int) string { return fmt.Sprintf("tcp/127.0.%d.%d:9000", i>>8, i&255) },
		"addresses": func(i int) string { return fmt.Sprintf("tcp/127.0.%d.%d:9001", i>>8, i&255) },
	} {
		t.Run(name, func(t *testing.T) {
			k, other := testKey(0, "tcp/1024-65535"), testKey(1, "tcp/1024-65535")
			r := New(Policy{Keys: []Key{k, other}})
			d := &told{t: t, r: r, answers: make(map[uint32]Told), room: 1 << 20}
			before := 0
			took := func(what string) { // each claim a few times, and not once for each other claim
				t.Helper()
				for r.step(d) {
				}
				if n := r.core.looks - before; n > 12*MaxClaims {
					t.Errorf("%s: looks %d times at a claim or a socket", what, n)
				}
				before = r.core.looks
			}
			o, _ := r.Begin(Session{Key: other.ID, Way: newWay()})
			r.Claim(o, 1, Claim{Public: "tcp/0.0.0.0:9000"})
			s, _ := r.Begin(Session{Key: k.ID, Way: newWay()})
			for i := range uint32(MaxClaims) {
				if err := r.Claim(s, i+1, Claim{Public: public(int(i))}); err != nil {
					t.Fatal(err)
				}
			}
			took("claims")
			for i := range uint32(1000) {
				r.Claim(s, 1, Claim{Public: public(0), Target: fmt.Sprint(i)})
			}
			took("1,000 other targets")
			for i := range uint32(1000) {
				r.Claim(o, i+2, Claim{Public: "tcp/[::1]:9000"})
				r.Unclaim(o, i+2)
			}
			took("1,000 times an address beside them")
			for i := range uint32(1000) {
				r.Unclaim(s, i+1)
			}
			took("1,000 UNCLAIMs")
			r.Unclaim(o, 1)
			took("the end of what stood in their way")
			r.Claim(o, 5000, Claim{Public: "tcp/0.0.0.0:9001"})
			r.Claim(o, 5001, Claim{Public: "tcp/0.0.0.0:9000"})
			took("one that they stand in the way of")
			r.End(s)
			took("the end")
			if d.open != 2 {
				t.Errorf("%d sockets are open, want the two of the other key", d.open)
			}
		})
	}
}

func BenchmarkClaim(b *testing.B) {
	for _, of := range []int{1, 100, MaxClaims} {
		b.Run(fmt.Sprint(of), func(b *testing.B) {
			k := testKey(0, "tcp/1024-65535")
			r := New(Policy{Keys: []Key{k}})
			d := &told{t: b, r: r, answers: make(map[uint32]Told), room: 1 << 20}
			s, _ := r.Begin(Session{Key: k.ID, Way: newWay()})
			for i := range of - 1 {
				r.Claim(s, uint32(i+1), Claim{Public: fmt.Sprintf("tcp/127.0.%d.1:%d", i>>14, 1024+i&0x3fff)})
			}
			for id := uint32(MaxClaims); b.Loop(); id++ {
				r.Claim(s, id, Claim{Public: "tcp/1023"})
				r.Claim(s, id+1, Claim{Public: "tcp/1025"})
				r.Unclaim(s, id)
				id++
				r.Unclaim(s, id)
				for r.step(d) {
				}
				d.log = nil
				clear(d.answers)
			}
		})
	}
}

// TestDoneAmongMoreWork: Done does not wait for what is decided behind it, however much that is.
func TestDoneAmongMoreWork(t *testing.T) {
	r := New(Policy{})
	d := &told{t: t, r: r}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var again effect
	again.do = func(co *core, _ effect) func(Doer, *Registry) {
		co.effects.add(KeyID{}, again) // there is always one more
		return nil
	}
	r.change(func(co *core) { co.effects.add(KeyID{}, again) })
	wg.Go(func() {
		for ctx.Err() == nil {
			r.step(d)
		}
	})
	if err := r.Done(ctx); err != nil {
		t.Errorf("Done = %v", err)
	}
}

// BenchmarkFleet is what it costs the registry that a bridge with four services comes, beside 5,000 others.
func BenchmarkFleet(b *testing.B) {
	keys := make([]Key, 5000)
	for i := range keys {
		keys[i] = testKey(0, "tcp/1024-65535")
		keys[i].ID = KeyID{byte(i), byte(i >> 8), 1}
	}
	r := New(Policy{Keys: keys})
	d := &told{t: b, r: r, answers: make(map[uint32]Told), room: 1 << 20}
	come := func(i int) SessionID {
		s, _ := r.Begin(Session{Key: keys[i].ID, Way: newWay()})
		for c := range uint32(4) {
			r.Claim(s, c+1, Claim{Public: fmt.Sprintf("tcp/%d", 2000+4*i+int(c))})
		}
		r.Round(s)
		r.LinkUp(s, true)
		for r.step(d) {
		}
		d.log = nil
		return s
	}
	for i := range keys {
		come(i)
	}
	b.ReportAllocs()
	for b.Loop() {
		r.End(come(0))
	}
}

// BenchmarkLinkUp is what it costs that a connection of a bridge with very many services comes or goes.
func BenchmarkLinkUp(b *testing.B) {
	k := testKey(0, "tcp/1024-65535")
	r := New(Policy{Keys: []Key{k}})
	s, err := r.Begin(Session{Key: k.ID, Way: newWay()})
	if err != nil {
		b.Fatal(err)
	}
	for i := range uint32(MaxClaims) {
		r.Claim(s, i+1, Claim{Public: fmt.Sprintf("tcp/%d", 1024+i)})
	}
	for b.Loop() {
		r.LinkUp(s, true)
	}
}

// TestNamesShareMemory: names without sockets have so many places. A key without a limit of its own has half of those that others leave, and
// gets more as others go; one with a limit has as many as that says.
func TestNamesShareMemory(t *testing.T) {
	a, b, c := testKey(0, "http/*", "tcp/9000"), testKey(1, "http/*"), testKey(2, "http/*")
	c.MaxServices = 4
	w := newWorld(t)
	policy := Policy{Keys: []Key{a, b, c}, Named: []grammar.Kind{grammar.KindHTTP}, Names: 10}
	w.Configure(policy)
	id := uint32(0)
	claims := func(s SessionID, n int) (first uint32) {
		for range n {
			id++
			w.claim(s, id, fmt.Sprintf("http/%d.example", id))
		}
		w.do()
		return id - uint32(n) + 1
	}
	want := func(what string, first uint32, up int) {
		t.Helper()
		n := 0
		for w.d.answers[first+uint32(n)].up() && w.d.answers[first+uint32(n)].Key == w.d.answers[first].Key {
			n++
		}
		if n != up {
			t.Errorf("%s: %d names, want %d", what, n, up)
		}
	}
	sa, _ := w.begin(a, 0)
	firstA := claims(sa, 7)
	want("one key alone", firstA, 5)
	w.want(firstA+5, wire.ClaimRetrying,
		"http/6.example has no place: the proxy has memory for 10 names. Key \"key0\" has 5, and may have half of what others leave: `reverser key edit key0 --max-services N` gives it a number of its own, and more memory (MemoryMax=) gives all more",
		"http/6.example has no place: the proxy has memory for 10 names, and this key has its share")
	w.claim(sa, 100, "tcp/9000")
	w.do()
	w.want(100, wire.ClaimUp, "", "") // it costs a descriptor
	sb, _ := w.begin(b, 0)
	firstB := claims(sb, 4)
	want("another key", firstB, 3)
	sc, _ := w.begin(c, 0)
	firstC := claims(sc, 3)
	want("a key with a limit", firstC, 2)
	w.want(firstC+2, wire.ClaimRetrying, "http/14.example has no place: the proxy has memory for 10 names, and all are taken: give it more (MemoryMax=), or let fewer names be claimed",
		"http/14.example has no place: the proxy has memory for 10 names, and all are taken")
	if got, want := w.Crowd(), (Crowd{Held: 10, Most: 10, Waiting: 4, Largest: a.ID, ByLargest: 5}); got != want {
		t.Errorf("Crowd = %+v, want %+v", got, want)
	}
	w.End(sa)
	w.do()
	want("another key, when the first has gone", firstB, 4)
	want("a key with a limit, when the first has gone", firstC, 3)
	if got, want := w.Crowd(), (Crowd{Held: 7, Most: 10}); got != want {
		t.Errorf("Crowd = %+v, want %+v", got, want)
	}
	// A number of its own is another word than the share.
	sa, _ = w.begin(a, 0)
	firstA = claims(sa, 3)
	want("the first key, back", firstA, 2)
	a.MaxServices = 3
	policy.Keys = []Key{a, b, c}
	w.Configure(policy)
	w.do()
	want("with a limit of its own", firstA, 3)
}

// TestServicesOfMany: they are described part by part, and each of them once.
func TestServicesOfMany(t *testing.T) {
	const each = 2*describedAtOnce + 1
	a, b := testKey(0, "http/*"), testKey(1, "http/*")
	w := newWorld(t)
	w.Configure(Policy{Keys: []Key{a, b}, Named: []grammar.Kind{grammar.KindHTTP}})
	for i, k := range []Key{a, b} {
		s, _ := w.begin(k, 0)
		for id := range uint32(each) {
			w.claim(s, id+1, fmt.Sprintf("http/%d.%d.example", id, i))
		}
	}
	seen := make(map[string]int)
	for _, s := range w.Services() {
		seen[s.Public+" of "+s.KeyName]++
	}
	for i := range 2 {
		for id := range each {
			if name := fmt.Sprintf("http/%d.%d.example of key%[2]d", id, i); seen[name] != 1 {
				t.Errorf("%s: %d times", name, seen[name])
			}
		}
	}
	if len(seen) != 2*each {
		t.Errorf("%d services of %d", len(seen), 2*each)
	}
}

// BenchmarkServices is what it costs to list the services of three keys that claim all they may.
func BenchmarkServices(b *testing.B) {
	keys := []Key{testKey(0, "http/*"), testKey(1, "http/*"), testKey(2, "http/*")}
	r := New(Policy{Keys: keys, Named: []grammar.Kind{grammar.KindHTTP}})
	for i, k := range keys {
		s, err := r.Begin(Session{Key: k.ID, Way: newWay()})
		if err != nil {
			b.Fatal(err)
		}
		for id := range uint32(MaxClaims) {
			r.Claim(s, id+1, Claim{Public: fmt.Sprintf("http/%d.%d.example.com", id, i)})
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if n := len(r.Services()); n != 3*MaxClaims {
			b.Fatal(n)
		}
	}
}

// TestNamesOverlap: the TLS clients of a name go to whoever had it first, tls/ or https/; paths of one host may be of several keys.
func TestNamesOverlap(t *testing.T) {
	a, b := testKey(0, "https/*", "tls/*"), testKey(1, "https/*", "tls/*", "http/*")
	w := newWorld(t)
	w.Configure(Policy{Keys: []Key{a, b}, Named: []grammar.Kind{grammar.KindHTTPS, grammar.KindTLS, grammar.KindHTTP}})
	one, _ := w.begin(a, 0)
	two, _ := w.begin(b, 0)
	w.claim(one, 1, "https/a.example/x")
	w.claim(two, 2, "tls/a.example")
	w.claim(two, 3, "https/a.example")
	w.claim(two, 4, "https/a.example/x")
	w.claim(two, 5, "http/a.example/x")
	w.do()
	w.want(1, wire.ClaimUp, "", "")
	w.want(2, wire.ClaimRetrying, "tls/a.example overlaps https/a.example/x, which is held by key \""+a.Name+"\"", "tls/a.example overlaps https/a.example/x, which is held by another key")
	w.want(3, wire.ClaimUp, "", "")
	w.want(4, wire.ClaimRetrying, "https/a.example/x is held by key \""+a.Name+"\"", "https/a.example/x is held by another key")
	w.want(5, wire.ClaimUp, "", "")
	for id, s := range map[uint32]SessionID{1: one, 3: two, 4: two} {
		if err := w.Unclaim(s, id); err != nil {
			t.Fatal(err)
		}
	}
	w.do()
	w.want(2, wire.ClaimUp, "", "")
}

// TestBind: where public ports without an address are opened at one, that decides what stands in the way of what. The names stay.
func TestBind(t *testing.T) {
	a, b := testKey(0, "tcp/9000-9009"), testKey(1, "tcp/9000-9009")
	for _, c := range []struct {
		bind, first, second string
		overlap             bool
	}{
		{"10.0.0.1", "tcp/9000", "tcp/127.0.0.1:9000", false},
		{"10.0.0.1", "tcp/127.0.0.1:9000", "tcp/9000", false},
		{"10.0.0.1", "tcp/9000", "tcp/[::1]:9000", false},
		{"10.0.0.1", "tcp/9000", "tcp/10.0.0.1:9000", true},
		{"10.0.0.1", "tcp/10.0.0.1:9000", "tcp/9000", true},
		{"10.0.0.1", "tcp/9000", "tcp/0.0.0.0:9000", true},
		{"10.0.0.1", "tcp/0.0.0.0:9000", "tcp/9000", true},
		{"10.0.0.1", "tcp/9000", "tcp/[::]:9000", false},
		{"0.0.0.0", "tcp/9000", "tcp/127.0.0.1:9000", true},
		{"0.0.0.0", "tcp/127.0.0.1:9000", "tcp/9000", true},
		{"0.0.0.0", "tcp/9000", "tcp/0.0.0.0:9000", true},
		{"0.0.0.0", "tcp/9000", "tcp/[::1]:9000", false},
		{"::1", "tcp/9000", "tcp/[::1]:9000", true},
		{"::1", "tcp/9000", "tcp/[::]:9000", true},
		{"", "tcp/9000", "tcp/127.0.0.1:9000", true},
	} {
		r := New(Policy{Bind: c.bind})
		w := &world{r, t, &told{t: t, r: r, answers: make(map[uint32]Told), fails: make(map[Socket]bool), room: 1 << 20}}
		w.Configure(Policy{Keys: []Key{a, b}, Bind: "192.0.2.1"}) // which stays what New was given
		one, _ := w.begin(a, 0)
		two, _ := w.begin(b, 0)
		w.claim(one, 1, c.first)
		w.claim(two, 2, c.second)
		w.do()
		w.want(1, wire.ClaimUp, "", "")
		if !c.overlap {
			w.want(2, wire.ClaimUp, "", "")
		} else {
			over := c.second + " overlaps " + c.first + ", which is held by "
			w.want(2, wire.ClaimRetrying, over+"key \""+a.Name+"\"", over+"another key")
		}
		if again, err := Thaw(w.Freeze(), Policy{Keys: []Key{a, b}, Bind: c.bind}, func(SessionID) Way { return newWay() }); err != nil || again.core.derived() != w.core.derived() {
			t.Errorf("%+v: Thaw = %v, or something else than was frozen", c, err)
		}
		if err := w.Unclaim(one, 1); err != nil {
			t.Fatal(err)
		}
		w.do()
		w.want(2, wire.ClaimUp, "", "")
	}
}

// TestSecure: the proxy ends TLS for a host as long as somebody serves a https/ name of it, under whatever path. A wildcard needs a
// certificate from files.
func TestSecure(t *testing.T) {
	a := testKey(0, "https/*", "tls/*")
	policy := Policy{Keys: []Key{a}, Named: []grammar.Kind{grammar.KindHTTPS, grammar.KindTLS}}
	w := newWorld(t)
	w.Configure(policy)
	s, _ := w.begin(a, 0)
	for i, public := range []string{"https/a.example/x", "https/a.example/y", "https/b.example", "tls/c.example", "https/*.example", "https/*"} {
		w.claim(s, uint32(i+1), public)
	}
	w.do()
	secure := func(want ...string) {
		t.Helper()
		for _, host := range []string{"a.example", "b.example", "c.example", "*.example", "*"} {
			if got := w.View().Secure(host); got != slices.Contains(want, host) {
				t.Errorf("Secure(%s) = %t", host, got)
			}
		}
	}
	secure("a.example", "b.example")
	denied := " denied: no certificate for a wildcard comes by itself: give the proxy one ([[certificate]] in its file), or claim each host"
	w.want(5, wire.ClaimDenied, "https/*.example"+denied, "https/*.example"+denied)
	w.want(6, wire.ClaimDenied, "https/*"+denied, "https/*"+denied)
	policy.Given = []string{"*.example"}
	w.Configure(policy)
	w.do()
	secure("a.example", "b.example", "*.example", "*")
	policy.Given = []string{"a.example"}
	w.Configure(policy)
	w.do()
	secure("a.example", "b.example", "*")
	for id := range uint32(2) {
		if err := w.Unclaim(s, id+1); err != nil {
			t.Fatal(err)
		}
		w.do()
		secure([]string{"a.example", "b.example", "*"}[id:]...)
	}
	w.End(s)
	w.do()
	secure()
}

// TestAsk: what a key would get is told by the policy and by what others have, and nothing changes.
func TestAsk(t *testing.T) {
	allow := func(s string) grammar.Policy {
		p, err := grammar.ParsePolicy([]string{s})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b := Key{ID: KeyID{1}, Name: "a", Allow: allow("tcp/9000-9009")}, Key{ID: KeyID{2}, Name: "b", Allow: allow("tcp/1024-65535")}
	w := newWorld(t, a, b)
	s, _ := w.begin(a, 0)
	w.claim(s, 1, "tcp/9000")
	w.do()
	asked := []string{"tcp/9000", "tcp/9001", "tcp/3010", "tcp/80", "nonsense"}
	for _, c := range []struct {
		key  KeyID
		want []string // what the answers begin with
	}{
		{a.ID, []string{"", "", `tcp/3010 denied: the policy of key "a" allows tcp/9000-9009`, "tcp/80 denied", "denied: "}},
		{b.ID, []string{"tcp/9000 is held by another key", "", "tcp/3010 denied: the link itself uses this port", `tcp/80 denied: the policy of key "b"`, "denied: "}},
		{KeyID{3}, []string{"the key was removed", "the key was removed", "the key was removed", "the key was removed", "the key was removed"}},
	} {
		got := w.Ask(c.key, asked)
		if len(got) != len(c.want) {
			t.Fatalf("Ask = %q, want %d answers", got, len(c.want))
		}
		for i, why := range got {
			if !strings.HasPrefix(why, c.want[i]) || c.want[i] == "" && why != "" {
				t.Errorf("Ask of key %d for %s = %q, want %q", c.key[0], asked[i], why, c.want[i])
			}
		}
	}
	if log := w.do(); len(log) > 0 {
		t.Errorf("a question had effects: %q", log)
	}
	if len(w.core.names) != 1 {
		t.Errorf("a question left %d names, want the one that is claimed", len(w.core.names))
	}
}
