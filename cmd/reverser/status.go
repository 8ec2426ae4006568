package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/grammar"
	"reverser/internal/state"
	"reverser/internal/status"
	"reverser/internal/units"
)

// checkLimit is how long `status --check` waits for the process. Kubernetes gives a probe a second, the start of the program included.
// Tests of other things have more.
var checkLimit = 900 * time.Millisecond

func (c *cli) statusCommand() *cobra.Command {
	var path string
	var asJSON, check, all bool
	cmd := &cobra.Command{
		Use:   "status [--check [SERVICE]]",
		Short: "Show the links, services and connections of the running process",
		Long: `Show the links, services and connections of the process that is running on a
state directory. Without --state it is the proxy's default directory, then the
bridge's, then that of a service. When no process is running, the exit code
is 1.

A terminal is shown 200 services of a key, first those that are not up, and is
told how many more there are. --all shows it every one; so do a pipe and --json.

With --check the exit code says whether users are served, for the health checks
of containers and other scripts: 0, or 1 with one line that says what is down. A
bridge must have a link and all its services up, a proxy must listen; with
SERVICE, in the form of PUBLIC, that service must be up. The answer comes within
a second. Nothing is connected to: whether a target answers is not checked.`,
		Example: `  reverser status
  reverser status --all | grep example.com
  reverser status --json | jq '.services[] | select(.state != "up")'
  reverser status --check
  reverser status --check 9000`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case check && len(args) > 1:
				return usageHint("reverser status --check 9000", "reverser status --check takes one SERVICE at most, and %q is one more", args[1])
			case check:
				return nil
			case len(args) == 1:
				return takes("`reverser status --check "+args[0]+"` says whether that service is up")(cmd, args)
			}
			return takes("reverser status --state DIR")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if check {
				return c.checkStatus(cmd.Context(), path, args, asJSON)
			}
			most := 0
			if !all && isTerminal(c.out) {
				most = mostServices
			}
			return c.status(cmd.Context(), path, asJSON, most)
		},
	}
	addStateFlag(cmd.Flags(), &path)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&all, "all", false, "show a terminal all services of a key")
	cmd.Flags().BoolVar(&check, "check", false, "print nothing, and exit with 0 only when users are served")
	return cmd
}

