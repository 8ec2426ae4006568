package bridge

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/via"
	"reverser/internal/wire"
)

// Settings is what may change while a bridge runs.
type Settings struct {
	Secret   [32]byte // of the token's key, if it has another one by now; zero: it stays
	Services []Service
	Sources  []netip.Addr  // of this machine, that targets are dialled from, in turn; none: the system chooses
	Via      via.Choice    // of the way out to the proxies. Connections that are there stay where they are
	NoPairs  bool          // the beginning and the end of each pair are not logged
	Drain    time.Duration // how long the connections of what is removed may go on; 0: DefaultDrain; negative: they are reset at once
}

var checkTransparent = sys.CheckTransparent // that of tests

// check returns why this machine cannot serve as the settings say.
func (s Settings) check() error {
	for _, svc := range s.Services {
		if svc.Options.Transparent {
			if err := checkTransparent(); err != nil {
				return fmt.Errorf("%s: transparent = true: %w", svc.Public, err)
			}
			return nil
		}
	}
	return nil
}

func (s Settings) drain() time.Duration {
	if s.Drain == 0 {
		return DefaultDrain
	}
	return max(s.Drain, 0)
}

// Applied is a change of the settings that is in force at this end; Wait waits for the proxies.
type Applied struct {
	b   *Bridge
	ids []uint32
}

// Apply makes s the settings, as a whole or, with an error, not at all. A service that stays keeps its id and its
// connections; where only its target changes, new connections go to the new one, and from the new sources. The proxies are told at once, or when their
// link is back.
//
// Another secret is put in force only if no proxy that answers refuses it.
func (b *Bridge) Apply(ctx context.Context, s Settings) (Applied, error) {
	if err := s.check(); err != nil {
		return Applied{}, err
	}
	rotated, err := b.trySecret(ctx, s.Secret)
	if err != nil {
		return Applied{}, err
	}
	b.mu.Lock()
	ids, err := b.services.Apply(s.Services)
	var gone *removal
	if err == nil {
		// Now, before the proxies hear of it: when they have answered, a service may be forgotten while its connections go on.
		gone = b.removeLocked(ids)
		b.drainTime = s.drain()
		b.targets.SetSources(s.Sources)
		b.via.Store(&s.Via)
		b.conns.LogPairs(!s.NoPairs)
		b.changedLocked()
	}
	b.mu.Unlock()
	if err != nil {
		return Applied{}, err
	}
	for _, u := range b.uplinks {
		if rotated {
			u.dialer.SetSecret(s.Secret)
		}
		u.tell()
	}
	if gone != nil {
		timer := time.AfterFunc(s.drain(), func() { b.end(gone) })
		context.AfterFunc(b.ctx, func() { timer.Stop() })
	}
	return Applied{b, ids}, nil
}

// removal is a set of services that were removed, and whose connections have a while to finish.
type removal struct {
	ids    []uint32
	names  map[string]grammar.Public // that users came to, with what was claimed
	newest uint64                    // connection at the time
	late   map[uint64]bool           // later connections: their users were on the way; guarded by Bridge.mu; nil: the time is over
}

// removeLocked begins the removal of those services among ids that are not offered any more; nil: there are none.
func (b *Bridge) removeLocked(ids []uint32) *removal {
	r := &removal{names: make(map[string]grammar.Public), newest: b.conns.Newest(), late: make(map[uint64]bool)}
	for _, id := range ids {
		retired := false
		for _, u := range b.uplinks {
			if old, public := u.claims.Retired(id); old != nil {
				r.names[public.String()] = old.Public
				retired = true
			}
		}
		if retired {
			r.ids = append(r.ids, id)
			b.removals[id] = r
		}
	}
	if r.ids == nil {
		return nil
	}
	return r
}

// servesLocked reports whether a user of a service is served: it is offered, or the time of its removal runs, which is returned then.
func (b *Bridge) servesLocked(id uint32) (r *removal, yes bool) {
	if b.services.Offered(id) != nil {
		return nil, true
	}
	r = b.removals[id]
	return r, r != nil
}

// mayStay reports whether a connection to a service may stay now that it is admitted, so that the end of a removal does not miss it. If the
// service is being removed, the connection ends with the others.
func (b *Bridge) mayStay(id uint32, a *traffic.Admission) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, yes := b.servesLocked(id)
	if r != nil {
		r.late[a.ID()] = true
		a.Finally(func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			delete(r.late, a.ID())
		})
	}
	return yes
}

// end resets the connections of removed services. Users who come later are refused. Where a service is offered again, its connections that
// are newer than the removal stay.
func (b *Bridge) end(r *removal) {
	back := make(map[string]bool)
	b.mu.Lock()
	for name, pub := range r.names {
		back[name] = b.services.Find(pub) != nil
	}
	for _, id := range r.ids {
		delete(b.removals, id)
	}
	late := r.late
	r.late = nil
	b.mu.Unlock()
	b.conns.End(relay.ReasonRemoved, wire.CodeService, func(a *traffic.Admission) bool {
		again, mine := back[a.Service()]
		return mine && (!again || a.ID() <= r.newest || late[a.ID()])
	})
}

