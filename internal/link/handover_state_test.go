package link

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/wire"
)

// TestThawOfADeclinedStream: a stream that was refused for its kind stays until its opener forgets it. Whatever the peer asked for,
// the process can be handed over meanwhile.
func TestThawOfADeclinedStream(t *testing.T) {
	for _, kind := range []byte{0, 3, 255} {
		c := newCore(true, 1, NewBudget(0).only())
		f, _, err := wire.Parse(rawFrame(4, theID, 1<<16, []byte{kind, 0, 0, 0, 0, 7}, rawField(129, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.receive(f, 0); err != nil || len(c.streams) != 1 {
			t.Fatalf("OPEN of kind %d: %d streams, %v", kind, len(c.streams), err)
		}
		doc, _ := c.freeze(nil, 0)
		thawed, streams, err := thawCore(doc, 0, NewBudget(0).only())
		if err != nil {
			t.Errorf("kind %d: %v", kind, err)
			continue
		}
		if s := streams[0]; s.open.Service != 7 || s.send.code != wire.CodeUnsupported {
			t.Errorf("kind %d: thawed as a stream of service %d with code %d", kind, s.open.Service, s.send.code)
		}
		if again, _ := thawed.freeze(nil, 0); !bytes.Equal(again, doc) {
			t.Errorf("kind %d: thawed, it is described otherwise", kind)
		}
	}
}

// TestThawOfADeadStream: why a stream died is told to the receiver that gets it in the next process.
func TestThawOfADeadStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, _ := w.open()
		a.slot.mu.Lock()
		a.kill(wire.CodeChecksum)
		a.slot.core.remove(&a.streamCore)
		a.slot.mu.Unlock()
		a.Freeze()
		streams, err := ThawFinished(AppendFinished(nil, []*Stream{a}), NewBudget(0))
		if err != nil {
			t.Fatal(err)
		}
		var k taker
		streams[0].SetReceiver(&k)
		if len(k.codes) != 1 || k.codes[0] != wire.CodeChecksum {
			t.Errorf("Abort with %v, want %d", k.codes, wire.CodeChecksum)
		}
	})
}

// TestThawOfAnotherRole: a session is thawed with the role of its peer, or not at all.
func TestThawOfAnotherRole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		for _, r := range []*recorder{w.px, w.br} {
			if role := r.session().role; role != wire.RoleBridge {
				t.Errorf("the session's role is %d, want %d", role, wire.RoleBridge)
			}
		}
		l := newLink(false, nil, nil, NewBudget(0).only(), 1)
		l.limit, l.role = time.Minute, wire.RoleVisitor
		doc, _ := l.AppendState(nil)
		if _, _, err := NewHost(HostConfig{}).Thaw(doc); !errors.Is(err, errDocument) {
			t.Errorf("Thaw of a visitor's session = %v, want a refusal", err)
		}
	})
}

// TestThawBeside: a bridge that is stopping and its successor have a session each, with one key. Both are thawed, in any order, and
// the newer one is the key's.
func TestThawBeside(t *testing.T) {
	const links = 3
	synctest.Test(t, func(t *testing.T) {
		var ls []*Link
		var docs [][]byte
		for i := range links {
			l := newLink(false, newRecorder(), nil, NewBudget(0).only(), 1)
			l.sid, l.keyID, l.limit, l.role = [16]byte{byte(i)}, goodKey, time.Minute, wire.RoleBridge
			l.leaving.peer.Store(i < links-1)
			time.Sleep(time.Second)
			ls = append(ls, l)
		}
		for _, l := range ls {
			doc, _ := l.AppendState(nil)
			docs = append(docs, doc)
		}
		time.Sleep(time.Hour) // does not count
		for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
			h := NewHost(HostConfig{Owner: newRecorder()})
			for _, i := range order {
				if _, _, err := h.Thaw(docs[i]); err != nil {
					t.Errorf("order %v: link %d: %v", order, i, err)
				}
			}
			h.mu.Lock()
			newest, beside := h.byKey[goodKey], h.beside[goodKey]
			h.mu.Unlock()
			if newest == nil || newest.sid[0] != links-1 || len(beside) != links-1 || beside[0].sid[0] != 0 || beside[1].sid[0] != 1 {
				t.Errorf("order %v: the key's link is %v, %d are beside it", order, newest, len(beside))
			}
			h.Close(errors.New("over"))
		}
	})
}
