package proxy

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/registry"
	"reverser/internal/relay"
	"reverser/internal/traffic"
	"reverser/internal/web"
	"reverser/internal/wire"
)

// sessions finds the registry's session of a link.
type sessions struct {
	mu       sync.Mutex
	ids      map[*link.Link]registry.SessionID // guarded by mu, as all below
	replaced map[[16]byte]replaced             // by key: a session that a newer one is about to replace, or may
	resumed  map[[16]byte]uint64               // by key: how often the links of sessions that are over went on
	going    map[*link.Link]time.Time          // those whose bridge is stopping, and until when it is waited for
}

// replaced is a session whose names wait for the newer session to begin.
type replaced struct {
	id    registry.SessionID
	timer *time.Timer // ends it, should nobody come
}

func (s *sessions) of(l *link.Link) registry.SessionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[l]
}

// way is a link as the registry sees it. A bridge that is stopping serves newcomers until its successor does.
type way struct{ *link.Link }

// Up implements registry.Way.
func (w way) Up() bool { return w.Connected() }

func linkOf(w registry.Way) *link.Link { return w.(way).Link }

// Attached implements link.Owner. The first time that the control connection is there, the session begins.
func (p *Proxy) Attached(l *link.Link, slot int) {
	if slot == 0 && p.sessions.of(l) == 0 && !p.begin(l) {
		return
	}
	p.registry.LinkUp(p.sessions.of(l), l.Connected())
	if slot != 0 {
		return
	}
	if left, draining := p.drainLeft(); draining { // it began, or broke, before the bridge was told
		l.GoAway(left)
		l.StopResuming()
	}
	p.say.Say(slog.LevelInfo, l.KeyID(), "bridge connected", "key", p.logName(l.KeyID()), "bridge", l.PeerName(), "remote", l.Status()[0].Remote)
}

// sayLink has a line written that a bridge caused.
func (p *Proxy) sayLink(l *link.Link, level slog.Level, msg string, args ...any) {
	p.say.Say(level, l.KeyID(), msg, append(args, "key", p.logName(l.KeyID()))...)
}

// begin makes a session known to the registry. It inherits what the one that it replaces held.
func (p *Proxy) begin(l *link.Link) bool {
	s := &p.sessions
	s.mu.Lock()
	old, replaces := s.replaced[l.KeyID()]
	if replaces {
		delete(s.replaced, l.KeyID())
		old.timer.Stop()
	}
	id, err := p.registry.Begin(registry.Session{Key: l.KeyID(), Peer: l.PeerName(), Instance: l.Peer(), Way: way{l}, Replaces: old.id})
	if err == nil {
		s.ids[l] = id
	}
	s.mu.Unlock()
	if err != nil { // the key was removed in this moment
		if replaces {
			p.registry.End(old.id)
		}
		l.Kill(err)
		return false
	}
	if err := l.Err(); err != nil { // it ended before it was known
		p.Ended(l, err)
		return false
	}
	return true
}

// Detached implements link.Owner.
func (p *Proxy) Detached(l *link.Link, slot int, err error) {
	p.registry.LinkUp(p.sessions.of(l), l.Connected())
	// Ended says it, or a newer connection took the slot already.
	if l.Err() != nil || p.life.ctx.Err() != nil {
		return
	}
	if l.Leaving() && !l.Alive() {
		p.wg.Go(func() { p.awaitReturn(l) })
	}
	switch {
	case l.Leaving() && l.Finished():
		return
	case slot != 0 || l.RemoteAddr() != nil || p.conns.Draining(): // nobody comes back to a proxy that is stopping
		return
	}
	p.say.Say(slog.LevelWarn, l.KeyID(), "bridge lost, its connections stand still until it is back", "key", p.logName(l.KeyID()), "bridge", l.PeerName(), "err", err)
}

// returnTime is how long a bridge that is stopping, and has nothing left, has to come back from a break of its link. Tests wait shorter.
var returnTime = 2 * time.Second

// awaitReturn ends the session of a bridge that has left, unless it comes back soon. What it has left may end meanwhile.
func (p *Proxy) awaitReturn(l *link.Link) {
	again := time.NewTicker(returnTime)
	defer again.Stop()
	for !l.Alive() {
		select {
		case <-again.C:
			if l.Finished() && !l.Alive() {
				l.Kill(link.ErrLeft)
			}
		case <-l.Done():
			return
		case <-p.life.ctx.Done():
			return
		}
	}
}

