package bridge

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"reverser/internal/claims"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/proxyproto"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

var errDials = errors.New("as many targets are being dialled as may be at once, or as the descriptor limit allows")

// Opened implements link.Owner: a user connected at the proxy. The number of the service is all that the proxy decides.
func (u *uplink) Opened(s *link.Stream) {
	b := u.b
	svc, public := u.service(s.Link(), s.Open().Service, s.ID())
	if svc == nil {
		s.Reset(wire.CodeService)
		return
	}
	a, err := b.conns.Admit(b.conns.Account(b.cfg.Token.KeyID, public.String()), s.Open().Client, traffic.NoWait)
	switch {
	case errors.Is(err, traffic.ErrDraining):
		s.Reset(wire.CodeDrain)
	case err != nil:
		s.Reset(wire.CodeLimit)
	case !b.mayStay(svc.ID, a):
		a.Leave()
		s.Reset(wire.CodeService)
	case svc.TLS != nil:
		b.serveTLS(a, s, svc.Service)
	case !a.Dial():
		refuseDial(a, s)
	default:
		a.Go(func() { b.serve(a, s, svc.Service) })
	}
}

// refuseDial refuses a user whose target is one too many to be dialled.
func refuseDial(a *traffic.Admission, s *link.Stream) {
	a.Refuse(traffic.RefusedDials, "client refused", "service", a.Service(), "client", a.ClientName(), "err", errDials)
	s.Reset(wire.CodeLimit)
}

// service returns what a stream that the proxy opened is for, and the public name that the user came to; nil: it is for
// nothing that this bridge offers.
func (u *uplink) service(l *link.Link, id uint32, stream uint64) (svc *claims.Offered, public grammar.Public) {
	u.b.mu.Lock()
	defer u.b.mu.Unlock()
	if i := u.besideLocked(l); i >= 0 {
		svc, public = u.leaving[i].claims.Opened(id, stream)
	} else if u.beginLocked(l) {
		svc, public = u.claims.Opened(id, stream)
	}
	if _, yes := u.b.servesLocked(id); !yes { // the time of its removal is over
		return nil, public
	}
	return svc, public
}

// serve connects a stream to its service. The pair goes on by itself.
func (b *Bridge) serve(a *traffic.Admission, s *link.Stream, svc Service) {
	if svc.Handle != nil {
		a.Dialled()
		svc.Handle(s)
		return
	}
	if conn := b.reach(a, s, svc); conn != nil {
		a.Bind(conn, s, nil, svc.TargetName())
	}
}

// reach connects to the target of a service, or resets the stream and returns nil. It ends what a.Dial began.
func (b *Bridge) reach(a *traffic.Admission, s *link.Stream, svc Service) net.Conn {
	conn, err := b.dialTarget(svc, s.Open())
	a.Dialled()
	switch {
	case err == nil:
		a.Reached()
		return conn
	case b.ctx.Err() == nil:
		why := traffic.RefusedUnreachable
		if sys.Refused(err) {
			why = traffic.RefusedTarget
		}
		args := []any{"service", a.Service(), "client", a.ClientName(), "target", svc.TargetName(), "err", err}
		if id := s.Open().Rest().Trace; id != [16]byte{} { // the proxy, and the page that its client sees, have the same
			args = append(args, "request", hex.EncodeToString(id[:]))
		}
		a.NotReached(why, err)
		a.Refuse(why, "target cannot be reached, the client gets a reset", args...)
	}
	s.Reset(targetCode(err))
	return nil
}

// dialTime bounds the connect to a target.
const dialTime = 10 * time.Second

// dialTarget connects to the real server of a service, and tells it whose connection it is, if the service says so. That comes before
// anything of the user's, who may never say anything.
func (b *Bridge) dialTarget(svc Service, o wire.Open) (net.Conn, error) {
	conn, err := b.connect(svc, o.Client.Addr())
	if err != nil || svc.Options.ProxyProtocol == 0 {
		return conn, err
	}
	header := proxyproto.Append(nil, svc.Options.ProxyProtocol, proxyproto.Header{Client: o.Client, Local: o.Local})
	if _, err := conn.Write(header); err != nil { // a new connection has room for it
		traffic.Reset(conn)
		return nil, fmt.Errorf("send the header of the PROXY protocol: %w", err)
	}
	return conn, nil
}

// connect dials a target. A user whose address is not known, such as a balancer that looks whether all works, has that of the bridge.
func (b *Bridge) connect(svc Service, user netip.Addr) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(b.ctx, dialTime)
	defer cancel()
	if !svc.Options.Transparent || !user.IsValid() {
		return b.targets.Dial(ctx, svc.Target.Network, svc.Target.Address)
	}
	conn, err := b.targets.DialAs(ctx, user, svc.Target.Network, svc.Target.Address)
	at := dialled(err)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() && at.IsValid() {
		err = fmt.Errorf("%w: with transparent = true, its answers to %s have to come back here: %s", err, user.Unmap(), sys.TransparentRoutes(at))
	}
	return conn, err
}

// dialled is the address of the target that a dial was about; the zero value if there is none.
func dialled(err error) netip.Addr {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Addr != nil {
		return traffic.AddrPort(op.Addr).Addr()
	}
	return netip.Addr{}
}

// targetCode is the code of the reset that a user gets when the target was not connected.
func targetCode(err error) wire.Code {
	if sys.Refused(err) {
		return wire.CodeRefused
	}
	return wire.CodeUnreachable
}
