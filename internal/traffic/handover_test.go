package traffic

import (
	"net"
	"reflect"
	"testing"
	"time"

	"reverser/internal/logtest"
	"reverser/internal/relay"
)

// TestHandover: a pair that came from another process shows as it did there, counts at its accounts, and can be given away again.
func TestHandover(t *testing.T) {
	bubble(t, Config{Max: 1, Side: relay.Target}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		near, far := net.Pipe()
		defer far.Close()
		defer near.Close()
		acc := c.Account(keyA, "tcp/9000")
		acc.SetLimits(Limits{Connections: 1})
		var all []*Admission
		for id := uint64(7); id < 9; id++ { // one more than the limits allow: it was let in elsewhere
			st := relay.State{ID: id, Since: time.Unix(1_800_000_000, 0), Service: "tcp/9000", Target: "nas:80", Client: alice.String(), Side: relay.Target, Out: 3, In: 5}
			a, err := c.Restore(keyA, st, near, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := a.State(); !reflect.DeepEqual(got, st) {
				t.Errorf("State = %+v\nwant %+v", got, st)
			}
			all = append(all, a)
		}
		if u := acc.Usage(); u.Pairs != 2 || u.Admitted != 2 || u.Total != 0 || u.Sent != 0 || c.Load() != (Load{Pairs: 2}) {
			t.Errorf("usage %+v, %+v", u, c.Load())
		}
		for _, a := range all {
			a.GiveAway()
		}
		if a := admit(t, acc, bob); a.ID() != 9 {
			t.Errorf("id %d of the next one, want 9", a.ID())
		} else {
			a.Leave()
		}
		if lines := log.All(); len(lines) != 0 {
			t.Errorf("the log says %q", lines)
		}
		if u := acc.Usage(); len(u.Ended) != 0 {
			t.Errorf("usage %+v", u)
		}
		c.Shut()
		if _, err := c.Restore(keyA, relay.State{ID: 20}, near, nil); err != ErrDraining {
			t.Errorf("Restore = %v, want ErrDraining", err)
		}
	})
}
