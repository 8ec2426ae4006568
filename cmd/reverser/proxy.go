package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/proxy"
	"reverser/internal/state"
	"reverser/internal/sys"
)

const (
	defaultPort   = 3010
	defaultListen = ":3010"

	// placeholderHost stands in the printed line where we cannot know better.
	placeholderHost = "YOUR.SERVER"
	defaultKeyName  = "default"

	// sourceBridgeFile is what the source system calls its bridge's file.
	sourceBridgeFile = "TcpReverser.BridgeServer.dll.config"
)

type proxyFlags struct {
	listen, transfer, state, config, admin, advertise, logFormat string
	limits
}

func (c *cli) proxyCommand() *cobra.Command {
	var f proxyFlags
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
			return c.runProxy(cmd.Context(), f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.listen, "listen", "", "`ADDR` where bridges connect; 0.0.0.0 is IPv4 only, [::] IPv6 only (default "+defaultListen+")")
	fl.StringVar(&f.transfer, "transfer", "", "`ADDR` of a second port that carries the data (default: the --listen port does)")
	fl.StringVar(&f.advertise, "advertise", "", "`HOST[:PORT]` by which bridges reach this proxy, for the tokens it makes")
	f.limits.add(fl)
	addCommonFlags(fl, &f.state, &f.config, &f.admin, &f.logFormat)
	return cmd
}

func (c *cli) runProxy(ctx context.Context, f proxyFlags) (err error) {
	file := &config.Proxy{}
	var warnings []config.Warning
	if f.config != "" {
		if file, warnings, err = config.LoadProxy(f.config); err != nil {
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
	listen, err := grammar.ParseListen(first(f.listen, file.Listen, defaultListen))
	if err != nil {
		return usage(fmt.Errorf("--listen: %w", err))
	}
	transfer := first(f.transfer, file.Transfer)
	if transfer != "" {
		if transfer, err = grammar.ParseListen(transfer); err != nil {
			return usage(fmt.Errorf("--transfer: %w", err))
		}
	}
	if transfer != "" && grammar.ListenOverlap(listen, transfer) {
		// A file that says so is refused by its own lines.
		return usageHint("give --transfer another port, or leave it out: the data then uses the --listen port",
			"--listen %s and --transfer %s (in a file: listen or IcPort, transfer or TransferPort) are the same port", listen, transfer)
	}
	advertise := first(f.advertise, file.Advertise)
	if advertise != "" {
		if advertise, err = grammar.ParseAdvertise(advertise, portOf(listen)); err != nil {
			return usage(fmt.Errorf("--advertise: %w", err))
		}
	}
	drain, resumeWithin, err := f.limits.parse(file.Drain, file.ResumeWithin)
	if err != nil {
		return err
	}

	if err := enoughDescriptors(); err != nil {
		return err
	}
	dir, err := openState(ctx, first(f.state, file.State), state.RoleProxy)
	if err != nil {
		return err
	}
	defer dir.Close()
	identity, _, err := dir.Identity()
	if err != nil {
		return usage(err)
	}
	keys := &keyring{dir: dir, pin: state.Pin(identity), config: file.Keys, log: log}
	active, err := keys.active()
	if err != nil {
		return usage(err)
	}
	// Keys are stored once at the first start, be it none: from then on, having
	// no key is what somebody wanted.
	firstStart := !dir.HasKeysFile()
	if len(active) == 0 && !firstStart {
		return usageHint(fmt.Sprintf("`reverser key add NAME --allow tcp/9000 --state %s` makes one and prints its token", dir.Path()),
			"the proxy has no key, so no bridge could connect (state directory %s)", dir.Path())
	}

	p := proxy.New(proxy.Config{
		Listen:       listen,
		Transfer:     transfer,
		Identity:     identity,
		Keys:         active,
		Offer:        file.Offer,
		Drain:        drain,
		Budget:       boundMemory(),
		ResumeWithin: resumeWithin,
		Version:      version(),
		Log:          log,
	})
	if err := p.Listen(); err != nil {
		return listenError(err, f, file.Source)
	}
	keys.apply = p.SetKeys
	keys.addr = advertise
	if keys.addr == "" {
		keys.addr = guessAddress(p.Addr(), listen, interfaceAddrs())
	}
	if err := dir.SetAddress(keys.addr); err != nil {
		return usage(err)
	}
	if firstStart {
		if len(active) == 0 {
			err = c.makeDefaultKey(keys, file.Offer, portOf(p.Addr().String()), log)
		} else {
			err = dir.SetKeys(nil)
		}
		if err != nil {
			return err
		}
	}
	return serve(ctx, p, dir, keys, log)
}

// makeDefaultKey makes the first key and prints, this once, how to use it.
func (c *cli) makeDefaultKey(keys *keyring, offer []grammar.Public, port uint16, log *slog.Logger) error {
	allow := grammar.DefaultPolicy()
	if len(offer) > 0 {
		allow = nil
		for _, public := range offer {
			a, err := grammar.ParseAllow(public.String())
			if err != nil {
				return err
			}
			allow = append(allow, a)
		}
	}
	tok, err := keys.add(defaultKeyName, allow)
	if err != nil {
		return err
	}
	line := "reverser bridge " + tok.Encode()
	if len(offer) > 0 {
		// That file names the proxy's address and the target itself.
		line += " --config " + sourceBridgeFile
	} else {
		line += " 9000"
		if tok.Addr == "" {
			line += " --proxy " + net.JoinHostPort(placeholderHost, strconv.Itoa(int(port)))
		}
	}
	if _, err := fmt.Fprintln(c.stdout, line); err != nil {
		return fmt.Errorf("print the token of key %q: %w (nobody saw it: remove the key and add one with `reverser key`)", defaultKeyName, err)
	}
	if logsJSON(log) {
		return nil // whoever reads that is no person at a terminal
	}
	fmt.Fprint(c.stderr, firstStartWords(len(offer) > 0, tok.Addr == ""))
	return nil
}

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
func listenError(err error, f proxyFlags, source map[string]string) error {
	var set []string
	for _, option := range []string{"listen", "IcPort", "transfer", "TransferPort"} {
		overridden := f.listen
		if strings.HasPrefix(strings.ToLower(option), "transfer") {
			overridden = f.transfer
		}
		if at := source[option]; at != "" && overridden == "" {
			set = append(set, fmt.Sprintf("%s in %s", option, at))
		}
	}
	if len(set) > 0 {
		err = fmt.Errorf("%w (from %s)", err, strings.Join(set, ", "))
	}
	hint := ""
	switch {
	case isPortTaken(err):
		hint = "another process has that port: stop it, or choose another port with --listen or --transfer"
	case isPortRefused(err):
		hint = "this user may not open that port: choose one from 1024 on with --listen or --transfer"
		if more := sys.PortHint(err); more != "" {
			hint += "; " + more
		}
	}
	return &exitError{code: exitUsage, err: err, hint: hint}
}

func logWarnings(log *slog.Logger, warnings []config.Warning) {
	for _, w := range warnings {
		log.Warn(w.String())
	}
}

func portOf(addr string) uint16 {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return defaultPort
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return defaultPort
	}
	return uint16(n)
}
