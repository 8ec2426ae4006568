package traffic

import (
	"container/heap"
	"slices"
)

// line holds the users who wait for a place at a proxy: a few with an open socket, and behind them public sockets that accept no
// connection, so that further users wait in the kernel. It is guarded by ledger.mu.
//
// Keys share the places in line, too: a key may have as many users there as could come behind them. A socket goes on when a user of its
// key would get a place, or may wait.
type line struct {
	most    int       // users; their descriptors are not in the pool
	users   []*waiter // in the order in which they came
	blocked blocked
	awaits  bool // the pool calls when a descriptor is given back
}

// maxWaiting bounds the users who wait with an open socket.
const maxWaiting = 16

// waiter is a user who waits for a place.
type waiter struct {
	holder
	answer chan error // nil: it has the place
}

// blocked are the keys with sockets that accept no connection at present. It is a heap: the key whose users have the fewest places comes first.
type blocked []*Account

// turns is what a key has in line.
type turns struct {
	sockets []chan struct{} // closed when one goes on
	at      int             // in line.blocked, if there are any
}

func (b blocked) Len() int           { return len(b) }
func (b blocked) Less(i, j int) bool { return b[i].held.Load() < b[j].held.Load() }
func (b blocked) Swap(i, j int) {
	b[i], b[j] = b[j], b[i]
	b[i].turns.at, b[j].turns.at = i, j
}

// Push and Pop implement heap.Interface.
func (b *blocked) Push(key any) {
	k := key.(*Account)
	k.turns.at = len(*b)
	*b = append(*b, k)
}

func (b *blocked) Pop() any {
	last := len(*b) - 1
	k := (*b)[last]
	*b = slices.Delete(*b, last, last+1)
	return k
}

// moved is called when the users of a key have more or fewer places.
func (n *line) moved(key *Account) {
	if len(key.turns.sockets) > 0 {
		heap.Fix(&n.blocked, key.turns.at)
	}
}

// mayWait reports whether one more user of a key may wait.
func (p *places) mayWait(key *Account) bool {
	free := p.line.most - len(p.line.users)
	if !p.share() {
		return free > 0
	}
	own := 0
	for _, w := range p.line.users {
		if w.key == key {
			own++
		}
	}
	return own < free
}

// waitLocked puts a user whom check did not let in on the list, or returns why they may not wait: why, or that their client has one who
// waits already.
func (l *ledger) waitLocked(h holder, why error) (*waiter, error) {
	p := &l.places
	if h.known() && slices.ContainsFunc(p.line.users, func(w *waiter) bool { return w.holder == h }) {
		return nil, ErrClientShare
	}
	if !p.mayWait(h.key) {
		return nil, why
	}
	w := &waiter{holder: h, answer: make(chan error, 1)}
	p.line.users = append(p.line.users, w)
	return w, why
}

// awaitLocked arranges that wake is called when a descriptor is given back. For descriptors given back before, look after this call.
func (l *ledger) awaitLocked() {
	if p := &l.places; !p.line.awaits {
		p.line.awaits = true
		p.pool.Await(l.wake)
	}
}

// wake is called when a descriptor was given back. It gives places to those who wait: to the key with the fewest first.
func (l *ledger) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.places
	p.line.awaits = false
	if len(p.line.users) > 0 || len(p.line.blocked) > 0 {
		l.awaitLocked()
	}
	for {
		next := -1
		for i := 0; i < len(p.line.users); i++ {
			w := p.line.users[i]
			switch err := p.check(w.holder); {
			case err == ErrClientShare:
				p.answerLocked(i, err)
				i--
			case err == nil && (next < 0 || w.key.held.Load() < p.line.users[next].key.held.Load()):
				next = i
			}
		}
		if next < 0 || p.take(p.line.users[next].holder) != nil {
			break
		}
		p.answerLocked(next, nil)
	}
	p.unblockLocked()
}

// answerLocked takes the waiter at i off the list.
func (p *places) answerLocked(i int, err error) {
	p.line.users[i].answer <- err
	p.line.users = slices.Delete(p.line.users, i, i+1)
}

// giveUp is the end of a wait; false: it has got its answer.
func (l *ledger) giveUp(w *waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.places
	i := slices.Index(p.line.users, w)
	if i < 0 {
		return false
	}
	p.line.users = slices.Delete(p.line.users, i, i+1)
	p.unblockLocked()
	return true
}

// unblockLocked lets the sockets go on of keys of which a user would get a place, or may wait. It looks at those, and at few others:
// only keys with users in line can have as many there as they may while there is room.
func (p *places) unblockLocked() {
	for len(p.line.blocked) > 0 && p.room(p.line.blocked[0]) > 0 {
		p.unblock(p.line.blocked[0])
	}
	if len(p.line.users) == p.line.most {
		return
	}
	for _, key := range slices.Clone(p.line.blocked) {
		if p.mayWait(key) {
			p.unblock(key)
		}
	}
}

func (p *places) unblock(key *Account) {
	heap.Remove(&p.line.blocked, key.turns.at)
	for _, turn := range key.turns.sockets {
		close(turn)
	}
	key.turns.sockets = nil
}

// turnLocked returns what is closed when a socket of a key goes on; nil: now.
func (l *ledger) turnLocked(key *Account) chan struct{} {
	p := &l.places
	if p.line.most == 0 {
		return nil
	}
	l.awaitLocked()
	if p.room(key) > 0 || p.mayWait(key) {
		return nil
	}
	turn := make(chan struct{})
	if key.turns.sockets = append(key.turns.sockets, turn); len(key.turns.sockets) == 1 {
		heap.Push(&p.line.blocked, key)
	}
	return turn
}

// forgoLocked takes back what turnLocked asked for.
func (p *places) forgoLocked(key *Account, turn chan struct{}) {
	if i := slices.Index(key.turns.sockets, turn); i >= 0 {
		if key.turns.sockets = slices.Delete(key.turns.sockets, i, i+1); len(key.turns.sockets) == 0 {
			heap.Remove(&p.line.blocked, key.turns.at)
		}
	}
}
