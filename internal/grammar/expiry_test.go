package grammar

import (
	"strings"
	"testing"
	"time"
)

func TestParseExpiry(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 500, time.UTC)
	for s, want := range map[string]string{
		"90s": "2026-11-29T12:01:30Z", "12h": "2026-11-30T00:00:00Z", "30d": "2026-12-29T12:00:00Z", "1h30m": "2026-11-29T13:30:00Z",
		"2027-01-31T00:00:00Z": "2027-01-31T00:00:00Z", "2027-01-31T01:00:00.7+01:00": "2027-01-31T00:00:00Z",
	} {
		if at, err := ParseExpiry(s, now); err != nil || at.Format(time.RFC3339Nano) != want {
			t.Errorf("ParseExpiry(%q) = %v, %v; want %s", s, at, err, want)
		}
	}
	if at, err := ParseExpiry("never", now); err != nil || !at.IsZero() {
		t.Errorf("never is %v, %v", at, err)
	}
	for s, word := range map[string]string{
		"": "such as 90s", "30": "such as 90s", "soon": "such as 90s", "-5m": "such as 90s", "d": "such as 90s", "-1d": "such as 90s", "1.5d": "such as 90s",
		"99999999999d": "such as 90s", "2027-01-31": "2027-01-31T00:00:00Z", "0s": "is over already", "0d": "is over already", "1ns": "is over already",
		"2026-11-29T12:00:00Z": "is over already", "2025-01-01T00:00:00Z": "is over already", "36600d": "write never", "2200-01-01T00:00:00Z": "write never",
		"9999-12-31T23:59:59Z": "write never", "2562047h": "write never",
	} {
		if at, err := ParseExpiry(s, now); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("ParseExpiry(%q) = %v, %v; want %q in the error", s, at, err, word)
		}
	}
}
