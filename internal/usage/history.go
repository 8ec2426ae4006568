package usage

import (
	"slices"
	"time"
)

// HistoryStep is the time between two points of the history, which has HistoryLength of them.
const (
	HistoryStep   = 10 * time.Second
	HistoryLength = 360
)

// History is what moved in the last hour.
type History struct {
	StepSeconds float64 `json:"step_seconds"`
	Points      []Point `json:"points"` // the oldest first
}

// Point is what moved in one step.
type Point struct {
	At   time.Time `json:"at"` // its end
	Open int64     `json:"open"`
	Counts
}

// history is a ring of the last points. It is guarded by counted.mu.
type history struct {
	grown  Counts // since the last point
	open   int64  // connections at present
	points [HistoryLength]Point
	next   int // in points
	length int
}

func (h *history) step(now time.Time) {
	h.points[h.next] = Point{At: now.UTC().Truncate(time.Second), Open: h.open, Counts: h.grown}
	h.grown = Counts{}
	h.next = (h.next + 1) % HistoryLength
	h.length = min(h.length+1, HistoryLength)
}

// all is the history, but for what was before a clock that was set back has come to the same time again: whoever draws it needs times that
// go on.
func (h *history) all() History {
	points := make([]Point, 0, h.length)
	for i := range h.length {
		p := h.points[(h.next-1-i+HistoryLength)%HistoryLength]
		if i == 0 || p.At.Before(points[len(points)-1].At) {
			points = append(points, p)
		}
	}
	slices.Reverse(points)
	return History{StepSeconds: HistoryStep.Seconds(), Points: points}
}
