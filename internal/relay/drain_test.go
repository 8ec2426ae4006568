package relay

import (
	"sync"
	"testing"
	"time"

	"reverser/internal/wire"
)

// TestBytesAfterTheEnd: bytes that the link still had in hand when the pair ended start nothing that Run does not wait for.
func TestBytesAfterTheEnd(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := inMemory.user(t)
	defer user.Close()
	s := &stuck{accepted, make(chan struct{}, 1), make(chan struct{}), make(chan []byte, 1)}
	close(s.release)
	var wg sync.WaitGroup
	p := run(&wg, New(Client, s, px, nil))
	p.finish(ReasonDrain, true) // as End does, between two steps of the link
	br.Reset(wire.CodeNone)     // lets the reader go
	wg.Wait()

	px, br = w.open(l)
	p2 := New(Client, s, px, nil)
	p2.finish(ReasonDrain, true)
	px.SetReceiver(p2)
	br.SetWriteDeadline(time.Now().Add(limit))
	if n, err := br.Write(make([]byte, 1<<20)); err != nil {
		t.Errorf("Write = %d, %v; want all of it taken and thrown away", n, err)
	}
	select {
	case <-s.entered:
		t.Error("a goroutine writes to the socket of a pair that is over")
	default:
	}
	p2.wg.Wait()
	br.Close()
	px.Reset(wire.CodeReset)
}
