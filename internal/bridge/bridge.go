// Package bridge is the LAN role: it dials a proxy, offers services there, and connects the streams that come back to
// real servers.
//
// Its secret is what each service means in the LAN: the proxy names services by number only and never an address. The
// route of a byte through it: internal/link receives, serve.go finds the service of a new stream and connects to the
// real server, internal/relay moves the bytes. Every goroutine is counted in Bridge.wg, and Run returns when all have
// ended.
package bridge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/auth"
	"reverser/internal/crew"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// DefaultPort is the link port where an address names none.
const DefaultPort = "3010"

// DefaultDrain is how long a stopping bridge lets its pairs finish.
const DefaultDrain = 30 * time.Second

// Service is one thing that the bridge offers.
type Service struct {
	Public grammar.Public
	Target grammar.Target
	// Handle, when set, takes the connections in place of Target. It is called in a goroutine of its own and closes the
	// connection.
	Handle func(net.Conn)
}

// Config says what a Bridge does.
type Config struct {
	Token         grammar.Token
	Proxy         string // host:port; "": the token's
	ProxyTransfer string // host:port that carriers dial; "": what the proxy announces
	Services      []Service
	Version       string
	Log           *slog.Logger  // nil: discard
	Drain         time.Duration // 0: DefaultDrain; negative: reset at once
	Budget        int64         // bytes that the link may hold in flight beyond each stream's floor; 0: 128 MiB
	// ResumeWithin is how long connections outlive a break of the link; 0: link.DetachLimit.
	ResumeWithin time.Duration
	// OnService is told what became of each service; nil: nobody.
	OnService func(grammar.Public, status.Service)
}

// Bridge is the LAN role. New makes one, Run serves.
type Bridge struct {
	cfg       Config
	log       *slog.Logger
	report    *reporter
	budget    *link.Budget
	start     time.Time
	proxy     string
	instance  [16]byte
	name      string
	dials     chan struct{} // one element a dial to a target that is under way
	conns     chan struct{} // one element a target's connection, as many as the descriptor limit leaves
	fullSaid  atomic.Int64  // when it was last logged that conns is full; UnixNano
	wg        sync.WaitGroup
	crew      *crew.Crew // connects streams to their targets
	poller    relay.Poller
	ctx       context.Context // ends with Run
	stop      context.CancelFunc
	draining  atomic.Bool
	drain     chan struct{} // closed by Drain
	drainOnce sync.Once
	pairSeq   atomic.Uint64
	names     *names
	paths     paths
	socket    func(ctx context.Context, network, addr string, segment int) (net.Conn, error) // segment: the largest of TCP; 0: the system's choice
	watch     func(ctx context.Context, changed func(sys.NetworkEvent))

	mu       sync.Mutex
	link     *link.Link              // of the present session; guarded by mu, as all below
	leaving  map[*link.Link]struct{} // of sessions beside it, whose proxy is stopping
	remote   net.Addr                // that the control connection reached
	services []serviceState
	attached chan struct{} // closed and replaced whenever a connection of the link was made
	pairs    map[*relay.Entry]struct{}
	busy     int           // streams that are connected to a target, or on the way to it
	idle     chan struct{} // closed when busy is 0; nil while nobody waits for that
	drainEnd time.Time     // when what is left is reset; zero: no drain has begun
	closing  bool          // the proxy is to send nobody
	ending   bool          // pairs are reset: there is to be no new one
}

// serviceState is what the proxy said about a service.
type serviceState struct {
	public  string // that the proxy serves
	state   string
	reason  string
	answers int // of the proxy, so far
}

// maxDials bounds connections to targets that are being made.
const maxDials = 1024

