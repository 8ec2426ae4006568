package relay

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reverser/internal/wire"
)

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
	eventually(t, "idle pairs have no goroutine", func() bool { return runtime.NumGoroutine() <= most })

	const size = 4 << 20
	for _, tu := range tunnels[:4] {
		go tu.user.Write(make([]byte, size))
		if n, err := io.Copy(io.Discard, io.LimitReader(tu.server, size)); n != size || err != nil {
			t.Fatalf("%d bytes arrived, %v; want %d", n, err, size)
		}
	}
	eventually(t, "pairs that had much to say and are silent have no goroutine", func() bool { return runtime.NumGoroutine() <= most })
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

// TestUrgentData: an urgent byte (telnet's Synch, FTP's ABOR) stays where it is in the stream, in either direction. Linux ends a read
// in front of it. What follows does not wait for the next event, which may never come.
func TestUrgentData(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	for range 20 {
		tu := w.tunnel(l, loopback)
		tu.exchange(t)
		for _, way := range [][2]conn{{tu.user, tu.server}, {tu.server, tu.user}} {
			raw, err := way[0].(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				unix.Sendto(int(fd), []byte("abc"), 0, nil)
				unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
				unix.Sendto(int(fd), []byte("efg"), 0, nil)
			})
			var b [7]byte
			way[1].SetReadDeadline(time.Now().Add(limit))
			if n, err := io.ReadFull(way[1], b[:]); err != nil || string(b[:]) != "abc!efg" {
				t.Fatalf("got %q, %v; want all seven bytes", b[:n], err)
			}
		}
		tu.close()
	}
}

// TestSetRefused: where Go's poller does not take the set, pairs wait for themselves.
func TestSetRefused(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) // as a descriptor that no poller takes
	if err != nil {
		t.Fatal(err)
	}
	w.poller.watcher.makeSet = func() (int, error) { return unix.Dup(fd) }
	defer unix.Close(fd)
	tu := w.tunnel(l, loopback)
	defer tu.close()
	tu.exchange(t)
	if tu.client.life.watch.loop != nil {
		t.Error("the pair is watched by a set that is none")
	}
}

// TestResetThatAWriteSwallowed: the reader of a socket sees EOF where a write had the error of the reset. That is no FIN.
func TestResetThatAWriteSwallowed(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	defer br.Reset(wire.CodeAborted)
	defer px.Reset(wire.CodeAborted)
	for _, reset := range []bool{true, false} {
		user, accepted := loopback.user(t)
		p := New(Client, accepted, px, nil)
		if reset {
			user.SetLinger(0)
		}
		user.Close()
		for err := error(nil); reset && err == nil; {
			_, err = accepted.Write([]byte("x"))
		}
		if n, err := accepted.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read %d, %v; want EOF", n, err)
		}
		if p.outDone() == reset {
			t.Errorf("reset: %t; an EOF was taken for a FIN: %t", reset, reset)
		}
		accepted.Close()
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
	for i := range w.poller.watcher.loops {
		l := &w.poller.watcher.loops[i]
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

// watched reports whether a poller knows the pair.
func (p *Pair) watched() bool {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	return p.life.watch.loop != nil
}

// sockets counts the sockets that the kernel watches for the poller.
func (w *watcher) sockets(t *testing.T) (n int) {
	t.Helper()
	for i := range w.loops {
		l := &w.loops[i]
		l.mu.Lock()
		there, fd := l.set != nil, l.fd
		l.mu.Unlock()
		if there {
			info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
			if err != nil {
				t.Fatal(err)
			}
			n += strings.Count(string(info), "tfd:")
		}
	}
	return n
}

// TestFrozenSocketIsForgotten: the kernel watches a socket until its last descriptor is closed, and somebody else has another one. So the
// poller takes it out by name, when the pair is frozen and when one ends whose socket was shared.
func TestFrozenSocketIsForgotten(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	defer br.Reset(wire.CodeAborted)
	user, accepted := loopback.user(t)
	defer user.Close()
	c := newChain(t, &w.poller, New(Client, accepted, px, nil))
	if n := w.poller.watcher.sockets(t); n != 1 {
		t.Fatalf("%d sockets are watched, want 1", n)
	}
	if err := c.pair.Freeze(); err != nil {
		t.Fatal(err)
	}
	f, err := c.pair.Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n := w.poller.watcher.sockets(t); n != 0 {
		t.Errorf("%d sockets of frozen pairs are watched", n)
	}
	c.pair.Thaw()
	if n := w.poller.watcher.sockets(t); n != 1 {
		t.Errorf("%d sockets are watched behind Thaw, want 1", n)
	}
	c.pair.End(ReasonDrain, wire.CodeDrain)
	<-c.over
	if n := w.poller.watcher.sockets(t); n != 0 {
		t.Errorf("%d sockets of pairs that are over are watched", n)
	}
}
