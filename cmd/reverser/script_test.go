package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"reverser/internal/freeport"
	"reverser/internal/state"
)

// TestScripts runs the stories in testdata: the commands as a user types them.
func TestScripts(t *testing.T) {
	end, ok := t.Deadline()
	if !ok {
		end = time.Now().Add(10 * time.Minute)
	}
	end = end.Add(-30 * time.Second)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		Deadline:            end, // all stories share it; a command that does not end fails before the package does
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// The default state directories, inside the story's own: $STATES/ROLE.
			home := filepath.Join(env.WorkDir, "home")
			for _, name := range []string{"HOME", "USERPROFILE", "LocalAppData"} {
				env.Setenv(name, home)
			}
			states := map[string]string{"windows": home, "darwin": filepath.Join(home, "Library", "Application Support")}[runtime.GOOS]
			env.Setenv("STATES", filepath.Join(cmp.Or(states, filepath.Join(home, ".local", "state")), "reverser"))
			// The race detector holds every exit up for a second by default.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"freeport":  freePortCmd,
			"interrupt": interruptCmd,
			"occupy":    occupyCmd,
			"running":   runningCmd,
			"token":     tokenCmd,
			"exitcode":  exitCodeCmd,
			"mode":      modeCmd,
			"envsubst":  envSubstCmd,
			"service":   serviceCmd,
			"answer":    answerCmd,
			"fetch":     fetchCmd,
			"stays":     staysCmd,
			"empty":     emptyCmd,
			"within":    withinCmd,
			"nodumps":   noDumpsCmd,
		},
	})
}

// freeport VAR... sets each VAR to a port that is free, all different.
func freePortCmd(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		port, err := freeport.Get()
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(port))
	}
}

// interrupt WORD does what Ctrl-C does to the program in the background that has WORD on its command line.
func interruptCmd(ts *testscript.TestScript, neg bool, args []string) {
	var found []*exec.Cmd
	for _, cmd := range ts.BackgroundCmds() {
		if slices.Contains(cmd.Args, args[0]) {
			found = append(found, cmd)
		}
	}
	if len(found) != 1 {
		ts.Fatalf("%d programs in the background have %q on their command line, want one", len(found), args[0])
	}
	ts.Check(interrupt(found[0].Process))
}

// nodumps checks that no program in the background leaves a core dump.
func noDumpsCmd(ts *testscript.TestScript, neg bool, args []string) {
	for _, cmd := range ts.BackgroundCmds() {
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
		ts.Check(err)
		if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
			ts.Fatalf("%v may dump core:\n%s", cmd.Args, limits)
		}
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

// empty DIR checks that nothing is in a directory.
func emptyCmd(ts *testscript.TestScript, neg bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(entries) != 0 {
		ts.Fatalf("%s is not empty: %v", args[0], entries)
	}
}

// running DIR [VAR] waits until a process answers for the state directory. DIR
// may be a pattern; VAR is set to what it stands for.
func runningCmd(ts *testscript.TestScript, neg bool, args []string) {
	pattern := ts.MkAbs(args[0])
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		dir := pattern
		if found, _ := filepath.Glob(pattern); len(found) == 1 {
			dir = found[0]
		}
		conn, err := state.DialAdmin(ctx, dir)
		if err == nil {
			conn.Close()
			if len(args) > 1 {
				ts.Setenv(args[1], dir)
			}
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

// service VAR sets VAR to the port of a service that answers each connection
// with "hello" and what it got, until the story ends. Who asks "whence" is
// told where the connection comes from.
func serviceCmd(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(time.Minute))
				got, _ := io.ReadAll(conn)
				if string(got) == "whence" {
					from, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
					io.WriteString(conn, from)
					return
				}
				io.WriteString(conn, "hello "+string(got))
			})
		}
	})
	ts.Defer(func() {
		l.Close()
		wg.Wait()
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
}

// answer PORT TEXT WANT sends TEXT to a port, half-closes, and wants WANT.
// With !, the connection must be refused or reset.
func answerCmd(ts *testscript.TestScript, neg bool, args []string) {
	got, err := ask(args[0], args[1])
	if neg {
		if err == nil && (got != "" || runtime.GOOS != "windows") { // Wine tells some readers of a reset that nothing more comes
			ts.Fatalf("port %s answered %q", args[0], got)
		}
		return
	}
	ts.Check(err)
	if got != args[2] {
		ts.Fatalf("port %s answered %q, want %q", args[0], got, args[2])
	}
}

// fetch CODE URL [TOKENFILE] gets something by HTTP, with the token in a file, waits for it to be served, and prints it to stdout.
func fetchCmd(ts *testscript.TestScript, neg bool, args []string) {
	req, err := http.NewRequest(http.MethodGet, args[1], nil)
	ts.Check(err)
	if len(args) > 2 {
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[2])))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		resp, err := client.Do(req.WithContext(ctx))
		if err != nil {
			if !pause(ctx, 10*time.Millisecond) {
				ts.Fatalf("%s is not served: %v", args[1], err)
			}
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		ts.Check(err)
		if got := strconv.Itoa(resp.StatusCode); got != args[0] {
			ts.Fatalf("%s answers %s, want %s: %s", args[1], got, args[0], body)
		}
		_, err = ts.Stdout().Write(body)
		ts.Check(err)
		return
	}
}

// stays PORT connects to a port and says something, and stays until the story
// ends.
func staysCmd(ts *testscript.TestScript, neg bool, args []string) {
	conn, err := net.Dial("tcp", "127.0.0.1:"+args[0])
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
	_, err = io.WriteString(conn, "here")
	ts.Check(err)
}

func ask(port, text string) (string, error) {
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	return string(got), err
}

// within DURATION PATTERN COMMAND... repeats a command until its stdout
// matches or, with !, does not match.
func withinCmd(ts *testscript.TestScript, neg bool, args []string) {
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		err := ts.Exec(args[2], args[3:]...)
		if err == nil && pattern.MatchString(ts.ReadFile("stdout")) != neg {
			return
		}
		if !pause(ctx, 10*time.Millisecond) {
			ts.Fatalf("%q matched %t for %s; the last output was:\n%s%s", args[1], neg, limit, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
		}
	}
}
