package traffic

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"reverser/internal/relay"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// Admission is one connection that was let in: first on its way to a pair, then a pair. Whoever got it from Admit calls Bind, Leave or
// Refuse in the end; a second such call does nothing.
type Admission struct {
	conns   *Conns
	account *Account
	client  netip.AddrPort
	guest   *guest // the client's account
	id      uint64

	// Known to whoever has the admission, and from Bind on to the end of the pair.
	finally       func() // nil: nothing
	placed, dials bool

	next, prev *Admission // of the same key; see members

	charged bool // its accounts count it; guarded by ledger.mu

	phase phase   // guarded by the shard's mu
	end   *ending // what is to become of it as soon as it is a pair; guarded by the shard's mu

	// Set by Bind, before the phase is bound.
	pair   Pair
	since  time.Time
	target string

	unreached atomic.Uint64 // what the pair had received when its target could not be connected for the last time
}

// phase is what becomes of an admission at present.
type phase uint8

const (
	arriving phase = iota
	held
	dialling
	bound
	over
	phases
)

// ending is how a connection is to end.
type ending struct {
	reason relay.Reason
	code   wire.Code
}

// Patience says what Admit does when all places are taken.
type Patience bool

// The ways to ask for a place.
const (
	NoWait Patience = false // refuse
	Wait   Patience = true  // wait for a place
)

// ErrDraining is an error of Admit, beside *LimitError and those of shares.
var ErrDraining = errors.New("the process is stopping")

// Admit lets a connection in. While the share of its key is used up, it waits, or refuses.
func (c *Conns) Admit(account *Account, client netip.AddrPort, p Patience) (*Admission, error) {
	a := c.admission(account, client, c.roster.ids.Add(1))
	if !a.enter() {
		account.refused(RefusedDrain, netip.AddrPort{})
		return nil, ErrDraining
	}
	if err := a.charge(p); err != nil {
		why := refusal(err)
		if why == RefusedFull || why == RefusedShare {
			c.strain.Note(err)
		}
		msg := "client refused"
		if why == RefusedDrain {
			msg = ""
		}
		a.Refuse(why, msg, "service", account.Service, "client", clientName(client), "err", err)
		return nil, err
	}
	return a, nil
}

// charge counts the connection in its accounts and takes a place for it.
func (a *Admission) charge(p Patience) (err error) {
	c := a.conns
	if _, err = a.account.charge(a, NoWait); err == ErrFull && c.makeRoom(a) {
		return nil
	}
	if p == NoWait || err != ErrFull && err != ErrKeyShare {
		return err
	}
	w, err := a.account.charge(a, Wait)
	if w != nil {
		c.strain.Note(err)
		err = a.await(w)
		a.placed = err == nil
	}
	return err
}

// await waits for a place.
func (a *Admission) await(w *waiter) error {
	select {
	case err := <-w.answer:
		return err
	case <-a.conns.ctx.Done():
	}
	if a.account.ledger.giveUp(w) {
		return ErrDraining
	}
	return <-w.answer
}

// AwaitTurn returns when a user of the account's key would get a place, or may wait for one. An accept loop calls it when Admit refused a
// user who was to wait: the next one waits in the kernel.
func (c *Conns) AwaitTurn(account *Account) {
	l := &c.ledger
	l.mu.Lock()
	turn := l.turnLocked(account.key)
	l.mu.Unlock()
	if turn == nil {
		return
	}
	select {
	case <-turn:
	case <-c.ctx.Done():
		l.mu.Lock()
		l.places.forgoLocked(account.key, turn)
		l.mu.Unlock()
	}
}

func (c *Conns) admission(account *Account, client netip.AddrPort, id uint64) *Admission {
	return &Admission{conns: c, account: account, client: client, id: id}
}

// home is the part of the list that a is on.
func (a *Admission) home() *shard {
	all := &a.conns.roster.shards
	return &all[a.id%uint64(len(all))]
}

// enter puts a on the list; false: nothing enters any more.
func (a *Admission) enter() bool {
	a.account.key.members.add(a) // first: EndKey misses nobody who is on the list
	if !a.list() {
		a.account.key.members.remove(a)
		return false
	}
	return true
}

func (a *Admission) list() bool {
	h := a.home()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shut {
		return false
	}
	h.all[a] = struct{}{}
	a.conns.roster.busy.Add(1)
	a.conns.roster.phases[arriving].Add(1)
	return true
}

// Finally sets f to be called when the connection is over, however it ends. Call it at most once, before Bind.
func (a *Admission) Finally(f func()) { a.finally = f }

// ID is unique in the process.
func (a *Admission) ID() uint64 { return a.id }

