package bridge

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/claims"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/memnet"
	"reverser/internal/status"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// apply changes the services of a bridge: each text is an EXPOSE.
func (r *running) apply(t *testing.T, services ...Service) Applied {
	t.Helper()
	a, err := r.Apply(t.Context(), Settings{Services: services})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestApply changes services while users are there.
func TestApply(t *testing.T) {
	one, two := serve(t, "tcp", "127.0.0.1:0"), serve(t, "tcp", "127.0.0.1:0")
	svc := func(pub string, s *server) Service { return Service{Public: public(t, pub), Target: s.target()} }
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{svc("9000", one), svc("9001", one)}}})
	p.ready()
	stays := p.open(1)
	staysAt := one.accept()
	old := p.open(2)
	oldAt := one.accept()

	// A service is removed, one gets another target, one is added.
	a := b.apply(t, svc("9000", two), svc("9002", two))
	if left := a.Wait(t.Context()); left != nil {
		t.Errorf("not confirmed: %q", left)
	}
	p.mu.Lock()
	got := fmt.Sprint(p.claims)
	p.mu.Unlock()
	if want := fmt.Sprint(map[uint32]wire.Claim{1: {Public: "tcp/9000", Target: two.target().String()}, 3: {Public: "tcp/9002", Target: two.target().String()}}); got != want {
		t.Errorf("the proxy has the claims %s, want %s", got, want)
	}
	// The users of before do not notice; new ones get what is new.
	for _, of := range []*link.Stream{stays, old} {
		of.Write([]byte("x"))
	}
	for _, at := range []io.Reader{staysAt, oldAt} {
		if _, err := io.ReadFull(at, make([]byte, 1)); err != nil {
			t.Errorf("a user of before is cut off: %v", err)
		}
	}
	talk(t, p.open(1), two.accept(), "new target")
	talk(t, p.open(3), two.accept(), "new service")
	wantCode(t, p.open(2), wire.CodeService)
	eventually(t, "status has the services of now", func() bool {
		st := b.Status().Services
		return len(st) == 2 && st[0].Public == "tcp/9000" && st[0].Target == two.target().String() && st[1].Public == "tcp/9002" && st[1].State == status.ServiceUp
	})
	if a := b.apply(t, svc("9000", two), svc("9002", two)); a.Wait(t.Context()) != nil || len(a.ids) != 0 {
		t.Errorf("nothing is different, but %d changed", a.ids)
	}
	if _, err := b.Apply(t.Context(), Settings{Services: []Service{svc("9000", one), svc("9000", two)}}); err == nil || !strings.Contains(err.Error(), "tcp/9000") {
		t.Errorf("Apply = %v, want an error that names the service that is there twice", err)
	}
	talk(t, p.open(1), two.accept(), "still")
}

// TestApplyRefused: a change tells which of its services a proxy does not serve, and why, and nothing of those that it is not about.
func TestApplyRefused(t *testing.T) {
	p := listen(t, "127.0.0.1:0", false)
	p.mu.Lock()
	p.answer = func(l *link.Link, id uint32, c wire.Claim) {
		a := wire.Claimed{Status: wire.ClaimUp, Public: c.Public}
		switch c.Public {
		case "tcp/80":
			a = wire.Claimed{Status: wire.ClaimDenied, Public: c.Public, Text: `tcp/80 denied: the policy of key "nas" allows tcp/9000`}
		case "tcp/81":
			a = wire.Claimed{Status: wire.ClaimDenied, Public: c.Public}
		case "tcp/9002":
			a = wire.Claimed{Status: wire.ClaimRetrying, Public: c.Public, Text: "open tcp/9002: in use"}
		}
		claimed(l, id, a)
	}
	p.mu.Unlock()
	services := func(all ...string) (list []Service) {
		for _, s := range all {
			list = append(list, Service{Public: public(t, s), Target: grammar.Target{Network: "tcp", Address: "127.0.0.1:1"}})
		}
		return list
	}
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: services("9000", "81")}})
	p.ready()
	a := b.apply(t, services("9000", "80", "81", "9001", "9002")...)
	if left := a.Wait(t.Context()); left != nil {
		t.Errorf("not confirmed: %q", left)
	}
	want := []string{
		"service tcp/80 is denied at " + p.addr() + `: the policy of key "nas" allows tcp/9000`,
		"service tcp/9002 is retrying at " + p.addr() + ": open tcp/9002: in use",
	}
	if got := a.Refused(); !slices.Equal(got, want) {
		t.Errorf("Refused = %q, want %q", got, want)
	}
	if a = b.apply(t, services("9000", "81")...); a.Wait(t.Context()) != nil || a.Refused() != nil {
		t.Errorf("Refused = %q of a change that takes services away", a.Refused())
	}
	if a = b.apply(t, services("9000")...); a.Wait(t.Context()) != nil || a.Refused() != nil {
		t.Errorf("Refused = %q of a change that takes services away", a.Refused())
	}
	a = b.apply(t, services("9000", "81")...)
	if got, want := append(a.Wait(t.Context()), a.Refused()...), []string{"service tcp/81 is denied at " + p.addr() + ": it does not say why"}; !slices.Equal(got, want) {
		t.Errorf("Refused = %q, want %q", got, want)
	}
}

