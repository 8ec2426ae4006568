package link

import (
	"cmp"
	"crypto/rand"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Flow control figures in bytes (spec/PROTOCOL.md, section "Credit"). The floor is reserved for every stream; what a
// stream may hold beyond it is charged to the pool of the process.
const (
	floorWindow = ChunkSize // not a byte more; also the credit before the first ACK: about TCP's initial window (RFC 6928)
	openWindow  = 64 << 10  // credit for the answer that OPEN grants while the pool has room
	maxWindow   = 8 << 20   // of one stream
	defaultPool = 128 << 20 // of one process
	ackEvery    = 256 << 10 // bytes consumed that are worth an ACK whatever the window
	MaxStreams  = 16_384    // of one link
	MaxClaims   = 16_384    // of one session
	maxControl  = 4 * MaxClaims
	glitchLimit = 10_000 // frames that do nothing, less the useful ones since
)

// Budget bounds the memory that peers may make one process hold beyond the floor of each stream. It is divided into shares:
// at a proxy the sessions of a key have one, at a bridge each proxy has one.
type Budget struct {
	// Short, unless nil, is called when a stream got less than it asked for and much is used, at most once a second. It is set
	// before the first link.
	Short func()

	size  int64
	used  atomic.Int64
	lent  atomic.Int64 // see share
	asked atomic.Bool  // withdraw is due
	inUse atomic.Int32 // shares with a link that lives

	mu     sync.Mutex
	shares map[[16]byte]*share // guarded by mu
}

// NewBudget returns a pool of size bytes; 0 means the default of 128 MiB.
func NewBudget(size int64) *Budget {
	if size == 0 {
		size = defaultPool
	}
	return &Budget{size: size, shares: map[[16]byte]*share{}}
}

// Size returns the bytes that may be charged.
func (b *Budget) Size() int64 { return b.size }

// Used returns the bytes charged at present.
func (b *Budget) Used() int64 { return b.used.Load() }

// Largest returns the key whose sessions hold most, and how much.
func (b *Budget) Largest() (key [16]byte, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.shares {
		if n := s.total(); n > bytes {
			key, bytes = s.key, n
		}
	}
	return key, bytes
}

// share is what the sessions of one key hold of a Budget. It takes at most half of what the others leave (the dynamic threshold of
// Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998), so that something is left for whoever comes later.
type share struct {
	pool  *Budget
	key   [16]byte
	whole bool         // it may take everything while it is the only one
	used  atomic.Int64 // charged here and to the pool
	lent  atomic.Int64 // charged here only: credit that cannot be used without a connection, while others need memory
	links []*Link      // that live; guarded by pool.mu
}

// share returns the share of a key.
func (b *Budget) share(key [16]byte) *share {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.shares[key]
	if s == nil {
		s = &share{pool: b, key: key}
		b.shares[key] = s
	}
	return s
}

// only returns a share of its own, which may take everything while no other one is in use.
func (b *Budget) only() *share {
	s := &share{pool: b, whole: true}
	rand.Read(s.key[:])
	return s
}

// join adds l to the links of the share: other shares may ask for what it holds.
func (s *share) join(l *Link) {
	b := s.pool
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shares[s.key] = s
	if len(s.links) == 0 {
		b.inUse.Add(1)
	}
	s.links = append(s.links, l)
}

// leave takes join back.
func (s *share) leave(l *Link) {
	b := s.pool
	b.mu.Lock()
	defer b.mu.Unlock()
	s.links = slices.DeleteFunc(s.links, func(o *Link) bool { return o == l })
	if len(s.links) == 0 {
		b.inUse.Add(-1)
		s.tidyLocked()
	}
}

// tidyLocked lets the pool forget a share that holds nothing. pool.mu is held.
func (s *share) tidyLocked() {
	if len(s.links) == 0 && s.total() == 0 && s.pool.shares[s.key] == s {
		delete(s.pool.shares, s.key)
	}
}

// total is what the share holds.
func (s *share) total() int64 { return s.used.Load() + s.lent.Load() }

// spare is how many bytes more the share may take now. It is below 0 when it holds more than that.
func (s *share) spare() int64 {
	left := s.pool.size - s.pool.used.Load() - s.lent.Load()
	if s.whole && s.pool.inUse.Load() <= 1 {
		return left
	}
	return (left - s.total()) >> 1
}

// take charges n bytes if the share may have them.
func (s *share) take(n int64) bool {
	s.add(n)
	if s.spare() >= 0 {
		return true
	}
	s.add(-n)
	s.ask()
	return false
}

func (s *share) give(n int64) { s.add(-n) }

// add charges n bytes whatever is left.
func (s *share) add(n int64) {
	s.used.Add(n)
	s.pool.used.Add(n)
}

// lend gives the pool, but not the share, n bytes back. Below 0 it takes them again, whatever is left.
func (s *share) lend(n int64) {
	s.lent.Add(n)
	s.pool.lent.Add(n)
	s.add(-n)
}

// roomy reports whether there is enough left to give idle streams more than the floor: less than half of what the share may
// hold is used.
func (s *share) roomy() bool { return s.spare() > s.total() }

// window returns the smaller of want and an eighth of what is free. Windows up to openWindow are not cut. Credit cannot be taken back,
// and whoever comes later must find room too. The last quarter of the pool and the last eighth of the share do not count as free: they
// are for windows up to openWindow, or a few dozen streams that were fast once and are idle now would leave all others the floor.
func (s *share) window(want uint64) uint64 {
	spare := s.spare()
	free := max(min(s.pool.size-s.pool.size/4-s.pool.used.Load(), spare-(s.total()+spare)/8), 0)
	most := max(uint64(free)/8, openWindow)
	if want > most {
		s.ask()
	}
	return min(want, most)
}

// withdrawEvery is how often, at the most, links are asked for the memory that stalled peers hold.
const withdrawEvery = time.Second

// ask has the memory that stalled peers of others hold withdrawn soon. The largest holder does not ask.
func (s *share) ask() {
	b := s.pool
	if b.inUse.Load() > 1 && b.scarce() && s.total() <= b.used.Load()/2 && b.asked.CompareAndSwap(false, true) {
		time.AfterFunc(withdrawEvery, b.withdraw)
	}
}

// withdraw asks the links for the memory that stalled peers hold, those of the largest share first, as long as more than half of the
// pool is used.
func (b *Budget) withdraw() {
	b.asked.Store(false)
	if b.Short != nil {
		b.Short()
	}
	type holder struct {
		total int64
		links []*Link
	}
	var holders []holder
	b.mu.Lock()
	for _, s := range b.shares {
		if total := s.total(); total > 0 {
			holders = append(holders, holder{total, slices.Clone(s.links)})
		}
		s.tidyLocked()
	}
	b.mu.Unlock()
	slices.SortFunc(holders, func(x, y holder) int { return cmp.Compare(y.total, x.total) })
	for _, h := range holders {
		for _, l := range h.links {
			if b.scarce() {
				l.withdraw()
			}
		}
	}
}

// scarce reports whether more than half of the pool is used.
func (b *Budget) scarce() bool { return b.used.Load() > b.size/2 }
