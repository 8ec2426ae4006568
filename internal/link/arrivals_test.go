package link

import (
	"bytes"
	"flag"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/wire"
)

var unfinishedTables = flag.Int("unfinished", 1000, "connections of TestUnfinishedTables")

// unfinished says an ATTACH with the longest table, and so many frames of it.
func unfinished(sid [16]byte, frames int) []byte {
	a := wire.Attach{Mode: wire.ModeResume, Slot: 1, Session: sid, WantInstance: hostInstance, Streams: wire.MaxTable}
	var raw []byte
	for i := range frames * wire.MaxPayload / wire.StreamStateLen {
		raw = wire.AppendStreamState(raw, wire.StreamState{Stream: uint64(i+1)<<8 | 1})
	}
	return wire.AppendTable(wire.AppendAttach(nil, 9, a), raw)
}

func (a *arrivals) waiting(key [16]byte) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.of[key])
}

// TestUnfinishedTables: connections of one key that are authenticated and say nothing more, or an ATTACH whose table never ends, hold little
// memory and few connections, and everybody else attaches meanwhile.
func TestUnfinishedTables(t *testing.T) {
	for _, tt := range []struct {
		name        string
		connections int
		session     bool // one that there is; else one that never was
		frames      int
		most        int64 // of the heap
	}{
		{"150 of a session that never was", 150, false, 110, 4 << 20},
		{"150 of a session of the key", 150, true, 110, attemptsOfASlot * (1 + 1) * 4 << 20}, // the table, and what it outgrew
		{"many of a session of the key", *unfinishedTables, true, 1, 4 << 20},
		{"260 that say nothing", 260, false, -1, 4 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if raceEnabled { // a tenth will do
				tt.connections, tt.frames = max(tt.connections/10, 20), min(tt.frames, 10)
			}
			synctest.Test(t, func(t *testing.T) {
				w := newScene(t)
				defer w.close()
				e := newEvilBridge(w)
				sid := [16]byte{0x99}
				if tt.session {
					sid = e.sid
				}
				var say []byte
				if tt.frames >= 0 {
					say = unfinished(sid, tt.frames)
				}
				before := heap()
				const most = attemptsOfASlot * (1 + 1)
				var all [2 * most]*voice // the others are closed here too: what this end holds is not to be counted
				for i := range tt.connections {
					if old := all[i%len(all)]; old != nil {
						old.conn.Close()
					}
					v := w.dial(evilKey)
					v.say(say)
					synctest.Wait() // they arrive in this order
					all[i%len(all)] = v
				}
				synctest.Wait()
				// Fewer may wait: of those that were kept for what they had said, the loop has closed some.
				if n := w.host.arrivals.waiting(evilKey); n > most || n == 0 {
					t.Errorf("%d connections wait, want some, and %d at most", n, most)
				}
				grown(t, before, tt.most+int64(tt.connections)*4<<10) // the network in memory keeps 2 KiB of each for a while

				begin := time.Now()
				resumes := w.owners.key(goodKey).session().Status()[0].Resumes
				for _, c := range w.net.Conns()[:1] { // the control connection of the bridge that behaves
					c.Reset()
				}
				px := w.owners.key(goodKey)
				px.wait(func() bool { return px.up[0] && px.link.Status()[0].Resumes > resumes })
				if took := time.Since(begin); took > time.Second {
					t.Errorf("another key's bridge came back after %s", took)
				}
				if st := e.attach(0, wire.ModeResume); st != wire.StatusOK {
					t.Errorf("the key's own bridge: %s", st)
				}
				time.Sleep(2 * attachTimeout)
				if n := w.host.arrivals.waiting(evilKey); n != 0 {
					t.Errorf("%d connections wait behind the deadline", n)
				}
				for _, v := range all {
					v.conn.Close()
				}
				e.close(false)
			})
		})
	}
}

// TestRefusalBeforeATable: whoever resumes a session that is gone hears it, however long the table is that it sends meanwhile.
func TestRefusalBeforeATable(t *testing.T) {
	withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
		v := w.dial(evilKey)
		defer v.conn.Close()
		raw := bytes.Repeat([]byte{1}, wire.MaxTable*wire.StreamStateLen)
		if st := e.ask(v, wire.Attach{Mode: wire.ModeResume, Slot: 1, Session: [16]byte{0x99}, Streams: wire.MaxTable}, 9, e.secret, raw); st != wire.StatusGone {
			t.Errorf("%s, want GONE", st)
		}
	})
}
