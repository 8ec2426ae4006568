package bridge

import (
	"context"
	"errors"
	"net"
	"time"

	"reverser/internal/link"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// Opened implements link.Owner: a user connected at the proxy. The number of the service is all that the proxy decides.
func (b *Bridge) Opened(s *link.Stream) {
	id := int(s.Open().Service)
	if id >= len(b.cfg.Services) {
		s.Reset(wire.CodeService)
		return
	}
	b.mu.Lock()
	public := b.services[id].public
	b.mu.Unlock()
	a, err := b.conns.Admit(b.conns.Account(b.cfg.Token.KeyID, public), s.Open().Client, traffic.NoWait)
	switch {
	case errors.Is(err, traffic.ErrDraining):
		s.Reset(wire.CodeDrain)
	case err != nil:
		s.Reset(wire.CodeLimit)
	case !a.Dial():
		s.Reset(wire.CodeLimit)
		a.Refuse(traffic.RefusedDials, "")
	default:
		a.Go(func() { b.serve(s, a, b.cfg.Services[id]) })
	}
}

// serve connects a stream to its service. The pair goes on by itself.
func (b *Bridge) serve(s *link.Stream, a *traffic.Admission, svc Service) {
	if svc.Handle != nil {
		a.Dialled()
		svc.Handle(s)
		return
	}
	conn, err := b.dialTarget(svc)
	a.Dialled()
	if err != nil {
		why, code := refusal(err)
		s.Reset(code)
		said := ""
		if b.ctx.Err() == nil {
			said = "target cannot be reached, the client gets a reset"
		}
		a.Refuse(why, said, "service", a.Service(), "client", a.ClientName(), "target", svc.target(), "err", err)
		return
	}
	a.Bind(conn, s, nil, svc.target())
}

// dialTime bounds the connect to a target.
const dialTime = 10 * time.Second

func (b *Bridge) dialTarget(svc Service) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(b.ctx, dialTime)
	defer cancel()
	return b.targets.Dial(ctx, svc.Target.Network, svc.Target.Address)
}

// refusal is how a user whose target was not reached is counted, and what the proxy is told.
func refusal(err error) (traffic.Refusal, wire.Code) {
	if sys.Refused(err) {
		return traffic.RefusedTarget, wire.CodeRefused
	}
	return traffic.RefusedUnreachable, wire.CodeUnreachable
}
