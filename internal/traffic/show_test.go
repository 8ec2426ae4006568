package traffic

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"testing/synctest"

	"reverser/internal/logtest"
	"reverser/internal/relay"
	"reverser/internal/status"
)

// TestShow: what keys, clients and services that are gone have counted is shown, each once, and what is there at present moves.
func TestShow(t *testing.T) {
	name := func(id [16]byte) string { return map[[16]byte]string{keyA: "nas"}[id] }
	bubble(t, Config{Name: name}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		web, gone, other := c.Account(keyA, "tcp/80"), c.Account(keyA, "tcp/22"), c.Account(keyB, "tcp/81")
		c.Account(keyB, "tcp/82") // never used
		visit := func(a *Account, client netip.AddrPort, sent, received uint64) *fake {
			f := &fake{sent: sent, received: received}
			ad := admit(t, a, client)
			ad.bind(f, "")
			for _, total := range []*guest{ad.guest} {
				total.sent.Add(sent)
				total.received.Add(received)
			}
			a.sent.Add(sent)
			a.received.Add(received)
			return f
		}
		live := []*fake{visit(web, alice, 5, 7), visit(web, alice, 1, 2), visit(other, bob, 10, 20)}
		visit(gone, bob, 100, 200).End(relay.ReasonEOF, 0)
		admit(t, web, bob).Refuse(RefusedAway, "")
		synctest.Wait()
		id := func(k byte) string { return fmt.Sprintf("%02x%030d", k, 0) }
		var s status.Snapshot
		c.Show(&s, map[*Account]bool{web: true, other: true})
		want := status.Snapshot{
			Keys: []status.Key{
				{Key: id('b'), ID: id('b'), Connections: 1, Total: 1, Sent: 10, Received: 20},
				{Key: "nas", ID: id('a'), Connections: 2, Total: 3, Sent: 106, Received: 209, Refused: 1},
			},
			Clients: []status.Client{
				{Client: "192.0.2.1", Service: "tcp/80", Key: "nas", Connections: 2, Total: 2, Sent: 6, Received: 9},
				{Client: "192.0.2.2", Service: "tcp/81", Key: id('b'), Connections: 1, Total: 1, Sent: 10, Received: 20},
				{Client: "192.0.2.2", Service: "tcp/22", Key: "nas", Total: 1, Sent: 100, Received: 200},
				{Client: "192.0.2.2", Service: "tcp/80", Key: "nas", Refused: 1},
			},
			Removed: []status.Service{{Public: "tcp/22", Key: "nas", State: status.ServiceRemoved, Total: 1, Sent: 100, Received: 200}},
		}
		if got, want := fmt.Sprintf("%+v", s), fmt.Sprintf("%+v", want); got != want {
			t.Errorf("Show =\n%s\nwant\n%s", got, want)
		}
		for _, f := range live {
			f.End(relay.ReasonEOF, 0)
		}
		synctest.Wait()
	})
}

// TestShowIsBounded: however many clients and services there were, the lists have an end and the totals do not lose what is left out.
func TestShowIsBounded(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		const n = 500
		for i := range n {
			f := &fake{}
			admit(t, c.Account(keyA, fmt.Sprint("tcp/", i)), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)).bind(f, "")
			f.End(relay.ReasonEOF, 0)
		}
		synctest.Wait()
		var s status.Snapshot
		c.Show(&s, nil)
		if len(s.Removed) != mostRemoved || len(s.Clients) != mostClients || len(s.Keys) != 1 || s.Keys[0].Total != n {
			t.Errorf("%d removed, %d clients, keys %+v", len(s.Removed), len(s.Clients), s.Keys)
		}
	})
}

