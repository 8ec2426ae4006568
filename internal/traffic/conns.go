// Package traffic knows which connections a process has, what each may use, and how they end together.
//
// A connection has the same life at the proxy, where users arrive, and at the bridge, where streams do: from its arrival until
// all that counted it has been given back. The package does not know where a connection leads. The way of a connection through it:
//  1. accept.go takes it at a listener, at the proxy.
//  2. admit.go lets it in, or refuses it: the drain, the limits of its accounts, the descriptors.
//  3. account.go charges it to its service, key and client.
//  4. bind.go makes a pair of it, which goes on by itself, and gives everything back at its end.
//
// Goroutines: jobs of the crew and the pairs. Conns.Close waits for all of them.
package traffic

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// Config says what a Conns may do.
type Config struct {
	Log     *slog.Logger              // nil: discard
	Side    relay.Side                // which end of the whole connections this process has
	Max     int                       // connections at once; 0: what the descriptor limit leaves
	Dials   int                       // connections to targets that are being made at once; 0: DefaultDials
	Clients int                       // clients with an account of their own; 0: DefaultClients
	Name    func(key [16]byte) string // a key's name for people; "", as without a function: its id stands for it

	// Over is told of each connection that is over, or was refused. It does not wait for anything. nil: nobody is told.
	Over func(Over)

	Descriptors *sys.Pool // that connections are taken from; nil: that of the process, or with Max one of their own
}

// Over is a connection that is over.
type Over struct {
	Service  string // canonical PUBLIC
	Key      string // as people call it
	Client   string
	Target   string // "": it was refused
	Sent     uint64 // bytes client → target
	Received uint64 // bytes target → client
	Duration time.Duration
	Reason   relay.Reason // "": it was refused
	Resumes  uint64
	Refused  Refusal // "": it was served
}

// Defaults of Config.
const (
	DefaultDials   = 1024
	DefaultClients = 4096
)

// Conns is every user connection of one process. Make it with New.
type Conns struct {
	log    *slog.Logger
	side   relay.Side
	name   func(key [16]byte) string
	over   func(Over) // nil: nobody is told
	ledger ledger
	crew   *crew
	poller relay.Poller
	room   room
	roster roster
	strain *Strain // for want of descriptors
	later  later

	pairsUnsaid atomic.Bool // of LogPairs

	ctx         context.Context // ends with Close
	stop        context.CancelFunc
	holding     context.Context // ends when nobody waits any longer for a bridge that is away
	stopHolding context.CancelFunc
}

// room is what all connections share.
type room struct {
	dials chan struct{} // one element a dial to a target that is under way
}

// roster is all admissions that are not over.
type roster struct {
	ids    atomic.Uint64
	shards [64]shard
	phases [phases]atomic.Int64 // how many are in each
	busy   atomic.Int64         // how many there are; grows only under the lock of a shard that is not shut
	quiet  chan struct{}        // has an element when busy became 0
	shut   atomic.Bool          // all shards are
	idle   chan struct{}        // closed when all shards are shut and busy is 0
	empty  sync.Once            // closes idle
}

// shard is a part of the list of admissions: whoever reads the whole list holds up a few arrivals only, and never for long.
type shard struct {
	mu   sync.Mutex
	shut bool                    // nothing is added any more; guarded by mu, as all below
	all  map[*Admission]struct{} // the fields of each that say so are guarded by mu, too
}

// New returns a Conns without a connection.
func New(cfg Config) *Conns {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dials == 0 {
		cfg.Dials = DefaultDials
	}
	if cfg.Clients == 0 {
		cfg.Clients = DefaultClients
	}
	c := &Conns{log: cfg.Log, side: cfg.Side, name: cfg.Name, over: cfg.Over, crew: newCrew()}
	c.room.dials = make(chan struct{}, cfg.Dials)
	c.roster.idle, c.roster.quiet = make(chan struct{}), make(chan struct{}, 1)
	for i := range c.roster.shards {
		c.roster.shards[i].all = make(map[*Admission]struct{})
	}
	c.strain = NewStrain(cfg.Log, c.pressure)
	c.ledger.init(cfg.Clients)
	c.ledger.places.init(poolOf(cfg), cfg.Max, cfg.Side == relay.Client)
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.holding, c.stopHolding = context.WithCancel(c.ctx)
	return c
}

// LogPairs sets whether the beginning and the end of each pair are logged. At first they are.
func (c *Conns) LogPairs(yes bool) { c.pairsUnsaid.Store(!yes) }

// Account returns the account of a service of a key, which counts from the first call on and is kept.
func (c *Conns) Account(key [16]byte, service string) *Account { return c.ledger.service(key, service) }

// Find returns the account of a service that had one before, else nil.
func (c *Conns) Find(key [16]byte, service string) *Account { return c.ledger.find(key, service) }

// KeyAccount returns the account of a key.
func (c *Conns) KeyAccount(key [16]byte) *Account { return c.ledger.key(key) }

// Short is told by whoever waits for a descriptor for users, beside Admit.
func (c *Conns) Short() *Strain { return c.strain }

