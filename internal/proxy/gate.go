package proxy

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/entrance"
	"reverser/internal/link"
	"reverser/internal/status"
	"reverser/internal/traffic"
)

// gate bounds what strangers can take of the link port: places, and the time of processors for handshakes. Its rules are the room's.
//
// Connections are accepted as they come, with next to none of the pauses of a port that one service has (linkCrowd), and cost little until
// their handshake is computed. So the kernel's accept queue, in which nobody goes first, stays short even when the proxy is busy, and bridges
// from known addresses find a place whatever strangers do. At one processor and 8 connections in a millisecond, a bridge behind 8,000
// strangers a second came back after 1.3 to 4.6 s.
type gate struct {
	about string        // what its lines in the log are about
	what  what          // runs short, in status
	slots chan struct{} // one for each connection that has not left, those included that were sent away; nil: as many as come
	judge *judge        // of those who reach no service; nil: all reach one, or prove a key
	pace  link.Pace     // of those whom the judge sends away

	mu       sync.Mutex
	room     room // guarded by mu, as all below
	inside   map[*pass]struct{}
	closed   bool
	refused  int // since reported
	reported time.Time
	crowded  *traffic.Strain // for want of places; nil: there was none yet
}

// what is how status calls what strangers take of a port.
type what struct {
	places string
	port   string // where users reach services by name; "": they do not
}

// pass is a connection's time at the gate.
type pass struct {
	gate *gate
	conn net.Conn
	turn chan error // receives once: nil for its turn, or why there is none

	begun []byte // what was read before it came here
	port  *pass  // at the gate of the port of names, if it came from there

	log *slog.Logger

	computes bool // in a turn (link.TakeTurn); only the handshake's goroutine uses it

	place *place // guarded by gate.mu, as all below
	gone  error  // why the gate sent it away
	slot  bool   // has one of gate.slots

	from    netip.Addr // whose waste it is, if it is one; the zero value: nobody's
	counted bool       // it has been counted
	pages   uint64     // that it asked for (unserved)
}

// reportStrangersPer is the interval between log lines about strangers.
const reportStrangersPer = time.Minute

func newGate(descriptors int) *gate {
	return &gate{about: "connections to the link port that were no bridge with a valid key", what: what{places: "places at the link port for who has not proven a key"}, room: *newRoom(placesOf(descriptors), runtime.GOMAXPROCS(0)), inside: make(map[*pass]struct{})}
}

// newUsersGate makes a gate of connections that have descriptors for users. Who was sent away keeps its descriptor until it has left, so few are
// let in beyond the places: strangers who come faster than others leave wait in the kernel, and not in the way of users of other ports.
func newUsersGate(descriptors int) *gate {
	return newGate(descriptors).withSlots()
}

func (g *gate) withSlots() *gate {
	g.slots = make(chan struct{}, g.room.most+max(g.room.most/8, 4))
	return g
}

// newNamesGate makes a gate of a port at which users reach services by name. Who reaches none may not come as often as they like (wasted),
// but for addresses that are spared. most bounds the places by the memory for them; 0: descriptors alone do.
func newNamesGate(descriptors, most int, spared func(netip.Addr) bool) *gate {
	g := newGate(descriptors)
	if most > 0 {
		g.room.most = max(min(g.room.most, most), 16)
	}
	g.withSlots()
	g.judge = &judge{spared: spared, wasted: wasted{most: mostWasted}}
	return g
}

// placesOf is how many connections may wait to be proven, by the descriptor limit.
func placesOf(descriptors int) int {
	if descriptors < 8192 {
		return max(descriptors/8, 16)
	}
	return min(mostPlaces, descriptors/4)
}

