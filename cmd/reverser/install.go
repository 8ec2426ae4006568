package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"reverser/internal/accesslog"
	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/service"
	"reverser/internal/state"
)

// installFlags are those of `service install` that are not the role's.
type installFlags struct {
	dryRun, replace, lowPorts bool
	user                      string
}

func (f *installFlags) add(fl *pflag.FlagSet) {
	fl.BoolVar(&f.dryRun, "dry-run", false, "print what would be written and run, and do nothing")
	fl.BoolVar(&f.replace, "replace", false, "put it in the place of a service of this role that is there")
	fl.StringVar(&f.user, "user", "", "`NAME` of the user that runs the service (default: one that the system makes for it)")
}

// ofInstall are the flags that a service does not get, or not as they were given.
var ofInstall = []string{"dry-run", "replace", "user", "low-ports", "token-file", "state", "config", "service", "help"}

// fileFlags are the flags whose value is a path: the service has another working directory.
var fileFlags = []string{"via-file", "acme-root", "admin-certificate", "admin-certificate-key"}

func (c *cli) serviceInstallCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install a proxy or bridge as a service, and start it",
		Long: `Install a proxy or bridge as a service, and start it. It takes the options of
the role, which are checked before anything is written.`,
		Example: `  sudo reverser service install proxy --advertise tunnel.example.com
  sudo reverser service install bridge --token-file nas.token 9000=9904`,
		Args: noSuchCommand,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(c.installProxyCommand(), c.installBridgeCommand())
	return cmd
}

func (c *cli) installBridgeCommand() *cobra.Command {
	var args config.BridgeArgs
	var f installFlags
	cmd := &cobra.Command{
		Use:   "bridge [TOKEN] [EXPOSE...]",
		Short: "Install a bridge as a service, and start it",
		Long: `Install a bridge as a service, and start it. Options and EXPOSE are those of
` + "`reverser bridge`" + `. The token comes from the first argument, --token-file (- is
stdin), ` + config.TokenEnv + ` or the configuration file, and goes into a file that
only the administrator and the service can read. With --replace it may be left
out: the service keeps the one it has, and its state directory.

The service starts with the machine, before anybody logs on and whether or not
the network is up, and again when it fails. A service that does not come up is
not left behind: what was there before is there again.`,
		Example: `  sudo reverser service install bridge --token-file nas.token 9000=9904

  # the token from stdin: paste it, then Ctrl-D
  sudo reverser service install bridge --token-file - 9000

  # another port, with the token that it has
  sudo reverser service install bridge --replace 9000=9904 2222=22

  # only show what would be written
  reverser service install bridge --token-file nas.token 9000 --dry-run`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, words []string) error {
			words, err := afterDash(cmd.Flags(), words)
			if err != nil {
				return err
			}
			if args.Token, args.Expose, err = cutToken(words); err != nil {
				return err
			}
			args.TokenEnv, args.Stdin = os.Getenv(config.TokenEnv), c.stdin
			return c.installBridge(cmd.Context(), cmd.Flags(), args, f)
		},
	}
	addBridgeFlags(cmd.Flags(), &args)
	f.add(cmd.Flags())
	return cmd
}

func (c *cli) installProxyCommand() *cobra.Command {
	var args config.ProxyArgs
	var f installFlags
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Install a proxy as a service, and start it",
		Long: `Install a proxy as a service, and start it. Options are those of
` + "`reverser proxy`" + `. The first time it makes an identity and a key named "default",
and prints the line to paste on the machine next to the service, which thereby
stands in no log.

The service starts with the machine, whether or not the network is up, and
again when it fails. A service that does not come up is not left behind: what
was there before is there again. With --replace it keeps its state directory,
and with it the identity and the keys.`,
		Example: `  sudo reverser service install proxy --advertise tunnel.example.com

  # bridges may open ports below 1024
  sudo reverser service install proxy --low-ports

  # only show what would be written
  reverser service install proxy --dry-run`,
		RunE: func(cmd *cobra.Command, words []string) error {
			words, err := afterDash(cmd.Flags(), words)
			if err != nil {
				return err
			}
			if err := takes("reverser service install proxy --listen :3010")(cmd, words); err != nil {
				return err
			}
			return c.installProxy(cmd.Context(), cmd.Flags(), args, f)
		},
	}
	addProxyFlags(cmd.Flags(), &args)
	f.add(cmd.Flags())
	cmd.Flags().BoolVar(&f.lowPorts, "low-ports", false, "let the service open ports below 1024 (default: if an option or key names one)")
	return cmd
}

// afterDash reads what stands behind "--" as flags and arguments of the role, too.
func afterDash(fl *pflag.FlagSet, words []string) ([]string, error) {
	n := fl.ArgsLenAtDash()
	if n < 0 {
		return words, nil
	}
	before := slices.Clone(words[:n])
	if err := fl.Parse(words[n:]); err != nil {
		return nil, usage(err)
	}
	return append(before, fl.Args()...), nil
}

