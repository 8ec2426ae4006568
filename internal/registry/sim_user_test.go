package registry

import (
	"errors"
	"net/netip"
	"slices"

	"reverser/internal/traffic"
	"reverser/internal/wire"
)

func (w *simProxy) come() {
	var names []pub
	for s := range w.open {
		names = append(names, s.Public())
	}
	for rt := range w.r.View().All {
		if placed(rt.Public) {
			names = append(names, rt.Public)
		}
	}
	if len(names) == 0 {
		return
	}
	slices.SortFunc(names, comparePublic)
	u := &simUser{name: names[w.pick("name", len(names))]}
	if u.route = w.r.View().Find(u.name); u.route == nil {
		w.stats.Removed++ // closed in this moment
		return
	}
	w.admit(u)
}

// admit charges a user to the accounts.
func (w *simProxy) admit(u *simUser) {
	u.account = w.conns.Account(u.route.Key, u.name.String())
	client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(w.pick("client", 12))}), 1)
	key := w.conns.KeyAccount(u.route.Key)
	before, most := key.Usage().Admitted, w.limits[u.route.Key]
	a, err := w.conns.Admit(u.account, client, traffic.NoWait)
	full := most > 0 && before >= most
	switch {
	case err != nil && !full && !w.stopped:
		w.fail("C9: a user of %s is refused: %v", u.name, err)
	case err == nil && full:
		w.fail("C9: key %x has %d connections, at most %d", u.route.Key[0], before+1, most)
	case err == nil && w.stopped:
		w.fail("C10: a user enters a proxy that stops")
	}
	if err != nil {
		w.stats.Limited++
		w.refused[u.account]++
		return
	}
	u.admission = a
	w.users = append(w.users, u)
}

// over gives back what a user took. A second time counts for nothing.
func (w *simProxy) over(u *simUser) {
	w.users = slices.DeleteFunc(w.users, func(o *simUser) bool { return o == u })
	if u.held {
		u.route.held.Add(-1)
	}
	u.call(nil)
	for _, sl := range w.slots(u.at) {
		sl.flight = slices.DeleteFunc(sl.flight, func(s *simStream) bool { return s == u.stream })
	}
	if u.taken.Offer != nil {
		u.admission.Finally(u.taken.Leave)
	}
	if u.stream == nil && w.pick("refused", 2) == 0 {
		u.admission.Refuse(traffic.RefusedAway, "")
		w.refused[u.account]++
	}
	u.admission.Leave()
	u.admission.Leave()
}

func (w *simProxy) slots(l *simLink) []*simSlot {
	if l == nil {
		return nil
	}
	return l.slots[:]
}

// hangUp is the end of a user. The stream may not have been sent yet.
func (w *simProxy) hangUp() {
	if len(w.users) == 0 {
		return
	}
	u := w.users[w.pick("user", len(w.users))]
	if u.stream != nil && slices.ContainsFunc(w.slots(u.at), func(sl *simSlot) bool { return slices.Contains(sl.flight, u.stream) }) {
		w.stats.Cancelled++
	}
	w.over(u)
}

// move lets a user without a stream do a step of Take, whose parts others may come in between.
func (w *simProxy) move() {
	var moving []*simUser
	for _, u := range w.users {
		if u.stream == nil {
			moving = append(moving, u)
		}
	}
	if len(moving) > 0 {
		w.step(moving[w.pick("user", len(moving))])
	}
}

func (w *simProxy) step(u *simUser) {
	switch {
	case u.stream != nil:
	case u.picked == nil:
		if u.changed != nil {
			select {
			case <-u.changed:
				u.changed = nil
				u.call(nil)
			default:
				return
			}
		}
		st := u.route.state.Load()
		if st.removed {
			w.stats.Removed++
			w.over(u)
			return
		}
		if u.picked = st.best(u.tried); u.picked != nil {
			return
		}
		if !u.held { // as Take does before it looks once more
			u.held = true
			u.route.held.Add(1)
			w.stats.Waited++
		}
		st = u.route.state.Load()
		u.call(st)
		if u.picked = st.best(nil); u.picked == nil && !st.removed {
			u.changed = st.changed
		} else {
			u.call(nil)
		}
		u.tried = nil
	default:
		w.take(u, u.picked)
	}
}

// call has the sessions of a state know that the user waits, and no others. nil: none.
func (u *simUser) call(st *routeState) {
	if u.called != nil {
		u.called.call(u.route, -1)
	}
	if u.called = st; st != nil {
		st.call(u.route, 1)
	}
}

// take opens a stream at an offer.
func (w *simProxy) take(u *simUser, o *Offer) {
	u.picked = nil
	l := o.way.(*simLink)
	var before [simSlots]uint64
	for i, sl := range l.slots {
		before[i] = sl.opened
	}
	if _, err := o.open(wire.Open{}); err != nil {
		if u.tried == nil {
			u.tried = make(map[*Offer]struct{})
		}
		if u.tried[o] = struct{}{}; errors.Is(err, errNoRoom) { // Take would try the others first
			w.over(u)
		}
		return
	}
	for i, sl := range l.slots {
		if sl.opened != before[i] {
			u.stream = sl.flight[len(sl.flight)-1]
			u.stream.user = u
		}
	}
	if u.held {
		u.held = false
		u.route.held.Add(-1)
	}
	u.taken, u.at = Taken{Offer: o}, l
	if w.r.core.effects.n == 0 && !w.allowed(o.Key, u.name) {
		w.fail("C4: a user of %s enters at key %x, which the policy does not allow", u.name, o.Key[0])
	}
}