// Wait returns when the proxies have answered for all that changed, or when ctx ends. It returns what is not confirmed then, as
// "PUBLIC at PROXY".
func (a Applied) Wait(ctx context.Context) (unconfirmed []string) {
	open := make(map[*uplink][]uint32) // the ids, but for those at the front that are confirmed: proxies answer in this order
	for _, u := range a.b.uplinks {
		open[u] = a.ids
	}
	for {
		changed := a.b.passConfirmed(open)
		if len(open) == 0 {
			return nil
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		case <-a.b.ctx.Done():
		}
		return a.b.unconfirmed(open)
	}
}

// Refused returns those services of the change that a proxy has answered for and does not serve: denied by it, or retried, with the reason.
func (a Applied) Refused() (refused []string) {
	a.b.mu.Lock()
	defer a.b.mu.Unlock()
	for _, id := range a.ids {
		for _, u := range a.b.uplinks {
			k := u.claims.Known(id)
			if k == nil || k.Pending || k.State != status.ServiceDenied && k.State != status.ServiceRetrying {
				continue
			}
			name := u.claims.Name(id)
			// Proxies begin their reason with these words.
			reason := strings.TrimPrefix(strings.TrimPrefix(k.Reason, name+" "), status.ServiceDenied+": ")
			refused = append(refused, fmt.Sprintf("service %s is %s at %s: %s", name, k.State, u.proxy, cmp.Or(reason, "it does not say why")))
		}
	}
	return refused
}

// passConfirmed takes the ids at the front that are confirmed by now off, and proxies that have confirmed all. It returns what is closed
// when there may be more.
func (b *Bridge) passConfirmed(open map[*uplink][]uint32) (changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for u, ids := range open {
		for len(ids) > 0 && len(u.claims.Unconfirmed(ids[:1])) == 0 {
			ids = ids[1:]
		}
		if open[u] = ids; len(ids) == 0 {
			delete(open, u)
		}
	}
	return b.changed
}

// unconfirmed names what is not confirmed of the ids.
func (b *Bridge) unconfirmed(open map[*uplink][]uint32) (names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, u := range b.uplinks {
		for _, id := range u.claims.Unconfirmed(open[u]) {
			names = append(names, fmt.Sprintf("%s at %s", u.claims.Name(id), u.proxy))
		}
	}
	return names
}

// changedLocked wakes the goroutines that wait for an answer of a proxy.
func (b *Bridge) changedLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Await returns what became of a service: when it is up at a proxy, or denied by all of them. When ctx ends first, the error wraps
// its cause, and names what stands in the way.
func (b *Bridge) Await(ctx context.Context, pub grammar.Public) (status.Service, error) {
	for over := false; ; {
		b.mu.Lock()
		st, settled, problem := b.outcomeLocked(pub)
		changed := b.changed
		b.mu.Unlock()
		switch {
		case settled:
			return st, nil
		case over && problem != nil:
			return st, fmt.Errorf("%w: %w", cmp.Or(context.Cause(ctx), errStopped), problem)
		case over:
			return st, cmp.Or(context.Cause(ctx), errStopped)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			over = true
		case <-b.ctx.Done():
			over = true
		}
	}
}

var errStopped = fmt.Errorf("the bridge is stopped: %w", net.ErrClosed)

// outcomeLocked reports whether the fate of a service is settled, and what stands in its way.
func (b *Bridge) outcomeLocked(pub grammar.Public) (st status.Service, settled bool, problem error) {
	svc := b.services.Find(pub)
	if svc == nil {
		return st, false, fmt.Errorf("%s is not offered any more", pub)
	}
	denied := 0
	for _, u := range b.uplinks {
		k := u.claims.Known(svc.ID)
		st = status.Service{Public: k.Public.String(), Target: svc.TargetName(), State: k.State, Reason: k.Reason, Inspect: svc.Options.Proxy.Inspect}
		switch {
		case k.State == status.ServiceUp && !k.Pending:
			return st, true, nil
		case u.problem != nil:
			problem = u.problem
		case k.State == status.ServiceDenied && !k.Pending:
			denied++
		case k.Reason != "":
			problem = fmt.Errorf("%s: %s", k.State, k.Reason)
		}
	}
	return st, denied == len(b.uplinks), problem
}

// Up returns those of some services that are up at a proxy, none while the bridge is stopping. changed is closed when there may be others.
func (b *Bridge) Up(some []grammar.Public) (up map[grammar.Public]bool, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	up = make(map[grammar.Public]bool)
	if b.draining.Load() {
		return up, b.changed
	}
	for _, public := range some {
		svc := b.services.Find(public)
		if svc == nil {
			continue
		}
		for _, u := range b.uplinks {
			if k := u.claims.Known(svc.ID); k != nil && k.State == status.ServiceUp {
				up[public] = true
			}
		}
	}
	return up, b.changed
}
