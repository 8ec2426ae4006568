package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/registry"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

func allow(t *testing.T, s string) grammar.Allow {
	t.Helper()
	a, err := grammar.ParseAllow(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// drain gives an order and wants it to be about some services.
func (w *world) drain(o DrainOrder, connections int, services ...string) {
	w.t.Helper()
	done, err := w.p.DrainUsers(context.Background(), o)
	if slices.Sort(services); err != nil || !slices.Equal(done.Services, services) || done.Connections != connections {
		w.t.Errorf("DrainUsers(%+v) = %+v, %v; want %d connections of %q", o, done, err, connections, services)
	}
}

// turnedAway wants a new user to be reset, which may come before it knows that it is connected.
func (w *world) turnedAway(addr string) {
	w.t.Helper()
	c, err := net.Dial("tcp", addr)
	if sys.Reset(err) {
		return
	}
	if err != nil {
		w.t.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	wantReset(w.t, c)
}

func (w *world) isDrained(public string) bool {
	return slices.ContainsFunc(w.p.Status().Services, func(s status.Service) bool { return s.Public == public && s.Drained })
}

func (w *world) state(public string) (state, reason string) {
	for _, s := range w.p.Status().Services {
		if s.Public == public {
			return s.State, s.Reason
		}
	}
	return "", ""
}

// TestDrainService: a drained service resets new users at once, and those who wait for its bridge; connections go on, and the bridge and
// status say why. Another service notices nothing, a reload changes nothing, and an undo ends it.
func TestDrainService(t *testing.T) {
	addr, public := free(t)
	otherAddr, otherPublic := free(t)
	k := key(t, "nas", public, otherPublic)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, public, otherPublic)
	u, s := w.pair(b, addr)

	w.drain(DrainOrder{Service: allow(t, public)}, 1, public)
	w.turnedAway(addr)
	talk(t, u, s, "goes on")
	talk(t, s, u, "both ways")
	w.pair(b, otherAddr)
	if state, reason := w.state(public); state != status.ServiceAway || reason != registry.DrainedText {
		t.Errorf("status says %s, %q", state, reason)
	}
	if !w.isDrained(public) || w.isDrained(otherPublic) {
		t.Error("status does not say that one of both is drained")
	}
	if state, _ := w.state(otherPublic); state != status.ServiceUp {
		t.Errorf("the other one is %s", state)
	}
	eventually(t, "the bridge hears why", func() bool { return strings.Contains(b.claim(0).Text, "drained by the operator") })
	if c := b.claim(0); c.Status != wire.ClaimUp || !c.Drained {
		t.Errorf("the claim is %v, drained: %t; want up, and drained", c.Status, c.Drained)
	}
	w.setKeys(k) // a reload
	w.turnedAway(addr)
	eventually(t, "a line says that it is drained", func() bool { return w.log.Count("service drained", public) > 0 }) // which comes last
	if n := w.log.Count("service drained", public); n != 1 {
		t.Errorf("%d lines say that it is drained", n)
	}
	b.cut() // the next connection proves the port anew, which is no user's
	talk(t, u, s, "through a break")
	w.turnedAway(addr)

	w.drain(DrainOrder{Service: allow(t, public), Undo: true}, 1, public)
	w.pair(b, addr)
	if state, reason := w.state(public); state != status.ServiceUp || reason != "" {
		t.Errorf("status says %s, %q", state, reason)
	}
	eventually(t, "the bridge hears it", func() bool { return b.claim(0).Text == "" && !b.claim(0).Drained })
	if w.isDrained(public) {
		t.Error("status says that it is drained")
	}
}

// TestDrainWhileAway: users who wait for a bridge that is away are reset by the order, long before their time is over.
func TestDrainWhileAway(t *testing.T) {
	addr, public := free(t)
	k := key(t, "nas", public)
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, public)
	b.mu.Lock()
	b.mute = true
	b.mu.Unlock()
	b.cut()
	w.away(public)
	u := w.user(addr)
	if _, err := u.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the user waits", func() bool { return w.p.conns.Load().Held == 1 })
	w.drain(DrainOrder{Key: "nas"}, 0, public)
	wantReset(t, u)
	eventually(t, "it is refused as drained", func() bool { return w.log.Count("client refused", "the service is drained") == 1 })
}

// TestDrainWeb: new clients of an http/ service get the page 503, though connections to its target are kept; those who are there go on.
func TestDrainWeb(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example", "http/b.example")
	b.target(say("nas"))
	before := w.httpUser()
	before.ask(get("a.example", "/"))
	w.drain(DrainOrder{Service: allow(t, "http/a.example")}, 1, "http/a.example")
	if resp, _ := w.httpUser().ask(get("a.example", "/")); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a new client gets %s", resp.Status)
	}
	if resp, _ := w.httpUser().ask(get("b.example", "/")); resp.StatusCode != http.StatusOK {
		t.Errorf("another service gives %s", resp.Status)
	}
	for range 2 {
		if resp, _ := before.ask(get("a.example", "/")); resp.StatusCode != http.StatusOK {
			t.Errorf("a client that is there gets %s", resp.Status)
		}
	}
	w.drain(DrainOrder{Service: allow(t, "http/a.example"), Undo: true}, 1, "http/a.example")
	if resp, _ := w.httpUser().ask(get("a.example", "/")); resp.StatusCode != http.StatusOK {
		t.Errorf("a new client gets %s after the undo", resp.Status)
	}
}

