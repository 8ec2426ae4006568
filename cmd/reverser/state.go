package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reverser/internal/access"
	"reverser/internal/config"
	"reverser/internal/export"
	"reverser/internal/service"
	"reverser/internal/state"
	"reverser/internal/sys"
)

func (c *cli) stateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "state",
		Short: "Back the state directory up, and move it to another machine",
		Long: `Back the state directory up, and move it to another machine, as one encrypted
file. Bridges keep their tokens: the proxy that the file is imported for has the
identity and the keys of the one that it was exported from.

Configuration files, and token and secret files that they name, are not in the
state directory and move by themselves.`,
		Example: `  reverser state export proxy.state
  reverser state import proxy.state`,
		Args: noSuchCommand,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(c.stateExportCommand(), c.stateImportCommand())
	return cmd
}

func (c *cli) stateExportCommand() *cobra.Command {
	var dir stateDir
	var passphraseFile string
	var force bool
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write the state directory to one encrypted file",
		Long: `Write what must move to another machine to one encrypted file: the identity, the
keys, and the addresses that are known. FILE - is stdout. A process that runs on
the directory goes on. Without --state it is the proxy's default directory, or
else the bridge's.

` + passphraseWords,
		Example: `  reverser state export proxy.state
  reverser state export - --passphrase-file pass | ssh backup 'cat > proxy.state'`,
		Args: takes("reverser state export proxy.state", "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.exportState(cmd.Context(), dir, args[0], passphraseFile, force)
		},
	}
	addStateFlag(cmd.Flags(), &dir.path)
	addTrustFlag(cmd.Flags(), &dir.trusted)
	addPassphraseFlag(cmd.Flags(), &passphraseFile)
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it exists")
	return cmd
}

func (c *cli) stateImportCommand() *cobra.Command {
	var dir stateDir
	var passphraseFile string
	var replace bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Put an export into a state directory",
		Long: `Put what ` + "`reverser state export`" + ` wrote into a state directory: all of it or, with
an error, nothing. FILE - is stdin. No process may run on the directory. One that
holds another state is refused; with --replace a copy of that stays in it.

` + passphraseWords,
		Example: `  reverser state import proxy.state
  reverser state import proxy.state --state /var/lib/reverser/proxy --replace`,
		Args: takes("reverser state import proxy.state", "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.importState(cmd.Context(), dir, args[0], passphraseFile, replace)
		},
	}
	addStateFlag(cmd.Flags(), &dir.path)
	addTrustFlag(cmd.Flags(), &dir.trusted)
	addPassphraseFlag(cmd.Flags(), &passphraseFile)
	cmd.Flags().BoolVar(&replace, "replace", false, "replace the state that the directory holds, and keep a copy of it there")
	return cmd
}

func (c *cli) exportState(ctx context.Context, at stateDir, file, passphraseFile string, force bool) error {
	path, err := c.exportPath(at.path)
	if err != nil {
		return err
	}
	at.path = path
	if file == "-" {
		if isTerminal(c.out) {
			return usageHint("reverser state export proxy.state", "stdout is a terminal, and an export is no text")
		}
	} else if err := checkNew(file, force); err != nil {
		return usage(err)
	}
	picture, unknown, err := readState(ctx, at)
	if err != nil {
		return err
	}
	if err := enoughMemory(); err != nil {
		return err
	}
	passphrase, err := c.passphrase(passphraseFile, at.trusted, true)
	if err != nil {
		return err
	}
	var sealed bytes.Buffer
	if err := export.Write(&sealed, export.Export{Program: version(), Made: time.Now(), State: picture}, passphrase, passphraseWork); err != nil {
		return fmt.Errorf("encrypt the export: %w", err)
	}
	if file == "-" {
		if _, err := c.out.Write(sealed.Bytes()); err != nil {
			return fmt.Errorf("write the export to stdout: %w", err)
		}
	} else if err := writeNew(file, sealed.Bytes(), force); err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	fmt.Fprintf(c.stderr, "exported the state of %s in %s%s\n", withArticle(picture.Role()), path, keyWords(picture))
	if picture.Role() == state.RoleBridge {
		fmt.Fprintln(c.stderr, "note: a bridge keeps nothing in its state directory that must move: take its token file and its configuration along")
	}
	unknown = slices.DeleteFunc(unknown, func(name string) bool { return slices.Contains(serviceFiles, name) })
	if len(unknown) > 0 {
		fmt.Fprintf(c.stderr, "note: left out, as this version does not know them: %s\n", strings.Join(unknown, ", "))
	}
	return nil
}

