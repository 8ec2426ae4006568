package link

import (
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/wire"
)

// TestConnectionsOfAKey: those of a burst are taken at once, the next ones wait, and beyond that they are refused, of this key alone.
func TestConnectionsOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ts tenants
		for i := range connBurst {
			if wait, ok := ts.come(evilKey); wait != 0 || !ok {
				t.Fatalf("connection %d waits %s, %t; want none", i, wait, ok)
			}
		}
		const waits = int(connWait * connRate / time.Second)
		for i := range waits {
			if wait, ok := ts.come(evilKey); wait != time.Duration(i+1)*time.Second/connRate || !ok {
				t.Errorf("connection %d behind the burst waits %s, %t", i, wait, ok)
			}
		}
		if _, ok := ts.come(evilKey); ok {
			t.Error("one more was taken")
		}
		if wait, ok := ts.come(goodKey); wait != 0 || !ok {
			t.Errorf("one of another key waits %s, %t", wait, ok)
		}
		time.Sleep(connWait + time.Second)
		for i := range connRate {
			if wait, ok := ts.come(evilKey); wait != 0 || !ok {
				t.Fatalf("connection %d a second later waits %s, %t; want none", i, wait, ok)
			}
		}
		if wait, _ := ts.come(evilKey); wait == 0 {
			t.Error("a second gave more than its rate")
		}
	})
}

// TestTenantsAreForgotten: keys that were not seen for long take no memory, and those that were are remembered.
func TestTenantsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ts tenants
		for i := range 10 * minTenants {
			if i%minTenants == 0 {
				time.Sleep(2 * tenantForgotten)
			}
			ts.come([16]byte{byte(i), byte(i >> 8), 1})
			ts.keep([16]byte{2})
		}
		if n := len(ts.of); n > 2*minTenants || ts.of[[16]byte{2}] == nil {
			t.Errorf("%d keys are remembered, want at most %d, and the one that came often", n, 2*minTenants)
		}
	})
}

// TestTooManyConnectionsOfAKey: one that is refused hears why, and costs no session anything.
func TestTooManyConnectionsOfAKey(t *testing.T) {
	withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
		for ok := true; ok; {
			_, ok = w.host.tenants.come(evilKey)
		}
		v := w.dial(evilKey)
		if code, text := v.verdict(); code != wire.ErrFlood {
			t.Errorf("ERR %d (%s), want %d", code, text, wire.ErrFlood)
		}
		v.conn.Close()
		time.Sleep(time.Second / connRate)
		begin := time.Now()
		if st := e.attach(0, wire.ModeResume); st != wire.StatusOK || time.Since(begin) == 0 {
			t.Errorf("a connection that came later: %s after %s; want OK after a while", st, time.Since(begin))
		}
	})
}
