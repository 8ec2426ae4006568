package relay

import (
	"fmt"
	"time"
)

// reserve is how many descriptors are kept for links, the admin socket and files when pairs take all the others.
const reserve = 256

// fewest is what a process can work with: the sockets and files that one has for itself, a link, and a few pairs.
const fewest = 64

// CheckLimit refuses a limit that is too low to serve anybody: the process would start, and stand still when its users have
// taken the descriptors with which it is asked for its status.
func CheckLimit() error {
	if limit := descriptorLimit(); limit < fewest {
		return fmt.Errorf("this process may have %d files and connections open, and it needs %d at least", limit, fewest)
	}
	return nil
}

// MaxPairs is how many pairs this process may have at once: one descriptor each, as many as the limit at start leaves.
func MaxPairs() int {
	limit := descriptorLimit()
	return max(limit-min(reserve, limit/2), 16)
}

// Seconds is d for a log line: in seconds, to the microsecond.
func Seconds(d time.Duration) float64 {
	return float64(max(d.Round(time.Microsecond), time.Microsecond).Microseconds()) / 1e6
}