// serviceFiles are what a service has in its state directory besides.
var serviceFiles = []string{service.LogFile, service.LogFile + ".old", service.CrashFile}

// exportPath is the directory to export, unless path names it: the first that there is of a proxy's usual ones and a bridge's.
func (c *cli) exportPath(path string) (string, error) {
	paths := []string{path}
	if path == "" {
		paths = nil
		for _, role := range []string{state.RoleProxy, state.RoleBridge} {
			usual, err := c.usualStates(role)
			if err != nil {
				return "", err
			}
			paths = append(paths, usual...)
		}
	}
	for _, p := range paths {
		found, err := state.IsStateDir(p)
		if err != nil {
			return "", notMine(usage(err), p, "state export FILE")
		}
		if found {
			return p, nil
		}
	}
	return "", usageHint("--state DIR names the directory that the proxy or bridge uses", "there is no state in %s", strings.Join(paths, " nor in "))
}

// readState returns what of a state directory moves, whether a process runs on it or not.
func readState(ctx context.Context, at stateDir) (p state.Picture, unknown []string, err error) {
	const command = "state export FILE"
	path := at.path
	// As with openKeys, two tries can both miss.
	for deadline := time.Now().Add(lockWait); ; {
		client := adminOf(path)
		_, err := client.Status(ctx)
		client.Close()
		if err == nil {
			if p, unknown, err = state.Read(path, at.trusted...); err != nil {
				return nil, nil, notMine(err, path, command)
			}
			return withoutRevoked(ctx, at, p, unknown)
		}
		if !errors.Is(err, state.ErrNotRunning) {
			return nil, nil, notMine(err, path, command)
		}
		dir, err := state.Open(path, at.trusted...)
		if err == nil {
			defer dir.Close()
			return dir.Read()
		}
		if !errors.Is(err, state.ErrInUse) || time.Now().After(deadline) {
			return nil, nil, notMine(usage(err), path, command)
		}
		if !pause(ctx, lockPoll) {
			return nil, nil, ctx.Err()
		}
	}
}

// withoutRevoked takes out the keys that the running process removed and could not remove from the file, as when the disk is full.
// It asks after the files were read: a key that was removed meanwhile is either not in them, or among these.
func withoutRevoked(ctx context.Context, at stateDir, p state.Picture, unknown []string) (state.Picture, []string, error) {
	client := adminOf(at.path)
	defer client.Close()
	snap, err := client.Status(ctx)
	if errors.Is(err, state.ErrNotRunning) { // it ended, and stored them at the latest then
		if p, unknown, err = state.Read(at.path, at.trusted...); err != nil {
			return nil, nil, err
		}
		return p, unknown, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("ask the process of %s which keys are removed: %w", at.path, err)
	}
	if snap.Role == state.RoleProxy && p.Role() != snap.Role {
		return nil, nil, fmt.Errorf("the proxy that runs on %s has its identity and keys in memory alone: their files were removed", at.path)
	}
	if u := snap.Unstored; u != nil && len(u.Edited) > 0 { // whoever imports it would give back what was taken away
		return nil, nil, &exitError{code: exitFailed, err: fmt.Errorf("the change of key %s is not stored: %s", strings.Join(u.Edited, ", "), printable(u.Error)),
			hint: "make room, and export when `reverser status` says no more of it"}
	}
	if snap.Unstored != nil {
		p, err = p.WithoutKeys(snap.Unstored.Removed)
	}
	return p, unknown, err
}

