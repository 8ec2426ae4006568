package bridge

import (
	"context"
	"strings"
	"testing"

	"reverser/internal/link"
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
		eventually(t, "each link says that its services are up", func() bool { return b.log.count("INFO service up", "service=tcp/9000", "proxy="+p.addr()) == 1 })
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
	eventually(t, "the bridge says that nobody is there", func() bool { return b.log.count("WARN no connection to the proxy") == 1 })
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
