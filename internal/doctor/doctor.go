// Package doctor looks at a proxy or a bridge and at what it depends on, one step at a time, and says of each step whether it is well, what is
// wrong, and what to do. Its secret is which steps there are, and what it mostly means when one fails.
//
// It changes nothing, and leaves alone what works: a process that runs is asked, not imitated. How a bridge dials its proxy is known to
// bridge, how settings are read to config, and which directory can be used to state: they are asked here with the words that they have
// for whoever starts the process. The way through the package: Patient is who is looked at, World what the checks look at, bridge.go and
// proxy.go have the steps of the roles, machine.go those of every machine. All goroutines have ended when Examine returns.
package doctor

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"reverser/internal/config"
	"reverser/internal/state"
	"reverser/internal/status"
)

// State is what a check found.
type State string

// The states of a check.
const (
	OK   State = "ok"
	Warn State = "warn" // it works, and may stop to
	Fail State = "fail" // something is wrong
	Skip State = "skip" // it could not be looked at, or another check says why it does not matter
)

// Check is one step that was looked at. What it found may quote a peer: whoever shows it escapes it.
type Check struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	Found string `json:"found"`
	Hint  string `json:"hint"` // what to do; "" where nothing is to be done
}

// Patient is the process that is looked at, or the one that would be started.
type Patient struct {
	Role        string // config.RoleProxy or config.RoleBridge
	State       string // its state directory
	Trusted     []int  // users, by their ids, whose files it takes
	Settings    *config.Settings
	Warnings    []config.Warning
	SettingsErr error            // why there are no settings; nil without settings: they are those of the process, which nobody gave
	Snapshot    *status.Snapshot // what the running process says; nil: none runs, or it cannot be asked
	AskErr      error            // why a process that runs cannot be asked
	// Ask has the process that runs look at what only it can; errors.ErrUnsupported says that its version cannot. nil: it is not asked.
	Ask func(context.Context) ([]Check, error)
}

// limit bounds the whole examination, and AskLimit the wait for a Snapshot before it: less than others wait, since the rest is looked at
// without it.
const (
	limit    = 14 * time.Second
	AskLimit = 5 * time.Second
)

// Examine looks at the patient and tells say what it finds, in order.
func (w *World) Examine(ctx context.Context, p Patient, say func(Check)) {
	v := &visit{Patient: p}
	within := limit
	if v.silent() { // which took its time
		within -= AskLimit
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	v.seen, v.seenErr = w.LookAt(p.State, p.Trusted...)
	steps := []step{w.settings, w.stateDir, w.troubles, w.usage, w.accessLog}
	if p.Role == config.RoleBridge {
		steps = append(steps, w.token, w.link, w.way, w.services, w.probes, w.targets)
	} else {
		steps = append(steps, w.ports, w.keys, w.links, w.services, w.lastUsers, w.publicPorts, w.advertised, w.dns)
	}
	steps = append(steps, w.certificates, w.adminPort, w.notices, w.descriptors, w.memory, w.kernel, w.clock, w.disk)
	var looking sync.WaitGroup
	defer looking.Wait()
	found := make([]chan []Check, len(steps))
	for i, look := range steps {
		found[i] = make(chan []Check, 1)
		looking.Go(func() { found[i] <- look(ctx, v) })
	}
	for _, f := range found {
		for _, c := range <-f {
			say(c)
		}
	}
}

// visit is one examination.
type visit struct {
	Patient
	seen    state.Looked // of the state directory
	seenErr error

	asking    sync.Once // of the process that runs
	answer    []Check
	answerErr error
}

// pid is that of the process that runs; 0: none does, or its number is not known.
func (v *visit) pid() int {
	if v.Snapshot == nil && v.AskErr == nil {
		return 0
	}
	return v.seen.PID
}

// step looks at one thing. It may find several.
type step func(ctx context.Context, v *visit) []Check

// Worst is the state of all checks together: Fail if one is, else Warn if one is, else OK.
func Worst(all []Check) State {
	worst := OK
	for _, c := range all {
		switch {
		case c.State == Fail:
			return Fail
		case c.State == Warn:
			worst = Warn
		}
	}
	return worst
}

func ok(name, format string, args ...any) Check {
	return Check{Name: name, State: OK, Found: fmt.Sprintf(format, args...)}
}

func skip(name, format string, args ...any) Check {
	return Check{Name: name, State: Skip, Found: fmt.Sprintf(format, args...)}
}

func warn(name, hint, format string, args ...any) Check {
	return Check{Name: name, State: Warn, Found: fmt.Sprintf(format, args...), Hint: hint}
}

func fail(name, hint, format string, args ...any) Check {
	return Check{Name: name, State: Fail, Found: fmt.Sprintf(format, args...), Hint: hint}
}

// faulty is fail for an error. Where the error has a remedy of its own, that is the hint.
func faulty(name string, err error, hint string) Check {
	text := err.Error()
	if remedy := remedyOf(err); remedy != "" && strings.Contains(text, remedy) {
		hint = remedy
		for _, joint := range []string{": " + remedy, " (" + remedy + ")"} {
			text = strings.Replace(text, joint, "", 1)
		}
	}
	return Check{Name: name, State: Fail, Found: text, Hint: hint}
}

// remedyOf is what the error, or one that it wraps, says to do; "": none does.
func remedyOf(err error) string {
	switch e := err.(type) {
	case nil:
		return ""
	case interface{ Remedy() string }:
		return e.Remedy()
	case interface{ Unwrap() error }:
		return remedyOf(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			if remedy := remedyOf(inner); remedy != "" {
				return remedy
			}
		}
	}
	return ""
}

// mostLines is how many faults of one kind are told one by one.
const mostLines = 10

// few keeps the first lines of many, and says how many there are besides.
func few(all []Check, what string) []Check {
	if len(all) <= mostLines {
		return all
	}
	worst := Worst(all[mostLines:])
	return append(all[:mostLines:mostLines], Check{all[0].Name, worst, fmt.Sprintf("%d more %s", len(all)-mostLines, what), ""})
}

// names are at most so many of a list, in one line.
func names(all []string) string {
	const most = 8
	if len(all) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
	}
	return strings.Join(all, ", ")
}

func inUTC(t time.Time) string { return t.UTC().Format(time.DateTime + " UTC") }

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
