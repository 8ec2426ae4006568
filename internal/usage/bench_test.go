package usage

import (
	"context"
	"fmt"
	"testing"
	"time"

	"reverser/internal/status"
)

// BenchmarkSave is the save of a minute in which all services moved bytes, and what the file takes then: after the first one, and at
// the end of a day on which they did so every hour.
func BenchmarkSave(b *testing.B) {
	for _, n := range []struct{ keys, services int }{{1, 1}, {5000, 1}, {1, 1000}} {
		b.Run(fmt.Sprintf("keys=%d/services=%d", n.keys, n.services), func(b *testing.B) {
			src := &source{named: make(map[[16]byte]string)}
			for k := range n.keys {
				src.named[id(k)] = fmt.Sprintf("customer-%d", k)
				for s := range n.services {
					src.all = append(src.all, status.Counted{Key: id(k), Service: fmt.Sprintf("http/app%d.customer%d.example.com", s, k)})
				}
			}
			place := &folder{dir: b.TempDir()}
			s := New(src, place, nil)
			now := noon
			s.now = func() time.Time { return now }
			save := func() {
				for i := range src.all {
					c := &src.all[i]
					c.Sent, c.Received, c.Connections = c.Sent+12_345_678, c.Received+987_654_321, c.Connections+17
				}
				if err := s.Save(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			save()
			size := func() float64 {
				info, err := place.Stat()
				if err != nil {
					b.Fatal(err)
				}
				return float64(info.Size())
			}
			first := size()
			for b.Loop() {
				save()
			}
			b.StopTimer()
			s.file.noSync = true
			for range 24 {
				now = now.Add(time.Hour)
				save()
			}
			b.ReportMetric(first, "B/first")
			b.ReportMetric(size(), "B/day")
		})
	}
}

// BenchmarkRead is a look at the counters.
func BenchmarkRead(b *testing.B) {
	src := &source{named: make(map[[16]byte]string)}
	for k := range 5000 {
		src.all = append(src.all, status.Counted{Key: id(k), Service: "tcp/9000"})
	}
	s := New(src, &folder{dir: b.TempDir()}, nil)
	for b.Loop() {
		for i := range src.all {
			src.all[i].Sent++
		}
		s.step()
	}
}
