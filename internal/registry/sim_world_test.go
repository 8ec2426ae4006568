package registry

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/wire"
)

// sim is a registry with everything around it: bridges with their side of claims, control connections that lose what is under way,
// carriers that do not, users, sockets that fail, and an operator who changes the policy.
type sim struct {
	pick  func(what string, n int) int
	trace func(string, ...any)
	err   error
	stats simStats

	r       *Registry
	policy  Policy
	bridges []*simBridge
	pending []simOpen // sockets that are being opened
	open    map[Socket]uint64
	users   []*simUser
	offers  []*Offer // that were ever seen
	calm    bool     // nothing fails any more
	room    int      // how many sockets may be open
	holders map[pub]holding
}

type simOpen struct {
	socket  Socket
	attempt uint64
}

type simStats struct {
	steps, served, retired, waited, removed, lost, short, replaced, successors, policies, handovers, failed, unclaims, group, stops int
}

const (
	ownPort  = 3010
	simSlots = 2
)

var (
	simNames = []string{
		"tcp/9000", "tcp/127.0.0.1:9000", "tcp/0.0.0.0:9000", "tcp/127.0.0.2:9000", "tcp/9001", "tcp/9002", "tcp/9003", "offered", "tcp/80",
		"tcp/3010", "udp/9000", "nonsense",
	}
	simAllow = [][]string{
		{"tcp/1024-65535"}, {"tcp/9000-9001"}, {"tcp/9002", "tcp/9003"}, {"tcp/127.0.0.1:9000-9003", "tcp/9001"}, {"tcp/1-65535", "udp/9000"}, nil,
	}
	simOffers = [][]string{nil, {"tcp/9001"}, {"tcp/9003", "tcp/9001"}, {"tcp/3010", "tcp/9002"}}
)

const simKeys = 3

func newSim(pick func(string, int) int, trace func(string, ...any)) *sim {
	if trace == nil {
		trace = func(string, ...any) {}
	}
	w := &sim{pick: pick, trace: trace, open: make(map[Socket]uint64), room: 2 + pick("room", 8), holders: make(map[pub]holding)}
	for i := range simKeys {
		w.policy.Keys = append(w.policy.Keys, simKey(i, simAllow[0]))
	}
	w.policy.Own = []uint16{ownPort}
	w.r = New(w.policy)
	for i := range simKeys {
		w.bridges = append(w.bridges, &simBridge{sim: w, key: i})
	}
	w.bridges = append(w.bridges, &simBridge{sim: w, key: 0}, &simBridge{sim: w, key: 1}) // successors
	for _, b := range w.bridges {
		b.restart()
	}
	return w
}

func simKey(i int, allow []string) Key {
	k := Key{ID: KeyID{byte(i + 1)}, Name: fmt.Sprintf("key%d", i)}
	for _, s := range allow {
		a, err := grammar.ParseAllow(s)
		if err != nil {
			panic(err)
		}
		k.Allow = append(k.Allow, a)
	}
	if i > 0 {
		k.Groups = []string{"g"}
	}
	return k
}

func (w *sim) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *sim) unlocked(where string) {
	if !w.r.mu.TryLock() {
		w.fail("C15: %s is called under the lock", where)
		return
	}
	w.r.mu.Unlock()
}

// Up implements Way.
func (l *simLink) Up() bool {
	return l.up && !l.ended
}

// Marks implements Way.
func (l *simLink) Marks() (marks []wire.Mark) {
	l.b.unlocked("Marks")
	for i, id := range l.opened {
		marks = append(marks, wire.Mark{Slot: uint8(i + 1), Stream: id})
	}
	return marks
}

// Open implements Way.
func (l *simLink) Open(o wire.Open) (*link.Stream, error) {
	l.b.unlocked("Way.Open")
	if l.ended {
		return nil, link.ErrEnded
	}
	slot := l.b.pick("slot", simSlots)
	l.opened[slot]++
	l.flight[slot] = append(l.flight[slot], simStream{id: uint32(l.opened[slot]), service: uint32(o.Service)})
	l.b.trace("  OPEN %d on slot %d for service %d of session %d", l.opened[slot], slot+1, o.Service, l.id)
	return new(link.Stream), nil
}

// say queues a frame on a control connection; a later one about an id takes the place of an earlier one.
func say(queue *[]simFrame, up bool, f simFrame) {
	if !up {
		return
	}
	for i, old := range *queue {
		if old.id == f.id && old.kind != simRound {
			(*queue)[i] = f
			return
		}
	}
	*queue = append(*queue, f)
}

// The Doer.

// Room implements Doer.
func (w *sim) Room() int {
	w.unlocked("Doer.Room")
	return max(w.room-len(w.open)-len(w.pending), 0)
}

