// Reverser gives a service behind NAT a public address: `reverser proxy` runs
// on a public server, `reverser bridge` next to the service.
//
// This package is flags, files, terminal and signals; what the program does
// is in internal/proxy and internal/bridge. One file holds one command.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"reverser/internal/config"
	"reverser/internal/escape"
	"reverser/internal/service"
)

// Exit codes. Scripts and service managers rely on them.
const (
	exitOK     = 0 // did what was asked, or was asked to stop
	exitFailed = 1 // anything else
	exitUsage  = 2 // wrong usage or configuration, found before serving
)

func main() {
	if args := os.Args[1:]; isHosted(args) {
		os.Exit(runHosted(args, os.Stderr))
	}
	code := run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if code != exitOK && len(os.Args) > 1 && ownWindow() {
		// A shortcut, or an order that asked for an administrator: the window would vanish with what it says.
		waitForKey(os.Stdout, bufio.NewReader(os.Stdin), phrasesFor(readsChinese()))
	}
	os.Exit(code)
}

// cli is what a command has in its hands besides its flags. What is written to stdout and stderr is escaped: an error may quote a
// peer, and a table has its names.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	log            io.Writer // stderr for log lines, which bring their colours
	out            io.Writer // stdout for what is no text
	// manager is the service manager of this machine, nil if it has none that we know.
	manager service.Manager
	// host is the service manager that started this process and is told how it does by other ways than systemd's; nil: none did.
	host host
	// parsed is set when cobra has accepted the command line: every error
	// before that is the caller's.
	parsed bool
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := newCLI(stdin, stdout, stderr)
	if len(args) == 0 && ownWindow() {
		return c.startedAlone(readsChinese())
	}
	return c.run(args)
}

func newCLI(stdin io.Reader, stdout, stderr io.Writer) *cli {
	return &cli{stdin: stdin, stdout: escape.NewWriter(stdout), stderr: escape.NewWriter(stderr), log: stderr, out: stdout, manager: service.New()}
}

// run runs a command and returns its exit code.
func (c *cli) run(args []string) int {
	root := c.rootCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	if err == nil {
		return exitOK
	}
	if !c.parsed {
		hint := fmt.Sprintf("see `%s --help`", cmd.CommandPath())
		if ee, ok := errors.AsType[*exitError](err); ok {
			hint = first(ee.hint, hint)
		}
		err = usageHint(hint, "%w", err)
	}
	return c.fail(err)
}

// fail says why a command failed, and returns its exit code.
func (c *cli) fail(err error) int {
	code, hint := exitFailed, ""
	if ee, ok := errors.AsType[*exitError](err); ok {
		code, hint = ee.code, ee.hint
	}
	fmt.Fprintf(c.stderr, "reverser: %s\n", redact(err.Error()))
	if hint != "" {
		fmt.Fprintf(c.stderr, "hint: %s\n", hint)
	}
	return code
}

func (c *cli) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "reverser",
		Short: "Give a service behind NAT a public address",
		Long: `Reverser gives a TCP service behind NAT a public address.

The proxy runs on a server with a public address, the bridge next to the
service. Users connect to the proxy; their connections travel, encrypted, over
a link that the bridge keeps to the proxy, and survive a break of it.`,
		Example: `  # on the server: prints the line to paste on the other machine
  reverser proxy

  # next to the service: its port 9000 becomes port 9000 of the server
  reverser bridge TOKEN 9000

  # everything on this machine, to look at
  reverser demo`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          needsSubcommand,
		PersistentPreRun: func(*cobra.Command, []string) {
			c.parsed = true
		},
	}
	// Help fits on a terminal of 80 columns: the texts by hand, the flags and the last line so.
	root.SetUsageTemplate(strings.NewReplacer("Flags.FlagUsages ", "Flags.FlagUsagesWrapped 80 ",
		"for more information about a command.", "for more.").Replace(root.UsageTemplate()))
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		// -1 is a port with a slip in it, and a hint at flags leads astray.
		if m := negative.FindStringSubmatch(err.Error()); m != nil {
			return fmt.Errorf("%q is no port: a port is a number from 1 to 65535", m[1])
		}
		if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
			return badValue(e)
		}
		if m := unknownFlag.FindStringSubmatch(err.Error()); m != nil {
			if err := laterFlag(m[1]); err != nil {
				return err
			}
			if hint := foreignFlags[m[1]+m[2]]; hint != "" {
				return usageHint(hint, "%w", err)
			}
		}
		return err
	})
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.AddCommand(
		c.proxyCommand(),
		c.bridgeCommand(),
		c.keyCommand(),
		c.statusCommand(),
		c.doctorCommand(),
		c.reloadCommand(),
		c.notifyCommand(),
		c.topCommand(),
		c.eventsCommand(),
		c.inspectCommand(),
		c.endCommand(),
		c.drainCommand(),
		c.usageCommand(),
		c.stateCommand(),
		c.checkCommand(),
		c.serviceCommand(),
		c.demoCommand(),
		c.versionCommand(),
	)
	addLaterCommands(root)
	// Cobra's own two commands print their help for what they do not know, and say that all is well.
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = knownTopic
		case "completion":
			cmd.Args = knownShell
			cmd.RunE = needsSubcommand // Args lets nothing come to that, but cobra looks at them only where there is something to run
		}
	}
	return root
}

// knownTopic wants a path to a command.
func knownTopic(cmd *cobra.Command, args []string) error {
	found, rest, err := cmd.Root().Find(args)
	if err == nil && len(rest) == 0 {
		return nil
	}
	hint := fmt.Sprintf("see `%s --help`", found.CommandPath())
	if len(rest) == 1 {
		hint = first(didYouMean(found, strings.Join(append([]string{cmd.CommandPath()}, args[:len(args)-1]...), " "), rest[0]), hint)
	}
	return usageHint(hint, "unknown help topic %q", strings.Join(args, " "))
}

