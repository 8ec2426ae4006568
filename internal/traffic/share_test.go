package traffic

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"reverser/internal/logtest"
	"reverser/internal/relay"
	"reverser/internal/share"
	"reverser/internal/sys"
)

// address is the nth client.
func address(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 1)
}

// fill lets clients in until one is refused, which must be for want, and returns how many they were.
func fill(t *testing.T, c *Conns, a *Account, want error, client func(n int) netip.AddrPort) (all []*Admission) {
	t.Helper()
	for {
		ad, err := c.Admit(a, client(len(all)), NoWait)
		if err == nil {
			all = append(all, ad)
			continue
		}
		if err != want {
			t.Errorf("Admit = %v, want %v", err, want)
		}
		return all
	}
}

func leaveAll(all []*Admission) {
	for _, a := range all {
		a.Leave()
	}
}

// TestOnlyKey: a key that is the only one may have every place, and one of its clients half of them.
func TestOnlyKey(t *testing.T) {
	bubble(t, Config{Max: 64, Side: relay.Client}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		c.SetKeys(map[[16]byte]Limits{keyA: {}})
		web := c.Account(keyA, "tcp/80")
		all := fill(t, c, web, ErrClientShare, func(int) netip.AddrPort { return alice })
		if len(all) != 32 {
			t.Errorf("one address has %d places, want half", len(all))
		}
		all = append(all, fill(t, c, web, ErrFull, address)...)
		if len(all) != 64 {
			t.Errorf("the key has %d places, want all", len(all))
		}
		leaveAll(all)
	})
}

// TestKeyShare: a key may have as many places as are free, and whoever has none gets one.
func TestKeyShare(t *testing.T) {
	bubble(t, Config{Max: 64, Side: relay.Client}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		var all []*Admission
		for i, want := range []int{32, 16, 8, 4, 2, 1, 1} {
			why := ErrKeyShare
			if i == 6 {
				why = ErrFull
			}
			own := fill(t, c, c.Account([16]byte{byte(i)}, "tcp/80"), why, func(n int) netip.AddrPort { return address(1000*i + n) })
			if len(own) != want {
				t.Errorf("key %d has %d places, want %d", i, len(own), want)
			}
			all = append(all, own...)
		}
		// What one gives back is for the small ones.
		leaveAll(all[:4])
		if _, err := c.Admit(c.Account([16]byte{0}, "tcp/81"), address(1), NoWait); err != ErrKeyShare && err != ErrClientShare {
			t.Errorf("the largest gets %v", err)
		}
		a, err := c.Admit(c.Account([16]byte{9}, "tcp/80"), address(1), NoWait)
		if err != nil {
			t.Errorf("a new key gets %v", err)
		}
		leaveAll(append(all[4:], a))
	})
}

// TestClientShare: 3,000 idle users of one address leave room for the key's other clients, and for other keys.
func TestClientShare(t *testing.T) {
	bubble(t, Config{Max: 768, Side: relay.Client}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		web, ssh := c.Account(keyA, "tcp/80"), c.Account(keyA, "tcp/22")
		var all []*Admission
		refused := 0
		for i := range 3000 {
			service := web
			if i%2 == 1 {
				service = ssh // another service of the key is no way around it
			}
			ad, err := c.Admit(service, alice, Wait)
			switch err {
			case nil:
				all = append(all, ad)
			case ErrClientShare:
				refused++
			default:
				t.Fatalf("Admit = %v", err)
			}
		}
		if len(all) != 192 || refused != 3000-192 {
			t.Errorf("one address has %d places, want a quarter", len(all))
		}
		for i := range 50 {
			all = append(all, admit(t, web, address(i)), admit(t, c.Account(keyB, "tcp/81"), alice))
		}
		time.Sleep(time.Second)
		if n := log.Count("client refused"); n > 4 {
			t.Errorf("%d lines about it, want a few", n)
		}
		leaveAll(all)
	})
}

// TestOwnKey: a bridge has one key, which may have all places; its clients share.
func TestOwnKey(t *testing.T) {
	bubble(t, Config{Max: 64, Side: relay.Target}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		acc := c.Account(keyA, "tcp/80")
		all := fill(t, c, acc, ErrClientShare, func(int) netip.AddrPort { return alice })
		if len(all) != 32 {
			t.Errorf("one client has %d places, want half", len(all))
		}
		all = append(all, fill(t, c, acc, ErrFull, address)...)
		if len(all) != 64 {
			t.Errorf("all clients have %d places", len(all))
		}
		leaveAll(all)
		all = fill(t, c, acc, ErrFull, func(int) netip.AddrPort { return netip.AddrPort{} }) // nobody knows who they are
		if len(all) != 64 {
			t.Errorf("unknown clients have %d places, want all", len(all))
		}
		leaveAll(all)
	})
}

