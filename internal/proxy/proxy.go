// Package proxy is the public role: it lets bridges in and carries users' connections to them.
//
// The route of a user's byte through it:
//  1. internal/entrance takes the connection at a public socket (tcp.go).
//  2. forward.go has it counted by internal/traffic, and tells a bridge's probe from a user.
//  3. internal/registry says where it goes, holds it while the bridge is away, and opens a stream (route.go).
//  4. internal/traffic binds both into a pair (bind.go), whose bytes internal/relay moves into internal/link.
//
// links.go is the other door: bridges connect and authenticate there. session.go tells the registry what they claim, and
// does what it decides; settings.go changes what is allowed. Every goroutine is counted in Proxy.wg or belongs to
// Proxy.conns, Proxy.entrances or Proxy.say, and Run returns when all have ended.
package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/auth"
	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/lines"
	"reverser/internal/link"
	"reverser/internal/registry"
	"reverser/internal/relay"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/web"
	"reverser/internal/wire"
)

// DefaultDrain is how long a stopping proxy or bridge lets its pairs finish.
const DefaultDrain = 30 * time.Second

// Key is what a bridge proves to be let in.
type Key struct {
	Name           string
	ID             [16]byte
	Secret         [32]byte
	Next           *[32]byte // counts as well, and takes the place of Secret when a bridge has used it; nil: there is none
	Allow          grammar.Policy
	Expires        time.Time // zero: never
	MaxServices    int       // at once; 0: no limit
	MaxConnections int       // of users at once; 0: no limit
}

// Config says what a Proxy does. Identity and at least one key are needed for it to be of use.
type Config struct {
	Listen    string          // link address, such as ":3010"
	Transfer  string          // address for carriers; "": the link address
	HTTP      string          // address that http/ names share; "": none
	HTTPS     string          // address that tls/ names share, and the link, which knows itself by its ALPN; it may be Listen. "": none
	Bind      string          // address of public ports that have none of their own, such as 203.0.113.5; "": every one
	Identity  tls.Certificate // that tokens pin
	Version   string
	Log       *slog.Logger // nil: discard
	Budget    int64        // bytes that all links together may hold in flight beyond each stream's floor; 0: 128 MiB
	Names     int          // http/, https/ and tls/ names that all keys hold together, see registry.Policy; 0: no limit
	Strangers int          // connections at once that no service has let in, at each port for names; 0: what the descriptor limit leaves
	MaxConns  int          // user connections at once; 0: what the descriptor limit leaves
	Known     []Known      // where bridges came from at the time of an earlier process, the latest last
	// SaveKnown keeps what is known for the next process. It is called rarely. nil: it is forgotten.
	SaveKnown func([]Known) error
	// KnownUsers and SaveKnownUsers are the same for where users came from who reached a service at HTTP or HTTPS.
	KnownUsers     []Known
	SaveKnownUsers func([]Known) error
	// Certificates is where those of https/ names come from; nil: there are none.
	Certificates Certificates
	// Over is told of each user's connection that is over, or was refused, as traffic.Config has it, but for those to http/ and https/ services.
	Over func(traffic.Over)
	// Requests returns what is told of each request to an http/ or https/ service that is over; nil: nobody wants to hear of them at present.
	// It does not wait. Without the function nobody ever does.
	Requests func() func(Request)
	// InspectMemory is how many bytes what is kept of exchanges may take; 0: inspect.DefaultMemory.
	InspectMemory int64
	// Descriptors is what connections and public sockets are taken from; nil: that of the process, and with MaxConns users have
	// one of their own.
	Descriptors *sys.Pool
	// Used is told of each Key.Next that has taken the place of its Secret, to store that. It may take its time; a key's uses come one after
	// the other. nil: nobody is.
	Used func(key [16]byte, secret [32]byte)
	// Now is the wall clock that says when keys expire; nil: the system's.
	Now      func() time.Time
	Settings // at first; see Apply
}

// Proxy is the public role. New makes one, Listen opens its link ports, Run serves.
type Proxy struct {
	cfg       Config
	log       *slog.Logger
	say       *lines.Log // about bridges, by key
	start     time.Time
	port      linkPort
	names     namePort
	balancers balancers
	web       webPort
	inspected inspected
	registry  *registry.Registry
	entrances *entrance.Set
	conns     *traffic.Conns // of users
	sessions  sessions
	life      life
	wg        sync.WaitGroup

	dialPublic  func(ctx context.Context, network, addr string) (net.Conn, error) // for TryPublic; tests have their own
	localAddrs  func() []netip.Addr                                               // of this machine's interfaces
	publicRoots *x509.CertPool                                                    // of authorities that users know; nil: those that this machine knows

	applying sync.Mutex // held by one Apply at a time, and taken first

	mu         sync.Mutex
	set        Settings               // guarded by mu, as all below
	keys       map[[16]byte]Key       // of set
	expired    map[[16]byte]bool      // those of keys whose time is over
	rotation   map[[16]byte]rotation  // of keys
	uses       map[[16]byte]*use      // of new secrets, by key
	removed    map[[16]byte]string    // names of keys that are gone, for whoever counted something of them
	drains     []registry.Drain       // that an operator has ordered
	duplicates map[[16]byte]time.Time // by key: when a second bridge with it was last logged
}

