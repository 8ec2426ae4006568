package registry

import (
	"fmt"
	"reflect"

	"reverser/internal/claims"
	"reverser/internal/wire"
)

// sim is a control plane: proxies, each a registry with its sockets, users and accounts (sim_proxy_test.go); bridges with their side of
// claims (sim_bridge_test.go); and between them sessions whose control connection loses what is under way, and whose carriers do not.
// It has no goroutine and no clock: every choice comes from pick.
type sim struct {
	pick  func(what string, n int) int
	trace func(string, ...any)
	err   error
	stats simStats

	proxies []*simProxy
	bridges []*simBridge
	calm    bool // nothing fails any more
}

// simStats counts what must happen for the simulation to mean anything.
type simStats struct {
	Steps, Served, ServedRetired, Unclaimed, Waited, Removed, Lost, Cancelled, Limited, Short, Replaced, Successors, Policies, Handovers, GivenUp,
	BridgeHandovers, Crowded, Placed, Failed, Group, Stops, Reloads, Cuts, Lies, ProxyRestarts int
}

func (s *simStats) add(o simStats) {
	v, w := reflect.ValueOf(s).Elem(), reflect.ValueOf(o)
	for i := range v.NumField() {
		v.Field(i).SetInt(v.Field(i).Int() + w.Field(i).Int())
	}
}

const simKeys = 3

// begin makes one proxy, or two that serve the same bridges; a bridge of each key, and a second one of two of them.
func (w *sim) begin() {
	for range 1 + w.pick("proxies", 8)/7 {
		w.proxies = append(w.proxies, newSimProxy(w))
	}
	for _, key := range []int{0, 1, 2, 0, 1} {
		b := &simBridge{sim: w, key: key}
		for _, p := range w.proxies {
			b.uplinks = append(b.uplinks, &simUplink{b: b, p: p})
		}
		w.bridges = append(w.bridges, b)
		b.restart()
	}
}

func (w *sim) close() {
	for _, p := range w.proxies {
		for len(p.users) > 0 { // Close waits for them
			p.over(p.users[0])
		}
		p.conns.Close()
	}
}

func (w *sim) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *sim) proxy() *simProxy   { return w.proxies[w.pick("proxy", len(w.proxies))] }
func (w *sim) bridge() *simBridge { return w.bridges[w.pick("bridge", len(w.bridges))] }
func (w *sim) uplink() *simUplink {
	b := w.bridge()
	return b.uplinks[w.pick("uplink", len(b.uplinks))]
}

// link returns a session that a proxy knows, or one that has ended.
func (w *sim) link() *simLink {
	p := w.proxy()
	if len(p.links) == 0 {
		l := &simLink{p: p, u: w.bridges[0].uplinks[0], ended: true}
		l.init()
		return l
	}
	return p.links[w.pick("link", len(p.links))]
}

