package main

import (
	"context"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"reverser/internal/bridge"
	"reverser/internal/config"
	"reverser/internal/doctor"
	"reverser/internal/grammar"
	"reverser/internal/state"
)

func (c *cli) bridgeCommand() *cobra.Command {
	var args config.BridgeArgs
	cmd := &cobra.Command{
		Use:   "bridge [TOKEN] [EXPOSE...]",
		Short: "Run the private side, next to the service",
		Long: `Run the private side, next to the service. It dials the proxy, asks for public
ports, and connects what arrives there to the service.

TOKEN is what the proxy or ` + "`reverser key add`" + ` printed. It is taken from, in this
order: the first argument, --token-file, ` + config.TokenEnv + `, the configuration file.
Other users of this machine can see a command line: the latter three keep the
token off it.

EXPOSE is PUBLIC=TARGET:
  9000                      port 9000 of the proxy to port 9000 here
  9000=9904                 port 9000 of the proxy to 127.0.0.1:9904
  9000=192.168.1.5:9904     ... to another machine
  9000=unix:/run/app.sock   ... to a unix socket
  tcp/127.0.0.1:9000=9904   a port that only the proxy's own machine reaches
Several may be given; they add to the configuration's [[expose]].

The first SIGINT or SIGTERM lets the open connections finish (--drain); new
users are served too, until the next bridge with this token takes them. A
second signal stops now.`,
		Example: `  reverser bridge TOKEN 9000
  reverser bridge --token-file ~/reverser.token 9000=9904 2222=22

  # the configuration file of the source system, as it is
  ` + config.TokenEnv + `=TOKEN reverser bridge \
    --config ` + sourceBridgeFile,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, words []string) (err error) {
			if args.Token, args.Expose, err = cutToken(words); err != nil {
				return err
			}
			args.TokenEnv, args.Stdin = os.Getenv(config.TokenEnv), c.stdin
			return c.runBridge(cmd.Context(), args)
		},
	}
	addBridgeFlags(cmd.Flags(), &args)
	return cmd
}

func addBridgeFlags(fl *pflag.FlagSet, args *config.BridgeArgs) {
	fl.StringVar(&args.TokenFile, "token-file", "", "`FILE` that holds the token, readable only by you; - is stdin")
	fl.StringArrayVar(&args.Proxies, "proxy", nil, "`HOST[:PORT]` of the proxy, in place of the token's address (default port 3010); several are several proxies")
	fl.StringVar(&args.ProxyTransfer, "proxy-transfer", "", "`HOST:PORT` of the proxy's --transfer port, where a NAT changes it")
	fl.StringVar(&args.SNI, "sni", "", "`NAME` that the TLS of the link asks for, where something in between goes by it (default: the token's, else reverser.invalid); the proxy is known by its key as ever")
	fl.StringVar(&args.Via, "via", "", "`URL` of an HTTP proxy or SOCKS5 server on the way out, http://HOST:PORT or socks5://HOST:PORT; none for no such thing (default: what HTTPS_PROXY, ALL_PROXY and NO_PROXY say)")
	fl.StringVar(&args.ViaFile, "via-file", "", "`FILE` that holds that URL with user and password, http://USER:PASSWORD@HOST:PORT, readable only by you")
	fl.StringVar(&args.Keepalive, "keepalive", "", "`DURATION` of silence after which an idle link is kept alive, 5s to 1h (default 25s): less for a NAT that forgets sooner, more for a metered line")
	fl.StringArrayVar(&args.Sources, "source", nil, "`IP` of this machine that targets are dialled from (default: the system chooses); several take turns, each with some 28,000 ports of its own")
	fl.BoolVar(&args.AutoCert, "auto-cert", false, "end the TLS of users here, for all services of tls/ without a certificate of their own, with certificates that come by themselves: the proxy sees no plain text")
	addCommonFlags(fl, &args.CommonArgs, &args.Config)
}

func (c *cli) runBridge(ctx context.Context, args config.BridgeArgs) (err error) {
	args.Environ = os.Getenv
	source := config.NewBridgeSource(args)
	run, err := c.begin(source)
	if err != nil {
		return err
	}
	defer run.flush()
	set, log := run.set, run.log
	ends := newEndings(set, log)
	settings, done := bridgeSettings(set, ends)
	b, err := bridge.New(bridge.Config{
		Token:        set.Bridge.Token,
		Proxies:      doctor.ProxiesOf(set.Bridge),
		Settings:     settings,
		Budget:       boundMemory(),
		ResumeWithin: set.ResumeWithin,
		SNI:          set.Bridge.SNI,
		Keepalive:    set.Bridge.Keepalive,
		Version:      version(),
		Log:          log,
		Over:         run.lines.over,
	})
	if err != nil {
		return usage(err)
	}
	done()
	dir, err := openState(ctx, set.Common, state.RoleBridge, log)
	if err != nil {
		return err
	}
	defer dir.Close()
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	web, err := openAdminAddress(ctx, set, dir, log)
	if err != nil {
		return err
	}
	defer web.close()
	ends.begin(&wg, keeping, dir, b)
	r := newReloader(source, bridgeRole{b, ends}, set, run.level, run.lines, log)
	r.host = run.host
	if web != nil {
		web.settings = r.settings
	}
	return serve(ctx, endingBridge{b, ends}, dir, nil, web, r, run.said, log)
}

// bridgeRole is a bridge that takes settings as config has them.
type bridgeRole struct {
	*bridge.Bridge
	endings *endings
}

// Apply implements applier.
func (b bridgeRole) Apply(ctx context.Context, set config.Settings) (confirmation, error) {
	settings, done := bridgeSettings(set, b.endings)
	applied, err := b.Bridge.Apply(ctx, settings)
	if err != nil {
		return nil, err
	}
	done()
	return applied, nil
}

// Again has certificates asked for again: those that were refused may be there now.
func (b bridgeRole) Again() { b.endings.authority.Again() }

// bridgeSettings are what a bridge needs to know of the settings while it runs. done is to be called when they are in force.
func bridgeSettings(set config.Settings, e *endings) (s bridge.Settings, done func()) {
	services, done := e.services(set.Bridge)
	return bridge.Settings{Secret: set.Bridge.Token.Secret, Services: services, Sources: set.Bridge.Sources, Via: set.Bridge.Via, NoPairs: set.NoPairs, Drain: set.Drain}, done
}

// cutToken takes the token off the arguments, where it is the first one. What
// is left must not be quoted in an error while it may be a secret.
func cutToken(args []string) (tok string, rest []string, err error) {
	if len(args) > 0 && grammar.LooksToken(args[0]) {
		tok, args = args[0], args[1:]
	}
	for i, arg := range args {
		switch {
		case grammar.LooksToken(arg):
			return "", nil, usageHint("reverser bridge TOKEN EXPOSE...", "argument %d is a token: there is one, and it comes first", i+1)
		case looksDamaged(arg):
			return "", nil, usageHint("copy the whole token again, from rv1_ on", "argument %d looks like a damaged token", i+1)
		}
	}
	return tok, args, nil
}

// looksDamaged is true for what cannot be an EXPOSE and may be a piece of a
// token.
func looksDamaged(arg string) bool {
	return len(arg) >= 40 && !strings.ContainsAny(arg, "=/.:")
}
