package bridge

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/link"
	"reverser/internal/memnet"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// TestSeveralProxies: each has a link of its own, and all serve the same services.
func TestSeveralProxies(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	one, two := listen(t, "127.0.0.1:0", false), listen(t, "127.0.0.1:0", false)
	for i, p := range []*proxy{one, two} {
		p.mu.Lock()
		p.answer = func(l *link.Link, id uint32, c wire.Claim) {
			a := wire.Claimed{Status: wire.ClaimUp, Public: c.Public}
			if i == 1 && c.Public == "tcp/9001" {
				a = wire.Claimed{Status: wire.ClaimDenied, Public: c.Public, Text: "not here"}
			}
			claimed(l, id, a)
		}
		p.mu.Unlock()
	}
	b := start(t, Config{
		Token: tokenFor(""), Proxies: []Proxy{{Addr: one.addr()}, {Addr: two.addr()}},
		Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}, {Public: public(t, "9001"), Target: srv.target()}}},
	})
	for _, p := range []*proxy{one, two} {
		p.ready()
		s := p.open(2)
		talk(t, s, srv.accept(), "hello")
	}
	for _, p := range []*proxy{one, two} {
		eventually(t, "each link says that its services are up", func() bool { return b.log.Count("INFO service up", "service=tcp/9000", "proxy="+p.addr()) == 1 })
	}
	eventually(t, "status shows both", func() bool {
		st := b.Status()
		return len(st.Links) == 2 && st.Links[0].State == status.LinkUp && st.Links[1].State == status.LinkUp &&
			len(st.Services) == 2 && st.Services[1].State == status.ServiceUp && strings.Contains(st.Services[1].Reason, two.addr()+": denied, not here")
	})
	two.close()
	eventually(t, "what is up at one of them is up", func() bool {
		st := b.Status()
		return st.Links[1].State == status.LinkDown && st.Services[0].State == status.ServiceUp && strings.Contains(st.Services[0].Reason, two.addr()+": away")
	})
	talk(t, one.open(1), srv.accept(), "still")
}

