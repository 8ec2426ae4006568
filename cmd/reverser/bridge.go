package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"reverser/internal/bridge"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/state"
)

// tokenEnv is the environment variable that may hold the token.
const tokenEnv = "REVERSER_TOKEN"

type bridgeFlags struct {
	tokenFile, proxy, proxyTransfer, state, config, admin, logFormat string
	limits
}

func (c *cli) bridgeCommand() *cobra.Command {
	var f bridgeFlags
	cmd := &cobra.Command{
		Use:   "bridge [TOKEN] [EXPOSE...]",
		Short: "Run the private side, next to the service",
		Long: `Run the private side, next to the service. It dials the proxy, asks for public
ports, and connects what arrives there to the service.

TOKEN is what the proxy or ` + "`reverser key add`" + ` printed. It is taken from, in this
order: the first argument, --token-file, ` + tokenEnv + `, the configuration file.
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
  ` + tokenEnv + `=TOKEN reverser bridge \
    --config ` + sourceBridgeFile,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runBridge(cmd.Context(), f, args)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.tokenFile, "token-file", "", "`FILE` that holds the token, readable only by you; - is stdin")
	fl.StringVar(&f.proxy, "proxy", "", "`HOST[:PORT]` of the proxy, in place of the token's address (default port 3010)")
	fl.StringVar(&f.proxyTransfer, "proxy-transfer", "", "`HOST:PORT` of the proxy's --transfer port, where a NAT changes it")
	f.limits.add(fl)
	addCommonFlags(fl, &f.state, &f.config, &f.admin, &f.logFormat)
	return cmd
}

func (c *cli) runBridge(ctx context.Context, f bridgeFlags, args []string) (err error) {
	file := &config.Bridge{}
	var warnings []config.Warning
	if f.config != "" {
		if file, warnings, err = config.LoadBridge(f.config); err != nil {
			return usage(err)
		}
	}
	outliveReaders()
	log, flush, err := newLogger(c.stderr, first(f.logFormat, file.LogFormat))
	if err != nil {
		return err
	}
	defer flush()
	logWarnings(log, warnings)
	if err := refuseAdmin(first(f.admin, file.Admin)); err != nil {
		return err
	}
	argument, args, err := cutToken(args)
	if err != nil {
		return err
	}
	if argument == "" && len(args) > 0 && !c.tokenElsewhere(f.tokenFile, file) {
		if _, err := grammar.ParseExpose(args[0]); err != nil && !isUnsupported(err) {
			return usageHint("reverser bridge TOKEN 9000: the proxy's first start prints the token, and `reverser key add` there makes one",
				"argument 1, %q, is neither a token (rv1_…) nor PUBLIC[=TARGET] (9000, 9000=192.168.1.5:80)", args[0])
		}
	}
	tok, err := c.findToken(argument, f.tokenFile, file)
	if err != nil {
		return err
	}
	exposes, err := parseExposes(file.Expose, args)
	if err != nil {
		return err
	}
	address := first(f.proxy, file.Proxy)
	if address != "" {
		if address, err = grammar.ParseHost(address, defaultPort); err != nil {
			return usage(fmt.Errorf("--proxy: %w", err))
		}
	}
	if f.proxy == "" && file.NoProxy != nil {
		return usage(file.NoProxy)
	}
	if address == "" && tok.Addr == "" {
		return usageHint(fmt.Sprintf("--proxy %s:%d", placeholderHost, defaultPort),
			"the token carries no address of the proxy, and --proxy gives none")
	}
	transfer := first(f.proxyTransfer, file.ProxyTransfer)
	if f.proxy != "" && f.proxyTransfer == "" && file.TransferPort != 0 {
		// The XML has one host for both ports, and the flag names another.
		host, _, _ := net.SplitHostPort(address)
		transfer = net.JoinHostPort(host, strconv.Itoa(int(file.TransferPort)))
	}
	if transfer != "" {
		if transfer, err = grammar.ParseHostPort(transfer); err != nil {
			return usage(fmt.Errorf("--proxy-transfer: %w", err))
		}
	}

	drain, resumeWithin, err := f.limits.parse(file.Drain, file.ResumeWithin)
	if err != nil {
		return err
	}
	if err := enoughDescriptors(); err != nil {
		return err
	}
	services := make([]bridge.Service, 0, len(exposes))
	for _, e := range exposes {
		services = append(services, bridge.Service{Public: e.Public, Target: e.Target})
	}
	b, err := bridge.New(bridge.Config{
		Token:         tok,
		Proxy:         address,
		ProxyTransfer: transfer,
		Services:      services,
		Drain:         drain,
		Budget:        boundMemory(),
		ResumeWithin:  resumeWithin,
		Version:       version(),
		Log:           log,
	})
	if err != nil {
		return usage(err)
	}
	dir, err := openState(ctx, first(f.state, file.State), state.RoleBridge)
	if err != nil {
		return err
	}
	defer dir.Close()
	return serve(ctx, b, dir, nil, log)
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

func parseExposes(configured []grammar.Expose, args []string) ([]grammar.Expose, error) {
	exposes := slices.Clone(configured)
	for _, arg := range args {
		e, err := grammar.ParseExpose(arg)
		if err != nil {
			return nil, usage(err)
		}
		exposes = append(exposes, e)
	}
	if len(exposes) == 0 {
		return nil, usageHint("add 9000 for port 9000 on both sides, or 9000=192.168.1.5:9904 for another target; in a configuration it is [[expose]]",
			"nothing to expose: a bridge needs at least one EXPOSE")
	}
	if err := grammar.CheckExposes(exposes); err != nil {
		return nil, usage(err)
	}
	return exposes, nil
}

// findToken looks where a token may be, and reads the first that is there.
func (c *cli) findToken(argument, file string, cfg *config.Bridge) (grammar.Token, error) {
	text, from := argument, "the first argument"
	switch {
	case argument != "":
	case file != "":
		return c.readToken(file)
	case os.Getenv(tokenEnv) != "":
		text, from = os.Getenv(tokenEnv), tokenEnv
	case cfg.Token != "":
		text, from = cfg.Token, "the configuration"
	case cfg.TokenFile != "":
		return c.readToken(cfg.TokenFile)
	default:
		return grammar.Token{}, usageHint("the proxy's first start prints one, which begins with rv1_, and `reverser key add` there makes one; give it as the first argument, with --token-file FILE, or in "+tokenEnv,
			"the bridge has no token")
	}
	tok, err := grammar.ParseToken(text)
	if err != nil {
		return grammar.Token{}, usage(fmt.Errorf("token of %s: %w", from, err))
	}
	return tok, nil
}

// tokenElsewhere is whether there is a token besides the arguments.
func (c *cli) tokenElsewhere(file string, cfg *config.Bridge) bool {
	return first(file, os.Getenv(tokenEnv), cfg.Token, cfg.TokenFile) != ""
}

func isUnsupported(err error) bool {
	_, ok := errors.AsType[*grammar.UnsupportedKindError](err)
	return ok
}

func (c *cli) readToken(file string) (grammar.Token, error) {
	text, err := config.ReadTokenFile(file, c.stdin)
	if err != nil {
		return grammar.Token{}, usage(err)
	}
	tok, err := grammar.ParseToken(text)
	if err != nil {
		if file == "-" {
			file = "stdin"
		}
		return grammar.Token{}, usage(fmt.Errorf("token of %s: %w", file, err))
	}
	return tok, nil
}
