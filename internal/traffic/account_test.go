package traffic

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"reverser/internal/logtest"
	"reverser/internal/relay"
	"reverser/internal/share"
)

// TestLimits: of a service, a key, and a client; those of others are not touched.
func TestLimits(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		web, ssh, foreign := c.Account(keyA, "tcp/80"), c.Account(keyA, "tcp/22"), c.Account(keyB, "tcp/81")
		web.SetLimits(Limits{Connections: 3, PerClient: 2})
		c.KeyAccount(keyA).SetLimits(Limits{Connections: 4})
		want := func(a *Account, client netip.AddrPort, what string) *Admission {
			t.Helper()
			ad, err := c.Admit(a, client, NoWait)
			limit, _ := errors.AsType[*LimitError](err)
			if what == "" && err != nil || what != "" && (limit == nil || limit.What != what) {
				t.Errorf("Admit = %v, want limit %q", err, what)
			}
			return ad
		}
		first := want(web, alice, "")
		want(web, alice, "")
		want(web, alice, "client")
		want(web, bob, "")
		want(web, bob, "service")
		want(ssh, alice, "")
		want(ssh, bob, "key")
		want(foreign, bob, "")
		first.Leave()
		want(web, netip.MustParseAddrPort("[2001:db8::1]:5"), "")
		web.SetLimits(Limits{PerClient: 1})
		c.KeyAccount(keyA).SetLimits(Limits{})
		want(web, netip.MustParseAddrPort("[2001:db8::2]:5"), "client") // the same customer
		want(web, netip.MustParseAddrPort("[2001:db8:0:1::2]:5"), "")
		want(web, netip.AddrPort{}, "") // nobody knows whose it is
		want(web, netip.AddrPort{}, "")
		if u := web.Usage(); u.Refused[RefusedLimit] != 3 || u.Admitted != 6 {
			t.Errorf("usage %+v", u)
		}
		for _, cl := range clientsOf(web) {
			if cl.Block == share.Block(alice.Addr()) && (cl.Admitted != 1 || cl.Refused != 1) {
				t.Errorf("alice: %+v", cl)
			}
		}
		if n := log.Count("client refused service=tcp/80 client=192.0.2.1:1000 err=limit of the client: at most 2 connections at once"); n != 1 {
			t.Errorf("the log says %q", log.All())
		}
		for a := range c.roster.each {
			a.Leave()
		}
	})
}

// TestRefusalsAreQuiet: however many are refused, a service has a line a second in the log, no refusal is missing in the counts, and
// one service does not silence another.
func TestRefusalsAreQuiet(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		web, ssh := c.Account(keyA, "tcp/80"), c.Account(keyA, "tcp/22")
		for range 300 {
			admit(t, web, alice).Refuse(RefusedAway, "client refused", "service", "tcp/80")
			time.Sleep(10 * time.Millisecond)
		}
		admit(t, ssh, alice).Refuse(RefusedAway, "client refused", "service", "tcp/22")
		admit(t, ssh, alice).Refuse(RefusedLeft, "")
		time.Sleep(time.Minute)
		said := 0
		lines := log.All("client refused service=tcp/80")
		for _, line := range lines {
			more := 0
			fmt.Sscanf(line, "client refused service=tcp/80 more=%d", &more)
			said += 1 + more
		}
		if len(lines) > 4 || said != 300 {
			t.Errorf("%d lines in 3 seconds about %d refusals, want 4 about 300: %q", len(lines), said, log.All())
		}
		if n := log.Count("client refused service=tcp/22"); n != 1 {
			t.Errorf("%d lines of the other service, want 1", n)
		}
		if u := web.Usage(); u.Refused[RefusedAway] != 300 || u.Total != 0 {
			t.Errorf("usage %+v", u)
		}
	})
}

