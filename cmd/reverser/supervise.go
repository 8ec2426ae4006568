package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"reverser/internal/service"
	"reverser/internal/status"
)

// supervisor is a service manager that started this process and wants to hear how it does.
type supervisor interface {
	Ready(status string) error // it does what it is there for; also behind Reloading
	Status(status string) error
	Reloading() error
	Stopping(status string, within time.Duration) error
	Alive() error
}

// supervision tells a supervisor how a role does.
type supervision struct {
	to       supervisor       // nil: there is none
	watchdog time.Duration    // how often it must hear that the process is not stuck; 0: it does not ask
	asked    <-chan os.Signal // what the supervisor asks for where it sends no signals
	log      *slog.Logger

	mu       sync.Mutex
	ready    bool   // guarded by mu, as all below
	stopping bool   //
	said     string // the last status
	deaf     bool   // it could not be told, which was logged
}

// host is a supervisor that sends no signals.
type host interface {
	supervisor
	Asked() <-chan os.Signal // what stands for them
}

// supervision finds out who wants to hear of this process.
func (c *cli) supervision(log *slog.Logger) (v *supervision, end func()) {
	v = &supervision{log: log}
	if c.host != nil {
		v.to, v.asked = c.host, c.host.Asked()
		return v, func() {}
	}
	n, err := service.NewNotifier(os.Getenv)
	if err != nil {
		v.told(err)
	}
	if n == nil {
		return v, func() {}
	}
	v.to, v.watchdog = n, service.Watchdog(os.Getenv)
	return v, func() { n.Close() }
}

// signals are what the supervisor sends in their place.
func (v *supervision) signals() <-chan os.Signal {
	if v == nil {
		return nil
	}
	return v.asked
}

const (
	// settleWithin is how long a role that has started may take until it is said to be ready although not all is as it should be:
	// a bridge whose proxy cannot be reached is a running bridge, and must not hold up the start of the machine.
	settleWithin = 10 * time.Second
	settlePoll   = 100 * time.Millisecond
	// statusEvery is how often the words about the process are looked at.
	statusEvery = 10 * time.Second
)

// run says when the role is ready, and from then on that the process is not stuck and what it does, until ctx ends. Each time it
// looks at the role as `status` does: where that hangs on a lock, nothing is said any more, and the supervisor ends the process.
func (v *supervision) run(ctx context.Context, look func() status.Snapshot) {
	if v == nil || v.to == nil {
		return
	}
	every := statusEvery
	if v.watchdog > 0 {
		every = min(every, v.watchdog/3)
	}
	alive := time.Now() // a watchdog runs from READY on
	for begun := time.Now(); ; {
		s := look()
		if settled(s) || time.Since(begun) >= settleWithin {
			v.serves(inWords(s))
			break
		}
		v.status("starting: " + inWords(s))
		if v.watchdog > 0 && time.Since(alive) >= every {
			v.told(v.to.Alive())
			alive = time.Now()
		}
		if !pause(ctx, settlePoll) {
			return
		}
	}
	for {
		if v.watchdog > 0 {
			v.told(v.to.Alive())
		}
		if !pause(ctx, every) {
			return
		}
		v.status(inWords(look()))
	}
}

// serves says that the process is ready.
func (v *supervision) serves(words string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stopping {
		return
	}
	v.ready, v.said = true, words
	v.toldLocked(v.to.Ready(words))
}

// status says how the process does, if that is different.
func (v *supervision) status(words string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stopping {
		words = "stopping: " + words
	}
	if words == v.said {
		return
	}
	v.said = words
	v.toldLocked(v.to.Status(words))
}

// reloading says that the settings are read again, until done is called.
func (v *supervision) reloading() (done func()) {
	if v == nil || v.to == nil {
		return func() {}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.ready || v.stopping {
		return func() {}
	}
	v.toldLocked(v.to.Reloading())
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if !v.stopping {
			v.toldLocked(v.to.Ready(v.said))
		}
	}
}

// stop says that the process was asked to stop and that its connections have that long.
func (v *supervision) stop(drain time.Duration) {
	if v == nil || v.to == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stopping = true
	v.said = "stopping"
	v.toldLocked(v.to.Stopping(v.said, max(drain, 0)+stopMargin))
}

// stopMargin is what a process may take to end when its connections have ended.
const stopMargin = 15 * time.Second

func (v *supervision) told(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.toldLocked(err)
}

// toldLocked logs that the supervisor could not be told something: once, until it can.
func (v *supervision) toldLocked(err error) {
	if err != nil && !v.deaf {
		v.log.Warn("the service manager cannot be told how this process does: it may take it for stuck, and end it", "err", err)
	}
	v.deaf = err != nil
}

// settled reports whether a role has got as far as it can without waiting for others.
func settled(s status.Snapshot) bool {
	if s.Role != "bridge" {
		return true // its ports are open
	}
	if _, up := linksUp(s); up == 0 {
		return false
	}
	for _, v := range s.Services {
		if v.State == status.ServiceAway && !v.Drained || v.State == status.ServiceRetrying && v.Reason == "" {
			return false
		}
	}
	return true
}

func linksUp(s status.Snapshot) (all, up int) {
	for _, l := range s.Links {
		all++
		if l.State == status.LinkUp {
			up++
		}
	}
	return all, up
}

// inWords is a line about a process, for the status of its service.
func inWords(s status.Snapshot) string {
	_, links := linksUp(s)
	up, connections := 0, 0
	for _, v := range s.Removed {
		connections += v.Connections
	}
	var bad []string
	for _, v := range s.Services {
		connections += v.Connections
		switch {
		case v.State == status.ServiceUp:
			up++
		case v.Reason != "":
			bad = append(bad, fmt.Sprintf("%s %s: %s", v.Public, v.State, v.Reason))
		default:
			bad = append(bad, fmt.Sprintf("%s %s", v.Public, v.State))
		}
	}
	var words []string
	switch {
	case s.Role != "bridge":
		words = append(words, count(links, "bridge")+" connected")
	case links == 0:
		words = append(words, "no link to the proxy")
	case links == 1:
		words = append(words, "link up")
	default:
		words = append(words, fmt.Sprintf("%d links up", links))
	}
	words = append(words, fmt.Sprintf("%d of %s up", up, count(len(s.Services), "service")), count(connections, "connection"))
	const most = 3
	if len(bad) > most {
		bad = append(bad[:most], fmt.Sprintf("and %d more", len(bad)-most))
	}
	if s.Reload != nil && s.Reload.Error != "" {
		bad = append(bad, "the last reload was refused: see `reverser status`")
	}
	return printable(strings.Join(append([]string{strings.Join(words, ", ")}, bad...), "; "))
}

func count(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	return fmt.Sprintf("%d %ss", n, of)
}
