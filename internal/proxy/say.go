package proxy

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// talker writes log lines about bridges beside everything else: whoever reads the log may be slow, and whoever runs a bridge may
// have it say a lot.
type talker struct {
	log   *slog.Logger
	lines chan line
	lost  atomic.Int64 // lines that found no room
	done  chan struct{}
}

type line struct {
	kind
	level slog.Level
	args  []any
}

// kind is what is bounded: one message about one key.
type kind struct {
	key [16]byte
	msg string
}

// Of one kind linesAtOnce lines are written at once, and then one each time that lineEvery passed. The others are counted.
const (
	linesAtOnce = 32
	lineEvery   = 100 * time.Millisecond
	linesWait   = 1024
)

func newTalker(log *slog.Logger) *talker {
	return &talker{log: log, lines: make(chan line, linesWait), done: make(chan struct{})}
}

func (t *talker) info(key [16]byte, msg string, args ...any) { t.say(slog.LevelInfo, key, msg, args) }
func (t *talker) warn(key [16]byte, msg string, args ...any) { t.say(slog.LevelWarn, key, msg, args) }

func (t *talker) say(level slog.Level, key [16]byte, msg string, args []any) {
	select {
	case t.lines <- line{kind{key, msg}, level, args}:
	default:
		t.lost.Add(1)
	}
}

// quota is what is left to say of a kind.
type quota struct {
	left  int
	since time.Time // when left was counted
	quiet int       // lines that were not written
	last  line
}

func (q *quota) refill(now time.Time) {
	if n := int(now.Sub(q.since) / lineEvery); n > 0 {
		q.left, q.since = min(q.left+n, linesAtOnce), q.since.Add(time.Duration(n)*lineEvery)
	}
}

// run writes lines until stop.
func (t *talker) run() {
	defer close(t.done)
	quotas := make(map[kind]*quota)
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		select {
		case l, more := <-t.lines:
			if !more {
				t.sum(quotas, true)
				return
			}
			t.one(quotas, l)
		case <-again.C:
			t.sum(quotas, false)
		}
	}
}

func (t *talker) one(quotas map[kind]*quota, l line) {
	q, now := quotas[l.kind], time.Now()
	if q == nil {
		q = &quota{left: linesAtOnce, since: now}
		quotas[l.kind] = q
	}
	if q.refill(now); q.left == 0 {
		q.quiet++
		q.last = l
		return
	}
	q.left--
	t.write(l)
}

// sum says what was left out, and forgets kinds of which nothing was said for a while.
func (t *talker) sum(quotas map[kind]*quota, all bool) {
	now := time.Now()
	for k, q := range quotas {
		if q.refill(now); q.quiet > 0 && (all || q.left > 0) {
			l := q.last
			l.args = append(l.args[:len(l.args):len(l.args)], "lines_left_out", q.quiet-1)
			t.write(l)
			q.quiet = 0
		} else if q.left == linesAtOnce {
			delete(quotas, k)
		}
	}
	if n := t.lost.Swap(0); n > 0 {
		t.log.Warn("the log was too slow for some lines about bridges", "lines_left_out", n)
	}
}

func (t *talker) write(l line) { t.log.Log(context.Background(), l.level, l.msg, l.args...) }

// stop returns when everything was written. Nobody says anything any more.
func (t *talker) stop() {
	close(t.lines)
	<-t.done
}
