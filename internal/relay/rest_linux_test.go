package relay

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"reverser/internal/sys"
)

// TestResetBehindAFullWindow: whoever sends more than the other side takes, and then resets, has sent what the kernel acknowledged.
// All of it arrives before the reset, as without a tunnel.
func TestResetBehindAFullWindow(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	for _, side := range []Side{Client, Target} {
		t.Run(map[Side]string{Client: "user", Target: "server"}[side], func(t *testing.T) {
			tu := w.tunnel(l, loopback)
			defer tu.close()
			near, far, reason := tu.user, tu.server, ReasonClientReset
			if side == Target {
				near, far, reason = tu.server, tu.user, ReasonTargetReset
			}
			want := noise(5, 32<<20)
			near.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			n, err := near.Write(want)
			if err == nil {
				t.Fatal("32 MB were taken of one whose peer reads nothing")
			}
			var s socket
			s.init(near)
			acked := n - s.queued(uint64(n))
			near.SetLinger(0)
			near.Close()
			end := tu.client
			if side == Target {
				end = tu.target
			}
			<-end.over // noticed though nobody reads
			got, err := readAll(far)
			if len(got) < acked || !bytes.Equal(got, want[:len(got)]) || !sys.Reset(err) {
				t.Errorf("read %d bytes, %v; want at least %d equal ones, then ECONNRESET", len(got), err, acked)
			}
			tu.wantReasons(t, reason, reason)
		})
	}
	eventually(t, "the memory is given back", func() bool { return w.budget.Used() == 0 })
}

// TestResetThatNobodyReads: a target that reads nothing learns of the reset all the same, if later.
func TestResetThatNobodyReads(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	w.poller.patience = 100 * time.Millisecond
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	tu.server.(*net.TCPConn).SetReadBuffer(16 << 10)
	tu.user.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := io.Copy(tu.user, bytes.NewReader(make([]byte, 32<<20))); err == nil {
		t.Fatal("32 MB were taken of one whose peer reads nothing")
	}
	tu.user.SetLinger(0)
	tu.user.Close()
	tu.wantReasons(t, ReasonClientReset, ReasonClientReset)
	eventually(t, "the memory is given back", func() bool { return w.budget.Used() == 0 })
	wantBroken(t, tu.server)
}
