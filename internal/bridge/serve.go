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
		b.wg.Go(func() {
			if pr := b.serve(s, id); pr != nil {
				b.wg.Go(func() { b.carry(pr) })
				return
			}
			<-b.conns
			b.leave(nil)
		})
	default:
		<-b.conns
		s.Reset(wire.CodeLimit)
		b.leave(nil)
	}
}

// serve connects a stream to its service; nil: there is no pair to carry.
func (b *Bridge) serve(s *link.Stream, id int) *pair {
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
		return nil
	}
	conn, err := b.dialTarget(svc)
	<-b.dials
	if err != nil {
		s.Reset(targetCode(err))
		if b.ctx.Err() == nil {
			b.log.Warn("target cannot be reached, the client gets a reset", "service", public, "client", client, "target", svc.target(), "err", err)
		}
		return nil
	}
	pr := &pair{
		Pair: relay.New(relay.Target, conn, s, nil), id: strconv.FormatUint(b.pairSeq.Add(1), 10),
		service: public, target: svc.target(), client: client, stream: s, since: time.Now(),
	}
	b.mu.Lock()
	b.pairs[pr] = struct{}{}
	b.mu.Unlock()
	b.log.Info("pair created", "service", pr.service, "client", pr.client, "target", pr.target)
	return pr
}

// carry moves a pair's bytes until it is over. Its goroutine is a fresh one, and its frame small: what an idle connection
// costs is mostly the stack of the goroutine that waits for it, 2 KB where nothing made it grow.
func (b *Bridge) carry(pr *pair) {
	b.released(pr, pr.Run())
	<-b.conns
	b.leave(pr)
}

//go:noinline
func (b *Bridge) released(pr *pair, reason relay.Reason) {
	sent, received := pr.Counts()
	b.log.Info("pair released", "service", pr.service, "client", pr.client, "target", pr.target,
		"sent", sent, "received", received, "duration", relay.Seconds(time.Since(pr.since)),
		"reason", string(reason), "resumes", pr.stream.Resumes())
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
