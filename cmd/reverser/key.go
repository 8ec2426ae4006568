package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/state"
)

func (c *cli) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Add, list, edit and remove the keys that bridges use",
		Long: `Add, list, edit and remove the keys that bridges use. A key is for one bridge.

The command talks to the proxy that is running on the state directory, which
honours a change at once; when none is running, it edits the directory.`,
		Example: `  reverser key add nas --allow tcp/9000
  reverser key list
  reverser key edit nas --allow tcp/9000-9009
  reverser key rotate nas
  reverser key remove nas`,
		Args: noSuchCommand,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(c.keyAddCommand(), c.keyListCommand(), c.keyEditCommand(), c.keyRotateCommand(), c.keyRemoveCommand())
	return cmd
}

func (c *cli) keyAddCommand() *cobra.Command {
	var dir stateDir
	var allow, connect []string
	var limits state.Limits
	var expires string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "add NAME --allow PUBLIC...",
		Short: "Make a key and print its token",
		Long: `Make a key and print its token, alone, on stdout. It is printed only this once:
"reverser key rotate NAME" replaces a lost token without ending a connection.

PUBLIC is what the bridge may open: tcp/9000, tcp/9000-9010, or
tcp/127.0.0.1:9000 for that bind address only. Nothing else is allowed.`,
		Example: `  # a bridge that may open one port
  reverser key add nas --allow tcp/9000

  # several ports, the token straight into a file
  (umask 077; reverser key add office --allow tcp/9000-9010 \
    --allow tcp/2222 > office.token)

  # no more than three ports and a hundred users' connections at once
  reverser key add shop --allow tcp/9000-9999 --max-services 3 \
    --max-connections 100

  # for a month
  reverser key add guest --allow tcp/9000 --expires 30d`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return takes(keyAddExample, "NAME")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(connect) > 0 {
				return refuseConnect(connect[0])
			}
			if len(allow) == 0 {
				return usageHint(fmt.Sprintf("reverser key add %s --allow tcp/9000", args[0]),
					"key %q needs at least one --allow: nothing is allowed that is not listed", args[0])
			}
			const noLimit = "leave it out: the key then has no limit"
			if n := limits.MaxServices; n < 1 && cmd.Flags().Changed("max-services") {
				return usageHint(noLimit, "--max-services %d: a key may have 1 service or more", n)
			}
			if n := limits.MaxConnections; n < 1 && cmd.Flags().Changed("max-connections") {
				return usageHint(noLimit, "--max-connections %d: a key may have 1 connection or more", n)
			}
			if cmd.Flags().Changed("expires") {
				if _, err := grammar.ParseExpiry(expires, time.Now()); err != nil {
					return usage(fmt.Errorf("--expires %w", err))
				}
			}
			// "--allow tcp/9000 tcp/9001" leaves the second one as an argument.
			return c.keyAdd(cmd.Context(), dir, admin.NewKey{Name: args[0], Allow: append(allow, args[1:]...), Limits: limits, Expires: expires}, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &dir.path)
	addTrustFlag(cmd.Flags(), &dir.trusted)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print name and token as JSON")
	cmd.Flags().StringSliceVar(&allow, "allow", nil, "`PUBLIC` that the key's bridge may open, such as tcp/9000 or tcp/9000-9010 (repeatable)")
	cmd.Flags().IntVar(&limits.MaxServices, "max-services", 0, "how many services the key may have at once, `N`; the earliest ones have the places (default: no limit)")
	cmd.Flags().IntVar(&limits.MaxConnections, "max-connections", 0, "how many connections of users the key's services may have at once, `N`; further ones are reset (default: no limit)")
	cmd.Flags().StringVar(&expires, "expires", "", "when the key is honoured no longer: after `TIME` such as 12h or 30d, or at 2027-01-31T00:00:00Z (default: never)")
	cmd.Flags().StringSliceVar(&connect, "allow-connect", nil, "not in this version: `NAME` of a private service that the key may visit")
	cmd.Flags().MarkHidden("allow-connect")
	return cmd
}

