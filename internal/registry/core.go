package registry

import (
	"cmp"
	"container/list"
	"fmt"
	"slices"

	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// core decides who serves what. It is deterministic: no lock, no clock, no goroutine, no I/O. An event changes its inputs, settle
// (settle.go) derives the rest for the names that the event touched, and what there is to do comes out as effects (effects.go).
//
// The index can be computed from the inputs at any time. It is kept so that the cost of an event depends on the names that the event
// touches, and not on how many sessions and claims there are.
type core struct {
	inputs
	index
	todo
	away *away // for those who ask for a name that nobody has; nothing here depends on it
}

// inputs are all that Freeze writes.
type inputs struct {
	policy   *policy
	stopping bool // the proxy takes no newcomers any more
	sessions map[SessionID]*session
	holdings map[grammar.Public]*holding
	sockets  map[Socket]*socket
	seq      uint64 // numbers what has an order: sessions, claims, holdings, attempts to open a socket
}

// index is what follows from the inputs.
type index struct {
	names   map[grammar.Public]*name
	tenants map[KeyID]*tenant
	places  map[place]*overlaps           // by port: which names cover each other
	wanters map[Socket][]*name            // what wants the socket open
	bound   map[place][3]int              // how many sockets of a port are open, or may be, by family
	waiting map[place]map[Socket]struct{} // sockets that wait until one that overlaps is closed
	taken   map[KeyID]int                 // how many sockets each key is charged for
	failed  map[trials]*list.List         // sockets that are to be tried again, those that have waited longest first
	short   int                           // those of them that wait for descriptors
	crowding
}

// todo is the work that events leave to do.
type todo struct {
	touched []*name             // to be settled
	dirty   []*overlaps         // to be decided anew
	effects queue               // to be done
	looking map[Socket]struct{} // sockets that effects has a doSocket for
	room    int                 // how many sockets could be opened, as the Doer said before this event
	changed []*name             // whose route is another one than the view's
	forgot  bool                // a name that was away is not any more
	settled int                 // how many names settle looked at; tests bound it, and looks
	looks   int                 // how often a claim was reviewed, an obstacle of a name looked for, or a socket compared with another one
}

func newCore(p Policy) *core {
	return &core{
		inputs: inputs{
			policy: newPolicy(p), sessions: make(map[SessionID]*session), holdings: make(map[grammar.Public]*holding),
			sockets: make(map[Socket]*socket),
		},
		index: index{
			names: make(map[grammar.Public]*name), tenants: make(map[KeyID]*tenant), places: make(map[place]*overlaps),
			wanters: make(map[Socket][]*name), bound: make(map[place][3]int), waiting: make(map[place]map[Socket]struct{}),
			taken: make(map[KeyID]int), failed: make(map[trials]*list.List),
			crowding: crowding{of: make(map[KeyID]int), tenants: make(map[KeyID]*tenant)},
		},
		todo: todo{looking: make(map[Socket]struct{})},
		away: newAway(),
	}
}

func (co *core) next() uint64 {
	co.seq++
	return co.seq
}

// SessionID names a session, for ever.
type SessionID uint64

// session is a live link. The fields down to owed are inputs.
type session struct {
	id        SessionID // sessions in order of their beginning
	key       KeyID
	secret    [32]byte // the Incarnation of the key that it proved
	peer      string   // what the bridge calls its host
	instance  [16]byte // of the bridge's process
	wasUp     bool     // it could carry newcomers once
	leaving   bool     // the bridge is stopping
	round     bool     // the bridge has said all that it claims
	claims    map[uint32]*claim
	inherited map[grammar.Public]inheritance // names of the session that it replaced, until round
	used      intervals                      // claim ids that were given back
	owed      map[uint32]struct{}            // UNCLAIMs without an answer
	options   int                            // bytes of Options of all claims

	way      Way
	heir     *heir // of inherited
	tenant   *tenant
	first    map[grammar.Public]*claim   // the claim that has the name; of several for one name the earliest
	more     map[grammar.Public][]*claim // the others
	retiring int                         // offers of it that effects has a doRetire for
	callers  callers
	losses   []loss // see makeRoom
}

// inheritance is what a replaced session leaves of a name that it held.
type inheritance struct {
	place uint64
	group string
}

// heir stands for a session at the names that it inherited.
type heir struct{ session *session }

// claim is one service that a bridge asks for. The fields down to owed are inputs.
type claim struct {
	id      uint32
	session *session
	asked   Claim
	born    uint64 // when it came, or began to ask for something else
	place   uint64 // its place among all who want the name; the claims of one key for a name share the earliest
	told    Answer // what the bridge was last told; Status 0: nothing
	owed    bool   // a CLAIM has no answer yet

	public grammar.Public // as the policy resolved it
	denied string         // why the policy denies it; "": it does not
	name   *name          // nil: denied
	offer  *Offer         // nil: it gets no users
	queued bool           // telling it is among the effects
}

// Answer is what there is to say about a claim.
type Answer struct {
	Status wire.ClaimStatus // 0: nothing yet
	Public grammar.Public   // the name, as the policy resolved it
	Why    Why
	By     KeyID          // WhyHeld: who has it
	Over   grammar.Public // WhyOverlap: the other name
	Text   string         // WhyDenied, WhySocket: more; WhyLimit: the limit
}

// holding is the key, or the group of bridges, that has a name. Without a cluster, the first in line gets the name at once.
type holding struct {
	key     KeyID
	group   string
	seq     uint64 // the place in line of the claim that it was given to
	granted uint64 // when no name that overlaps was in the way; 0: one is
}

// name is all that is known of a public name.
type name struct {
	public  grammar.Public
	claims  []*claim // allowed ones, one of each session; by place, then by age
	heirs   []*heir  // that inherited it
	held    *holding
	blocked *name  // that overlaps and is in the way
	behind  uint64 // when blocked was granted the port
	serving []*claim
	left    []*Offer // of claims that went; to be retired
	away    bool     // a session that had or inherited it has ended by itself
	route   *Route
	touched bool
	said    outcome  // what the answers to its claims followed from when all of them were reviewed last
	all     bool     // they are to be reviewed even if that is the same
	asked   []*claim // to be reviewed in any case

	awaiting int // keys that wait for a place for it
}

// tenant is what belongs to one key.
type tenant struct {
	id       KeyID
	key      *Key       // of the policy; nil once that has none
	sessions []*session // oldest first
	newest   SessionID  // the newest one that was up and has said all its claims; older ones get no new users
	order    []*wish    // the names that it wants, by place
	within   int        // how many of order, from its beginning, the key's limit allows
	size     int        // of those
	names    map[grammar.Public]*wish
	awaiting []*wish // those that wait for a place, the earliest first
}

type wish struct {
	name  *name
	place uint64
	size  int // services that it counts as
	refs  int // claims and inheritances

	awaits bool // it waits for a place, see crowd.go
}

// ViolationError says that a bridge broke a rule of the protocol. It ends that bridge's session.
type ViolationError struct{ Text string }

func (e *ViolationError) Error() string { return e.Text }

func violation(format string, args ...any) error {
	return &ViolationError{fmt.Sprintf(format, args...)}
}

// MaxClaims is how many claims a session may have at once, and a key in all its sessions, together with the names that these inherited. What
// the newest session claims beyond takes the place of something older: see makeRoom.
const MaxClaims = 16_384

// maxOwed bounds the UNCLAIMs of a session that wait for their answer. A bridge may have given back more services than it has.
const maxOwed = 4 * MaxClaims

// begin adds a session. If it replaces another one of its key, it inherits that one's names.
func (co *core) begin(b Session) (*session, error) {
	key := co.policy.keys[b.Key]
	if key == nil {
		return nil, ErrNoKey
	}
	s := &session{
		id: SessionID(co.next()), key: b.Key, secret: key.Incarnation, peer: b.Peer, instance: b.Instance, way: b.Way,
		claims: make(map[uint32]*claim), inherited: make(map[grammar.Public]inheritance), owed: make(map[uint32]struct{}),
	}
	co.link(s)
	if old := co.sessions[b.Replaces]; old != nil && old.key == b.Key {
		// What nobody has claimed for several sessions passes on as it is: a bridge that comes again and again costs what it claims.
		s.inherited, s.heir, old.inherited, old.heir = old.inherited, old.heir, s.inherited, s.heir
		s.heir.session, old.heir.session = s, old
		if old.id < s.tenant.newest { // for it, these names were not to be had any more
			for pub := range s.inherited {
				co.touch(co.names[pub])
			}
		}
		left := make(map[grammar.Public]inheritance)
		for pub, c := range old.first {
			if c.name.held != nil && c.name.held.shares(c.session.key, c.asked.Group) {
				left[pub] = inheritance{c.place, c.asked.Group}
			}
		}
		for _, pub := range sortedNames(left) {
			co.inherit(s, pub, left[pub])
		}
		co.end(old.id)
	}
	return s, nil
}

// link puts a session into the index.
func (co *core) link(s *session) {
	co.sessions[s.id] = s
	r := co.tenants[s.key]
	if r == nil {
		r = &tenant{id: s.key, key: co.policy.keys[s.key], names: make(map[grammar.Public]*wish)}
		co.tenants[s.key] = r
	}
	s.heir = &heir{s}
	s.tenant, s.first, s.more = r, make(map[grammar.Public]*claim), make(map[grammar.Public][]*claim)
	r.sessions = append(r.sessions, s)
}

// end forgets a session and all that it claimed.
func (co *core) end(id SessionID) {
	s := co.sessions[id]
	if s == nil {
		return
	}
	for _, c := range slices.Backward(sortedClaims(s)) { // from the end, so that no claim moves up for a moment
		co.leave(c)
		delete(s.claims, c.id)
	}
	for _, pub := range sortedNames(s.inherited) {
		co.giveUp(s, pub)
	}
	delete(co.sessions, id)
	r := s.tenant
	r.sessions = slices.DeleteFunc(r.sessions, func(o *session) bool { return o == s })
	co.renew(r)
	if len(r.sessions) == 0 {
		delete(co.tenants, r.id)
	}
}

// depart ends a session whose bridge is away. Unlike an order, that is not the end of its services for those who want them.
func (co *core) depart(id SessionID) {
	s := co.sessions[id]
	if s == nil {
		return
	}
	for pub := range s.first {
		co.names[pub].away = true
	}
	for pub := range s.inherited {
		co.names[pub].away = true
	}
	co.end(id)
}

// linkUp records whether the session can carry newcomers.
func (co *core) linkUp(id SessionID, up bool) {
	s := co.sessions[id]
	if s == nil {
		return
	}
	first := up && !s.wasUp
	s.wasUp = s.wasUp || up
	if first {
		co.renew(s.tenant)
	}
	if first {
		for _, c := range s.first { // any order: what is touched is settled in the order of names
			co.touch(c.name)
		}
	}
	if up { // which may be news though it was up before: a user may have known of a connection's end earlier
		s.callers.wake()
	}
}

// leaving records that the bridge is stopping: it serves newcomers until a successor does.
func (co *core) leaving(id SessionID) {
	if s := co.sessions[id]; s != nil {
		s.leaving = true
	}
}

// claim takes a CLAIM.
func (co *core) claim(id SessionID, cid uint32, asked Claim) error {
	s := co.sessions[id]
	if s == nil {
		return nil
	}
	c := s.claims[cid]
	switch {
	case cid == 0:
		return violation("claim id 0")
	case c == nil && s.used.has(cid):
		return violation("claim id %d was given back, and ids are not used again", cid)
	case c == nil && len(s.claims) >= MaxClaims:
		return violation("more than %d claims", MaxClaims)
	case c == nil && !co.roomFor(s):
		return nil // its bridge is stopping, and its successor has all that the key may have
	case c != nil && c.asked.Public != asked.Public:
		return violation("claim id %d stands for %q and cannot become %q", cid, c.asked.Public, asked.Public)
	}
	was := 0
	if c != nil {
		was = len(c.asked.Options)
	}
	if s.options += len(asked.Options) - was; s.options > grammar.MaxAllProxyOptions {
		return violation("options of more than %d bytes in all claims", grammar.MaxAllProxyOptions)
	}
	if c == nil {
		c = &claim{id: cid, session: s, asked: asked, born: co.next(), owed: true}
		s.claims[cid] = c
		co.policy.judge(c)
		co.enter(c, c.born)
		co.makeRoom(c)
		return nil
	}
	c.owed = true
	if c.asked == asked {
		co.review(c)
		return nil
	}
	before := c.asked
	c.asked = asked
	if before.Group != asked.Group || before.Unknown != asked.Unknown || !understood(before.Options) || !understood(asked.Options) {
		if s.retiring >= maxOwed {
			return violation("the claims of a session change faster than this proxy follows")
		}
		co.leave(c)
		co.policy.judge(c)
		c.born = co.next()
		co.enter(c, c.born)
		return nil
	}
	if c.offer != nil {
		c.offer.attrs.Store(newAttrs(asked)) // users read it without the lock: it is not c.asked, which changes
	}
	co.review(c)
	if c.name != nil && s.first[c.public] == c {
		if c.name.route != nil {
			c.name.route.wake()
		}
	}
	return nil
}

// unclaim takes an UNCLAIM. Its answer waits until no stream to the service can be opened any more.
func (co *core) unclaim(id SessionID, cid uint32) error {
	s := co.sessions[id]
	if s == nil {
		return nil
	}
	if cid == 0 {
		return violation("claim id 0")
	}
	if c := s.claims[cid]; c != nil {
		co.drop(c)
	}
	if !s.used.add(cid) {
		return violation("the ids of claims that were given back are scattered over more than %d places", maxIntervals)
	}
	if _, twice := s.owed[cid]; twice {
		return nil // one answer is for both
	}
	if len(s.owed) >= maxOwed {
		return violation("more than %d UNCLAIMs wait for an answer", maxOwed)
	}
	s.owed[cid] = struct{}{}
	co.settle() // the offer is retired first
	co.effects.add(s.key, effect{do: doUnclaim, session: s, id: cid})
	return nil
}

// endRound is called when the bridge has said all its claims. Inherited names that it did not claim are given up.
func (co *core) endRound(id SessionID) {
	s := co.sessions[id]
	if s == nil {
		return
	}
	s.round = true
	for _, pub := range sortedNames(s.inherited) {
		co.giveUp(s, pub)
	}
	co.renew(s.tenant)
}

// configure takes another policy. It returns after deciding everything anew that the change may concern.
func (co *core) configure(p Policy) {
	old := co.policy
	p.Bind = old.Bind // sockets and their order stand on it
	co.policy = newPolicy(p)
	co.forgot = co.away.tidy(co.policy, 0)
	for id, r := range co.tenants {
		r.key = co.policy.keys[id]
	}
	var gone []*session
	for _, s := range co.sessions {
		if !co.policy.admits(s) {
			gone = append(gone, s)
		}
	}
	slices.SortFunc(gone, func(a, b *session) int { return cmp.Compare(a.id, b.id) })
	for _, s := range gone {
		co.end(s.id)
	}
	if !slices.Equal(old.Drained, p.Drained) { // an order that is rare
		for _, n := range co.names {
			co.touch(n)
		}
	}
	ports := !slices.Equal(old.Offer, p.Offer) || !slices.Equal(old.Own, p.Own) || !slices.Equal(old.Given, p.Given)
	var again []*claim
	for id, r := range co.tenants {
		was, now := old.keys[id], co.policy.keys[id]
		if !ports && was.equal(now) {
			continue
		}
		for _, s := range r.sessions {
			for _, c := range s.claims {
				again = append(again, c)
			}
			for pub := range s.inherited {
				co.touch(co.names[pub])
			}
		}
		if was.MaxServices != now.MaxServices {
			r.fit(co.touch)
		}
	}
	co.crowding.freed = true        // a key may have another limit
	slices.SortFunc(again, byPlace) // the order of the line stays
	for _, c := range again {
		public, denied := c.public, c.denied
		if co.policy.judge(c); c.public == public && (c.denied == "") == (denied == "") {
			co.review(c)
			continue
		}
		co.leave(c)
		c.born = co.next()
		co.enter(c, c.born)
	}
	co.settle()
	for _, s := range gone { // after its offers were retired
		co.effects.add(s.key, effect{do: doEnd, session: s})
	}
}

// hourPassed is called every hour.
func (co *core) hourPassed() { co.forgot = co.away.tidy(co.policy, 1) }

// stop closes every socket. Users who were let in are still served.
func (co *core) stop() {
	co.stopping = true
	for _, n := range co.names {
		co.touch(n)
	}
}
