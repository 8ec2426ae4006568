// Package proxy is the public role: it listens where users connect and carries their connections to bridges.
//
// Its secret is who may have which public port and when. The route of a user's byte through it:
//  1. internal/traffic takes the connection at the public listener (accept.go), and counts it until it is over.
//  2. internal/route says where it goes, and holds it while the bridge is away.
//  3. forward.go opens a stream on the bridge's link and binds both into a pair.
//  4. internal/relay moves the bytes into internal/link.
//
// links.go is the other door: bridges connect, authenticate and claim there. Every goroutine is counted in Proxy.wg or belongs
// to Proxy.conns, and Run returns when all have ended.
package proxy

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/auth"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/route"
	"reverser/internal/status"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// DefaultDrain is how long a stopping proxy or bridge lets its pairs finish.
const DefaultDrain = 30 * time.Second

// Key is what a bridge proves to be let in.
type Key struct {
	Name   string
	ID     [16]byte
	Secret [32]byte
	Allow  grammar.Policy
}

// Config says what a Proxy does. Identity and at least one key are needed for it to be of use.
type Config struct {
	Listen   string           // link address, such as ":3010"
	Transfer string           // address for carriers; "": the link address
	Identity tls.Certificate  // that tokens pin
	Keys     []Key            // see SetKeys
	Offer    []grammar.Public // public ports that the proxy owns and offers to whom its key allows them
	Version  string
	Log      *slog.Logger  // nil: discard
	Drain    time.Duration // 0: DefaultDrain; negative: reset at once
	Budget   int64         // bytes that all links together may hold in flight beyond each stream's floor; 0: 128 MiB
	// ResumeWithin is how long connections outlive a break of their link; 0: link.DetachLimit.
	ResumeWithin time.Duration
	MaxConns     int // user connections at once; 0: what the descriptor limit leaves
}

// Proxy is the public role. New makes one, Listen opens its link ports, Run serves.
type Proxy struct {
	cfg       Config
	log       *slog.Logger
	start     time.Time
	host      *link.Host
	budget    *link.Budget
	routes    *route.Table
	authCfg   *auth.ServerConfig
	tlsCfg    *tls.Config
	gate      *gate
	linkLn    net.Listener
	transfer  net.Listener
	conns     *traffic.Conns // of users
	wg        sync.WaitGroup
	ctx       context.Context // ends with Run
	stop      context.CancelFunc
	drainEnds atomic.Int64  // when what is left is reset; UnixNano, 0: no drain has begun
	drain     chan struct{} // closed by Drain
	drainOnce sync.Once

	// claiming is held by one decision about claims at a time, and by whoever else opens or closes public ports or ends a
	// session; taken before mu. Listening is a system call, which mu is not held for.
	claiming sync.Mutex

	mu       sync.Mutex
	keys     map[[16]byte]Key // guarded by mu, as all below
	sessions map[*link.Link]*session
	present  map[[16]byte]*session        // of each key; beside it there may be sessions that finish what they have
	public   map[grammar.Public]*listener // that are open
}

