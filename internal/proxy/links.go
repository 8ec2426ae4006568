package proxy

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"reverser/internal/auth"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/route"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// acceptLinks takes connections of bridges. Nothing that a stranger does may hold it up: everything else happens in the
// connection's own goroutine, under the gate's limits.
func (p *Proxy) acceptLinks(ln net.Listener) {
	traffic.Accept(p.ctx, ln, p.log, func(conn net.Conn) {
		pass := p.gate.enter(conn)
		if pass == nil {
			conn.Close()
			return
		}
		p.wg.Go(func() { p.serveLink(conn, pass) })
	})
}

func (p *Proxy) serveLink(conn net.Conn, pass *pass) {
	ac, err := auth.Server(conn, p.tlsCfg, p.authCfg)
	pass.leave(err == nil)
	if err != nil {
		p.gate.report(p.log, conn.RemoteAddr(), err)
		return
	}
	if p.ctx.Err() != nil {
		conn.Close()
		return
	}
	err = p.host.Serve(ac)
	if errors.Is(err, link.ErrDuplicate) {
		p.reportDuplicate(ac.KeyID, conn.RemoteAddr())
	}
	p.log.Debug("link connection ended", "key", p.keyName(ac.KeyID), "remote", conn.RemoteAddr().String(), "err", err)
}

// reportDuplicate says, at most once in reportStrangersPer for a key, that a second bridge uses it: that one's operator may
// be somebody else.
func (p *Proxy) reportDuplicate(id [16]byte, remote net.Addr) {
	p.mu.Lock()
	s := p.present[id]
	now := time.Now()
	if s == nil || now.Sub(s.duplicate) < reportStrangersPer {
		p.mu.Unlock()
		return
	}
	s.duplicate = now
	key, held := s.key, s.link.RemoteAddr()
	p.mu.Unlock()
	by := "a bridge that is away"
	if held != nil {
		by = held.String()
	}
	p.log.Warn("second bridge with a key that is in use, refused: give each bridge a key of its own (reverser key add NAME --allow ...)",
		"key", key, "remote", remote.String(), "used_by", by)
}

func (p *Proxy) keyName(id [16]byte) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[id].Name
}

// session is what the proxy knows of a link. Its fields are guarded by Proxy.mu.
type session struct {
	link    *link.Link
	key     string // its name, which may change
	claims  map[uint32]*claim
	settled bool // the first round of claims is complete
	leaving bool // the bridge said that it is stopping
	past    bool // another process of the bridge has a session beside: this one gets no names any more

	duplicate time.Time // when a second bridge with the key was last logged
}

// claim is one service that a bridge asks for.
type claim struct {
	id     uint32
	asked  string
	target string
	public grammar.Public
	state  wire.ClaimStatus
	reason string

	unknown uint8  // what it says and this proxy does not know, as wire.Claim has it
	group   string // with which it is to share the address
}

// stoppingText is why a service is not served while the proxy drains, and pastText why a session gets it no more.
const (
	stoppingText = "the proxy is stopping"
	pastText     = "a newer process of this bridge takes its users"
)

func (c *claim) status(s *session) status.Service {
	st := status.Service{Public: c.public.String(), Target: c.target, Key: s.key, Reason: c.reason}
	if c.public == (grammar.Public{}) {
		st.Public = c.asked
	}
	switch {
	case c.state == wire.ClaimDenied:
		st.State = status.ServiceDenied
	case c.state == wire.ClaimRetrying:
		st.State = status.ServiceRetrying
	case s.link.Up():
		st.State = status.ServiceUp
	default:
		st.State = status.ServiceAway
		if s.link.RemoteAddr() != nil && !s.leaving {
			st.Reason = "the bridge is connected, but none of its connections for data is"
		}
	}
	return st
}

// session returns the session of a live link, making it known when it is new. mu is held.
func (p *Proxy) session(l *link.Link) *session {
	s := p.sessions[l]
	if s == nil {
		if l.Err() != nil {
			return nil
		}
		if old := p.present[l.KeyID()]; old != nil {
			old.past = true
		}
		s = &session{link: l, key: p.keys[l.KeyID()].Name, claims: make(map[uint32]*claim)}
		p.sessions[l], p.present[l.KeyID()] = s, s
	}
	return s
}

