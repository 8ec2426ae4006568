package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/doctor"
	"reverser/internal/grammar"
	"reverser/internal/proxy"
	"reverser/internal/state"
	"reverser/internal/status"
	"reverser/internal/sys"
)

const (
	defaultPort   = 3010
	defaultListen = ":3010"

	// placeholderHost stands in the printed line where we cannot know better.
	placeholderHost = "YOUR.SERVER"

	// sourceBridgeFile is what the source system calls its bridge's file.
	sourceBridgeFile = "TcpReverser.BridgeServer.dll.config"
)

func (c *cli) proxyCommand() *cobra.Command {
	var args config.ProxyArgs
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Run the public side, on a server that users can reach",
		Long: `Run the public side, on a server that users can reach.

The first start makes an identity and a key named "default", and prints the
line to paste on the machine next to the service. Later starts use what the
state directory holds; ` + "`reverser key add`" + ` makes further keys, one per bridge.

Public ports are opened as bridges ask for them and their keys allow it.

The first SIGINT or SIGTERM frees the ports, so that the next proxy can start,
and lets the open connections finish (--drain). A second one stops now.`,
		Example: `  # listen for bridges on port 3010
  reverser proxy

  # put a name into the tokens instead of an address
  reverser proxy --advertise tunnel.example.com

  # bridges dial one port for control and another one for data
  reverser proxy --listen :3010 --transfer :3020

  # the configuration file of the source system, as it is
  reverser proxy --config TcpReverser.ProxyServer.dll.config`,
		Args: takes("reverser proxy --listen :3010"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.runProxy(cmd.Context(), args)
		},
	}
	addProxyFlags(cmd.Flags(), &args)
	return cmd
}

func addProxyFlags(fl *pflag.FlagSet, args *config.ProxyArgs) {
	fl.StringVar(&args.Listen, "listen", "", "`ADDR` where bridges connect; 0.0.0.0 is IPv4 only, [::] IPv6 only (default "+defaultListen+")")
	fl.StringVar(&args.Transfer, "transfer", "", "`ADDR` of a second port that carries the data (default: the --listen port does)")
	fl.StringVar(&args.HTTP, "http", "", "`ADDR` that http/HOST[/PATH] services share, such as :80: host and path of each request decide (default: none)")
	fl.StringVar(&args.HTTPS, "https", "", "`ADDR` that https/HOST[/PATH] and tls/HOST services share, such as :443: the server name of the TLS client decides, and for https/ the path of each request; bridges may come in there, too (default: none)")
	fl.StringVar(&args.Bind, "bind", "", "`IP` of this machine where public ports are opened that name no address of their own; 0.0.0.0 is IPv4 only, :: IPv6 only (default: every address)")
	fl.StringArrayVar(&args.ProxyProtocolFrom, "proxy-protocol-from", nil, "`CIDR` of a balancer in front: at public ports, a header of the PROXY protocol is required from there, and names the user; may be given several times (default: none)")
	fl.StringVar(&args.Advertise, "advertise", "", "`HOST[:PORT]` by which bridges reach this proxy, for the tokens it makes")
	fl.StringVar(&args.SNI, "sni", "", "`NAME` that bridges ask for in their TLS to this proxy, for the tokens it makes: by it a router or firewall tells proxies apart")
	addCommonFlags(fl, &args.CommonArgs, &args.Config)
}

