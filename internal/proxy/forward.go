package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"reverser/internal/relay"
	"reverser/internal/route"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// pair is one user's connection on its way to a bridge.
type pair struct {
	relay.Entry
	key [16]byte
}

// forward makes a pair of one user's connection: find the bridge, open a stream, bind both, and say so. The pair goes on by
// itself. false: the connection is not, or not to be, served.
func (p *Proxy) forward(ln *listener, conn net.Conn) bool {
	var head []byte
	if ln.probing() {
		var probe bool
		if head, probe = p.answerProbe(ln, conn); probe {
			return false
		}
	}
	s, target, err := ln.dest.Open(p.holding, wire.Open{Client: addrPort(conn.RemoteAddr()), Local: addrPort(conn.LocalAddr())},
		func() bool { return sys.Gone(conn) })
	if err != nil {
		refuse(conn)
		if !errors.Is(err, context.Canceled) && !errors.Is(err, route.ErrRemoved) && !errors.Is(err, route.ErrLeft) {
			p.log.Warn("client refused", "service", ln.dest.Public.String(), "client", conn.RemoteAddr().String(), "err", err)
		}
		return false
	}
	pr := &pair{key: ln.dest.Key, Entry: relay.Entry{
		Pair: relay.New(relay.Client, conn, s, head), ID: p.pairSeq.Add(1), Since: time.Now(),
		Service: ln.dest.Public.String(), Target: target, Client: conn.RemoteAddr().String(),
	}}
	p.mu.Lock()
	p.pairs[pr] = struct{}{}
	p.mu.Unlock()
	pr.Created(p.log)
	p.wg.Add(1)
	pr.Start(&p.poller, func(reason relay.Reason) {
		defer p.wg.Done()
		pr.Released(p.log, reason)
		<-p.conns
		p.leave(pr)
	})
	return true
}

// endPairs ends the chosen pairs with RST.
func (p *Proxy) endPairs(reason relay.Reason, code wire.Code, which func(*pair) bool) {
	p.mu.Lock()
	var end []*pair
	for pr := range p.pairs {
		if which(pr) {
			end = append(end, pr)
		}
	}
	p.mu.Unlock()
	for _, pr := range end {
		pr.End(reason, code)
	}
}

// probeOthers is how long a client that says nothing is taken for a probe when it comes from elsewhere than the bridge's
// link: a bridge may leave by two ways, but it begins to speak at once.
const probeOthers = 300 * time.Millisecond

// answerProbe answers a bridge that proves its public port, and tells it from a user by the first bytes. It waits for
// them only while a probe is expected, a few milliseconds after a claim, and returns what it read of a user's, or that the
// connection is over.
func (p *Proxy) answerProbe(ln *listener, conn net.Conn) (got []byte, over bool) {
	buf := make([]byte, 16)
	patience := probeOthers
	if l, _, _ := ln.dest.Link(); network(conn.RemoteAddr()) == network(l.RemoteAddr()) {
		patience = probeTime
	}
	deadline := time.Now().Add(patience)
	for ln.probing() && time.Now().Before(deadline) && p.ctx.Err() == nil {
		conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, err := conn.Read(buf[:16-len(got)])
		got = append(got, buf[:n]...)
		var timeout net.Error
		if errors.Is(err, io.EOF) {
			break // a user who is finished: the pair finds out by itself
		}
		if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
			// This read took the reset off the socket: a pair would see a clean end.
			refuse(conn)
			return nil, true
		}
		if len(got) == 0 {
			continue
		}
		prefix, answer, whole := ln.match(got)
		if whole {
			conn.SetDeadline(time.Now().Add(time.Second))
			conn.Write(answer[:])
			if c, ok := conn.(*net.TCPConn); ok {
				c.SetLinger(-1)
				c.CloseWrite()
				io.Copy(io.Discard, c)
			}
			conn.Close()
			return nil, true
		}
		if !prefix {
			break
		}
	}
	conn.SetReadDeadline(time.Time{})
	return got, false
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
