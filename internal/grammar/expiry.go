package grammar

import (
	"fmt"
	"time"
)

// never is how people say that something has no end.
const never = "never"

// mostExpiry is how far ahead an expiry may be: what is more has one key too many.
const mostExpiry = 100 * 365 * day

// mostYear is the last one of which every time can be written in any time zone.
const mostYear = 9998

// ParseExpiry parses when something is to end: a length of time from now on, such as 90s, 12h or 30d, a time as RFC 3339 has it, or never,
// which is the zero time.
func ParseExpiry(s string, now time.Time) (time.Time, error) {
	if s == never {
		return time.Time{}, nil
	}
	tooFar := fmt.Errorf("%q is more than 100 years away: write never", s)
	at, err := ParseMoment(s)
	if err != nil {
		if far, err := time.Parse(time.RFC3339, s); err == nil && far.Year() > mostYear {
			return time.Time{}, tooFar
		}
		d, notLength := ParseDuration(s, "30d")
		if notLength != nil {
			return time.Time{}, fmt.Errorf("%q: write a length of time from now on, such as 90s, 12h or 30d, a time such as 2027-01-31T00:00:00Z, or never", s)
		}
		at = now.Add(d).UTC().Truncate(time.Second)
	}
	switch {
	case !at.After(now):
		return time.Time{}, fmt.Errorf("%q is over already: it is %s by this machine's clock", s, now.UTC().Format(time.RFC3339))
	case at.Sub(now) > mostExpiry:
		return time.Time{}, tooFar
	}
	return at, nil
}

// ParseMoment parses a time as RFC 3339 has it, to the second.
func ParseMoment(s string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339, s)
	if err != nil || at.Year() < 1970 || at.Year() > mostYear {
		return time.Time{}, fmt.Errorf("%q is no time: write it as 2027-01-31T00:00:00Z", s)
	}
	return at.UTC().Truncate(time.Second), nil
}