// linkPort is where bridges come in.
type linkPort struct {
	host    *link.Host
	budget  *link.Budget
	auth    *auth.ServerConfig
	tls     *tls.Config
	gate    *gate
	tidier  *tidier
	ln      net.Listener
	carrier net.Listener // nil: ln takes them, too

	descriptors *sys.Pool       // that its connections are taken from
	short       *traffic.Strain // for want of one
	memory      *traffic.Strain // for want of the budget's

	handshakes durations // of those who proved a key
}

// life is the course of a Proxy's.
type life struct {
	ctx       context.Context // ends with Run
	stop      context.CancelFunc
	running   atomic.Bool   // Run does what the registry decides
	drain     chan struct{} // closed by Drain
	once      sync.Once
	drainEnds atomic.Int64 // when what is left is reset; UnixNano, 0: no drain has begun
}

// New returns a proxy that has opened nothing yet.
func New(cfg Config) *Proxy {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	descriptors := cfg.Descriptors
	if descriptors == nil {
		descriptors = sys.Descriptors()
	}
	p := &Proxy{
		cfg: cfg, log: cfg.Log, say: lines.New(cfg.Log), start: time.Now(), registry: registry.New(registry.Policy{Bind: cfg.Bind}),
		sessions: sessions{ids: make(map[*link.Link]registry.SessionID), replaced: make(map[[16]byte]replaced), going: make(map[*link.Link]time.Time)},
		port:     linkPort{gate: newGate(descriptors.Size(sys.ForLinks)), tidier: newTidier(), budget: link.NewBudget(cfg.Budget), descriptors: descriptors},
		life:     life{drain: make(chan struct{})}, duplicates: make(map[[16]byte]time.Time), removed: make(map[[16]byte]string), uses: make(map[[16]byte]*use),
	}
	p.dialPublic, p.localAddrs = (&net.Dialer{}).DialContext, interfaceAddrs
	p.balancers.gate = newUsersGate(descriptors.Size(sys.ForUsers))
	p.balancers.gate.about = "connections from an address of proxy_protocol_from without a header of the PROXY protocol, reset"
	p.balancers.gate.what.places = "places for connections of balancers that have not said their header"
	p.conns = traffic.New(traffic.Config{Log: cfg.Log, Side: relay.Client, Max: cfg.MaxConns, Name: p.keyName, Over: connectionsOnly(cfg.Over), Descriptors: cfg.Descriptors})
	p.port.short = traffic.NewStrain(cfg.Log, p.linkPressure)
	p.port.memory = traffic.NewStrain(cfg.Log, p.memoryPressure)
	p.port.budget.Short = func() { p.port.memory.Note(errWindows) }
	p.inspected = inspected{store: inspect.New(cfg.InspectMemory), of: make(map[*registry.Route]*inspect.Recorder)}
	p.web.server.Find, p.web.server.Failed = p.findSite, p.webFailed
	p.web.server.Page, p.web.server.Away = p.toSecure, p.away
	p.web.server.Before = p.before
	p.web.server.Unserved = unserved
	p.web.server.InTurn = link.InTurn
	p.web.server.HeadRoom = int(p.port.budget.Size() / 8)
	p.web.short = map[web.Pool]*traffic.Strain{
		web.PoolAnswers:   traffic.NewStrain(cfg.Log, p.answersPressure),
		web.PoolStrangers: traffic.NewStrain(cfg.Log, p.strangersPressure),
		web.PoolUsers:     traffic.NewStrain(cfg.Log, p.usersPressure),
	}
	p.web.server.Crowded = func(pool web.Pool, why error) { p.web.short[pool].Note(why) }
	p.names.short = traffic.NewStrain(cfg.Log, p.hellosPressure)
	p.names.hellos.Crowded = p.names.short.Note
	p.web.server.Panicked = func(text string) {
		p.say.Say(slog.LevelError, nil, "a mistake of this program broke a request off: please report it", "panic", text)
	}
	if cfg.Certificates != nil {
		p.web.server.Covers = p.covers
		p.names.tls, p.names.handshakes = p.secureTLS(), traffic.NewHandshakes(runtime.GOMAXPROCS(0))
	}
	p.entrances = entrance.New(entrance.Config{Log: cfg.Log, Bind: cfg.Bind, Opened: p.registry.Opened, Arrived: p.arrived, Descriptors: p.port.descriptors})
	p.life.ctx, p.life.stop = context.WithCancel(context.Background())
	var instance [16]byte
	rand.Read(instance[:])
	p.port.auth = &auth.ServerConfig{Identity: cfg.Identity, Instance: instance, Features: link.Features, Lookup: p.secret, Others: p.otherSecrets}
	p.port.tls = p.port.auth.TLS()
	p.port.gate.room.known.load(cfg.Known, time.Now())
	p.setKeys(cfg.Settings)
	return p
}

