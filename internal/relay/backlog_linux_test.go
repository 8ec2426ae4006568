package relay

import (
	"syscall"
	"testing"
	"time"

	"reverser/internal/link"
	"reverser/internal/wire"
)

// countingRaw counts the writes.
type countingRaw struct {
	syscall.RawConn
	writes *int
}

func (c countingRaw) Write(f func(uintptr) bool) error {
	*c.writes++
	return c.RawConn.Write(f)
}

// resetFirst is a pair whose stream is reset in the moment before it is told of its backlog.
type resetFirst struct{ *Pair }

func (r resetFirst) Backlogged() {
	r.stream.Discard()
	r.Pair.Backlogged()
}

// TestBacklogThatIsGone: of a backlog that a reset took away nothing is written, and nobody else's turn at the socket ends with it.
func TestBacklogThatIsGone(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	c := link.NewChunk()
	c.Grow(copy(c.Room(), "hello"))
	px.Send(c)
	for begin := time.Now(); br.Backlog() == nil; time.Sleep(time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatal("nothing arrives")
		}
	}
	_, dialled := loopback.server(t)
	p := New(Target, dialled, br, nil)
	writes := 0
	p.sock.raw = countingRaw{p.sock.raw, &writes}
	br.SetReceiver(resetFirst{p})
	if writes != 0 {
		t.Errorf("%d writes of nothing", writes)
	}
	p.End(ReasonDrain, wire.CodeDrain)
}