// TestAwaitNamesWhatStandsInTheWay: whoever waits for a service learns why it is not there.
func TestAwaitNamesWhatStandsInTheWay(t *testing.T) {
	addr := nobody(t)
	b := start(t, Config{Token: tokenFor(addr), Settings: Settings{Services: []Service{{Public: public(t, "9000")}}}})
	eventually(t, "the bridge says that nobody is there", func() bool { return b.log.Count("WARN no connection to the proxy") == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Await(ctx, public(t, "9000")); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) || !strings.Contains(err.Error(), addr) {
		t.Errorf("Await = %v, want the end of the context, and that nobody is at %s", err, addr)
	}
	b.stop()
	<-b.done
	if _, err := b.Await(t.Context(), public(t, "9000")); err == nil {
		t.Error("Await = nil after the bridge has stopped")
	}
}

// TestAnswersThatAreWrong: a proxy that says of claims what it must not ends its own session, and the bridge begins another one.
func TestAnswersThatAreWrong(t *testing.T) {
	up := wire.Claimed{Status: wire.ClaimUp, Public: "tcp/9000"}
	unknown := wire.AppendField(wire.AppendClaimed(nil, 1, up), 200, nil)
	unknown[3] = byte(len(unknown) - wire.HeaderLen)
	for name, c := range map[string]struct {
		say  []byte
		ends bool
	}{
		"an answer to a claim that there never was": {wire.AppendClaimed(nil, 2, up), true},
		"an answer to claim 2^32-1":                 {wire.AppendClaimed(nil, 1<<32-1, up), true},
		"an answer to claim 0":                      {wire.AppendClaimed(nil, 0, up), true},
		"UNCLAIMED of a claim that is kept":         {wire.AppendUnclaimed(nil, 1, nil), true},
		"UNCLAIMED of one that there never was":     {wire.AppendUnclaimed(nil, 2, nil), true},
		"marks of the bridge's own streams":         {wire.AppendUnclaimed(nil, 1, []wire.Mark{{Slot: 1, Stream: 1<<63 | 1<<8 | 1}}), true},
		"marks of another slot":                     {wire.AppendUnclaimed(nil, 1, []wire.Mark{{Slot: 1, Stream: 1<<8 | 2}}), true},
		"marks of a slot that there is not":         {wire.AppendUnclaimed(nil, 1, []wire.Mark{{Slot: 200, Stream: 1<<8 | 200}}), true},
		"CLAIM":                                     {wire.AppendClaim(nil, 1, wire.Claim{Public: "tcp/9000"}), true},
		"UNCLAIM":                                   {wire.AppendUnclaim(nil, 1), true},
		"ROUND":                                     {wire.AppendRound(nil), true},
		"a critical field that is not known":        {unknown, false},
		"a status that is not known":                {wire.AppendClaimed(nil, 1, wire.Claimed{Status: 99, Public: "tcp/9000", Text: "later"}), false},
	} {
		t.Run(name, func(t *testing.T) {
			p := listen(t, "127.0.0.1:0", false)
			b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000")}}}})
			p.ready()
			p.mu.Lock()
			l, before := p.link, p.round
			p.mu.Unlock()
			l.Say(7, c.say)
			switch {
			case c.ends:
				eventually(t, "the session ends at the bridge, which begins another one", func() bool {
					p.mu.Lock()
					defer p.mu.Unlock()
					return len(p.ended) == 1 && p.link != l && p.round > before
				})
			case name == "a status that is not known":
				eventually(t, "the service is not up", func() bool {
					st := b.Status().Services[0]
					return st.State == status.ServiceRetrying && st.Reason == "later"
				})
			default:
				eventually(t, "the bridge comes back and claims again", func() bool {
					p.mu.Lock()
					defer p.mu.Unlock()
					return p.round > before && p.link == l
				})
			}
		})
	}
}

// TestStreamsBehindAGoAway: a proxy that is stopping has sent users on their way. They are served, also those of a service that was
// given back, as far as its mark says.
func TestStreamsBehindAGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var d dns
		d.set(false, nil, "192.0.2.1")
		p := newProxy(t)
		p.features, p.keep = link.Features, true // UNCLAIM is answered below
		stop := p.serveOnMemnet(&n, "192.0.2.1:3010")
		b := onMemnet(t, &n, &d)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		defer stop()
		defer running.Wait()
		defer cancel()
		time.Sleep(10 * time.Second)
		kept := Service{Public: public(t, "9001"), Handle: func(c net.Conn) { c.Close() }}
		if _, err := b.Apply(t.Context(), Settings{Services: []Service{kept}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		n.SetDials("192.0.2.1:3010", memnet.DialRefuse) // the port is free already
		p.link.Say(1, wire.AppendUnclaimed(nil, 1, []wire.Mark{{Slot: 1, Stream: 1<<8 | 1}}))
		time.Sleep(time.Second)
		p.link.GoAway(time.Minute)
		time.Sleep(time.Second)
		if b.mu.Lock(); len(b.uplinks[0].leaving) != 1 {
			t.Error("the session is not beside the next one")
		}
		b.mu.Unlock()
		for _, tt := range []struct {
			what    string
			service uint32
			want    error
		}{
			{"a service that was given back, at its mark", 1, io.EOF},
			{"the same above its mark", 1, link.ErrReset},
			{"a service that is offered", 2, io.EOF},
		} {
			s := p.open(tt.service)
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, tt.want) {
				t.Errorf("%s: Read = %v, want %v", tt.what, err, tt.want)
			}
			s.Close()
		}
	})
}

// TestMergeDrained: a service of several proxies is drained if that is why it is up at none of them. An outage at one is no order.
func TestMergeDrained(t *testing.T) {
	up, drained := status.Service{State: status.ServiceUp}, status.Service{State: status.ServiceAway, Drained: true}
	away, denied, retrying := status.Service{State: status.ServiceAway}, status.Service{State: status.ServiceDenied}, status.Service{State: status.ServiceRetrying}
	for _, c := range []struct {
		all   []status.Service
		state string
		want  bool
	}{
		{[]status.Service{drained}, status.ServiceAway, true},
		{[]status.Service{drained, drained}, status.ServiceAway, true},
		{[]status.Service{drained, denied}, status.ServiceAway, true},
		{[]status.Service{denied, drained}, status.ServiceAway, true},
		{[]status.Service{drained, up}, status.ServiceUp, false},
		{[]status.Service{drained, away}, status.ServiceAway, false},
		{[]status.Service{away, drained}, status.ServiceAway, false},
		{[]status.Service{drained, retrying}, status.ServiceRetrying, false},
	} {
		if st := mergeServices(c.all, make([]string, len(c.all))); st.State != c.state || st.Drained != c.want {
			t.Errorf("mergeServices(%+v) is %s, drained: %t; want %s, %t", c.all, st.State, st.Drained, c.state, c.want)
		}
	}
}
