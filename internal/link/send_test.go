package link

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"reverser/internal/wire"
)

// bytes appends what fill has to send, as it stands on the wire.
func (c *core) bytes(p []byte, limit int, now time.Duration) []byte {
	b := newBundle()
	defer b.free()
	return c.bytesBy(b, p, limit, now)
}

// bytesBy is bytes with a bundle of the caller's.
func (c *core) bytesBy(b *bundle, p []byte, limit int, now time.Duration) []byte {
	c.fill(b, limit, now)
	for _, piece := range b.close() {
		p = append(p, piece...)
	}
	return p
}

// pinnedStream is a proxy's stream with one whole chunk, which a batch in hand is encrypted from.
func pinnedStream(t *testing.T) (e *ends, s *streamCore, b *bundle, want []byte) {
	e = newEnds(t)
	s = e.p.open(wire.Open{})
	e.settle()
	want = bytes.Repeat([]byte("0123456789abcdef"), ChunkSize/16)
	write(e.p, s, want)
	b = newBundle()
	e.p.fill(b, batch, e.now)
	if len(b.pinned) != 1 || b.pinned[0] != s.send.q.head || s.send.q.head.pins != 1 {
		t.Fatalf("%d chunks are pinned, want the stream's one", len(b.pinned))
	}
	return e, s, b, want
}

// wantData wants the last piece to be one frame of data.
func wantData(t *testing.T, b *bundle, want []byte) {
	t.Helper()
	pieces := b.close()
	piece := pieces[len(pieces)-1]
	f, n, err := wire.Parse(piece)
	if err != nil || n != len(piece) || f.Type != wire.TypeData || !bytes.Equal(f.Payload, want) {
		t.Errorf("the piece of %d bytes is %s of %d bytes at %d, %v; want DATA with the stream's %d", len(piece), f.Type, len(f.Payload), f.Offset, err, len(want))
	}
}

// TestPinned: while a batch is encrypted from a chunk, nothing that happens to the stream reaches those bytes.
func TestPinned(t *testing.T) {
	t.Run("more is written", func(t *testing.T) {
		e, s, b, want := pinnedStream(t)
		c := s.send.q.head
		c.n -= 100 // as if the chunk had room
		s.send.q.end -= 100
		write(e.p, s, make([]byte, 50))
		if s.send.q.tail == c || c.n != ChunkSize-100 {
			t.Error("bytes were appended to a chunk that is pinned")
		}
		wantData(t, b, want)
		b.free()
	})
	t.Run("the stream is dropped", func(t *testing.T) {
		e, s, b, want := pinnedStream(t)
		c := s.send.q.head
		s.send.drop(e.p.budget)
		if !c.orphan {
			t.Fatal("the chunk is not known to be free")
		}
		for range 100 { // a pool hands out what it was given, sooner or later
			n := NewChunk()
			if n == c {
				t.Fatal("a pinned chunk was handed out")
			}
			defer n.Free()
		}
		wantData(t, b, want)
		b.free()
		if c.pins != 0 {
			t.Errorf("%d pins are left", c.pins)
		}
	})
	t.Run("another connection takes over", func(t *testing.T) {
		e, s, b, want := pinnedStream(t)
		e.cut()
		e.mustResume()
		again := newBundle()
		e.p.fill(again, batch, e.now)
		if len(again.pinned) != 0 {
			t.Error("the chunk is pinned twice: two batches would write its header and what stands behind it")
		}
		b.free()
		wantData(t, again, want)
		again.free()
		if s.send.q.head.pins != 0 {
			t.Errorf("%d pins are left", s.send.q.head.pins)
		}
	})
}

// TestPieces: frames stand in the order in which they were made, whether they were built in place or not.
func TestPieces(t *testing.T) {
	e := newEnds(t)
	var streams []*streamCore
	for range 5 {
		streams = append(streams, e.p.open(wire.Open{}))
	}
	e.settle()
	sizes := []int{ChunkSize, 10, pinFrom, pinFrom - 1, ChunkSize}
	for i, s := range streams {
		write(e.p, s, bytes.Repeat([]byte{byte(i)}, sizes[i]))
	}
	b := newBundle()
	defer b.free()
	e.p.fill(b, batch, e.now)
	total := 0
	for _, p := range b.close() {
		if cap(p) == len(p) {
			t.Error("a piece without room for one byte behind it")
		}
		total += len(p)
	}
	if total != b.size() || len(b.pinned) != 3 {
		t.Errorf("%d bytes in pieces, %d counted; %d pinned, want 3", total, b.size(), len(b.pinned))
	}
	rest := slices.Concat(b.pieces...)
	for i, s := range streams {
		f, n, err := wire.Parse(rest)
		for err == nil && f.Type != wire.TypeData {
			rest = rest[n:]
			f, n, err = wire.Parse(rest)
		}
		if err != nil || f.Stream != s.id || len(f.Payload) != sizes[i] || f.Payload[0] != byte(i) {
			t.Fatalf("frame %d is of stream %d with %d bytes, %v; want stream %d with %d", i, f.Stream, len(f.Payload), err, s.id, sizes[i])
		}
		rest = rest[n:]
	}
}