// Attached implements link.Owner.
func (p *Proxy) Attached(l *link.Link, slot int) {
	p.mu.Lock()
	s, key := p.session(l), ""
	if s != nil {
		key = s.key
	}
	p.notify(l)
	p.mu.Unlock()
	if left, draining := p.drainLeft(); slot == 0 && draining { // it began, or broke, before the bridge was told
		l.GoAway(left)
		l.Abandon()
	}
	if slot == 0 && s != nil {
		p.log.Info("bridge connected", "key", key, "bridge", l.PeerName(), "remote", l.Status()[0].Remote)
	}
}

// Detached implements link.Owner.
func (p *Proxy) Detached(l *link.Link, slot int, err error) {
	p.mu.Lock()
	s, key, leaving := p.session(l), "", false
	if s != nil {
		key, leaving = s.key, s.leaving
	}
	if slot == 0 {
		p.notify(l)
	}
	p.mu.Unlock()
	switch {
	case s == nil, l.Err() != nil, p.ctx.Err() != nil: // Ended says it
	case leaving && l.Finished():
		if !l.Connected() {
			p.wg.Go(func() { p.awaitReturn(l) })
		}
	case slot != 0, l.RemoteAddr() != nil: // or a newer connection took the slot already
	case p.conns.Draining(): // nobody comes back
	default:
		p.log.Warn("bridge lost, its connections stand still until it is back", "key", key, "bridge", l.PeerName(), "err", err)
	}
}

// returnTime is how long a bridge that is stopping, and was seen to have nothing left, has to come back from a break of its link.
const returnTime = 2 * time.Second

// awaitReturn ends the session of a bridge that has left, unless it comes back soon.
func (p *Proxy) awaitReturn(l *link.Link) {
	late := time.NewTimer(returnTime)
	defer late.Stop()
	select {
	case <-late.C:
		if l.Finished() && !l.Connected() {
			l.Kill(link.ErrLeft)
		}
	case <-l.Done():
	case <-p.ctx.Done():
	}
}

// notify wakes new clients that wait for the link. mu is held.
func (p *Proxy) notify(l *link.Link) {
	for _, ln := range p.public {
		if at, _, _ := ln.dest.Link(); at == l {
			ln.dest.Changed()
		}
	}
}

// GoingAway implements link.Owner. The bridge serves on until its successor claims what it has, or until it says that it takes
// nobody any more.
func (p *Proxy) GoingAway(l *link.Link, drain time.Duration) {
	p.mu.Lock()
	s := p.session(l)
	again := s == nil || s.leaving
	if s != nil {
		s.leaving = true
	}
	p.notify(l)
	p.mu.Unlock()
	if !again {
		p.wg.Go(func() { p.awaitLeft(l, drain) })
	}
}

// leaveGrace is how long after its own limit a bridge that is stopping is waited for.
const leaveGrace = 15 * time.Second

// awaitLeft ends the session of a bridge that was to end by itself, and may have been killed instead.
func (p *Proxy) awaitLeft(l *link.Link, drain time.Duration) {
	late := time.NewTimer(drain + leaveGrace)
	defer late.Stop()
	select {
	case <-late.C:
		l.Kill(link.ErrLeft)
	case <-l.Done():
	case <-p.ctx.Done():
	}
}

// Opened implements link.Owner. A proxy has no service that a bridge could ask for.
func (p *Proxy) Opened(s *link.Stream) { s.Reset(wire.CodeService) }

// Ended implements link.Owner. What the session held goes to the next one of its key: at once where that one took its place, or
// when it has said its claims. A bridge that left may have a successor that is only starting: users wait for it as they do for
// one that is away.
func (p *Proxy) Ended(l *link.Link, err error) {
	p.claiming.Lock()
	p.mu.Lock()
	s := p.sessions[l]
	if s == nil {
		p.mu.Unlock()
		p.claiming.Unlock()
		return
	}
	key := s.key
	delete(p.sessions, l)
	next := p.present[l.KeyID()]
	if next == s {
		delete(p.present, l.KeyID())
		next = nil
	}
	p.notify(l)
	var gone []*listener
	switch {
	case errors.Is(err, link.ErrReplaced), next != nil && !next.settled:
	case s.leaving && !p.conns.Draining():
		p.wg.Go(func() { p.expire(l) })
	default:
		gone = p.releaseLocked(heldBy(l))
	}
	p.mu.Unlock()
	closeAll(gone)
	p.claiming.Unlock()
	p.log.Info("bridge session ended", "key", key, "bridge", l.PeerName(), "err", err)
}