// TestHolder: a client is an IPv4 address, or a network of 64 bits, as in Block.
func TestHolder(t *testing.T) {
	acc := new(Account)
	all := []string{"10.0.0.1:1", "[::ffff:10.0.0.1]:2", "10.0.0.2:1", "[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8:0:1::1]:1", "[::10.0.0.1]:1"}
	for _, x := range all {
		for _, y := range all {
			a, b := netip.MustParseAddrPort(x), netip.MustParseAddrPort(y)
			if same := share.Block(a.Addr()) == share.Block(b.Addr()); same != (holderOf(acc, a) == holderOf(acc, b)) {
				t.Errorf("%s and %s: want the same client: %t", x, y, same)
			}
		}
	}
	if holderOf(acc, netip.AddrPort{}).known() || !holderOf(acc, netip.MustParseAddrPort("0.0.0.0:1")).known() {
		t.Error("who is known is wrong")
	}
}

// waits starts an Admit that waits.
func waits(c *Conns, a *Account, client netip.AddrPort) chan error {
	done := make(chan error, 1)
	go func() {
		ad, err := c.Admit(a, client, Wait)
		if err == nil {
			ad.Leave()
		}
		done <- err
	}()
	synctest.Wait()
	return done
}

func want(t *testing.T, what string, done chan error, err error) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-done:
		if !errors.Is(got, err) {
			t.Errorf("%s: Admit = %v, want %v", what, got, err)
		}
	default:
		t.Errorf("%s: still waits", what)
	}
}

// TestWait: the users of a key that has its share wait, those of another do not, and so many at the most that none has to be counted.
func TestWait(t *testing.T) {
	bubble(t, Config{Max: 8, Side: relay.Client}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		web, ssh := c.Account(keyA, "tcp/80"), c.Account(keyB, "tcp/22")
		all := fill(t, c, web, ErrKeyShare, address)
		late := waits(c, web, bob)
		if len(late) != 0 || c.Load().Arriving != len(all)+1 { // it counts already
			t.Errorf("%d of them, %+v; want one that waits", len(all), c.Load())
		}
		want(t, "another key", waits(c, ssh, alice), nil)
		want(t, "a client that has one", waits(c, web, address(0)), ErrClientShare)
		all[0].Leave()
		all[0].Leave()
		want(t, "the one who waited", late, nil)

		all = append(all[1:], fill(t, c, web, ErrKeyShare, func(n int) netip.AddrPort { return address(100 + n) })...)
		var waiting []chan error
		for i := range maxWaiting / 2 {
			waiting = append(waiting, waits(c, web, address(200+i)))
		}
		want(t, "one more than may wait", waits(c, web, address(300)), ErrKeyShare)
		want(t, "a client that waits", waits(c, web, address(200)), ErrClientShare)
		turn := awaitsTurn(c, web)
		if len(turn) != 0 {
			t.Error("AwaitTurn returned while as many wait as may")
		}
		leaveAll(all)
		for _, w := range waiting {
			want(t, "who waited", w, nil)
		}
		want(t, "AwaitTurn", turn, nil)

		all = fill(t, c, web, ErrKeyShare, address)
		last := waits(c, web, bob)
		c.Shut()
		c.stop()
		want(t, "who waits at the end", last, ErrDraining)
		leaveAll(all)
	})
}

// awaitsTurn starts an AwaitTurn.
func awaitsTurn(c *Conns, a *Account) chan error {
	done := make(chan error, 1)
	go func() { c.AwaitTurn(a); done <- nil }()
	synctest.Wait()
	return done
}