// away waits until no bridge of a service has a connection. A route says that it is not up before, by what the kernel knows: a request could
// still be put on a connection to the target that is kept.
func (w *world) away(public string) {
	w.t.Helper()
	eventually(w.t, "the bridge is away", func() bool {
		for way := range w.route(public).Ways {
			if linkOf(way).Alive() {
				return false
			}
		}
		return true
	})
}

// TestDrainWebWhileAway: requests of new clients that wait for a bridge that is away get the page 503 by the order, long before their time is
// over. A client that was served waits on.
func TestDrainWebWhileAway(t *testing.T) {
	const public = "http/a.example"
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, public)
	b.target(say("nas"))
	before, comes := w.httpUser(), w.httpUser()
	before.ask(get("a.example", "/"))
	b.mu.Lock()
	b.mute = true
	b.mu.Unlock()
	b.cut()
	w.away(public)
	for _, u := range []*httpUser{comes, before} {
		if _, err := io.WriteString(u, get("a.example", "/")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both are in", func() bool { return w.p.conns.Load().Pairs == 2 })
	w.drain(DrainOrder{Service: allow(t, public)}, 2, public)
	resp, err := http.ReadResponse(comes.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a client that waits gets %s", resp.Status)
	}
	if n := w.log.Count("request not answered", "drained", comes.LocalAddr().String()); n != 1 {
		t.Errorf("%d lines say why", n)
	}
	if w.log.Count("request not answered", before.LocalAddr().String()) > 0 {
		t.Error("the client that was served does not wait")
	}
}

// TestDrainOrders: ranges, wildcards and keys stand for what they cover, also for what comes later; an undo takes the words of its order.
func TestDrainOrders(t *testing.T) {
	k, other := key(t, "nas", "http/*", "tcp/1024-65535"), key(t, "office", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k, other}}})
	addr, public := free(t)
	b := w.bridge(k, how{instance: 1}, "http/a.example.com", public)
	w.drain(DrainOrder{Service: allow(t, "http/*.example.com")}, 0, "http/a.example.com")
	w.drain(DrainOrder{Service: allow(t, "http/*.example.com")}, 0, "http/a.example.com") // asked again
	ob := w.bridge(other, how{instance: 2}, "http/b.example.com", "http/c.example")
	eventually(t, "what comes later is drained as well", func() bool { return ob.claim(0).Text != "" })
	if c := ob.claim(1); c.Text != "" {
		t.Errorf("what is not covered is told %q", c.Text)
	}
	w.drain(DrainOrder{Key: "office"}, 0, "http/b.example.com", "http/c.example")
	w.drain(DrainOrder{Service: allow(t, "http/*.example.com"), Undo: true}, 0, "http/a.example.com", "http/b.example.com")
	if state, _ := w.state("http/b.example.com"); state != status.ServiceAway {
		t.Errorf("of two orders one was undone, and it is %s", state)
	}
	w.drain(DrainOrder{Key: "office", Undo: true}, 0, "http/b.example.com", "http/c.example")
	w.pair(b, addr)
	for _, c := range []struct {
		o     DrainOrder
		there bool
		words string
	}{
		{DrainOrder{Service: allow(t, "http/none.example")}, false, "there is no service http/none.example"},
		{DrainOrder{Key: "nobody"}, false, `there is no key "nobody"`},
		{DrainOrder{Service: allow(t, "http/*.example.com"), Undo: true}, true, "http/*.example.com was not drained"},
		{DrainOrder{Key: "nas", Undo: true}, true, `key "nas" was not drained`},
	} {
		_, err := w.p.DrainUsers(context.Background(), c.o)
		refused, ok := errors.AsType[*DrainError](err)
		if !ok || refused.There != c.there || !strings.Contains(refused.Text, c.words) {
			t.Errorf("DrainUsers(%+v) = %v", c.o, err)
		}
	}
	w.drain(DrainOrder{Key: "nas"}, 1, "http/a.example.com", public)
	_, err := w.p.DrainUsers(context.Background(), DrainOrder{Service: allow(t, "http/a.example.com"), Undo: true})
	if err == nil || !strings.Contains(err.Error(), "was not drained, but key nas") {
		t.Errorf("%v; want what is drained", err)
	}
	w.turnedAway(addr)
}

