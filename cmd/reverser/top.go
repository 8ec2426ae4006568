package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/status"
	"reverser/internal/top"
)

func (c *cli) topCommand() *cobra.Command {
	var path string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the links, services and connections of the running process",
		Long: `Watch what the process that is running on a state directory does: what is
wrong, its connections, services and links, and how much they move, once a
second. Connections are sorted by rate, total, age or name, can be searched
(/), and ended (x). ? shows all keys, q quits.

Little is sent to the terminal, so that it can be used over a slow ssh. When
the process ends, the command says so and waits for the next one.

With --json it needs no terminal, and prints one object a line each second,
with the 20 connections that move most.`,
		Example: `  reverser top
  reverser top --json | jq '.received_per_second'`,
		Args: takes("reverser top --state DIR"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.top(cmd.Context(), path, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &path)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line each second")
	return cmd
}

func (c *cli) top(ctx context.Context, path string, asJSON bool) error {
	const instead = "`reverser status` shows the state once, and `reverser top --json` prints a line a second"
	if !asJSON {
		if !isTerminal(c.stdin) || !isTerminal(c.out) {
			return usageHint(instead, "top draws on a terminal, and this is none")
		}
		if why := top.Unfit(os.Getenv("TERM")); why != "" {
			return usageHint(instead, "top cannot draw on this terminal: %s", why)
		}
	}
	var first status.Snapshot
	path, err := c.askWhich(path, "top", func(client *admin.Client) (err error) {
		first, err = client.Status(ctx)
		return err
	})
	if err != nil {
		return err
	}
	client := adminOf(path)
	defer client.Close()
	live := newStreamed(ctx, client)
	defer live.close()
	src := top.Source{
		Look: live.look,
		End: func(ctx context.Context, id string) error {
			_, err := client.EndPair(ctx, id)
			return err
		},
		Fatal: notWorthWaiting,
	}
	if asJSON {
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
		defer stop()
		err = top.Lines(ctx, src, first, c.stdout, c.sayGone)
	} else {
		err = top.Show(ctx, src, first, c.stdin, c.out)
	}
	if err != nil && notWorthWaiting(err) {
		return notMine(fmt.Errorf("top of %s: %w", path, err), path, "top")
	}
	return err
}

// notWorthWaiting reports whether an error of the process of a directory is the same as long as one asks.
func notWorthWaiting(err error) bool {
	_, refused := errors.AsType[*admin.UsageError](err)
	return refused || errors.Is(err, fs.ErrPermission)
}

// sayGone says that the process does not answer any more, or, of no error, that it does again.
func (c *cli) sayGone(err error) {
	switch {
	case err == nil:
		fmt.Fprintln(c.stderr, "reverser: the process is there again")
	case errors.Is(err, top.ErrSilent):
		fmt.Fprintln(c.stderr, "reverser: the process does not answer, waiting for it")
	default:
		fmt.Fprintln(c.stderr, "reverser: the process has gone, waiting for the next one")
	}
}
