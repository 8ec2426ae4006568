package traffic

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"reverser/internal/sys"
)

// Errors of Admit that say which share was used up.
var (
	ErrFull        = errors.New("as many connections as the descriptor limit allows")
	ErrKeyShare    = errors.New("the key's users have as many connections as are left for all others")
	ErrClientShare = errors.New("the client has connections already, and what is left is for other clients")
)

// places shares the descriptors for users. A key may have as many as are free: the first key gets half of all, and a later
// one half of the rest. Within that, a client may have as many as its key may still take. So newcomers of the largest key or client are
// refused first, and the first user of a key gets in while anything is free (evict.go: when nothing is). A single key, as at a bridge, may
// have all.
//
// It is guarded by ledger.mu. Each operation costs the same however many keys, clients and connections there are.
type places struct {
	pool  *sys.Pool
	most  int  // at once, also if the pool has more
	byKey bool // keys share the places
	alone bool // there is one key, which may have all

	used    int
	holders map[holder]int      // how many each has
	leaving map[*Admission]bool // that were told to go, and whose places other users have already; at most yields
	yields  int                 // their descriptors are not in the pool
	line    line
}

// holder is a client of a key: a host in IPv4, a customer's network in IPv6. It is a small copy of Block.
type holder struct {
	key     *Account
	network uint64
	is4     bool
}

// init shares what the pool has for users, or most if that is not 0. Only the users of a proxy wait, and only its keys share.
func (p *places) init(pool *sys.Pool, most int, proxy bool) {
	p.pool, p.byKey, p.holders, p.leaving = pool, proxy, make(map[holder]int), make(map[*Admission]bool)
	size := pool.Size(sys.ForUsers)
	if proxy {
		p.line.most, p.yields = min(maxWaiting, size/4), min(mostYielding, size/8)
		pool.Force(sys.ForUsers, p.beside())
	}
	if p.most = most; most == 0 {
		p.most = size - p.beside()
	}
}

// close gives back what init took.
func (p *places) close() { p.pool.Return(sys.ForUsers, p.beside()) }

// beside is how many users may have an open socket without a place.
func (p *places) beside() int { return p.line.most + p.yields }

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

// share reports whether keys leave each other something.
func (p *places) share() bool { return p.byKey && !p.alone }

// room is how many users of a key could get a place now, one after the other; not above 0: none.
func (p *places) room(key *Account) int {
	if !p.share() {
		return p.free()
	}
	return (p.free() - int(key.held.Load()) + 1) / 2
}

// check returns why a user gets no place at present, nil if there is one.
func (p *places) check(h holder) (err error) {
	free, room := p.free(), p.room(h.key)
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
	p.line.moved(h.key)
	if p.holders[h] += n; p.holders[h] == 0 {
		delete(p.holders, h)
	}
}
