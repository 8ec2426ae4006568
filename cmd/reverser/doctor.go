package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/doctor"
	"reverser/internal/state"
	"reverser/internal/status"
)

func (c *cli) doctorCommand() *cobra.Command {
	var path string
	var trusted []int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong, and what to do",
		Long: `Look at a proxy or a bridge and at what it depends on, one step at a time, and
say of each whether it is well, what is wrong, and what to do.

Beside a running process it asks that one and looks around it; without --state
that is every one that runs on the usual state directories. When none comes up,
put doctor in front of its command: ` + "`reverser doctor bridge`" + ` and
` + "`reverser doctor proxy`" + ` take all arguments of ` + "`reverser bridge`" + ` and
` + "`reverser proxy`" + `, and look at what a start with them would meet.

Nothing is changed, and a link that is up is left alone. Each process takes less
than 15 seconds. The exit code is 0 when nothing is wrong, warnings included, and 1
when something is; 2 is a wrong command line.`,
		Example: `  reverser doctor
  reverser doctor bridge TOKEN 9000=9904
  reverser doctor proxy --config proxy.toml
  reverser doctor --json | jq '.[] | select(.state == "fail")'`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.doctorOfRunning(cmd.Context(), path, trusted, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &path)
	addTrustFlag(cmd.Flags(), &trusted)
	addDoctorJSON(cmd, &asJSON)
	cmd.AddCommand(c.doctorProxyCommand(), c.doctorBridgeCommand())
	return cmd
}

func addDoctorJSON(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print a list of {\"name\",\"state\",\"found\",\"hint\"}; state is ok, warn, fail or skip")
}

func (c *cli) doctorBridgeCommand() *cobra.Command {
	var args config.BridgeArgs
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "bridge [TOKEN] [EXPOSE...]",
		Short: "Look at what `reverser bridge` with these arguments would meet",
		Long: `Look at what ` + "`reverser bridge`" + ` with these arguments, this environment and this
configuration file meets, or would meet: the way to the proxy step by step, the
targets, the state directory and the machine. The key is tried without beginning
a session, so a bridge elsewhere that uses it notices nothing.`,
		Example: `  reverser doctor bridge TOKEN 9000=9904
  reverser doctor bridge --config bridge.toml`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, words []string) (err error) {
			if args.Token, args.Expose, err = cutToken(words); err != nil {
				return err
			}
			args.TokenEnv, args.Stdin, args.Environ = os.Getenv(config.TokenEnv), c.stdin, os.Getenv
			return c.doctorOf(cmd.Context(), config.RoleBridge, args.State, args.TrustOwner, config.NewBridgeSource(args), asJSON)
		},
	}
	addBridgeFlags(cmd.Flags(), &args)
	addDoctorJSON(cmd, &asJSON)
	return cmd
}

func (c *cli) doctorProxyCommand() *cobra.Command {
	var args config.ProxyArgs
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Look at what `reverser proxy` with these arguments would meet",
		Long: `Look at what ` + "`reverser proxy`" + ` with these arguments and this configuration file
meets, or would meet: its ports, which it opens for a moment when no process has
the state directory, its keys, the names of services, and the machine.`,
		Example: `  reverser doctor proxy --listen :3010 --https :443
  reverser doctor proxy --config proxy.toml`,
		Args: takes("reverser doctor proxy --listen :3010"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.doctorOf(cmd.Context(), config.RoleProxy, args.State, args.TrustOwner, config.NewProxySource(args), asJSON)
		},
	}
	addProxyFlags(cmd.Flags(), &args)
	addDoctorJSON(cmd, &asJSON)
	return cmd
}

// doctorOf looks at a role with the settings of a source, whether a process runs with them or not.
func (c *cli) doctorOf(ctx context.Context, role, path string, trusted []int, source config.Source, asJSON bool) error {
	p := doctor.Patient{Role: role, Trusted: trusted}
	set, warnings, err := source.Load()
	if p.Warnings, p.SettingsErr = warnings, err; err == nil {
		p.Settings, p.Trusted = &set, set.TrustOwner
		path = set.State
	}
	if p.State, err = statePath(path, role); err != nil {
		return err
	}
	if snap, err := snapshotOf(ctx, p.State); err == nil {
		p.Snapshot, p.Ask = &snap, doctorAt(p.State)
	} else if !errors.Is(err, state.ErrNotRunning) {
		p.AskErr = err
	}
	return c.examine(ctx, []doctor.Patient{p}, asJSON)
}

