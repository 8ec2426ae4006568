package relay

import (
	"sync"
	"time"
)

// A reset that came over the link waits until the socket's peer has acknowledged what was written before: closing a socket with RST
// throws away what its kernel still holds. No event tells that the queue is empty, so it is asked for, less and less often. That is
// done by one timer for all pairs of a process, and a tick looks at a bounded number of them: what it costs does not grow with the
// pairs that wait.

// flushLimit is how long a reset waits. A peer that takes nothing for so long is reset all the same.
const flushLimit = 10 * time.Second

// looks are the pauses before the queue is asked for again. The last one repeats.
var looks = [...]time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond, 160 * time.Millisecond,
}

// looksAtOnce is how many queues one tick asks for. The next one is the shortest pause later.
const looksAtOnce = 64

// reset is one that waits.
type reset struct {
	flushed  func() bool // reports whether there is nothing to wait for any more
	carryOut func()
	reason   Reason
	until    time.Time // it is carried out then in any case

	// Guarded by resets.mu.
	look       time.Time // at the queue: when next
	step       int       // of looks
	over       bool      // it was carried out, or is not to be any more
	queue      *resetQueue
	next, prev *reset
}

// resets are all that wait, in a queue for each pause: in each of them they are in the order of their looks.
type resets struct {
	mu      sync.Mutex
	queues  [len(looks)]resetQueue
	running bool
	timer   *time.Timer
}

// add lets r wait until it is carried out or dropped.
func (rs *resets) add(r *reset, now time.Time) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.queueLocked(r, now)
	if !rs.running {
		rs.armLocked(now, 0)
	}
}

// drop takes r back and reports whether that came in time: false means that it is being carried out, or was.
func (rs *resets) drop(r *reset) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if r.over {
		return false
	}
	r.over = true
	r.unlinkLocked()
	return true
}

// run is called by the timer.
func (rs *resets) run() {
	rs.mu.Lock()
	if rs.running {
		rs.mu.Unlock()
		return
	}
	rs.running = true
	now := time.Now()
	for range looksAtOnce {
		r := rs.dueLocked(now)
		if r == nil {
			break
		}
		rs.mu.Unlock()
		done := !now.Before(r.until) || r.flushed()
		rs.mu.Lock()
		switch {
		case r.over:
		case done:
			r.over = true
			rs.mu.Unlock()
			r.carryOut()
			rs.mu.Lock()
		default:
			r.step = min(r.step+1, len(looks)-1)
			rs.queueLocked(r, now)
		}
	}
	rs.running = false
	rs.armLocked(now, looks[0])
	rs.mu.Unlock()
}

// queueLocked puts r where its next look belongs.
func (rs *resets) queueLocked(r *reset, now time.Time) {
	r.look = now.Add(looks[r.step])
	q := &rs.queues[r.step]
	r.queue, r.prev, r.next = q, q.tail, nil
	if q.tail == nil {
		q.head = r
	} else {
		q.tail.next = r
	}
	q.tail = r
}

// dueLocked takes out the first one whose look has come; nil: there is none.
func (rs *resets) dueLocked(now time.Time) *reset {
	r := rs.firstLocked()
	if r == nil || now.Before(r.look) {
		return nil
	}
	r.unlinkLocked()
	return r
}

// firstLocked returns the one whose look comes first.
func (rs *resets) firstLocked() (first *reset) {
	for i := range rs.queues {
		if r := rs.queues[i].head; r != nil && (first == nil || r.look.Before(first.look)) {
			first = r
		}
	}
	return first
}

// armLocked sets the timer for the next look, the given pause away at least.
func (rs *resets) armLocked(now time.Time, pause time.Duration) {
	r := rs.firstLocked()
	if r == nil {
		return
	}
	pause = max(pause, r.look.Sub(now))
	if rs.timer == nil {
		rs.timer = time.AfterFunc(pause, rs.run)
	} else {
		rs.timer.Reset(pause)
	}
}

// close stops the timer. Nothing waits any more.
func (rs *resets) close() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.timer != nil {
		rs.timer.Stop()
	}
}

// resetQueue is a list of resets.
type resetQueue struct{ head, tail *reset }

func (r *reset) unlinkLocked() {
	q := r.queue
	if q == nil {
		return
	}
	if r.prev == nil {
		q.head = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		q.tail = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.queue, r.next, r.prev = nil, nil, nil
}
