package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"reverser/internal/auth"
	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/registry"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// namePort is the port that names share: a client that connects says first which name it wants. The link may share it too.
type namePort struct {
	ln   net.Listener // nil: there is none. It may be the link port's
	gate *gate        // for those who have not said it yet
	tls  *tls.Config  // for https/ names

	hellos entrance.Hellos
	short  *traffic.Strain // for want of memory for long ones

	handshakes *traffic.Handshakes // of those whose TLS ends here

	addresses atomic.Int32                      // how many https/ names are IP addresses
	away      atomic.Pointer[map[string]string] // see secureAway; nil: not known yet
}

func (p *Proxy) listenNames() (err error) {
	if p.cfg.HTTPS == "" {
		return nil
	}
	p.names.gate = newNamesGate(p.port.descriptors.Size(sys.ForHellos), p.cfg.Strangers, p.balancers.has)
	p.names.gate.about = "connections to the port of names (https) that reached no service"
	p.names.gate.room.known.load(p.cfg.KnownUsers, time.Now())
	p.names.gate.what = what{
		places: "places at the port of names (https) for who has said none",
		port:   "the port of names (https)",
	}
	if p.namesAtLink() {
		p.names.ln = p.port.ln
		return nil
	}
	if p.names.ln, err = sys.Listen(grammar.ListenNetwork("tcp", p.cfg.HTTPS), p.cfg.HTTPS); err != nil {
		return fmt.Errorf("open the port of names (https %s): %w", p.cfg.HTTPS, err)
	}
	return nil
}

// namesAtLink reports whether the port of names is the link port.
func (p *Proxy) namesAtLink() bool {
	return p.cfg.HTTPS == p.cfg.Listen && grammar.PortOf(p.cfg.Listen, 0) != 0 // port 0 is another one each time
}

// acceptNames accepts users, who say the name of their service first, and bridges, whose ALPN says what they are. Until then, each takes
// a descriptor for hellos and a place at the gate, which closes silent connections when others come.
func (p *Proxy) acceptNames(ln net.Listener) {
	p.acceptThrough(p.names.gate, ln, 0, sys.ForHellos, p.conns.Short(), func(conn net.Conn, pass *pass) {
		defer p.port.descriptors.Give(sys.ForHellos) // behind its admission, which takes one of its own
		user, err := p.introduced(conn, pass)
		var hello *entrance.Hello
		if err == nil {
			conn = user
			hello, err = p.names.hellos.Read(conn)
		}
		defer hello.Done() // a user of a service, or a connection of the link, is not bound by what strangers may take
		if err == nil && p.asksForProof(hello) {
			p.prove(conn, hello)
			pass.leave(false)
			return
		}
		if err == nil && !slices.Contains(hello.ALPN, auth.ALPN) && p.endsTLS(hello) {
			p.serveSecure(conn, hello, pass)
			return
		}
		if err == nil && slices.Contains(hello.ALPN, auth.ALPN) {
			if gone := pass.leaveFor(); gone != nil {
				pass.ends(false)
				conn.Close()
				return
			}
			p.linkGreeted(conn, hello, pass)
			return
		}
		var rt *registry.Route
		if err == nil {
			rt = p.findPassed(hello)
		}
		if gone := pass.leave(rt != nil); gone != nil {
			conn.Close()
			return
		}
		if err != nil {
			traffic.Reset(conn)
			if errors.Is(err, entrance.ErrNoHello) || errors.Is(err, entrance.ErrNoRoom) || errors.Is(err, os.ErrDeadlineExceeded) { // else it was a scan or a balancer's check
				p.names.gate.report(p.log, conn.RemoteAddr(), err)
			}
			return
		}
		p.greeted(rt, conn, hello)
	})
}

// linkGreeted takes a connection of the link, whatever name it says, to the door of the link. There it is as if it had just come, and if it
// proves no key there, it has reached no service here.
func (p *Proxy) linkGreeted(conn net.Conn, hello *entrance.Hello, port *pass) {
	sys.Plain(conn)
	if pool := p.port.descriptors; !pool.Take(sys.ForLinks) {
		p.port.short.Note(traffic.ErrNoDescriptor)
		traffic.Reset(conn)
	} else if pass := p.port.gate.enter(p.log, conn); pass == nil {
		pool.Give(sys.ForLinks)
	} else {
		pass.begun, pass.port = hello.Read, port
		p.wg.Go(func() { p.serveLink(conn, pass) })
	}
}

// findPassed returns the most specific service that has the name that a user said; nil: there is none.
func (p *Proxy) findPassed(hello *entrance.Hello) *registry.Route {
	host, _ := grammar.RequestHost(hello.Name)
	return p.find(grammar.KindTLS, host, "")
}

// greeted takes a user who has said a name to the service that has it; nil: there is none.
func (p *Proxy) greeted(rt *registry.Route, conn net.Conn, hello *entrance.Hello) {
	if rt == nil {
		p.names.gate.report(p.log, conn.RemoteAddr(), fmt.Errorf("no service has the name %q", hello.Name))
		conn.Write(entrance.Unrecognized) // a new connection has room for seven bytes
		traffic.Close(conn)
		return
	}
	a, err := p.conns.Admit(p.service(rt).account, entrance.Client(conn), traffic.Wait)
	if err != nil {
		traffic.Reset(conn)
		return
	}
	a.Go(func() { p.forward(rt, a, conn, wire.EntranceTLS, hello.Read) })
}