func (c *cli) keyEditCommand() *cobra.Command {
	var dir stateDir
	var allow, connect []string
	var services, connections int
	var expires string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "edit NAME [--allow PUBLIC...] [--expires TIME] ...",
		Short: "Change what a key allows, and for how long",
		Long: `Change what a key allows, and for how long. What is not named stays as it is;
--allow takes the place of all that the key allowed before. The token stays the
same.

A running proxy honours the change before the command returns: services that
are no longer allowed are closed, and their bridge is told so; all connections
that are there go on. A key of the proxy's configuration file is changed there.`,
		Example: `  reverser key edit nas --allow tcp/9000-9009
  reverser key edit shop --max-services 5 --max-connections 0
  reverser key edit guest --expires 30d
  reverser key edit guest --expires never`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 1 && len(allow) == 0 {
				return takes("reverser key edit nas --allow tcp/9000", "NAME")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(connect) > 0 {
				return refuseConnect(connect[0])
			}
			var e admin.KeyEdit
			if len(allow) > 0 {
				allow = append(allow, args[1:]...) // "--allow tcp/9000 tcp/9001" leaves the second one as an argument
				if _, err := grammar.ParsePolicy(allow); err != nil {
					return usage(err)
				}
				e.Allow = &allow
			}
			for flag, n := range map[string]*int{"max-services": &services, "max-connections": &connections} {
				if cmd.Flags().Changed(flag) && *n < 0 {
					return usageHint("0 is no limit", "--%s %d: a limit is 1 or more", flag, *n)
				}
			}
			if cmd.Flags().Changed("max-services") {
				e.MaxServices = &services
			}
			if cmd.Flags().Changed("max-connections") {
				e.MaxConnections = &connections
			}
			if cmd.Flags().Changed("expires") {
				if _, err := grammar.ParseExpiry(expires, time.Now()); err != nil {
					return usage(fmt.Errorf("--expires %w", err))
				}
				e.Expires = &expires
			}
			if e == (admin.KeyEdit{}) {
				return usageHint(fmt.Sprintf("reverser key edit %s --allow tcp/9000", args[0]), "key edit %s: say what to change, with --allow, --expires, --max-services or --max-connections", args[0])
			}
			return c.keyEdit(cmd.Context(), dir, args[0], e, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &dir.path)
	addTrustFlag(cmd.Flags(), &dir.trusted)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the key as JSON, as key list does")
	cmd.Flags().StringSliceVar(&allow, "allow", nil, "`PUBLIC` that the key's bridge may open, such as tcp/9000 or tcp/9000-9010, in the place of what it might before (repeatable)")
	cmd.Flags().IntVar(&services, "max-services", 0, "how many services the key may have at once, `N`; 0 for no limit")
	cmd.Flags().IntVar(&connections, "max-connections", 0, "how many connections of users the key's services may have at once, `N`; 0 for no limit; those that are there stay")
	cmd.Flags().StringVar(&expires, "expires", "", "when the key is honoured no longer: after `TIME` such as 12h or 30d from now, at 2027-01-31T00:00:00Z, or never; one that has expired is honoured again")
	cmd.Flags().StringSliceVar(&connect, "allow-connect", nil, "not in this version: `NAME` of a private service that the key may visit")
	cmd.Flags().MarkHidden("allow-connect")
	return cmd
}

func (c *cli) keyRotateCommand() *cobra.Command {
	var dir stateDir
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Make another token for a key",
		Long: `Make another token for a key and print it, alone, on stdout, this once.

Both tokens count until a bridge has used the new one; from then on the one
before is worthless. No connection is dropped: put the new token in the place of
the old one at the bridge, then reload or restart that. A new token that was not
used so far is replaced by the next one.`,
		Example: `  (umask 077; reverser key rotate nas > nas.token)
  # at the bridge, when its token file has it
  reverser reload`,
		Args: takes("reverser key rotate nas", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.keyRotate(cmd.Context(), dir, args[0], asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &dir.path)
	addTrustFlag(cmd.Flags(), &dir.trusted)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print name and token as JSON")
	return cmd
}

func (c *cli) keyRotate(ctx context.Context, at stateDir, name string, asJSON bool) error {
	store, err := c.openKeys(ctx, "key rotate "+shellWord(name), at, false)
	if err != nil {
		return err
	}
	defer store.Close()
	token, err := store.RotateKey(ctx, name)
	if err != nil {
		return keyError(err)
	}
	fmt.Fprintf(c.stderr, "key %q has a new token, which is printed only this once. The one before counts until the new one was used; at the bridge, put it into the token file and run\n  reverser reload\n", name)
	return c.printToken(name, token, asJSON)
}

// printToken prints the token that a key has got, of which there is no copy.
func (c *cli) printToken(name, token string, asJSON bool) error {
	var err error
	if asJSON {
		err = c.printJSON(map[string]string{"name": name, "token": token})
	} else {
		_, err = fmt.Fprintln(c.stdout, token)
	}
	if err != nil {
		return &exitError{code: exitFailed, err: fmt.Errorf("print the token: %w: the key %q is there, and nobody has this token", err, name),
			hint: fmt.Sprintf("`reverser key rotate %s` gives a new one", shellWord(name))}
	}
	return nil
}

// refuseConnect is for --allow-connect, of which nothing is there so far.
func refuseConnect(name string) error {
	return usageHint("leave it out: a key's bridge offers services, and nobody visits them through it",
		"--allow-connect %s: visiting private services is not in this version", name)
}

const keyAddExample = "reverser key add nas --allow tcp/9000"

func (c *cli) keyListCommand() *cobra.Command {
	var dir stateDir
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keys",
		Long: `List the keys and what each one allows. A bridge knows its key by the ID alone,
which its status shows. Secrets are never shown again.`,
		Example: `  reverser key list
  reverser key list --json | jq -r '.[].name'`,
		Args: takes("reverser key list"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.keyList(cmd.Context(), dir, asJSON)
		},
	}
	addStateFlag(cmd.Flags(), &dir.path)
	addTrustFlag(cmd.Flags(), &dir.trusted)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

func (c *cli) keyRemoveCommand() *cobra.Command {
	var dir stateDir
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a key and end what its bridge has open",
		Long: `Remove a key. A running proxy ends the key's link, its public ports and its
connections within a second. The token is worthless from then on.`,
		Example: `  reverser key remove nas`,
		Args:    takes("reverser key remove nas", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.keyRemove(cmd.Context(), dir, args[0])
		},
	}
	addStateFlag(cmd.Flags(), &dir.path)
	addTrustFlag(cmd.Flags(), &dir.trusted)
	return cmd
}

// stateDir is what the command line says about a state directory.
type stateDir struct {
	path    string
	trusted []int
}

// keyStore is the keys of a state directory, asked of the live proxy or read
// from the disk.
type keyStore interface {
	ListKeys(context.Context) ([]admin.KeyInfo, error)
	AddKey(ctx context.Context, k admin.NewKey) (string, error)
	EditKey(ctx context.Context, name string, e admin.KeyEdit) (admin.KeyInfo, error)
	RotateKey(ctx context.Context, name string) (string, error)
	RemoveKey(ctx context.Context, name string) error
	Close()
}

// addCommand is the command that makes a key.
func addCommand(k admin.NewKey) string {
	e := admin.KeyEdit{Allow: &k.Allow}
	if k.MaxServices > 0 {
		e.MaxServices = &k.MaxServices
	}
	if k.MaxConnections > 0 {
		e.MaxConnections = &k.MaxConnections
	}
	if k.Expires != "" {
		e.Expires = &k.Expires
	}
	return "key add " + shellWord(k.Name) + policyFlags(e)
}

// editCommand is the command that makes an edit.
func editCommand(name string, e admin.KeyEdit) string {
	return "key edit " + shellWord(name) + policyFlags(e)
}

// policyFlags are the flags of `key add` and `key edit`, quoted for a shell.
func policyFlags(e admin.KeyEdit) string {
	var b strings.Builder
	if e.Allow != nil {
		for _, a := range *e.Allow {
			b.WriteString(" --allow " + shellWord(a))
		}
	}
	if e.MaxServices != nil {
		fmt.Fprintf(&b, " --max-services %d", *e.MaxServices)
	}
	if e.MaxConnections != nil {
		fmt.Fprintf(&b, " --max-connections %d", *e.MaxConnections)
	}
	if e.Expires != nil {
		b.WriteString(" --expires " + shellWord(*e.Expires))
	}
	return b.String()
}

// shellWord quotes what a shell would not take as it is.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_./:+@,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (c *cli) keyAdd(ctx context.Context, at stateDir, k admin.NewKey, asJSON bool) error {
	// Bad input is refused before anything is made.
	if err := state.CheckKeyName(k.Name); err != nil {
		return usage(err)
	}
	policy, err := grammar.ParsePolicy(k.Allow)
	if err != nil {
		return usage(err)
	}
	store, err := c.openKeys(ctx, addCommand(k), at, true)
	if err != nil {
		return err
	}
	defer store.Close()
	encoded, err := store.AddKey(ctx, k)
	if err != nil {
		return keyError(err)
	}
	for _, a := range policy {
		if (grammar.Public{Kind: a.Kind}).Supported() != nil {
			fmt.Fprintf(c.stderr, "note: this version does not serve %s/ yet, so %s is of no use before an update\n", a.Kind, a)
		}
	}
	limit := ""
	if k.Limits != (state.Limits{}) {
		limit = fmt.Sprintf(", %s at once", k.Limits)
	}
	until := ""
	if at, err := grammar.ParseExpiry(k.Expires, time.Now()); err == nil && !at.IsZero() {
		until = ", until " + when(at)
	}
	fmt.Fprintf(c.stderr, "key %q made, allowed %s%s%s. Its token is printed only this once; use it on the other machine:\n", k.Name, strings.Join(k.Allow, ", "), limit, until)
	tok, err := grammar.ParseToken(encoded)
	if err != nil {
		return err
	}
	example := "reverser bridge --token-file FILE EXPOSE"
	if tok.Addr() == "" {
		example += fmt.Sprintf(" --proxy %s:%d", placeholderHost, defaultPort)
	}
	fmt.Fprintf(c.stderr, "  %s\n", example)
	if tok.Addr() == "" {
		fmt.Fprintf(c.stderr, "It carries no address, as the proxy's is not known here: name it with --proxy there.\n")
	}
	return c.printToken(k.Name, encoded, asJSON)
}

