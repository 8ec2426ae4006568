package link

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/wire"
)

// aborted is a receiver that does something when its stream is aborted.
type aborted struct{ do func() }

func (aborted) Receive(bufs [][]byte) (n int) {
	for _, b := range bufs {
		n += len(b)
	}
	return n
}
func (aborted) Behind() bool                  { return false }
func (aborted) Backlogged()                   {}
func (aborted) Ended(wire.EndKind, wire.Code) {}
func (a aborted) Abort(wire.Code)             { a.do() }

// TestNothingIsSentBeforeTheAnswer: a stream that ends while its slot is attached again lets others send at once.
func TestNothingIsSentBeforeTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		bad, far := w.open()
		other, end := w.open()
		for other.slot != bad.slot {
			other, end = w.open()
		}
		bad.Write([]byte("hello"))
		if _, err := io.ReadFull(far, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // acknowledged
		bad.slot.mu.Lock()
		bad.send.q.crc ^= 1
		bad.slot.mu.Unlock()
		done := make(chan struct{})
		bad.SetReceiver(aborted{func() {
			c := NewChunk()
			c.Grow(len(c.Room())) // a full one is not left to the writer
			other.Send(c)
			close(done)
		}})
		w.net.Reset()
		<-done
		if n, err := io.ReadFull(end, make([]byte, ChunkSize)); err != nil {
			t.Errorf("Read = %d, %v", n, err)
		}
		if n := other.Resumes(); n != 1 {
			t.Errorf("the link broke once, and attached again %d times", n)
		}
	})
}
