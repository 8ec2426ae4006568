package claims

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
	s *Services
	c *Link
}

func newClaimsTest(t *testing.T) *claimsTest {
	s := New()
	return &claimsTest{t, s, s.AddLink()}
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

func (x *claimsTest) Apply(texts ...string) []uint32 {
	x.t.Helper()
	changed, err := x.s.Apply(exposes(x.t, texts...))
	if err != nil {
		x.t.Fatalf("apply(%q): %v", texts, err)
	}
	return changed
}

// wantSaid checks what the proxy is told, such as "CLAIM 1 tcp/9000=127.0.0.1:9904", "UNCLAIM 1" and "ROUND".
func (x *claimsTest) wantSaid(want ...string) {
	x.t.Helper()
	var got []string
	for _, f := range x.c.Take() {
		got = append(got, f.String())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		x.t.Errorf("said %q, want %q", got, want)
	}
}

func (f Say) String() string {
	switch f.Kind {
	case SayClaim:
		return fmt.Sprintf("CLAIM %d %s=%s", f.ID, f.Service.Public, f.Service.TargetName())
	case SayUnclaim:
		return fmt.Sprintf("UNCLAIM %d", f.ID)
	}
	return "ROUND"
}

// wantTarget checks where a stream goes; "" says that it is refused.
func (x *claimsTest) wantTarget(id uint32, stream uint64, want string) {
	x.t.Helper()
	got := ""
	if svc, _ := x.c.Opened(id, stream); svc != nil {
		got = svc.TargetName()
	}
	if got != want {
		x.t.Errorf("stream %#x of service %d goes to %q, want %q", stream, id, got, want)
	}
}

func (x *claimsTest) Unclaimed(id uint32, marks ...uint64) {
	x.t.Helper()
	if err := x.c.Unclaimed(id, marksOf(marks...)); err != nil {
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

func (x *claimsTest) up(id uint32) Heard {
	x.t.Helper()
	h, err := x.c.Claimed(id, Answer{State: status.ServiceUp})
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
	x.Apply("9000=9904", "9001=9905")
	x.wantSaid()
	x.c.Attached()
	x.wantSaid("CLAIM 1 tcp/9000=127.0.0.1:9904", "CLAIM 2 tcp/9001=127.0.0.1:9905", "ROUND")
	x.c.Detached()
	x.c.Attached()
	x.wantSaid("CLAIM 1 tcp/9000=127.0.0.1:9904", "CLAIM 2 tcp/9001=127.0.0.1:9905", "ROUND")
}

func TestAnIDMeansOnePublicForEver(t *testing.T) {
	x := newClaimsTest(t)
	x.c.Attached()
	x.wantSaid("ROUND")
	x.Apply("9000=9904", "9001=9905")
	x.wantSaid("CLAIM 1 tcp/9000=127.0.0.1:9904", "CLAIM 2 tcp/9001=127.0.0.1:9905")
	x.Apply("9001=9905", "9000=9904") // the same
	x.wantSaid()
	x.Apply("9001=80") // another target
	x.wantSaid("UNCLAIM 1", "CLAIM 2 tcp/9001=127.0.0.1:80")
	x.Apply("9000=9904", "9001=80") // what comes back is a new one
	x.wantSaid("CLAIM 3 tcp/9000=127.0.0.1:9904")
	x.wantTarget(1, on(1, 1), "127.0.0.1:9904")
	x.wantTarget(2, on(1, 2), "127.0.0.1:80")
	x.wantTarget(3, on(1, 3), "127.0.0.1:9904")
	x.wantTarget(4, on(1, 4), "")
	x.wantTarget(0, on(1, 5), "")
}

func TestAllLinksHaveTheSameIDs(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904", "9001=9905")
	x.Apply("9001=9905", "9002=9906")
	other := &claimsTest{t, x.s, x.s.AddLink()}
	for _, y := range []*claimsTest{x, other} {
		y.c.Attached()
		y.wantSaid("CLAIM 2 tcp/9001=127.0.0.1:9905", "CLAIM 3 tcp/9002=127.0.0.1:9906", "ROUND")
	}
	x.Apply("9002=9906")
	other.Unclaimed(2)
	x.wantRetired(1)
	other.wantRetired(0)
}

func TestApplyChangesAllOrNothing(t *testing.T) {
	x := newClaimsTest(t)
	x.c.Attached()
	x.Apply("9000=9904")
	x.c.Take()
	before := x.s.Freeze()
	many := make([]Service, MaxServices+1)
	for _, bad := range [][]Service{exposes(t, "9001", "9000=1", "9001=2"), many} {
		if _, err := x.s.Apply(bad); err == nil {
			t.Errorf("%d services were taken, want an error", len(bad))
		}
	}
	x.s.last = 1<<32 - 1
	if _, err := x.s.Apply(exposes(t, "9001")); err == nil {
		t.Error("an id was used again")
	}
	x.s.last = before.Last
	if after := x.s.Freeze(); !reflect.DeepEqual(before, after) {
		t.Errorf("a refused change left %v, want %v", after, before)
	}
	x.wantSaid()
}

func TestARetiredServiceServesUpToItsMarks(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904")
	x.c.Attached()
	x.wantTarget(1, on(1, 1), "127.0.0.1:9904")
	x.Apply()
	x.wantTarget(1, on(2, 9), "127.0.0.1:9904") // no answer yet
	x.Unclaimed(1, on(1, 3), on(2, 12), 0)
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
	x.Apply("9000=9904", "9001=9905")
	x.c.Attached()
	x.wantTarget(2, on(1, 7), "127.0.0.1:9905")
	x.Apply("9001=9905")
	x.Unclaimed(1, on(1, 7), 0)
	x.wantRetired(0)
}

func TestOnlyTimeWithAConnectionCounts(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904", "9001=9905")
	x.c.Attached()
	x.c.Tick(1, time.Hour) // before
	x.Apply("9001=9905")
	x.Unclaimed(1, on(1, 5), on(2, 5))
	if !x.c.Waiting() {
		t.Error("nothing waits for time to pass, want the retired service")
	}
	x.c.Tick(1, RetireAfter)
	x.c.Tick(2, RetireAfter-1)
	x.wantRetired(1)
	x.wantTarget(1, on(2, 4), "127.0.0.1:9904")
	x.c.Tick(2, 1)
	x.wantRetired(0)
	if x.c.Waiting() {
		t.Error("something waits for time to pass, want nothing")
	}
}

func TestUnclaimIsSaidUntilItIsAnswered(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904", "9001=9905", "9002=9906")
	x.c.Attached()
	x.c.Take()
	x.c.Detached()
	x.Apply("9002=9906", "9003=9907")
	x.wantSaid()
	for range 2 {
		x.c.Attached()
		x.wantSaid("UNCLAIM 1", "UNCLAIM 2", "CLAIM 3 tcp/9002=127.0.0.1:9906", "CLAIM 4 tcp/9003=127.0.0.1:9907", "ROUND")
	}
	x.Unclaimed(1, on(1, 1))
	x.Unclaimed(1, on(1, 2)) // answered twice
	x.c.Attached()
	x.wantSaid("UNCLAIM 2", "CLAIM 3 tcp/9002=127.0.0.1:9906", "CLAIM 4 tcp/9003=127.0.0.1:9907", "ROUND")
}

func TestWhatWasNeverSaidIsNotTakenBack(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904")
	x.Apply("9001=9905")
	x.wantRetired(0)
	x.c.Attached()
	x.wantSaid("CLAIM 2 tcp/9001=127.0.0.1:9905", "ROUND")
}

func TestTheEndOfTheSessionEndsWhatIsRetired(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904", "9001=9905")
	x.c.Attached()
	x.up(2)
	x.wantTarget(2, on(1, 9), "127.0.0.1:9905")
	x.Apply("9001=9905")
	x.c.Ended()
	x.wantRetired(0)
	if st := x.c.known[2].State; st != status.ServiceAway {
		t.Errorf("the other service is %q, want away", st)
	}
	x.c.Take()
	x.c.Attached()
	x.wantSaid("CLAIM 2 tcp/9001=127.0.0.1:9905", "ROUND")
	x.wantTarget(1, on(1, 1), "")
	x.Apply() // the streams of the session before do not count
	x.Unclaimed(2, on(1, 3))
	x.wantTarget(2, on(1, 3), "127.0.0.1:9905")
}

func TestAnswers(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904", "offered=9905")
	if h, err := x.c.Claimed(1, Answer{State: status.ServiceUp}); err != nil || h.Service != nil {
		t.Errorf("an answer before the claim = %v, %v; want nothing", h, err)
	}
	x.c.Attached()
	h, err := x.c.Claimed(1, Answer{State: status.ServiceRetrying, Reason: "in use"})
	if err != nil || h.Before.State != status.ServiceAway || h.Now.State != status.ServiceRetrying || h.Now.Reason != "in use" {
		t.Errorf("claimed = %+v, %v; want away, then retrying", h, err)
	}
	x.c.Proved(1, 1)
	if x.c.known[1].Proven {
		t.Error("a service is proven that is not up")
	}
	x.up(1)
	x.c.Proved(1, 1) // a probe of before
	x.c.Proved(1, 2)
	port := exposes(t, "3010=1")[0].Public
	if h, _ = x.c.Claimed(1, Answer{State: status.ServiceUp, Public: port}); !h.Now.Proven || h.Now.Public != exposes(t, "9000=1")[0].Public {
		t.Errorf("said again: %+v; want proven still, at tcp/9000", h.Now)
	}
	if h, _ = x.c.Claimed(1, Answer{State: status.ServiceRetrying}); h.Now.Proven {
		t.Error("a service is still proven that was down meanwhile")
	}
	if h, _ = x.c.Claimed(2, Answer{State: status.ServiceUp, Public: port}); h.Now.Public != port {
		t.Errorf("the public port is %s, want the one that the proxy offers", h.Now.Public)
	}
	if _, public := x.c.Opened(2, on(1, 1)); public != port {
		t.Errorf("a user came to %s, want %s", public, port)
	}
	other := exposes(t, "3011=1")[0].Public
	if h, _ = x.c.Claimed(2, Answer{State: status.ServiceDenied, Public: other}); h.Now.Public != other {
		t.Errorf("denied is %s, want %s", h.Now.Public, other)
	}
	if h, _ = x.c.Claimed(2, Answer{State: status.ServiceDenied}); h.Now.Public != other {
		t.Errorf("denied is %s, want the port that was named before", h.Now.Public)
	}
	x.Apply("offered=9905")
	if h, err := x.c.Claimed(1, Answer{State: status.ServiceUp}); err != nil || h.Service != nil {
		t.Errorf("an answer that crossed UNCLAIM = %v, %v; want nothing", h, err)
	}
}

func TestWhatTheProxyHasNotConfirmed(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904", "9001=9905", "9002=9906")
	want := func(ids []uint32, want ...uint32) {
		t.Helper()
		if got := x.c.Unconfirmed(ids); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("unconfirmed = %d, want %d", got, want)
		}
	}
	want([]uint32{1, 2, 3}, 1, 2, 3)
	x.c.Attached()
	for id := range uint32(3) {
		x.up(id + 1)
	}
	want([]uint32{1, 2, 3})
	changed := x.Apply("9001=80", "9002=9906", "9003=9907")
	if fmt.Sprint(changed) != "[1 2 4]" {
		t.Errorf("changed %d, want 1 removed, 2 changed, 4 added", changed)
	}
	want(changed, 1, 2, 4)
	x.Unclaimed(1, on(1, 9))
	x.up(4)
	want(changed, 2)
	x.up(2)
	want(changed)
}

func TestAProxyThatLiesAboutClaims(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904", "9001=9905")
	x.c.Attached()
	x.Apply("9001=9905")
	for id, marks := range map[uint32][]wire.Mark{
		0: nil,
		2: nil, // still claimed
		3: nil,
		1: {{Slot: 0, Stream: 1 << 8}},
	} {
		if err := x.c.Unclaimed(id, marks); err == nil {
			t.Errorf("unclaimed(%d, %v) = nil, want an error", id, marks)
		}
	}
	for _, marks := range [][]wire.Mark{
		{{Slot: 1, Stream: on(2, 1)}},
		{{Slot: 1, Stream: 1<<63 | on(1, 1)}},
		{{Slot: 2, Stream: on(2, 1)}, {Slot: 1, Stream: on(1, 1)}},
		{{Slot: 2, Stream: on(2, 1)}, {Slot: 2, Stream: on(2, 1)}},
	} {
		if err := x.c.Unclaimed(1, marks); err == nil {
			t.Errorf("unclaimed(1, %v) = nil, want an error", marks)
		}
	}
	for _, id := range []uint32{0, 3} {
		if _, err := x.c.Claimed(id, Answer{State: status.ServiceUp}); err == nil {
			t.Errorf("claimed(%d) = nil, want an error", id)
		}
	}
	x.wantRetired(1)
}

func TestWhatIsRetiredIsBounded(t *testing.T) {
	x := newClaimsTest(t)
	x.c.Attached()
	port := 1024
	change := func(n int) {
		for range n {
			port = 2049 - port
			x.Apply(fmt.Sprintf("%d=1", port))
			x.c.Take()
		}
	}
	change(MaxServices + 1)
	x.wantRetired(MaxServices)
	if err := x.c.Excess(); err != nil {
		t.Errorf("excess = %v at the limit", err)
	}
	x.Unclaimed(1, on(1, 9)) // the proxy answers, so the oldest answered one makes room
	change(1)
	x.wantRetired(MaxServices)
	x.wantTarget(1, on(1, 1), "")
	if err := x.c.Excess(); err != nil {
		t.Errorf("excess = %v, want nil", err)
	}
	change(1)
	if err := x.c.Excess(); err == nil || !strings.Contains(err.Error(), "given back") {
		t.Errorf("excess = %v, want an error about what was not given back", err)
	}
	x.c.Ended()
	if err := x.c.Excess(); err != nil {
		t.Errorf("excess = %v in the next session", err)
	}
}

func TestFreezeAndThaw(t *testing.T) {
	x := newClaimsTest(t)
	x.Apply("9000=9904", "9001=unix:/run/x", "9002=9906", "9003=9907")
	x.c.Attached()
	x.wantTarget(4, on(1, 3), "127.0.0.1:9907")
	x.up(2)
	x.c.Proved(2, 1)
	x.Apply("9001=unix:/run/x", "9002=80")
	x.Unclaimed(4, on(1, 5), on(2, 1))
	x.c.Tick(1, time.Second)

	text, err := json.Marshal(x.s.Freeze())
	if err != nil {
		t.Fatal(err)
	}
	var f Frozen
	if err := json.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	s, err := Thaw(f)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s.Freeze(), x.s.Freeze()) {
		t.Errorf("thawed\n%v, want\n%v", s.Freeze(), x.s.Freeze())
	}
	y := &claimsTest{t, s, s.links[0]}
	y.Apply("9001=unix:/run/x", "9002=80", "9000=1")
	y.c.Attached()
	y.wantSaid("UNCLAIM 1", "CLAIM 2 tcp/9001=unix:/run/x", "CLAIM 3 tcp/9002=127.0.0.1:80", "CLAIM 5 tcp/9000=127.0.0.1:1", "ROUND")
	y.wantTarget(1, on(1, 4), "127.0.0.1:9904")
	y.wantTarget(4, on(1, 5), "127.0.0.1:9907")
	if h := y.up(2); !h.Now.Proven {
		t.Error("the successor probes again, want it to know that the port was proven")
	}

	f.Links[0].Known[0].ID = 77
	if _, err := Thaw(f); err == nil {
		t.Error("a claim without a service was thawed")
	}
	f.Offered[0].Target = "nowhere"
	if _, err := Thaw(f); err == nil {
		t.Error("a bad target was thawed")
	}
}

// TestManyServices: an answer of the proxy costs what it is about, however many services come or go at once.
func TestManyServices(t *testing.T) {
	s := New()
	c := s.AddLink()
	want := make([]Service, MaxServices)
	for i := range want {
		want[i] = Service{Public: grammar.Public{Kind: grammar.KindTCP, Port: uint16(1024 + i)}}
	}
	c.Attached()
	if _, err := s.Apply(want); err != nil {
		t.Fatal(err)
	}
	c.Take()
	ids, err := s.Apply(nil)
	if err != nil || len(ids) != MaxServices {
		t.Fatalf("apply = %d ids, %v", len(ids), err)
	}
	for _, id := range ids {
		if err := c.Unclaimed(id, []wire.Mark{{Slot: 1, Stream: 9<<8 | 1}, {Slot: 2, Stream: 9<<8 | 2}}); err != nil {
			t.Fatal(err)
		}
	}
	if c.looks > 2*MaxServices {
		t.Errorf("%d answers look at retired services %d times", len(ids), c.looks)
	}
	c.Opened(1, 9<<8|1)
	c.Opened(1, 9<<8|2)
	if len(c.retired) != 0 || c.Waiting() {
		t.Errorf("%d services are retired after every slot has reached its mark", len(c.retired))
	}
}
