package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/grammar"
	"reverser/internal/state"
	meter "reverser/internal/usage"
)

func (c *cli) usageCommand() *cobra.Command {
	var dir stateDir
	var by, service string
	var month, asJSON bool
	var q meter.Query
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "Show what services and keys carried, by hour, day or month",
		Long: `Show what was carried, by hour, day or month of UTC, for each service and key:
connections, users who were refused, bytes from clients to targets (SENT) and
back (RECEIVED).

It is kept in the state directory: the latest 48 hours, 366 days and all months
in which there was something. The process that is running is asked; when none
is, the file is read. Without --state it is the proxy's default directory, or
else the bridge's, or else that of a service.`,
		Example: `  reverser usage
  reverser usage --month
  reverser usage --by hour --service 9000 --last 24
  reverser usage --month --key nas --json`,
		Args: takes("reverser usage --by day"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if month {
				if cmd.Flags().Changed("by") && by != string(meter.Month) {
					return usageHint("give one of them", "--month is --by month, and does not go with --by %s", by)
				}
				by = string(meter.Month)
			}
			if q.By, err = meter.ParsePeriod(by); err != nil {
				return usageHint("reverser usage --by day", "--by: %w", err)
			}
			if service != "" && service != meter.OtherServices {
				public, err := grammar.ParsePublic(service)
				if err != nil {
					return usageHint("SERVICE is what a bridge publishes, without its target: `reverser usage --service 9000`", "--service: %w", err)
				}
				service = public.String()
			}
			q.Service = service
			switch {
			case !cmd.Flags().Changed("last"):
				q.Last = map[meter.Period]int{meter.Hour: 24, meter.Day: 31}[q.By]
			case q.Last < 1:
				return usageHint("reverser usage --last 7", "--last %d: it is a number from 1 on", q.Last)
			}
			return c.showUsage(cmd.Context(), dir, q, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &dir.path)
	addTrustFlag(cmd.Flags(), &dir.trusted)
	fl := cmd.Flags()
	fl.StringVar(&by, "by", string(meter.Day), "`PERIOD` that numbers are added up over: hour, day or month")
	fl.BoolVar(&month, "month", false, "the same as --by month")
	fl.StringVar(&service, "service", "", "only `SERVICE`, in the form of PUBLIC")
	fl.StringVar(&q.Key, "key", "", "only the key with this `NAME`")
	fl.IntVar(&q.Last, "last", 0, "only the latest `N` periods up to now (default: 24 hours, 31 days, all months)")
	fl.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) showUsage(ctx context.Context, dir stateDir, q meter.Query, asJSON bool) error {
	var r meter.Report
	err := c.askRunning(dir.path, "usage", func(client *admin.Client) (err error) {
		r, err = client.Usage(ctx, q)
		return err
	})
	if errors.Is(err, state.ErrNotRunning) {
		r, err = c.storedUsage(dir, q)
	}
	switch {
	case err != nil:
		return err
	case asJSON:
		return c.printJSON(r)
	}
	if r.Warning != "" {
		fmt.Fprintf(c.stderr, "warning: %s\n", r.Warning)
	}
	return printUsage(c.stdout, r, time.Now())
}

// storedUsage reads the file of the first directory that has one.
func (c *cli) storedUsage(dir stateDir, q meter.Query) (meter.Report, error) {
	paths := []string{dir.path}
	if dir.path == "" {
		var err error
		if paths, err = c.usualStates(state.RoleProxy, state.RoleBridge); err != nil {
			return meter.Report{}, err
		}
	}
	for _, path := range paths {
		file, err := state.OpenUsage(path, dir.trusted...)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return meter.Report{}, notMine(err, path, "usage")
		}
		defer file.Close()
		if _, err := file.Stat(); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		r, err := meter.Read(file, q)
		if err != nil {
			return meter.Report{}, notMine(fmt.Errorf("usage of %s: %w", path, err), path, "usage")
		}
		return r, nil
	}
	return meter.Report{}, &exitError{
		code: exitFailed,
		err:  fmt.Errorf("no usage is stored in %s, and %w there", strings.Join(paths, " or "), state.ErrNotRunning),
		hint: "if a process runs with another --state DIR, give the same one here",
	}
}

func printUsage(w io.Writer, r meter.Report, now time.Time) error {
	if len(r.Rows) == 0 {
		_, err := fmt.Fprintln(w, "nothing was counted")
		return err
	}
	if r.More {
		if _, err := fmt.Fprintf(w, "earlier ones are left out, since there are more than %d rows: --last, --service and --key choose\n", meter.MostAnswered); err != nil {
			return err
		}
	}
	if n := r.Ahead(now); n > 0 {
		if _, err := fmt.Fprintf(w, "%s of the future: the clock was ahead when they were counted, or is behind now\n", count(n, string(r.By))); err != nil {
			return err
		}
	}
	layout := map[meter.Period]string{meter.Hour: "2006-01-02 15:00", meter.Day: time.DateOnly, meter.Month: "2006-01"}[r.By]
	t := newTable(w)
	t.row(strings.ToUpper(string(r.By)), "SERVICE", "KEY", "CONNECTIONS", "REFUSED", "SENT", "RECEIVED")
	var total meter.Counts
	row := func(period, service, key string, n meter.Counts) {
		t.row(period, service, key, strconv.FormatUint(n.Connections, 10), strconv.FormatUint(n.Refused, 10), size(n.Sent), size(n.Received))
	}
	for _, x := range r.Rows {
		row(x.Start.Format(layout), x.Service, x.Key, x.Counts)
		total.Sent += x.Sent
		total.Received += x.Received
		total.Connections += x.Connections
		total.Refused += x.Refused
	}
	row("total", "", "", total)
	return t.flush()
}
