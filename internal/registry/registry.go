// Package registry decides who serves what: which bridge gets the users of a public name, which sockets are open, and what bridges
// are told.
//
// A claim, another policy, the end of a session or a socket that could not be opened is an event. An
// event changes the inputs of one state machine under one lock (core.go). The registry then derives the result at once (settle.go).
// Users find it in a view without a lock (view.go, route.go). One goroutine, Run, carries out the effects, of each key in order (effects.go). Nothing is opened, written or logged under the lock.
//
// It moves no bytes and does not know frames, listeners or accounts: a Way leads to a bridge, a Doer does what was decided.
package registry

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// ErrNoKey says that the policy has no such key.
var ErrNoKey = errors.New("the key was removed")

// Registry is who serves what at one proxy.
type Registry struct {
	view atomic.Pointer[View] // for users
	wake chan struct{}        // there are effects

	mu   sync.Mutex
	core core // guarded by mu
}

// New returns a registry without sessions.
func New(p Policy) *Registry {
	r := &Registry{core: *newCore(p), wake: make(chan struct{}, 1)}
	r.view.Store(&View{})
	return r
}

// change lets an event change the inputs, and all that follows from them.
func (r *Registry) change(event func(*core)) {
	r.mu.Lock()
	event(&r.core)
	r.core.settle()
	if len(r.core.changed) > 0 || r.core.forgot {
		r.view.Store(r.view.Load().with(r.core.changed))
		r.core.changed, r.core.forgot = nil, false
	}
	work := r.core.effects.n > 0
	r.mu.Unlock()
	if work {
		r.signal()
	}
}

// View returns where users go now.
func (r *Registry) View() *View { return r.view.Load() }

// Configure takes another policy, whole. What is equal in both keeps its route, socket and users; sessions of removed keys end.
// After Done no newcomer enters under the old one.
func (r *Registry) Configure(p Policy) { r.change(func(co *core) { co.configure(p) }) }

// Stop closes every socket, for good. Who was let in is still served.
func (r *Registry) Stop() { r.change((*core).stop) }

// Session is a live link of a bridge.
type Session struct {
	Key      KeyID
	Peer     string // what the bridge calls its host
	Instance [16]byte
	Way      Way
	Replaces SessionID // ends, and leaves its names to this one until Round; 0: none
}

// Begin makes a session known. Several of one key serve side by side: the newest one that is up gets the newcomers of a name.
func (r *Registry) Begin(b Session) (id SessionID, err error) {
	r.change(func(co *core) {
		var s *session
		if s, err = co.begin(b); err == nil {
			id = s.id
		}
	})
	return id, err
}

// LinkUp records whether a session can carry newcomers.
func (r *Registry) LinkUp(id SessionID, up bool) { r.change(func(co *core) { co.linkUp(id, up) }) }

// Leaving records that the bridge is stopping. It goes on serving until a successor does.
func (r *Registry) Leaving(id SessionID) { r.change(func(co *core) { co.leaving(id) }) }

// End forgets a session whose bridge is away.
func (r *Registry) End(id SessionID) { r.change(func(co *core) { co.depart(id) }) }

// Claim takes a CLAIM. A *ViolationError ends the session. What it says of a session that has ended is ignored.
func (r *Registry) Claim(s SessionID, id uint32, c Claim) (err error) {
	r.change(func(co *core) { err = co.claim(s, id, c) })
	return err
}

// Unclaim takes an UNCLAIM. A *ViolationError ends the session.
func (r *Registry) Unclaim(s SessionID, id uint32) (err error) {
	r.change(func(co *core) { err = co.unclaim(s, id) })
	return err
}

// Round takes a ROUND: the bridge has said everything that it claims.
func (r *Registry) Round(s SessionID) { r.change(func(co *core) { co.endRound(s) }) }

// Ask returns for each PUBLIC why a session of the key would not get it, "" if it would, as far as policy and other keys say: whether a
// socket can be opened is seen when it is. Nothing changes.
func (r *Registry) Ask(key KeyID, public []string) (why []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range public {
		why = append(why, r.core.ask(key, p))
	}
	return why
}

func (co *core) ask(key KeyID, public string) string {
	if co.policy.keys[key] == nil {
		return ErrNoKey.Error()
	}
	c := &claim{session: &session{key: key}, asked: Claim{Public: public}}
	if co.policy.judge(c); c.denied != "" {
		return c.denied
	}
	if n := co.names[c.public]; n != nil && n.held != nil && n.held.key != key {
		_, there := co.words(c, Answer{Public: c.public, Why: WhyHeld, By: n.held.key})
		return there
	}
	return ""
}

// Opened takes the result of an attempt to open a socket. It returns false if the attempt is not the present one any more: then the
// caller closes the socket.
func (r *Registry) Opened(s Socket, attempt uint64, err error) (present bool) {
	r.change(func(co *core) { present = co.opened(s, attempt, err) })
	return present
}

func (a Answer) up() bool { return a.Status == wire.ClaimUp }

// drained reports whether a claim is up and lets no newcomers in.
func (a Answer) drained() bool { return a.up() && a.Text != "" }