func (c *cli) keyList(ctx context.Context, at stateDir, asJSON bool) error {
	store, err := c.openKeys(ctx, "key list", at, false)
	if err != nil {
		return err
	}
	defer store.Close()
	keys, err := store.ListKeys(ctx)
	if err != nil {
		return keyError(err)
	}
	if asJSON {
		if keys == nil {
			keys = []admin.KeyInfo{}
		}
		return c.printJSON(keys)
	}
	if len(keys) == 0 {
		fmt.Fprintln(c.stderr, "no keys: `reverser key add NAME --allow tcp/9000` makes one")
		return nil
	}
	t := newTable(c.stdout)
	t.row("NAME", "ID", "ALLOW", "SERVICES", "CONNECTIONS", "EXPIRES", "CREATED", "FROM")
	for _, k := range keys {
		created := "-"
		if k.Created != nil {
			created = when(*k.Created)
		}
		from := k.Source
		if k.InPlaceOf != "" && k.InPlaceOf != k.Name {
			from += ", in place of " + k.InPlaceOf
		}
		if k.Rotated {
			from += ", new token not used yet"
		}
		if k.Drained {
			from += ", drained"
		}
		t.row(k.Name, shortID(k.ID), strings.Join(k.Allow, ", "), mostWord(k.MaxServices), mostWord(k.MaxConnections), expiryWord(k), created, from)
	}
	return t.flush()
}

