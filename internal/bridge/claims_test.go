package bridge

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// claimsTest drives services and one link in words.
type claimsTest struct {
	t *testing.T
	s *services
	c *claims
}

func newClaimsTest(t *testing.T) *claimsTest {
	s := newServices()
	return &claimsTest{t, s, s.addLink()}
}

// exposes are services as a user writes them: "9000=9904".
func exposes(t *testing.T, texts ...string) (all []Service) {
	t.Helper()
	for _, text := range texts {
		e, err := grammar.ParseExpose(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, Service{Public: e.Public, Target: e.Target})
	}
	return all
}

func (x *claimsTest) apply(texts ...string) []uint32 {
	x.t.Helper()
	changed, err := x.s.apply(exposes(x.t, texts...))
	if err != nil {
		x.t.Fatalf("apply(%q): %v", texts, err)
	}
	return changed
}

// wantSaid checks what the proxy is told, such as "CLAIM 1 tcp/9000=127.0.0.1:9904", "UNCLAIM 1" and "ROUND".
func (x *claimsTest) wantSaid(want ...string) {
	x.t.Helper()
	var got []string
	for _, f := range x.c.take() {
		got = append(got, f.String())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		x.t.Errorf("said %q, want %q", got, want)
	}
}

func (f say) String() string {
	switch f.kind {
	case sayClaim:
		return fmt.Sprintf("CLAIM %d %s=%s", f.id, f.service.Public, f.service.target())
	case sayUnclaim:
		return fmt.Sprintf("UNCLAIM %d", f.id)
	}
	return "ROUND"
}

// wantTarget checks where a stream goes; "" says that it is refused.
func (x *claimsTest) wantTarget(id uint32, stream uint64, want string) {
	x.t.Helper()
	got := ""
	if svc, _ := x.c.opened(id, stream); svc != nil {
		got = svc.target()
	}
	if got != want {
		x.t.Errorf("stream %#x of service %d goes to %q, want %q", stream, id, got, want)
	}
}

func (x *claimsTest) unclaimed(id uint32, marks ...uint64) {
	x.t.Helper()
	if err := x.c.unclaimed(id, marksOf(marks...)); err != nil {
		x.t.Fatalf("unclaimed(%d): %v", id, err)
	}
}

// marksOf returns the marks of slots 1, 2, ….
func marksOf(streams ...uint64) (marks []wire.Mark) {
	for i, stream := range streams {
		marks = append(marks, wire.Mark{Slot: uint8(i + 1), Stream: stream})
	}
	return marks
}

func (x *claimsTest) up(id uint32) heard {
	x.t.Helper()
	h, err := x.c.claimed(id, answer{state: status.ServiceUp})
	if err != nil {
		x.t.Fatalf("claimed(%d): %v", id, err)
	}
	return h
}

func (x *claimsTest) wantRetired(want int) {
	x.t.Helper()
	if got := len(x.c.retired); got != want {
		x.t.Errorf("%d services are retired, want %d", got, want)
	}
}

// on is the nth stream that the proxy opens on a slot.
func on(slot uint8, nth uint64) uint64 { return nth<<8 | uint64(slot) }

func TestEverythingIsSaidAtEachAttach(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "9001=9905")
	x.wantSaid()
	x.c.attached()
	x.wantSaid("CLAIM 1 tcp/9000=127.0.0.1:9904", "CLAIM 2 tcp/9001=127.0.0.1:9905", "ROUND")
	x.c.detached()
	x.c.attached()
	x.wantSaid("CLAIM 1 tcp/9000=127.0.0.1:9904", "CLAIM 2 tcp/9001=127.0.0.1:9905", "ROUND")
}

func TestAnIDMeansOnePublicForEver(t *testing.T) {
	x := newClaimsTest(t)
	x.c.attached()
	x.wantSaid("ROUND")
	x.apply("9000=9904", "9001=9905")
	x.wantSaid("CLAIM 1 tcp/9000=127.0.0.1:9904", "CLAIM 2 tcp/9001=127.0.0.1:9905")
	x.apply("9001=9905", "9000=9904") // the same
	x.wantSaid()
	x.apply("9001=80") // another target
	x.wantSaid("UNCLAIM 1", "CLAIM 2 tcp/9001=127.0.0.1:80")
	x.apply("9000=9904", "9001=80") // what comes back is a new one
	x.wantSaid("CLAIM 3 tcp/9000=127.0.0.1:9904")
	x.wantTarget(1, on(1, 1), "127.0.0.1:9904")
	x.wantTarget(2, on(1, 2), "127.0.0.1:80")
	x.wantTarget(3, on(1, 3), "127.0.0.1:9904")
	x.wantTarget(4, on(1, 4), "")
	x.wantTarget(0, on(1, 5), "")
}

