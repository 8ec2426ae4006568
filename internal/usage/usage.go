// Package usage keeps what was counted of connections, by service and key: by hour for the 48 latest hours in which there was something,
// by day for 366 days, and by month for ever; and in memory what moved in the last hour.
//
// The way of a number:
//  1. counted.go reads counters that only grow, and books what they have grown by on the hour that it is.
//  2. store.go adds it to the file once a minute and at a stop, in one transaction. A file that is damaged is put aside before (check.go).
//  3. read.go answers what was counted, from the file and from what is not in it yet.
//
// It knows neither who counts nor where the file lies. Store.Run has two goroutines, and waits for them: one reads counters and never
// waits for a disk, the other one writes. Nobody else waits for the disk but who asks for what is stored.
package usage

import (
	"cmp"
	"fmt"
	"time"
)

// Period is the length of time that numbers are added up over. Days and months are those of UTC.
type Period string

// The periods.
const (
	Hour  Period = "hour"
	Day   Period = "day"
	Month Period = "month"
)

var periods = []Period{Hour, Day, Month}

// ParsePeriod reads a period.
func ParsePeriod(s string) (Period, error) {
	switch p := Period(s); p {
	case Hour, Day, Month:
		return p, nil
	}
	return "", fmt.Errorf("%q is no period: hour, day or month is", s)
}

// start is when the period of a time begins.
func (p Period) start(t time.Time) time.Time {
	t = t.UTC()
	switch p {
	case Hour:
		return t.Truncate(time.Hour)
	case Day:
		return time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	default:
		return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	}
}

// kept is how many are kept; 0: all.
func (p Period) kept() int {
	switch p {
	case Hour:
		return 48
	case Day:
		return 366
	default:
		return 0
	}
}

// What a period holds at the most. Further services of a key are added up as OtherServices, further keys as OtherKeys.
const (
	MostServices = 1024   // of one key
	MostRows     = 16_384 // in all, but for those of the others

	OtherServices = "other"
	OtherKeys     = "(other)"
)

// Counts is what was counted.
type Counts struct {
	Sent        uint64 `json:"sent"`        // bytes client → target
	Received    uint64 `json:"received"`    // bytes target → client
	Connections uint64 `json:"connections"` // that were made
	Refused     uint64 `json:"refused"`     // users who were not served
}

func (c *Counts) add(o Counts) {
	c.Sent += o.Sent
	c.Received += o.Received
	c.Connections += o.Connections
	c.Refused += o.Refused
}

// growth is what c has more than an earlier count. A counter that became less would be one that began again.
func (c Counts) growth(earlier Counts) Counts {
	grown := func(now, before uint64) uint64 {
		if now < before {
			return now
		}
		return now - before
	}
	return Counts{
		grown(c.Sent, earlier.Sent), grown(c.Received, earlier.Received),
		grown(c.Connections, earlier.Connections), grown(c.Refused, earlier.Refused),
	}
}

// name is whose numbers they are.
type name struct{ key, service string }

func (n name) compare(o name) int {
	return cmp.Or(cmp.Compare(n.key, o.key), cmp.Compare(n.service, o.service))
}
