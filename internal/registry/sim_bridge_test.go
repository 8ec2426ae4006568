package registry

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"reverser/internal/claims"
	"reverser/internal/grammar"
)

// simBridge is the process of a bridge.
type simBridge struct {
	*sim
	key      int
	instance byte
	s        *claims.Services
	uplinks  []*simUplink // one for each proxy
	attrs    map[uint32]Claim
	publics  map[uint32]grammar.Public // that each id means, for ever
	targets  map[uint32]string         // the last target of each id
}

// simUplink is a bridge's way to one proxy.
type simUplink struct {
	b    *simBridge
	p    *simProxy
	c    *claims.Link
	link *simLink // nil: no session
}

func (u *simUplink) index() int { return slices.Index(u.b.uplinks, u) }

// restart is another process: its sessions are over, whether its proxies notice or not.
func (b *simBridge) restart() {
	b.instance++
	b.trace("bridge of key %d restarts", b.key)
	b.s = claims.New()
	b.attrs, b.publics, b.targets = make(map[uint32]Claim), make(map[uint32]grammar.Public), make(map[uint32]string)
	for _, u := range b.uplinks {
		if l := u.link; l != nil {
			if b.pick("the proxy notices", 2) == 0 {
				l.end()
			} else {
				u.link = nil
				l.lose()
			}
		}
		u.c = b.s.AddLink()
	}
	for _, o := range b.bridges {
		if o != b && o.key == b.key && o.s != nil && b.pick("the same services", 2) == 0 {
			b.apply(o.services())
			return
		}
	}
	b.reload()
}

// services are the present settings.
func (b *simBridge) services() (all []claims.Service) {
	for _, id := range b.s.IDs() {
		all = append(all, b.s.Offered(id).Service)
	}
	return all
}

// reload takes other settings: services go, come, and lead elsewhere.
func (b *simBridge) reload() {
	b.stats.Reloads++
	var want []claims.Service
	for _, svc := range b.services() {
		switch b.pick("service", 8) {
		case 0:
		case 1, 2:
			svc.Target = b.target()
			want = append(want, svc)
		default:
			want = append(want, svc)
		}
	}
	for range 1 + b.pick("more", 3) {
		public, _ := grammar.ParsePublic(simNames[b.pick("name", len(simNames))])
		if !slices.ContainsFunc(want, func(s claims.Service) bool { return s.Public == public }) {
			want = append(want, claims.Service{Public: public, Target: b.target()})
		}
	}
	b.apply(want)
}

func (b *simBridge) target() grammar.Target {
	return grammar.Target{Network: "tcp", Address: fmt.Sprintf("t:%d", 1+b.pick("target", 3))}
}

// withdraw is a reload that only takes one service away.
func (b *simBridge) withdraw(id uint32) {
	var want []claims.Service
	for _, i := range b.s.IDs() {
		if i != id {
			want = append(want, b.s.Offered(i).Service)
		}
	}
	if len(want) == len(b.s.IDs()) {
		return // it went before
	}
	b.trace("service %d of key %d goes", id, b.key)
	b.apply(want)
}

func (b *simBridge) apply(want []claims.Service) {
	before := make(map[grammar.Public]uint32)
	for _, id := range b.s.IDs() {
		before[b.s.Offered(id).Public] = id
	}
	if _, err := b.s.Apply(want); err != nil {
		b.fail("C5: Apply: %v", err)
	}
	if n := len(b.s.IDs()); n != len(want) {
		b.fail("C5: %d services are offered, want %d", n, len(want))
	}
	for _, w := range want {
		svc := b.s.Find(w.Public)
		if svc == nil || b.s.Offered(svc.ID) != svc || svc.Target != w.Target {
			b.fail("C5: %s is not offered as it should be", w.Public)
			return
		}
		was, stayed := before[w.Public]
		if stayed && was != svc.ID {
			b.fail("C5: %s had id %d, and has %d", w.Public, was, svc.ID)
		}
		if p, used := b.publics[svc.ID]; used && (p != w.Public || !stayed) {
			b.fail("C7: id %d means %s, and meant %s before", svc.ID, w.Public, p)
		}
		if !stayed {
			b.attrs[svc.ID] = b.attributes()
		}
		b.publics[svc.ID], b.targets[svc.ID] = w.Public, svc.TargetName()
	}
	for _, u := range b.uplinks {
		u.pump()
	}
}

func (b *simBridge) badReload() {
	if len(b.s.IDs()) == 0 {
		return
	}
	want := b.services()
	before := b.s.Freeze()
	if _, err := b.s.Apply(append(want[1:], claims.Service{Public: grammar.Public{Kind: grammar.KindTCP, Port: 7}}, want[len(want)-1], want[len(want)-1])); err == nil {
		b.fail("C5: two services of one PUBLIC were taken")
	}
	if !reflect.DeepEqual(before, b.s.Freeze()) {
		b.fail("C5: a bad reload changed something")
	}
	for _, u := range b.uplinks {
		if n := len(u.c.Take()); n != 0 {
			b.fail("C5: a bad reload says %d frames", n)
		}
	}
}