// specOf is what both roles have in common.
func specOf(m service.Manager, fl *pflag.FlagSet, role, configFile string, set config.Settings, f installFlags) (s service.Spec, err error) {
	s = service.Spec{Role: role, User: f.user, Drain: drainOf(set)}
	if s.Program, err = os.Executable(); err != nil {
		return s, err
	}
	if set.State != "" {
		if s.State, err = filepath.Abs(set.State); err != nil {
			return s, err
		}
	} else if f.replace {
		s.State = m.State(role) // the identity and the keys of a proxy are there
	}
	if configFile != "" {
		if s.Config, err = filepath.Abs(configFile); err != nil {
			return s, err
		}
		s.Args = append(s.Args, "--config="+s.Config)
	}
	fl.Visit(func(flag *pflag.Flag) {
		if slices.Contains(ofInstall, flag.Name) {
			return
		}
		values := []string{flag.Value.String()}
		if slices.Contains(fileFlags, flag.Name) {
			values[0], err = filepath.Abs(values[0])
		}
		if several, ok := flag.Value.(pflag.SliceValue); ok {
			values = several.GetSlice()
		}
		for _, v := range values {
			if flag.Name == "access-log" && v != accesslog.Stdout {
				if v, err = filepath.Abs(v); err != nil {
					return
				}
			}
			s.Args = append(s.Args, "--"+flag.Name+"="+v)
		}
	})
	return s, err
}

func (c *cli) installBridge(ctx context.Context, fl *pflag.FlagSet, args config.BridgeArgs, f installFlags) error {
	m, err := c.services()
	if err != nil {
		return err
	}
	if f.replace && args.Token == "" && args.TokenFile == "" && args.TokenEnv == "" {
		args.TokenFile = m.TokenFile(config.RoleBridge)
	}
	set, warnings, err := config.NewBridgeSource(args).Load()
	if err != nil {
		return badSettings(err)
	}
	c.printWarnings(warnings)
	if args.Via != "" && set.Bridge.Via.Way.HasPassword() {
		return usageHint("write the URL to a file that only the administrator and the service's user can read, and give --via-file FILE",
			"--via has a password, which would stand in the definition of the service for everybody to read")
	}
	s, err := specOf(m, fl, config.RoleBridge, args.Config, set, f)
	if err != nil {
		return err
	}
	s.Token = set.Bridge.Token.Encode()
	s.Args = append(s.Args, args.Expose...)
	for _, e := range set.Bridge.Services {
		if e.Target.Network == "unix" {
			s.Sockets = append(s.Sockets, e.Target.Address)
		}
		s.UsersAddresses = s.UsersAddresses || e.Options.Transparent
	}
	if f.replace && linked(ctx, m.State(config.RoleBridge)) {
		s.Check = stillLinked
	}
	return c.install(ctx, m, s, f)
}

// linked reports whether the bridge of a state directory has a link to a proxy.
func linked(ctx context.Context, dir string) bool {
	if dir == "" {
		return false
	}
	client := adminOf(dir)
	defer client.Close()
	s, err := client.Summary(ctx)
	if err != nil {
		return false
	}
	_, up := linksUp(s)
	return up > 0
}

// stillLinked refuses a bridge that gets no link, where the one before it had one: with another token, or another address, it would
// be worse than what was there. It may still be connecting.
func stillLinked(ctx context.Context, m service.Manager) error {
	for begun := time.Now(); ; {
		if linked(ctx, m.State(config.RoleBridge)) {
			return nil
		}
		// A process that says itself that it is ready has had its time already.
		if st, err := m.Status(ctx, config.RoleBridge); err == nil && st.Text != "" || time.Since(begun) >= settleWithin {
			break
		}
		if !pause(ctx, settlePoll) {
			return ctx.Err()
		}
	}
	why := "it does not say why"
	if st, err := m.Status(ctx, config.RoleBridge); err == nil && len(st.Log) > 0 {
		why = "it says: " + st.Log[len(st.Log)-1]
	}
	return &service.Error{
		Err:  fmt.Errorf("the new bridge gets no link to the proxy, which the one before it had: %s", why),
		Hint: "give the right token and address; `reverser service uninstall bridge` first, if the proxy is to come later",
	}
}

func (c *cli) installProxy(ctx context.Context, fl *pflag.FlagSet, args config.ProxyArgs, f installFlags) error {
	m, err := c.services()
	if err != nil {
		return err
	}
	set, warnings, err := config.NewProxySource(args).Load()
	if err != nil {
		return badSettings(err)
	}
	c.printWarnings(warnings)
	s, err := specOf(m, fl, config.RoleProxy, args.Config, set, f)
	if err != nil {
		return err
	}
	s.LowPorts = f.lowPorts || c.wantsLowPorts(ctx, set, m.State(config.RoleProxy))
	// The line with the token, which must come to light only when the service is there, and then must not be lost.
	var line, words bytes.Buffer
	s.Prepare = func(dir string) error {
		first := *c
		first.stdout, first.stderr = &line, &words
		return first.prepareProxy(dir, set)
	}
	err = c.install(ctx, m, s, f)
	if err != nil {
		return err
	}
	if _, err := c.stdout.Write(line.Bytes()); err != nil {
		return err
	}
	_, err = c.stderr.Write(words.Bytes())
	return err
}

