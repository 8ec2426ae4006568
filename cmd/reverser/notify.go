package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/notify"
	"reverser/internal/status"
)

// notices tells what the [[notify]] tables of a process's settings name.
type notices struct {
	notify.Notifier
	settings func() config.Settings // in force
}

func newNotices(r *reloader, log *slog.Logger) *notices {
	host, err := os.Hostname()
	if err != nil {
		host = "a machine without a name"
	}
	n := &notices{notify.Notifier{Role: r.settings().Role, Host: host, Log: log}, r.settings}
	if n.Role == config.RoleProxy {
		n.Keys = n.keys
	}
	return n
}

// keys are the names of the keys that a proxy honours.
func (n *notices) keys() map[string]bool {
	names := make(map[string]bool)
	for _, k := range n.settings().Proxy.Keys {
		names[k.Name] = true
	}
	return names
}

func (n *notices) targets() (all []notify.Target) {
	for _, t := range n.settings().Notify {
		all = append(all, notify.Target(t))
	}
	return all
}

func (n *notices) run(ctx context.Context, look func() status.Snapshot) {
	n.Run(ctx, look, n.targets)
}

func (n *notices) test(ctx context.Context) (all []admin.Notified) {
	for _, r := range n.Test(ctx, n.targets()) {
		all = append(all, admin.Notified(r))
	}
	return all
}

func (c *cli) notifyCommand() *cobra.Command {
	var path string
	var test, asJSON bool
	cmd := &cobra.Command{
		Use:   "notify --test",
		Short: "Try the chats and programs that are told of outages",
		Long: `Have the process that is running on a state directory send a test message to
each [[notify]] of its configuration file, and say what became of it. The exit
code is 1 when one was not taken, or when there is none.`,
		Example: `  reverser notify --test`,
		Args:    takes("reverser notify --test"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !test {
				return usageHint("reverser notify --test", "%s does nothing but --test: what is told, and where, stands in the configuration file", cmd.CommandPath())
			}
			return c.testNotices(cmd.Context(), path, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &path)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&test, "test", false, "send a message to each [[notify]] now")
	return cmd
}

func (c *cli) testNotices(ctx context.Context, path string, asJSON bool) error {
	var results []admin.Notified
	err := c.askRunning(path, "notify --test", func(client *admin.Client) (err error) {
		results, err = client.TestNotices(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if asJSON {
		if err := c.printJSON(map[string]any{"results": append([]admin.Notified{}, results...)}); err != nil {
			return err
		}
	}
	if len(results) == 0 {
		return &exitError{code: exitFailed, err: errors.New("the process has no [[notify]] in its configuration file"), hint: "examples/config has one with comments; `reverser reload` puts it in force"}
	}
	failed := 0
	for _, r := range results {
		line := "sent: " + printable(r.To)
		if r.Error != "" {
			failed++
			line = "NOT SENT: " + printable(r.To) + ": " + printable(r.Error)
		}
		if !asJSON {
			fmt.Fprintln(c.stdout, line)
		}
	}
	if failed > 0 {
		return &exitError{code: exitFailed, err: fmt.Errorf("%d of %d took no message", failed, len(results))}
	}
	return nil
}
