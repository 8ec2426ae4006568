// Package lines writes log lines that others cause, so that whoever causes many neither fills the log nor waits for it.
//
// Of each kind of line, one message about one party, ten a second are written. The others are counted, and the count is written when
// the flood is over. The package does not know what the lines are about.
//
// Goroutines: Run, which the owner starts and Stop waits for.
package lines

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// Log takes lines. Make it with New, and start Run.
type Log struct {
	log   *slog.Logger
	lines chan line
	lost  atomic.Int64 // lines that found no room
	stop  chan struct{}
	done  chan struct{}
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
	return &Log{log: log, lines: make(chan line, mostWait), stop: make(chan struct{}), done: make(chan struct{})}
}

// Say has a line written about a party, which is a comparable value. It never waits. What is said after Stop may be lost.
func (l *Log) Say(level slog.Level, who any, msg string, args ...any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	select {
	case l.lines <- line{kind{who, msg}, level, args}:
	default:
		l.lost.Add(1)
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
	quotas := make(map[kind]*quota)
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		select {
		case ln := <-l.lines:
			l.one(quotas, ln)
		case <-again.C:
			l.sum(quotas, false)
		case <-l.stop:
			for {
				select {
				case ln := <-l.lines:
					l.one(quotas, ln)
				default:
					l.sum(quotas, true)
					return
				}
			}
		}
	}
}

func (l *Log) one(quotas map[kind]*quota, ln line) {
	q, now := quotas[ln.kind], time.Now()
	if q == nil && len(quotas) >= mostKinds {
		ln.who = nil
		q = quotas[ln.kind]
	}
	if q == nil {
		q = &quota{left: perSecond, since: now}
		quotas[ln.kind] = q
	}
	if q.refill(now); q.left > 0 {
		q.left--
		l.write(ln)
		return
	}
	if q.quiet == 0 {
		q.from = now
	}
	q.quiet++
	q.last = ln
}

// sum says what was left out of floods that are over, and forgets kinds of which nothing was said for a while.
func (l *Log) sum(quotas map[kind]*quota, all bool) {
	now := time.Now()
	for k, q := range quotas {
		q.refill(now)
		over := q.left == perSecond // nothing was said for a second
		switch {
		case q.quiet > 0 && (all || over || now.Sub(q.from) >= sumAfter):
			ln := q.last
			if q.quiet > 1 {
				ln.args = append(ln.args[:len(ln.args):len(ln.args)], "more", q.quiet-1)
			}
			l.write(ln)
			q.quiet, q.last = 0, line{}
		case over:
			delete(quotas, k)
		}
	}
	if n := l.lost.Swap(0); n > 0 {
		l.log.Warn("the log was too slow for some lines", "more", n)
	}
}

func (l *Log) write(ln line) { l.log.Log(context.Background(), ln.level, ln.msg, ln.args...) }

// Stop returns when everything was written that was said before. Run must have been started.
func (l *Log) Stop() {
	close(l.stop)
	<-l.done
}