// New returns a bridge that has dialled nothing yet.
func New(cfg Config) (*Bridge, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Drain == 0 {
		cfg.Drain = DefaultDrain
	}
	cfg.Drain = max(cfg.Drain, 0)
	addr := cfg.Proxy
	if addr == "" {
		addr = cfg.Token.Addr
	}
	if addr == "" {
		return nil, errors.New("the token carries no address of the proxy: name it with --proxy HOST:3010")
	}
	if len(cfg.Services) == 0 {
		return nil, errors.New("no service to expose: name at least one, such as 9000 or 9000=192.168.1.5:80")
	}
	if len(cfg.Services) > link.MaxClaims {
		return nil, fmt.Errorf("%d services, one bridge exposes at most %d", len(cfg.Services), link.MaxClaims)
	}
	b := &Bridge{
		cfg: cfg, log: cfg.Log, start: time.Now(), proxy: withPort(addr), dials: make(chan struct{}, maxDials),
		conns: make(chan struct{}, sys.MaxConnections()), crew: crew.New(),
		drain: make(chan struct{}), attached: make(chan struct{}), pairs: make(map[*relay.Entry]struct{}), leaving: make(map[*link.Link]struct{}),
	}
	for _, s := range cfg.Services {
		b.services = append(b.services, serviceState{public: s.Public.String(), state: status.ServiceAway})
	}
	b.budget = link.NewBudget(cfg.Budget)
	b.report = newReporter(b.log, b.proxy)
	rand.Read(b.instance[:])
	b.name, _ = os.Hostname()
	if b.name == "" {
		b.name = hex.EncodeToString(b.instance[:4])
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.names = &names{ctx: b.ctx, wg: &b.wg, lookup: net.DefaultResolver.LookupNetIP, known: make(map[string]meaning)}
	b.socket = sys.DialLink
	b.watch = sys.WatchNetwork
	return b, nil
}

// key names the key in log and status: the bridge knows its id only, and `reverser key list` shows as much of it.
func (b *Bridge) key() string { return hex.EncodeToString(b.cfg.Token.KeyID[:4]) }

func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return net.JoinHostPort(addr, DefaultPort)
	}
	return addr
}

// Run keeps the link to the proxy and serves until ctx ends, which resets every connection, or until a drain is complete.
// A proxy that is not there, or is not the right one, is tried again for ever.
func (b *Bridge) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		b.endPairs(lastWords)
		b.stop()
	})
	defer stop()
	d := link.NewDialer(link.DialerConfig{
		Owner: b, Log: b.log, Name: b.name, Dial: b.dial, Failed: b.failed, Detach: b.cfg.ResumeWithin, Budget: b.budget,
		Auth: auth.ClientConfig{KeyID: b.cfg.Token.KeyID, Secret: b.cfg.Token.Secret, Pin: b.cfg.Token.Pin, Instance: b.instance},
	})
	b.wg.Go(func() { b.awaitDrain(d) })
	b.wg.Go(func() { b.watchName(func() { d.Changed(nil) }) })
	b.wg.Go(func() {
		b.watch(b.ctx, func(e sys.NetworkEvent) {
			b.log.Debug("the network changed", "what", e.Why)
			d.Changed(e.Gone)
		})
	})
	b.log.Info("bridge starting", "proxy", b.proxy, "key", b.key(), "version", b.cfg.Version, "budget_mib", b.budget.Size()>>20)
	err := d.Run(b.ctx)
	b.stop()
	b.wg.Wait()
	b.crew.Close()
	b.poller.Close()
	b.log.Info("bridge stopped")
	return err
}

// links are those of all sessions. mu is held.
func (b *Bridge) links() []*link.Link {
	ls := slices.Collect(maps.Keys(b.leaving))
	if b.link != nil {
		ls = append(ls, b.link)
	}
	return ls
}

// failed implements link.DialerConfig.
func (b *Bridge) failed(slot int, err error, next time.Duration) {
	if err != nil && b.ctx.Err() == nil {
		b.report.failed(slot, err, next)
	}
}