// flying returns a slot whose next OPEN can arrive; nil: there is none.
func (w *sim) flying() *simSlot {
	var all []*simSlot
	for _, p := range w.proxies {
		for _, l := range p.links {
			for _, sl := range l.slots {
				if len(sl.flight) > 0 && !sl.down {
					all = append(all, sl)
				}
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[w.pick("flying", len(all))]
}

// simLink is a session. It is the registry's Way.
type simLink struct {
	p        *simProxy
	u        *simUplink
	id       SessionID
	key      int
	control  bool // slot 0 has a connection, as the proxy sees it
	up       bool // the carriers have
	ended    bool
	leaving  bool
	toProxy  simQueue
	toBridge simQueue
	slots    [simSlots]*simSlot
	gone     []uint32               // claims that the proxy has given back
	marks    map[uint32][]wire.Mark // of those, as the bridge was told
}

const simSlots = 2

// simSlot is one of a session's carriers.
type simSlot struct {
	l       *simLink
	number  uint8
	down    bool
	opened  uint64 // the highest stream
	arrived uint64
	flight  []*simStream
}

// simStream is an OPEN on its way.
type simStream struct {
	id      uint64
	service uint32
	user    *simUser
	age     int // ticks with a connection
}

func (l *simLink) init() {
	l.marks = make(map[uint32][]wire.Mark)
	for i := range l.slots {
		l.slots[i] = &simSlot{l: l, number: uint8(i + 1)}
	}
}

func (l *simLink) String() string { return fmt.Sprintf("session %d of key %d", l.id, l.key) }

func (l *simLink) slot() *simSlot { return l.slots[l.p.pick("slot", simSlots)] }

// present reports whether the bridge takes the session for its present one.
func (l *simLink) present() bool { return l.u.link == l }

// simQueue is one direction of a control connection.
type simQueue struct {
	unsent []simSay // a later frame about something takes the place of an earlier one
	wire   []byte   // under way
}

type simSay struct {
	name  uint64
	frame []byte
}

func (q *simQueue) say(name uint64, frame []byte) {
	for i, old := range q.unsent {
		if old.name == name {
			q.unsent[i].frame = frame
			return
		}
	}
	q.unsent = append(q.unsent, simSay{name, frame})
}

// write sends some of the frames that wait.
func (q *simQueue) write(w *sim) {
	n := len(q.unsent)
	if w.pick("some", 3) == 0 {
		n = w.pick("frames", n+1)
	}
	for ; n > 0; n-- {
		q.wire = append(q.wire, q.unsent[0].frame...)
		q.unsent = q.unsent[1:]
	}
}

// read takes a frame off the wire.
func (q *simQueue) read(w *sim) (f wire.Frame, ok bool) {
	if len(q.wire) == 0 {
		return f, false
	}
	f, n, err := wire.Parse(q.wire)
	if err != nil || n == 0 {
		w.fail("a frame of an honest end cannot be read: %v", err)
		return f, false
	}
	q.wire = q.wire[n:]
	return f, true
}

func (q *simQueue) empty() bool { return len(q.unsent)+len(q.wire) == 0 }

// cut breaks the control connection. Either end may notice later; what is under way is lost.
func (l *simLink) cut() {
	if !l.control {
		return
	}
	l.p.stats.Cuts++
	l.p.trace("%s: slot 0 is cut", l)
	l.control, l.toProxy, l.toBridge = false, simQueue{}, simQueue{}
	if l.present() && l.p.pick("the bridge notices", 2) == 0 {
		l.u.c.Detached()
	}
}

// lose is what a session looks like to a bridge that has lost it: the proxy does not know yet.
func (l *simLink) lose() {
	l.control, l.toProxy, l.toBridge = false, simQueue{}, simQueue{}
	if l.present() {
		l.u.link = nil
		l.u.c.Ended()
		l.u.pump()
	}
}

// end is the end of a session, at both ends.
func (l *simLink) end() {
	if l.ended {
		return
	}
	l.lose()
	l.ended, l.up = true, false
	l.p.forget(l)
	l.p.r.End(l.id)
}

// hear is the proxy's reader of slot 0; see Message of the proxy.
func (l *simLink) hear() {
	f, ok := l.toProxy.read(l.p.sim)
	if !ok {
		return
	}
	var err error
	switch f.Type {
	case wire.TypeClaim:
		var id uint32
		var c wire.Claim
		if id, c, err = wire.ParseClaim(f); err == nil {
			l.p.trace("  %s: CLAIM %d %+v", l, id, c)
			err = l.p.r.Claim(l.id, id, ClaimOf(c))
		}
	case wire.TypeUnclaim:
		var id uint32
		if id, err = wire.ParseUnclaim(f); err == nil {
			l.p.trace("  %s: UNCLAIM %d", l, id)
			err = l.p.r.Unclaim(l.id, id)
		}
	case wire.TypeRound:
		l.p.trace("  %s: ROUND", l)
		l.p.r.Round(l.id)
	}
	if err != nil {
		l.p.fail("an honest bridge breaks a rule: %v", err)
	}
}

// learn is the bridge's reader of slot 0; see Message of its uplink.
func (l *simLink) learn() {
	f, ok := l.toBridge.read(l.p.sim)
	if !ok || !l.present() {
		return
	}
	var err error
	switch f.Type {
	case wire.TypeClaimed:
		var id uint32
		var c wire.Claimed
		if id, c, err = wire.ParseClaimed(f); err == nil {
			_, err = l.u.c.Claimed(id, claims.AnswerOf(c))
		}
	case wire.TypeUnclaimed:
		var id uint32
		var marks []wire.Mark
		if id, marks, err = wire.ParseUnclaimed(f); err == nil {
			err = l.u.c.Unclaimed(id, marks)
			if _, twice := l.marks[id]; !twice {
				l.marks[id] = marks
				l.p.stats.Unclaimed++
			}
		}
	}
	if err != nil {
		l.p.fail("an honest proxy breaks a rule: %v", err)
	}
}

// deliver brings the next OPEN of a slot to the bridge.
func (sl *simSlot) deliver() {
	if sl.down || len(sl.flight) == 0 {
		return
	}
	l := sl.l
	s := sl.flight[0]
	sl.flight = sl.flight[1:]
	sl.arrived = s.id
	if !l.present() { // a bridge that has lost the session reads nothing of it
		return
	}
	b := l.u.b
	retired, _ := l.u.c.Retired(s.service)
	svc, public := l.u.c.Opened(s.service, s.id)
	switch {
	case svc == nil:
		b.fail("C8: an OPEN names service %d, which the bridge of %s does not have", s.service, l)
		return
	case svc.Public != b.publics[s.service]:
		b.fail("C8: a user of service %d comes to %s, which was %s", s.service, svc.Public, b.publics[s.service])
	case svc.TargetName() != b.targets[s.service]:
		b.fail("C8: a user of service %d comes to %s, want %s", s.service, svc.TargetName(), b.targets[s.service])
	case svc.Public.Kind != "offered" && (public != svc.Public || s.user.name != svc.Public):
		b.fail("C8: a user of %s comes to %s, which is %s for the bridge", s.user.name, svc.Public, public)
	}
	b.stats.Served++
	if retired != nil {
		b.stats.ServedRetired++
	}
}

// time passes. What has waited long on a slot with a connection arrives. A slot without one that nothing waits for is at rest: the
// proxy would say that a stream is there, while slot 0 has a connection.
func (l *simLink) time() {
	for _, sl := range l.slots {
		if sl.down && (len(sl.flight) > 0 || !l.control) {
			continue
		}
		for len(sl.flight) > 0 && sl.flight[0].age > 0 {
			sl.deliver()
		}
		for _, s := range sl.flight {
			s.age++
		}
		if l.present() {
			l.u.c.Tick(sl.number, simTick)
		}
	}
}

// simTick is less than half of claims.RetireAfter: an OPEN arrives within two of them.
const simTick = claims.RetireAfter * 2 / 5

// lieToProxy claims an id that was given back.
func (l *simLink) lieToProxy() {
	if l.ended || len(l.gone) == 0 || l.p.r.core.sessions[l.id] == nil {
		return
	}
	l.p.stats.Lies++
	id := l.gone[l.p.pick("which id", len(l.gone))]
	before := l.p.r.core.derived()
	if err := l.p.r.Claim(l.id, id, Claim{Public: "tcp/9000"}); err == nil {
		l.p.fail("C7: id %d of %s was given back, and is used again", id, l)
	}
	if l.p.r.core.derived() != before {
		l.p.fail("C5: what %s must not say changes something", l)
	}
}

// lieToBridge opens a stream to a service that was given back, above the marks. It asks a copy of the bridge what would happen.
func (l *simLink) lieToBridge() {
	if !l.present() || len(l.gone) == 0 {
		return
	}
	id := l.gone[l.p.pick("which id", len(l.gone))]
	marks, told := l.marks[id]
	if !told {
		return
	}
	l.p.stats.Lies++
	sl := l.slot()
	above := sl.arrived
	for _, m := range marks {
		if m.Slot == sl.number {
			above = max(above, m.Stream)
		}
	}
	copied, err := claims.Thaw(l.u.b.s.Freeze())
	if err != nil {
		l.p.fail("C11: %v", err)
		return
	}
	c := copied.Links()[l.u.index()]
	if svc, _ := c.Opened(id, (above>>8+1)<<8|uint64(sl.number)); svc != nil {
		l.p.fail("C8: a stream above the marks of service %d is served", id)
	}
	if c.Unclaimed(1<<31, nil) == nil {
		l.p.fail("C8: a service that was never claimed is given back")
	}
}

// sayTo puts what a bridge has to say of a claim into a frame as a bridge would that knows groups, weights and health.
func (b *simBridge) frame(f claims.Say) []byte {
	raw := f.Append(nil)
	if f.Kind != claims.SayClaim {
		return raw
	}
	fr, _, err := wire.Parse(raw)
	if err != nil {
		b.fail("CLAIM %d: %v", f.ID, err)
		return raw
	}
	id, c, err := wire.ParseClaim(fr)
	if err != nil || id != f.ID {
		b.fail("CLAIM %d is read as %d: %v", f.ID, id, err)
	}
	a := b.attrs[f.ID]
	c.Weight, c.Drained, c.Group = a.Weight, a.Drained, a.Group
	if a.Unhealthy {
		c.Health = wire.HealthBad
	}
	return wire.AppendClaim(nil, id, c)
}
