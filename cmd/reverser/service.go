package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reverser/internal/config"
	"reverser/internal/service"
)

var roles = []string{config.RoleProxy, config.RoleBridge}

func (c *cli) serviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "Run a proxy or bridge as a service of the system",
		Long: `Install a proxy or a bridge as a service of this system (systemd, launchd or
the Windows service manager), which starts it with the machine and again when
it fails. Start, stop, look at and uninstall it.`,
		Example: `  # on the server: prints the line to paste on the other machine
  sudo reverser service install proxy --advertise tunnel.example.com

  # next to the service; the token comes from a file
  sudo reverser service install bridge --token-file nas.token 9000=9904

  reverser service status`,
		Args: noSuchCommand,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(c.serviceInstallCommand(), c.serviceUninstallCommand(), c.serviceStartCommand(), c.serviceStopCommand(), c.serviceStatusCommand())
	return cmd
}

// services returns the service manager of this machine.
func (c *cli) services() (service.Manager, error) {
	if c.manager == nil {
		return nil, &exitError{code: exitFailed, err: fmt.Errorf("on %s no service manager is known", runtime.GOOS),
			hint: "have the system's own one run `reverser proxy` or `reverser bridge`"}
	}
	return c.manager, nil
}

// withServices is what a command does that asks the service manager.
func (c *cli) withServices(f func(ctx context.Context, m service.Manager, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		m, err := c.services()
		if err != nil {
			return err
		}
		return f(cmd.Context(), m, args)
	}
}

// serviceError gives an error of a service manager its exit code and hint.
func serviceError(err error) error {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*service.Error](err)
	if !ok {
		return err
	}
	code := exitFailed
	if e.Usage {
		code = exitUsage
	}
	return &exitError{code: code, err: err, hint: e.Hint}
}

// takesRole wants one role, or with optional none.
func takesRole(optional bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && optional {
			return nil
		}
		example := cmd.CommandPath() + " bridge"
		if len(args) == 0 {
			return usageHint(example, "%s needs a role: proxy or bridge", cmd.CommandPath())
		}
		if args[0] != config.RoleProxy && args[0] != config.RoleBridge {
			return usageHint(example, "%q is no role: it is proxy or bridge", args[0])
		}
		if len(args) > 1 {
			return usageHint(example, "%s takes one role, and %q is one more", cmd.CommandPath(), args[1])
		}
		return nil
	}
}

func (c *cli) serviceUninstallCommand() *cobra.Command {
	var purge bool
	cmd := &cobra.Command{
		Use:   "uninstall proxy|bridge",
		Short: "Stop a service and remove it",
		Long: `Stop a service and remove it, its token included. Its state directory stays,
which for a proxy has the identity and the keys: with it the next one works
with the same tokens. --purge removes that too.`,
		Example:   `  sudo reverser service uninstall bridge`,
		Args:      takesRole(false),
		ValidArgs: roles,
		RunE: c.withServices(func(ctx context.Context, m service.Manager, args []string) error {
			kept, err := m.Uninstall(ctx, args[0], purge)
			if err != nil {
				return serviceError(err)
			}
			fmt.Fprintf(c.stdout, "%s is not a service any more\n", service.UnitName(args[0]))
			for _, k := range kept {
				fmt.Fprintf(c.stdout, "still there: %s (%s)\n", k.Path, k.Why)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the state directory as well: a proxy's identity and keys are gone then")
	return cmd
}

func (c *cli) serviceStartCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "start proxy|bridge",
		Short:     "Start a service that is installed",
		Example:   `  sudo reverser service start bridge`,
		Args:      takesRole(false),
		ValidArgs: roles,
		RunE: c.withServices(func(ctx context.Context, m service.Manager, args []string) error {
			if err := m.Start(ctx, args[0]); err != nil {
				return serviceError(err)
			}
			return c.printServiceState(ctx, m, args[0])
		}),
	}
}

func (c *cli) serviceStopCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stop proxy|bridge",
		Short: "Stop a service until it is started, or the machine is",
		Long: `Stop a service until it is started again, or the machine is. Its open
connections finish first, as --drain says.`,
		Example:   `  sudo reverser service stop bridge`,
		Args:      takesRole(false),
		ValidArgs: roles,
		RunE: c.withServices(func(ctx context.Context, m service.Manager, args []string) error {
			if err := m.Stop(ctx, args[0]); err != nil {
				return serviceError(err)
			}
			fmt.Fprintf(c.stdout, "%s is stopped\n", service.UnitName(args[0]))
			return nil
		}),
	}
}

