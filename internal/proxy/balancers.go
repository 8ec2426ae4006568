package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"

	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/registry"
	"reverser/internal/sys"
	"reverser/internal/traffic"
)

// balancers are those who stand between users and the public ports, and say by a header of the PROXY protocol whose connection one is. A
// header is required from their addresses, and never read from others: there, the bytes are the user's.
type balancers struct {
	from atomic.Pointer[[]netip.Prefix] // of the settings
	gate *gate                          // for connections to tcp ports whose header has not come yet
}

// sent reports whether a connection comes from a balancer.
func (b *balancers) sent(conn net.Conn) bool {
	return b.has(traffic.AddrPort(conn.RemoteAddr()).Addr())
}

// has reports whether an address is a balancer's.
func (b *balancers) has(ip netip.Addr) bool {
	from := b.from.Load()
	if from == nil || len(*from) == 0 {
		return false
	}
	ip = ip.WithZone("")
	for _, p := range *from {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// introduced returns the connection with the addresses of its header, if it comes from a balancer, and else the connection as it is. The
// gate is told whose it is. Every port for names calls it before anything else is read. Whoever gets an error resets the connection.
func (p *Proxy) introduced(conn net.Conn, pass *pass) (net.Conn, error) {
	if !p.balancers.sent(conn) {
		return conn, nil
	}
	user, _, err := p.balancers.readHeader(conn)
	if errors.Is(err, entrance.ErrNoHeader) {
		p.balancers.gate.report(p.log, conn.RemoteAddr(), err)
	}
	if err != nil {
		return nil, err
	}
	return user, pass.introduced(user)
}

// errReconfigured ends a connection whose header was read under settings that are no longer in force.
var errReconfigured = errors.New("its address is none of proxy_protocol_from any more")

// readHeader is entrance.ReadHeader for a connection of a balancer.
func (b *balancers) readHeader(conn net.Conn) (user net.Conn, read []byte, err error) {
	user, read, err = entrance.ReadHeader(conn)
	if err == nil && !b.sent(conn) {
		return nil, nil, errReconfigured
	}
	return user, read, err
}

// arrivedBalanced is arrived for a connection of a balancer. Until its header is there, it takes a descriptor for users and a place at a
// gate, and nobody waits for it.
func (p *Proxy) arrivedBalanced(name grammar.Public, rt *registry.Route, conn net.Conn) {
	pool := p.port.descriptors
	p.conns.AwaitTurn(p.service(rt).account)
	if !pool.Acquire(p.life.ctx, sys.ForUsers) {
		conn.Close()
		return
	}
	pass := p.balancers.gate.enter(p.log, conn)
	if pass == nil {
		pool.Give(sys.ForUsers)
		return
	}
	p.wg.Go(func() {
		defer pool.Give(sys.ForUsers) // behind the user's admission, which takes one of its own
		p.awaitHeader(name, conn, pass)
	})
}

// awaitHeader takes a connection of a balancer when its header is there. A bridge that proves its port from such an address shows its
// nonce in place of a header.
func (p *Proxy) awaitHeader(name grammar.Public, conn net.Conn, pass *pass) {
	user, read, err := p.balancers.readHeader(conn)
	gone := pass.leave(false)
	rt := p.registry.View().Find(name)
	switch {
	case gone != nil:
		conn.Close()
	case rt == nil:
		traffic.Reset(conn)
	case err == nil:
		p.enter(rt, p.service(rt).account, user)
	case !errors.Is(err, entrance.ErrNoHeader): // it has gone, as a check of the port does
		traffic.Reset(conn)
	case !p.service(rt).probes.AnswerBegun(conn, read):
		p.balancers.gate.report(p.log, conn.RemoteAddr(), err)
		p.service(rt).account.TurnAway(traffic.RefusedHeader)
		traffic.Reset(conn)
	}
}
