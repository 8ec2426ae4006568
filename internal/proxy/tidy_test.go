package proxy

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestTidy: memory is given back once behind a crowd, and neither while it comes nor for a few.
func TestTidy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var given atomic.Int64
		td := newTidier()
		td.free = func() { given.Add(1) }
		for range enoughCame - 1 {
			td.attached()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := given.Load(); n != 0 {
			t.Errorf("given back %d times for less than a crowd", n)
		}
		for range 10 * enoughCame {
			td.attached()
			time.Sleep(noMoreFor / 2)
			synctest.Wait()
		}
		if n := given.Load(); n != 0 {
			t.Errorf("given back %d times while they came", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		td.attached()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := given.Load(); n != 1 {
			t.Errorf("given back %d times behind a crowd, want once", n)
		}
		for range enoughCame {
			td.attached()
		}
		td.stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := given.Load(); n != 1 {
			t.Errorf("given back %d times behind the stop", n)
		}
	})
}
