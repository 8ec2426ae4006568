package grammar

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// ParseDuration parses a length of time, as all flags, files and orders have it: 90s, 12h, 30d, 1h30m, 1d12h. A day has 24 hours.
// example stands in the error; it brings its quotes where it needs some, as in `"30s" or "2m"`.
func ParseDuration(s, example string) (time.Duration, error) {
	fault := func(what string) (time.Duration, error) {
		return 0, fmt.Errorf("%q %s: write a number with ms, s, m, h or d, such as %s", s, what, example)
	}
	const nonsense = "is no length of time"
	rest, negative := strings.CutPrefix(s, "-")
	var whole time.Duration
	if days, after, ok := strings.Cut(rest, "d"); ok && digits(days) {
		n, err := strconv.ParseInt(days, 10, 64)
		if err != nil || n > int64(math.MaxInt64/day) || after != "" && !digits(after[:1]) {
			return fault(nonsense)
		}
		if whole, rest = time.Duration(n)*day, after; rest == "" {
			rest = "0s"
		}
	}
	d, err := time.ParseDuration(rest)
	switch _, number := strconv.ParseFloat(rest, 64); {
	case err != nil && number == nil:
		return fault("has no unit")
	case err != nil, d < 0, d > math.MaxInt64-whole:
		return fault(nonsense)
	case negative:
		return fault("is negative")
	}
	return whole + d, nil
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
