package link

import (
	"context"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
)

// loopback is a world whose link runs over TCP on loopback.
func loopback(b testing.TB) *world {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	w := newWorldOn(b, 0, 0, ln, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", ln.Addr().String())
	})
	b.Cleanup(w.close)
	return w
}

// BenchmarkBulk moves 64 KiB an iteration, shared by so many streams.
func BenchmarkBulk(b *testing.B) {
	for _, streams := range []int{1, 8} {
		b.Run("streams="+strconv.Itoa(streams), func(b *testing.B) {
			w := loopback(b)
			var readers sync.WaitGroup
			var from []*Stream
			for range streams {
				px, br := w.open()
				from = append(from, px)
				readers.Go(func() { io.Copy(io.Discard, onlyReader{br}) })
			}
			p := make([]byte, 64<<10/streams)
			b.SetBytes(64 << 10)
			b.ReportAllocs()
			for b.Loop() {
				for _, s := range from {
					if _, err := s.Write(p); err != nil {
						b.Fatal(err)
					}
				}
			}
			for _, s := range from {
				s.CloseWrite()
			}
			readers.Wait()
		})
	}
}

// onlyReader hides everything else, so that io.Copy reads with a buffer.
type onlyReader struct{ io.Reader }

// BenchmarkPingPong is one small message there and back.
func BenchmarkPingPong(b *testing.B) {
	w := loopback(b)
	px, br := w.open()
	go func() { io.Copy(br, onlyReader{br}) }()
	p := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		px.Write(p)
		if _, err := io.ReadFull(px, p); err != nil {
			b.Fatal(err)
		}
	}
	px.Reset(0)
}

// BenchmarkOpen opens, uses and ends a stream.
func BenchmarkOpen(b *testing.B) {
	w := loopback(b)
	b.ReportAllocs()
	var one [1]byte
	for b.Loop() {
		px, br := w.open()
		px.Write(one[:])
		px.CloseWrite()
		io.ReadAll(br)
		br.Close()
		if _, err := px.Read(one[:]); err != io.EOF {
			b.Fatal(err)
		}
		px.Close()
	}
}
