package proxy

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"reverser/internal/link"
	"reverser/internal/status"
)

// handshakeBounds are in seconds. A handshake with a bridge takes two or three times the way there and back, and its turn.
var handshakeBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// durations counts how long handshakes took.
type durations struct {
	counts [len(handshakeBounds) + 1]atomic.Uint64 // each up to its bound and above the one before; the last one has no bound
	nanos  atomic.Int64
}

func (d *durations) add(took time.Duration) {
	i := 0
	for i < len(handshakeBounds) && took.Seconds() > handshakeBounds[i] {
		i++
	}
	d.counts[i].Add(1)
	d.nanos.Add(int64(took))
}

func (d *durations) read() *status.Histogram {
	h := &status.Histogram{Bounds: handshakeBounds[:], Sum: time.Duration(d.nanos.Load()).Seconds()}
	for i := range handshakeBounds {
		h.Count += d.counts[i].Load()
		h.Counts = append(h.Counts, h.Count)
	}
	h.Count += d.counts[len(handshakeBounds)].Load()
	return h
}

// resumesOf is how often a slot of a link went on where it stood.
func resumesOf(l *link.Link) (n uint64) {
	for _, s := range l.Status() {
		n += s.Resumes
	}
	return n
}

// resumes is how often links went on, by key, those that are over included. It never becomes less.
func (s *sessions) resumes() map[[16]byte]uint64 {
	s.mu.Lock()
	all := maps.Clone(s.resumed)
	live := slices.Collect(maps.Keys(s.ids))
	s.mu.Unlock()
	if all == nil {
		all = make(map[[16]byte]uint64)
	}
	for _, l := range live {
		all[l.KeyID()] += resumesOf(l)
	}
	return all
}