// TestServicesAreBounded: a key that claims ever new names does not fill the memory.
func TestServicesAreBounded(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		for i := range maxServices + 10 {
			c.Account(keyA, fmt.Sprint(i))
		}
		k := c.KeyAccount(keyA)
		if n := len(k.services); n != maxServices {
			t.Errorf("%d accounts", n)
		}
		one, many := c.Account(keyA, "1"), c.Account(keyA, "x")
		if c.Account(keyA, "1") != one || c.Find(keyA, "1") != one || c.Find(keyA, "x") != nil || c.Find(keyB, "1") != nil {
			t.Error("want the account of what was there, and none that is kept of what is too much")
		}
		f := &fake{sent: 5, received: 7}
		admit(t, many, alice).bind(f, "")
		if u := many.Usage(); u.Pairs != 1 || u.Total != 1 {
			t.Errorf("usage %+v", u)
		}
		f.End(relay.ReasonEOF, 0)
		admit(t, many, alice).Refuse(RefusedAway, "")
		synctest.Wait()
		if u := k.Usage(); u.Total != 1 || u.Sent != 5 || u.Received != 7 || u.Ended[relay.ReasonEOF] != 1 || u.Refused[RefusedAway] != 1 {
			t.Errorf("the key counted %+v", u)
		}
	})
}

// TestClientsAreBounded: the latest keep an account, an active one is never dropped, and nothing that was counted is lost.
func TestClientsAreBounded(t *testing.T) {
	bubble(t, Config{Clients: 2}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		acc := c.Account(keyA, "tcp/80")
		client := func(n byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 1) }
		visit := func(n byte) {
			f := &fake{sent: uint64(n)}
			admit(t, acc, client(n)).bind(f, "")
			f.End(relay.ReasonEOF, 0)
			synctest.Wait()
		}
		want := func(blocks ...byte) {
			t.Helper()
			have := map[netip.Prefix]Client{}
			var total, sent uint64
			for _, cl := range clientsOf(acc) {
				have[cl.Block] = cl
				total += cl.Total - uint64(cl.Admitted)
				sent += cl.Sent
			}
			for _, b := range blocks {
				if _, ok := have[share.Block(client(b).Addr())]; !ok {
					t.Errorf("client %d has no account of %v", b, have)
				}
			}
			if len(have) != len(blocks)+1 {
				t.Errorf("accounts %v, want those of %d and the others", have, blocks)
			}
			if u := acc.Usage(); total != u.Ended[relay.ReasonEOF] {
				t.Errorf("%d pairs counted by client, %d by service", total, u.Ended[relay.ReasonEOF])
			}
		}
		visit(1)
		visit(2)
		visit(1)
		visit(3) // 2 was away for longest
		want(1, 3)
		stays := admit(t, acc, client(1))
		visit(4)
		want(1, 4)
		stays2 := admit(t, acc, client(4))
		visit(5) // among the others
		want(1, 4)
		stays.Leave()
		stays2.Leave()
	})
}

// clientsOf returns the clients of one service, that of the others included.
func clientsOf(a *Account) []Client {
	a.ledger.mu.Lock()
	all := []Client{a.others.client()}
	a.ledger.mu.Unlock()
	for _, cl := range a.ledger.eachClient() {
		if cl.Account == a {
			all = append(all, cl)
		}
	}
	return all
}

