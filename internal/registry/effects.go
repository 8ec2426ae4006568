package registry

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"reverser/internal/wire"
)

// Doer does what a registry decided. Run calls it from one goroutine, of each key in order, without a lock. It must not wait.
type Doer interface {
	// Room returns how many sockets could be opened now.
	Room() int
	// Open begins to open a socket. It calls Registry.Opened with the result, later.
	Open(s Socket, attempt uint64)
	// Close closes a socket that is open. When it returns, another one can be opened in its place.
	Close(s Socket)
	// Tell answers a CLAIM, or tells the bridge that the answer has changed.
	Tell(Told)
	// Unclaimed answers an UNCLAIM. From now on no stream to the claim is opened on the way.
	Unclaimed(w Way, id uint32)
	// End ends the session of a key that was removed.
	End(w Way)
}

// Told is the answer to a claim.
type Told struct {
	Way     Way
	Session SessionID
	ID      uint32
	Answer
	Asked   Claim
	Key     KeyID
	KeyName string
	Reason  string // for this proxy's operator; "" with ClaimUp
	Bridge  string // the same for the bridge's, who is not to know as much
	Fresh   bool   // the service came up, or another one did
	News    bool   // it is not what the bridge was told last
}

// Claimed is the frame with the answer, without the nonce.
func (t Told) Claimed() wire.Claimed {
	name := t.Public.String()
	return wire.Claimed{Status: t.Status, Public: name, Text: fit(t.Bridge, name), Drained: t.drained()}
}

// fit shortens a text to what a frame has room for. What the frame has anyway, the name at the text's beginning, goes first: it alone can be
// longer than a text. Then the end goes.
func fit(text, name string) string {
	if len(text) > wire.MaxText && name != "" {
		text = strings.TrimPrefix(text, name+" ")
	}
	if len(text) <= wire.MaxText {
		return text
	}
	const more = "…"
	end := wire.MaxText - len(more)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + more
}

// effect is something to be done. It names a thing, not an action: what to do with it is decided when its turn comes.
type effect struct {
	do      func(*core, effect) func(Doer, *Registry) // decides under the lock what to do without it; nil: nothing any more
	socket  Socket
	claim   *claim
	offer   *Offer
	session *session
	id      uint32
}

// queue is what is to be done: what concerns one key in order, and the keys in turn. So a key for which there is very much to do keeps no
// other one waiting.
type queue struct {
	of   map[KeyID][]effect
	turn []KeyID // those of of, the next one first
	n    int     // effects
}

func (q *queue) add(key KeyID, e effect) {
	if q.of == nil {
		q.of = make(map[KeyID][]effect)
	}
	if len(q.of[key]) == 0 {
		q.turn = append(q.turn, key)
	}
	q.of[key] = append(q.of[key], e)
	q.n++
}

// take returns the next effect, of which there is one.
func (q *queue) take() effect {
	key := q.turn[0]
	list := q.of[key]
	e := list[0]
	list[0] = effect{}
	q.n--
	q.turn = q.turn[1:]
	if q.of[key] = list[1:]; len(list) > 1 {
		q.turn = append(q.turn, key)
	} else {
		delete(q.of, key) // what was done is not kept
	}
	return e
}

func doSocket(co *core, e effect) func(Doer, *Registry) {
	switch what, attempt := co.begun(e.socket); what {
	case opening:
		return func(d Doer, _ *Registry) { d.Open(e.socket, attempt) }
	case failed:
		return func(_ Doer, r *Registry) { r.change(func(*core) {}) }
	case closing:
		return func(d Doer, r *Registry) {
			d.Close(e.socket)
			r.change(func(co *core) { co.closed(e.socket) })
		}
	}
	return nil
}

func doTell(co *core, e effect) func(Doer, *Registry) {
	c := e.claim
	c.queued = false
	if s := c.session; co.sessions[s.id] != s || s.claims[c.id] != c {
		return nil
	}
	a := co.answer(c)
	if a.Status == 0 || !c.owed && a == c.told {
		return nil
	}
	t := Told{Way: c.session.way, Session: c.session.id, ID: c.id, Answer: a, Asked: c.asked, News: a != c.told}
	t.Fresh = a.up() && (!c.told.up() || a.Public != c.told.Public)
	t.Key, t.KeyName = c.session.key, c.session.tenant.key.Name
	t.Reason, t.Bridge = co.words(c, a)
	c.told, c.owed = a, false
	return func(d Doer, _ *Registry) { d.Tell(t) }
}

func doRetire(co *core, e effect) func(Doer, *Registry) {
	if s := co.sessions[e.offer.Session]; s != nil {
		s.retiring--
	}
	return func(Doer, *Registry) { e.offer.retire() }
}

func doUnclaim(co *core, e effect) func(Doer, *Registry) {
	s := e.session
	if _, owed := s.owed[e.id]; !owed || co.sessions[s.id] != s {
		return nil
	}
	delete(s.owed, e.id)
	return func(d Doer, _ *Registry) { d.Unclaimed(s.way, e.id) }
}

func doEnd(_ *core, e effect) func(Doer, *Registry) {
	return func(d Doer, _ *Registry) { d.End(e.session.way) }
}

// RetryEvery is how often a socket that could not be opened is tried again.
const RetryEvery = 2 * time.Second

// Run does what is decided until ctx ends.
func (r *Registry) Run(ctx context.Context, d Doer) {
	again := time.NewTicker(RetryEvery)
	defer again.Stop()
	hour := time.NewTicker(time.Hour)
	defer hour.Stop()
	for {
		for r.step(d) {
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-hour.C:
			r.change((*core).hourPassed)
		case <-again.C:
			room := d.Room()
			r.change(func(co *core) {
				co.room = room
				co.retry()
			})
		}
	}
}

// step does the next effect. It reports whether there was one.
func (r *Registry) step(d Doer) bool {
	room := d.Room()
	r.mu.Lock()
	r.core.room = room
	if r.core.effects.n == 0 {
		r.mu.Unlock()
		return false
	}
	e := r.core.effects.take()
	act := e.do(&r.core, e)
	r.mu.Unlock()
	if act != nil {
		act(d, r)
	}
	return true
}

// Done waits until what was decided so far is done, whatever is decided meanwhile. Then no newcomer enters under an older policy.
func (r *Registry) Done(ctx context.Context) error {
	done, left := make(chan struct{}), 0 // guarded by mu
	say := func(*core, effect) func(Doer, *Registry) {
		if left--; left > 0 {
			return nil
		}
		return func(Doer, *Registry) { close(done) }
	}
	r.mu.Lock()
	q := &r.core.effects
	keys := slices.Clone(q.turn)
	if len(keys) == 0 { // one may be under way
		keys = []KeyID{{}}
	}
	left = len(keys)
	for _, key := range keys {
		q.add(key, effect{do: say})
	}
	r.mu.Unlock()
	r.signal()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Registry) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}
