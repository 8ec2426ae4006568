package main

import (
	"strings"
	"testing"
	"time"

	meter "reverser/internal/usage"
)

// TestUsageAhead: rows of a clock that was wrong are told from the others.
func TestUsageAhead(t *testing.T) {
	now := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	row := func(day int) meter.Row {
		return meter.Row{Start: time.Date(2026, 3, day, 0, 0, 0, 0, time.UTC), Key: "nas", Service: "tcp/9000", Counts: meter.Counts{Connections: 1}}
	}
	for _, c := range []struct {
		rows []meter.Row
		says string
	}{
		{[]meter.Row{row(9), row(10)}, ""},
		{[]meter.Row{row(10), row(11)}, "1 day of the future: "},
		{[]meter.Row{row(10), row(11), row(12)}, "2 days of the future: "},
	} {
		var b strings.Builder
		if err := printUsage(&b, meter.Report{By: meter.Day, Rows: c.rows}, now); err != nil {
			t.Fatal(err)
		}
		if out := b.String(); c.says == "" && strings.Contains(out, "future") || !strings.HasPrefix(out, c.says) || !strings.Contains(out, "2026-03-10  tcp/9000") {
			t.Errorf("usage says\n%s", out)
		}
	}
}