// GoingAway implements link.Owner. The bridge continues to serve until its successor claims its names, or until it says that it
// takes no users any more.
func (p *Proxy) GoingAway(l *link.Link, drain time.Duration) {
	s := &p.sessions
	s.mu.Lock()
	id := s.ids[l]
	until, again := s.going[l]
	if ends := time.Now().Add(drain + leaveGrace); id != 0 && ends.After(until) {
		s.going[l] = ends // drain is 0 while the bridge only wants no new users for a moment
	}
	s.mu.Unlock()
	if id == 0 {
		return
	}
	p.registry.Leaving(id)
	p.registry.LinkUp(id, l.Connected())
	if !again {
		p.wg.Go(func() { p.awaitLeft(l) })
	}
}

// leaveGrace is how long after its own limit a bridge that is stopping is waited for. Tests wait shorter.
var leaveGrace = 15 * time.Second

// awaitLeft ends the session of a bridge that was to end by itself, and may have been killed instead.
func (p *Proxy) awaitLeft(l *link.Link) {
	for {
		p.sessions.mu.Lock()
		wait := time.Until(p.sessions.going[l])
		p.sessions.mu.Unlock()
		if wait <= 0 { // or the session has ended
			l.Kill(link.ErrLeft)
			return
		}
		late := time.NewTimer(wait)
		select {
		case <-late.C: // later GOAWAYs may have given it more time
		case <-l.Done():
			late.Stop()
			return
		case <-p.life.ctx.Done():
			late.Stop()
			return
		}
	}
}

// Opened implements link.Owner. A proxy has no service that a bridge could ask for.
func (p *Proxy) Opened(s *link.Stream) { s.Reset(wire.CodeService) }

// Message implements link.Owner: the bridge proposes, the policy of its key decides.
func (p *Proxy) Message(l *link.Link, f wire.Frame) error {
	id := p.sessions.of(l)
	switch f.Type {
	case wire.TypeClaim:
		claim, c, err := wire.ParseClaim(f)
		if err != nil {
			return err
		}
		return violation(p.registry.Claim(id, claim, registry.ClaimOf(c)))
	case wire.TypeUnclaim:
		claim, err := wire.ParseUnclaim(f)
		if err != nil {
			return err
		}
		return violation(p.registry.Unclaim(id, claim))
	case wire.TypeRound:
		p.registry.Round(id)
		return nil
	}
	return link.Violation(wire.ErrUnexpected, "%s from a bridge", f.Type)
}

func violation(err error) error {
	if err == nil {
		return nil
	}
	return link.Violation(wire.ErrClaimInvalid, "%s", err)
}

// awaitSuccessor is how long the names of a bridge that left, or was replaced, are held for the next one. Tests wait shorter.
var awaitSuccessor = registry.Hold

// Ended implements link.Owner. The names of a session that was replaced are the newer one's. A bridge that left may have a successor
// that is only starting: users wait for it as they do for one that is away.
func (p *Proxy) Ended(l *link.Link, err error) {
	newest := p.port.host.Link(l.KeyID())
	left := l.Leaving() && (newest == nil || newest == l) && !p.conns.Draining() && !isKeyGone(err)
	heir := left || errors.Is(err, link.ErrReplaced)
	resumes := resumesOf(l)
	s := &p.sessions
	s.mu.Lock()
	id, known := s.ids[l]
	if known && resumes > 0 {
		if s.resumed == nil {
			s.resumed = make(map[[16]byte]uint64)
		}
		s.resumed[l.KeyID()] += resumes
	}
	delete(s.ids, l)
	delete(s.going, l)
	var former replaced
	if known && heir {
		if former = s.replaced[l.KeyID()]; former.timer != nil {
			former.timer.Stop()
		}
		s.replaced[l.KeyID()] = replaced{id, time.AfterFunc(awaitSuccessor, func() { p.endReplaced(l.KeyID(), id) })}
	}
	s.mu.Unlock()
	if !known {
		return
	}
	if former.timer != nil {
		p.registry.End(former.id)
	}
	if heir {
		p.registry.LinkUp(id, false)
	} else {
		p.registry.End(id)
	}
	p.say.Say(slog.LevelInfo, l.KeyID(), "bridge session ended", "key", p.logName(l.KeyID()), "bridge", l.PeerName(), "err", err)
}