// install installs a service, or shows what it would do.
func (c *cli) install(ctx context.Context, m service.Manager, s service.Spec, f installFlags) error {
	if f.dryRun {
		plan, err := m.Plan(s)
		if err != nil {
			return serviceError(err)
		}
		return c.printPlan(plan)
	}
	if err := m.Install(ctx, s, f.replace); err != nil {
		return serviceError(err)
	}
	return c.printServiceState(ctx, m, s.Role)
}

func (c *cli) printPlan(plan service.Plan) error {
	for i, file := range plan.Files {
		if i > 0 {
			fmt.Fprintln(c.stdout)
		}
		fmt.Fprintf(c.stdout, "# %s\n", file.Path)
		if file.Note != "" {
			fmt.Fprintf(c.stdout, "# %s\n", file.Note)
		}
		fmt.Fprint(c.stdout, file.Text)
	}
	fmt.Fprintln(c.stdout)
	for _, command := range plan.Commands {
		fmt.Fprintf(c.stdout, "# run: %s\n", command)
	}
	if plan.Obstacle != nil {
		fmt.Fprintf(c.stderr, "warning: on this machine the installation would be refused: %v\n", plan.Obstacle)
		if e, ok := errors.AsType[*service.Error](plan.Obstacle); ok && e.Hint != "" {
			fmt.Fprintf(c.stderr, "hint: %s\n", e.Hint)
		}
	}
	return nil
}

func (c *cli) printWarnings(warnings []config.Warning) {
	for _, w := range warnings {
		fmt.Fprintf(c.stderr, "warning: %s\n", w)
	}
}

// prepareProxy makes the identity and the first key of a proxy that has none, as its first start would: what a service prints is
// kept in a log, where a token has no place.
func (c *cli) prepareProxy(path string, set config.Settings) error {
	dir, err := state.Open(path, set.TrustOwner...)
	if errors.Is(err, state.ErrInUse) {
		return nil // by a proxy, which has done that
	}
	if err != nil {
		return usage(err)
	}
	defer dir.Close()
	if dir.HasKeysFile() {
		return nil
	}
	identity, _, err := dir.Identity()
	if err != nil {
		return usage(err)
	}
	pin := state.Pin(identity)
	if set, err = set.WithKeys(nil, pin); err != nil {
		return badSettings(err)
	}
	if len(set.Proxy.Keys) > 0 {
		return dir.SetKeys(nil)
	}
	port := grammar.PortOf(set.Proxy.Listen, defaultPort)
	guessed := guessAddress(&net.TCPAddr{Port: int(port)}, set.Proxy.Listen, interfaceAddrs())
	if err := dir.SetReach(reach(set.Proxy, guessed)); err != nil {
		return usage(err)
	}
	keys := &admin.KeyEditor{Dir: dir, Pin: pin, Reach: dir.Reach, InForce: storedKeys(dir, pin)}
	return c.makeDefaultKey(keys, set.Proxy.OfferPolicy(), port, slog.New(slog.DiscardHandler))
}

// wantsLowPorts reports whether a proxy was told of a port below 1024: to listen there, or by what a key may open.
func (c *cli) wantsLowPorts(ctx context.Context, set config.Settings, dir string) bool {
	const least = 1024
	for _, addr := range []string{set.Proxy.Listen, set.Proxy.Transfer, set.Proxy.HTTP, set.Proxy.HTTPS} {
		if port := grammar.PortOf(addr, least); port != 0 && port < least {
			return true
		}
	}
	for _, public := range set.Proxy.Offer {
		if public.Port < least {
			return true
		}
	}
	low := func(policy grammar.Policy) bool {
		return slices.ContainsFunc(policy, func(a grammar.Allow) bool { return a.Low != 0 && a.Low < least })
	}
	for _, t := range set.Proxy.Tables {
		if low(t.Allow) {
			return true
		}
	}
	// What the keys of the service that is there may open.
	if _, err := os.Stat(dir); dir == "" || err != nil {
		return false
	}
	store, err := c.openKeys(ctx, "key list", stateDir{path: dir}, false)
	if err != nil {
		return false
	}
	defer store.Close()
	keys, err := store.ListKeys(ctx)
	return err == nil && slices.ContainsFunc(keys, func(k admin.KeyInfo) bool {
		policy, err := grammar.ParsePolicy(k.Allow)
		return err == nil && low(policy)
	})
}