// heldBy chooses the public ports that lead to l.
func heldBy(l *link.Link) func(*listener) bool {
	return func(ln *listener) bool {
		at, _, _ := ln.dest.Link()
		return at == l
	}
}

// awaitSuccessor is how long the public ports of a bridge that left stay open for the next one. Tests wait shorter.
var awaitSuccessor = route.Hold

// expire gives up the public ports of a bridge that left, unless a successor claims them soon.
func (p *Proxy) expire(l *link.Link) {
	late := time.NewTimer(awaitSuccessor)
	defer late.Stop()
	select {
	case <-late.C:
	case <-p.ctx.Done():
		return
	}
	p.claiming.Lock()
	defer p.claiming.Unlock()
	p.mu.Lock()
	gone := p.releaseLocked(heldBy(l))
	p.mu.Unlock()
	closeAll(gone)
}

// Message implements link.Owner: the bridge proposes, the policy of its key decides.
func (p *Proxy) Message(l *link.Link, f wire.Frame) error {
	switch f.Type {
	case wire.TypeClaim:
		id, c, err := wire.ParseClaim(f)
		if err != nil {
			return err
		}
		return p.claim(l, id, c)
	case wire.TypeUnclaim:
		id, err := wire.ParseUnclaim(f)
		if err != nil {
			return err
		}
		p.unclaim(l, id)
		return nil
	case wire.TypeRound:
		p.round(l)
		return nil
	}
	return link.Violation(wire.ErrUnexpected, "%s from a bridge", f.Type)
}

// claim takes a claim of a bridge, or a change of its attributes, and answers it.
func (p *Proxy) claim(l *link.Link, id uint32, c wire.Claim) (wrong error) {
	p.decided(func() lines {
		p.mu.Lock()
		s := p.session(l)
		if s == nil {
			p.mu.Unlock()
			return nil
		}
		cl := s.claims[id]
		switch {
		case cl != nil && cl.asked != c.Public:
			wrong = link.Violation(wire.ErrClaimInvalid, "claim %d asks for %q, and asked for %q before", id, c.Public, cl.asked)
		case cl == nil && len(s.claims) >= link.MaxClaims:
			wrong = link.Violation(wire.ErrClaimInvalid, "more than %d claims", link.MaxClaims)
		case cl == nil || cl.target != c.Target:
			cl = &claim{id: id, asked: c.Public, target: c.Target}
			s.claims[id] = cl
		}
		if wrong != nil {
			p.mu.Unlock()
			return nil
		}
		cl.unknown, cl.group = c.Unknown, c.Group
		p.mu.Unlock()
		return p.decide(s, cl, false)
	})
	return wrong
}

// unclaim takes a claim back. The answer says which streams may still name it.
func (p *Proxy) unclaim(l *link.Link, id uint32) {
	p.decided(func() lines {
		p.mu.Lock()
		s := p.session(l)
		var gone []*listener
		if s != nil && s.claims[id] != nil {
			gone = p.releaseClaim(l, s.claims[id])
			delete(s.claims, id)
		}
		p.mu.Unlock()
		closeAll(gone)
		l.Say(uint64(id), wire.AppendUnclaimed(nil, id, l.Marks())) // no user is on the way to it: see route.Remove
		return nil
	})
}

// round ends the first round of a bridge's claims: what an earlier session of it held and this one did not claim is given up.
func (p *Proxy) round(l *link.Link) {
	p.decided(func() lines {
		p.mu.Lock()
		var gone []*listener
		var past []*session
		if s := p.session(l); s != nil && !s.settled && !s.past {
			s.settled = true
			gone = p.releaseLocked(func(ln *listener) bool {
				at, _, _ := ln.dest.Link()
				return ln.dest.Key == l.KeyID() && at != l
			})
			for other, old := range p.sessions {
				if other.KeyID() == l.KeyID() && old.past {
					past = append(past, old)
				}
			}
		}
		p.mu.Unlock()
		closeAll(gone)
		return p.passed(past)
	})
}

// passed tells bridges whose successor has claimed what it has. claiming is held and mu is not.
func (p *Proxy) passed(past []*session) (said lines) {
	for _, s := range past {
		p.mu.Lock()
		claims := slices.Collect(maps.Values(s.claims))
		p.mu.Unlock()
		for _, c := range claims {
			said = append(said, p.decide(s, c, true)...)
		}
	}
	return said
}

