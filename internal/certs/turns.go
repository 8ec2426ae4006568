package certs

import (
	"context"
	"sync"
	"time"
)

// At most mostAsking certificates are asked for at once, and mostAskingEach for one owner.
const (
	mostAsking     = 8
	mostAskingEach = 3
)

// An owner may ask for burst new certificates at once, and for one more every each. Let's Encrypt takes 300 orders of an account in three
// hours: one key that claims thousands of names leaves most of them to others. Renewals are not counted, as they are not there.
const (
	burst = 20
	each  = 2 * time.Minute
)

// turns says whose turn it is to ask the authority.
type turns struct {
	mu         sync.Mutex
	free, most int // guarded by mu, as all below; most is an owner's
	by         map[string]int
	waiting    []*turn
	quotas     map[string]*quota
}

type turn struct {
	owner string
	ready chan struct{} // closed when it is there
}

type quota struct {
	left  int
	since time.Time
}

func (t *turns) init(all, most int) {
	t.free, t.most = all, most
	t.by, t.quotas = make(map[string]int), make(map[string]*quota)
}

// take waits for an owner's turn. The caller gives it back.
func (t *turns) take(ctx context.Context, owner string) (give func(), err error) {
	mine := &turn{owner, make(chan struct{})}
	t.mu.Lock()
	t.waiting = append(t.waiting, mine)
	t.nextLocked()
	t.mu.Unlock()
	give = func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.free++
		if t.by[owner]--; t.by[owner] == 0 {
			delete(t.by, owner)
		}
		t.nextLocked()
	}
	select {
	case <-mine.ready:
		return give, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	for i, w := range t.waiting {
		if w == mine {
			t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
			t.mu.Unlock()
			return nil, ctx.Err()
		}
	}
	t.mu.Unlock()
	give() // it came in this moment
	return nil, ctx.Err()
}

// nextLocked gives free turns to those who wait longest, of owners that have fewer than they may.
func (t *turns) nextLocked() {
	left := t.waiting[:0]
	for _, w := range t.waiting {
		if t.free == 0 || t.by[w.owner] >= t.most {
			left = append(left, w)
			continue
		}
		t.free--
		t.by[w.owner]++
		close(w.ready)
	}
	clear(t.waiting[len(left):])
	t.waiting = left
}

// count takes one of what an owner may ask for anew. If nothing is left, it returns when there is again.
func (t *turns) count(owner string, now time.Time) (again time.Time, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for o, q := range t.quotas {
		if q.refill(now); q.left == burst && o != owner {
			delete(t.quotas, o)
		}
	}
	q := t.quotas[owner]
	if q == nil {
		q = &quota{left: burst, since: now}
		t.quotas[owner] = q
	}
	if q.left == 0 {
		return q.since.Add(each), false
	}
	q.left--
	return time.Time{}, true
}

func (q *quota) refill(now time.Time) {
	if n := int(now.Sub(q.since) / each); n > 0 {
		q.left, q.since = min(q.left+n, burst), q.since.Add(time.Duration(n)*each)
	}
}

// retries are the pauses after failures, in parts of the first one. Let's Encrypt allows five failures of a host in an hour, and an
// attempt may be two: one for each kind of proof.
var retries = []int{1, 5, 15, 30, 60, 120, 180}

// limitedFor is the least pause when the authority said that it was asked too often.
const limitedFor = time.Hour

func retryAfter(first time.Duration, failures int, limited bool) time.Duration {
	d := first * time.Duration(retries[min(failures, len(retries)-1)])
	if limited {
		d = max(d, limitedFor)
	}
	return d
}