func (c *cli) importState(ctx context.Context, at stateDir, file, passphraseFile string, replace bool) error {
	if file == "-" && passphraseFile == "-" {
		return usageHint("give --passphrase-file another file", "the export and its passphrase cannot both come from stdin")
	}
	sealed, err := c.loadExport(file)
	if err != nil {
		return usage(fmt.Errorf("read the export %s: %w", file, err))
	}
	if err := enoughMemory(); err != nil {
		return err
	}
	passphrase, err := c.passphrase(passphraseFile, at.trusted, false)
	if err != nil {
		return err
	}
	exported, err := export.Open(sealed, passphrase)
	if err != nil {
		return usage(fmt.Errorf("read the export %s: %w", file, err))
	}
	picture := exported.State
	if at.path == "" {
		usual, err := c.usualStates(picture.Role())
		if err != nil {
			return err
		}
		if len(usual) > 1 {
			return usageHint("--state "+usual[len(usual)-1]+" is that of the service", "the export can go to %s: name one", strings.Join(usual, " or "))
		}
	}
	dir, err := openState(ctx, config.Common{State: at.path, TrustOwner: at.trusted}, picture.Role(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer dir.Close()
	if conn, err := state.DialAdmin(ctx, dir.Path()); err == nil {
		conn.Close()
		return usage(fmt.Errorf("a process that is stopping still uses %s: import when it has ended", dir.Path()))
	}
	if dir.HoldsState() {
		held, err := dir.Picture()
		switch {
		case err == nil && held.Same(picture):
			fmt.Fprintf(c.stderr, "%s holds the identity and the keys of the export already: nothing is changed\n", dir.Path())
			return nil
		case picture.Role() == state.RoleBridge:
			return usageHint("--state DIR names the directory of the bridge", "the export is of a bridge, and %s holds the identity of a proxy", dir.Path())
		case !replace:
			return usageHint("--replace puts the export in its place and keeps a copy; --state DIR names another directory",
				"state directory %s %s: nothing is changed", dir.Path(), difference(held, picture, err))
		}
	}
	kept, err := dir.Replace(picture, time.Now())
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	fmt.Fprintf(c.stderr, "imported the state of %s into %s%s\nmade by reverser %s at %s\n", withArticle(picture.Role()), dir.Path(), keyWords(picture), exported.Program, when(exported.Made))
	if kept != "" {
		fmt.Fprintf(c.stderr, "what it held before is in %s: it has secrets, so remove it when you do not need it any more\n", filepath.Join(dir.Path(), kept))
	}
	if at := picture.Reach(); len(at.Addrs) > 0 {
		fmt.Fprintf(c.stderr, "tokens name the proxy %s: lead that to this machine, or start bridges with --proxy\n", at)
	}
	if picture.Role() == state.RoleProxy {
		fmt.Fprintln(c.stderr, "stop the proxy that was exported: what is changed at one of the two, such as a key that is removed, is not changed at the other")
	}
	return nil
}

// loadExport reads the file, or stdin for -.
func (c *cli) loadExport(file string) ([]byte, error) {
	if file == "-" {
		return export.Load(c.stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, plainError(err)
	}
	defer f.Close()
	sealed, err := export.Load(f)
	return sealed, plainError(err)
}

// difference says what a directory holds that an export would replace.
func difference(held, picture state.Picture, err error) string {
	if err != nil {
		return fmt.Sprintf("holds a state that cannot be read (%v)", err)
	}
	pin, ok := held.Identity()
	if other, _ := picture.Identity(); !ok || pin != other {
		return "holds another identity, whose tokens would be worthless" + keyWords(held)
	}
	return fmt.Sprintf("holds the same identity with other keys%s; the export is%s", keyWords(held), keyWords(picture))
}

// keyWords names the keys of a picture.
func keyWords(p state.Picture) string {
	keys, err := p.Keys()
	if err != nil || p.Role() != state.RoleProxy {
		return ""
	}
	var names []string
	for _, k := range keys {
		names = append(names, k.Name)
	}
	switch len(names) {
	case 0:
		return " with no key"
	case 1:
		return " with key " + names[0]
	}
	const most = 10
	if more := len(names) - most; more > 1 {
		names = append(names[:most], fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf(" with keys %s", strings.Join(names, ", "))
}

func withArticle(role string) string { return "a " + role }

// enoughMemory refuses where the system would end the process for the memory that a passphrase takes.
func enoughMemory() error {
	const most = export.Memory + 32<<20
	if n := sys.AvailableMemory(); n > 0 && n < most {
		return fmt.Errorf("the passphrase takes %d MiB of memory, so that it is hard to guess, and this process may have %d MiB: run the command outside of the container or service", most>>20, n>>20)
	}
	return nil
}

// checkNew refuses a file that an export may not replace.
func checkNew(path string, force bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("export to %s: %w", path, plainError(err))
	case !info.Mode().IsRegular():
		return fmt.Errorf("export to %s: it is no regular file (- is stdout)", path)
	case !force:
		return fmt.Errorf("export to %s: it exists already: choose another name, or replace it with --force", path)
	}
	return nil
}

// writeNew makes a file that nobody else can read: whole, and on the disk, or not at all. Without force it replaces none.
func writeNew(path string, data []byte, force bool) error {
	if force {
		return access.WriteFile(path, data, 0o600)
	}
	// Whoever has the name has it now. The empty file is replaced by the whole one.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := access.WriteFile(path, data, 0o600); err != nil {
		os.Remove(path)
		return err
	}
	return nil
}

// plainError drops the path from an error whose caller says it.
func plainError(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
