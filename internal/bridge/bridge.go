// Package bridge is the LAN role: it dials a proxy, offers services there, and connects the streams that come back to
// real servers.
//
// Only this package knows what a service means in the LAN: the proxy names services by number and never an address. The way
// of a byte through it: internal/link receives, serve.go finds the service of a new stream and connects to the real server,
// internal/relay moves the bytes. The way of a claim: apply.go takes the services, internal/claims decides what each
// proxy is told, uplink.go says it and hears the answer, probe.go proves the public port. Every goroutine is counted in
// life.wg or in traffic.Conns, and Run returns when all have ended.
package bridge

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/claims"
	"reverser/internal/grammar"
	"reverser/internal/lines"
	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/via"
)

// DefaultPort is the link port where an address names none.
const DefaultPort = "3010"

// DefaultDrain is how long a stopping bridge lets its pairs finish.
const DefaultDrain = 30 * time.Second

// Service is one thing that the bridge offers.
type Service = claims.Service

// Proxy says where a proxy is.
type Proxy struct {
	Addr     string   // host:port
	Others   []string // host:port, under which it can be reached too
	Transfer string   // host:port that carriers dial; "": what the proxy announces
}

// ProxyOf is the proxy that a token names. The token has an address.
func ProxyOf(t grammar.Token) Proxy { return Proxy{Addr: t.Addrs[0], Others: t.Addrs[1:]} }

// Config says what a Bridge does.
type Config struct {
	Token    grammar.Token
	Proxies  []Proxy // each gets a link of its own; none: the token's
	Settings Settings
	Version  string
	Log      *slog.Logger // nil: discard
	From     netip.Addr   // the local address that the proxies are dialled from; the zero value leaves it to the system
	Budget   int64        // bytes that the links may hold in flight beyond each stream's floor; 0: 128 MiB
	// ResumeWithin is how long connections outlive a break of the link; 0: link.DetachLimit.
	ResumeWithin time.Duration
	// SNI is the name to say to whoever leads connections to the proxy; "": the token's, or a constant one.
	SNI string
	// Keepalive is how long an idle link may say nothing; 0: link.Keepalive.
	Keepalive time.Duration
	// Over is told of each connection that is over, or was refused, as traffic.Config has it.
	Over func(traffic.Over)
}

// Bridge is the LAN role. New makes one, Run serves.
type Bridge struct {
	cfg      Config
	log      *slog.Logger
	say      *lines.Log // about what proxies say, by proxy
	budget   *link.Budget
	start    time.Time
	instance [16]byte
	name     string
	life
	network
	uplinks []*uplink      // one for each proxy
	hellos  handshakes     // of users whose TLS ends here
	conns   *traffic.Conns // streams that are connected to a target, or on the way to it
	targets relay.Dialer

	mu        sync.Mutex
	services  *claims.Services    // guarded by mu, as all below
	removals  map[uint32]*removal // of services whose connections may still finish, by the service's id
	probes    prober
	drainTime time.Duration // of Settings
	drainEnds time.Time     // when what is left is reset; zero: no drain has begun
	closing   bool          // the proxies are to send nobody
	changed   chan struct{} // closed and replaced whenever services or what the proxies say of them have changed
}

// life is how a bridge ends.
type life struct {
	wg        sync.WaitGroup
	ctx       context.Context // ends with Run
	stop      context.CancelFunc
	draining  atomic.Bool
	drain     chan struct{} // closed by Drain
	drainOnce sync.Once
}

// network is how a bridge reaches its proxies.
type network struct {
	names  *names
	via    atomic.Pointer[via.Choice]                                                     // of Settings
	socket func(ctx context.Context, network, addr string, segment int) (net.Conn, error) // segment: the largest of TCP; 0: the system's choice
	watch  func(ctx context.Context, changed func(sys.NetworkEvent))
}

// New returns a bridge that has dialled nothing yet.
func New(cfg Config) (*Bridge, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Proxies) == 0 && cfg.Token.Addr() == "" {
		return nil, errors.New("the token carries no address of the proxy: name it with --proxy HOST:3010")
	}
	if len(cfg.Proxies) == 0 {
		cfg.Proxies = []Proxy{ProxyOf(cfg.Token)}
	}
	b := &Bridge{
		cfg: cfg, log: cfg.Log, say: lines.New(cfg.Log), start: time.Now(), budget: link.NewBudget(cfg.Budget),
		conns:    traffic.New(traffic.Config{Log: cfg.Log, Side: relay.Target, Name: keyPrefix, Over: cfg.Over}),
		services: claims.New(), removals: make(map[uint32]*removal), drainTime: cfg.Settings.drain(), changed: make(chan struct{}),
	}
	if err := cfg.Settings.check(); err != nil {
		return nil, err
	}
	if _, err := b.services.Apply(cfg.Settings.Services); err != nil {
		return nil, err
	}
	for _, p := range cfg.Proxies {
		b.uplinks = append(b.uplinks, b.newUplink(p))
	}
	b.hellos.init(mostHandshakes, runtime.GOMAXPROCS(0))
	b.targets.SetSources(cfg.Settings.Sources)
	b.via.Store(&cfg.Settings.Via)
	b.conns.LogPairs(!cfg.Settings.NoPairs)
	b.targets.Warn = func(err error) { b.log.Warn("users wait for a connection to their target", "err", err) }
	rand.Read(b.instance[:])
	b.name, _ = os.Hostname()
	if b.name == "" {
		b.name = hex.EncodeToString(b.instance[:4])
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.drain = make(chan struct{})
	b.names = &names{ctx: b.ctx, wg: &b.wg, lookup: net.DefaultResolver.LookupNetIP, known: make(map[string]answer)}
	b.socket = func(ctx context.Context, network, addr string, segment int) (net.Conn, error) {
		return sys.DialLink(ctx, cfg.From, network, addr, segment)
	}
	b.watch = sys.WatchNetwork
	if cfg.From.IsLoopback() { // which comes and goes with nothing
		b.watch = func(ctx context.Context, _ func(sys.NetworkEvent)) { <-ctx.Done() }
	}
	return b, nil
}