func (c *cli) runProxy(ctx context.Context, args config.ProxyArgs) (err error) {
	source := config.NewProxySource(args)
	run, err := c.begin(source)
	if err != nil {
		return err
	}
	defer run.flush()
	set, log := run.set, run.log
	dir, err := openState(ctx, set.Common, state.RoleProxy, log)
	if err != nil {
		return err
	}
	defer dir.Close()
	identity, _, err := dir.Identity()
	if err != nil {
		return usage(err)
	}
	stored, err := dir.Keys()
	if err != nil {
		return usage(err)
	}
	pin := state.Pin(identity)
	if set, err = set.WithKeys(stored, pin); err != nil {
		return badSettings(err)
	}
	// Keys are stored once at the first start, be it none: from then on, having
	// no key is what somebody wanted.
	firstStart := !dir.HasKeysFile()
	if len(set.Proxy.Keys) == 0 && !firstStart {
		// An error would have a service manager start it again and again, and `reverser key add` counts at once while it runs.
		log.Warn(noKey, "command", keyAddIn(dir.Path()))
	}

	for _, k := range set.Proxy.Keys {
		before := slices.IndexFunc(stored, func(o state.Key) bool { return o.ID == k.ID && o.Offered && o.Allow.String() != k.Allow.String() })
		if before >= 0 && !k.InFile() {
			log.Info("key allowed another port, which the configuration file offers now", "key", k.Name, "allow", k.Allow.String(), "before", stored[before].Allow.String())
		}
	}
	storeOffered(dir, set, log)
	for _, words := range set.Proxy.Unclaimable() {
		log.Warn(words)
	}

	known, err := dir.Known()
	if err != nil {
		log.Warn("the addresses that bridges came from are forgotten: strangers may delay them until they have connected once", "err", err)
	}
	users, err := dir.KnownUsers()
	if err != nil {
		log.Warn("the addresses that users came from are forgotten: they are held to the rate of strangers until they have reached a service", "err", err)
	}
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	budget := boundMemory()
	cfg := proxy.Config{
		Listen:    set.Proxy.Listen,
		Transfer:  set.Proxy.Transfer,
		HTTP:      set.Proxy.HTTP,
		HTTPS:     set.Proxy.HTTPS,
		Bind:      set.Proxy.Bind,
		Identity:  identity,
		Budget:    budget,
		Names:     sys.MostNames(sys.AvailableMemory()),
		Strangers: sys.MostStrangers(sys.AvailableMemory()),
		// A process with little memory keeps less of what is inspected, too.
		InspectMemory:  budget / 2,
		Version:        version(),
		Log:            log,
		Over:           run.lines.over,
		Requests:       run.lines.requests,
		Known:          knownAddresses[proxy.Known](known),
		SaveKnown:      func(list []proxy.Known) error { return dir.SetKnown(knownAddresses[state.Known](list)) },
		KnownUsers:     knownAddresses[proxy.Known](users),
		SaveKnownUsers: func(list []proxy.Known) error { return dir.SetKnownUsers(knownAddresses[state.Known](list)) },
		Settings:       proxySettings(set),
	}
	var issuing *authority // nil: there is no port for TLS
	if set.Proxy.HTTPS != "" {
		issuing = newAuthority(set.Common, set.Proxy.HTTP != "", dir, nil, nil, log)
		issuing.take(set.Proxy)
		cfg.Certificates = issuing
		wg.Go(func() { issuing.run(keeping) })
	}
	var keys *admin.KeyEditor
	cfg.Used = func(id [16]byte, secret [32]byte) { keys.Used(id, secret) } // when bridges are served, keys is there
	p := proxy.New(cfg)
	if err := p.Listen(); err != nil {
		return listenError(err, set.Origin)
	}
	guessed := guessAddress(p.Addr(), set.Proxy.Listen, interfaceAddrs())
	if err := dir.SetReach(reach(set.Proxy, guessed)); err != nil {
		return usage(err)
	}
	source.UseState(dir.Keys, pin)
	role := &proxyRole{Proxy: p, authority: issuing, dir: dir, guessed: guessed, log: log}
	r := newReloader(source, role, set, run.level, run.lines, log)
	r.host = run.host
	keys = &admin.KeyEditor{
		Dir: dir, Pin: pin, Log: log,
		InForce: func() ([]config.Key, error) { return r.settings().Proxy.Keys, nil },
		Reach:   func() grammar.Reach { return reach(r.settings().Proxy, guessed) },
		Edited:  func() error { return r.edited(dir.Keys, pin) },
		Revoked: r.revoked,
		Drained: p.DrainedKeys,
	}
	web, err := openAdminAddress(ctx, set, dir, log)
	if err != nil {
		return err
	}
	defer web.close()
	if web != nil {
		web.settings = r.settings
	}
	if firstStart {
		if len(set.Proxy.Keys) == 0 && onJournal(c.out) {
			log.Warn("no key is there, and none was made, because its token would stand in the journal: no bridge can connect until somebody makes one, and sees its token",
				"command", keyAddIn(dir.Path()))
		} else if len(set.Proxy.Keys) == 0 {
			err = c.makeDefaultKey(keys, set.Proxy.OfferPolicy(), grammar.PortOf(p.Addr().String(), defaultPort), log)
		} else {
			err = dir.SetKeys(nil)
		}
		if err != nil {
			return err
		}
	}
	wg.Go(func() { keys.Keep(keeping) })
	wg.Go(func() { r.follow(keeping, dir.Succeeded) })
	return serve(ctx, role, dir, keys, web, r, run.said, log)
}