// Key is the key whose service it is.
func (a *Admission) Key() [16]byte { return a.account.Key }

// Service is the canonical PUBLIC.
func (a *Admission) Service() string { return a.account.Service }

// Client is the user's address; the zero value where it is not known.
func (a *Admission) Client() netip.AddrPort { return a.client }

// ClientName is the address for people; "" where it is not known.
func (a *Admission) ClientName() string { return clientName(a.client) }

// Go runs f on a goroutine of the crew. When f returns, the admission is over unless it was bound.
func (a *Admission) Go(f func()) {
	a.conns.crew.Go(func() {
		defer a.Leave()
		f()
	})
}

// Hold records that the connection waits for a stream, and returns a context that ends when it should not wait any longer.
func (a *Admission) Hold() context.Context {
	a.enterPhase(held)
	return a.conns.holding
}

// Holding returns the context of Hold for what is a pair already.
func (a *Admission) Holding() context.Context { return a.conns.holding }

// Dial takes a place for dialling the connection's target. It returns false if too many targets are being dialled: this one must not be.
// Dialled gives the place back.
func (a *Admission) Dial() bool {
	c := a.conns
	select {
	case c.room.dials <- struct{}{}:
	default:
		return false
	}
	if !c.ledger.places.pool.Take(sys.ForUsers) { // two addresses may be dialled at once
		<-c.room.dials
		return false
	}
	a.dials = true
	a.enterPhase(dialling)
	return true
}

// Dialled is the end of what Dial began.
func (a *Admission) Dialled() {
	if a.dials {
		a.dialOver()
		a.enterPhase(arriving)
	}
}

func (a *Admission) dialOver() {
	<-a.conns.room.dials
	a.conns.ledger.places.pool.Give(sys.ForUsers)
	a.dials = false
}

// Ended reports whether End chose the connection before it became a pair: it need not be served any more.
func (a *Admission) Ended() bool {
	h := a.home()
	h.mu.Lock()
	defer h.mu.Unlock()
	return a.end != nil
}

// endBy ends a pair, or sees to it that what is on the way to one ends as soon as it is one. false: it is over.
func (a *Admission) endBy(e *ending) bool {
	h := a.home()
	h.mu.Lock()
	at := a.phase
	if at < bound && a.end == nil {
		a.end = e
	}
	h.mu.Unlock()
	if at == bound {
		a.pair.End(e.reason, e.code)
	}
	return at != over
}

func (a *Admission) isPair() bool {
	h := a.home()
	h.mu.Lock()
	defer h.mu.Unlock()
	return a.phase == bound
}

// enterPhase changes what becomes of an admission that is not over.
func (a *Admission) enterPhase(to phase) (end *ending) {
	h := a.home()
	h.mu.Lock()
	defer h.mu.Unlock()
	a.conns.roster.phases[a.phase].Add(-1)
	a.conns.roster.phases[to].Add(1)
	a.phase = to
	return a.end
}

// Leave is the end of a connection of which no pair came. Nobody is told.
func (a *Admission) Leave() {
	if a.depart(bound) {
		a.giveBack("", 0, 0)
	}
}

// Refuse is Leave for a user who was not served. It counts the reason and, unless msg is empty, logs msg, at most once a second for each
// service.
func (a *Admission) Refuse(why Refusal, msg string, args ...any) {
	if !a.depart(bound) {
		return
	}
	a.account.refused(why, a.client)
	if tell := a.conns.over; tell != nil {
		tell(Over{Service: a.Service(), Key: a.conns.keyName(a.Key()), Client: a.ClientName(), Refused: why})
	}
	if msg != "" {
		a.conns.sayRefusal(a.account, msg, args)
	}
	a.giveBack("", 0, 0)
}

// depart takes the admission off the list, once; false: it is over already, or is in the phase but.
func (a *Admission) depart(but phase) bool {
	if !a.unlist(but) {
		return false
	}
	a.account.key.members.remove(a)
	return true
}

func (a *Admission) unlist(but phase) bool {
	h := a.home()
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.phase == over || a.phase == but {
		return false
	}
	delete(h.all, a)
	a.conns.roster.phases[a.phase].Add(-1)
	a.phase = over
	return true
}

// giveBack returns everything that the connection took. It is the last that is done for it.
func (a *Admission) giveBack(reason relay.Reason, sent, received uint64) {
	c := a.conns
	if a.guest != nil {
		a.account.giveBack(a, reason, sent, received)
	}
	if a.dials {
		a.dialOver()
	}
	if a.finally != nil {
		a.finally()
	}
	c.roster.left(1)
}

func clientName(client netip.AddrPort) string {
	if !client.IsValid() {
		return ""
	}
	return client.String()
}