// key names the key in log and status: the bridge knows its id only, and `reverser key list` shows as much of it.
func (b *Bridge) key() string { return keyPrefix(b.cfg.Token.KeyID) }

// sni is the name that the links ask for; "": the constant one. Where there is one, something in between goes by it.
func (b *Bridge) sni() string { return cmp.Or(b.cfg.SNI, b.cfg.Token.SNI) }

// wayTo is the way out to an address; nil: it is dialled directly.
func (b *Bridge) wayTo(addr string) *via.Way { return b.via.Load().For(addr) }

func keyPrefix(id [16]byte) string { return hex.EncodeToString(id[:4]) }

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
	b.mu.Lock() // an order may ask for the dialers already
	for _, u := range b.uplinks {
		u.newDialer()
	}
	b.mu.Unlock()
	go b.say.Run() // Stop waits for it
	b.wg.Go(b.awaitDrain)
	for _, u := range b.uplinks {
		log := b.log
		if b.wayTo(u.proxy) != nil {
			log = log.With("via", b.via.Load().String())
		}
		log.Info("bridge starting", "proxy", u.proxy, "key", b.key(), "version", b.cfg.Version, "budget_mib", b.budget.Size()>>20)
		b.wg.Go(u.run)
	}
	b.wg.Go(func() {
		b.watch(b.ctx, func(e sys.NetworkEvent) {
			b.log.Debug("the network changed", "what", e.Why)
			for _, u := range b.uplinks {
				u.dialer.Changed(e.Gone)
			}
		})
	})
	<-b.ctx.Done()
	b.stop()
	b.wg.Wait()
	b.conns.Close()
	b.say.Stop()
	b.log.Info("bridge stopped")
	return nil
}

// Status returns a snapshot.
func (b *Bridge) Status() status.Snapshot {
	snap := status.Snapshot{Role: "bridge", Version: b.cfg.Version, UptimeSeconds: time.Since(b.start).Seconds()}
	snap.Pairs = b.conns.Pairs()
	shown := b.describe(&snap)
	b.conns.Show(&snap, shown)
	snap.Pressure = b.conns.Pressure(nil)
	return snap
}

// EndPairs resets the connections that an operator means, and returns how many they were.
func (b *Bridge) EndPairs(w traffic.Which) int { return b.conns.EndThese(w) }

// Counted yields what each service counted since the start, those that are gone included.
func (b *Bridge) Counted(yield func(status.Counted) bool) { b.conns.Counted(yield) }

// KeyName stands for the bridge's key, whose name only the proxy knows.
func (b *Bridge) KeyName(id [16]byte) string { return keyPrefix(id) }

// Tallies yields what each service counted since the start, reason by reason.
func (b *Bridge) Tallies(yield func(status.Tally) bool) { b.conns.Tallies(yield) }

// Measures is what the bridge measured of itself.
func (b *Bridge) Measures() status.Measures {
	return status.Measures{BudgetUsed: b.budget.Used(), BudgetSize: b.budget.Size()}
}

// describe writes links and services into a snapshot, and returns the accounts of the services.
func (b *Bridge) describe(snap *status.Snapshot) map[*traffic.Account]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	shown := make(map[*traffic.Account]bool)
	var proxies []string
	for _, u := range b.uplinks {
		snap.Links = append(snap.Links, u.snapshotLocked()...)
		proxies = append(proxies, u.proxy)
	}
	for _, id := range b.services.IDs() {
		svc := b.services.Offered(id)
		var all []status.Service
		for _, u := range b.uplinks {
			st := u.serviceLocked(svc)
			account := b.conns.Find(b.cfg.Token.KeyID, st.Public)
			account.Describe(&st)
			shown[account] = true
			all = append(all, st)
		}
		snap.Services = append(snap.Services, mergeServices(all, proxies))
	}
	return shown
}

// mergeServices merges what the proxies say of a service: it is up if it is so at one of them.
func mergeServices(all []status.Service, proxies []string) status.Service {
	order := []string{status.ServiceUp, status.ServiceRetrying, status.ServiceAway, status.ServiceDenied}
	best := 0
	for i, st := range all {
		if slices.Index(order, st.State) < slices.Index(order, all[best].State) {
			best = i
		}
	}
	st := all[best]
	if len(all) == 1 {
		return st
	}
	st.Reason = ""
	for i, other := range all {
		st.Drained = st.Drained && (other.State != st.State || other.Drained) // else another proxy has an outage
		if other.State == status.ServiceUp {
			continue
		}
		if st.Reason != "" {
			st.Reason += "; "
		}
		st.Reason += proxies[i] + ": " + other.State
		if other.Reason != "" {
			st.Reason += ", " + other.Reason
		}
	}
	return st
}
