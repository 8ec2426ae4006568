package link

import "time"

// countdown is a timer of a stream whose time left can be told, so that it stands still while the process is handed over. slot.mu
// guards it.
type countdown struct {
	set    bool          // it was started
	timer  *time.Timer   // while it runs
	due    time.Duration // on the link's clock; while it runs
	frozen time.Duration // what is left while it does not run; spent when it has
}

const spent = -1

// start lets f be called d from now, when the link's clock says now.
func (c *countdown) start(now, d time.Duration, f func()) {
	*c = countdown{set: true, due: now + d, timer: time.AfterFunc(d, f)}
}

// over ends the time when f was called, and reports whether it was, or whether the timer was stopped at the same moment.
func (c *countdown) over() bool {
	if c.timer == nil {
		return false
	}
	c.timer, c.frozen = nil, spent
	return true
}

// stop lets f not be called any more.
func (c *countdown) stop() {
	if c.timer != nil {
		c.timer.Stop()
		c.timer, c.frozen = nil, spent
	}
}

// left is how much of the time is left, or spent.
func (c *countdown) left(now time.Duration) time.Duration {
	if c.timer == nil {
		return c.frozen
	}
	return max(c.due-now, 0)
}

// freeze lets the time stand still until thaw.
func (c *countdown) freeze(now time.Duration) {
	if c.timer != nil {
		left := c.left(now)
		c.stop()
		c.frozen = left
	}
}

// thaw goes on with the time that was left.
func (c *countdown) thaw(now time.Duration, f func()) {
	if c.set && c.timer == nil && c.frozen >= 0 {
		c.start(now, c.frozen, f)
	}
}
