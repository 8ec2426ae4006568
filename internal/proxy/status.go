package proxy

import (
	"cmp"
	"encoding/hex"
	"slices"
	"time"

	"reverser/internal/registry"
	"reverser/internal/status"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// Status returns a snapshot.
func (p *Proxy) Status() status.Snapshot {
	snap := status.Snapshot{Role: "proxy", Version: p.cfg.Version, UptimeSeconds: time.Since(p.start).Seconds()}
	snap.Pairs = p.conns.Pairs()
	draining := p.conns.Draining()
	for _, s := range p.registry.Sessions() {
		l := linkOf(s.Way)
		if l.Err() != nil { // its names wait for another one
			continue
		}
		snap.Links = append(snap.Links, l.Snapshot(s.KeyName, l.PeerName(), s.Leaving || draining))
	}
	shown := make(map[*traffic.Account]bool)
	inspected := p.inspectedBy()
	ways := make(wayStates)
	services := p.services()
	snap.Services = slices.Grow(snap.Services, len(services))
	for _, s := range services {
		st := describe(s, ways.of(s.Way))
		if draining && st.State != status.ServiceDenied {
			st.State, st.Reason, st.Drained = status.ServiceAway, registry.StoppingText, false
		}
		by, on := inspected[st.Public]
		st.Inspect = on && by == s.Key
		account := p.conns.Find(s.Key, st.Public)
		account.Describe(&st)
		shown[account] = true
		snap.Services = append(snap.Services, st)
	}
	p.conns.Show(&snap, shown)
	p.showExpiry(&snap)
	snap.Pressure = p.pressure(&snap)
	if p.cfg.Certificates != nil {
		snap.Certificates = p.cfg.Certificates.Status()
	}
	slices.SortFunc(snap.Links, func(a, b status.Link) int { return cmp.Or(cmp.Compare(a.Key, b.Key), a.Since.Compare(b.Since)) })
	return snap
}

// services are the claims, by name and key. What is sorted are pointers: there may be very many services.
func (p *Proxy) services() []*registry.Service {
	list := p.registry.Services()
	sorted := make([]*registry.Service, len(list))
	for i := range list {
		sorted[i] = &list[i]
	}
	slices.SortFunc(sorted, func(a, b *registry.Service) int {
		return cmp.Or(cmp.Compare(a.Public, b.Public), cmp.Compare(a.KeyName, b.KeyName))
	})
	return sorted
}

// wayStates are how links are. To find out asks the system about each of their connections, so it is done once for all services of a bridge.
type wayStates map[registry.Way]wayState

type wayState struct{ connected, controlled bool }

func (all wayStates) of(w registry.Way) wayState {
	at, known := all[w]
	if !known {
		l := linkOf(w)
		at = wayState{connected: l.Connected(), controlled: l.RemoteAddr() != nil}
		all[w] = at
	}
	return at
}

// EndPairs resets the connections that an operator means, and returns how many they were.
func (p *Proxy) EndPairs(w traffic.Which) int { return p.conns.EndThese(w) }

// Counted yields what each service counted since the start, those that are gone included.
func (p *Proxy) Counted(yield func(status.Counted) bool) { p.conns.Counted(yield) }

// Tallies yields what each service counted since the start, reason by reason.
func (p *Proxy) Tallies(yield func(status.Tally) bool) { p.conns.Tallies(yield) }

// Measures is what the proxy measured of itself.
func (p *Proxy) Measures() status.Measures {
	m := status.Measures{
		BudgetUsed: p.port.budget.Used(), BudgetSize: p.port.budget.Size(),
		Resumes: make(map[string]uint64), Handshakes: p.port.handshakes.read(),
	}
	for key, n := range p.sessions.resumes() {
		m.Resumes[p.keyOrID(key)] += n
	}
	return m
}

func (p *Proxy) keyOrID(id [16]byte) string { return cmp.Or(p.keyName(id), hex.EncodeToString(id[:])) }

// describe is a claim as status shows it.
func describe(s *registry.Service, way wayState) status.Service {
	st := status.Service{Public: s.Public, Target: s.Target, Key: s.KeyName, Reason: s.Reason, Drained: s.Drained}
	switch {
	case s.Status == wire.ClaimDenied:
		st.State = status.ServiceDenied
	case s.Status == wire.ClaimRetrying:
		st.State = status.ServiceRetrying
	case s.Status == 0:
		st.State, st.Reason = status.ServiceRetrying, "its port is being opened"
	case way.connected && s.Drained:
		st.State = status.ServiceAway
	case way.connected:
		st.State = status.ServiceUp
	default:
		st.State = status.ServiceAway
		if way.controlled && !s.Leaving && !s.Drained {
			st.Reason = "the bridge is connected, but none of its connections for data is"
		}
	}
	return st
}
