package web

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
)

// mostWaiting is how many passwords for the services of one key wait for a turn.
const mostWaiting = 100

var errCrowd = errors.New("too many passwords for services of this key wait to be checked")

// keyTurns shares out turns among keys: each key has a line, and the lines are served in rotation. So who waits, waits for about one turn of each
// other key, however many come for that one and however long its turns are.
type keyTurns struct {
	mu    sync.Mutex
	free  int              // turns that nobody has; guarded by mu, as all below
	lines map[any]*keyLine // in which somebody waits, by key
	order list.List        // the same, the next one first
}

// keyLine is who waits for turns of one key.
type keyLine struct {
	key     any
	waiting []chan struct{} // each is closed when its turn comes
	place   *list.Element   // in order
}

func newKeyTurns(n int) *keyTurns { return &keyTurns{free: n, lines: make(map[any]*keyLine)} }

// take waits for a turn. The error is errCrowd at once, or that of ctx.
func (k *keyTurns) take(ctx context.Context, key any) error {
	l, turn, err := k.join(key)
	if err != nil || turn == nil {
		return err
	}
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		if !k.leave(l, turn) {
			k.end() // it came at the same moment
		}
		return ctx.Err()
	}
}

// join takes a turn, or a place in the line of a key. turn is nil if it is a turn.
func (k *keyTurns) join(key any) (l *keyLine, turn chan struct{}, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.free > 0 { // so nobody waits
		k.free--
		return nil, nil, nil
	}
	if l = k.lines[key]; l == nil {
		l = &keyLine{key: key}
		l.place = k.order.PushBack(l)
		k.lines[key] = l
	}
	if len(l.waiting) >= mostWaiting {
		return nil, nil, errCrowd
	}
	turn = make(chan struct{})
	l.waiting = append(l.waiting, turn)
	return l, turn, nil
}

// leave gives a place in a line up. false: its turn has come.
func (k *keyTurns) leave(l *keyLine, turn chan struct{}) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.Index(l.waiting, turn)
	if i >= 0 {
		k.removeLocked(l, i)
	}
	return i >= 0
}

// end gives a turn to the next one.
func (k *keyTurns) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	first := k.order.Front()
	if first == nil {
		k.free++
		return
	}
	l := first.Value.(*keyLine)
	close(l.waiting[0])
	k.order.MoveToBack(first)
	k.removeLocked(l, 0)
}

func (k *keyTurns) removeLocked(l *keyLine, i int) {
	if l.waiting = slices.Delete(l.waiting, i, i+1); len(l.waiting) == 0 {
		k.order.Remove(l.place)
		delete(k.lines, l.key)
	}
}
