package traffic

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"reverser/internal/relay"
)

// TestAccountsSimulation plays random schedules of connections that are let in, refused, dialled, bound and ended, and of bytes that
// move, and looks after each step at what the accounts hold (C9 of the control plane's invariants): each connection is charged once and
// given back once, whatever is called a second time; counters never fall; a limit holds.
func TestAccountsSimulation(t *testing.T) {
	for seed := range uint64(200) {
		if err := playAccounts(seed, 200); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// simConn is a connection as the simulation knows it.
type simConn struct {
	a     *Admission
	pair  *simPair // nil: it is none
	dials bool
}

// simPair is a pair of which the simulation moves the bytes, and that it ends.
type simPair struct {
	idlePair
	sent, received uint64
}

func (p *simPair) Counts() (sent, received uint64) { return p.sent, p.received }

func playAccounts(seed uint64, steps int) (err error) {
	rnd := rand.New(rand.NewPCG(seed, 11))
	c := New(Config{Max: 64, Dials: 8, Clients: 3})
	accounts := []*Account{c.Account(keyA, "tcp/9000"), c.Account(keyA, "tcp/9001"), c.Account(keyB, "tcp/9000")}
	expect := make([]Usage, len(accounts))
	limits := make([]int, len(accounts))
	var last []Usage
	var live []*simConn
	fail := func(format string, args ...any) {
		if err == nil {
			err = fmt.Errorf(format, args...)
		}
	}
	defer func() {
		for _, s := range live {
			if s.pair != nil {
				s.a.released(relay.ReasonEOF)
			}
			s.a.Leave()
		}
		c.Close()
	}()
	for step := range steps {
		at := rnd.IntN(len(accounts))
		var s *simConn
		if len(live) > 0 {
			s = live[rnd.IntN(len(live))]
			at = slices.Index(accounts, s.a.account)
		}
		over := func() { live = slices.DeleteFunc(live, func(o *simConn) bool { return o == s }) }
		switch n := rnd.IntN(12); {
		case n < 5 || s == nil:
			at = rnd.IntN(len(accounts))
			client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(6))}), 1)
			a, refused := c.Admit(accounts[at], client, NoWait)
			full := limits[at] > 0 && expect[at].Admitted >= limits[at]
			if refused == nil && full {
				fail("step %d: %d connections, at most %d", step, expect[at].Admitted+1, limits[at])
			}
			if refused == nil {
				live = append(live, &simConn{a: a})
				expect[at].Admitted++
			}
		case n == 5:
			limits[at] = rnd.IntN(6)
			accounts[at].SetLimits(Limits{Connections: limits[at]})
		case n == 6 && s.pair == nil && !s.dials:
			s.dials = s.a.Dial()
		case n == 7 && s.dials:
			s.a.Dialled()
			s.dials = false
		case n == 8 && s.pair == nil:
			s.pair = &simPair{}
			s.a.bind(s.pair, "target")
			expect[at].Pairs++
			expect[at].Total++
		case n == 9 && s.pair != nil: // as relay.Pair does it
			up, down := uint64(rnd.IntN(1000)), uint64(rnd.IntN(1000))
			s.pair.sent, s.pair.received = s.pair.sent+up, s.pair.received+down
			s.a.account.sent.Add(up)
			s.a.account.received.Add(down)
			expect[at].Sent += up
			expect[at].Received += down
		case n == 10 && s.pair != nil:
			s.a.released(relay.ReasonEOF)
			s.a.Leave()
			s.a.Refuse(RefusedAway, "")
			expect[at].Pairs--
			expect[at].Admitted--
			over()
		case n == 11 && s.pair == nil:
			s.a.Leave()
			s.a.Refuse(RefusedAway, "")
			s.a.Leave()
			expect[at].Admitted--
			over()
		}
		var now []Usage
		for i, a := range accounts {
			u, want := a.Usage(), expect[i]
			if u.Admitted != want.Admitted || u.Pairs != want.Pairs || u.Total != want.Total || u.Sent != want.Sent || u.Received != want.Received {
				fail("C9: step %d: %s has %+v, want %+v", step, a.Service, u, want)
			}
			now = append(now, u)
		}
		for _, k := range []*Account{c.KeyAccount(keyA), c.KeyAccount(keyB)} {
			now = append(now, k.Usage())
		}
		if a, b := now[0], now[1]; now[3].Admitted != a.Admitted+b.Admitted || now[3].Pairs != a.Pairs+b.Pairs || now[3].Total != a.Total+b.Total || now[3].Sent != a.Sent+b.Sent {
			fail("C9: step %d: the key has %+v, its services %+v and %+v", step, now[3], a, b)
		}
		for i := range last {
			if was, is := last[i], now[i]; is.Total < was.Total || is.Sent < was.Sent || is.Received < was.Received || sum(is.Ended) < sum(was.Ended) || sum(is.Refused) < sum(was.Refused) {
				fail("C9: step %d: a counter fell from %+v to %+v", step, was, is)
			}
		}
		last = now
		if load := c.Load(); load.Unbound()+load.Pairs != len(live) {
			fail("C9: step %d: %+v are counted, there are %d", step, load, len(live))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func sum[K comparable](m map[K]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}
