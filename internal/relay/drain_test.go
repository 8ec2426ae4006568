package relay

import (
	"net"
	"sync"
	"testing"
	"time"

	"reverser/internal/wire"
)

// Backlogged beside the end of the pair: WaitGroup.Add against Wait.
func TestBackloggedAgainstWait(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	for i := range 3000 {
		px, br := w.open(l)
		user, accepted := loopback.user(t)
		accepted.(*net.TCPConn).SetWriteBuffer(4 << 10)
		user.(*net.TCPConn).SetReadBuffer(4 << 10)
		var wg sync.WaitGroup
		p := run(&wg, New(Client, accepted, px, nil))
		wg.Go(func() { br.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)); br.Write(make([]byte, 60<<10)) })
		time.Sleep(time.Duration(i%50) * 10 * time.Microsecond)
		p.End(ReasonDrain, wire.CodeDrain)
		wg.Wait()
		user.Close()
		br.Close()
	}
}