// TestLedger lets connections of all kinds come and go, and compares every counter with a plain model after each step.
func TestLedger(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := slog.New(slog.DiscardHandler)
		c := New(Config{Log: log, Max: 6, Dials: 2, Clients: 3, Side: relay.Target})
		type conn struct {
			a      *Admission
			f      *fake // nil: no pair yet
			client int
			acc    int
			placed bool
		}
		accounts := []*Account{c.Account(keyA, "tcp/1"), c.Account(keyA, "tcp/2"), c.Account(keyB, "tcp/1")}
		most := []int{2, 0, 3} // connections of each
		for i, n := range most {
			accounts[i].SetLimits(Limits{Connections: n, PerClient: 2})
		}
		var live []*conn
		type counts struct {
			admitted, pairs                  int
			total, ended, refused, sent, rcv uint64
		}
		model := make([]counts, len(accounts))
		before := make([]Usage, len(accounts))
		refused := func(i int) { model[i].refused++ }
		take := func(t *rapid.T, pair bool) *conn {
			var some []*conn
			for _, x := range live {
				if (x.f != nil) == pair {
					some = append(some, x)
				}
			}
			if len(some) == 0 {
				t.Skip("none")
			}
			return rapid.SampledFrom(some).Draw(t, "which")
		}
		drop := func(x *conn) {
			for i := range live {
				if live[i] == x {
					live = append(live[:i], live[i+1:]...)
					break
				}
			}
			model[x.acc].admitted--
		}
		t.Repeat(map[string]func(*rapid.T){
			"arrive": func(t *rapid.T) {
				acc, client := rapid.IntRange(0, 2).Draw(t, "account"), rapid.IntRange(0, 5).Draw(t, "client")
				addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(client)}), 1)
				ofClient, everywhere := 0, 0 // everywhere: at any service of the key
				for _, x := range live {
					if x.client == client && accounts[x.acc].Key == accounts[acc].Key {
						everywhere++
						if x.acc == acc {
							ofClient++
						}
					}
				}
				a, err := c.Admit(accounts[acc], addr, NoWait)
				limit, isLimit := errors.AsType[*LimitError](err)
				switch {
				case most[acc] > 0 && model[acc].admitted >= most[acc]:
					if !isLimit || limit.What != "service" {
						t.Fatalf("Admit = %v, want the service's limit", err)
					}
				case isLimit:
					if limit.What != "client" || ofClient < 2 {
						t.Fatalf("Admit = %v with %d connections of the client", err, ofClient)
					}
				case len(live) >= 6 && everywhere == 0:
					if err != ErrFull {
						t.Fatalf("Admit = %v, want ErrFull", err)
					}
				case everywhere >= max(6-len(live), 1):
					if err != ErrClientShare {
						t.Fatalf("Admit = %v with %d connections of the client and %d in all", err, everywhere, len(live))
					}
				case err != nil:
					t.Fatalf("Admit = %v", err)
				}
				if err != nil {
					refused(acc)
					return
				}
				model[acc].admitted++
				live = append(live, &conn{a: a, client: client, acc: acc})
			},
			"hold":    func(t *rapid.T) { x := take(t, false); x.a.Dialled(); x.a.Hold() },
			"dial":    func(t *rapid.T) { x := take(t, false); x.a.Dialled(); x.a.Dial() },
			"dialled": func(t *rapid.T) { take(t, false).a.Dialled() },
			"leave":   func(t *rapid.T) { x := take(t, false); x.a.Leave(); x.a.Leave(); drop(x) },
			"refuse": func(t *rapid.T) {
				x := take(t, false)
				x.a.Refuse(RefusedAway, "")
				x.a.Refuse(RefusedAway, "")
				refused(x.acc)
				drop(x)
			},
			"bind": func(t *rapid.T) {
				x := take(t, false)
				x.a.Dialled()
				x.f = &fake{sent: rapid.Uint64Range(0, 9).Draw(t, "sent"), received: rapid.Uint64Range(0, 9).Draw(t, "received")}
				x.a.bind(idlePair{x.f}, "")
				model[x.acc].pairs++
				model[x.acc].total++
			},
			"bytes": func(t *rapid.T) {
				x := take(t, true)
				n := rapid.Uint64Range(0, 9).Draw(t, "bytes")
				x.a.account.sent.Add(n)
				x.a.account.received.Add(2 * n)
				x.a.guest.sent.Add(n)
				x.a.guest.received.Add(2 * n)
				model[x.acc].sent += n
				model[x.acc].rcv += 2 * n
			},
			"end": func(t *rapid.T) {
				x := take(t, true)
				x.a.released(relay.ReasonEOF)
				x.a.Leave()
				model[x.acc].pairs--
				model[x.acc].ended++
				drop(x)
			},
			"": func(t *rapid.T) {
				keys := map[[16]byte]*Usage{keyA: {}, keyB: {}}
				for i, a := range accounts {
					u, m := a.Usage(), model[i]
					got := counts{u.Admitted, u.Pairs, u.Total, u.Ended[relay.ReasonEOF], 0, u.Sent, u.Received}
					for _, n := range u.Refused {
						got.refused += n
					}
					if got != m {
						t.Fatalf("account %d: %+v, want %+v", i, got, m)
					}
					if b := before[i]; u.Total < b.Total || u.Sent < b.Sent || u.Received < b.Received {
						t.Fatalf("account %d went back from %+v to %+v", i, b, u)
					}
					before[i] = u
					k := keys[a.Key]
					k.Admitted += u.Admitted
					k.Pairs += u.Pairs
					k.Total += u.Total
					k.Sent += u.Sent
					k.Received += u.Received
					clients := Client{}
					for _, cl := range clientsOf(a) {
						clients.Admitted += cl.Admitted
						clients.Total += cl.Total
						clients.Refused += cl.Refused
						clients.Sent += cl.Sent
						clients.Received += cl.Received
					}
					if clients.Admitted != m.admitted || clients.Total != m.ended+uint64(m.admitted) || clients.Refused != m.refused ||
						clients.Sent != m.sent || clients.Received != m.rcv {
						t.Fatalf("account %d: clients %+v, want %+v", i, clients, m)
					}
				}
				for id, want := range keys {
					u := c.KeyAccount(id).Usage()
					if u.Admitted != want.Admitted || u.Pairs != want.Pairs || u.Total != want.Total || u.Sent != want.Sent || u.Received != want.Received {
						t.Fatalf("key %x: %+v, want %+v", id, u, *want)
					}
				}
				l, pairs := c.Load(), 0
				for _, x := range live {
					if x.f != nil {
						pairs++
					}
				}
				if l.Pairs != pairs || l.Unbound() != len(live)-pairs || c.ledger.places.used != len(live) || l.Dialling != len(c.room.dials) {
					t.Fatalf("%+v with %d places and %d dials; want %d connections, %d of them pairs", l, c.ledger.places.used, len(c.room.dials), len(live), pairs)
				}
				if n := len(c.ledger.guests); n > 3 {
					t.Fatalf("%d clients have an account", n)
				}
			},
		})
		for len(live) > 0 {
			x := live[0]
			if x.f != nil {
				x.a.released(relay.ReasonEOF)
			} else {
				x.a.Leave()
			}
			drop(x)
		}
		c.Close()
		wantNothing(t, c)
	})
}

