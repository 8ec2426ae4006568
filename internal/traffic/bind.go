package traffic

import (
	"encoding/hex"
	"log/slog"
	"net"
	"strconv"
	"time"

	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// Pair is what moves the bytes of a connection: a *relay.Pair, or a client's time at a service that is spoken to in a language of its own.
type Pair interface {
	Start(poller *relay.Poller, ended func(relay.Reason))
	End(reason relay.Reason, code wire.Code)
	Counts() (sent, received uint64)
	HalfClosed() bool
	Paused() bool
	Resumes() uint64
}

// Bind makes a pair of the connection's socket and its stream. head is what was read from conn before; target is where the stream leads,
// for people. The pair goes on by itself: its end is logged, and gives back what the admission took.
func (a *Admission) Bind(conn net.Conn, s *link.Stream, head []byte, target string) {
	p := relay.New(a.conns.side, conn, s, head)
	a.countInto(p)
	a.bind(p, target)
}

// BindTLS is Bind for a connection whose TLS ended here.
func (a *Admission) BindTLS(conn net.Conn, s *link.Stream, t *relay.TLS, target string) {
	p := relay.NewTLS(a.conns.side, conn, s, t)
	a.countInto(p)
	a.bind(p, target)
}

// BindPair is Bind for what moves bytes by itself, and says so with Moved.
func (a *Admission) BindPair(p Pair, target string) { a.bind(p, target) }

// Moved counts bytes of what BindPair was given, while it is not over.
func (a *Admission) Moved(sent, received uint64) {
	a.account.sent.Add(sent)
	a.account.received.Add(received)
	a.guest.sent.Add(sent)
	a.guest.received.Add(received)
}

// Note logs something about the service, as rarely as refusals are.
func (a *Admission) Note(msg string, args ...any) { a.conns.sayRefusal(a.account, msg, args) }

// countInto makes a pair add its bytes to the accounts of its service and client.
func (a *Admission) countInto(p *relay.Pair) {
	p.CountInto(&a.account.sent, &a.account.received)
	p.CountInto(&a.guest.sent, &a.guest.received)
}

func (a *Admission) bind(p Pair, target string) {
	a.pair, a.since, a.target = p, time.Now(), target
	a.account.addPair(1)
	a.account.total.Add(1)
	if !a.conns.pairsUnsaid.Load() {
		// LogAttrs, since this is on every user's way: Info allocates for each argument.
		a.conns.log.LogAttrs(a.conns.ctx, slog.LevelInfo, "pair created",
			a.attrs(slog.String("service", a.Service()), slog.String("client", a.ClientName()), slog.String("target", target))...)
	}
	end := a.enterPhase(bound)
	p.Start(&a.conns.poller, a.released)
	if end != nil { // a stream that was reset at this end tells nobody here
		p.End(end.reason, end.code)
	}
}

// attrs adds to those of a log line, of a connection that was opened for a request, the id that the proxy's page for it has.
func (a *Admission) attrs(attrs ...slog.Attr) []slog.Attr {
	if p, ok := a.pair.(*relay.Pair); ok {
		if id := p.Open().Rest().Trace; id != [16]byte{} {
			return append(attrs, slog.String("request", hex.EncodeToString(id[:])))
		}
	}
	return attrs
}

// released is called once, when the pair is over.
func (a *Admission) released(reason relay.Reason) {
	sent, received := a.pair.Counts()
	a.account.noteEnd(reason, received-a.unreached.Load())
	if !a.conns.pairsUnsaid.Load() {
		a.conns.log.LogAttrs(a.conns.ctx, slog.LevelInfo, "pair released",
			a.attrs(slog.String("service", a.Service()), slog.String("client", a.ClientName()), slog.String("target", a.target),
				slog.Uint64("sent", sent), slog.Uint64("received", received), slog.Float64("duration", Seconds(time.Since(a.since))),
				slog.String("reason", string(reason)), slog.Uint64("resumes", a.pair.Resumes()))...)
	}
	if tell := a.conns.over; tell != nil {
		tell(Over{
			Service: a.Service(), Key: a.conns.keyName(a.Key()), Client: a.ClientName(), Target: a.target, Sent: sent, Received: received,
			Duration: time.Since(a.since), Reason: reason, Resumes: a.pair.Resumes(),
		})
	}
	a.account.addPair(-1)
	a.depart(over)
	a.giveBack(reason, sent, received)
}

// Since is when the pair was made.
func (a *Admission) Since() time.Time { return a.since }

// Status returns a snapshot of a pair.
func (a *Admission) Status() status.Pair {
	sent, received := a.pair.Counts()
	st := status.Pair{
		ID: strconv.FormatUint(a.id, 10), Service: a.Service(), Client: a.ClientName(), Target: a.target,
		Sent: sent, Received: received, Since: a.since, State: status.PairOpen,
	}
	switch {
	case a.pair.Paused():
		st.State = status.PairPaused
	case a.pair.HalfClosed():
		st.State = status.PairHalfClosed
	}
	return st
}

// Seconds is d for a log line: in seconds, to the microsecond.
func Seconds(d time.Duration) float64 {
	return float64(max(d.Round(time.Microsecond), time.Microsecond).Microseconds()) / 1e6
}
