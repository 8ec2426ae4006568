// Package service makes the program a service of the operating system: it writes what systemd, launchd or the Windows service manager
// needs to know, asks that manager to start, stop and describe the service, and tells it how the process does.
//
// One role has one service on a machine, reverser-proxy or reverser-bridge. The package knows nothing of what a role does: it gets a
// command line and a token, and takes care that the token reaches the service in a file that only the service and the administrator
// can read. It starts no goroutines, except those of a Windows service (hosted_windows.go), whose owner is [Host].
package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Spec is what a manager is to run.
type Spec struct {
	Role    string   // "proxy" or "bridge"
	Program string   // absolute path of the program
	Args    []string // what follows the role on the command line, besides --state and --token-file; no secret
	Config  string   // the configuration file that Args name, "" if none
	Sockets []string // unix sockets that the service connects to
	State   string   // the state directory, "" for the manager's place
	Token   string   // of a bridge: goes into a file
	User    string   // who runs the service, "" for the manager's choice
	// LowPorts lets the service listen on ports below 1024.
	LowPorts bool
	// UsersAddresses lets it connect to targets from addresses that are its users', not this machine's.
	UsersAddresses bool
	Drain          time.Duration // that connections get to finish at a stop

	// Prepare is called before the service starts for the first time, with its state directory. nil does nothing.
	Prepare func(state string) error
	// Check is asked about the service when it has come up. An error of it is one of the installation. nil is content.
	Check func(context.Context, Manager) error
}

// Manager is the service manager of a machine.
type Manager interface {
	// Name is what people call it.
	Name() string
	// Plan returns the files that Install would write and the commands that it would run. The token is left out.
	Plan(Spec) (Plan, error)
	// Install makes the service, has the system start it from now on, and starts it. A service of that role that is there already is
	// an error unless replace is true. When the new one does not come up, all is as it was before.
	Install(ctx context.Context, s Spec, replace bool) error
	// Uninstall stops the service and removes it, with purge its state too. kept is what is left.
	Uninstall(ctx context.Context, role string, purge bool) (kept []Kept, err error)
	Start(ctx context.Context, role string) error
	Stop(ctx context.Context, role string) error
	Status(ctx context.Context, role string) (Status, error)
	// State is the state directory of an installed service, "" if none is installed.
	State(role string) string
	// TokenFile is where the token of an installed bridge is, "" if there is none.
	TokenFile(role string) string
}

// Kept is a file or directory that is there when a service has been uninstalled.
type Kept struct {
	Path string
	Why  string // what it is, and what to do about it
}

// keptState is a state directory that stays. ours reports whether it is in the manager's place: what somebody named with --state may be a
// directory with more in it, and is not removed.
func keptState(path, role string, ours bool) Kept {
	what := "the state directory"
	if role == "proxy" {
		what += ", with the identity and the keys"
	}
	if !ours {
		return Kept{path, what + "; --state named it, so it is yours to remove"}
	}
	return Kept{path, what + "; the next installation takes it over, and --purge removes it"}
}

// keptOwn are files that somebody else has put beside those of the service.
func keptOwn(path string) Kept {
	return Kept{path, "there are files in it that are not of the service"}
}

// Plan is what an installation does.
type Plan struct {
	Files    []File
	Commands []string
	// Obstacle is why Install would refuse it on this machine, nil if nothing is known.
	Obstacle error
}

// File is one file of a service.
type File struct {
	Path string
	Text string // "" for the token
	Note string // what is special about it
}

// States of a service.
const (
	Running  = "running"
	Starting = "starting"
	Stopping = "stopping"
	Stopped  = "stopped"
	Failed   = "failed"
)

// Status is what a manager knows of a service.
type Status struct {
	State string // one of the above
	Since time.Time
	PID   int    // 0: no process
	Text  string // what the process said of itself
	Boot  bool   // the system starts it
	// Why is what became of the last process, "" if nothing is wrong with it.
	Why string
	// Log is the end of what the last process said; of one that runs, what it warned of within the last minutes.
	Log []string
	// LogHint is how to see more of it.
	LogHint string
}

// Error is an error with a remedy.
type Error struct {
	Err   error
	Hint  string // "" where Err has it
	Usage bool   // the command line or the configuration is wrong

	ofLog bool // Hint is where the log of the service is
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func hint(remedy, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Hint: remedy}
}

func misuse(remedy, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Hint: remedy, Usage: true}
}

// What errors.Is finds.
var (
	ErrInstalled    = errors.New("the service is installed already")
	ErrNotInstalled = errors.New("the service is not installed")
)

func installed(role string) error {
	return hint(fmt.Sprintf("`reverser service install %s --replace …` puts the new one in its place; `reverser service status %s` shows the one that is there", role, role),
		"%s: %w", UnitName(role), ErrInstalled)
}

func notInstalled(role string) error {
	return hint(fmt.Sprintf("`reverser service install %s --help` shows how", role), "%s: %w", UnitName(role), ErrNotInstalled)
}

// UnitName is the name of a role's service.
func UnitName(role string) string { return "reverser-" + role }

func describe(role string) string {
	if role == "proxy" {
		return "reverser proxy: public ports for services behind NAT"
	}
	return "reverser bridge: gives services of this network a public address"
}

// runner runs a program of the system and returns what it wrote to stdout. Its error has what it wrote to stderr.
type runner func(ctx context.Context, name string, args ...string) (string, error)

// runProgram is the runner that runs it.
func runProgram(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if said := strings.TrimSpace(stderr.String()); said != "" {
			err = fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(said), " "))
		}
		return stdout.String(), fmt.Errorf("run %s %s: %w", name, strings.Join(args, " "), err)
	}
	return stdout.String(), nil
}

// checkWords refuses what stands in no file of a service manager.
func checkWords(words ...string) error {
	for _, w := range words {
		if !utf8.ValidString(w) || strings.ContainsFunc(w, unicode.IsControl) {
			return misuse("choose a path and flags without line breaks and control characters", "%q cannot stand in the description of a service", w)
		}
	}
	return nil
}

// doesNotComeUp is the error of a start, with the reason that st has.
func doesNotComeUp(role string, st Status, cause error) error {
	why := st.Why
	if last := lastLine(st.Log); last != "" {
		if why != "" {
			why += "; "
		}
		why += "it said: " + last
	}
	if why == "" && cause != nil {
		why = cause.Error()
	}
	return &Error{Err: fmt.Errorf("%s does not come up: %s", UnitName(role), why), Hint: st.LogHint, ofLog: true}
}

// takenBack adds to the error of an installation that failed what is there now. logStays reports whether the log of the service is
// still where it was.
func takenBack(err error, existed, logStays bool) error {
	now := "nothing of it is left"
	if existed {
		now = "the service that was there before is back"
	}
	e, _ := errors.AsType[*Error](err)
	if e == nil {
		return fmt.Errorf("%w; %s", err, now)
	}
	back := &Error{Err: fmt.Errorf("%w; %s", e.Err, now), Hint: e.Hint, Usage: e.Usage}
	if e.ofLog && !logStays {
		back.Hint = ""
	}
	return back
}

// lastLine is the last line that is no hint to the one before it.
func lastLine(lines []string) string {
	last := ""
	for _, l := range lines {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "hint: ") {
			last = l
		} else if l != "" && last != "" {
			last += " (" + l + ")"
		}
	}
	return last
}