// BenchmarkBytes is what a chunk costs at its service's account.
func BenchmarkBytes(b *testing.B) {
	c := New(Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	defer c.Close()
	acc := c.Account(keyA, "tcp/9000")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			acc.sent.Add(16 << 10)
		}
	})
}

// TestRefusalsOfManyServices: strangers who try all services of one key fill no log, and every refusal is counted there in the end.
// Another key's are said at once.
func TestRefusalsOfManyServices(t *testing.T) {
	const services, each = 100, 3
	bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		for i := range services {
			acc := c.Account(keyA, fmt.Sprintf("tcp/%d", 1000+i))
			for range each {
				a, err := c.Admit(acc, alice, NoWait)
				if err != nil {
					t.Fatal(err)
				}
				a.Refuse(RefusedAway, "client refused", "service", acc.Service)
			}
		}
		if n := log.Count("client refused"); n != noticesOfKey {
			t.Errorf("%d lines at once, want %d", n, noticesOfKey)
		}
		a, err := c.Admit(c.Account(keyB, "tcp/80"), alice, NoWait)
		if err != nil {
			t.Fatal(err)
		}
		if a.Refuse(RefusedAway, "client refused", "service", "another key's"); log.Count("another key's") != 1 {
			t.Error("another key's refusal is not said at once")
		}
		for s := range 2 * services * each / noticesOfKey {
			time.Sleep(noticesPer)
			if n := log.Count("client refused"); n > 1+(s+2)*noticesOfKey {
				t.Fatalf("%d lines after %d seconds", n, s+1)
			}
		}
		sum := 0
		for _, line := range log.All("client refused", "service=tcp/") {
			service, more := 0, 0
			fmt.Sscanf(line, "client refused service=tcp/%d more=%d", &service, &more)
			sum += 1 + more
		}
		if sum != services*each {
			t.Errorf("the log speaks of %d refusals, want %d", sum, services*each)
		}
	})
}