func (c *cli) status(ctx context.Context, path string, asJSON bool, most int) error {
	var s status.Snapshot
	err := c.askRunning(path, "status", func(client *admin.Client) (err error) {
		s, err = client.Status(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if asJSON {
		return c.printJSON(s)
	}
	return printStatus(c.stdout, s, time.Now(), most)
}

// checkStatus is `status --check [SERVICE]`. Of a process that does not serve it says what is down, and why in the same line.
func (c *cli) checkStatus(ctx context.Context, path string, service []string, asJSON bool) error {
	if asJSON {
		return usageHint("`reverser status --json` prints the state of everything", "--check prints nothing, so it does not go with --json")
	}
	public := ""
	if len(service) > 0 {
		p, err := grammar.ParsePublic(service[0])
		if err == nil {
			err = p.Supported()
		}
		if err != nil {
			return usageHint("SERVICE is what a bridge publishes, without its target: `reverser status --check 9000`", "--check: %w", err)
		}
		public = p.String()
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	var s status.Snapshot
	err := c.askRunning(path, "status", func(client *admin.Client) (err error) {
		s, err = client.Summary(ctx)
		if err != nil && ctx.Err() != nil {
			return errors.New("the process is there and did not answer within a second")
		}
		return err
	})
	switch {
	case errors.Is(err, state.ErrNotRunning):
		return &exitError{code: exitFailed, err: errors.Unwrap(err)} // in one line
	case err != nil:
		return err
	}
	if err := s.Check(public); err != nil {
		return errors.New(printable(err.Error()))
	}
	return nil
}

// askRunning has ask put a question to the process that runs on a state directory; "" is the proxy's default one, or else the
// bridge's, or else that of a service.
func (c *cli) askRunning(path, command string, ask func(*admin.Client) error) error {
	_, err := c.askWhich(path, command, ask)
	return err
}

// askWhich is askRunning, and returns the directory that it was.
func (c *cli) askWhich(path, command string, ask func(*admin.Client) error) (found string, err error) {
	paths := []string{path}
	if path == "" {
		if paths, err = c.usualStates(state.RoleProxy, state.RoleBridge); err != nil {
			return "", err
		}
	}
	for _, path := range paths {
		err := askOne(path, ask)
		if errors.Is(err, state.ErrNotRunning) {
			continue
		}
		if err != nil {
			return path, notMine(fmt.Errorf("%s of %s: %w", command, path, err), path, command)
		}
		return path, nil
	}
	return "", &exitError{
		code: exitFailed,
		err:  fmt.Errorf("%w in %s", state.ErrNotRunning, strings.Join(paths, " or ")),
		hint: "if one runs with another --state DIR, give the same one here",
	}
}

// unreachableWait is how long a command waits for a process that holds its state directory, to open the admin socket: at its start, or
// when somebody removed it.
const unreachableWait = 5 * tendEvery

// waitedLong reports whether a process has waited for another one for longer than the limit, and has tried as often as that gives time for:
// on a very busy machine few tries fit into it.
func waitedLong(begun time.Time, tries int, limit time.Duration) bool {
	return time.Since(begun) > limit && tries > int(limit/lockPoll)
}

// askOne has ask put its question, again as long as it reaches nobody and somebody holds the directory.
func askOne(path string, ask func(*admin.Client) error) error {
	begun := time.Now()
	for tries := 1; ; tries++ {
		client := adminOf(path)
		err := ask(client)
		client.Close()
		if !errors.Is(err, state.ErrUnreachable) || waitedLong(begun, tries, unreachableWait) {
			return err
		}
		time.Sleep(lockPoll)
	}
}

// notMine adds to a refusal by the operating system whose directory it is.
func notMine(err error, path, command string) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	code := exitFailed
	if ee, ok := errors.AsType[*exitError](err); ok {
		code = ee.code
	}
	hint := "only the user that runs the process can ask it"
	if owner := ownerOf(path); owner != "" {
		hint += fmt.Sprintf(": sudo -u %s reverser %s --state %s", owner, command, path)
	} else {
		hint += fmt.Sprintf(", and the administrator: sudo reverser %s --state %s", command, path)
	}
	return &exitError{code: code, err: err, hint: hint}
}

// printStatus prints a snapshot, of each key with that many services at most; 0: with all.
func printStatus(w io.Writer, s status.Snapshot, now time.Time, most int) error {
	up := time.Duration(s.UptimeSeconds * float64(time.Second))
	if _, err := fmt.Fprintf(w, "%s %s, up %s\n", s.Role, s.Version, span(up)); err != nil {
		return err
	}

	if u := s.Unstored; u != nil {
		if _, err := fmt.Fprintf(w, "NOT STORED: %s: %s\n  make room; until it is stored %s\n", printable(u.What()), printable(u.Error), u.Then()); err != nil {
			return err
		}
	}

	for _, fault := range s.Faults {
		if _, err := fmt.Fprintf(w, "FAULT: %s\n", printable(fault)); err != nil {
			return err
		}
	}

	if r := s.Reloading; r.Slow(now) {
		if _, err := fmt.Fprintf(w, "a reload began %s, and is not through with %s: look at its disk\n", ago(now, r.Since), printable(r.What())); err != nil {
			return err
		}
	}

	if r := s.Reload; r != nil && r.Error != "" {
		if _, err := fmt.Fprintf(w, "the last reload, %s, was refused:\n  %s\n", ago(now, r.At), strings.ReplaceAll(r.Error, "\n", "\n  ")); err != nil {
			return err
		}
	}

	if l := s.AccessLog; l != nil && (l.Lost > 0 || l.Error != "") {
		where := l.Name()
		if where != l.File {
			where = "on " + where
		}
		line := fmt.Sprintf("the access log %s lost %d lines", where, l.Lost)
		if l.Error != "" {
			line += ", and cannot be written: " + l.Error
		}
		if _, err := fmt.Fprintln(w, printable(line)); err != nil {
			return err
		}
	}

	if u := s.Usage; u != nil && u.Error != "" {
		if _, err := fmt.Fprintf(w, "usage cannot be stored in %s, and is kept in memory: %s\n", printable(u.File), printable(u.Error)); err != nil {
			return err
		}
	}
	if u := s.Usage; u != nil && u.PutAside != "" {
		if _, err := fmt.Fprintf(w, "the file of usage was damaged and put aside as %s: %s\n", printable(u.PutAside), printable(u.Damage)); err != nil {
			return err
		}
	}

	if err := printExpiry(w, s.Keys, now); err != nil {
		return err
	}

	if err := printPressure(w, s.Pressure, now); err != nil {
		return err
	}

	fmt.Fprintln(w)
	if len(s.Links) == 0 {
		fmt.Fprintln(w, "no links")
	} else {
		t := newTable(w)
		t.row("LINK", "STATE", "REMOTE", "BRIDGE", "RTT", "CARRIERS", "RESUMES", "SINCE")
		for _, l := range s.Links {
			rtt := "-"
			if l.RTTMillis > 0 {
				rtt = strconv.FormatFloat(l.RTTMillis, 'f', 1, 64) + " ms"
			}
			remote := l.Remote
			if l.Via != "" {
				remote += " via " + l.Via
			}
			t.row(l.Key, l.State, remote, l.Bridge, rtt, strconv.Itoa(l.Carriers), strconv.FormatUint(l.Resumes, 10), ago(now, l.Since))
		}
		if err := t.flush(); err != nil {
			return err
		}
		for _, l := range s.Links {
			if l.Reason == "" {
				continue
			}
			if _, err := fmt.Fprintf(w, "no link to %s: %s\n  `reverser doctor` looks at each step of the way\n", printable(l.Remote), printable(l.Reason)); err != nil {
				return err
			}
		}
	}

	fmt.Fprintln(w)
	if len(s.Services) == 0 {
		fmt.Fprintln(w, "no services")
	} else {
		t := newTable(w)
		row := func(v status.Service, connections, key, reason string) {
			if s.Role == "bridge" { // all are of its one key, which is above
				t.row(v.Public, v.State, v.Target, connections, v.TargetState, reason)
				return
			}
			t.row(v.Public, v.State, v.Target, connections, key, v.TargetState, reason)
		}
		row(status.Service{Public: "SERVICE", State: "STATE", Target: "TARGET", TargetState: "TARGET STATE"}, "CONNECTIONS", "KEY", "REASON")
		shown, more := foremost(s.Services, most)
		for _, v := range shown {
			if v.Inspect {
				v.State += ", inspected"
			}
			v.TargetState = targetWords(v, now)
			row(v, strconv.Itoa(v.Connections), v.Key, v.Reason)
		}
		if err := t.flush(); err != nil {
			return err
		}
		for _, m := range more {
			if _, err := fmt.Fprintln(w, printable(m)); err != nil {
				return err
			}
		}
	}

	if err := printCertificates(w, s.Certificates, now); err != nil {
		return err
	}

	if err := printTotals(w, s); err != nil {
		return err
	}

	fmt.Fprintln(w)
	if len(s.Pairs) == 0 {
		_, err := fmt.Fprintln(w, "no connections")
		return err
	}
	t := newTable(w)
	t.row("PAIR", "SERVICE", "CLIENT", "TARGET", "STATE", "SENT", "RECEIVED", "SINCE")
	for _, p := range s.Pairs {
		t.row(p.ID, p.Service, p.Client, p.Target, p.State, size(p.Sent), size(p.Received), ago(now, p.Since))
	}
	return t.flush()
}

// mostServices is how many services of a key a terminal is shown. A key may have 16,384.
const mostServices = 200

// foremost returns of each key the services to look at first, as many as most, in their order: those that are not up, then those with
// connections, then the first ones. more says in a line for each key how many were left out; most 0 leaves none out.
func foremost(all []status.Service, most int) (shown []status.Service, more []string) {
	of := make(map[string][]int) // by key
	for i, v := range all {
		of[v.Key] = append(of[v.Key], i)
	}
	left := make(map[int]bool)
	for _, key := range slices.Sorted(maps.Keys(of)) {
		list := of[key]
		if most == 0 || len(list) <= most {
			continue
		}
		slices.SortStableFunc(list, func(a, b int) int {
			return cmp.Or(cmp.Compare(all[a].Rank(), all[b].Rank()), cmp.Compare(min(all[b].Connections, 1), min(all[a].Connections, 1)))
		})
		states := make(map[string]int)
		for _, i := range list[most:] {
			left[i] = true
			states[all[i].State]++
		}
		var words []string
		for _, state := range slices.Sorted(maps.Keys(states)) {
			words = append(words, fmt.Sprintf("%d %s", states[state], state))
		}
		line := "more services"
		if key != "" {
			line += " of key " + key
		}
		more = append(more, fmt.Sprintf("%d %s (%s): `reverser status --all` shows them", len(list)-most, line, strings.Join(words, ", ")))
	}
	if len(left) == 0 {
		return all, nil
	}
	for i, v := range all {
		if !left[i] {
			shown = append(shown, v)
		}
	}
	return shown, more
}

// printExpiry says which keys have expired, or do so soon.
func printExpiry(w io.Writer, keys []status.Key, now time.Time) error {
	for _, k := range keys {
		var err error
		switch left := k.Expires.Sub(now); {
		case k.Expires.IsZero() || left > status.Soon:
		case k.Expired:
			_, err = fmt.Fprintf(w, "key %s expired %s: `reverser key edit %[1]s --expires 30d` gives it more time, `key remove %[1]s` removes it\n", printable(k.Key), ago(now, k.Expires))
		default:
			_, err = fmt.Fprintf(w, "key %s expires in %s\n", printable(k.Key), span(left))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// targetWords is whether the target of a service answered the last user, and when.
func targetWords(v status.Service, now time.Time) string {
	if v.TargetAt.IsZero() {
		return v.TargetState
	}
	words := fmt.Sprintf("%s, %s", v.TargetState, ago(now, v.TargetAt))
	if v.TargetError != "" {
		words += ": " + v.TargetError
	}
	return words
}

// printPressure says what runs short, for whom, and what to do.
func printPressure(w io.Writer, all []status.Pressure, now time.Time) error {
	for _, p := range all {
		line := fmt.Sprintf("short of %s: %d of %d used", p.What, p.Used, p.Limit)
		if p.Largest.Key != "" {
			line += fmt.Sprintf(", %d by key %s", p.Largest.Used, p.Largest.Key)
		}
		if p.Largest.Client != "" {
			line += ", most for " + p.Largest.Client
			if p.Largest.Service != "" {
				line += " at " + p.Largest.Service
			}
		}
		if !p.Since.IsZero() {
			line += ", since " + ago(now, p.Since)
		}
		if _, err := fmt.Fprintf(w, "%s\n  %s\n", printable(line), printable(p.Hint)); err != nil {
			return err
		}
	}
	return nil
}

// printCertificates says what became of each certificate, and of those that failed, why and what to do.
func printCertificates(w io.Writer, all []status.Certificate, now time.Time) error {
	if len(all) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	at := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.Local().Format(time.DateTime)
	}
	t := newTable(w)
	t.row("CERTIFICATE", "STATE", "KEY", "EXPIRES", "IS RENEWED", "FROM")
	for _, c := range all {
		t.row(c.Host, c.State, c.Key, at(c.NotAfter), at(c.RenewAt), c.From)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, c := range all {
		if c.Error == "" {
			continue
		}
		again := ""
		if !c.RetryAt.IsZero() {
			again = ", tried again in " + span(c.RetryAt.Sub(now))
		}
		if _, err := fmt.Fprintf(w, "certificate of %s: %s%s\n", printable(c.Host), printable(c.Error), again); err != nil {
			return err
		}
		if c.Hint != "" {
			fmt.Fprintf(w, "  %s\n", printable(c.Hint))
		}
	}
	return nil
}

// printTotals says in a line or two what was carried since the start, and for whom most.
func printTotals(w io.Writer, s status.Snapshot) error {
	var all status.Key
	for _, k := range s.Keys {
		all.Connections += k.Connections
		all.Total += k.Total
		all.Sent += k.Sent
		all.Received += k.Received
		all.Refused += k.Refused
	}
	if all.Total+all.Refused == 0 {
		return nil
	}
	line := fmt.Sprintf("%s in all, %d now, %s sent, %s received", count(int(all.Total), "connection"), all.Connections, size(all.Sent), size(all.Received))
	if all.Refused > 0 {
		line += ", " + strconv.FormatUint(all.Refused, 10) + " refused"
	}
	switch n := len(s.Removed); n {
	case 0:
	case 1:
		line += "; 1 of the services was removed"
	default:
		line += fmt.Sprintf("; %d of the services were removed", n)
	}
	_, err := fmt.Fprintf(w, "\n%s\n", printable(line))
	if err == nil && len(s.Clients) > 0 {
		c := s.Clients[0]
		_, err = fmt.Fprintln(w, printable(fmt.Sprintf("the most from %s to %s of %s: %d now, %d in all, %s sent, %s received",
			c.Client, c.Service, c.Key, c.Connections, c.Total, size(c.Sent), size(c.Received))))
	}
	return err
}

func ago(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(now.Sub(t)) + " ago"
}

// span and size are how all commands write durations and bytes.
var span, size = units.Span, units.Size