// holds counts the sockets that a key has, or is about to have.
func (w *sim) holds(key KeyID) (n int) {
	of := func(s Socket) {
		if rec := w.r.core.sockets[s]; rec != nil && rec.key == key {
			n++
		}
	}
	for s := range w.open {
		of(s)
	}
	for _, p := range w.pending {
		of(p.socket)
	}
	return n
}

func (w *sim) Open(s Socket, attempt uint64) {
	w.unlocked("Doer.Open")
	if key := w.r.core.names[pub(s)].held.key; w.holds(key) >= w.Room() {
		w.fail("C14: %s is opened for key %x, which has %d sockets, with room for %d", s, key[0], w.holds(key), w.Room())
	}
	w.trace("  begin to open %s (%d)", s, attempt)
	w.pending = append(w.pending, simOpen{s, attempt})
}

func (w *sim) Close(s Socket) {
	w.unlocked("Doer.Close")
	w.trace("  close %s", s)
	if w.open[s] == 0 {
		w.fail("C3: %s is closed, and was not open", s)
	}
	delete(w.open, s)
}

func (w *sim) Tell(t Told) {
	w.unlocked("Doer.Tell")
	l := t.Way.(*simLink)
	w.trace("  tell session %d of claim %d: %v %s", t.Session, t.ID, t.Status, t.Reason)
	if !t.News && t.Fresh {
		w.fail("a service that was up is told as fresh")
	}
	if (t.Reason == "") != (t.Status == wire.ClaimUp) {
		w.fail("status %d is told with the reason %q", t.Status, t.Reason)
	}
	say(&l.toBridge, l.control && !l.ended, simFrame{kind: simAnswer, id: t.ID, told: t.Answer})
}

func (w *sim) Unclaimed(way Way, id uint32) {
	w.unlocked("Doer.Unclaimed")
	l := way.(*simLink)
	w.trace("  UNCLAIMED %d of session %d", id, l.id)
	say(&l.toBridge, l.control && !l.ended, simFrame{kind: simUnclaim, id: id, marks: l.Marks()})
}

func (w *sim) End(way Way) {
	w.unlocked("Doer.End")
	w.trace("  end session %d", way.(*simLink).id)
	way.(*simLink).end()
}

// Users.

func (w *sim) come() {
	socks := slices.SortedFunc(maps.Keys(w.open), func(a, b Socket) int { return comparePublic(pub(a), pub(b)) })
	if len(socks) == 0 {
		return
	}
	s := socks[w.pick("socket", len(socks))]
	u := &simUser{name: pub(s)}
	if u.route = w.r.View().Find(u.name); u.route == nil {
		w.stats.removed++ // closed in this moment
		return
	}
	w.users = append(w.users, u)
}

// move lets a user do a step of Take, whose parts others may come in between.
func (w *sim) move() {
	if len(w.users) == 0 {
		return
	}
	i := w.pick("user", len(w.users))
	if w.users[i].step(w) {
		w.users = slices.Delete(w.users, i, i+1)
	}
}

// step reports whether the user is done.
func (u *simUser) step(w *sim) (done bool) {
	if u.picked == nil {
		if u.changed != nil {
			select {
			case <-u.changed:
				u.changed = nil
			default:
				return false
			}
		}
		st := u.route.state.Load()
		if st.removed {
			w.stats.removed++
			return true
		}
		u.picked = st.best(u.tried)
		if u.picked == nil {
			u.route.held.Add(1) // as Take does before it looks once more
			w.stats.waited++
			st = u.route.state.Load()
			if u.picked = st.best(nil); u.picked == nil && !st.removed {
				u.changed, u.tried = st.changed, nil
				return false
			}
			u.tried = nil
		}
		return false
	}
	o := u.picked
	u.picked = nil
	before := o.way.(*simLink).opened
	_, err := o.open(wire.Open{})
	if err != nil {
		if !errors.Is(err, errRetired) && !errors.Is(err, link.ErrEnded) {
			w.fail("open: %v", err)
		}
		if u.tried == nil {
			u.tried = make(map[*Offer]struct{})
		}
		u.tried[o] = struct{}{}
		return false
	}
	l := o.way.(*simLink)
	for slot := range l.opened {
		if l.opened[slot] != before[slot] {
			l.flight[slot][len(l.flight[slot])-1].user = u
		}
	}
	o.users.Add(-1)
	w.enters(u, o)
	return true
}

// enters is called when a user got in.
func (w *sim) enters(u *simUser, o *Offer) {
	if len(w.r.core.effects) == 0 && !w.allowed(o.Key, u.name) {
		w.fail("C4: a user of %s enters at key %x, which the policy does not allow", u.name, o.Key[0])
	}
}

// allowed reports what the policy says, without the registry.
func (w *sim) allowed(id KeyID, name pub) bool {
	for _, k := range w.policy.Keys {
		if k.ID == id {
			return k.Allow.Permits(name) && name.Port != ownPort && name.Kind == grammar.KindTCP
		}
	}
	return false
}