// TestCounted: what services counted is yielded each by each, and what those counted that a key has too many of, as one.
func TestCounted(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		c.Account(keyB, "tcp/82") // never used
		first := c.Account(keyA, "tcp/0")
		for i := range maxServices - 1 {
			c.Account(keyA, fmt.Sprint("tcp/", i+1))
		}
		further := []*Account{c.Account(keyA, "http/a.example"), c.Account(keyA, "http/b.example")}
		live := &fake{sent: 1, received: 2}
		admit(t, first, alice).bind(live, "")
		first.sent.Add(1)
		first.received.Add(2)
		for _, a := range further {
			f := &fake{sent: 10, received: 20}
			admit(t, a, bob).bind(f, "")
			f.End(relay.ReasonEOF, 0)
		}
		admit(t, further[0], bob).Refuse(RefusedAway, "")
		synctest.Wait()
		got := make(map[string]status.Counted)
		for n := range c.Counted {
			if n != (status.Counted{Key: n.Key, Service: n.Service}) {
				got[n.Service] = n
			}
		}
		want := map[string]status.Counted{
			"tcp/0": {Key: keyA, Service: "tcp/0", Open: 1, Connections: 1, Sent: 1, Received: 2},
			"other": {Key: keyA, Service: "other", Connections: 2, Sent: 20, Received: 40, Refused: 1},
		}
		if !maps.Equal(got, want) {
			t.Errorf("Counted yields %+v, want %+v", got, want)
		}
		for range c.Counted {
			break
		}
		live.End(relay.ReasonEOF, 0)
		synctest.Wait()
	})
}

// TestRemovedKeys: a removed key that counted nothing leaves nothing behind. What the others counted stays, and status shows some of them.
func TestRemovedKeys(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		key := func(i int) [16]byte { return [16]byte{1, byte(i >> 8), byte(i)} }
		limits := Limits{Connections: 1}
		for i := range 150 {
			c.SetKeys(map[[16]byte]Limits{keyA: limits, key(i): limits})
			c.SetKeys(map[[16]byte]Limits{keyA: limits})
			c.EndKey(relay.ReasonRemoved, 0, key(i))
		}
		kept := func() (keys, tenants, services int) {
			return len(c.ledger.keys), len(c.ledger.tenants), len(c.ledger.services)
		}
		if keys, tenants, _ := kept(); keys != 1 || tenants != 1 {
			t.Errorf("%d keys and %d tenants are left; want one of each", keys, tenants)
		}

		// One with a service that a user tried, and that counted nothing.
		c.SetKeys(map[[16]byte]Limits{keyA: limits, keyB: limits})
		admit(t, c.Account(keyB, "tcp/80"), alice).Leave()
		c.SetKeys(map[[16]byte]Limits{keyA: limits})
		var s status.Snapshot
		c.Show(&s, nil)
		if len(s.Keys) != 1 {
			t.Errorf("keys %+v are shown; want one", s.Keys)
		}
		c.SetKeys(map[[16]byte]Limits{keyA: limits})
		if keys, tenants, services := kept(); keys != 1 || tenants != 1 || services != 0 || len(c.ledger.listed) != 0 || c.ledger.idle.Len() != 0 {
			t.Errorf("%d keys, %d tenants, %d services and %d clients are left; want one key and one tenant", keys, tenants, services, len(c.ledger.listed))
		}

		for i := range 150 {
			c.SetKeys(map[[16]byte]Limits{keyA: limits, key(i): limits})
			f := &fake{}
			admit(t, c.Account(key(i), "tcp/80"), alice).bind(f, "")
			f.End(relay.ReasonEOF, 0)
			synctest.Wait()
		}
		c.SetKeys(map[[16]byte]Limits{keyA: limits})
		s = status.Snapshot{}
		c.Show(&s, nil)
		if len(s.Keys) != 1+mostRemoved || len(s.Removed) != mostRemoved {
			t.Errorf("%d keys and %d removed services are shown; want %d and %d", len(s.Keys), len(s.Removed), 1+mostRemoved, mostRemoved)
		}
		counted := 0
		for range c.Counted {
			counted++
		}
		if counted != 150 {
			t.Errorf("%d services have counted; want 150", counted)
		}
	})
}
