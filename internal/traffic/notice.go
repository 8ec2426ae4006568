package traffic

import (
	"log/slog"
	"sync"
	"time"
)

// noticesPer is how often a service may have a line in the log about refused users, and noticesOfKey how many lines the services of one key
// may have in that time: a key can have thousands of services.
const (
	noticesPer   = time.Second
	noticesOfKey = 10
)

// notice is what the log is told about refused users of a service: one line a second. It is guarded by ledger.mu.
type notice struct {
	said   time.Time // when the last line was written
	due    bool      // a line is to be written later
	unsaid uint64    // refusals since
	msg    string    // of the last one
	args   []any
}

// notices is what the services of a key may have logged yet. It is guarded by ledger.mu.
type notices struct {
	since time.Time // when left was full
	left  int
}

func (n *notices) take(now time.Time) bool {
	if now.Sub(n.since) >= noticesPer {
		n.since, n.left = now, noticesOfKey
	}
	n.left--
	return n.left >= 0
}

// sayRefusal logs a refusal, now or later: within a second, unless many services of the key have refused users. Of those in between, the last
// is logged, with how many more there were.
func (c *Conns) sayRefusal(a *Account, msg string, args []any) {
	c.ledger.mu.Lock()
	n := &a.refusal
	now := time.Now()
	if now.Sub(n.said) >= noticesPer && n.unsaid == 0 && a.key.notices.take(now) {
		n.said = now
		c.ledger.mu.Unlock()
		c.log.Warn(msg, args...)
		return
	}
	n.unsaid++
	n.msg, n.args = msg, args
	due := n.due
	n.due = true
	wait := n.said.Add(noticesPer).Sub(now)
	if wait <= 0 { // it is the key's turn that is waited for
		wait = noticesPer
	}
	c.ledger.mu.Unlock()
	if !due {
		c.later.do(wait, func() { c.sayRest(a) })
	}
}

// sayRest logs the last refusal that was not.
func (c *Conns) sayRest(a *Account) {
	c.ledger.mu.Lock()
	n := &a.refusal
	if !a.key.notices.take(time.Now()) {
		c.ledger.mu.Unlock()
		c.later.do(noticesPer, func() { c.sayRest(a) })
		return
	}
	msg, args, more := n.msg, n.args, n.unsaid-1
	n.said, n.due, n.unsaid, n.msg, n.args = time.Now(), false, 0, "", nil
	c.ledger.mu.Unlock()
	if more > 0 {
		args = append(args[:len(args):len(args)], slog.Uint64("more", more))
	}
	c.log.Warn(msg, args...)
}

// later runs short jobs when a time has passed, unless it was closed by then.
type later struct {
	mu      sync.Mutex
	closed  bool // guarded by mu; running grows only while it is false
	running sync.WaitGroup
}

func (l *later) do(wait time.Duration, f func()) {
	time.AfterFunc(wait, func() {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return
		}
		l.running.Add(1)
		l.mu.Unlock()
		defer l.running.Done()
		f()
	})
}

// close lets no job begin any more, and waits for those that run.
func (l *later) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.running.Wait()
}