// TestWaitShare: those who wait with an open socket are shared as the places are: the users of one key leave half of what is left, and
// the sockets of a key that has its share stand still until it has less, or more are left.
func TestWaitShare(t *testing.T) {
	bubble(t, Config{Max: 64, Side: relay.Client}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		account := func(n int) *Account { return c.Account([16]byte{byte(n)}, "tcp/80") }
		var all []*Admission
		for i := range 7 { // they take all places
			all = append(all, fill(t, c, account(i), map[bool]error{false: ErrKeyShare, true: ErrFull}[i == 6], func(n int) netip.AddrPort { return address(1000*i + n) })...)
		}
		waiting := make(map[int][]chan error)
		for i, most := range []int{8, 4, 2, 1, 1} {
			for n := range most {
				w := waits(c, account(i), address(100_000+1000*i+n))
				if waiting[i] = append(waiting[i], w); len(w) != 0 {
					t.Fatalf("user %d of key %d does not wait: %v", n, i, <-w)
				}
			}
			want(t, fmt.Sprintf("one more of key %d", i), waits(c, account(i), address(100_000+1000*i+most)), ErrFull)
		}
		want(t, "a key without one", waits(c, account(7), address(200_000)), ErrFull)
		first, second, none := awaitsTurn(c, account(0)), awaitsTurn(c, account(1)), awaitsTurn(c, account(7))
		if len(first)+len(second)+len(none) != 0 {
			t.Fatal("AwaitTurn returned while as many wait as may")
		}

		// A place is free, and those who wait have as many as that, or more. The key that has none may take it.
		all[0].Leave()
		want(t, "AwaitTurn of a key that has no place", none, nil)
		if len(first)+len(second) != 0 {
			t.Error("AwaitTurn of a key that has its share returned")
		}
		late, err := c.Admit(account(7), address(200_000), Wait)
		if err != nil {
			t.Fatalf("a key that has no place gets none: %v", err)
		}
		leaveAll(append(all, late))
		for _, ws := range waiting {
			for _, w := range ws {
				want(t, "who waited", w, nil)
			}
		}
		want(t, "AwaitTurn of the first key", first, nil)
		want(t, "AwaitTurn of the second key", second, nil)

		all = fill(t, c, account(0), ErrKeyShare, address)
		for i := range maxWaiting / 2 {
			waits(c, account(0), address(300_000+i))
		}
		turn := awaitsTurn(c, account(0))
		c.SetKeys(map[[16]byte]Limits{account(0).Key: {}}) // it is the only one from now on
		want(t, "AwaitTurn of the only key", turn, nil)
		leaveAll(all)
	})
}

// TestWaitForOthers: what another use of descriptors gives back lets in who waits, the key with the fewest first.
func TestWaitForOthers(t *testing.T) {
	pool := sys.NewPool(256, 0)
	bubble(t, Config{Descriptors: pool, Side: relay.Client}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		web, ssh := c.Account(keyA, "tcp/80"), c.Account(keyB, "tcp/22")
		all := []*Admission{admit(t, web, alice), admit(t, web, bob)}
		n := 0
		for pool.Take(sys.ForListeners) {
			n++
		}
		first, second := waits(c, web, address(1)), waits(c, ssh, address(2))
		pool.Give(sys.ForListeners) // web has two, ssh none, and one is free
		want(t, "the key that has none", second, nil)
		if len(first) != 0 {
			t.Error("the key that has more than are free got one")
		}
		pool.Return(sys.ForListeners, n-1)
		want(t, "the other", first, nil)
		leaveAll(all)
	})
}

// TestStrain: that descriptors run short is said once, with who has most, shown for as long as it lasts, and its end is said.
func TestStrain(t *testing.T) {
	name := func(id [16]byte) string { return map[[16]byte]string{keyA: "nas", keyB: "pi"}[id] }
	bubble(t, Config{Max: 64, Side: relay.Client, Name: name}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		if p := c.Pressure(nil); p != nil {
			t.Errorf("pressure %+v", p)
		}
		web := c.Account(keyA, "tcp/80")
		all := append(fill(t, c, web, ErrClientShare, func(int) netip.AddrPort { return alice }), admit(t, c.Account(keyB, "tcp/81"), bob))
		for range 100 {
			c.Admit(web, alice, NoWait)
			time.Sleep(time.Second)
		}
		if n := log.Count("running short", "of=descriptors for users", "largest_key=nas", "largest_key_has=16", "largest_client=192.0.2.1", "limit=64"); n != 1 || log.Count("running short") != 1 {
			t.Errorf("the log says %q", log.All("running short"))
		}
		p := c.Pressure(nil)
		if len(p) != 1 || p[0].Used != 17 || p[0].Limit != 64 || p[0].Largest.Key != "nas" || p[0].Largest.Used != 16 ||
			p[0].Largest.Client != "192.0.2.1" || p[0].Largest.Service != "tcp/80" || p[0].Hint == "" || p[0].What == "" || p[0].Since.IsZero() {
			t.Errorf("pressure %+v", p)
		}
		time.Sleep(strainOver + time.Second)
		if n := log.Count("no longer running short", "refused_or_waited=101"); n != 1 || c.Pressure(nil) != nil {
			t.Errorf("the log says %q, pressure %+v", log.All("no longer"), c.Pressure(nil))
		}
		leaveAll(all)
	})
}

