package traffic

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"reverser/internal/sys"
)

// Errors of Admit that say which share was used up.
var (
	ErrFull        = errors.New("as many connections as the descriptor limit allows")
	ErrKeyShare    = errors.New("the key's users have as many connections as are left for all others")
	ErrClientShare = errors.New("the client has as many connections as are left for the key's other clients")
)

// places shares the descriptors for users. A key may have as many as are free: alone it gets half of all, and whoever comes later
// gets half of the rest. Within that, a client may have as many as its key may still take. So newcomers of the largest are refused
// first, and whoever has nothing gets in while anything is free (when nothing is: see evict.go). A key that is the only one may have all, as that
// of a bridge.
//
// It is guarded by ledger.mu. Each operation costs the same however many keys, clients and connections there are.
type places struct {
	pool     *sys.Pool
	most     int  // at once, also if the pool has more
	mostWait int  // of waiting; their descriptors are no longer in the pool
	byKey    bool // keys share
	alone    bool // there is one key, which need not

	used    int
	holders map[holder]int      // how many each has
	leaving map[*Admission]bool // who were told to make way; at most mostYielding
	waiting []*waiter           // in the order in which they came
	awaits  bool                // the pool calls when a descriptor is given back
}

// holder is a client of a key: a host in IPv4, a customer's network in IPv6. It is a small copy of Block.
type holder struct {
	key     *Account
	network uint64
	is4     bool
}

// waiter is a user who waits for a place.
type waiter struct {
	holder
	answer chan error // nil: it has the place
}

// maxWaiting bounds the users that wait with an open socket. Further ones wait in the kernel.
const maxWaiting = 16

// init shares what the pool has for users, or most if that is not 0. Only the users of a proxy wait, and only its keys share.
func (p *places) init(pool *sys.Pool, most int, proxy bool) {
	p.pool, p.byKey, p.holders, p.leaving = pool, proxy, make(map[holder]int), make(map[*Admission]bool)
	size := pool.Size(sys.ForUsers)
	if proxy {
		p.mostWait = min(maxWaiting, size/4)
		pool.Force(sys.ForUsers, p.mostWait)
	}
	if p.most = most; most == 0 {
		p.most = size - p.mostWait
	}
}

// close gives back what init took.
func (p *places) close() { p.pool.Return(sys.ForUsers, p.mostWait) }

func holderOf(key *Account, client netip.AddrPort) holder {
	ip := client.Addr().Unmap()
	if ip.Is4() {
		b := ip.As4()
		return holder{key, uint64(binary.BigEndian.Uint32(b[:])), true}
	}
	b := ip.As16() // zeros for an unknown address
	return holder{key, binary.BigEndian.Uint64(b[:8]), false}
}

func (h holder) known() bool { return h.is4 || h.network != 0 }

// free returns how many places are left.
func (p *places) free() int { return max(min(p.most-p.used, p.pool.Free(sys.ForUsers)), 0) }

// check returns why a user gets no place at present, nil if there is one.
func (p *places) check(h holder) (err error) {
	free := p.free()
	room := free // for the key
	if p.byKey && !p.alone {
		room = (free - int(h.key.held.Load()) + 1) / 2
	}
	switch {
	case free == 0:
		err = ErrFull
	case room <= 0:
		err = ErrKeyShare
	}
	if h.known() && p.holders[h] >= max(room, 1) {
		return ErrClientShare
	}
	return err
}

// take gives a user a place, if there is one.
func (p *places) take(h holder) error {
	if err := p.check(h); err != nil {
		return err
	}
	if !p.pool.Take(sys.ForUsers) {
		return ErrFull
	}
	p.count(h, 1)
	return nil
}

// force gives a user a place whom another process has let in.
func (p *places) force(h holder) {
	p.pool.Force(sys.ForUsers, 1)
	p.count(h, 1)
}

func (p *places) count(h holder, n int) {
	p.used += n
	h.key.held.Add(int64(n))
	if p.holders[h] += n; p.holders[h] == 0 {
		delete(p.holders, h)
	}
}

// wait puts a user whom check did not let in on the list; nil: too many wait.
func (l *ledger) waitLocked(h holder) *waiter {
	p := &l.places
	if len(p.waiting) >= p.mostWait {
		return nil
	}
	w := &waiter{holder: h, answer: make(chan error, 1)}
	p.waiting = append(p.waiting, w)
	l.awaitLocked()
	return w
}

// awaitLocked has wake called as long as somebody waits.
func (l *ledger) awaitLocked() {
	p := &l.places
	if len(p.waiting) > 0 && !p.awaits {
		p.awaits = true
		p.pool.Await(l.wake)
	}
}

// wake is called when a descriptor was given back. It gives places to those who wait: to the key with the fewest first.
func (l *ledger) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.places
	p.awaits = false
	for {
		next := -1
		for i := 0; i < len(p.waiting); i++ {
			w := p.waiting[i]
			switch err := p.check(w.holder); {
			case err == ErrClientShare:
				p.answerLocked(i, err)
				i--
			case err == nil && (next < 0 || w.key.held.Load() < p.waiting[next].key.held.Load()):
				next = i
			}
		}
		if next < 0 || p.take(p.waiting[next].holder) != nil {
			break
		}
		p.answerLocked(next, nil)
	}
	l.awaitLocked()
}

// answerLocked takes the waiter at i off the list.
func (p *places) answerLocked(i int, err error) {
	w := p.waiting[i]
	p.waiting = slices.Delete(p.waiting, i, i+1)
	w.answer <- err
}

// giveUp is the end of a wait; false: it has got its answer.
func (l *ledger) giveUp(w *waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.places.waiting, w)
	if i < 0 {
		return false
	}
	l.places.waiting = slices.Delete(l.places.waiting, i, i+1)
	return true
}
