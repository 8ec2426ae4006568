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

// keyTurns shares out turns among keys: each key has a line, and the lines are served in rotation. So whoever comes first for a key waits for at most
// one turn of each other key, and that includes one under way, however many come for that key and however long its turns are.
type keyTurns struct {
	mu    sync.Mutex
	free  int              // turns that nobody has; guarded by mu, as all below
	lines map[any]*keyLine // of keys that have a turn, or for which somebody waits
	order list.List        // those with somebody who waits, the next one first
}

// keyLine is who waits for turns of one key.
type keyLine struct {
	key     any
	turns   int             // that are under way
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
			k.end(key) // it came at the same moment
		}
		return ctx.Err()
	}
}

// join takes a turn, or a place in the line of a key. turn is nil if it is a turn.
func (k *keyTurns) join(key any) (l *keyLine, turn chan struct{}, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l = k.lines[key]; l == nil {
		l = &keyLine{key: key}
		k.lines[key] = l
	}
	if k.free > 0 { // so nobody waits
		k.free--
		l.turns++
		return l, nil, nil
	}
	if len(l.waiting) >= mostWaiting {
		return nil, nil, errCrowd
	}
	if len(l.waiting) == 0 {
		l.place = k.queueLocked(l)
	}
	turn = make(chan struct{})
	l.waiting = append(l.waiting, turn)
	return l, turn, nil
}

// queueLocked gives a line its place in the order: the last one, but before those that have a turn already unless it has one, too.
func (k *keyTurns) queueLocked(l *keyLine) *list.Element {
	for e := k.order.Front(); e != nil && l.turns == 0; e = e.Next() {
		if e.Value.(*keyLine).turns > 0 {
			return k.order.InsertBefore(l, e)
		}
	}
	return k.order.PushBack(l)
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

// end ends a turn of a key, and gives it to the next one.
func (k *keyTurns) end(key any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.lines[key]
	l.turns--
	if first := k.order.Front(); first == nil {
		k.free++
	} else {
		next := first.Value.(*keyLine)
		next.turns++
		close(next.waiting[0])
		k.order.MoveToBack(first)
		k.removeLocked(next, 0)
	}
	k.tidyLocked(l)
}

func (k *keyTurns) removeLocked(l *keyLine, i int) {
	if l.waiting = slices.Delete(l.waiting, i, i+1); len(l.waiting) == 0 {
		k.order.Remove(l.place)
		k.tidyLocked(l)
	}
}

func (k *keyTurns) tidyLocked(l *keyLine) {
	if l.turns == 0 && len(l.waiting) == 0 {
		delete(k.lines, l.key)
	}
}