// TestShares lets users of several keys and clients come, wait and go, and compares who gets in with the rule itself.
func TestShares(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(*testing.T) {
			most := rapid.IntRange(4, 40).Draw(rt, "most")
			c := New(Config{Log: slog.New(slog.DiscardHandler), Max: most, Side: relay.Client})
			type user struct {
				key, client int
				a           *Admission
				done        chan error // of who waits
			}
			var in, waiting []*user
			held := func(key, client int) (n int) {
				for _, u := range in {
					if u.key == key && (client < 0 || u.client == client) {
						n++
					}
				}
				return n
			}
			rule := func(key, client int) error {
				free := most - len(in)
				room := free - held(key, -1)
				share := max((room+1)/2, 1)
				switch {
				case held(key, client) >= share:
					return ErrClientShare
				case free <= 0:
					return ErrFull
				case room <= 0:
					return ErrKeyShare
				}
				return nil
			}
			// settle takes in who got a place, and wants nobody to wait who could have one.
			settle := func() {
				synctest.Wait()
				rest := waiting[:0]
				for _, u := range waiting {
					select {
					case err := <-u.done:
						if err == nil {
							in = append(in, u)
						} else if err != ErrClientShare {
							rt.Fatalf("who waited got %v", err)
						}
					default:
						rest = append(rest, u)
					}
				}
				waiting = rest
				for _, u := range waiting {
					if err := rule(u.key, u.client); err != ErrFull && err != ErrKeyShare {
						rt.Fatalf("key %d, client %d waits, though the rule says %v", u.key, u.client, err)
					}
				}
				if p := &c.ledger.places; p.used != len(in) || len(p.line.users) != len(waiting) || len(in) > most {
					rt.Fatalf("%d places and %d who wait; want %d and %d of %d", p.used, len(p.line.users), len(in), len(waiting), most)
				}
			}
			for range rapid.IntRange(1, 150).Draw(rt, "steps") {
				if len(in) > 0 && rapid.IntRange(0, 2).Draw(rt, "what") == 0 {
					i := rapid.IntRange(0, len(in)-1).Draw(rt, "who")
					u := in[i]
					in = append(in[:i], in[i+1:]...)
					u.a.Leave()
					settle()
					continue
				}
				u := &user{key: rapid.IntRange(0, 3).Draw(rt, "key"), client: rapid.IntRange(0, 4).Draw(rt, "client"), done: make(chan error, 1)}
				want := rule(u.key, u.client)
				p := Patience(rapid.Bool().Draw(rt, "patience"))
				crowd, twice := 0, false
				for _, w := range waiting {
					if w.key == u.key {
						crowd++
						twice = twice || w.client == u.client
					}
				}
				if p == Wait && want != nil && twice {
					want = ErrClientShare
				}
				go func() {
					a, err := c.Admit(c.Account([16]byte{byte(u.key)}, fmt.Sprint("tcp/", u.client%2)), address(u.client), p)
					u.a = a
					u.done <- err
				}()
				synctest.Wait()
				if p == Wait && want != nil && want != ErrClientShare && crowd < c.ledger.places.line.most-len(waiting) {
					waiting = append(waiting, u)
				} else if err := <-u.done; err != want {
					rt.Fatalf("Admit = %v, the rule says %v", err, want)
				} else if err == nil {
					in = append(in, u)
				}
				settle()
			}
			go func() {
				c.Shut()
				c.stop()
			}()
			synctest.Wait()
			for _, u := range waiting {
				if err := <-u.done; err != ErrDraining {
					rt.Fatalf("who waits at the end got %v", err)
				}
			}
			for _, u := range in {
				u.a.Leave()
			}
			c.Close()
			wantNothing(rt, c)
		})
	})
}

// BenchmarkAdmit is what a user costs among many clients.
func BenchmarkAdmit(b *testing.B) {
	for _, n := range []int{0, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := New(Config{Max: 1 << 20, Side: relay.Client})
			defer c.Close()
			var all []*Admission
			for i := range n {
				all = append(all, mustAdmit(b, c, c.Account([16]byte{byte(i)}, "tcp/80"), address(i)))
			}
			acc := c.Account(keyA, "tcp/80")
			for b.Loop() {
				mustAdmit(b, c, acc, alice).Leave()
			}
			leaveAll(all)
		})
	}
}

func mustAdmit(b *testing.B, c *Conns, a *Account, client netip.AddrPort) *Admission {
	ad, err := c.Admit(a, client, NoWait)
	if err != nil {
		b.Fatal(err)
	}
	return ad
}