// enter admits a connection, or closes it and returns nil. At a gate with slots it waits for one.
func (g *gate) enter(log *slog.Logger, conn net.Conn) *pass {
	from := traffic.AddrPort(conn.RemoteAddr()).Addr()
	p := &pass{gate: g, conn: conn, log: log}
	if g.judge != nil && from.IsValid() && !g.judge.spared(from) {
		p.from = from
		if p.over(conn.RemoteAddr()) != nil {
			traffic.Reset(conn)
			g.pace.Keep(linkCrowd)
			return nil
		}
	}
	p.turn = make(chan error, 1)
	if g.slots != nil {
		g.slots <- struct{}{} // all leave soon: those who were sent away have no connection any more
		p.slot = true
	}
	g.mu.Lock()
	if g.closed {
		p.giveSlotLocked()
		g.mu.Unlock()
		conn.Close()
		return nil
	}
	at, victim, why, ok := g.room.enter(from, time.Now())
	crowded := g.crowded
	if why != nil && crowded == nil {
		crowded = traffic.NewStrain(log, g.pressure)
		g.crowded = crowded
	}
	if !ok {
		p.giveSlotLocked()
		g.mu.Unlock()
		crowded.Note(why)
		traffic.Reset(conn)
		g.report(log, conn.RemoteAddr(), why)
		return nil
	}
	p.place, at.conn = at, p
	g.inside[p] = struct{}{}
	var old *pass
	if victim != nil {
		old = victim.conn.(*pass)
		g.expelLocked(old, why)
	}
	g.mu.Unlock()
	if old != nil {
		crowded.Note(why)
		traffic.Reset(old.conn)
	}
	return p
}

func (p *pass) giveSlotLocked() {
	if p.slot {
		p.slot = false
		<-p.gate.slots
	}
}

// expelLocked records that a connection must go. The caller closes it.
func (g *gate) expelLocked(p *pass, why error) {
	p.gone = why
	delete(g.inside, p)
	select {
	case p.turn <- why: // it may wait for its turn
	default:
	}
}

// steps are those of the connection's handshake.
func (p *pass) steps() auth.Steps { return auth.Steps{Begun: p.begun, Heard: p.heard, Waits: p.waits} }

// heard waits for the turn of a connection whose first record is there. The answer is computed in a turn of the link's as well, so
// that a processor stays free for streams.
func (p *pass) heard(hungUp func() bool) error {
	g := p.gate
	g.mu.Lock()
	if p.gone == nil {
		if err := g.room.heard(p.place, time.Now()); err != nil {
			g.mu.Unlock()
			return err
		}
		g.nextLocked()
	}
	g.mu.Unlock()
	if err := <-p.turn; err != nil {
		return err
	}
	if hungUp() {
		return errGone
	}
	link.TakeTurn(link.ChunkSize)
	p.computes = true
	return nil
}

// waits gives the turn back while the handshake waits for the peer.
func (p *pass) waits() {
	p.computed()
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.room.rest(p.place)
	g.nextLocked()
}

// computed ends what heard began, if it did.
func (p *pass) computed() {
	if p.computes {
		link.EndTurn(link.ChunkSize)
		p.computes = false
	}
}

// nextLocked starts the handshakes that may be computed now.
func (g *gate) nextLocked() {
	for at := g.room.next(); at != nil; at = g.room.next() {
		at.conn.(*pass).turn <- nil
	}
}

// leave ends the time before authentication, or before a service has let the connection in. proven says that it succeeded; otherwise it
// returns why it failed.
func (p *pass) leave(proven bool) (why error) {
	if p.port != nil {
		p.port.ends(proven)
	}
	why = p.leaveFor()
	p.ends(proven)
	return why
}

// leaveFor ends it for a connection of which another gate will say whether it succeeded.
func (p *pass) leaveFor() (why error) {
	p.computed()
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	p.giveSlotLocked()
	if p.gone == nil {
		delete(g.inside, p)
	}
	g.room.leave(p.place)
	g.nextLocked()
	return p.gone
}

// ends notes what became of a connection.
func (p *pass) ends(proven bool) {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	switch {
	case proven && g.judge == nil:
		g.room.known.add(p.place.from, now)
	case proven && p.from.IsValid():
		g.room.known.add(p.from, now)
	case !proven && !p.counted:
		p.countLocked(now)
	}
}

// countLocked counts a connection that reached no service.
func (p *pass) countLocked(now time.Time) {
	if g := p.gate; p.from.IsValid() && !g.room.known.has(p.from, now) {
		p.counted = true
		g.judge.wasted.add(p.from, now)
	}
}

// introduced says whose connection it is that came from a balancer. An error says that they come too often.
func (p *pass) introduced(user net.Conn) error {
	p.gate.mu.Lock()
	p.from = entrance.Client(user).Addr()
	p.gate.mu.Unlock()
	return p.over(user.RemoteAddr())
}