// Pressure appends what runs short, if anything does, to a list for status.
func (c *Conns) Pressure(list []status.Pressure) []status.Pressure { return c.strain.AppendTo(list) }

// Load is how many connections there are, by what becomes of them at present.
type Load struct {
	Arriving int // on the way to a bridge or target, or waiting for a place
	Held     int // they wait for a stream: their bridge may be away
	Dialling int // their target is being dialled
	Pairs    int
}

// Unbound counts those that are no pair yet.
func (l Load) Unbound() int { return l.Arriving + l.Held + l.Dialling }

// Load counts the connections.
func (c *Conns) Load() Load {
	return Load{
		Arriving: int(c.roster.phases[arriving].Load()), Held: int(c.roster.phases[held].Load()),
		Dialling: int(c.roster.phases[dialling].Load()), Pairs: int(c.roster.phases[bound].Load()),
	}
}

// Walk calls f for each pair until f returns false. No lock is held meanwhile: f may take its time, and a pair may end under it.
func (c *Conns) Walk(f func(*Admission) bool) {
	for a := range c.roster.each {
		if a.isPair() && !f(a) {
			return
		}
	}
}

// Pairs returns all pairs as status shows them, the oldest first.
func (c *Conns) Pairs() []status.Pair {
	all := make([]status.Pair, 0, c.Load().Pairs)
	names := make(map[[16]byte]string)
	c.Walk(func(a *Admission) bool {
		p := a.Status()
		p.Key = remember(names, a.Key(), c.keyName)
		all = append(all, p)
		return true
	})
	slices.SortFunc(all, func(a, b status.Pair) int { return a.Since.Compare(b.Since) })
	return all
}

// End resets the connections for which match returns true (nil: all), and returns how many they were. A connection that is not a pair
// yet is reset as soon as it is one. For such a connection match may use ID, Service and the client only.
func (c *Conns) End(reason relay.Reason, code wire.Code, match func(*Admission) bool) (n int) {
	for a := range c.roster.each {
		if (match == nil || match(a)) && a.endBy(&ending{reason, code}) {
			n++
		}
	}
	return n
}

// EndKey is End for the connections of one key. It looks at no other.
func (c *Conns) EndKey(reason relay.Reason, code wire.Code, key [16]byte) (n int) {
	k := c.ledger.findKey(key)
	if k == nil {
		return 0
	}
	for _, a := range k.members.all() {
		if a.endBy(&ending{reason, code}) {
			n++
		}
	}
	return n
}

// each yields every admission, those that come and go meanwhile or not, without a lock held.
func (l *roster) each(yield func(*Admission) bool) {
	var some []*Admission
	for i := range l.shards {
		sh := &l.shards[i]
		some = some[:0]
		sh.mu.Lock()
		for a := range sh.all {
			some = append(some, a)
		}
		sh.mu.Unlock()
		for _, a := range some {
			if !yield(a) {
				return
			}
		}
	}
}

// Shut refuses connections that arrive from now on, and those that wait for a bridge that is away.
func (c *Conns) Shut() {
	l := &c.roster
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		sh.shut = true
		sh.mu.Unlock()
	}
	l.shut.Store(true)
	l.left(0)
	c.stopHolding()
}

// left counts n admissions less.
func (l *roster) left(n int64) {
	if l.busy.Add(-n) > 0 {
		return
	}
	select {
	case l.quiet <- struct{}{}:
	default:
	}
	if l.shut.Load() {
		l.empty.Do(func() { close(l.idle) })
	}
}

// AwaitIdle returns when there is no connection, after limit, or when ctx ends. Connections may arrive meanwhile. One caller at a time
// may wait.
func (c *Conns) AwaitIdle(ctx context.Context, limit time.Duration) {
	late := time.NewTimer(limit)
	defer late.Stop()
	for c.roster.busy.Load() > 0 {
		select {
		case <-c.roster.quiet:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// Newest returns the id of the connection that was admitted last. Later ones have higher ids.
func (c *Conns) Newest() uint64 { return c.roster.ids.Load() }

// Draining reports whether Shut was called.
func (c *Conns) Draining() bool { return c.roster.shut.Load() }

// Drain shuts, and returns when the last connection has ended, after limit, or when ctx ends. What is left then was reset.
func (c *Conns) Drain(ctx context.Context, limit time.Duration) {
	c.Shut()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-c.roster.idle:
		return
	case <-late.C:
		c.log.Warn("drain time is over, resetting what is left")
	case <-ctx.Done():
	}
	c.End(relay.ReasonDrain, wire.CodeDrain, nil)
}

// Close resets what is left and waits until it is over. Whoever serves an admission that is no pair has been told to end by then: its
// link or context is gone.
func (c *Conns) Close() {
	c.Shut()
	c.stop()
	c.End(relay.ReasonDrain, wire.CodeDrain, nil)
	<-c.roster.idle
	c.crew.Close()
	c.poller.Close()
	c.later.close()
	c.strain.Close()
	c.ledger.places.close()
}
