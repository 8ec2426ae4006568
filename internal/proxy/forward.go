package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/registry"
	"reverser/internal/share"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// checkTime is how long a balancer's own connection is waited for. Tests wait longer, or shorter.
var checkTime = entrance.CheckTime

// arrived takes a user's connection to a name. While the key has its share of the descriptors, it waits for a place: the rest waits
// in the kernel, and bridges and operators still get in. A client that has its share is refused: others would wait behind it.
func (p *Proxy) arrived(name grammar.Public, conn net.Conn) {
	rt := p.registry.View().Find(name)
	if rt == nil { // the service was removed in this moment
		traffic.Reset(conn)
		return
	}
	if p.balancers.sent(conn) {
		p.arrivedBalanced(name, rt, conn)
		return
	}
	if account := p.service(rt).account; !p.enter(rt, account, conn) {
		p.conns.AwaitTurn(account)
	}
}

// enter lets a user in to a name. It returns false if the key or all keys have as many as they may: others should wait.
func (p *Proxy) enter(rt *registry.Route, account *traffic.Account, conn net.Conn) bool {
	a, err := p.conns.Admit(account, entrance.Client(conn), traffic.Wait)
	if err != nil {
		traffic.Reset(conn)
		return !errors.Is(err, traffic.ErrFull) && !errors.Is(err, traffic.ErrKeyShare)
	}
	a.Go(func() {
		var head []byte
		var over bool
		if probes := &p.service(rt).probes; probes.Expected() {
			if head, over = probes.Answer(p.life.ctx, conn, near(rt, conn)); over {
				return
			}
		}
		if len(head) == 0 {
			if head, over = entrance.Checked(conn, checkTime); over {
				return
			}
		}
		p.forward(rt, a, conn, wire.EntranceTCP, head)
	})
	return true
}

// forward makes a pair of one user's connection, of which head was read: find a bridge, open a stream, bind both. The pair goes on by
// itself.
func (p *Proxy) forward(rt *registry.Route, a *traffic.Admission, conn net.Conn, by wire.Entrance, head []byte) {
	t, err := rt.Take(a.Hold(), registry.User{
		Open: wire.Open{Client: a.Client(), Local: traffic.AddrPort(conn.LocalAddr()), Entrance: by},
		Left: func() bool { return a.Ended() || sys.Gone(conn) },
	})
	if err != nil {
		traffic.Reset(conn)
		why, said := refusal(err)
		a.Refuse(why, said, "service", a.Service(), "client", conn.RemoteAddr().String(), "err", err)
		return
	}
	a.Finally(t.Leave)
	a.Bind(conn, t.Stream, head, t.Offer.Target())
}

// network is the address block that counts as one host.
func network(a net.Addr) netip.Prefix { return share.Block(traffic.AddrPort(a).Addr()) }

// near reports whether a connection comes from where a bridge's link does.
func near(rt *registry.Route, conn net.Conn) bool {
	for w := range rt.Ways {
		if network(conn.RemoteAddr()) == network(linkOf(w).RemoteAddr()) {
			return true
		}
	}
	return false
}

// refusal returns the reason under which a user who got no stream is counted, and the log's message, or "" if nothing is logged.
func refusal(err error) (why traffic.Refusal, said string) {
	switch {
	case errors.Is(err, context.Canceled):
		return traffic.RefusedDrain, ""
	case errors.Is(err, registry.ErrDrained):
		return traffic.RefusedDrained, "client refused"
	case errors.Is(err, registry.ErrRemoved):
		return traffic.RefusedRemoved, "client refused"
	case errors.Is(err, registry.ErrLeft):
		return traffic.RefusedLeft, ""
	case errors.Is(err, registry.ErrAway):
		return traffic.RefusedAway, "client refused"
	}
	return traffic.RefusedLimit, "client refused" // the bridge has no room
}
