package e2e

import (
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// programEnv names the variables that put a prebuilt program in the place of the one that is built here, with the words
// that start it before it: .ci/wine has a proxy, a bridge, or both, of Windows run that way. The commands that ask a process
// are run by the program of that process.
var programEnv = map[string]string{"proxy": "REVERSER_E2E_PROXY", "bridge": "REVERSER_E2E_BRIDGE"}

// reverser returns the program that is built here.
func reverser(t *testing.T) string { t.Helper(); return build(t, "./cmd/reverser") }

// onWine reports whether the process of a role is a program of Windows.
func onWine(role string) bool { return os.Getenv(programEnv[role]) != "" }

// roles holds the role of each process that was started, by its state directory.
var roles sync.Map

// roleOf tells whose program runs a command.
func roleOf(args []string) string {
	if _, ok := programEnv[args[0]]; ok {
		if i := slices.Index(args, "--state"); i >= 0 {
			roles.Store(args[i+1], args[0])
		}
		return args[0]
	}
	if i := slices.Index(args, "--state"); i >= 0 {
		if role, ok := roles.Load(args[i+1]); ok {
			return role.(string)
		}
	}
	if args[0] != "key" && onWine("bridge") {
		return "bridge" // it asks no process, so Windows' program does it if there is one
	}
	return "proxy"
}

// command returns program and arguments for a command of reverser.
func command(t *testing.T, args []string) (string, []string) {
	t.Helper()
	if words := strings.Fields(os.Getenv(programEnv[roleOf(args)])); len(words) > 0 {
		return words[0], append(words[1:], args...)
	}
	return reverser(t), args
}

// startReverser is start for a command of reverser.
func startReverser(t *testing.T, name string, env []string, args ...string) *testProcess {
	t.Helper()
	onWine := onWine(roleOf(args))
	path, args := command(t, args)
	p := start(t, name, path, env, args...)
	p.onWine = onWine
	return p
}

// runReverser is run for a command of reverser.
func runReverser(t *testing.T, args ...string) string {
	t.Helper()
	path, args := command(t, args)
	return run(t, path, args...)
}
