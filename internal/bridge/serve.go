package bridge

import (
	"context"
	"net"
	"time"

	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// Opened implements link.Owner: a user connected at the proxy. The number of the service is all that the proxy decides.
func (b *Bridge) Opened(s *link.Stream) {
	id := int(s.Open().Service)
	if id >= len(b.cfg.Services) {
		s.Reset(wire.CodeService)
		return
	}
	if !b.enter() {
		s.Reset(wire.CodeDrain)
		return
	}
	select {
	case b.conns <- struct{}{}:
	default:
		if now := time.Now().UnixNano(); now-b.fullSaid.Load() > int64(time.Minute) {
			b.fullSaid.Store(now)
			b.log.Warn("as many connections as the descriptor limit allows, new ones are reset (raise it with ulimit -n or LimitNOFILE=)", "limit", cap(b.conns))
		}
		s.Reset(wire.CodeLimit)
		b.leave(nil)
		return
	}
	select {
	case b.dials <- struct{}{}:
		b.wg.Add(1) // the crew is closed when all are done
		b.crew.Go(func() {
			defer b.wg.Done()
			if !b.serve(s, id) {
				<-b.conns
				b.leave(nil)
			}
		})
	default:
		<-b.conns
		s.Reset(wire.CodeLimit)
		b.leave(nil)
	}
}

// serve connects a stream to its service. The pair goes on by itself. false: there is none.
func (b *Bridge) serve(s *link.Stream, id int) bool {
	svc := b.cfg.Services[id]
	b.mu.Lock()
	public := b.services[id].public
	b.mu.Unlock()
	client := ""
	if s.Open().Client.IsValid() {
		client = s.Open().Client.String()
	}
	if svc.Handle != nil {
		<-b.dials
		svc.Handle(s)
		return false
	}
	conn, err := b.dialTarget(svc)
	<-b.dials
	if err != nil {
		s.Reset(targetCode(err))
		if b.ctx.Err() == nil {
			b.log.Warn("target cannot be reached, the client gets a reset", "service", public, "client", client, "target", svc.target(), "err", err)
		}
		return false
	}
	pr := &relay.Entry{
		Pair: relay.New(relay.Target, conn, s, nil), ID: b.pairSeq.Add(1), Since: time.Now(),
		Service: public, Target: svc.target(), Client: client,
	}
	b.mu.Lock()
	b.pairs[pr] = struct{}{}
	ending := b.ending
	b.mu.Unlock()
	pr.Created(b.log)
	b.wg.Add(1)
	pr.Start(&b.poller, func(reason relay.Reason) {
		defer b.wg.Done()
		pr.Released(b.log, reason)
		<-b.conns
		b.leave(pr)
	})
	if ending { // endPairs may not have seen it, and a stream that was reset here tells nobody
		pr.End(relay.ReasonDrain, wire.CodeDrain)
	}
	return true
}

// dialTime bounds the connect to a target.
const dialTime = 10 * time.Second

func (b *Bridge) dialTarget(svc Service) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(b.ctx, dialTime)
	defer cancel()
	return b.targets.Dial(ctx, svc.Target.Network, svc.Target.Address)
}

func targetCode(err error) wire.Code {
	if sys.Refused(err) {
		return wire.CodeRefused
	}
	return wire.CodeUnreachable
}