// doctorOfRunning looks at the processes that run on a state directory, or on the usual ones.
func (c *cli) doctorOfRunning(ctx context.Context, path string, trusted []int, asJSON bool) error {
	paths := []string{path}
	if path == "" {
		var err error
		if paths, err = c.usualStates(state.RoleProxy, state.RoleBridge); err != nil {
			return err
		}
	}
	var patients []doctor.Patient
	for _, path := range paths {
		snap, err := snapshotOf(ctx, path)
		if errors.Is(err, state.ErrNotRunning) {
			continue
		}
		if _, silent := errors.AsType[*state.SilentError](err); silent { // which is one of the faults
			role := state.RoleBridge
			if state.HasIdentity(path) {
				role = state.RoleProxy
			}
			patients = append(patients, doctor.Patient{Role: role, State: path, Trusted: trusted, AskErr: err})
			continue
		}
		if err != nil {
			return notMine(fmt.Errorf("doctor of %s: %w", path, err), path, "doctor")
		}
		patients = append(patients, doctor.Patient{Role: snap.Role, State: path, Trusted: trusted, Snapshot: &snap, Ask: doctorAt(path)})
	}
	if len(patients) == 0 {
		for _, role := range []string{state.RoleProxy, state.RoleBridge} {
			if path == "" && c.manager != nil && c.manager.State(role) != "" {
				return &exitError{
					code: exitFailed,
					err:  fmt.Errorf("the %s is installed as a service, and does not run", role),
					hint: "`reverser service status` says why, with the last lines of its log",
				}
			}
		}
		return &exitError{
			code: exitFailed,
			err:  fmt.Errorf("%w in %s", state.ErrNotRunning, strings.Join(paths, " or ")),
			hint: "if one runs with another --state DIR, give the same one here; if none comes up, put doctor in front of its command: `reverser doctor bridge TOKEN 9000`, `reverser doctor proxy`",
		}
	}
	return c.examine(ctx, patients, asJSON)
}

// shownCheck is a check with whose it is.
type shownCheck struct {
	Role string `json:"role"`
	doctor.Check
}

// examine looks at each patient, and prints what is found as it is found.
func (c *cli) examine(ctx context.Context, patients []doctor.Patient, asJSON bool) error {
	w := doctor.NewWorld(built())
	all := []shownCheck{}
	var checks []doctor.Check
	for i, p := range patients {
		if !asJSON {
			if i > 0 {
				fmt.Fprintln(c.stdout)
			}
			what := "that would start"
			if p.Snapshot != nil || p.AskErr != nil {
				what = "that runs"
			}
			fmt.Fprintf(c.stdout, "the %s %s, state directory %s\n", p.Role, what, printable(p.State))
		}
		w.Examine(ctx, p, func(check doctor.Check) {
			checks = append(checks, check)
			all = append(all, shownCheck{p.Role, check})
			if !asJSON {
				c.printCheck(check)
			}
		})
	}
	if asJSON {
		if err := c.printJSON(all); err != nil {
			return err
		}
	}
	failed, warned := 0, 0
	for _, check := range checks {
		switch check.State {
		case doctor.Fail:
			failed++
		case doctor.Warn:
			warned++
		}
	}
	if failed > 0 {
		return &exitError{code: exitFailed, err: fmt.Errorf("%d of %d checks failed", failed, len(checks))}
	}
	if asJSON {
		return nil
	}
	text := "\nall is well"
	if warned > 0 {
		text = fmt.Sprintf("\nnothing is wrong; warnings: %d", warned)
	}
	_, err := fmt.Fprintln(c.stdout, text)
	return err
}

// printCheck prints a check on one line, and what to do on another.
func (c *cli) printCheck(check doctor.Check) {
	word := string(check.State)
	if check.State == doctor.Warn || check.State == doctor.Fail {
		word = strings.ToUpper(word)
	}
	fmt.Fprintf(c.stdout, "%-4s  %-12s  %s\n", word, check.Name, printable(check.Found))
	if check.Hint != "" {
		fmt.Fprintf(c.stdout, "%-4s  %-12s  → %s\n", "", "", printable(check.Hint))
	}
}

// built is when the source of this program was written, as far as the build knows; the zero value: it does not.
func built() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			at, _ := time.Parse(time.RFC3339, s.Value)
			return at
		}
	}
	return time.Time{}
}

// doctorAt has the process of a state directory look at what only it can.
func doctorAt(path string) func(context.Context) ([]doctor.Check, error) {
	return func(ctx context.Context) (all []doctor.Check, err error) {
		client := adminOf(path)
		defer client.Close()
		found, err := client.Doctor(ctx)
		for _, c := range found {
			all = append(all, doctor.Check{Name: c.Name, State: doctor.State(c.State), Found: c.Found, Hint: c.Hint})
		}
		return all, err
	}
}

// checksOf are checks as the admin socket has them.
func checksOf(all []doctor.Check) (list []status.Check) {
	for _, c := range all {
		list = append(list, status.Check{Name: c.Name, State: string(c.State), Found: c.Found, Hint: c.Hint})
	}
	return list
}

// snapshotOf asks the process of a state directory for its state.
func snapshotOf(ctx context.Context, path string) (snap status.Snapshot, err error) {
	ctx, cancel := context.WithTimeout(ctx, doctor.AskLimit)
	defer cancel()
	err = askOne(path, func(client *admin.Client) error {
		snap, err = client.Summary(ctx)
		return err
	})
	return snap, err
}