// endReplaced ends a session whose successor did not come in time.
func (p *Proxy) endReplaced(key [16]byte, id registry.SessionID) {
	s := &p.sessions
	s.mu.Lock()
	still := s.replaced[key].id == id
	if still {
		delete(s.replaced, key)
	}
	s.mu.Unlock()
	if still {
		p.registry.End(id)
	}
}

// forget stops the timers of endReplaced.
func (s *sessions) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, old := range s.replaced {
		old.timer.Stop()
	}
}

// effects does what the registry decided: see registry.Doer. Nothing here waits for more than its turn: one bridge may cause thousands.
type effects struct{ *Proxy }

// takeTurn is link.InTurn. Tests count its calls.
var takeTurn = link.InTurn

func (p effects) Room() int { return p.entrances.Room() }
func (p effects) Open(s registry.Socket, attempt uint64) {
	takeTurn(func() { p.entrances.Open(s, attempt) })
}
func (p effects) Close(s registry.Socket) { p.entrances.Close(s) }

// Tell sends a CLAIMED. The bridge is to prove that the port answers when the service came up, and until it has.
func (p effects) Tell(t registry.Told) { takeTurn(func() { p.tell(t) }) }

func (p effects) tell(t registry.Told) {
	answer := t.Claimed()
	// A bridge does not prove a port that the proxy chose, nor a name. A nonce would only delay silent users there, who might be its probe.
	proves := t.Public.Kind == grammar.KindTCP && t.Asked.Public != string(grammar.KindOffered) && p.reaches(linkOf(t.Way), t.Public)
	if rt := p.registry.View().Find(t.Public); t.Status == wire.ClaimUp && rt != nil && proves {
		answer.Nonce = p.service(rt).probes.Expect(t.Fresh)
	}
	linkOf(t.Way).Say(uint64(t.ID), wire.AppendClaimed(nil, t.ID, answer))
	p.Inspected(t.Public) // begins or ends, when the bridge has changed its mind
	if !t.News {
		return
	}
	switch public := t.Public.String(); t.Status {
	case wire.ClaimUp:
		if t.Reason != "" {
			p.say.Say(slog.LevelInfo, t.Key, "service drained: it takes no new users", "service", public, "key", t.KeyName)
			return
		}
		p.say.Say(slog.LevelInfo, t.Key, "service up", "service", public, "key", t.KeyName, "target", t.Asked.Target)
	case wire.ClaimDenied:
		p.say.Say(slog.LevelWarn, t.Key, "service denied", "service", cmp.Or(public, t.Asked.Public), "key", t.KeyName, "reason", t.Reason)
	case wire.ClaimRetrying:
		p.say.Say(slog.LevelWarn, t.Key, "service cannot be opened, trying again", "service", public, "key", t.KeyName, "reason", t.Reason)
	}
}

// reaches reports whether a bridge that dials the address of its link finds a public port there. With Config.Bind it may not: then it is
// asked for no probe, which would blame a firewall.
func (p *Proxy) reaches(l *link.Link, pub grammar.Public) bool {
	if p.cfg.Bind == "" || pub.Host != "" {
		return true
	}
	tcp, ok := l.LocalAddr().(*net.TCPAddr)
	if !ok {
		return true // the link has no connection at this moment
	}
	local, bind := tcp.AddrPort().Addr().Unmap(), netip.MustParseAddr(p.cfg.Bind)
	return local == bind || bind.IsUnspecified() && bind.Is4() == local.Is4()
}

// Unclaimed sends an UNCLAIMED.
func (p effects) Unclaimed(w registry.Way, id uint32) {
	takeTurn(func() {
		linkOf(w).Say(uint64(id), wire.AppendUnclaimed(nil, id, w.Marks()))
		p.forgetInspected()
	})
}

// End resets the connections of a key that was removed, or has expired. Its link goes when the bridge knows why, or it would learn no
// more than that the link is lost.
func (p effects) End(w registry.Way) {
	l := linkOf(w)
	why := p.whyGone(l.KeyID())
	p.conns.EndKey(relay.ReasonRemoved, wire.CodeService, l.KeyID())
	p.wg.Go(func() {
		l.Flush(lastWords)
		l.Kill(why)
	})
}

// service is what the proxy keeps with a route.
type service struct {
	account *traffic.Account
	probes  entrance.Probes
	site    *web.Site // of http and https names
}

func (p *Proxy) service(rt *registry.Route) *service {
	return rt.Data(func() any {
		return &service{account: p.conns.Account(rt.Key, rt.Public.String()), site: p.newSite(rt)}
	}).(*service)
}
