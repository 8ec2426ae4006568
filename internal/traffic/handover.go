package traffic

import (
	"net"
	"net/netip"

	"reverser/internal/link"
	"reverser/internal/relay"
)

// Pair returns the pair, to freeze and thaw it, or nil if the admission has none.
func (a *Admission) Pair() *relay.Pair {
	if !a.isPair() {
		return nil
	}
	p, _ := a.pair.(*relay.Pair)
	return p
}

// State describes a frozen pair, names included.
func (a *Admission) State() relay.State {
	st := a.Pair().State()
	st.ID, st.Since, st.Service, st.Target, st.Client = a.id, a.since, a.Service(), a.target, a.ClientName()
	return st
}

// GiveAway is the end of a frozen pair that another process has now: what it took is given back, and nothing is logged, since it goes on.
func (a *Admission) GiveAway() {
	a.Pair().GiveAway()
	if a.depart(over) {
		a.account.addPair(-1)
		a.giveBack("", 0, 0)
	}
}

// Restore takes over a pair of another process, which let it in: no limit stands against it, and what it counted so far is in the
// totals that were taken over before. It keeps its id; those of later connections are higher. Resume must follow.
func (c *Conns) Restore(key [16]byte, st relay.State, conn net.Conn, s *link.Stream) (*Admission, error) {
	client, _ := netip.ParseAddrPort(st.Client)
	for last := c.roster.ids.Load(); last < st.ID && !c.roster.ids.CompareAndSwap(last, st.ID); {
		last = c.roster.ids.Load()
	}
	a := c.admission(c.Account(key, st.Service), client, st.ID)
	if !a.enter() {
		return nil, ErrDraining
	}
	a.account.force(a)
	p := relay.Restore(st, conn, s)
	a.countInto(p)
	a.pair, a.since, a.target = p, st.Since, st.Target
	a.account.addPair(1)
	a.enterPhase(bound)
	return a, nil
}

// Resume lets a restored pair go on.
func (a *Admission) Resume() { a.pair.Start(&a.conns.poller, a.released) }
