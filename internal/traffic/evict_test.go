package traffic

import (
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/logtest"
	"reverser/internal/relay"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// fillPairs lets keys in, each until it is refused, until no place is left, and makes pairs of all.
func fillPairs(t *testing.T, c *Conns, pair func(key int) *fake) (all [][]*fake) {
	t.Helper()
	for k := 0; ; k++ {
		acc := c.Account([16]byte{byte(k)}, "tcp/80")
		var own []*fake
		for {
			a, err := c.Admit(acc, address(100*k+len(own)), NoWait)
			if err != nil {
				break
			}
			f := pair(k)
			own = append(own, f)
			a.bind(f, "")
		}
		if len(own) == 0 {
			return all
		}
		all = append(all, own)
	}
}

func endAll(all [][]*fake) {
	for _, own := range all {
		for _, f := range own {
			f.End(relay.ReasonEOF, 0)
		}
	}
	synctest.Wait()
}

// TestSmallKeyGetsIn: where greedy keys have left nothing, an idle user of theirs makes way for a user of a key that has none.
func TestSmallKeyGetsIn(t *testing.T) {
	bubble(t, Config{Max: 64, Side: relay.Client}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		all := fillPairs(t, c, func(int) *fake { return &fake{sent: 10} })
		small := c.Account(keyA, "tcp/80")
		if _, err := c.Admit(small, alice, NoWait); err != ErrFull {
			t.Errorf("Admit = %v beside connections that have just begun, want ErrFull", err)
		}
		time.Sleep(idleAfter)
		a, err := c.Admit(small, alice, NoWait)
		if err != nil {
			t.Fatalf("Admit = %v", err)
		}
		synctest.Wait()
		ended := 0
		for k, own := range all {
			for _, f := range own {
				if reason, code := f.how(); reason != "" {
					ended++
					if reason != relay.ReasonLimit || code != wire.CodeLimit || len(own) < 2 {
						t.Errorf("a connection of key %d, which has %d, ended by %s, code %d", k, len(own), reason, code)
					}
				}
			}
		}
		if p := &c.ledger.places; ended != 1 || p.used != 64 || len(p.leaving) != 0 {
			t.Errorf("%d were ended, %d places are taken, %d are about to be left; want 1, 64, 0", ended, p.used, len(p.leaving))
		}
		if _, err := c.Admit(small, alice, NoWait); err != ErrClientShare {
			t.Errorf("a second connection of the client: %v, want ErrClientShare", err)
		}
		a.Leave()
		endAll(all)
	})
}

// TestReplacedLeaveRoom: while those who made way are still there, no more descriptors are taken than users may have, and no limit of a key
// is exceeded by those who came in their place.
func TestReplacedLeaveRoom(t *testing.T) {
	pool := sys.NewPool(512, 0)
	bubble(t, Config{Descriptors: pool, Side: relay.Client}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		stubborn := fillKeys(t, c)
		taken := pool.Taken(sys.ForUsers)
		if taken != pool.Size(sys.ForUsers) {
			t.Fatalf("%d descriptors of %d are taken", taken, pool.Size(sys.ForUsers))
		}
		time.Sleep(time.Hour)
		c.SetKeys(map[[16]byte]Limits{keyA: {Connections: 1}, keyB: {}})
		var in []*Admission
		for i := range 2 * mostYielding {
			if a, err := c.Admit(c.Account([16]byte{100 + byte(i)}, "tcp/80"), alice, NoWait); err == nil {
				in = append(in, a)
			}
		}
		if p := &c.ledger.places; len(in) != mostYielding || p.used != p.most || pool.Taken(sys.ForUsers) != taken {
			t.Errorf("%d got in; %d places of %d and %d descriptors are taken; want %d, all, and %d", len(in), p.used, p.most, pool.Taken(sys.ForUsers), mostYielding, taken)
		}
		for _, a := range stubborn {
			a.released(relay.ReasonEOF)
		}
		leaveAll(in)

		stubborn = fillKeys(t, c)
		time.Sleep(time.Hour)
		one := admission(t, c, c.Account(keyA, "tcp/80"))
		v := c.idlest(one.account.key, nil)
		if v == nil {
			t.Fatal("nobody can make way")
		}
		two := admission(t, c, c.Account(keyA, "tcp/80"))
		if !one.replace(v) || two.replace(c.idlest(two.account.key, map[*Admission]bool{v: true})) {
			t.Error("a user is refused a place, or one more than the key's limit got one")
		}
		leaveAll([]*Admission{one, two})
		for _, a := range stubborn {
			a.released(relay.ReasonEOF)
		}
	})
}

// fillKeys has some keys take all places, with idle pairs that do not end when they are told to.
func fillKeys(t *testing.T, c *Conns) (all []*Admission) {
	for k := range 30 {
		for i := range 512 {
			if a, err := c.Admit(c.Account([16]byte{byte(k)}, "tcp/80"), address(1000*k+i), NoWait); err == nil {
				a.bind(idlePair{&fake{}}, "")
				all = append(all, a)
			}
		}
	}
	return all
}

// admission is a connection that was not charged yet.
func admission(t *testing.T, c *Conns, acc *Account) *Admission {
	a := c.admission(acc, alice, c.roster.ids.Add(1))
	if !a.enter() {
		t.Fatal("nothing enters")
	}
	return a
}

// TestBusyStay: who moves bytes does not make way, and so many are told to at the most that have not left.
func TestBusyStay(t *testing.T) {
	bubble(t, Config{Max: 64, Side: relay.Client}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		all := fillPairs(t, c, func(int) *fake { return &fake{sent: 1 << 20} })
		time.Sleep(idleAfter)
		if _, err := c.Admit(c.Account(keyA, "tcp/80"), alice, NoWait); err != ErrFull {
			t.Errorf("Admit = %v, want ErrFull", err)
		}
		endAll(all)

		all = nil
		for k := range 7 {
			acc := c.Account([16]byte{byte(k)}, "tcp/80")
			for i := range 64 {
				if a, err := c.Admit(acc, address(100*k+i), NoWait); err == nil {
					f := &fake{}
					all = append(all, []*fake{f})
					a.bind(idlePair{f}, "") // it does not end when it is told to
				}
			}
		}
		time.Sleep(time.Hour)
		var in []*Admission
		for i := range 2 * mostYielding {
			if a, err := c.Admit(c.Account([16]byte{100 + byte(i)}, "tcp/80"), alice, NoWait); err == nil {
				in = append(in, a)
			}
		}
		if len(in) != mostYielding {
			t.Errorf("%d got in while nobody left, want %d", len(in), mostYielding)
		}
		leaveAll(in)
		for a := range c.roster.each {
			a.released(relay.ReasonEOF)
		}
		if n := len(c.ledger.places.leaving); n != 0 {
			t.Errorf("%d are still about to leave", n)
		}
	})
}