// BindError says that no public port can be opened at Config.Bind.
type BindError struct {
	Bind string
	Err  error
}

func (e *BindError) Error() string { return fmt.Sprintf("open public ports at %s: %v", e.Bind, e.Err) }
func (e *BindError) Unwrap() error { return e.Err }

// Listen opens the link ports.
func (p *Proxy) Listen() (err error) {
	lc := net.ListenConfig{KeepAlive: -1} // the link watches over itself
	if err := p.tryBind(lc); err != nil {
		return err
	}
	listen := func(network, addr string) (net.Listener, error) { return lc.Listen(p.life.ctx, network, addr) }
	if p.namesAtLink() {
		listen = sys.Listen // users come there, too; linkGreeted gives the link what it has elsewhere
	}
	if p.port.ln, err = listen(grammar.ListenNetwork("tcp", p.cfg.Listen), p.cfg.Listen); err != nil {
		return fmt.Errorf("open the link port (listen %s): %w", p.cfg.Listen, err)
	}
	var port uint16
	if p.cfg.Transfer != "" {
		if p.port.carrier, err = lc.Listen(p.life.ctx, grammar.ListenNetwork("tcp", p.cfg.Transfer), p.cfg.Transfer); err != nil {
			p.port.ln.Close()
			return fmt.Errorf("open the transfer port (transfer %s): %w", p.cfg.Transfer, err)
		}
		port = portOf(p.TransferAddr())
	}
	for _, listen := range []func() error{p.listenNames, p.listenWeb} {
		if err := listen(); err != nil {
			p.closePorts()
			return err
		}
	}
	p.listening(port)
	return nil
}

// tryBind looks whether this machine has the address of public ports, before a bridge asks for one.
func (p *Proxy) tryBind(lc net.ListenConfig) error {
	if p.cfg.Bind == "" {
		return nil
	}
	addr := net.JoinHostPort(p.cfg.Bind, "0")
	ln, err := lc.Listen(p.life.ctx, grammar.ListenNetwork("tcp", addr), addr)
	if err != nil {
		return &BindError{p.cfg.Bind, err}
	}
	return ln.Close()
}

// listening prepares what serves the link ports, which are open. transfer is the second one; 0: there is none.
func (p *Proxy) listening(transfer uint16) {
	p.port.host = link.NewHost(link.HostConfig{
		Owner: p, Say: p.sayLink, Instance: p.port.auth.Instance, Transfer: transfer, Detach: p.settings().ResumeWithin, Budget: p.port.budget,
		Admit:    p.admit,
		Attached: p.secretUsed,
		Draining: p.conns.Draining,
		Ask:      func(key [16]byte, public []string) []string { return p.registry.Ask(registry.KeyID(key), public) },
	})
	p.registry.Configure(p.policy(p.settings()))
}

// Addr is the address of the link port.
func (p *Proxy) Addr() net.Addr { return p.port.ln.Addr() }

// TransferAddr is the address of the transfer port, nil when it is off.
func (p *Proxy) TransferAddr() net.Addr {
	if p.port.carrier == nil {
		return nil
	}
	return p.port.carrier.Addr()
}

