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
	holders map[pub]holding
}

type simOpen struct {
	socket  Socket
	attempt uint64
}

type simStats struct {
	steps, served, retired, waited, removed, lost, replaced, successors, policies, handovers, failed, unclaims, group, stops int
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
	w := &sim{pick: pick, trace: trace, open: make(map[Socket]uint64), holders: make(map[pub]holding)}
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

// simBridge is the process of a bridge.
type simBridge struct {
	*sim
	key      int
	instance byte
	next     uint32
	services map[uint32]*simService
	retired  map[uint32]*simService
	link     *simLink // nil: no session
}

// simService is a service at the bridge.
type simService struct {
	id     uint32
	claim  Claim
	answer Answer
	marks  []wire.Mark // of UNCLAIMED
	over   bool        // UNCLAIMED came
}

// simLink is a session. It is the registry's Way.
type simLink struct {
	b        *simBridge
	id       SessionID
	control  bool // slot 0 has a connection
	up       bool // the carriers have
	ended    bool
	leaving  bool
	toProxy  []simFrame
	toBridge []simFrame
	opened   [simSlots]uint64
	arrived  [simSlots]uint64
	flight   [simSlots][]simStream
}

type simKind int

const (
	simClaim simKind = iota
	simUnclaim
	simRound
	simAnswer
)

type simFrame struct {
	kind  simKind
	id    uint32
	claim Claim
	told  Answer
	marks []wire.Mark
}

type simStream struct {
	id, service uint32
	user        *simUser
}

// simUser is somebody who connected to a socket.
type simUser struct {
	name    pub
	route   *Route
	picked  *Offer          // to be opened
	tried   []*Offer        // since the state was looked at
	changed <-chan struct{} // waits for it
	taken   Taken
	at      *simLink
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

func (w *sim) Open(s Socket, attempt uint64) {
	w.unlocked("Doer.Open")
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

// end is the end of a session, at both ends.
func (l *simLink) end() {
	if l.ended {
		return
	}
	l.ended, l.control, l.up = true, false, false
	for i := range l.flight {
		for _, s := range l.flight[i] {
			if s.user != nil {
				l.b.stats.lost++
			}
		}
		l.flight[i] = nil
	}
	l.toProxy, l.toBridge = nil, nil
	if b := l.b; b.link == l {
		b.link = nil
		b.retired = make(map[uint32]*simService) // it was for this session
	}
	l.b.r.End(l.id)
}

func (b *simBridge) restart() {
	b.instance++
	b.next = 1
	b.services, b.retired = make(map[uint32]*simService), make(map[uint32]*simService)
	for _, o := range b.bridges {
		if o != b && o.key == b.key && o.services != nil && b.pick("the same services", 2) == 0 {
			for _, id := range slices.Sorted(maps.Keys(o.services)) {
				b.add(o.services[id].claim.Public)
			}
			return
		}
	}
	for range 1 + b.pick("services", 4) {
		b.expose()
	}
}

// expose adds a service. A bridge has a name once, but for one that does not know better.
func (b *simBridge) expose() {
	public := simNames[b.pick("name", len(simNames))]
	for _, s := range b.services {
		if s.claim.Public == public && b.pick("twice", 20) > 0 {
			return
		}
	}
	b.add(public)
}

func (b *simBridge) add(public string) {
	s := &simService{id: b.next, claim: Claim{Public: public}}
	b.next++
	b.alter(s)
	b.services[s.id] = s
	b.sayClaim(s)
}

func (b *simBridge) alter(s *simService) {
	s.claim.Weight = uint32(b.pick("weight", 3))
	s.claim.Unhealthy = b.pick("unhealthy", 4) == 0
	s.claim.Drained = b.pick("drained", 8) == 0
	s.claim.Target = fmt.Sprint("t", b.pick("target", 3))
	s.claim.Group = []string{"", "g"}[b.pick("group", 2)]
}

func (b *simBridge) sayClaim(s *simService) {
	if b.link != nil {
		say(&b.link.toProxy, b.link.control, simFrame{kind: simClaim, id: s.id, claim: s.claim})
	}
}

// giveBack takes a service out. It stays as retired until no stream to it can come.
func (b *simBridge) giveBack(s *simService) {
	b.trace("  bridge of session %v gives claim %d back", b.session(), s.id)
	delete(b.services, s.id)
	b.stats.unclaims++
	if b.link == nil {
		return // nobody knows of it
	}
	b.retired[s.id] = s
	say(&b.link.toProxy, b.link.control, simFrame{kind: simUnclaim, id: s.id})
}

func (b *simBridge) session() SessionID {
	if b.link == nil {
		return 0
	}
	return b.link.id
}

// repeat is what a bridge says after slot 0 was attached.
func (l *simLink) repeat() {
	for _, id := range slices.Sorted(maps.Keys(l.b.services)) {
		l.b.sayClaim(l.b.services[id])
	}
	for _, id := range slices.Sorted(maps.Keys(l.b.retired)) {
		if !l.b.retired[id].over {
			say(&l.toProxy, true, simFrame{kind: simUnclaim, id: id})
		}
	}
	l.toProxy = append(l.toProxy, simFrame{kind: simRound})
}

// hear is the proxy's reader of slot 0.
func (l *simLink) hear() {
	if len(l.toProxy) == 0 {
		return
	}
	f := l.toProxy[0]
	l.toProxy = l.toProxy[1:]
	var err error
	switch f.kind {
	case simClaim:
		l.b.trace("session %d: CLAIM %d %+v", l.id, f.id, f.claim)
		err = l.b.r.Claim(l.id, f.id, f.claim)
	case simUnclaim:
		l.b.trace("session %d: UNCLAIM %d", l.id, f.id)
		err = l.b.r.Unclaim(l.id, f.id)
	case simRound:
		l.b.trace("session %d: ROUND", l.id)
		l.b.r.Round(l.id)
	}
	if err != nil {
		l.b.fail("an honest bridge breaks a rule: %v", err)
	}
}

// learn is the bridge's reader of slot 0.
func (l *simLink) learn() {
	if len(l.toBridge) == 0 {
		return
	}
	f := l.toBridge[0]
	l.toBridge = l.toBridge[1:]
	b := l.b
	switch f.kind {
	case simAnswer:
		if s := b.services[f.id]; s != nil {
			s.answer = f.told
		}
	case simUnclaim:
		if s := b.retired[f.id]; s != nil {
			s.over, s.marks = true, f.marks
			b.stats.retired++
		}
		b.forget()
	}
}

// forget drops the retired services that no stream can be for any more.
func (b *simBridge) forget() {
	for id, s := range b.retired {
		gone := s.over
		for _, m := range s.marks {
			gone = gone && b.link.arrived[m.Slot-1] >= m.Stream
		}
		if gone {
			delete(b.retired, id)
		}
	}
}

// arrive delivers the next OPEN of a slot.
func (l *simLink) arrive(slot int) {
	if len(l.flight[slot]) == 0 {
		return
	}
	s := l.flight[slot][0]
	l.flight[slot] = l.flight[slot][1:]
	l.arrived[slot] = uint64(s.id)
	b := l.b
	svc := b.services[s.service]
	if svc == nil {
		svc = b.retired[s.service]
	}
	switch {
	case svc == nil:
		l.b.fail("C8: an OPEN names service %d, which the bridge of session %d does not have", s.service, l.id)
	case s.user != nil && svc.claim.Public != "offered" && svc.claim.Public != s.user.name.String():
		l.b.fail("C8: a user of %s comes to %s", s.user.name, svc.claim.Public)
	}
	b.stats.served++
	b.forget()
}

// connect lets a bridge begin a session, or attach slot 0 again.
func (b *simBridge) connect() {
	if l := b.link; l != nil {
		if l.control {
			return
		}
		l.control = true
		b.trace("session %d: slot 0 is back", l.id)
		l.repeat()
		return
	}
	var old *simLink
	for _, o := range b.bridges {
		if o.key == b.key && o.link != nil && !o.link.leaving {
			old = o.link
		}
	}
	if old != nil && old.up && b.pick("still alive", 4) > 0 {
		return // refused
	}
	b.begin(old)
}

// begin begins a session, in the place of another one if old is not nil.
func (b *simBridge) begin(old *simLink) {
	l := &simLink{b: b}
	s := Session{Key: KeyID{byte(b.key + 1)}, Peer: "host", Instance: [16]byte{b.instance}, Way: l}
	before := make(map[pub]*Route)
	if old != nil {
		s.Replaces = old.id
		for n := range b.r.View().All {
			if name := b.r.core.names[n.Public]; name.held.key == s.Key {
				before[n.Public] = n
			}
		}
	}
	id, err := b.r.Begin(s)
	if err != nil {
		b.trace("no session for key %d: %v", b.key, err)
		return
	}
	l.id, l.control, b.link = id, true, l
	b.retired = make(map[uint32]*simService)
	b.trace("session %d of key %d begins, in the place of %d", id, b.key, s.Replaces)
	if old != nil {
		b.stats.replaced++
		for n, rt := range before {
			if b.r.View().Find(n) != rt && old.inherits(n) {
				b.fail("C5: %s lost its route when its session was replaced", n)
			}
		}
		old.end()
	} else if slices.ContainsFunc(b.bridges, func(o *simBridge) bool { return o != b && o.key == b.key && o.link != nil }) {
		b.stats.successors++
	}
	l.repeat()
}

// inherits reports whether the claims of a link are all that a name of its key needs to be kept.
func (l *simLink) inherits(n pub) bool {
	for _, o := range l.b.bridges {
		if o.link != nil && o.key == l.b.key && o.link != l && o.link.id != l.b.link.id {
			return false
		}
	}
	return true
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
		u.tried = append(u.tried, o)
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
			attempts[Socket(rt.Public)] = w.open[Socket(rt.Public)]
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
