package proxy

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestTidy: memory is given back once behind a crowd, and neither while it comes nor for a few.
func TestTidy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		given := 0
		td := newTidier()
		td.free = func() { given++ }
		for range enoughCame - 1 {
			td.attached()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if given != 0 {
			t.Errorf("given back %d times for less than a crowd", given)
		}
		for range 10 * enoughCame {
			td.attached()
			time.Sleep(noMoreFor / 2)
			synctest.Wait()
		}
		if given != 0 {
			t.Errorf("given back %d times while they came", given)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		td.attached()
		time.Sleep(time.Minute)
		synctest.Wait()
		if given != 1 {
			t.Errorf("given back %d times behind a crowd, want once", given)
		}
		for range enoughCame {
			td.attached()
		}
		td.stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if given != 1 {
			t.Errorf("given back %d times behind the stop", given)
		}
	})
}