func (c *cli) serviceStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status [proxy|bridge]",
		Short: "Show how a service does, and why it does not come up",
		Long: `Show how a service does. Of one that does not come up it shows why: how the
process ended, and what it said last. The exit code is 0 when the service is
running, 1 when it is not or is not installed. Without a role it is about those
that are installed.`,
		Example: `  reverser service status
  reverser service status bridge --json`,
		Args:      takesRole(true),
		ValidArgs: roles,
		RunE: c.withServices(func(ctx context.Context, m service.Manager, args []string) error {
			return c.serviceStatus(ctx, m, args, asJSON)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// serviceJSON is what `service status --json` prints of a service.
type serviceJSON struct {
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Manager string    `json:"manager"`
	State   string    `json:"state"`
	Since   time.Time `json:"since,omitzero"`
	PID     int       `json:"pid,omitempty"`
	Text    string    `json:"text,omitempty"`
	Boot    bool      `json:"boot"`
	Why     string    `json:"why,omitempty"`
	Log     []string  `json:"log,omitempty"`
}

func (c *cli) serviceStatus(ctx context.Context, m service.Manager, asked []string, asJSON bool) error {
	named := len(asked) > 0
	if !named {
		asked = roles
	}
	list := []serviceJSON{}
	var down []string
	for _, role := range asked {
		st, err := m.Status(ctx, role)
		if errors.Is(err, service.ErrNotInstalled) && !named {
			continue
		}
		if err != nil {
			return serviceError(err)
		}
		if st.State != service.Running {
			down = append(down, service.UnitName(role))
		} else if words := askedNow(ctx, m.State(role)); words != "" {
			st.Text = words // what the manager was told is some seconds old, and some managers are told nothing
		}
		list = append(list, serviceJSON{service.UnitName(role), role, m.Name(), st.State, st.Since, st.PID, st.Text, st.Boot, st.Why, st.Log})
		if !asJSON {
			printService(c.stdout, service.UnitName(role), m.Name(), st, time.Now())
		}
	}
	if asJSON {
		if err := c.printJSON(list); err != nil {
			return err
		}
	}
	switch {
	case len(list) == 0:
		return &exitError{code: exitFailed, err: errors.New("no service is installed: neither a proxy nor a bridge"),
			hint: "`reverser service install --help` shows how; `reverser status` asks a process that is no service" + elsewhere(m)}
	case len(down) > 0:
		return &exitError{code: exitFailed, err: fmt.Errorf("not running: %s", strings.Join(down, ", "))}
	}
	return nil
}

// askedNow is what the process of a state directory says of itself, "" if it says nothing within a moment, or not to this user.
func askedNow(ctx context.Context, dir string) string {
	if dir == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	client := adminOf(dir)
	defer client.Close()
	s, err := client.Summary(ctx)
	if err != nil {
		return ""
	}
	return inWords(s)
}

// elsewhere is where else to look for services: those of a package have names, and this command does not know them.
func elsewhere(m service.Manager) string {
	if m.Name() != "systemd" {
		return ""
	}
	return "; services of files, as a package has them: systemctl status 'reverser-*@*'"
}

func printService(w io.Writer, name, manager string, st service.Status, now time.Time) {
	line := name + "  " + st.State
	if !st.Since.IsZero() {
		line += " for " + span(now.Sub(st.Since))
	}
	if st.PID != 0 {
		line += fmt.Sprintf(", pid %d", st.PID)
	}
	if st.Boot {
		line += ", starts with the machine"
	} else {
		line += ", does not start with the machine"
	}
	fmt.Fprintf(w, "%s (%s)\n", line, manager)
	if st.Text != "" && st.State != service.Failed && st.State != service.Stopped { // of these it is what the last process said
		fmt.Fprintf(w, "  %s\n", printable(st.Text))
	}
	if st.Why != "" {
		fmt.Fprintf(w, "  why: %s\n", printable(st.Why))
	}
	if len(st.Log) > 0 {
		if st.State == service.Running {
			fmt.Fprintln(w, "  it warned of:")
		} else {
			fmt.Fprintln(w, "  it said last:")
		}
		for _, l := range st.Log {
			fmt.Fprintf(w, "    %s\n", printable(l))
		}
	}
	if st.LogHint != "" && (st.Why != "" || len(st.Log) > 0) {
		fmt.Fprintf(w, "  %s\n", st.LogHint)
	}
}

// printServiceState says in a line how a service that was started does.
func (c *cli) printServiceState(ctx context.Context, m service.Manager, role string) error {
	st, err := m.Status(ctx, role)
	if err != nil {
		return serviceError(err)
	}
	st.Text = first(askedNow(ctx, m.State(role)), st.Text)
	if len(st.Log) > 0 { // it has warned of something already
		printService(c.stdout, service.UnitName(role), m.Name(), st, time.Now())
		return nil
	}
	line := fmt.Sprintf("%s is %s", service.UnitName(role), st.State)
	if st.Text != "" {
		line += ": " + printable(st.Text)
	}
	_, err = fmt.Fprintln(c.stdout, line)
	return err
}