// knownShell sees the arguments that are no subcommand.
func knownShell(cmd *cobra.Command, args []string) error {
	var shells []string
	for _, shell := range cmd.Commands() {
		shells = append(shells, shell.Name())
	}
	last := len(shells) - 1
	all := strings.Join(shells[:last], ", ")
	if len(args) == 0 {
		return fmt.Errorf("%s needs a shell: %s or %s", cmd.CommandPath(), all, shells[last])
	}
	return fmt.Errorf("there is no completion for %q, only for %s and %s", args[0], all, shells[last])
}

// needsSubcommand is the Run of a command that only groups others.
func needsSubcommand(cmd *cobra.Command, _ []string) error {
	cmd.SetOut(cmd.ErrOrStderr())
	cmd.Help()
	return usage(fmt.Errorf("%s needs a command", cmd.CommandPath()))
}

// noSuchCommand is the Args of a command that only groups others: an argument
// is a command with a slip in it.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	if hint := didYouMean(cmd, cmd.CommandPath(), args[0]); hint != "" {
		return usageHint(hint, "%w", err)
	}
	return err
}

// didYouMean is a hint at the subcommands of cmd that look like name, "" if none
// does.
func didYouMean(cmd *cobra.Command, before, name string) string {
	if name == "" { // every command begins so
		return ""
	}
	cmd.SuggestionsMinimumDistance = min(2, len(name)/2) // two slips in two letters are another word
	var near []string
	for _, s := range cmd.SuggestionsFor(name) {
		near = append(near, fmt.Sprintf("`%s %s`", before, s))
	}
	if len(near) == 0 {
		return ""
	}
	return "did you mean " + strings.Join(near, " or ") + "?"
}

// takes is how many arguments a command takes, and what each one is. An example
// of a right call says more than a count.
func takes(example string, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usageHint(example, "%s needs a %s", cmd.CommandPath(), names[len(args)])
		}
		if len(args) == len(names) {
			return nil
		}
		all := "no argument"
		if len(names) > 0 {
			all = strings.Join(names, " and ") + " alone"
		}
		return usageHint(example, "%s takes %s, and %q is one more", cmd.CommandPath(), all, args[len(names)])
	}
}

// exitError is an error with the exit code it leads to.
type exitError struct {
	code int
	err  error
	hint string
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usage marks an error as wrong usage or configuration.
func usage(err error) error { return &exitError{code: exitUsage, err: err} }

// usageHint is usage with a remedy on a line of its own.
func usageHint(hint string, format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...), hint: hint}
}

// badSettings is the exit of a process whose settings are refused.
func badSettings(err error) error {
	hint := ""
	if ae, ok := errors.AsType[*config.ArgError](err); ok {
		hint = ae.Hint
	}
	return &exitError{code: exitUsage, err: err, hint: hint}
}

var tokenPattern = regexp.MustCompile(`rv[0-9]{1,2}_[A-Za-z0-9_-]+`)

// foreignFlags are flags of ssh, frp, rathole, chisel and Docker, and what is meant with them here.
var foreignFlags = map[string]string{
	"R": exposeHint, "L": exposeHint, "local-port": exposeHint, "remote-port": exposeHint, "local": exposeHint, "remote": exposeHint, "expose": exposeHint, "publish": exposeHint,
	"p":    "the port of the proxy is --listen :3010, and a service is an argument of its own: `reverser bridge TOKEN 9000=localhost:9904`",
	"port": "--listen :3010 is the proxy's own port; the public ports are what bridges ask for", "bind-port": "--listen :3010", "host": "--listen ADDRESS:3010",
	"token": "the token is the first argument, or stands in a file that --token-file names", "t": "the token is the first argument, or stands in a file that --token-file names",
	"auth": "the token is the first argument, or stands in a file that --token-file names", "key": "the token is the first argument, or stands in a file that --token-file names",
	"server": "--proxy HOST:3010", "server-addr": "--proxy HOST:3010", "s": "--proxy HOST:3010", "c": "--config FILE", "config-file": "--config FILE",
	"v": "--log-level debug", "verbose": "--log-level debug", "debug": "--log-level debug", "d": "it does not go into the background: a service manager does that", "daemon": "it does not go into the background: a service manager does that",
}

const exposeHint = "a service is an argument of its own, PUBLIC=TARGET: `reverser bridge TOKEN 9000=localhost:9904`"

var unknownFlag = regexp.MustCompile(`^(?:unknown flag: --([a-z-]+)|unknown shorthand flag: '(.)' in )`)

// badValue says in plain words what package strconv says in its own.
func badValue(e *pflag.InvalidValueError) error {
	name, value := "--"+e.GetFlag().Name, e.GetValue()
	number, ok := errors.AsType[*strconv.NumError](e)
	switch {
	case !ok:
		return fmt.Errorf("%s: %w", name, e.Unwrap())
	case number.Func == "ParseBool":
		return fmt.Errorf("%s: %q is neither true nor false", name, value)
	case errors.Is(number, strconv.ErrRange):
		return fmt.Errorf("%s: %q is out of range", name, value)
	}
	return fmt.Errorf("%s: %q is no number", name, value)
}

var negative = regexp.MustCompile(`^unknown shorthand flag: '[0-9]' in (-[0-9]+)$`)

// redact is the last guard: whoever quotes an argument in an error must not
// thereby print a token.
func redact(s string) string { return tokenPattern.ReplaceAllString(s, "rv1_…") }

// printJSON prints what --json asks for.
func (c *cli) printJSON(v any) error {
	enc := json.NewEncoder(c.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
