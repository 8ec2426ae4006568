package link

import (
	"strconv"
	"testing"

	"reverser/internal/wire"
)

// circuit moves what one end says to the other without allocating anything itself.
type circuit struct {
	*ends
	buf []byte
}

func newCircuit(b *testing.B, streams int) (*circuit, *streamCore) {
	c := &circuit{newEnds(b), make([]byte, 0, 4*batch)}
	var s *streamCore
	for range streams {
		s = c.p.open(wire.Open{})
	}
	c.settle()
	return c, s
}

// carry applies one batch of from at to; received data is consumed at once.
func (c *circuit) carry(from, to *core) {
	rest := from.bytes(c.buf[:0], batch, c.now)
	for len(rest) > 0 {
		f, n, err := wire.Parse(rest)
		if err != nil {
			c.t.Fatal(err)
		}
		rest = rest[n:]
		if f.Stream == 0 {
			continue // PING is the shell's
		}
		ev, err := to.receive(f, c.now)
		if err != nil {
			c.t.Fatal(err)
		}
		if ev.kind == evData {
			to.consume(ev.stream, len(ev.data), c.now)
		}
	}
}

// round is bytes from the proxy's end of s, and what the bridge's has to say to them after its delay.
func (c *circuit) round(s *streamCore, p []byte) {
	write(c.p, s, p)
	c.carry(c.p, c.b)
	c.now += ackDelay
	c.carry(c.b, c.p)
}

// BenchmarkCore is the way of so many bytes through both cores and back as an ACK, without I/O and encryption, beside so
// many streams that are open and say nothing: those must cost nothing.
func BenchmarkCore(b *testing.B) {
	for _, size := range []int{1, ChunkSize} {
		for _, streams := range []int{1, 100, 10_000} {
			b.Run("bytes="+strconv.Itoa(size)+"/streams="+strconv.Itoa(streams), func(b *testing.B) {
				c, s := newCircuit(b, streams)
				p := make([]byte, size)
				for range 100 { // pools and windows find their size
					c.round(s, p)
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					c.round(s, p)
				}
			})
		}
	}
}

// BenchmarkCoreFair has many streams speak at once: the cost of a frame must not grow with their number.
func BenchmarkCoreFair(b *testing.B) {
	for _, streams := range []int{10, 1000, 10_000} {
		b.Run("streams="+strconv.Itoa(streams), func(b *testing.B) {
			c, _ := newCircuit(b, streams)
			var all []*streamCore
			for _, s := range c.p.streams {
				all = append(all, s)
			}
			p := make([]byte, 128)
			turn := func() {
				for _, s := range all {
					write(c.p, s, p)
				}
				for c.p.ready() {
					c.carry(c.p, c.b)
				}
				c.now += ackDelay
				for c.b.ready() || c.p.ready() {
					c.carry(c.b, c.p)
					c.carry(c.p, c.b)
				}
				c.carry(c.b, c.p) // delayed ACKs
			}
			turn()
			b.ReportAllocs()
			for b.Loop() {
				turn()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(streams), "ns/message")
		})
	}
}

// BenchmarkCoreOpen opens a stream, carries a byte, ends it both ways and forgets it, beside so many others.
func BenchmarkCoreOpen(b *testing.B) {
	for _, streams := range []int{1, 10_000} {
		b.Run("streams="+strconv.Itoa(streams), func(b *testing.B) {
			c, _ := newCircuit(b, streams)
			p := []byte{'k'}
			b.ReportAllocs()
			for b.Loop() {
				s := c.p.open(wire.Open{})
				write(c.p, s, p)
				c.p.end(s, wire.FIN, 0)
				c.carry(c.p, c.b)
				c.b.end(c.b.streams[s.id], wire.FIN, 0)
				for range 2 {
					c.now += ackDelay
					c.carry(c.b, c.p)
					c.carry(c.p, c.b)
				}
			}
			if got := len(c.p.streams); got != streams {
				b.Errorf("%d streams are left at the proxy; want %d", got, streams)
			}
		})
	}
}

// BenchmarkCoreResume attaches a new connection to a slot with so many streams.
func BenchmarkCoreResume(b *testing.B) {
	for _, streams := range []int{10, 1000, 10_000} {
		b.Run("streams="+strconv.Itoa(streams), func(b *testing.B) {
			c, _ := newCircuit(b, streams)
			b.ReportAllocs()
			for b.Loop() {
				c.cut()
				c.mustResume()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(streams), "ns/stream")
		})
	}
}