// proxyRole is a proxy that takes settings as config has them.
type proxyRole struct {
	*proxy.Proxy
	authority *authority
	dir       *state.Dir
	guessed   string // address for tokens where none is advertised
	log       *slog.Logger
}

// Status implements server.
func (p *proxyRole) Status() status.Snapshot {
	snap := p.Proxy.Status()
	removed, err := p.dir.Unstored()
	if edited, _ := p.dir.UnstoredEdits(); err != nil {
		snap.Unstored = &status.Unstored{Removed: removed, Edited: edited, Error: err.Error()}
	}
	return snap
}

// Examine implements examined: the proxy tries its public ports under the address that tokens carry.
func (p *proxyRole) Examine(ctx context.Context, set config.Settings) []doctor.Check {
	host := ""
	if addrs := reach(set.Proxy, p.guessed).Addrs; len(addrs) > 0 {
		host, _, _ = net.SplitHostPort(addrs[0])
	}
	return append(doctor.PublicPorts(p.TryPublic(ctx, host)), doctor.OnlyHere(set.Proxy)...)
}

// Again has certificates asked for again: those that were refused may be there now.
func (p *proxyRole) Again() {
	if p.authority != nil {
		p.authority.Again()
	}
}

// Apply implements applier.
func (p *proxyRole) Apply(ctx context.Context, set config.Settings) (confirmation, error) {
	if p.authority != nil {
		p.authority.take(set.Proxy)
	}
	// All is in force when Apply begins to wait, for sockets and for the last words to bridges. A proxy that stops meanwhile may never
	// have done them.
	ctx, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	var c confirmation
	switch err := p.Proxy.Apply(ctx, proxySettings(set)); {
	case errors.Is(err, context.DeadlineExceeded):
		c = unsettled{p}
	case err != nil:
		return nil, err
	}
	if p.dir.HasYielded() { // what is stored is the successor's
		return c, nil
	}
	// For `reverser key add` while no proxy runs. The settings do not depend on it.
	if err := p.dir.SetReach(reach(set.Proxy, p.guessed)); err != nil {
		p.log.Warn("the address for new tokens could not be stored", "err", err)
	}
	storeOffered(p.dir, set, p.log)
	return c, nil
}

// unsettled is a change of a proxy whose ports are not all opened and closed so far.
type unsettled struct{ p *proxyRole }

func (u unsettled) Wait(ctx context.Context) []string {
	if u.p.Settled(ctx) != nil {
		return []string{"which ports are open now"}
	}
	return nil
}

func (u unsettled) Refused() []string { return nil }

// storeOffered is for `reverser key list` while no proxy runs, and for the copy of keys.json. The settings do not depend on it.
func storeOffered(dir *state.Dir, set config.Settings, log *slog.Logger) {
	if err := dir.FollowOffer(config.DefaultKey, set.Proxy.OfferPolicy()); err != nil {
		log.Warn("what a key is allowed could not be stored: it counts, and the file has the port that was offered before", "err", err)
	}
}

func proxySettings(set config.Settings) proxy.Settings {
	var given []string
	for _, g := range set.Proxy.Given {
		given = append(given, g.Names...)
	}
	return proxy.Settings{
		Given: given,
		Keys:  proxyKeys(set.Proxy.Keys), Offer: set.Proxy.Offer, NoPairs: set.NoPairs, Drain: set.Drain, ResumeWithin: set.ResumeWithin,
		ProxyProtocolFrom: set.Proxy.ProxyProtocolFrom,
	}
}