// Attached implements link.Owner.
func (b *Bridge) Attached(l *link.Link, slot int) {
	b.mu.Lock()
	close(b.attached)
	b.attached = make(chan struct{})
	if slot == 0 && l.Err() == nil && !l.Leaving() { // else Ended or GoingAway has come already
		if old := b.link; old != nil && old != l && old.Err() == nil {
			b.leaving[old] = struct{}{} // its proxy was replaced without a word
		}
		b.link = l
	}
	present := b.link == l
	draining, left, closing := !b.drainEnd.IsZero(), time.Until(b.drainEnd), b.closing
	b.mu.Unlock()
	if !present {
		return
	}
	b.report.attached(slot, l.Status()[0].Remote)
	if slot != 0 {
		return
	}
	switch {
	case closing:
		l.GoAway(0)
	case draining: // the connection may have broken before the proxy was told
		l.GoAway(max(left, time.Millisecond))
	}
	claims := make([]wire.Claim, len(b.cfg.Services))
	for i, s := range b.cfg.Services {
		claims[i] = wire.Claim{Public: s.Public.String(), Target: s.Target.String()}
	}
	l.Claims(claims)
}

// Detached implements link.Owner.
func (b *Bridge) Detached(l *link.Link, slot int, err error) {
	if b.ctx.Err() == nil && l.Err() == nil && !l.Leaving() { // else Ended says it, or GoingAway said it
		b.report.detached(slot, err)
	}
}

// GoingAway implements link.Owner. What has a connection to the proxy goes on; the link begins a new session beside.
func (b *Bridge) GoingAway(l *link.Link, drain time.Duration) {
	b.mu.Lock()
	present := b.link == l
	if present {
		b.link = nil
		b.leaving[l] = struct{}{}
		b.servicesAway()
	}
	b.mu.Unlock()
	if present {
		b.report.leaving(drain)
	}
}

// servicesAway notes that no proxy serves the services. mu is held.
func (b *Bridge) servicesAway() {
	for i := range b.services {
		b.services[i].state, b.services[i].reason = status.ServiceAway, ""
	}
}

// Ended implements link.Owner.
func (b *Bridge) Ended(l *link.Link, err error) {
	b.mu.Lock()
	_, leaving := b.leaving[l]
	delete(b.leaving, l)
	if b.link == l {
		b.link = nil
		b.servicesAway()
	}
	b.mu.Unlock()
	switch {
	case b.ctx.Err() != nil:
	case leaving:
		b.log.Info("the proxy that was stopping has ended", "proxy", b.proxy)
	default:
		b.report.ended(err)
	}
}

// Claim implements link.Owner. Only proxies get claims.
func (b *Bridge) Claim(*link.Link, uint16, wire.Claim, bool) {}

// Unclaim implements link.Owner.
func (b *Bridge) Unclaim(*link.Link, uint16) {}

// Status returns a snapshot.
func (b *Bridge) Status() status.Snapshot {
	snap := status.Snapshot{Role: "bridge", Version: b.cfg.Version, UptimeSeconds: time.Since(b.start).Seconds()}
	b.mu.Lock()
	defer b.mu.Unlock()
	key := b.key()
	conns := make(map[string]int)
	for pr := range b.pairs {
		snap.Pairs = append(snap.Pairs, pr.Status())
		conns[pr.Service]++
	}
	up := false
	for _, l := range b.links() { // the present one is the last
		st := l.Snapshot(key, b.name, b.draining.Load() || l.Leaving())
		if st.Remote == "" {
			st.Remote = b.proxy
		}
		snap.Links = append(snap.Links, st)
	}
	if b.link != nil {
		up = b.link.Up()
	}
	slices.Reverse(snap.Links)
	if len(snap.Links) == 0 {
		snap.Links = append(snap.Links, status.Link{Key: key, Bridge: b.name, Remote: b.proxy, State: status.LinkDown, Since: b.start})
	}
	for i, s := range b.services {
		st := status.Service{Public: s.public, Target: b.cfg.Services[i].Target.String(), State: s.state, Reason: s.reason, Connections: conns[s.public]}
		switch {
		case st.State == status.ServiceUp && !up:
			st.State = status.ServiceAway
			if b.link != nil && b.link.RemoteAddr() != nil {
				st.Reason = "no connection for carriers: the proxy is there, but no user can be served"
			}
		}
		snap.Services = append(snap.Services, st)
	}
	return snap
}

// target names what a service leads to, for logs and status.
func (s Service) target() string {
	if s.Handle != nil {
		return "this program"
	}
	return s.Target.String()
}
