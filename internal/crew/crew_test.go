package crew

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"reverser/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestCrew: every job runs at once, however many there are, few goroutines stay, and they are used again.
func TestCrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New()
		before := runtime.NumGoroutine()
		hold := make(chan struct{})
		var all sync.WaitGroup
		const n = 100
		for range 3 {
			running := make(chan struct{}, n)
			for range n {
				all.Add(1)
				c.Go(func() {
					defer all.Done()
					running <- struct{}{}
					<-hold
				})
			}
			for range n {
				<-running
			}
			close(hold)
			all.Wait()
			synctest.Wait()
			hold = make(chan struct{})
			if stay := runtime.NumGoroutine() - before; stay != int(c.most) {
				t.Errorf("%d goroutines stay, want %d", stay, c.most)
			}
		}
		ran := false
		c.Go(func() { ran = true })
		synctest.Wait()
		if now := runtime.NumGoroutine() - before; !ran || now != int(c.most) {
			t.Errorf("one more job: ran %t, %d goroutines; want one of %d to take it", ran, now, c.most)
		}
		c.Close()
		if left := runtime.NumGoroutine() - before; left != 0 {
			t.Errorf("%d goroutines are left", left)
		}
	})
}
