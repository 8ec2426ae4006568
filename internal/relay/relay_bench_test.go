package relay

import (
	"io"
	"testing"
)

// The pairs here have sockets of the operating system and a link in memory, so that what is measured is the relay and the
// encryption, and no network between them.

// BenchmarkPairBulk moves 64 KiB an iteration from a user to a server.
func BenchmarkPairBulk(b *testing.B) {
	w, l := newWorld(b)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	const size = 64 << 10
	got := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, struct{ io.Reader }{tu.server})
		got <- n
	}()
	p := make([]byte, size)
	sent := int64(0)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tu.user.Write(p); err != nil {
			b.Fatal(err)
		}
		sent += size
	}
	tu.user.CloseWrite()
	if n := <-got; n != sent {
		b.Errorf("%d bytes arrived of %d", n, sent)
	}
	tu.server.CloseWrite()
	tu.wantReasons(b, ReasonEOF, ReasonEOF)
}

// BenchmarkPairEcho is one small message there and back.
func BenchmarkPairEcho(b *testing.B) {
	w, l := newWorld(b)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	done := make(chan error, 1)
	go func() {
		var buf [128]byte
		for {
			if _, err := io.ReadFull(tu.server, buf[:]); err != nil {
				done <- err
				return
			}
			if _, err := tu.server.Write(buf[:]); err != nil {
				done <- err
				return
			}
		}
	}()
	var p [128]byte
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tu.user.Write(p[:]); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(tu.user, p[:]); err != nil {
			b.Fatal(err)
		}
	}
	tu.user.CloseWrite()
	if err := <-done; err != io.EOF {
		b.Errorf("the server's side ended with %v; want EOF", err)
	}
	tu.server.CloseWrite()
	tu.wantReasons(b, ReasonEOF, ReasonEOF)
}

// BenchmarkPairLife is a connection with one small message each way: sockets, stream, pairs and their ends.
func BenchmarkPairLife(b *testing.B) {
	w, l := newWorld(b)
	defer w.close()
	var p [128]byte
	b.ReportAllocs()
	for b.Loop() {
		tu := w.tunnel(l, loopback)
		tu.user.Write(p[:])
		tu.user.CloseWrite()
		if got, err := readAll(tu.server); len(got) != len(p) || err != nil {
			b.Fatal(len(got), err)
		}
		tu.server.Write(p[:])
		tu.server.CloseWrite()
		if got, err := readAll(tu.user); len(got) != len(p) || err != nil {
			b.Fatal(len(got), err)
		}
		tu.wantReasons(b, ReasonEOF, ReasonEOF)
		tu.close()
	}
}