// expiryWord is when a key expires, in a table.
func expiryWord(k admin.KeyInfo) string {
	switch {
	case k.Expires == nil:
		return "never"
	case k.Expired:
		return "expired " + when(*k.Expires)
	}
	return when(*k.Expires)
}

// mostWord is a limit in a table.
func mostWord(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%d at most", n)
}

// shortID is as much of a key's id as a bridge shows in its status.
func shortID(id string) string { return id[:min(len(id), 8)] }

func (c *cli) keyEdit(ctx context.Context, at stateDir, name string, e admin.KeyEdit, asJSON bool) error {
	store, err := c.openKeys(ctx, editCommand(name, e), at, false)
	if err != nil {
		return err
	}
	defer store.Close()
	k, err := store.EditKey(ctx, name, e)
	if err != nil {
		return keyError(err)
	}
	if asJSON {
		return c.printJSON(k)
	}
	limit := ""
	if k.Limits != (state.Limits{}) {
		limit = fmt.Sprintf(", %s at once", k.Limits)
	}
	until := ""
	if k.Expires != nil {
		until = ", until " + when(*k.Expires)
	}
	same := ""
	if k.Unchanged {
		same = "nothing has changed: "
	}
	fmt.Fprintf(c.stderr, "%skey %q is allowed %s%s%s\n", same, k.Name, strings.Join(k.Allow, ", "), limit, until)
	return nil
}

func (c *cli) keyRemove(ctx context.Context, at stateDir, name string) error {
	store, err := c.openKeys(ctx, "key remove "+shellWord(name), at, false)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := store.RemoveKey(ctx, name); err != nil {
		return keyError(err)
	}
	fmt.Fprintf(c.stderr, "key %q removed\n", name)
	if _, ok := store.(offline); ok {
		fmt.Fprintln(c.stderr, "note: no proxy runs, so its configuration file was not looked at: a [[key]] table there with the same token lets its bridge in")
	}
	return nil
}