// admits reports whether the key of a session is still the one that it proved.
func (w *sim) admits(s *session) bool {
	return slices.ContainsFunc(w.policy.Keys, func(k Key) bool { return k.ID == s.key && k.Incarnation == s.secret })
}

func (w *sim) configure() {
	p := Policy{Own: []uint16{ownPort}}
	for i := range simKeys {
		if w.pick("keep", 3) > 0 {
			if at := slices.IndexFunc(w.policy.Keys, func(k Key) bool { return k.ID == KeyID{byte(i + 1)} }); at >= 0 {
				p.Keys = append(p.Keys, w.policy.Keys[at])
				continue
			}
		}
		if w.pick("removed", 5) == 0 {
			continue
		}
		k := simKey(i, simAllow[cmp.Or(w.pick("allow", 2*len(simAllow)), 0)%len(simAllow)])
		if w.pick("limit", 4) == 0 {
			k.MaxServices = 1 + w.pick("max", 3)
		}
		if w.pick("secret", 10) == 0 {
			k.Incarnation[0] = byte(w.pick("which", 3))
		}
		if w.pick("no group", 4) == 0 {
			k.Groups = nil
		}
		p.Keys = append(p.Keys, k)
	}
	p.Offer = w.policy.Offer
	if w.pick("offer", 2) == 0 {
		p.Offer = nil
		for _, s := range simOffers[w.pick("offers", len(simOffers))] {
			name, _ := grammar.ParsePublic(s)
			p.Offer = append(p.Offer, name)
		}
	}
	w.apply(p)
}

func (w *sim) apply(p Policy) {
	w.trace("policy %+v", p)
	w.stats.policies++
	old := newPolicy(w.policy)
	kept := make(map[pub]*Route)
	attempts := make(map[Socket]uint64)
	for rt := range w.r.View().All {
		h := w.r.core.names[rt.Public].held
		was, now := old.keys[h.key], newPolicy(p).keys[h.key]
		if now != nil && was.equal(now) && slices.Equal(w.policy.Offer, p.Offer) {
			kept[rt.Public] = rt
			if w.r.core.names[rt.Public].granted() {
				attempts[Socket(rt.Public)] = w.open[Socket(rt.Public)]
			}
		}
	}
	w.policy = p
	w.r.Configure(p)
	for n, rt := range kept {
		if w.r.View().Find(n) != rt {
			w.fail("C5: %s lost its route, and nothing of its key changed", n)
		}
	}
	for w.pick("later", 2) == 0 && w.r.step(w) {
	}
	for s, at := range attempts {
		if w.open[s] != at && at != 0 {
			w.fail("C5: %s was opened anew, and nothing of its key changed", s)
		}
	}
}

// handover puts another registry in the place of the present one.
func (w *sim) handover() {
	w.finish()
	doc := w.r.Freeze()
	next, err := Thaw(doc, w.policy, w.way)
	if err != nil {
		w.fail("C11: %v", err)
		return
	}
	w.trace("hand-over")
	w.stats.handovers++
	if n := len(next.core.effects); n != 0 {
		w.fail("C11: the thawed registry wants %d things done", n)
	}
	w.r = next
	w.offers = nil
	for _, u := range w.users {
		u.picked, u.tried, u.changed = nil, nil, nil
		if u.route = next.View().Find(u.name); u.route == nil {
			u.route = newRoute(u.name, KeyID{})
			u.route.remove()
		}
	}
}

func (w *sim) way(id SessionID) Way {
	for _, b := range w.bridges {
		if b.link != nil && b.link.id == id {
			return b.link
		}
	}
	return nil
}

// retry is what Run does now and then.
func (w *sim) retry() {
	room := w.Room()
	w.r.change(func(co *core) {
		co.room = room
		co.retry()
	})
}

// finish does all effects, those that opening sockets brings included.
func (w *sim) finish() {
	for {
		for w.r.step(w) {
		}
		if len(w.pending) == 0 {
			return
		}
		w.result()
	}
}

// result ends the opening of a socket.
func (w *sim) result() {
	if len(w.pending) == 0 {
		return
	}
	i := w.pick("which socket", len(w.pending))
	p := w.pending[i]
	w.pending = slices.Delete(w.pending, i, i+1)
	if !w.calm && w.pick("socket fails", 4) == 0 {
		w.stats.failed++
		w.trace("%s cannot be opened", p.socket)
		w.r.Opened(p.socket, p.attempt, errors.New("address in use"))
		return
	}
	for s := range w.open {
		if pub(s).Overlaps(pub(p.socket)) {
			w.fail("C3: %s is opened beside %s", p.socket, s)
		}
	}
	w.trace("%s is open", p.socket)
	w.open[p.socket] = p.attempt
	if !w.r.Opened(p.socket, p.attempt, nil) {
		w.fail("C3: nobody wants to know that %s is open", p.socket)
	}
}
