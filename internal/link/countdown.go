package link

import "time"

// countdown is a timer of a stream whose time left can be told, so that it stands still while the process is handed over. Most streams
// never have one: nil is one that was never started. slot.mu guards it.
type countdown struct {
	timer *time.Timer   // while it runs
	due   time.Duration // on the link's clock; while it runs
	left  time.Duration // while it does not run; spent when it has
}

const spent = -1

// startCountdown lets f be called d from now, when the link's clock says now.
func startCountdown(now, d time.Duration, f func()) *countdown {
	return &countdown{timer: time.AfterFunc(max(d, soonest), f), due: now + d}
}

// over ends the time when f was called, and reports whether it was, or whether the timer was stopped at the same moment.
func (c *countdown) over() bool {
	if c == nil || c.timer == nil {
		return false
	}
	c.timer, c.left = nil, spent
	return true
}

// stop lets f not be called any more.
func (c *countdown) stop() {
	if c != nil && c.timer != nil {
		c.timer.Stop()
		c.timer, c.left = nil, spent
	}
}

// timeLeft is how much of the time is left, or spent.
func (c *countdown) timeLeft(now time.Duration) time.Duration {
	switch {
	case c == nil:
		return spent
	case c.timer == nil:
		return c.left
	}
	return max(c.due-now, 0)
}

// freeze lets the time stand still until thaw.
func (c *countdown) freeze(now time.Duration) {
	if c != nil && c.timer != nil {
		left := c.timeLeft(now)
		c.stop()
		c.left = left
	}
}

// thaw goes on with the time that was left.
func (c *countdown) thaw(now time.Duration, f func()) {
	if c != nil && c.timer == nil && c.left >= 0 {
		*c = *startCountdown(now, c.left, f)
	}
}