// TestSources: a target sees its connections come from the sources, and from others after a change.
func TestSources(t *testing.T) {
	if runtime.GOOS == "darwin" {
		t.Skip("127.0.0.1 is its only address of 127.0.0.0/8")
	}
	target := serve(t, "tcp", "127.0.0.1:0")
	set := func(sources ...string) Settings {
		s := Settings{Services: []Service{{Public: public(t, "9000"), Target: target.target()}}}
		for _, ip := range sources {
			s.Sources = append(s.Sources, netip.MustParseAddr(ip))
		}
		return s
	}
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: set("127.0.0.9")})
	p.ready()
	from := func(want ...string) {
		t.Helper()
		var got []string
		for range want {
			s, at := p.open(1), target.accept()
			got = append(got, at.RemoteAddr().(*net.TCPAddr).IP.String())
			talk(t, s, at, "hello")
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("the target sees %q, want %q", got, want)
		}
	}
	from("127.0.0.9", "127.0.0.9")
	for _, c := range []struct{ sources, want []string }{
		{[]string{"127.0.0.7", "127.0.0.8"}, []string{"127.0.0.7", "127.0.0.7", "127.0.0.8", "127.0.0.8"}},
		{[]string{"::1"}, []string{"127.0.0.1"}}, // which is not of the target's family
		{nil, []string{"127.0.0.1"}},
	} {
		if _, err := b.Apply(t.Context(), set(c.sources...)); err != nil {
			t.Fatal(err)
		}
		from(c.want...)
	}
}

// TestRetiredServiceIsServed: a user who was on the way when the service was removed is served.
func TestRetiredServiceIsServed(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	p.mu.Lock()
	p.keep = true // UNCLAIM is answered later
	p.mu.Unlock()
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	a, err := b.Apply(t.Context(), Settings{Drain: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	late := p.open(1)
	talk(t, late, srv.accept(), "on the way")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if left := a.Wait(ctx); !slices.Equal(left, []string{"tcp/9000 at " + p.addr()}) {
		t.Errorf("not confirmed: %q, want tcp/9000", left)
	}
	p.mu.Lock()
	l := p.link
	p.mu.Unlock()
	l.Say(1, wire.AppendUnclaimed(nil, 1, l.Marks()))
	if left := a.Wait(t.Context()); left != nil {
		t.Errorf("not confirmed: %q", left)
	}
	wantCode(t, p.open(1), wire.CodeService)
}

// TestRetiredServiceIsDropped: a stream below a mark that never comes is waited for until its slot has had a connection, or needed
// none, for a minute.
func TestRetiredServiceIsDropped(t *testing.T) {
	for name, slot := range map[string]uint8{"a slot with a connection": 1, "a slot that rests": 2} {
		t.Run(name, func(t *testing.T) { testRetiredIsDropped(t, slot) })
	}
}

func testRetiredIsDropped(t *testing.T, slot uint8) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		d.set(false, nil, "192.0.2.1")
		p := newProxy(t)
		p.keep = true // UNCLAIM is answered below
		p.features = link.Features
		stop := p.serveOnMemnet(&n, "192.0.2.1:3010")
		b := onMemnet(t, &n, &d)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		time.Sleep(10 * time.Second)
		if _, err := b.Apply(t.Context(), Settings{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if up := p.link.Status()[slot].Up; up != (slot == 1) {
			t.Errorf("slot %d has a connection: %t", slot, up)
		}
		p.link.Say(1, wire.AppendUnclaimed(nil, 1, []wire.Mark{{Slot: slot, Stream: 1<<8 | uint64(slot)}}))
		retired := func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			svc, _ := b.uplinks[0].claims.Retired(1)
			return svc != nil
		}
		if time.Sleep(claims.RetireAfter / 2); !retired() {
			t.Error("the service is gone, though the stream may still come")
		}
		if time.Sleep(claims.RetireAfter); retired() {
			t.Error("the service is still there")
		}
		cancel()
		running.Wait()
		stop()
	})
}