func TestAllLinksHaveTheSameIDs(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "9001=9905")
	x.apply("9001=9905", "9002=9906")
	other := &claimsTest{t, x.s, x.s.addLink()}
	for _, y := range []*claimsTest{x, other} {
		y.c.attached()
		y.wantSaid("CLAIM 2 tcp/9001=127.0.0.1:9905", "CLAIM 3 tcp/9002=127.0.0.1:9906", "ROUND")
	}
	x.apply("9002=9906")
	other.unclaimed(2)
	x.wantRetired(1)
	other.wantRetired(0)
}

func TestApplyChangesAllOrNothing(t *testing.T) {
	x := newClaimsTest(t)
	x.c.attached()
	x.apply("9000=9904")
	x.c.take()
	before := x.s.freeze()
	many := make([]Service, maxServices+1)
	for _, bad := range [][]Service{exposes(t, "9001", "9000=1", "9001=2"), many} {
		if _, err := x.s.apply(bad); err == nil {
			t.Errorf("%d services were taken, want an error", len(bad))
		}
	}
	x.s.last = 1<<32 - 1
	if _, err := x.s.apply(exposes(t, "9001")); err == nil {
		t.Error("an id was used again")
	}
	x.s.last = before.Last
	if after := x.s.freeze(); !reflect.DeepEqual(before, after) {
		t.Errorf("a refused change left %v, want %v", after, before)
	}
	x.wantSaid()
}

func TestARetiredServiceServesUpToItsMarks(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904")
	x.c.attached()
	x.wantTarget(1, on(1, 1), "127.0.0.1:9904")
	x.apply()
	x.wantTarget(1, on(2, 9), "127.0.0.1:9904") // no answer yet
	x.unclaimed(1, on(1, 3), on(2, 12), 0)
	x.wantTarget(1, on(3, 1), "") // nothing was opened there before
	x.wantTarget(1, on(4, 1), "")
	x.wantTarget(1, on(1, 2), "127.0.0.1:9904")
	x.wantTarget(1, on(1, 4), "") // and nothing below the mark can come any more
	x.wantTarget(1, on(1, 3), "")
	x.wantRetired(1)
	x.wantTarget(1, on(2, 12), "127.0.0.1:9904")
	x.wantRetired(0)
	x.wantTarget(1, on(2, 13), "")
}

func TestAnIdleSlotHasReachedAMarkThatItSaw(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "9001=9905")
	x.c.attached()
	x.wantTarget(2, on(1, 7), "127.0.0.1:9905")
	x.apply("9001=9905")
	x.unclaimed(1, on(1, 7), 0)
	x.wantRetired(0)
}

func TestOnlyTimeWithAConnectionCounts(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "9001=9905")
	x.c.attached()
	x.c.tick(1, time.Hour) // before
	x.apply("9001=9905")
	x.unclaimed(1, on(1, 5), on(2, 5))
	if !x.c.waiting() {
		t.Error("nothing waits for time to pass, want the retired service")
	}
	x.c.tick(1, retireAfter)
	x.c.tick(2, retireAfter-1)
	x.wantRetired(1)
	x.wantTarget(1, on(2, 4), "127.0.0.1:9904")
	x.c.tick(2, 1)
	x.wantRetired(0)
	if x.c.waiting() {
		t.Error("something waits for time to pass, want nothing")
	}
}

func TestUnclaimIsSaidUntilItIsAnswered(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "9001=9905", "9002=9906")
	x.c.attached()
	x.c.take()
	x.c.detached()
	x.apply("9002=9906", "9003=9907")
	x.wantSaid()
	for range 2 {
		x.c.attached()
		x.wantSaid("UNCLAIM 1", "UNCLAIM 2", "CLAIM 3 tcp/9002=127.0.0.1:9906", "CLAIM 4 tcp/9003=127.0.0.1:9907", "ROUND")
	}
	x.unclaimed(1, on(1, 1))
	x.unclaimed(1, on(1, 2)) // answered twice
	x.c.attached()
	x.wantSaid("UNCLAIM 2", "CLAIM 3 tcp/9002=127.0.0.1:9906", "CLAIM 4 tcp/9003=127.0.0.1:9907", "ROUND")
}

func TestWhatWasNeverSaidIsNotTakenBack(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904")
	x.apply("9001=9905")
	x.wantRetired(0)
	x.c.attached()
	x.wantSaid("CLAIM 2 tcp/9001=127.0.0.1:9905", "ROUND")
}

