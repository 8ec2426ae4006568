package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/grammar"
	"reverser/internal/traffic"
)

func (c *cli) endCommand() *cobra.Command {
	var path, service, key, client string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "end PAIR... | --service PUBLIC | --key NAME | --client CIDR",
		Short: "Reset connections of users",
		Long: `Reset connections of users: those that ` + "`reverser status`" + ` shows under PAIR, or
all of a service, a key or a client; of several options, those that all of them
mean. User and target see a reset, and both sides log the reason ended. Users
may come back at once.

PUBLIC may be a range or a wildcard, as in --allow; http/HOST without one is
that service alone, and none of its paths. Works at either side; at a bridge its
key is the id that its status shows.`,
		Example: `  reverser end 17 23
  reverser end --service tcp/9000
  reverser end --service 'http/*' --client 203.0.113.0/24
  reverser end --key nas`,
		Args: func(cmd *cobra.Command, args []string) error {
			chosen := cmd.Flags().Changed("service") || cmd.Flags().Changed("key") || cmd.Flags().Changed("client")
			switch {
			case len(args) == 0 && !chosen:
				return usageHint("reverser end --service tcp/9000", "reverser end needs a PAIR, as `reverser status` shows it, or --service, --key or --client")
			case len(args) > 0 && chosen:
				return usageHint("give one or the other", "a PAIR and --service, --key or --client do not go together")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var which admin.Which
			if cmd.Flags().Changed("service") {
				if which.Service, err = grammar.ParseServices(service); err != nil {
					return usage(fmt.Errorf("--service: %w", err))
				}
			}
			if cmd.Flags().Changed("client") {
				if which.Client, err = admin.ParseClient(client); err != nil {
					return usage(fmt.Errorf("--client: %w", err))
				}
			}
			if which.Key = key; cmd.Flags().Changed("key") && key == "" {
				return usageHint("`reverser key list` shows the names", "--key is empty")
			}
			return c.end(cmd.Context(), path, args, which, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &path)
	cmd.Flags().StringVar(&service, "service", "", "end the connections of the service `PUBLIC`")
	cmd.Flags().StringVar(&key, "key", "", "end the connections of the key `NAME`")
	cmd.Flags().StringVar(&client, "client", "", "end the connections from `CIDR`, a network or an address")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) end(ctx context.Context, path string, ids []string, which admin.Which, asJSON bool) error {
	ended := 0
	var missing []error
	err := c.askRunning(path, "end", func(client *admin.Client) (err error) {
		if len(ids) == 0 {
			ended, err = client.EndPairs(ctx, which)
			return err
		}
		for _, id := range ids {
			n, err := client.EndPair(ctx, id)
			if refused, ok := errors.AsType[*admin.UsageError](err); ok { // the others are meant all the same
				missing = append(missing, refused)
				continue
			}
			if err != nil {
				return err
			}
			ended += n
		}
		return nil
	})
	if err != nil {
		return keyError(err)
	}
	if asJSON {
		err = c.printJSON(struct {
			Ended int `json:"ended"`
		}{ended})
	} else {
		_, err = fmt.Fprintf(c.stdout, "%s ended\n", count(ended, "connection"))
	}
	if len(missing) > 0 {
		return usage(errors.Join(missing...))
	}
	return err
}

// endsPairs is a role that ends connections when it is told to.
type endsPairs interface{ EndPairs(traffic.Which) int }

// endPairs is the order as a role takes it.
func endPairs(role endsPairs) func(admin.Which) int {
	return func(w admin.Which) int {
		meant := traffic.Which{ID: w.ID, Key: w.Key, Client: w.Client}
		if w.Service != (grammar.Allow{}) {
			meant.Service = w.MeansService
		}
		return role.EndPairs(meant)
	}
}
