package relay

import (
	"bytes"
	"io"
	"runtime"
	"testing"
	"time"
)

// waitFor waits until f holds.
func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%s: still not so\n%s", what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// exchange passes one byte through the tunnel and back.
func (tu *tunnel) exchange(t *testing.T) {
	t.Helper()
	var b [1]byte
	tu.user.Write([]byte("a"))
	if _, err := io.ReadFull(tu.server, b[:]); err != nil {
		t.Fatal(err)
	}
	tu.server.Write([]byte("b"))
	if _, err := io.ReadFull(tu.user, b[:]); err != nil {
		t.Fatal(err)
	}
}

// TestIdlePairsHaveNoGoroutine: neither pairs that never said much nor such that did. It is not parallel: it counts.
func TestIdlePairsHaveNoGoroutine(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	most := runtime.NumGoroutine() + 10 // the poller's, and what the link has not begun yet
	const pairs = 50
	var tunnels []*tunnel
	for range pairs {
		tu := w.tunnel(l, loopback)
		defer tu.close()
		tu.exchange(t)
		tunnels = append(tunnels, tu)
	}
	waitFor(t, "idle pairs have no goroutine", func() bool { return runtime.NumGoroutine() <= most })

	const size = 4 << 20
	for _, tu := range tunnels[:4] {
		go tu.user.Write(make([]byte, size))
		if n, err := io.Copy(io.Discard, io.LimitReader(tu.server, size)); n != size || err != nil {
			t.Fatalf("%d bytes arrived, %v; want %d", n, err, size)
		}
	}
	waitFor(t, "pairs that had much to say and are silent have no goroutine", func() bool { return runtime.NumGoroutine() <= most })
	for _, tu := range tunnels {
		tu.exchange(t) // they were not forgotten
	}
}

// TestBurstsAfterSilence: the poller and the goroutine of bulk take turns at the same socket, and nothing is lost between them.
func TestBurstsAfterSilence(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	sizes := []int{1, 100_000, 7, 16_320, 16_321, 3 << 20, 2, 64 << 10, 1}
	for round := range 30 {
		size := sizes[round%len(sizes)]
		p := bytes.Repeat([]byte{byte(round)}, size)
		go tu.user.Write(p)
		got := make([]byte, size)
		if _, err := io.ReadFull(tu.server, got); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("burst %d of %d bytes: %v, equal: %t", round, size, err, bytes.Equal(got, p))
		}
	}
	tu.user.Write([]byte("the end"))
	tu.user.CloseWrite()
	if got, err := io.ReadAll(tu.server); string(got) != "the end" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestPlacesAreUsedAgain: a poller holds as much for pairs that are over as for the most that were there at once.
func TestPlacesAreUsedAgain(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	for range 20 {
		tu := w.tunnel(l, loopback)
		tu.exchange(t)
		tu.close()
	}
	places := 0
	for i := range w.poller.loops {
		l := &w.poller.loops[i]
		l.mu.Lock()
		places += len(l.pairs)
		for _, p := range l.pairs {
			if p.pair != nil {
				t.Error("a pair that is over is still known")
			}
		}
		l.mu.Unlock()
	}
	if places > 4 {
		t.Errorf("%d places for 2 pairs at a time", places)
	}
}