// keyError gives a refusal its exit code.
func keyError(err error) error {
	if _, ok := errors.AsType[*admin.UsageError](err); ok {
		return usage(err)
	}
	return err
}

// usualKeys is the state directory of the proxy whose keys are meant where none is named.
func (c *cli) usualKeys(ctx context.Context) (string, error) {
	paths, err := c.usualStates(state.RoleProxy)
	if err != nil || len(paths) == 1 {
		return first(paths...), err
	}
	usual, service := paths[0], paths[1]
	if conn, err := state.DialAdmin(ctx, usual); err == nil {
		conn.Close()
		return usual, nil
	}
	if _, err := os.Stat(usual); errors.Is(err, os.ErrNotExist) {
		return service, nil
	}
	return "", usageHint(fmt.Sprintf("--state %s for the service, --state %s for the other", service, usual),
		"there are two proxies here, the service and one that was started by hand, and it is not clear whose keys are meant")
}

// openKeys reaches the live proxy of a state directory or, when there is none,
// takes the directory itself for as long as the store is open.
func (c *cli) openKeys(ctx context.Context, command string, at stateDir, create bool) (keyStore, error) {
	path := at.path
	if path == "" {
		var err error
		if path, err = c.usualKeys(ctx); err != nil {
			return nil, err
		}
	}
	// Two tries can both miss: a process that is starting holds the lock before
	// it listens, and one that is stopping still holds it after.
	begun := time.Now()
	for tries := 1; ; tries++ {
		conn, err := state.DialAdmin(ctx, path)
		if err == nil {
			conn.Close()
			return adminOf(path), nil
		}
		if errors.Is(err, state.ErrUnreachable) {
			if waitedLong(begun, tries, unreachableWait) {
				return nil, err
			}
			if !pause(ctx, lockPoll) {
				return nil, ctx.Err()
			}
			continue
		}
		if !errors.Is(err, state.ErrNotRunning) {
			return nil, notMine(err, path, command)
		}
		if !create {
			if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
				return nil, usageHint("--state DIR names the directory that the proxy uses", "there is no state directory %s", path)
			}
			if !state.HasIdentity(path) { // to open it would make one
				return nil, usageHint("--state DIR names the directory that the proxy uses; for a new proxy, `reverser key add NAME --allow tcp/9000` makes identity and key",
					"%s is no proxy's state directory: there is no identity.pem in it", path)
			}
		}
		dir, err := state.Open(path, at.trusted...)
		if err == nil {
			return openOffline(dir)
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, notMine(usage(err), path, command)
		}
		if !errors.Is(err, state.ErrInUse) || time.Since(begun) > lockWait {
			return nil, usage(err)
		}
		if !pause(ctx, lockPoll) {
			return nil, ctx.Err()
		}
	}
}

// offline is the keys of a state directory that no proxy uses.
type offline struct{ *admin.KeyEditor }

func openOffline(dir *state.Dir) (keyStore, error) {
	identity, _, err := dir.Identity()
	if err != nil {
		dir.Close()
		return nil, usage(err)
	}
	// A file that no key can be read from is wrong as the identity's is, whatever is asked of it.
	if _, err := dir.Keys(); err != nil {
		dir.Close()
		return nil, usage(err)
	}
	pin := state.Pin(identity)
	return offline{&admin.KeyEditor{Dir: dir, Pin: pin, Reach: dir.Reach, InForce: storedKeys(dir, pin)}}, nil
}

// storedKeys are the keys in force where no configuration file has any.
func storedKeys(dir *state.Dir, pin [32]byte) func() ([]config.Key, error) {
	return func() ([]config.Key, error) {
		stored, err := dir.Keys()
		if err != nil {
			return nil, err
		}
		return config.InForce(nil, stored, pin)
	}
}

func (o offline) ListKeys(context.Context) ([]admin.KeyInfo, error) { return o.List() }

func (o offline) AddKey(_ context.Context, k admin.NewKey) (string, error) { return o.Add(k) }

func (o offline) EditKey(_ context.Context, name string, e admin.KeyEdit) (admin.KeyInfo, error) {
	return o.Edit(name, e)
}

func (o offline) RotateKey(_ context.Context, name string) (string, error) { return o.Rotate(name) }

func (o offline) RemoveKey(_ context.Context, name string) error { return o.Remove(name) }

func (o offline) Close() { o.Dir.Close() }

// when is how a person reads a moment: in local time, to the second.
func when(t time.Time) string { return t.Local().Format(time.DateTime) }