func TestTheEndOfTheSessionEndsWhatIsRetired(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "9001=9905")
	x.c.attached()
	x.up(2)
	x.wantTarget(2, on(1, 9), "127.0.0.1:9905")
	x.apply("9001=9905")
	x.c.ended()
	x.wantRetired(0)
	if st := x.c.known[2].state; st != status.ServiceAway {
		t.Errorf("the other service is %q, want away", st)
	}
	x.c.take()
	x.c.attached()
	x.wantSaid("CLAIM 2 tcp/9001=127.0.0.1:9905", "ROUND")
	x.wantTarget(1, on(1, 1), "")
	x.apply() // the streams of the session before do not count
	x.unclaimed(2, on(1, 3))
	x.wantTarget(2, on(1, 3), "127.0.0.1:9905")
}

func TestAnswers(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "offered=9905")
	if h, err := x.c.claimed(1, answer{state: status.ServiceUp}); err != nil || h.service != nil {
		t.Errorf("an answer before the claim = %v, %v; want nothing", h, err)
	}
	x.c.attached()
	h, err := x.c.claimed(1, answer{state: status.ServiceRetrying, reason: "in use"})
	if err != nil || h.before.state != status.ServiceAway || h.now.state != status.ServiceRetrying || h.now.reason != "in use" {
		t.Errorf("claimed = %+v, %v; want away, then retrying", h, err)
	}
	x.c.proved(1, 1)
	if x.c.known[1].proven {
		t.Error("a service is proven that is not up")
	}
	x.up(1)
	x.c.proved(1, 1) // a probe of before
	x.c.proved(1, 2)
	port := public(t, "3010")
	if h, _ = x.c.claimed(1, answer{state: status.ServiceUp, public: port}); !h.now.proven || h.now.public != public(t, "9000") {
		t.Errorf("said again: %+v; want proven still, at tcp/9000", h.now)
	}
	if h, _ = x.c.claimed(1, answer{state: status.ServiceRetrying}); h.now.proven {
		t.Error("a service is still proven that was down meanwhile")
	}
	if h, _ = x.c.claimed(2, answer{state: status.ServiceUp, public: port}); h.now.public != port {
		t.Errorf("the public port is %s, want the one that the proxy offers", h.now.public)
	}
	if _, public := x.c.opened(2, on(1, 1)); public != port {
		t.Errorf("a user came to %s, want %s", public, port)
	}
	x.apply("offered=9905")
	if h, err := x.c.claimed(1, answer{state: status.ServiceUp}); err != nil || h.service != nil {
		t.Errorf("an answer that crossed UNCLAIM = %v, %v; want nothing", h, err)
	}
}

func TestWhatTheProxyHasNotConfirmed(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "9001=9905", "9002=9906")
	want := func(ids []uint32, want ...uint32) {
		t.Helper()
		if got := x.c.unconfirmed(ids); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("unconfirmed = %d, want %d", got, want)
		}
	}
	want([]uint32{1, 2, 3}, 1, 2, 3)
	x.c.attached()
	for id := range uint32(3) {
		x.up(id + 1)
	}
	want([]uint32{1, 2, 3})
	changed := x.apply("9001=80", "9002=9906", "9003=9907")
	if fmt.Sprint(changed) != "[1 2 4]" {
		t.Errorf("changed %d, want 1 removed, 2 changed, 4 added", changed)
	}
	want(changed, 1, 2, 4)
	x.unclaimed(1, on(1, 9))
	x.up(4)
	want(changed, 2)
	x.up(2)
	want(changed)
}

func TestAProxyThatLiesAboutClaims(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "9001=9905")
	x.c.attached()
	x.apply("9001=9905")
	for id, marks := range map[uint32][]wire.Mark{
		0: nil,
		2: nil, // still claimed
		3: nil,
		1: {{Slot: 0, Stream: 1 << 8}},
	} {
		if err := x.c.unclaimed(id, marks); err == nil {
			t.Errorf("unclaimed(%d, %v) = nil, want an error", id, marks)
		}
	}
	for _, marks := range [][]wire.Mark{
		{{Slot: 1, Stream: on(2, 1)}},
		{{Slot: 1, Stream: 1<<63 | on(1, 1)}},
		{{Slot: 2, Stream: on(2, 1)}, {Slot: 1, Stream: on(1, 1)}},
		{{Slot: 2, Stream: on(2, 1)}, {Slot: 2, Stream: on(2, 1)}},
	} {
		if err := x.c.unclaimed(1, marks); err == nil {
			t.Errorf("unclaimed(1, %v) = nil, want an error", marks)
		}
	}
	for _, id := range []uint32{0, 3} {
		if _, err := x.c.claimed(id, answer{state: status.ServiceUp}); err == nil {
			t.Errorf("claimed(%d) = nil, want an error", id)
		}
	}
	x.wantRetired(1)
}

