package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"reverser/internal/route"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// forward makes a pair of one user's connection: find the bridge, open a stream, bind both. The pair goes on by itself.
func (p *Proxy) forward(ln *listener, a *traffic.Admission, conn net.Conn) {
	var head []byte
	if ln.probing() {
		var probe bool
		if head, probe = p.answerProbe(ln, conn); probe {
			return
		}
	}
	s, target, err := ln.dest.Open(a.Hold(), wire.Open{Client: a.Client(), Local: traffic.AddrPort(conn.LocalAddr())},
		func() bool { return a.Ended() || sys.Gone(conn) })
	if err != nil {
		traffic.Reset(conn)
		why, said := refusal(err)
		a.Refuse(why, said, "service", a.Service(), "client", conn.RemoteAddr().String(), "err", err)
		return
	}
	a.Bind(conn, s, head, target)
}

// refusal is how a user who got no stream is counted, and what the log says of it; "": nothing.
func refusal(err error) (why traffic.Refusal, said string) {
	switch {
	case errors.Is(err, context.Canceled):
		return traffic.RefusedDrain, ""
	case errors.Is(err, route.ErrRemoved):
		return traffic.RefusedRemoved, ""
	case errors.Is(err, route.ErrLeft):
		return traffic.RefusedLeft, ""
	case errors.Is(err, route.ErrAway):
		return traffic.RefusedAway, "client refused"
	}
	return traffic.RefusedLimit, "client refused" // the bridge has no room
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
			traffic.Reset(conn)
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
