package relay

import (
	"errors"
	"os"
	"testing"
	"time"
)

// TestWindowOfAUserWhoDoesNotRead: what the kernel takes for a user is no sign that a larger window would help. It stays small,
// so that many such users leave the memory for windows to others.
func TestWindowOfAUserWhoDoesNotRead(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	tu.server.SetWriteDeadline(time.Now().Add(time.Second)) // much longer than it takes to fill every buffer
	sent, p := 0, make([]byte, 64<<10)
	for {
		n, err := tu.server.Write(p)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil || sent > 1<<30 {
			t.Fatalf("%d bytes were taken for a user who does not read: %v", sent, err)
		}
	}
	if used := w.budget.Used(); used > 512<<10 {
		t.Errorf("%d bytes are charged for a user who took %d and does not read", used, sent)
	}
	t.Logf("%d bytes charged, %d sent", w.budget.Used(), sent)
}