// knownAddresses turns what one package knows of addresses into what another one does.
func knownAddresses[To, From state.Known | proxy.Known](list []From) []To {
	to := make([]To, len(list))
	for i, k := range list {
		to[i] = To(k)
	}
	return to
}

func proxyKeys(keys []config.Key) []proxy.Key {
	list := make([]proxy.Key, 0, len(keys))
	for _, k := range keys {
		list = append(list, proxy.Key{Name: k.Name, ID: k.ID, Secret: k.Secret, Next: k.Next, Allow: k.Allow, Expires: k.Expires, MaxServices: k.MaxServices, MaxConnections: k.MaxConnections})
	}
	return list
}

// makeDefaultKey makes the first key and prints, this once, how to use it. With an offer of the file, the key is allowed that alone.
func (c *cli) makeDefaultKey(keys *admin.KeyEditor, offer grammar.Policy, port uint16, log *slog.Logger) error {
	var tok grammar.Token
	var err error
	offered := offer != nil
	if offered {
		tok, err = keys.MakeOffered(config.DefaultKey, offer)
	} else {
		tok, err = keys.Make(config.DefaultKey, grammar.DefaultPolicy(), state.Limits{})
	}
	if err != nil {
		return err
	}
	line := "reverser bridge " + tok.Encode()
	if offered {
		// That file names the proxy's address and the target itself.
		line += " --config " + sourceBridgeFile
	} else {
		line += " 9000"
		if tok.Addr() == "" {
			line += " --proxy " + net.JoinHostPort(placeholderHost, strconv.Itoa(int(port)))
		}
	}
	if _, err := fmt.Fprintln(c.stdout, line); err != nil {
		return fmt.Errorf("print the token of key %q: %w (nobody saw it: remove the key and add one with `reverser key`)", config.DefaultKey, err)
	}
	if logsJSON(log) {
		return nil // whoever reads that is no person at a terminal
	}
	fmt.Fprint(c.stderr, firstStartWords(offered, tok.Addr() == ""))
	return nil
}

// keyAddIn is the command that makes a key of a proxy.
func keyAddIn(dir string) string { return "reverser key add NAME --allow tcp/9000 --state " + dir }

func firstStartWords(offered, noAddress bool) string {
	var b strings.Builder
	b.WriteString("\nThe line above goes on the machine next to the service. It is printed only this\nonce.\n")
	if noAddress && !offered {
		b.WriteString("Put this server's address in place of " + placeholderHost + "; with --advertise HOST tokens\ncarry it.\n")
	}
	if !offered {
		b.WriteString("9000 is the public port here and the local port there; 9000=192.168.1.5:9904\nleads elsewhere.\n")
	}
	b.WriteString(tokenWords)
	b.WriteByte('\n')
	return b.String()
}

const tokenWords = `A token on a command line can be seen by other users of that machine. To keep it
off: write it to a file that only you can read and give --token-file FILE, or
set REVERSER_TOKEN.
`

// listenError says what to do about a link port that cannot be opened, and
// which options of the configuration file are behind it.
func listenError(err error, origin map[string]config.Place) error {
	if _, ok := errors.AsType[*proxy.BindError](err); ok {
		if at, ok := origin["bind"]; ok {
			err = fmt.Errorf("%w (from %s in %s)", err, at.Key, at)
		} else {
			err = fmt.Errorf("--bind: %w", err)
		}
		return &exitError{code: exitUsage, err: err, hint: doctor.BindHint}
	}
	var set []string
	for _, option := range []string{"listen", "transfer", "http", "https"} {
		if at, ok := origin[option]; ok {
			set = append(set, fmt.Sprintf("%s in %s", at.Key, at))
		}
	}
	if len(set) > 0 {
		err = fmt.Errorf("%w (from %s)", err, strings.Join(set, ", "))
	}
	return &exitError{code: exitUsage, err: err, hint: doctor.ListenHint(err, doctor.LinkOptions)}
}

func logWarnings(log *slog.Logger, warnings []config.Warning) {
	for _, w := range warnings {
		log.Warn(w.String())
	}
}