func TestWhatIsRetiredIsBounded(t *testing.T) {
	x := newClaimsTest(t)
	x.c.attached()
	port := 1024
	change := func(n int) {
		for range n {
			port = 2049 - port
			x.apply(fmt.Sprintf("%d=1", port))
			x.c.take()
		}
	}
	change(maxServices + 1)
	x.wantRetired(maxServices)
	if err := x.c.excess(); err != nil {
		t.Errorf("excess = %v at the limit", err)
	}
	x.unclaimed(1, on(1, 9)) // the proxy answers, so the oldest answered one makes room
	change(1)
	x.wantRetired(maxServices)
	x.wantTarget(1, on(1, 1), "")
	if err := x.c.excess(); err != nil {
		t.Errorf("excess = %v, want nil", err)
	}
	change(1)
	if err := x.c.excess(); err == nil || !strings.Contains(err.Error(), "given back") {
		t.Errorf("excess = %v, want an error about what was not given back", err)
	}
	x.c.ended()
	if err := x.c.excess(); err != nil {
		t.Errorf("excess = %v in the next session", err)
	}
}

func TestFreezeAndThaw(t *testing.T) {
	x := newClaimsTest(t)
	x.apply("9000=9904", "9001=unix:/run/x", "9002=9906", "9003=9907")
	x.c.attached()
	x.wantTarget(4, on(1, 3), "127.0.0.1:9907")
	x.up(2)
	x.c.proved(2, 1)
	x.apply("9001=unix:/run/x", "9002=80")
	x.unclaimed(4, on(1, 5), on(2, 1))
	x.c.tick(1, time.Second)

	text, err := json.Marshal(x.s.freeze())
	if err != nil {
		t.Fatal(err)
	}
	var f frozenServices
	if err := json.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	s, err := thawServices(f)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s.freeze(), x.s.freeze()) {
		t.Errorf("thawed\n%v, want\n%v", s.freeze(), x.s.freeze())
	}
	y := &claimsTest{t, s, s.links[0]}
	y.apply("9001=unix:/run/x", "9002=80", "9000=1")
	y.c.attached()
	y.wantSaid("UNCLAIM 1", "CLAIM 2 tcp/9001=unix:/run/x", "CLAIM 3 tcp/9002=127.0.0.1:80", "CLAIM 5 tcp/9000=127.0.0.1:1", "ROUND")
	y.wantTarget(1, on(1, 4), "127.0.0.1:9904")
	y.wantTarget(4, on(1, 5), "127.0.0.1:9907")
	if h := y.up(2); !h.now.proven {
		t.Error("the successor probes again, want it to know that the port was proven")
	}

	f.Links[0].Known[0].ID = 77
	if _, err := thawServices(f); err == nil {
		t.Error("a claim without a service was thawed")
	}
	f.Offered[0].Target = "nowhere"
	if _, err := thawServices(f); err == nil {
		t.Error("a bad target was thawed")
	}
}

// TestManyServices: an answer of the proxy costs what it is about, however many services come or go at once.
func TestManyServices(t *testing.T) {
	s := newServices()
	c := s.addLink()
	want := make([]Service, maxServices)
	for i := range want {
		want[i] = Service{Public: grammar.Public{Kind: grammar.KindTCP, Port: uint16(1024 + i)}}
	}
	c.attached()
	if _, err := s.apply(want); err != nil {
		t.Fatal(err)
	}
	c.take()
	ids, err := s.apply(nil)
	if err != nil || len(ids) != maxServices {
		t.Fatalf("apply = %d ids, %v", len(ids), err)
	}
	for _, id := range ids {
		if err := c.unclaimed(id, []wire.Mark{{Slot: 1, Stream: 9<<8 | 1}, {Slot: 2, Stream: 9<<8 | 2}}); err != nil {
			t.Fatal(err)
		}
	}
	if c.looks > 2*maxServices {
		t.Errorf("%d answers look at retired services %d times", len(ids), c.looks)
	}
	c.opened(1, 9<<8|1)
	c.opened(1, 9<<8|2)
	if len(c.retired) != 0 || c.waiting() {
		t.Errorf("%d services are retired after every slot has reached its mark", len(c.retired))
	}
}
