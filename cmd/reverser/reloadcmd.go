package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/escape"
)

func (c *cli) reloadCommand() *cobra.Command {
	var path string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the running process read its configuration again",
		Long: `Have the process that is running on a state directory read its configuration
file again. Without --state it is the proxy's default directory, then the
bridge's, then that of a service. SIGHUP and a change of the file do the same.

Services, keys, targets, limits and the level of the log change without a
restart, and what is the same keeps its connections. Connections of a removed
service finish, those of a removed key are reset. A file with a fault changes
nothing: the exit code is 1, and the fault is told.

The command returns when the other side has confirmed what changed there, or
after 5 seconds with a word about what it has not confirmed yet. A service of
the change that the proxy does not serve is named with its reason.

Where a disk does not answer, the command ends after 10 seconds and says which
file the process reads, and since when. Everything else goes on.`,
		Example: `  reverser reload
  reverser reload --state /var/lib/reverser/bridge`,
		Args: takes("reverser reload --state DIR"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.reload(cmd.Context(), path, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &path)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) reload(ctx context.Context, path string, asJSON bool) error {
	var done admin.Reloaded
	err := c.askRunning(path, "reload", func(client *admin.Client) (err error) {
		done, err = client.Reload(ctx)
		return err
	})
	if refused, ok := errors.AsType[*admin.UsageError](err); ok {
		// The command was right, and what the process was to read was not.
		return &exitError{code: exitFailed, err: fmt.Errorf("nothing has changed: %w", refused.Err)}
	}
	if reading, ok := errors.AsType[*admin.ReadingError](err); ok {
		return &exitError{code: exitFailed, err: reading, hint: reading.Remedy()}
	}
	if err != nil {
		return err
	}
	if asJSON {
		return c.printJSON(done)
	}
	for _, w := range done.Warnings {
		fmt.Fprintf(c.stderr, "warning: %s\n", escape.Text(w)) // it may be the proxy's words
	}
	if len(done.Unconfirmed) > 0 {
		fmt.Fprintf(c.stderr, "note: the other side has not confirmed yet: %s\n", strings.Join(done.Unconfirmed, ", "))
	}
	if len(done.Changed) == 0 {
		_, err = fmt.Fprintln(c.stdout, "nothing is different")
		return err
	}
	_, err = fmt.Fprintln(c.stdout, strings.Join(done.Changed, "\n"))
	return err
}
