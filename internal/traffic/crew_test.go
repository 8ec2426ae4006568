package traffic

import (
	"sync"
	"testing"
	"testing/synctest"
)

// TestCrew: every job runs at once, however many there are, few goroutines stay, and they are used again.
func TestCrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrew()
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
			if stay := c.idle.Load(); stay != c.most {
				t.Errorf("%d goroutines stay, want %d", stay, c.most)
			}
		}
		// One of them takes the next job: nobody is idle in its place meanwhile.
		hold = make(chan struct{})
		c.Go(func() { <-hold })
		synctest.Wait()
		if idle := c.idle.Load(); idle != c.most-1 {
			t.Errorf("%d goroutines are idle beside a job, want %d", idle, c.most-1)
		}
		close(hold)
		c.Close() // in a bubble, whose end waits for every goroutine
	})
}
