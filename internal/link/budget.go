package link

import "sync/atomic"

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

// Budget bounds the memory that peers may make one process hold beyond the floor of each stream.
type Budget struct {
	size int64
	used atomic.Int64
}

// NewBudget returns a pool of size bytes; 0 means the default of 128 MiB.
func NewBudget(size int64) *Budget {
	if size == 0 {
		size = defaultPool
	}
	return &Budget{size: size}
}

func (b *Budget) take(n int64) bool {
	if b.used.Add(n) > b.size {
		b.used.Add(-n)
		return false
	}
	return true
}

// roomy says that there is enough left to give idle streams more than the floor.
func (b *Budget) roomy() bool { return b.used.Load() < b.size/2 }

func (b *Budget) give(n int64) { b.used.Add(-n) }

// Size returns the bytes that may be charged.
func (b *Budget) Size() int64 { return b.size }

// Used returns the bytes charged at present.
func (b *Budget) Used() int64 { return b.used.Load() }
