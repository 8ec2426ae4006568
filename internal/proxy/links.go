package proxy

import (
	"errors"
	"log/slog"
	"net"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
	"reverser/internal/sys"
	"reverser/internal/traffic"
)

// linkCrowd is a crowd at the link port (traffic.Accept). It is wide: the kernel's queue, in which nobody goes first, must not hold back a
// bridge, and 16,000 strangers a second pass it at one processor. But a flood of even more leaves the processors room for users.
const linkCrowd = 2 * traffic.Crowd

// acceptLinks takes connections of bridges. Nothing that a stranger does may hold it up: everything else happens in the
// connection's own goroutine, under the gate's limits.
func (p *Proxy) acceptLinks(ln net.Listener) {
	p.acceptThrough(p.port.gate, ln, linkCrowd, sys.ForLinks, p.port.short, p.serveLink)
}

// serveLink attaches a connection and serves it, in a goroutine of its own. It has a descriptor for links to give back.
func (p *Proxy) serveLink(conn net.Conn, pass *pass) {
	pool := p.port.descriptors
	serve := p.attachLink(conn, pass)
	if serve == nil {
		pool.Give(sys.ForLinks)
		return
	}
	p.wg.Go(func() {
		defer pool.Give(sys.ForLinks)
		serve()
	})
}

// acceptThrough calls begin for each connection that a gate lets in, in a goroutine of its own, which has a descriptor of the use to give
// back. crowd is as in traffic.Accept. Keys share all ports that have a gate: it is wide there, or 0.
func (p *Proxy) acceptThrough(g *gate, ln net.Listener, crowd int, use sys.Use, short *traffic.Strain, begin func(net.Conn, *pass)) {
	pool := p.port.descriptors
	traffic.Accept(p.life.ctx, traffic.Reserve(p.life.ctx, ln, pool, use, short), crowd, p.log, func(conn net.Conn) {
		pass := g.enter(p.log, conn)
		if pass == nil {
			pool.Give(use)
			return
		}
		p.wg.Go(func() { begin(conn, pass) })
	})
}

// attachLink authenticates a connection and attaches it to its link. serve serves it; it is nil where there is nothing to serve.
func (p *Proxy) attachLink(conn net.Conn, pass *pass) (serve func()) {
	begun := time.Now()
	ac, err := auth.ServerSteps(conn, p.port.tls, p.port.auth, pass.steps())
	gone := pass.leave(err == nil)
	if err == nil {
		p.port.handshakes.add(time.Since(begun))
	}
	if err != nil {
		if gone != nil {
			err = gone
		}
		p.port.gate.report(p.log, conn.RemoteAddr(), err)
		return nil
	}
	if p.life.ctx.Err() != nil {
		conn.Close()
		return nil
	}
	id, remote := ac.KeyID, conn.RemoteAddr()
	run, err := p.port.host.Attach(ac)
	if errors.Is(err, link.ErrDuplicate) {
		p.reportDuplicate(id, remote)
	}
	ended := func(err error) {
		p.say.Say(slog.LevelDebug, id, "link connection ended", "key", p.logName(id), "remote", remote.String(), "err", err)
	}
	if err != nil {
		ended(err)
		return nil
	}
	p.port.tidier.attached()
	return func() { ended(run()) }
}

// reportDuplicate logs that a second bridge uses a key, at most once in reportStrangersPer for each key. The two bridges may have
// different operators.
func (p *Proxy) reportDuplicate(id [16]byte, remote net.Addr) {
	now := time.Now()
	p.mu.Lock()
	recent := now.Sub(p.duplicates[id]) < reportStrangersPer
	key, known := p.keys[id]
	if !recent && known {
		p.duplicates[id] = now
	}
	p.mu.Unlock()
	if recent || !known {
		return
	}
	by := "a bridge that is away"
	if l := p.port.host.Link(id); l != nil && l.RemoteAddr() != nil {
		by = l.RemoteAddr().String()
	}
	p.say.Say(slog.LevelWarn, id, "second bridge with a key that is in use, refused: give each bridge a key of its own (reverser key add NAME --allow ...)",
		"key", key.Name, "remote", remote.String(), "used_by", by)
}