// lines are what there is to log once no lock is held: whoever reads the log may be slow.
type lines []func()

// decided makes one decision about claims after the other, and logs what came of it.
func (p *Proxy) decided(decide func() lines) {
	p.claiming.Lock()
	said := decide()
	p.claiming.Unlock()
	for _, say := range said {
		say()
	}
}

// verdict is what became of a claim.
type verdict struct {
	state  wire.ClaimStatus
	reason string // for this proxy's operator
	told   string // for the bridge, where it is not to know as much; "": the reason
}

// decide opens what a claim asks for, or says why not, and tells the bridge; again says that the bridge has heard an answer
// and wants to know of changes only. claiming is held and mu is not.
func (p *Proxy) decide(s *session, c *claim, again bool) (said lines) {
	v := p.tryClaim(s, c)
	p.mu.Lock()
	before, reason := c.state, c.reason
	c.state, c.reason = v.state, v.reason
	ln, key := p.public[c.public], s.key
	p.mu.Unlock()
	same := before == v.state && reason == v.reason
	if again && same {
		return nil
	}
	answer := wire.Claimed{Status: v.state, Public: c.public.String(), Text: cmp.Or(v.told, v.reason)}
	if v.state == wire.ClaimUp && ln != nil {
		answer.Nonce = ln.expectProbe()
	}
	s.link.Say(uint64(c.id), wire.AppendClaimed(nil, c.id, answer))
	if same {
		return nil
	}
	public, asked, target := c.public.String(), c.asked, c.target
	return lines{func() {
		switch v.state {
		case wire.ClaimUp:
			p.log.Info("service up", "service", public, "key", key, "target", target)
		case wire.ClaimDenied:
			p.log.Warn("service denied", "service", asked, "key", key, "reason", v.reason)
		case wire.ClaimRetrying:
			if v.reason == pastText {
				return
			}
			p.log.Warn("service cannot be opened, trying again", "service", public, "key", key, "reason", v.reason)
		}
	}}
}

func deny(format string, args ...any) verdict {
	return verdict{state: wire.ClaimDenied, reason: fmt.Sprintf(format, args...)}
}

// tryClaim is decide without telling anybody. claiming is held and mu is not: to open a port takes a system call.
func (p *Proxy) tryClaim(s *session, c *claim) verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	key, ok := p.keys[s.link.KeyID()]
	if !ok {
		return deny("denied: the key was removed")
	}
	pub, err := grammar.ParsePublic(c.asked)
	if err != nil {
		return deny("denied: %s", err)
	}
	if c.unknown != 0 {
		return deny("%s denied: the bridge asks for something that this proxy does not know (field %d of its claim): update the proxy", pub, c.unknown)
	}
	if c.group != "" {
		return deny("%s denied: this proxy does not let services share an address (group %q): update the proxy", pub, c.group)
	}
	if pub.Kind == grammar.KindOffered {
		i := slices.IndexFunc(p.cfg.Offer, key.Allow.Permits)
		if i < 0 {
			return deny("denied: the proxy offers no public port that key %q is allowed (%s)", key.Name, key.Allow)
		}
		pub = p.cfg.Offer[i]
	}
	c.public = pub
	switch {
	case s.past:
		return verdict{state: wire.ClaimRetrying, reason: pastText}
	case !key.Allow.Permits(pub):
		p.drop(pub, s)
		return deny("%s denied: the policy of key %q allows %s", pub, key.Name, key.Allow)
	case pub.Kind != grammar.KindTCP:
		return deny("%s denied: this proxy serves tcp/ only", pub)
	case pub.Port == portOf(p.Addr()) || p.transfer != nil && pub.Port == portOf(p.TransferAddr()):
		return deny("%s denied: the link itself uses this port", pub)
	case p.conns.Draining():
		return verdict{state: wire.ClaimRetrying, reason: stoppingText}
	}
	d, isNew, err := p.routes.Claim(pub, key.ID, key.Name, s.link, c.id, c.target)
	if err != nil {
		v := verdict{state: wire.ClaimRetrying, reason: err.Error()}
		if _, taken := errors.AsType[*route.TakenError](err); taken {
			v.told = fmt.Sprintf("%s is held by another key", pub)
		}
		return v
	}
	if !isNew {
		return verdict{state: wire.ClaimUp}
	}
	// What an earlier session of the same bridge left open must not stand in the way.
	gone := p.releaseLocked(func(ln *listener) bool {
		at, _, _ := ln.dest.Link()
		return ln.dest.Key == key.ID && at != s.link && ln.dest.Public.Overlaps(pub)
	})
	p.mu.Unlock()
	closeAll(gone)
	ln, err := sys.Listen(pub.ListenNetwork(), pub.ListenAddr())
	p.mu.Lock()
	if err != nil {
		p.routes.Remove(d)
		v := verdict{state: wire.ClaimRetrying, reason: fmt.Sprintf("open %s on the proxy: %s", pub, err)}
		if hint := sys.PortHint(err); hint != "" {
			v.told = v.reason
			v.reason += " (" + hint + ")"
		}
		return v
	}
	l := &listener{Listener: ln, dest: d, account: p.conns.Account(key.ID, pub.String())}
	p.public[pub] = l
	p.wg.Go(func() {
		p.conns.Accept(l, l.account, func(a *traffic.Admission, conn net.Conn) { p.forward(l, a, conn) })
	})
	return verdict{state: wire.ClaimUp}
}

