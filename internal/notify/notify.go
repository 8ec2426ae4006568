// Package notify tells people in a chat, or a program at a URL, that a bridge or a service is down, or up again.
//
//  1. watch.go compares snapshots of the process and says what has been so for long enough to be told.
//  2. message.go writes that in the words of a chat, and reads whether the chat took it.
//  3. notify.go looks every few seconds, and has a goroutine for each target that sends, and tries again.
//
// It sees snapshots alone, and nothing waits for it: a target that is slow, wrong or gone costs its own messages. URLs hold secrets: no log
// line and no error has more of one than its host.
package notify

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"reverser/internal/status"
)

// Target is where word of events goes.
type Target struct {
	URL    string        // a secret: whoever has it can write there
	Format string        // one of Formats
	On     []string      // of Events
	After  time.Duration // how long something has to be so until it is told
}

func (t Target) equal(o Target) bool {
	return t.URL == o.URL && t.Format == o.Format && t.After == o.After && slices.Equal(t.On, o.On)
}

// Notifier watches one process.
type Notifier struct {
	Role string // of the process
	Host string // the name of its machine
	Log  *slog.Logger
	// Keys returns the names of the keys that there are. Nothing is told of the bridge and the services of a key that was removed. nil: all
	// keys count, as at a bridge, which has one.
	Keys func() map[string]bool
}

const (
	// How often the process is looked at: so that something is seen three times before it is told, within these bounds.
	leastPause = time.Second
	mostPause  = 5 * time.Second
	// mostWaiting is how many messages wait for one target. Each tells all that has changed since the one before.
	mostWaiting = 16

	sendLimit = 10 * time.Second // for one attempt
	firstWait = 2 * time.Second  // before the second one; each wait is twice the one before
	mostWait  = 10 * time.Minute
	giveUp    = time.Hour
)

// Run watches until ctx ends. look is not called while there are no targets.
func (n *Notifier) Run(ctx context.Context, look func() status.Snapshot, targets func() []Target) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var running []*outlet
	defer func() {
		for _, o := range running {
			o.stop()
		}
	}()
	for {
		want := targets()
		running = slices.DeleteFunc(running, func(o *outlet) bool {
			gone := !slices.ContainsFunc(want, o.target.equal)
			if gone {
				o.stop()
			}
			return gone
		})
		for _, t := range want {
			if slices.ContainsFunc(running, func(o *outlet) bool { return o.target.equal(t) }) {
				continue
			}
			ctx, stop := context.WithCancel(ctx)
			o := &outlet{notifier: n, target: t, watch: watch{after: t.After}, waiting: make(chan message, mostWaiting), stop: stop}
			running = append(running, o)
			wg.Go(func() { o.run(ctx) })
		}
		if len(running) > 0 {
			now, snapshot := time.Now(), look()
			var known map[string]bool
			if n.Keys != nil {
				known = n.Keys()
			}
			for _, o := range running {
				o.watch.known = known
				o.put(now, o.watch.look(snapshot, now))
			}
		}
		select {
		case <-time.After(pause(want)):
		case <-ctx.Done():
			return
		}
	}
}

// pause is how long to wait between two looks.
func pause(targets []Target) time.Duration {
	least := mostPause
	for _, t := range targets {
		least = min(least, max(t.After/3, leastPause))
	}
	return least
}

// outlet is one target with what waits for it.
type outlet struct {
	notifier *Notifier
	target   Target
	watch    watch
	waiting  chan message
	stop     func()
}

// put queues what the target is to be told.
func (o *outlet) put(now time.Time, events []Event) {
	events = slices.DeleteFunc(events, func(e Event) bool { return !slices.Contains(o.target.On, e.Event) })
	if len(events) == 0 {
		return
	}
	select {
	case o.waiting <- message{role: o.notifier.Role, host: o.notifier.Host, at: now, events: events}:
	default:
		o.notifier.Log.Error("a notice is dropped: too many wait for a target that takes none", "to", o.target.name(), "events", len(events))
	}
}

// run sends one message after the other.
func (o *outlet) run(ctx context.Context) {
	for {
		select {
		case m := <-o.waiting:
			o.deliver(ctx, m)
		case <-ctx.Done():
			return
		}
	}
}

// deliver tries until the target has taken a message.
func (o *outlet) deliver(ctx context.Context, m message) {
	log := o.notifier.Log.With("to", o.target.name())
	begun := time.Now()
	for wait := firstWait; ; wait = min(2*wait, mostWait) {
		err := send(ctx, o.target, m)
		switch {
		case err == nil:
			log.Info("notified", "events", len(m.events))
			return
		case ctx.Err() != nil:
			return
		case time.Since(begun)+wait > giveUp:
			log.Error("a notice is given up", "err", err, "events", len(m.events))
			return
		case wait == firstWait:
			log.Warn("a notice could not be sent, trying again", "err", err, "for", giveUp)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// Result is what became of a test of one target.
type Result struct {
	To    string `json:"to"`
	Error string `json:"error"` // "" if it took the message
}

// Test sends a message to each target at once, and says what became of it. It takes no longer than ctx lasts.
func (n *Notifier) Test(ctx context.Context, targets []Target) []Result {
	results := make([]Result, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() {
			results[i].To = t.name()
			if err := send(ctx, t, message{role: n.Role, host: n.Host, at: time.Now(), test: true}); err != nil {
				results[i].Error = err.Error()
			}
		})
	}
	wg.Wait()
	return results
}

// client goes nowhere else than it was told: a redirection would take the secret along.
var client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
