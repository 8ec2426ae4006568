package bridge

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
	"reverser/internal/traffic"
	"reverser/internal/via"
)

// reporter turns what happens to the connections of a link into few log lines. A break of the network takes all of them
// within a moment, and each is dialled again on its own: what a person wants to read is that the link broke, what stands
// in the way for as long as it stays so, and that it is back.
//
// From the first connection that is missing to the moment when none is, there is an outage. It begins with one warning.
// Then the control connection and the carriers have a clock each, so that a port for carriers that is blocked is said
// although the control connection is up; while that is away as well, it speaks for both.
//
// Whoever reads the log may be slow, or have stopped: one caller writes, and the others leave it what they have to say.
type reporter struct {
	log   *slog.Logger
	proxy string

	mu      sync.Mutex
	session *link.Link   // that the rest is about; nil: there is none. Guarded by mu, as all below
	up      map[int]bool // the slots that are known, and which of them have a connection
	ever    bool         // connected since the start
	since   time.Time    // begin of the outage; zero: there is none
	next    [2]time.Time // when control connection and carriers are worth a line again
	mend    error        // what a person has to mend, as last said in this outage
	lines   []func()     // to be written, in order
	writing bool         // somebody is at it
	second  time.Time    // when said was zero
	said    int          // lines since
	unsaid  int          // lines that were not written
}

const (
	// settle is how long after a break the first reason is worth a line why it cannot be mended. New users are reset from
	// then on; see registry.Hold.
	settle = 10 * time.Second
	// sayAgain is how often the same failure is worth a line.
	sayAgain = time.Minute
)

func newReporter(log *slog.Logger, proxy string) *reporter {
	return &reporter{log: log, proxy: proxy, up: map[int]bool{0: false}}
}

// mostLines bounds what waits for a log that nobody reads, and linesPerSecond what a proxy can cause that accepts and ends sessions as fast
// as it can.
const (
	mostLines      = 100
	linesPerSecond = 10
)

// say has a line written when mu is released. mu is held.
func (r *reporter) say(log func(string, ...any), msg string, args ...any) {
	if now := time.Now(); now.Sub(r.second) >= time.Second {
		r.second, r.said = now, 0
	}
	if len(r.lines) >= mostLines || r.said >= linesPerSecond {
		r.unsaid++
		return
	}
	if r.said++; r.unsaid > 0 {
		args = append(args[:len(args):len(args)], "more", r.unsaid)
		r.unsaid = 0
	}
	r.lines = append(r.lines, func() { log(msg, args...) })
}

// unlock releases mu, and then writes what there is to say, unless somebody else does.
func (r *reporter) unlock() {
	for !r.writing && len(r.lines) > 0 {
		r.writing = true
		lines := r.lines
		r.lines = nil
		r.mu.Unlock()
		for _, write := range lines {
			write()
		}
		r.mu.Lock()
		r.writing = false
	}
	r.mu.Unlock()
}

// attached says that a slot of a session has a connection. The first of a session may come before the end of the session before.
func (r *reporter) attached(l *link.Link, slot int, remote string) {
	r.mu.Lock()
	defer r.unlock()
	if r.session != l {
		if r.ever {
			r.begin() // or nobody would read that there is another session
		}
		r.session, r.up = l, map[int]bool{0: false}
	}
	r.up[slot] = true
	for _, up := range r.up {
		if !up {
			return
		}
	}
	switch {
	case !r.ever:
		r.say(r.log.Info, "connected to the proxy", "proxy", r.proxy, "remote", remote)
	case !r.since.IsZero():
		r.say(r.log.Info, "connected to the proxy again", "proxy", r.proxy, "remote", remote, "away", traffic.Seconds(time.Since(r.since)))
	}
	r.ever, r.since, r.mend = true, time.Time{}, nil
}

