package relay

import (
	"net"
	"sync"
	"testing"
	"time"

	"reverser/internal/wire"
)

// TestUserDiesWithAFullWindow: the target reads nothing, so nobody reads the user's socket either. A user who dies is
// noticed all the same, be there something to write to them or not.
func TestUserDiesWithAFullWindow(t *testing.T) {
	for _, answering := range []bool{false, true} {
		t.Run(map[bool]string{false: "silent target", true: "target that writes"}[answering], func(t *testing.T) {
			t.Parallel()
			w, l := newWorld(t)
			defer w.close()
			tu := w.tunnel(l, loopback)
			defer tu.close()
			for _, c := range []net.Conn{tu.user, tu.server, tu.client.sock.conn, tu.target.sock.conn} {
				setBuffers(c, 64<<10)
			}
			fill(t, tu.user, make([]byte, 16<<20))
			tu.user.SetLinger(0)
			tu.user.Close()
			if answering {
				done := make(chan struct{})
				go func() {
					defer close(done)
					for _, err := tu.server.Write(make([]byte, 64<<10)); err == nil; {
						_, err = tu.server.Write(make([]byte, 64<<10))
					}
				}()
				defer func() { tu.server.Close(); <-done }()
			}
			select {
			case <-tu.client.over:
			case <-time.After(limit):
				t.Fatal("the pair of a user who is dead stays")
			}
			if tu.client.reason != ReasonClientReset {
				t.Errorf("reason %q, want %q", tu.client.reason, ReasonClientReset)
			}
			// The target never reads what the user said before; when it closes, there is nobody left to wait for.
			begin := time.Now()
			tu.server.Close()
			<-tu.target.over
			if d := time.Since(begin); d > limit/2 { // who waits for the dead does so for the limit
				t.Errorf("the target's pair was over %s after the target closed", d)
			}
		})
	}
}

// TestResetDoesNotWaitForTheDead: bytes wait in the kernel for a user who is dead, and nobody reads the socket any more.
func TestResetDoesNotWaitForTheDead(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	user.(*net.TCPConn).SetReadBuffer(16 << 10)
	var wg sync.WaitGroup
	p := run(&wg, &w.poller, New(Client, accepted, px, nil))
	user.CloseWrite()
	eventually(t, "the pair is half-closed", p.HalfClosed)
	br.Write(make([]byte, 60_000))
	eventually(t, "the kernel has everything", func() bool { _, n := p.Counts(); return n == 60_000 })
	br.Reset(wire.CodeReset)
	begin := time.Now()
	user.Close() // with bytes that it did not read: RST
	wg.Wait()
	if d := time.Since(begin); d > limit/2 { // who waits for the dead does so for the limit
		t.Errorf("the pair was over %s after its user", d)
	}
}
