package relay

import (
	"bytes"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"reverser/internal/sys"
	"reverser/internal/wire"
)

// TestLargeHead: a head that is larger than the stream's first credit goes first all the same, in front of what the socket says.
func TestLargeHead(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	for _, s := range []sockets{loopback, alone, inMemory} {
		for _, size := range []int{16_320, 16_321, 64 << 10, 300_000} {
			px, br := w.open(l)
			user, accepted := s.user(t)
			server, dialled := s.server(t)
			tu := &tunnel{user: user, server: server}
			head, rest := noise(1, size), noise(2, 50_000)
			tu.target = run(&tu.wg, w.pollerFor(s), New(Target, dialled, br, nil))
			tu.client = run(&tu.wg, w.pollerFor(s), New(Client, accepted, px, head))
			go func() { user.Write(rest); user.CloseWrite() }()
			if got, err := readAll(server); err != nil || !bytes.Equal(got, append(bytes.Clone(head), rest...)) {
				t.Errorf("%s: the server read %d bytes, %v; want the head of %d and %d behind it", s.name, len(got), err, len(head), len(rest))
			}
			server.CloseWrite()
			tu.wantReasons(t, ReasonEOF, ReasonEOF)
			tu.wantCounts(t, size+len(rest), 0)
			tu.close()
		}
	}
}

// TestLargeHeadObeysCredit: no more of a head is sent than the other end allows, and the pair goes back to the poller behind it.
func TestLargeHeadObeysCredit(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	defer user.Close()
	var wg sync.WaitGroup
	head := noise(3, 64<<10)
	p := run(&wg, &w.poller, New(Client, accepted, px, head))
	eventually(t, "the first credit is used", func() bool { return px.TryRoom() == 0 })
	if sent, _ := p.Counts(); sent >= uint64(len(head)) {
		t.Fatalf("%d bytes were sent before anybody read", sent)
	}
	user.Write([]byte("tail"))
	br.SetReadDeadline(time.Now().Add(limit))
	got := make([]byte, len(head)+4)
	if n, err := io.ReadFull(br, got); err != nil || !bytes.Equal(got, append(bytes.Clone(head), "tail"...)) {
		t.Fatalf("read %d bytes, %v; want the head and the tail", n, err)
	}
	p.End(ReasonDrain, wire.CodeDrain)
	wg.Wait()
}

// TestLargeHeadBeforeAReset: a user who resets has sent the head before that.
func TestLargeHeadBeforeAReset(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	var wg sync.WaitGroup
	head := noise(4, 64<<10)
	p := run(&wg, &w.poller, New(Client, accepted, px, head))
	user.Write([]byte("tail"))
	user.SetLinger(0)
	user.Close()
	wg.Wait() // noticed though nobody reads at the other end
	if p.reason != ReasonClientReset {
		t.Errorf("reason %q, want %q", p.reason, ReasonClientReset)
	}
	br.SetReadDeadline(time.Now().Add(limit))
	got, err := io.ReadAll(br)
	want := append(bytes.Clone(head), "tail"...)
	if runtime.GOOS == "windows" {
		want = head // the system throws away what nobody has read when a reset comes
	}
	if !bytes.Equal(got, want) || !sys.Reset(err) {
		t.Errorf("read %d bytes, %v; want %d equal ones, then ECONNRESET", len(got), err, len(want))
	}
}