func (b *simBridge) attributes() Claim {
	return Claim{
		Weight: uint32(b.pick("weight", 3)), Unhealthy: b.pick("unhealthy", 4) == 0, Drained: b.pick("drained", 8) == 0,
		Group: []string{"", "g"}[b.pick("group", 2)],
	}
}

// alter changes what a later bridge will say of a service: its weight, health and group.
func (b *simBridge) alter() {
	ids := b.s.IDs()
	if len(ids) == 0 {
		return
	}
	id := ids[b.pick("service", len(ids))]
	b.attrs[id] = b.attributes()
	for _, u := range b.uplinks {
		if u.link != nil && u.link.control {
			f := claims.Say{Kind: claims.SayClaim, ID: id, Service: b.s.Offered(id)}
			u.link.toProxy.say(f.Name(), b.frame(f))
		}
	}
}

// pump gives the control connection what there is to say.
func (u *simUplink) pump() {
	for _, f := range u.c.Take() {
		switch {
		case u.link == nil:
			u.b.fail("C14: a frame waits for a session that there is not")
		case u.link.control:
			u.link.toProxy.say(f.Name(), u.b.frame(f))
		}
	}
}

// handover puts another process in the place of the present one. To the proxies it looks like a break of every slot.
func (b *simBridge) handover() {
	b.trace("bridge of key %d is handed over", b.key)
	b.stats.BridgeHandovers++
	for _, u := range b.uplinks {
		if u.link != nil {
			u.link.control, u.link.toProxy, u.link.toBridge = false, simQueue{}, simQueue{}
		}
	}
	s := b.thaw()
	if s == nil {
		return
	}
	b.s = s
	for i, u := range b.uplinks {
		u.c = s.Links()[i]
	}
}

// thaw returns what a successor makes of the state.
func (b *simBridge) thaw() *claims.Services {
	f := b.s.Freeze()
	doc, _ := json.Marshal(f)
	var g claims.Frozen
	if err := json.Unmarshal(doc, &g); err != nil {
		b.fail("C11: %v", err)
		return nil
	}
	s, err := claims.Thaw(g)
	if err != nil {
		b.fail("C11: %v", err)
		return nil
	}
	if again, _ := json.Marshal(s.Freeze()); string(again) != string(doc) {
		b.fail("C11: the successor has\n%s\nand the bridge had\n%s", again, doc)
	}
	return s
}

// giveUpHandover does the steps of a hand-over up to one of them, and goes on.
func (b *simBridge) giveUpHandover() {
	b.stats.GivenUp++
	before, _ := json.Marshal(b.s.Freeze())
	switch b.pick("given up after", 3) {
	case 0: // the state was written
		b.s.Freeze()
	case 1: // it was read
		b.thaw()
	case 2: // the successor has begun
		if s := b.thaw(); s != nil {
			for _, c := range s.Links() {
				c.Attached()
				c.Take()
			}
		}
	}
	if after, _ := json.Marshal(b.s.Freeze()); string(after) != string(before) {
		b.fail("C11: a hand-over that was given up leaves\n%s\nand there was\n%s", after, before)
	}
}

// attach says everything again, as it is when slot 0 has a connection.
func (l *simLink) attach() {
	l.control = true
	l.u.c.Attached()
	l.u.pump()
}

// connect lets a bridge begin a session, or attach slot 0 again.
func (u *simUplink) connect() {
	if l := u.link; l != nil {
		if !l.control {
			u.b.trace("%s: slot 0 is back", l)
			l.attach()
		}
		return
	}
	var old *simLink
	for _, l := range u.p.links {
		if l.key == u.b.key && !l.leaving {
			old = l
		}
	}
	if old != nil && old.up && u.b.pick("still alive", 4) > 0 {
		return // refused
	}
	u.begin(old)
}

// begin begins a session, in the place of another one if old is not nil.
func (u *simUplink) begin(old *simLink) {
	b, p := u.b, u.p
	l := &simLink{p: p, u: u, key: b.key}
	l.init()
	s := Session{Key: KeyID{byte(b.key + 1)}, Peer: "host", Instance: [16]byte{b.instance}, Way: l}
	before := make(map[pub]*Route)
	if old != nil {
		s.Replaces = old.id
		for n := range p.r.View().All {
			if name := p.r.core.names[n.Public]; name.held.key == s.Key {
				before[n.Public] = n
			}
		}
	}
	alone := !slices.ContainsFunc(p.links, func(o *simLink) bool { return o != old && o.key == b.key })
	id, err := p.r.Begin(s)
	if err != nil {
		b.trace("no session for key %d: %v", b.key, err)
		return
	}
	l.id, u.link = id, l
	p.links = append(p.links, l)
	b.trace("%s begins, in the place of %d", l, s.Replaces)
	if old != nil {
		b.stats.Replaced++
		for _, n := range sortedNames(maps.Clone(before)) {
			if p.r.View().Find(n) != before[n] && alone {
				b.fail("C5: %s lost its route when its session was replaced", n)
			}
		}
		old.end()
	} else if !alone {
		b.stats.Successors++
	}
	l.attach()
	if b.pick("carriers", 3) > 0 {
		l.up = true
		p.r.LinkUp(l.id, true)
	}
}
