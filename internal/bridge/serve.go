package bridge

import (
	"context"
	"net"
	"strconv"
	"time"

	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// pair is a stream on its way to a real server.
type pair struct {
	*relay.Pair
	id              string
	service, target string
	client          string
	stream          *link.Stream
	since           time.Time
}

func (pr *pair) status() status.Pair {
	sent, received := pr.Counts()
	st := status.Pair{
		ID: pr.id, Service: pr.service, Client: pr.client, Target: pr.target,
		Sent: sent, Received: received, Since: pr.since, State: status.PairOpen,
	}
	switch {
	case pr.stream.Paused():
		st.State = status.PairPaused
	case pr.HalfClosed():
		st.State = status.PairHalfClosed
	}
	return st
}

// Opened implements link.Owner: a user connected at the proxy. The number of the service is all that the proxy decides.
func (b *Bridge) Opened(s *link.Stream) {
	id := int(s.Open().Service)
	if id >= len(b.cfg.Services) {
		s.Reset(wire.CodeService)
		return
	}
	if b.draining.Load() {
		s.Reset(wire.CodeDrain)
		return
	}
	select {
	case b.dials <- struct{}{}:
		b.wg.Go(func() { b.serve(s, id) })
	default:
		s.Reset(wire.CodeLimit)
	}
}

// serve connects a stream to its service.
func (b *Bridge) serve(s *link.Stream, id int) {
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
		return
	}
	conn, err := b.dialTarget(svc)
	<-b.dials
	if err != nil {
		s.Reset(targetCode(err))
		if b.ctx.Err() == nil {
			b.log.Warn("target cannot be reached, the client gets a reset", "service", public, "client", client, "target", svc.target(), "err", err)
		}
		return
	}
	pr := &pair{
		Pair: relay.New(relay.Target, conn, s, nil), id: strconv.FormatUint(b.pairSeq.Add(1), 10),
		service: public, target: svc.target(), client: client, stream: s, since: time.Now(),
	}
	b.mu.Lock()
	b.pairs[pr] = struct{}{}
	b.mu.Unlock()
	b.log.Info("pair created", "service", pr.service, "client", pr.client, "target", pr.target)
	b.wg.Go(func() { b.carry(pr) })
}

// carry moves a pair's bytes until it is over. Its goroutine is a fresh one: dialling and logging grow a stack to 8 KB,
// which an idle connection would keep.
func (b *Bridge) carry(pr *pair) {
	reason := pr.Run()
	sent, received := pr.Counts()
	b.log.Info("pair released", "service", pr.service, "client", pr.client, "target", pr.target,
		"sent", sent, "received", received, "duration", time.Since(pr.since).Seconds(),
		"reason", string(reason), "resumes", pr.stream.Resumes())
	b.pairDone(pr)
}

// dialTime bounds the connect to a target.
const dialTime = 10 * time.Second

func (b *Bridge) dialTarget(svc Service) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(b.ctx, dialTime)
	defer cancel()
	return relay.Dial(ctx, svc.Target.Network, svc.Target.Address)
}

func targetCode(err error) wire.Code {
	if relay.Refused(err) {
		return wire.CodeRefused
	}
	return wire.CodeUnreachable
}
