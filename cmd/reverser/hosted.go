package main

import (
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"reverser/internal/service"
	"reverser/internal/state"
)

// isHosted reports whether a service manager that does not read stderr has started this process.
func isHosted(args []string) bool {
	role := len(args) > 0 && (args[0] == state.RoleProxy || args[0] == state.RoleBridge) // --service of other commands is another one
	return role && slices.Contains(args, service.HostedFlag) || startedByManager()
}

// runHosted runs a role for such a manager: whatever it would write to stderr goes to the log of the service. What it would write to
// stdout is for nobody's eyes: a token.
func runHosted(args []string, stderr io.Writer) int {
	role, dir := "", ""
	for i, a := range args {
		if i == 0 {
			role = a
		}
		if a == "--state" && i+1 < len(args) {
			dir = args[i+1]
		} else if path, ok := strings.CutPrefix(a, "--state="); ok {
			dir = path
		}
	}
	if dir == "" {
		c := newCLI(strings.NewReader(""), io.Discard, stderr)
		return c.fail(usageHint("`reverser service install` makes a service", "a service needs --state DIR"))
	}
	log, err := service.OpenLog(dir)
	defer log.Close()
	newHosted := func(h host) *cli {
		c := newCLI(strings.NewReader(""), io.Discard, log)
		c.host = h
		return c
	}
	if err != nil && !os.IsNotExist(err) {
		// The role will say what is wrong with its directory.
		newCLI(strings.NewReader(""), io.Discard, stderr).fail(err)
	}
	// What the runtime says when the program crashes.
	if f, err := os.OpenFile(filepath.Join(dir, service.CrashFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err == nil {
		debug.SetCrashOutput(f, debug.CrashOptions{})
		f.Close()
	}
	return hosted(args, role, log, newHosted, stderr)
}
