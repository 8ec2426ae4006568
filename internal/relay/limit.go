package relay

import "time"

// reserve is how many descriptors are kept for links, the admin socket and files when pairs take all the others.
const reserve = 256

// MaxPairs is how many pairs this process may have at once: one descriptor each, as many as the limit at start leaves.
func MaxPairs() int {
	limit := descriptorLimit()
	return max(limit-min(reserve, limit/2), 16)
}

// Seconds is d for a log line: in seconds, to the microsecond.
func Seconds(d time.Duration) float64 {
	return float64(max(d.Round(time.Microsecond), time.Microsecond).Microseconds()) / 1e6
}
