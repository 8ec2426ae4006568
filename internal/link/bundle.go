package link

import (
	"sync"

	"reverser/internal/wire"
)

// bundle is the frames of one batch on their way out. Small ones are built in its own memory; the bytes of a chunk stay where
// they are, with their header in front of them, and the chunk is pinned until the batch is encrypted.
type bundle struct {
	mem    frameBuffer
	own    []byte   // frames that were built here, a part of mem
	cut    int      // bytes of own that are in pieces
	pieces [][]byte // what goes on the wire, in order; each array has room for one byte behind
	pinned []*Chunk
	lent   int // bytes in pinned
}

var bundles = sync.Pool{New: func() any { return new(bundle) }}

func newBundle() *bundle {
	b := bundles.Get().(*bundle)
	b.reset()
	return b
}

func (b *bundle) reset() {
	b.own, b.cut, b.pieces, b.pinned, b.lent = b.mem[:0], 0, b.pieces[:0], b.pinned[:0], 0
}

// size is how many bytes of frames there are.
func (b *bundle) size() int { return len(b.own) + b.lent }

// close returns the frames as pieces. Nothing may be added any more.
func (b *bundle) close() [][]byte {
	if n := len(b.own); n > b.cut {
		b.own = append(b.own, 0)[:n]
		b.pieces = append(b.pieces, b.own[b.cut:n])
		b.cut = n
	}
	return b.pieces
}

// add adds a frame of data: in place where the chunk is the frame's alone, copied otherwise. slot.mu is held, as in free.
func (b *bundle) add(stream, offset uint64, c *Chunk, from, to int) {
	if from > 0 || to < c.n || to < pinFrom || c.pins > 0 {
		b.own = wire.AppendHeader(b.own, wire.TypeData, stream, offset, to-from)
		b.own = append(b.own, c.data()[from:to]...)
		return
	}
	b.close()
	wire.AppendHeader(c.mem[:0], wire.TypeData, stream, offset, to)
	c.pins++
	b.pinned = append(b.pinned, c)
	b.pieces = append(b.pieces, c.mem[:wire.HeaderLen+to])
	b.lent += wire.HeaderLen + to
}

// pinFrom is from how many bytes on a frame is worth a TLS record of its own.
const pinFrom = ChunkSize / 2

// free gives everything back. The pieces must not be used any more.
func (b *bundle) free() {
	for _, c := range b.pinned {
		c.unpin()
	}
	clear(b.pinned)
	clear(b.pieces)
	bundles.Put(b)
}