// unserved is called when a connection that no service has let in is to get an answer of the proxy's own. It reports whether it may have it.
// named says that what it asks for is served, or was, only not now or not here. A page on a connection that is there costs less than a
// connection, and a browser asks for many at once: the first one counts, for the connection as well, and then each pagesCount-th.
func (p *pass) unserved(named bool) bool {
	if named {
		p.ends(true)
		return true
	}
	p.gate.mu.Lock()
	counts := p.pages%pagesCount == 0
	p.pages++
	p.gate.mu.Unlock()
	if !counts {
		return true
	}
	if p.over(p.conn.RemoteAddr()) != nil {
		return false
	}
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.countLocked(time.Now())
	return true
}

// over returns why a connection is sent away for how often its network wastes one, and says so; nil: it is not.
func (p *pass) over(remote net.Addr) error {
	g := p.gate
	now := time.Now()
	g.mu.Lock()
	if !p.from.IsValid() || g.room.known.has(p.from, now) {
		g.mu.Unlock()
		return nil
	}
	why := g.judge.wasted.over(p.from, now)
	if why == nil || g.closed {
		g.mu.Unlock()
		return why
	}
	p.counted = true // what is sent away costs little
	block := wastedBlock(p.from)
	g.judge.away.add(block, g.judge.wasted.blocks.ref(block), why, now)
	if g.judge.strain == nil {
		g.judge.strain = traffic.NewStrain(p.log, g.often)
	}
	strain := g.judge.strain
	g.mu.Unlock()
	strain.Note(why)
	g.report(p.log, remote, why)
	return why
}

// often describes who is sent away for coming too often.
func (g *gate) often() status.Pressure {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.judge.away.worst(time.Now())
	pr := status.Pressure{
		What: "connections a second for strangers of one network at " + g.what.port, Used: strangerRate + s.ofMost, Limit: strangerRate,
		Hint: "they are reset; addresses that reached a service within a day are let in. Name a balancer in front of this port in proxy_protocol_from",
	}
	if s.rate == ofAll {
		pr.What, pr.Used, pr.Limit = "connections a second for all strangers at "+g.what.port, strangersRate+s.n, strangersRate
	}
	if s.most.IsValid() {
		pr.Largest.Client = s.most.String()
	}
	return pr
}

// report logs failed authentications, at most once in reportStrangersPer: the internet scans every port. A peer that leaves
// before its hello is neither counted nor logged: it is a scan, a load balancer's check, or an attempt that a bridge gave up because
// another one was faster.
func (g *gate) report(log *slog.Logger, from net.Addr, err error) {
	if errors.Is(err, auth.ErrHungUp) || errors.Is(err, errGone) {
		return
	}
	g.mu.Lock()
	if g.closed { // all were closed
		g.mu.Unlock()
		return
	}
	g.refused++
	now := time.Now()
	if now.Sub(g.reported) < reportStrangersPer {
		g.mu.Unlock()
		return
	}
	args := []any{"count", g.refused, "last_remote", from.String(), "last_err", err}
	if held, most := g.room.held(); held >= g.room.most/2 {
		args = append(args, "waiting", held, "of", g.room.most, "most_from", most.String())
	}
	g.reported, g.refused = now, 0
	g.mu.Unlock()
	log.Warn(g.about, args...)
}

// pressure describes how many places are taken, and by whom most.
func (g *gate) pressure() status.Pressure {
	g.mu.Lock()
	defer g.mu.Unlock()
	held, most := g.room.held()
	pr := status.Pressure{
		What: g.what.places, Used: int64(held), Limit: int64(g.room.most),
		Hint: "known addresses have places of their own, so nothing needs to be done; a firewall in front can keep the others out",
	}
	if most.IsValid() {
		pr.Largest.Client = most.String()
	}
	return pr
}

// appendTo appends to a list for status what is short, if something is.
func (g *gate) appendTo(list []status.Pressure) []status.Pressure {
	g.mu.Lock()
	all := []*traffic.Strain{g.crowded}
	if g.judge != nil {
		all = append(all, g.judge.strain)
	}
	g.mu.Unlock()
	for _, s := range all {
		if s != nil {
			list = s.AppendTo(list)
		}
	}
	return list
}

// closeAll ends what is unfinished.
func (g *gate) closeAll() {
	g.mu.Lock()
	g.closed = true
	if g.crowded != nil {
		defer g.crowded.Close()
	}
	if g.judge != nil && g.judge.strain != nil {
		defer g.judge.strain.Close()
	}
	var all []*pass
	for p := range g.inside {
		all = append(all, p)
		g.room.leave(p.place)
		g.expelLocked(p, net.ErrClosed)
	}
	g.mu.Unlock()
	for _, p := range all {
		traffic.Close(p.conn)
	}
}