// Run serves until ctx ends, which resets every connection, or until a drain is complete.
func (p *Proxy) Run(ctx context.Context) error {
	p.log.Info("proxy listening", "listen", p.Addr().String(), "version", p.cfg.Version, "budget_mib", p.port.budget.Size()>>20)
	if p.cfg.Bind != "" {
		p.log.Info("public ports without an address of their own are opened at one", "bind", p.cfg.Bind)
	}
	if p.port.carrier != nil {
		p.log.Info("carriers listening", "transfer", p.TransferAddr().String())
	}
	go p.say.Run()       // Stop waits for it
	p.web.server.Start() // before anybody comes, or Drain stops it
	p.life.running.Store(true)
	p.wg.Go(func() { p.registry.Run(p.life.ctx, effects{p}) })
	p.wg.Go(p.keepKnown)
	p.wg.Go(p.tendExpiry)
	if p.names.ln != p.port.ln {
		p.wg.Go(func() { p.acceptLinks(p.port.ln) })
	}
	if p.port.carrier != nil {
		p.wg.Go(func() { p.acceptLinks(p.port.carrier) })
	}
	if p.names.ln != nil {
		p.log.Info("names listening", "https", p.names.ln.Addr().String())
		p.wg.Go(func() { p.acceptNames(p.names.ln) })
		if p.cfg.Certificates != nil {
			p.wg.Go(p.tendCertificates)
		}
	}
	if from := p.settings().ProxyProtocolFrom; len(from) > 0 {
		p.log.Info("headers of the PROXY protocol are required", "from", fmt.Sprint(from))
	}
	if p.web.ln != nil {
		p.log.Info("HTTP listening", "http", p.web.ln.Addr().String())
		p.wg.Go(func() { p.acceptWeb(p.web.ln) })
	}
	select {
	case <-ctx.Done():
	case <-p.life.drain:
		p.finishPairs(ctx)
	}
	p.conns.Shut()
	p.closeSockets()
	p.conns.End(relay.ReasonDrain, wire.CodeDrain, nil)
	said := time.Now().Add(lastWords) // for all bridges together
	for _, l := range p.port.host.Links() {
		l.Flush(time.Until(said))
	}
	p.life.running.Store(false)
	p.life.stop()
	p.closePorts()
	p.port.gate.closeAll()
	for _, g := range []*gate{p.balancers.gate, p.names.gate, p.web.gate} {
		if g != nil {
			g.closeAll()
		}
	}
	p.inspected.store.Close()
	p.web.server.Close()
	p.port.tidier.stop()
	p.port.host.Close(errors.New("the proxy stopped"))
	p.sessions.forget()
	p.conns.Close()
	p.entrances.Shut()
	p.wg.Wait()
	select {
	case <-p.life.drain: // then it was saved, and there may be a successor
	default:
		p.saveKnown()
	}
	p.port.short.Close()
	p.port.memory.Close()
	p.names.short.Close()
	for _, s := range p.web.short {
		s.Close()
	}
	p.say.Stop()
	p.log.Info("proxy stopped")
	return nil
}

// Drain frees all ports, so that a successor can have them when it returns, and announces the stop to the bridges. Run returns
// when the last pair has ended, or resets what is left after Settings.Drain.
func (p *Proxy) Drain() {
	p.life.once.Do(func() {
		running := p.life.running.Load() // else nothing is open, and nobody does what the registry decides
		if running {
			p.web.server.Drain() // first: who has asked already is let in
		}
		p.conns.Shut()
		p.closePorts()
		if running {
			p.closeSockets()
		}
		close(p.life.drain)
		p.saveKnown() // before a successor starts
	})
}

// closePorts closes the ports that are the proxy's own, as far as they are open.
func (p *Proxy) closePorts() {
	for _, ln := range []net.Listener{p.port.ln, p.port.carrier, p.names.ln, p.web.ln} {
		if ln != nil {
			ln.Close()
		}
	}
}

// closeSockets closes the public sockets. Their routes stay: a user who was just accepted still needs one.
func (p *Proxy) closeSockets() {
	p.registry.Stop()
	p.registry.Done(p.life.ctx)
}

// Bridges that hear of a stop come to the proxy that takes its place one after the other, about as fast as it computes handshakes, and
// all of them before users are turned away.
const (
	comeBackEach = time.Millisecond
	comeBackMost = 5 * time.Second
)

// finishPairs waits for the users that were accepted, except for those whose bridge is away.
func (p *Proxy) finishPairs(ctx context.Context) {
	p.closeSockets()
	limit := p.settings().Drain
	p.life.drainEnds.Store(time.Now().Add(limit).UnixNano())
	for i, l := range p.port.host.Links() {
		l.GoAwayFor(limit, min(time.Duration(i)*comeBackEach, comeBackMost))
		l.StopResuming()
	}
	now := p.conns.Load()
	p.log.Info("draining", "pairs", now.Pairs, "opening", now.Unbound(), "limit", limit.Seconds())
	p.conns.Drain(ctx, limit)
}

// drainLeft is how long what is there has to finish, if a drain has begun.
func (p *Proxy) drainLeft() (left time.Duration, draining bool) {
	ends := p.life.drainEnds.Load()
	return max(time.Until(time.Unix(0, ends)), 0), ends != 0
}

// lastWords is how long a proxy that stops, or removes a key, waits for bridges to know that their pairs were reset, and why.
// A live bridge answers within milliseconds unless its machine is busy. Tests wait longer.
var lastWords = 500 * time.Millisecond

func portOf(a net.Addr) uint16 {
	if t, ok := a.(*net.TCPAddr); ok {
		return uint16(t.Port)
	}
	return 0
}
