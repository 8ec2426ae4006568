package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/escape"
	"reverser/internal/events"
)

const (
	// followedFirst is how many of the last events --follow begins with, as tail does with lines.
	followedFirst = 10
	// goneWait is how long a command that follows a process waits before it looks whether the process is there again.
	goneWait = 500 * time.Millisecond
)

func (c *cli) eventsCommand() *cobra.Command {
	var path string
	var asJSON, follow bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what the running process logged last",
		Long: `Show what the process that is running on a state directory logged last: up to
1,000 events of the level info and above, whatever --log-level it has and
wherever its log goes. The lines about each user's connection are left out:
see ` + "`status`" + ` and the access log. A restart forgets them.

With --follow the last ten are shown, and new ones as they come, until Ctrl-C.
When the process ends, the command says so and waits for the next one.`,
		Example: `  reverser events
  reverser events --follow
  reverser events --json | jq '.events[] | select(.level != "INFO")'`,
		Args: takes("reverser events --follow"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := eventsView{cli: c, path: path, json: asJSON}
			if follow {
				return v.follow(cmd.Context())
			}
			return v.list(cmd.Context())
		},
	}
	addStateFlag(cmd.Flags(), &path)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --follow one object a line")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "show new events as they come, across restarts, until Ctrl-C")
	return cmd
}

// eventsView shows events.
type eventsView struct {
	*cli
	path string
	json bool
}

func (v eventsView) list(ctx context.Context) error {
	var got admin.EventList
	err := v.askRunning(v.path, "events", func(client *admin.Client) (err error) {
		got, err = client.Events(ctx, 0)
		return err
	})
	switch {
	case err != nil:
		return err
	case v.json:
		return v.printJSON(got)
	case len(got.Events) == 0:
		_, err := fmt.Fprintln(v.stdout, "nothing was logged yet")
		return err
	}
	var b strings.Builder
	for _, e := range got.Events {
		b.WriteString(eventLine(e))
	}
	_, err = io.WriteString(v.stdout, b.String())
	return err
}

// follow shows events across restarts of the process until ctx ends or the user has seen enough.
func (v eventsView) follow(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	var got admin.EventList
	path, err := v.askWhich(v.path, "events", func(client *admin.Client) (err error) {
		got, err = client.Events(ctx, 0)
		return err
	})
	if err != nil {
		return err
	}
	got.Events = got.Events[max(len(got.Events)-followedFirst, 0):]
	for seen := uint64(0); ; {
		err := v.showAll(got, &seen)
		if err == nil {
			err = v.followOne(ctx, path, &seen)
		}
		if out, ok := errors.AsType[*outputError](err); ok {
			return out.err
		}
		if err != nil && notWorthWaiting(err) {
			return notMine(fmt.Errorf("events of %s: %w", path, err), path, "events")
		}
		if ctx.Err() == nil {
			v.sayGone(admin.ErrGone)
		}
		if got, err = v.next(ctx, path, seen); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return notMine(fmt.Errorf("events of %s: %w", path, err), path, "events")
		}
		v.sayGone(nil)
	}
}

// followOne shows events until the process has gone, or ctx ends.
func (v eventsView) followOne(ctx context.Context, path string, seen *uint64) error {
	client := adminOf(path)
	defer client.Close()
	return client.FollowEvents(ctx, *seen, func(e events.Event, lost int) error {
		return v.showAll(admin.EventList{Events: []events.Event{e}, Lost: lost}, seen)
	})
}

// next waits until a process answers again, and returns what it logged since an event.
func (v eventsView) next(ctx context.Context, path string, seen uint64) (admin.EventList, error) {
	client := adminOf(path)
	defer client.Close()
	for {
		got, err := client.Events(ctx, seen)
		if err == nil || notWorthWaiting(err) {
			return got, err
		}
		if !pause(ctx, goneWait) {
			return admin.EventList{}, ctx.Err()
		}
	}
}

// outputError is an error of the command's own output, as against the process.
type outputError struct{ err error }

func (e *outputError) Error() string { return e.err.Error() }

// showAll shows events, and notes which one was the last.
func (v eventsView) showAll(got admin.EventList, seen *uint64) error {
	if got.Lost > 0 && !v.json { // ids tell it in JSON
		fmt.Fprintf(v.stdout, "(%s left out: they came faster than they could be shown)\n", count(got.Lost, "event"))
	}
	for _, e := range got.Events {
		var err error
		if v.json {
			err = json.NewEncoder(v.stdout).Encode(e)
		} else {
			_, err = io.WriteString(v.stdout, eventLine(e))
		}
		if err != nil {
			return &outputError{err}
		}
		*seen = e.ID
	}
	return nil
}

// eventLine is an event as the log has it.
func eventLine(e events.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-5s %s", e.At.Local().Format(time.DateTime), e.Level, escape.Text(e.Event))
	for _, f := range e.Fields {
		fmt.Fprintf(&b, " %s=%s", escape.Text(f.Name), fieldText(f.Value))
	}
	b.WriteByte('\n')
	return b.String()
}

func fieldText(v any) string {
	s := escape.Text(fmt.Sprint(v))
	if !escape.Plain(s) {
		return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	}
	return s
}