// TestDrainedKeyIsRemoved: an order about a key ends with the key, since nobody could undo it. One about names stays, whoever has them.
func TestDrainedKeyIsRemoved(t *testing.T) {
	addr, public := free(t)
	k, other := key(t, "nas", "tcp/1-65535"), key(t, "office", "tcp/1-65535")
	_, others := free(t)
	w := start(t, Config{Settings: Settings{Keys: []Key{k, other}}})
	w.bridge(k, how{instance: 1}, others)
	w.drain(DrainOrder{Key: "office"}, 0)
	w.drain(DrainOrder{Service: allow(t, others)}, 0, others)
	if got := w.p.DrainedKeys(); len(got) != 1 || !got[other.ID] { // not that of a service that is
		t.Errorf("DrainedKeys = %v, want office alone, which has no bridge", got)
	}
	w.setKeys(k)
	if got := w.p.DrainedKeys(); len(got) != 0 {
		t.Errorf("DrainedKeys = %v without the key", got)
	}
	_, err := w.p.DrainUsers(context.Background(), DrainOrder{Key: "nas", Undo: true})
	if err == nil || err.Error() != fmt.Sprintf("key %q was not drained, but %s", "nas", others) {
		t.Errorf("%v; want the order that is left alone", err)
	}
	w.setKeys(k, other)
	w.pair(w.bridge(other, how{instance: 2}, public), addr)
}

// TestDrainCountsEachService: a service that several keys ask for is named once, and the connections are those of the one that has it.
func TestDrainCountsEachService(t *testing.T) {
	addr, public := free(t)
	k, other := key(t, "nas", public), key(t, "office", public)
	w := start(t, Config{Settings: Settings{Keys: []Key{k, other}}})
	b := w.bridge(k, how{instance: 1}, public)
	w.pair(b, addr)
	w.bridge(other, how{instance: 2}, public)
	for range 20 { // they come in any order
		w.drain(DrainOrder{Service: allow(t, public)}, 1, public)
	}
}
