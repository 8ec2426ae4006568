package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/grammar"
	"reverser/internal/proxy"
)

func (c *cli) drainCommand() *cobra.Command {
	var path string
	var o admin.DrainOrder
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "drain PUBLIC | --key NAME [--undo]",
		Short: "Let no new users in to a service",
		Long: `Let no new users in to a service, or to all services of a key, at the proxy. New
ones are reset at once, and get the page 503 from http/ and https/ services;
connections that are there go on.

PUBLIC may be a range or a wildcard, as in --allow; services that come later and
that it covers are drained as well. http/HOST without a wildcard is that service
alone, and none of its paths. --undo takes the same words. A reload does not
undo the order, a restart of the proxy does.`,
		Example: `  reverser drain tcp/9000
  reverser drain 'http/*.example.com'
  reverser drain --key nas
  reverser drain tcp/9000 --undo`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch chosen := cmd.Flags().Changed("key"); {
			case len(args) == 0 && !chosen:
				return usageHint("reverser drain tcp/9000", "reverser drain needs PUBLIC, or --key NAME")
			case len(args) > 1:
				return usageHint("a range or a wildcard names several", "reverser drain takes one PUBLIC, and %q is one more", args[1])
			case len(args) == 1 && chosen:
				return usageHint("give one or the other", "PUBLIC and --key do not go together")
			case chosen && o.Key == "":
				return usageHint("`reverser key list` shows the names", "--key is empty")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 1 {
				if o.Service, err = grammar.ParseServices(args[0]); err != nil {
					return usage(err)
				}
			}
			return c.drain(cmd.Context(), path, o, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &path)
	cmd.Flags().StringVar(&o.Key, "key", "", "all services of the key `NAME`")
	cmd.Flags().BoolVar(&o.Undo, "undo", false, "let users in again")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) drain(ctx context.Context, path string, o admin.DrainOrder, asJSON bool) error {
	var done admin.Drained
	err := c.askRunning(path, "drain", func(client *admin.Client) (err error) {
		done, err = client.Drain(ctx, o)
		return err
	})
	switch {
	case err != nil:
		return keyError(err)
	case asJSON:
		return c.printJSON(done)
	}
	services := strings.Join(done.Services, ", ")
	if services == "" {
		services = "no service at present"
	}
	if o.Undo {
		_, err = fmt.Fprintf(c.stdout, "new users are let in again: %s\n", services)
	} else {
		_, err = fmt.Fprintf(c.stdout, "no new users are let in: %s; going on: %s\n", services, count(done.Connections, "connection"))
	}
	return err
}

// drains is a role that turns users away when it is told to.
type drains interface {
	DrainUsers(context.Context, proxy.DrainOrder) (proxy.Drained, error)
}

// drainUsers is the order as a role takes it; nil: it takes none.
func drainUsers(role server) func(context.Context, admin.DrainOrder) (admin.Drained, error) {
	d, ok := role.(drains)
	if !ok {
		return nil
	}
	return func(ctx context.Context, o admin.DrainOrder) (admin.Drained, error) {
		done, err := d.DrainUsers(ctx, proxy.DrainOrder(o))
		if refused, ok := errors.AsType[*proxy.DrainError](err); ok {
			usage := &admin.UsageError{Err: err, Code: http.StatusNotFound}
			if refused.There {
				usage.Code = http.StatusConflict
			}
			return admin.Drained{}, usage
		}
		return admin.Drained(done), err
	}
}
