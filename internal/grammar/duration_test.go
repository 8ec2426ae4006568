package grammar

import (
	"strings"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "0d": 0, "90s": 90 * time.Second, "250ms": 250 * time.Millisecond, "1.5h": 90 * time.Minute, "1h30m": 90 * time.Minute,
		"12h": 12 * time.Hour, "1d": day, "30d": 30 * day, "1d12h": 36 * time.Hour, "7d0s": 7 * day, "106751d": 106751 * day,
	} {
		if d, err := ParseDuration(s, "5m"); err != nil || d != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", s, d, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "is no length of time", "soon": "is no length of time", "d": "is no length of time", "1.5d": "is no length of time", "1d-1h": "is no length of time",
		"1d2d": "is no length of time", "1h1d": "is no length of time", "1d ": "is no length of time", "1y": "is no length of time", "--5m": "is no length of time",
		"+1d": "is no length of time", "106752d": "is no length of time", "106751d24h": "is no length of time", "99999999999999999999d": "is no length of time",
		"30": "has no unit", "1.5": "has no unit", "-30": "has no unit", "1d5": "has no unit", "-5m": "is negative", "-1d": "is negative",
	} {
		d, err := ParseDuration(s, `"5m"`)
		if err == nil || !strings.Contains(err.Error(), want+": ") || !strings.HasSuffix(err.Error(), `ms, s, m, h or d, such as "5m"`) {
			t.Errorf("ParseDuration(%q) = %v, %v; want %q and the remedy", s, d, err, want)
		}
	}
}
