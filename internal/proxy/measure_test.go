package proxy

import (
	"slices"
	"testing"
	"time"
)

func TestDurations(t *testing.T) {
	var d durations
	for _, took := range []time.Duration{500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 3 * time.Second, time.Minute} {
		d.add(took)
	}
	h := d.read()
	want := []uint64{2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4}
	if !slices.Equal(h.Counts, want) || h.Count != 5 || h.Sum != 63.0035 || len(h.Bounds) != len(want) {
		t.Errorf("read = %+v; want %v of 5, 63.0035 s", h, want)
	}
}
