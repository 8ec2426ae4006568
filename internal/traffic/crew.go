package traffic

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// crew runs short jobs, each at once and beside all others, on goroutines that are used again: a new one's stack has to grow first for
// whatever a job does, which costs more than many a job. Make it with newCrew.
type crew struct {
	jobs chan func() // somebody waits for each that is sent
	idle atomic.Int32
	most int32
	wg   sync.WaitGroup
}

// newCrew returns a crew that keeps a few goroutines when they have nothing to do.
func newCrew() *crew { return &crew{jobs: make(chan func()), most: int32(4 * runtime.GOMAXPROCS(0))} }

// Go runs f in a goroutine.
func (c *crew) Go(f func()) {
	select {
	case c.jobs <- f:
	default:
		c.wg.Go(func() { c.work(f) })
	}
}

func (c *crew) work(f func()) {
	for more := true; more; {
		f()
		if c.idle.Add(1) > c.most {
			c.idle.Add(-1)
			return
		}
		f, more = <-c.jobs
		c.idle.Add(-1)
	}
}

// Close waits for the jobs that run, and ends the goroutines. Nobody may call Go any more.
func (c *crew) Close() {
	close(c.jobs)
	c.wg.Wait()
}
