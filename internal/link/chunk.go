package link

import (
	"hash/crc32"
	"sync"

	"reverser/internal/wire"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ChunkSize is the room in a Chunk, in bytes. A full chunk and its frame header fit one TLS record of 16,384 bytes, and a
// Chunk is exactly as large as an allocation class of the Go runtime.
const ChunkSize = 16_384 - 64

// A Chunk is a pooled piece of memory that stream bytes live in, from the read of a socket until the peer acknowledged
// them. An idle stream holds none. A chunk of a stream is guarded by slot.mu, but for the bytes of a pinned one.
type Chunk struct {
	next   *Chunk
	n      int    // bytes in use
	crc    uint32 // of the whole direction up to data[n]
	pins   uint8  // batches that are encrypted straight from here: nothing is appended, and the pool has to wait
	orphan bool   // given up while pinned
	// Room for a frame header in front of the bytes, so that both are encrypted at once, and for the content type that
	// TLS wants behind them.
	mem [wire.HeaderLen + ChunkSize + 1]byte
}

var chunks = sync.Pool{New: func() any { return new(Chunk) }}

// NewChunk returns an empty chunk. Its owner passes it to Stream.Send or frees it.
func NewChunk() *Chunk {
	c := chunks.Get().(*Chunk)
	c.next, c.n, c.crc, c.orphan = nil, 0, 0, false
	return c
}

func (c *Chunk) data() *[ChunkSize]byte { return (*[ChunkSize]byte)(c.mem[wire.HeaderLen:]) }

// Room is the unused part of the chunk. Tell Grow how much of it was filled.
func (c *Chunk) Room() []byte { return c.data()[c.n:] }

// Grow says that n more bytes of the chunk are in use.
func (c *Chunk) Grow(n int) { c.n += n }

// Free returns the chunk to the pool.
func (c *Chunk) Free() {
	if c.pins > 0 {
		c.orphan = true
		return
	}
	chunks.Put(c)
}

// unpin says that a batch does not need the chunk any more.
func (c *Chunk) unpin() {
	if c.pins--; c.pins == 0 && c.orphan {
		chunks.Put(c)
	}
}

// queue is a FIFO of chunks with the running checksum at the end of each.
type queue struct {
	head, tail *Chunk
	base       uint64 // stream offset of head.data[0]; of the next byte when empty
	end        uint64 // stream offset behind the last byte
	crc        uint32 // of the direction up to base
}

func (q *queue) endCRC() uint32 {
	if q.tail != nil {
		return q.tail.crc
	}
	return q.crc
}

// write copies p to the end.
func (q *queue) write(p []byte) {
	for len(p) > 0 {
		t := q.tail
		if t == nil || t.n == ChunkSize || t.pins > 0 {
			t = NewChunk()
			q.link(t)
		}
		n := copy(t.data()[t.n:], p)
		t.n += n
		t.crc = crc32.Update(t.crc, castagnoli, p[:n])
		q.end += uint64(n)
		p = p[n:]
	}
}

// push appends c, which the queue owns from here; a small one is copied behind the last chunk instead.
func (q *queue) push(c *Chunk) {
	if t := q.tail; t != nil && t.pins == 0 && c.n <= ChunkSize-t.n {
		q.write(c.Bytes())
		c.Free()
		return
	}
	q.link(c)
	c.crc = crc32.Update(c.crc, castagnoli, c.Bytes())
	q.end += uint64(c.n)
}

// unread puts bufs, without their first n bytes, in front of everything. It is for the receive side, which does not use
// the queue's offsets and checksums.
func (q *queue) unread(n int, bufs [][]byte) {
	rest := *q
	*q = queue{}
	for _, b := range bufs {
		skip := min(n, len(b))
		n -= skip
		q.write(b[skip:])
	}
	if rest.head == nil {
		return
	}
	if q.tail == nil {
		q.head = rest.head
	} else {
		q.tail.next = rest.head
	}
	q.tail = rest.tail
	q.end += rest.end - rest.base
}

// link appends an empty or freshly filled chunk; its checksum starts where the last one's ends.
func (q *queue) link(c *Chunk) {
	c.crc = q.endCRC()
	if q.tail == nil {
		q.head = c
	} else {
		q.tail.next = c
	}
	q.tail = c
}

// freeBelow gives back the chunks that lie wholly below off, the last one too when it is not full.
func (q *queue) freeBelow(off uint64) {
	for q.head != nil && q.base+uint64(q.head.n) <= off {
		c := q.head
		q.head = c.next
		q.base += uint64(c.n)
		q.crc = c.crc
		c.Free()
	}
	if q.head == nil {
		q.tail = nil
	}
}

// crcAt returns the checksum of the direction up to off, which must lie in [base, end].
func (q *queue) crcAt(off uint64) uint32 {
	crc, at := q.crc, q.base
	for c := q.head; c != nil && at < off; c = c.next {
		if at+uint64(c.n) <= off {
			crc = c.crc
		} else {
			crc = crc32.Update(crc, castagnoli, c.data()[:off-at])
		}
		at += uint64(c.n)
	}
	return crc
}

// cut gives up what lies above off, which must lie in [base, end].
func (q *queue) cut(off uint64) {
	crc, at, last := q.crcAt(off), q.base, (*Chunk)(nil)
	c := q.head
	for ; c != nil && at < off; c = c.next {
		c.n = min(c.n, int(off-at))
		at += uint64(c.n)
		last = c
	}
	for c != nil {
		next := c.next
		c.Free()
		c = next
	}
	q.tail, q.end = last, off
	if last == nil {
		q.head, q.crc = nil, crc
		return
	}
	last.next, last.crc = nil, crc
}

// drop frees everything.
func (q *queue) drop() {
	q.freeBelow(q.end)
}

// Bytes is the used part of the chunk.
func (c *Chunk) Bytes() []byte { return c.data()[:c.n] }