// words returns why a claim is not up, for the operators of the proxy and of the bridge.
func (co *core) words(c *claim, a Answer) (here, there string) {
	key := func(id KeyID) string {
		if k := co.policy.keys[id]; k != nil {
			return fmt.Sprintf("key %q", k.Name)
		}
		return "a key that was removed"
	}
	switch a.Why {
	case WhyNone:
		here = a.Text
	case WhyStopping:
		here = StoppingText
	case WhyTwice:
		here = fmt.Sprintf("%s is another service of the same bridge already", a.Public)
		if first := c.session.first[a.Public]; first != nil {
			here = fmt.Sprintf("%s leads to %s already, another service of the same bridge", a.Public, first.asked.Target)
		}
	case WhyHeld:
		here = fmt.Sprintf("%s is held by %s", a.Public, key(a.By))
		there = fmt.Sprintf("%s is held by another key", a.Public)
		if a.By == c.session.key {
			there = here
		}
	case WhyOverlap:
		there = fmt.Sprintf("%s overlaps %s, which is held by another key", a.Public, a.Over)
		here = there
		if h := co.holdings[a.Over]; h != nil {
			here = fmt.Sprintf("%s overlaps %s, which is held by %s", a.Public, a.Over, key(h.key))
		}
		if h := co.holdings[a.Over]; h != nil && h.key == c.session.key {
			here = fmt.Sprintf("%s overlaps %s, another service of this key", a.Public, a.Over)
			there = here
		}
	case WhyLimit:
		here = fmt.Sprintf("%s is more than the limit max-services of key %q, %s", a.Public, c.session.tenant.key.Name, a.Text)
	case WhyShort:
		here = fmt.Sprintf("no descriptor of the proxy's is left for %s: key %q has %d open ports, and may have half of what others leave: raise the limit there (ulimit -n, LimitNOFILE=)",
			a.Public, c.session.tenant.key.Name, co.taken[c.session.key])
	case WhyCrowded:
		k, cr := c.session.tenant.key, &co.crowding
		there = fmt.Sprintf("%s has no place: the proxy has memory for %d names, and this key has its share", a.Public, co.policy.Names)
		here = fmt.Sprintf("%s has no place: the proxy has memory for %d names. Key %q has %d, and may have half of what others leave: `reverser key edit %s --max-services N` gives it a number of its own, and more memory (MemoryMax=) gives all more",
			a.Public, co.policy.Names, k.Name, cr.of[k.ID], k.Name)
		if k.MaxServices > 0 {
			there = fmt.Sprintf("%s has no place: the proxy has memory for %d names, and all are taken", a.Public, co.policy.Names)
			here = there + ": give it more (MemoryMax=), or let fewer names be claimed"
		}
	case WhyReplaced:
		here = fmt.Sprintf("a newer session of the same key took over, without %s", a.Public)
	default:
		here = a.Text
	}
	if there == "" {
		there = here
	}
	return here, there
}

// StoppingText is why a service is not served while the proxy drains.
const StoppingText = "the proxy is stopping"

// Service is a claim as status shows it.
type Service struct {
	Key     KeyID
	KeyName string
	ID      uint32 // of the claim
	Public  string
	Target  string
	Status  wire.ClaimStatus // as told last; 0: nothing yet
	Reason  string           // for the proxy's operator
	Drained bool             // it is up, and lets no newcomers in by order
	Way     Way
	Leaving bool
}

// describedAtOnce is how many claims are described with the lock held. A key may have MaxClaims, and bridges and their claims wait for the
// lock meanwhile.
const describedAtOnce = 256

// Services returns the claims, in no order. Of a name that a session has taken over from an older one of the same key it returns the
// newer claim only.
func (r *Registry) Services() []Service {
	type claims struct {
		of  *session
		all []*claim
	}
	var sessions []claims
	n := 0
	r.eachSession(func(s *session) {
		sessions = append(sessions, claims{s, slices.Collect(maps.Values(s.claims))})
		n += len(s.claims)
	})
	all := make([]Service, 0, n)
	for _, s := range sessions {
		for some := range slices.Chunk(s.all, describedAtOnce) {
			all = r.describe(all, s.of, some)
		}
	}
	return all
}

// describe appends those of the claims of a session that are still there.
func (r *Registry) describe(all []Service, s *session, claims []*claim) []Service {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.core.sessions[s.id] != s {
		return all
	}
	for _, c := range claims {
		if s.claims[c.id] != c || c.name != nil && c.name.tookOver(c) {
			continue
		}
		sv := Service{
			Key: s.key, KeyName: s.tenant.key.Name, ID: c.id, Public: c.public.String(), Target: c.asked.Target,
			Status: c.told.Status, Way: s.way, Leaving: s.leaving,
		}
		if c.public == (grammar.Public{}) {
			sv.Public = c.asked.Public
		}
		sv.Reason, _ = r.core.words(c, c.told)
		sv.Drained = c.told.drained()
		all = append(all, sv)
	}
	return all
}

// eachSession calls f for each session, with the lock held. It lets others have the lock in between, so that nobody waits for all of
// them.
func (r *Registry) eachSession(f func(*session)) {
	r.mu.Lock()
	ids := slices.Collect(maps.Keys(r.core.sessions))
	r.mu.Unlock()
	for _, id := range ids {
		r.mu.Lock()
		if s := r.core.sessions[id]; s != nil {
			f(s)
		}
		r.mu.Unlock()
	}
}

// tookOver reports whether a newer session of the same key serves the name instead of a claim.
func (n *name) tookOver(c *claim) bool {
	return slices.ContainsFunc(n.serving, func(o *claim) bool { return o.session.key == c.session.key && o.session.id > c.session.id })
}

// Short counts the sockets that wait for descriptors.
func (r *Registry) Short() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.short
}

// Live is a session as status shows it.
type Live struct {
	Key     KeyID
	KeyName string
	Way     Way
	Leaving bool
}

// Sessions returns the sessions, in no order.
func (r *Registry) Sessions() []Live {
	var all []Live
	r.eachSession(func(s *session) { all = append(all, Live{s.key, s.tenant.key.Name, s.way, s.leaving}) })
	return all
}