// New returns a proxy that has opened nothing yet.
func New(cfg Config) *Proxy {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Drain == 0 {
		cfg.Drain = DefaultDrain
	}
	cfg.Drain = max(cfg.Drain, 0)
	p := &Proxy{
		cfg: cfg, log: cfg.Log, start: time.Now(), routes: route.NewTable(), gate: newGate(), budget: link.NewBudget(cfg.Budget),
		conns: traffic.New(traffic.Config{Log: cfg.Log, Side: relay.Client, Max: cfg.MaxConns}), drain: make(chan struct{}),
		sessions: make(map[*link.Link]*session), present: make(map[[16]byte]*session), public: make(map[grammar.Public]*listener),
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	var instance [16]byte
	rand.Read(instance[:])
	p.authCfg = &auth.ServerConfig{Identity: cfg.Identity, Instance: instance, Lookup: p.secret}
	p.tlsCfg = p.authCfg.TLS()
	p.setKeys(cfg.Keys)
	return p
}

// Listen opens the link ports.
func (p *Proxy) Listen() (err error) {
	lc := net.ListenConfig{KeepAlive: -1} // the link watches over itself
	if p.linkLn, err = lc.Listen(p.ctx, grammar.ListenNetwork("tcp", p.cfg.Listen), p.cfg.Listen); err != nil {
		return fmt.Errorf("open the link port (listen %s): %w", p.cfg.Listen, err)
	}
	var port uint16
	if p.cfg.Transfer != "" {
		if p.transfer, err = lc.Listen(p.ctx, grammar.ListenNetwork("tcp", p.cfg.Transfer), p.cfg.Transfer); err != nil {
			p.linkLn.Close()
			return fmt.Errorf("open the transfer port (transfer %s): %w", p.cfg.Transfer, err)
		}
		port = uint16(p.transfer.Addr().(*net.TCPAddr).Port)
	}
	p.host = link.NewHost(link.HostConfig{
		Owner: p, Log: p.log, Instance: p.authCfg.Instance, Transfer: port, Detach: p.cfg.ResumeWithin, Budget: p.budget,
		Admit:    func(id [16]byte, secret [32]byte) bool { now, ok := p.secret(id); return ok && now == secret },
		Draining: p.conns.Draining,
	})
	return nil
}

// Addr is the address of the link port.
func (p *Proxy) Addr() net.Addr { return p.linkLn.Addr() }

// TransferAddr is the address of the transfer port, nil when it is off.
func (p *Proxy) TransferAddr() net.Addr {
	if p.transfer == nil {
		return nil
	}
	return p.transfer.Addr()
}

// Run serves until ctx ends, which resets every connection, or until a drain is complete.
func (p *Proxy) Run(ctx context.Context) error {
	p.log.Info("proxy listening", "listen", p.Addr().String(), "version", p.cfg.Version, "budget_mib", p.budget.Size()>>20)
	if p.transfer != nil {
		p.log.Info("carriers listening", "transfer", p.TransferAddr().String())
	}
	p.wg.Go(func() { p.acceptLinks(p.linkLn) })
	if p.transfer != nil {
		p.wg.Go(func() { p.acceptLinks(p.transfer) })
	}
	p.wg.Go(p.retryClaims)
	select {
	case <-ctx.Done():
	case <-p.drain:
		p.finishPairs(ctx)
	}
	p.conns.Shut()
	p.closeListeners()
	p.conns.End(relay.ReasonDrain, wire.CodeDrain, nil)
	said := time.Now().Add(lastWords) // for all bridges together
	for _, l := range p.host.Links() {
		l.Flush(time.Until(said))
	}
	p.stop()
	p.linkLn.Close()
	if p.transfer != nil {
		p.transfer.Close()
	}
	p.gate.closeAll()
	p.host.Close(errors.New("the proxy stopped"))
	p.conns.Close()
	p.wg.Wait()
	p.log.Info("proxy stopped")
	return nil
}

// Drain frees all ports, so that a successor can have them when it returns, and announces the stop to the bridges. Run returns
// when the last pair has ended, or resets what is left after Config.Drain.
func (p *Proxy) Drain() {
	p.drainOnce.Do(func() {
		p.conns.Shut()
		if p.linkLn != nil {
			p.linkLn.Close()
		}
		if p.transfer != nil {
			p.transfer.Close()
		}
		p.claiming.Lock()
		p.mu.Lock()
		var open []*listener
		for _, ln := range p.public { // their routes stay: a user who was just accepted still needs one
			open = append(open, ln)
		}
		p.mu.Unlock()
		closeAll(open)
		p.claiming.Unlock()
		close(p.drain)
	})
}

// finishPairs waits for the users that were accepted, except for those whose bridge is away.
func (p *Proxy) finishPairs(ctx context.Context) {
	p.drainEnds.Store(time.Now().Add(p.cfg.Drain).UnixNano())
	for _, l := range p.host.Links() {
		l.GoAway(p.cfg.Drain)
		l.Abandon()
	}
	now := p.conns.Load()
	p.log.Info("draining", "pairs", now.Pairs, "opening", now.Unbound(), "limit", p.cfg.Drain.Seconds())
	p.conns.Drain(ctx, p.cfg.Drain)
}

// drainLeft is how long what is there has to finish, if a drain has begun.
func (p *Proxy) drainLeft() (left time.Duration, draining bool) {
	ends := p.drainEnds.Load()
	return max(time.Until(time.Unix(0, ends)), 0), ends != 0
}

// lastWords is how long a proxy that stops, or removes a key, waits for bridges to know that their pairs were reset, and why.
// Who is there answers in milliseconds, but for a busy machine. Tests wait longer.
var lastWords = 500 * time.Millisecond

func (p *Proxy) secret(id [16]byte) (secret [32]byte, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, ok := p.keys[id]
	return k.Secret, ok
}

// SetKeys replaces the keys. What a key that is gone held ends at once: link, listeners and connections. Claims are
// decided again under the new policies.
func (p *Proxy) SetKeys(keys []Key) {
	removed := p.setKeys(keys)
	for _, id := range removed {
		p.dropKey(id)
	}
	p.reconsider()
}

func (p *Proxy) setKeys(keys []Key) (removed [][16]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.keys
	p.keys = make(map[[16]byte]Key, len(keys))
	for _, k := range keys {
		p.keys[k.ID] = k
	}
	for id, k := range old {
		if now, ok := p.keys[id]; !ok || now.Secret != k.Secret {
			removed = append(removed, id)
		}
	}
	return removed
}

// Status returns a snapshot.
func (p *Proxy) Status() status.Snapshot {
	snap := status.Snapshot{Role: "proxy", Version: p.cfg.Version, UptimeSeconds: time.Since(p.start).Seconds()}
	for a := range p.conns.Walk {
		snap.Pairs = append(snap.Pairs, a.Status())
	}
	draining := p.conns.Draining()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		snap.Links = append(snap.Links, s.link.Snapshot(s.key, s.link.PeerName(), s.leaving || draining))
		if s.past { // its services are another session's
			continue
		}
		for _, c := range s.claims {
			st := c.status(s)
			if draining && st.State != status.ServiceDenied {
				st.State, st.Reason = status.ServiceAway, stoppingText
			}
			p.conns.Find(s.link.KeyID(), st.Public).Describe(&st)
			snap.Services = append(snap.Services, st)
		}
	}
	slices.SortFunc(snap.Links, func(a, b status.Link) int { return cmp.Compare(a.Key, b.Key) })
	slices.SortFunc(snap.Services, func(a, b status.Service) int { return cmp.Compare(a.Public, b.Public) })
	slices.SortFunc(snap.Pairs, func(a, b status.Pair) int { return a.Since.Compare(b.Since) })
	return snap
}

func portOf(a net.Addr) uint16 {
	if t, ok := a.(*net.TCPAddr); ok {
		return uint16(t.Port)
	}
	return 0
}
