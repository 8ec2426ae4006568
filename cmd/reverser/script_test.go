package main

import (
	"context"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"reverser/internal/state"
)

// TestScripts runs the stories in testdata: the commands as a user types them.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		Deadline:            time.Now().Add(time.Minute), // a command that does not end fails soon
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// The default state directories, inside the story's own.
			env.Setenv("HOME", env.WorkDir+"/home")
			env.Setenv("USERPROFILE", env.WorkDir+"/home")
			env.Setenv("LocalAppData", env.WorkDir+"/home")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"freeport": freePortCmd,
			"occupy":   occupyCmd,
			"running":  runningCmd,
			"token":    tokenCmd,
			"exitcode": exitCodeCmd,
			"mode":     modeCmd,
			"envsubst": envSubstCmd,
		},
	})
}

// freeport VAR... sets each VAR to a port of the loopback that is free, all
// different.
func freePortCmd(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // after the last one: no port twice
		_, port, err := net.SplitHostPort(l.Addr().String())
		ts.Check(err)
		ts.Setenv(name, port)
	}
}

// occupy VAR sets VAR to a port that is taken until the story ends.
func occupyCmd(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
}

// running DIR waits until a process answers for the state directory.
func runningCmd(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		conn, err := state.DialAdmin(ctx, dir)
		if err == nil {
			conn.Close()
			return
		}
		if !pause(ctx, 10*time.Millisecond) {
			ts.Fatalf("no process answers for %s: %v", dir, err)
		}
	}
}

var anyToken = regexp.MustCompile(`rv1_[A-Za-z0-9_-]+`)

// token VAR FILE sets VAR to the token in a file, and VAR_MISTYPED and VAR_CUT
// to broken copies of it.
func tokenCmd(ts *testscript.TestScript, neg bool, args []string) {
	name, file := args[0], args[1]
	tok := anyToken.FindString(ts.ReadFile(file))
	if tok == "" {
		ts.Fatalf("no token in %s", file)
	}
	ts.Setenv(name, tok)
	swapped := "A"
	if tok[20] == 'A' {
		swapped = "B"
	}
	ts.Setenv(name+"_MISTYPED", tok[:20]+swapped+tok[21:])
	ts.Setenv(name+"_CUT", tok[:len(tok)-9])
}

// exitcode N COMMAND... runs a command that must exit with N.
func exitCodeCmd(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%s exited with %s, want %s", args[1], got, args[0])
	}
}

// mode PERM FILE checks the mode of a file.
func modeCmd(ts *testscript.TestScript, neg bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := strings.TrimPrefix(info.Mode().Perm().String(), "-"); got != args[0] {
		ts.Fatalf("mode of %s is %s, want %s", args[1], got, args[0])
	}
}

// envsubst FILE... replaces $VAR in files.
func envSubstCmd(ts *testscript.TestScript, neg bool, args []string) {
	for _, file := range args {
		text := os.Expand(ts.ReadFile(file), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(text), 0o600))
	}
}