// drop closes a public port that a session has no right to any more. mu is held.
func (p *Proxy) drop(pub grammar.Public, s *session) {
	closeAll(p.releaseLocked(func(ln *listener) bool { return ln.dest.Public == pub && ln.dest.Key == s.link.KeyID() }))
}

// releaseLocked takes listeners out of service; the caller closes them. mu is held.
func (p *Proxy) releaseLocked(which func(*listener) bool) (gone []*listener) {
	for pub, ln := range p.public {
		if which(ln) {
			delete(p.public, pub)
			p.routes.Remove(ln.dest)
			gone = append(gone, ln)
		}
	}
	return gone
}

// releaseClaim is releaseLocked for what a claim on l holds. mu is held.
func (p *Proxy) releaseClaim(l *link.Link, cl *claim) []*listener {
	return p.releaseLocked(func(ln *listener) bool {
		at, of, _ := ln.dest.Link()
		return ln.dest.Public == cl.public && at == l && of == cl.id
	})
}

func closeAll(ls []*listener) {
	for _, l := range ls {
		l.Close()
	}
}

func (p *Proxy) closeListeners() {
	p.claiming.Lock()
	defer p.claiming.Unlock()
	p.mu.Lock()
	gone := p.releaseLocked(func(*listener) bool { return true })
	p.mu.Unlock()
	closeAll(gone)
}

// retryEvery is how often what could not be opened is tried again.
const retryEvery = 2 * time.Second

// retryClaims tries again what could not be opened.
func (p *Proxy) retryClaims() {
	t := time.NewTicker(retryEvery)
	defer t.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-t.C:
		}
		p.decideAll(func(c *claim) bool { return c.state == wire.ClaimRetrying })
	}
}

// decideAll decides the chosen claims again.
func (p *Proxy) decideAll(which func(*claim) bool) {
	p.decided(func() (said lines) {
		type asked struct {
			s *session
			c *claim
		}
		var again []asked
		p.mu.Lock()
		for _, s := range p.sessions {
			s.key = p.keys[s.link.KeyID()].Name
			for _, c := range s.claims {
				if which(c) {
					again = append(again, asked{s, c})
				}
			}
		}
		p.mu.Unlock()
		for _, a := range again {
			said = append(said, p.decide(a.s, a.c, true)...)
		}
		return said
	})
}

// reconsider decides every claim again, after a change of the keys.
func (p *Proxy) reconsider() { p.decideAll(func(*claim) bool { return true }) }

// dropKey ends everything that a removed key holds.
func (p *Proxy) dropKey(id [16]byte) {
	p.claiming.Lock()
	p.mu.Lock()
	gone := p.releaseLocked(func(ln *listener) bool { return ln.dest.Key == id })
	p.mu.Unlock()
	closeAll(gone)
	p.claiming.Unlock()
	p.conns.End(relay.ReasonRemoved, wire.CodeService, func(a *traffic.Admission) bool { return a.Key() == id })
	for _, l := range p.host.Links() { // and not the session, which a link that is being attached has not got yet
		if l.KeyID() == id {
			l.Flush(lastWords) // or the bridge's pairs would learn no more than that the link is lost
			l.Kill(errors.New("the key was removed"))
		}
	}
}

func newNonce() (n [16]byte) {
	rand.Read(n[:])
	return n
}
