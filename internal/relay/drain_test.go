package relay

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"reverser/internal/wire"
)

// counted counts the writes to a socket.
type counted struct {
	net.Conn
	writes atomic.Int32
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// TestBytesAfterTheEnd: bytes that the link still has in hand when the pair ends start nothing that Run does not wait for.
func TestBytesAfterTheEnd(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := inMemory.user(t)
	defer user.Close()
	c := &counted{Conn: accepted}
	p := New(Client, c, px, nil)
	p.finish(ReasonDrain, true) // as End does, between two steps of the link
	px.SetReceiver(p)
	br.SetWriteDeadline(time.Now().Add(limit))
	if n, err := br.Write(make([]byte, 1<<20)); err != nil {
		t.Errorf("Write = %d, %v; want all of it taken and thrown away", n, err)
	}
	p.wg.Wait()
	if n := c.writes.Load(); n != 0 {
		t.Errorf("%d writes to the socket of a pair that is over", n)
	}
	px.Reset(wire.CodeReset)
	br.Close()
}