// detached says that a slot of a session lost its connection.
func (r *reporter) detached(l *link.Link, slot int, err error) {
	r.mu.Lock()
	defer r.unlock()
	if r.session != l {
		return
	}
	if errors.Is(err, link.ErrRenewed) { // the one that takes its place is about to be told of, or why there is none
		r.say(r.log.Info, "the control connection is replaced, with the new token", "proxy", r.proxy)
		return
	}
	r.up[slot] = false
	if r.begin() {
		r.say(r.log.Warn, "a connection to the proxy broke, dialling again; users' connections stand still meanwhile", "proxy", r.proxy, "err", err)
	}
}

// rests says that a slot needs no connection while the link is idle.
func (r *reporter) rests(l *link.Link, slot int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == l {
		delete(r.up, slot)
	}
}

// begin starts an outage; false: there is one. mu is held.
func (r *reporter) begin() bool {
	if !r.since.IsZero() {
		return false
	}
	r.since = time.Now()
	r.next = [2]time.Time{r.since.Add(settle), r.since.Add(settle)}
	return true
}

// failed says that a slot could not be connected and is tried again after pause.
func (r *reporter) failed(slot int, err error, pause time.Duration) {
	r.mu.Lock()
	defer r.unlock()
	r.up[slot] = false
	part := min(slot, 1)
	mend := toMend(err)
	now := time.Now()
	if part == 1 && !r.up[0] { // perhaps the session has begun, and its control connection was not told of yet
		return
	}
	switch first := r.begin(); {
	case first:
	case now.Before(r.next[part]) && (mend == nil || mend == r.mend):
		r.say(r.log.Debug, "no connection", "slot", slot, "err", err, "retry_in", traffic.Seconds(pause))
		return
	}
	r.mend = mend
	r.next[part] = now.Add(sayAgain)
	if part == 0 {
		r.next[1] = r.next[0]
	}
	what := "no connection to the proxy, trying again"
	if part == 1 {
		what = "no connection for carriers, trying again; without one no user is served"
		for slot, up := range r.up {
			if slot > 0 && up {
				what = "no connection for some of the carriers, trying again; users go over the others"
			}
		}
	}
	log := r.log.With("proxy", r.proxy, "err", err, "retry_in", traffic.Seconds(pause))
	if away := now.Sub(r.since); away > 0 {
		log = log.With("away", traffic.Seconds(away))
	}
	r.say(log.Warn, what)
}

// leaving says that the proxy announced its stop. What has a connection to it goes on for the time of the drain; what is reported
// from now on is the search for the process that takes its place. back is when that is to begin; 0: at once.
func (r *reporter) leaving(l *link.Link, drain, back time.Duration) {
	r.mu.Lock()
	defer r.unlock()
	if !r.over(l) {
		return // its place is taken
	}
	r.mend = nil
	log := r.log.With("proxy", r.proxy, "drain", drain.Seconds())
	if back > 0 {
		log = log.With("retry_in", traffic.Seconds(back))
	}
	r.say(log.Warn, "the proxy is stopping, looking for the one that takes its place")
}

// over notes that nothing of a session counts any more: the next one may have other carriers. It reports whether the next one
// has not begun yet. mu is held.
func (r *reporter) over(l *link.Link) bool {
	if r.session != nil && r.session != l {
		return false
	}
	r.begin()
	r.session, r.up = nil, map[int]bool{0: false}
	return true
}

// ended says that a session is over.
func (r *reporter) ended(l *link.Link, err error) {
	r.mu.Lock()
	defer r.unlock()
	if r.over(l) {
		r.mend = toMend(err)
	}
	r.say(r.log.Warn, "session with the proxy ended, its connections were reset", "proxy", r.proxy, "err", err)
}

// toMend returns what of err does not pass by waiting, nil if nothing does: that is said at once.
func toMend(err error) error {
	for _, e := range []error{auth.ErrPin, auth.ErrFake, auth.ErrNotProxy, auth.ErrRefused, link.ErrDuplicate, link.ErrDenied, via.ErrAuth, via.ErrBarred, via.ErrPortal, via.ErrOther} {
		if errors.Is(err, e) {
			return e
		}
	}
	return nil
}