// TestRemovedServiceHasItsTime: the connections of a removed service are reset when the drain time is over, at both ends.
func TestRemovedServiceHasItsTime(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	nine, ten := Service{Public: public(t, "9000"), Target: srv.target()}, Service{Public: public(t, "9010"), Target: srv.target()}
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{nine, ten}}})
	p.ready()
	stays := p.open(1)
	staysAt := srv.accept()
	talk(t, stays, staysAt, "?")
	goes := p.open(2)
	goesAt := srv.accept()
	talk(t, goes, goesAt, "?")
	if _, err := b.Apply(t.Context(), Settings{Services: []Service{nine}, Drain: -1}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, goes, wire.CodeService)
	wantReset(t, goesAt)
	eventually(t, "the log has the reason", func() bool { return b.log.Count("pair released", "service=tcp/9010", "reason=service-removed") == 1 })
	talk(t, stays, staysAt, "still")

	// A service that is back when the time is over keeps its new connections.
	if _, err := b.Apply(t.Context(), Settings{Drain: time.Hour}); err != nil {
		t.Fatal(err)
	}
	removed := b.removal(1)
	if left := b.apply(t, nine).Wait(t.Context()); left != nil {
		t.Errorf("not confirmed: %q", left)
	}
	fresh := p.open(3)
	freshAt := srv.accept()
	talk(t, fresh, freshAt, "?")
	b.end(removed)
	wantCode(t, stays, wire.CodeService)
	talk(t, fresh, freshAt, "still")
}

// removal is that of a service whose connections may still finish; nil: there is none.
func (r *running) removal(id uint32) *removal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.removals[id]
}

// TestUsersOnTheWayHaveTheTimeOfTheRemoval: a user who was on the way when a service was removed is reset with those who were there,
// and at once when their time is over already.
func TestUsersOnTheWayHaveTheTimeOfTheRemoval(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	p.mu.Lock()
	p.keep = true // UNCLAIM is not answered: users may be on the way for as long as the test likes
	p.mu.Unlock()
	nine, ten := Service{Public: public(t, "9000"), Target: srv.target()}, Service{Public: public(t, "9010"), Target: srv.target()}
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{nine, ten}}})
	p.ready()
	user := func(id uint32) (s *link.Stream, at net.Conn) {
		s, at = p.open(id), srv.accept()
		talk(t, s, at, "?")
		return s, at
	}
	there, _ := user(1)
	if _, err := b.Apply(t.Context(), Settings{Services: []Service{ten}, Drain: time.Hour}); err != nil {
		t.Fatal(err)
	}
	onTheWay, onTheWayAt := user(1)
	gone, _ := user(1)
	gone.Reset(wire.CodeReset)
	removed := b.removal(1)
	eventually(t, "a connection that is over is forgotten", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(removed.late) == 1
	})
	// The name is offered again, with another number: its connections have nothing to do with the removal.
	b.apply(t, nine, ten)
	fresh, freshAt := user(3)
	b.end(removed)
	wantCode(t, there, wire.CodeService)
	wantCode(t, onTheWay, wire.CodeService)
	wantReset(t, onTheWayAt)
	talk(t, fresh, freshAt, "still")
	wantCode(t, p.open(1), wire.CodeService)
	if b.removal(1) != nil {
		t.Error("the removal is kept when its time is over")
	}

	// Without a time, whoever was on the way is reset at once.
	there, _ = user(2)
	if _, err := b.Apply(t.Context(), Settings{Services: []Service{nine}, Drain: -1}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, there, wire.CodeService)
	wantCode(t, p.open(2), wire.CodeService)
	talk(t, fresh, freshAt, "still")
}

// TestRemovedWhileAdmitted: the time of a removal may end between the look at a service and the admission of its user.
func TestRemovedWhileAdmitted(t *testing.T) {
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000")}}}})
	p.ready()
	admit := func() *traffic.Admission {
		a, err := b.conns.Admit(b.conns.Account(keyID, "tcp/9000"), netip.AddrPort{}, traffic.NoWait)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Leave)
		return a
	}
	if !b.mayStay(1, admit()) {
		t.Error("a user of a service that is offered may not stay")
	}
	if _, err := b.Apply(t.Context(), Settings{Drain: time.Hour}); err != nil {
		t.Fatal(err)
	}
	late := admit()
	if !b.mayStay(1, late) {
		t.Error("a user of a service that was just removed may not stay")
	}
	b.end(b.removal(1))
	if !late.Ended() {
		t.Error("the end of the removal's time does not end a user who came after the removal")
	}
	if b.mayStay(1, admit()) {
		t.Error("a user stays whom the end of the removal's time has missed")
	}
}

// TestApplyBeforeTheLink: what is applied while the proxy is away counts when it is there.
func TestApplyBeforeTheLink(t *testing.T) {
	addr := nobody(t)
	b := start(t, Config{Token: tokenFor(addr), Settings: Settings{Services: []Service{{Public: public(t, "9000")}}}})
	b.apply(t, Service{Public: public(t, "9001")})
	p := listen(t, addr, false)
	p.ready()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.claims) != 1 || p.claims[2].Public != "tcp/9001" {
		t.Errorf("the proxy has the claims %v, want tcp/9001 alone", p.claims)
	}
}
