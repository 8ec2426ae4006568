package link

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/wire"
)

// taker takes everything, slowly, and notes what it is told.
type taker struct {
	mu    sync.Mutex
	got   []byte
	ends  []wire.EndKind
	codes []wire.Code // of Abort
	calls int         // under way
}

func (k *taker) Receive(bufs [][]byte) (n int) {
	k.mu.Lock()
	k.calls++
	for _, b := range bufs {
		k.got = append(k.got, b...)
		n += len(b)
	}
	k.mu.Unlock()
	time.Sleep(time.Second)
	k.mu.Lock()
	k.calls--
	k.mu.Unlock()
	return n
}

func (k *taker) Behind() bool { return false }
func (k *taker) Backlogged()  {} // whoever detaches has it taken no more

func (k *taker) Ended(kind wire.EndKind, _ wire.Code) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ends = append(k.ends, kind)
}

func (k *taker) Abort(code wire.Code) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.codes = append(k.codes, code)
}

func (k *taker) is(got string, calls int, ends ...wire.EndKind) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return string(k.got) == got && k.calls == calls && len(k.ends) == len(ends) && (len(ends) == 0 || k.ends[0] == ends[0])
}

// TestDetach: it waits for the call that is under way, what comes behind it waits in the stream, and the next receiver is told what the
// first was not.
func TestDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.open()
		var first, second, third taker
		a.SetReceiver(&first)
		b.Write([]byte("one"))
		time.Sleep(500 * time.Millisecond)
		begin := time.Now()
		if !first.is("one", 1) {
			t.Fatalf("the first receiver has %+v", &first)
		}
		a.Detach()
		if d := time.Since(begin); d != 500*time.Millisecond || !first.is("one", 0) {
			t.Errorf("Detach returned after %s, want it when the call did", d)
		}
		if _, err := a.Room(nil); !errors.Is(err, ErrDetached) || a.TryRoom() != 0 {
			t.Errorf("Room = %v, %d; want ErrDetached, 0", err, a.TryRoom())
		}
		b.Write([]byte("two"))
		b.CloseWrite()
		synctest.Wait()
		if !first.is("one", 0) || a.Backlog() != nil {
			t.Errorf("the first receiver, which is none any more, has %+v", &first)
		}

		a.SetReceiver(&second) // told of a backlog
		if got := a.Backlog(); !bytes.Equal(got, []byte("two")) {
			t.Errorf("backlog %q", got)
		}
		a.Consumed(2) // and is detached in the middle of it
		a.Detach()
		a.SetReceiver(&third)
		if got := a.Backlog(); !bytes.Equal(got, []byte("o")) {
			t.Errorf("the rest of the backlog is %q", got)
		}
		a.Consumed(1)
		if a.Backlog() != nil || !second.is("", 0) || !third.is("", 0, wire.FIN) {
			t.Errorf("the second receiver has %+v, the third %+v; want FIN once", &second, &third)
		}
		a.Detach()
		a.SetReceiver(&second)
		if !second.is("", 0) {
			t.Error("an end was told twice")
		}
		a.Detach()
		w.px.session().Kill(errors.New("over"))
		var fourth taker
		a.SetReceiver(&fourth)
		if len(fourth.codes) != 1 || fourth.codes[0] != wire.CodeAborted || len(second.codes) != 0 {
			t.Errorf("Abort with %v; want it once, of the session's end", fourth.codes)
		}
	})
}
