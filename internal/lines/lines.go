// Package lines writes log lines that others cause, so that whoever causes many neither fills the log nor waits for it.
//
// Of each kind of line, one message about one party, ten a second are written. The others are counted, and the count is written when
// the flood is over. While the log is slow, a party may have as many lines waiting as there is room left for those of others; beyond that
// they are counted, too. The package does not know what the lines are about.
//
// Goroutines: Run, which the owner starts and Stop waits for.
package lines

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Log takes lines. Make it with New, and start Run.
type Log struct {
	log  *slog.Logger
	wake chan struct{} // has room for one: something waits
	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex
	quotas  map[kind]*quota // guarded by mu, as all below
	waiting []line          // to be written
	of      map[any]int     // how many of these are about a party
}

type line struct {
	kind
	level slog.Level
	args  []any
}

// kind is what is bounded.
type kind struct {
	who any // comparable; nil: all for which there is no room
	msg string
}

const (
	perSecond = 10          // lines of a kind
	sumAfter  = time.Minute // a flood that lasts is summed up as often
	mostKinds = 4096        // that have a quota of their own
	mostWait  = 1024        // lines for a log that is slow
)

// New returns a Log that writes to log.
func New(log *slog.Logger) *Log {
	return &Log{
		log: log, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		quotas: make(map[kind]*quota), of: make(map[any]int),
	}
}

// Say has a line written about a party, which is a comparable value. It never waits. What is said after Stop may be lost.
func (l *Log) Say(level slog.Level, who any, msg string, args ...any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	if l.take(line{kind{who, msg}, level, args}) {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// quota is what is left to say of a kind.
type quota struct {
	left  int
	since time.Time // when left was counted
	quiet int       // lines that were not written
	from  time.Time // when the first of them came
	last  line
}

func (q *quota) refill(now time.Time) {
	const every = time.Second / perSecond
	if n := int(now.Sub(q.since) / every); n > 0 {
		q.left, q.since = min(q.left+n, perSecond), q.since.Add(time.Duration(n)*every)
	}
}

// Run writes lines until Stop.
func (l *Log) Run() {
	defer close(l.done)
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for stopped := false; !stopped; {
		select {
		case <-l.wake:
		case <-again.C:
			l.sum(false)
		case <-l.stop:
			stopped = true
		}
		for ln, ok := l.next(); ok; ln, ok = l.next() {
			l.write(ln)
		}
	}
	l.sum(true)
}

// take has a line wait to be written, or counts it. It reports whether the line waits.
func (l *Log) take(ln line) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	q, now := l.quotas[ln.kind], time.Now()
	if q == nil && len(l.quotas) >= mostKinds {
		ln.who = nil
		q = l.quotas[ln.kind]
	}
	if q == nil {
		q = &quota{left: perSecond, since: now}
		l.quotas[ln.kind] = q
	}
	if q.refill(now); q.left > 0 {
		q.left--
		if l.of[ln.who] < mostWait-len(l.waiting) {
			l.of[ln.who]++
			l.waiting = append(l.waiting, ln)
			return true
		}
	}
	if q.quiet == 0 {
		q.from = now
	}
	q.quiet++
	q.last = ln
	return false
}

// next returns the line that has waited longest; false: none waits.
func (l *Log) next() (ln line, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.waiting = nil
		return ln, false
	}
	ln, l.waiting[0] = l.waiting[0], line{}
	l.waiting = l.waiting[1:]
	if l.of[ln.who]--; l.of[ln.who] == 0 {
		delete(l.of, ln.who)
	}
	return ln, true
}

// sum says what was left out of floods that are over, and forgets kinds of which nothing was said for a while.
func (l *Log) sum(all bool) {
	for _, ln := range l.sums(all) {
		l.write(ln)
	}
}

func (l *Log) sums(all bool) (sums []line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for k, q := range l.quotas {
		q.refill(now)
		over := q.left == perSecond // nothing was said for a second
		switch {
		case q.quiet > 0 && (all || over || now.Sub(q.from) >= sumAfter):
			ln := q.last
			if q.quiet > 1 {
				ln.args = append(ln.args[:len(ln.args):len(ln.args)], "more", q.quiet-1)
			}
			sums = append(sums, ln)
			q.quiet, q.last = 0, line{}
		case over:
			delete(l.quotas, k)
		}
	}
	return sums
}

func (l *Log) write(ln line) { l.log.Log(context.Background(), ln.level, ln.msg, ln.args...) }

// Stop returns when everything was written that was said before. Run must have been started.
func (l *Log) Stop() {
	close(l.stop)
	<-l.done
}
