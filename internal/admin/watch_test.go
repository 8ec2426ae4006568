package admin

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	"reverser/internal/status"
)

// TestRows: a reader that has missed more than is remembered is told of everything again; what is remembered is bounded.
func TestRows(t *testing.T) {
	var r rows
	id := 0
	turn := func() { // all are gone, and others are there
		l := &look{}
		for range mostGone / 4 {
			id++
			l.snap.Pairs = append(l.snap.Pairs, status.Pair{ID: strconv.Itoa(id)})
		}
		r.take(l)
	}
	turn()
	seen := r.n
	for range 3 {
		turn()
	}
	// told puts the events together, and wants of each that it is small.
	told := func(seen uint64) (all PairChanges) {
		t.Helper()
		texts := r.since(seen)
		for i, text := range texts {
			var part PairChanges
			if err := json.Unmarshal(text, &part); err != nil {
				t.Fatal(err)
			}
			if n := len(part.Changed) + len(part.Gone); n > mostTold || n == 0 || part.More != (i < len(texts)-1) || part.Reset && i > 0 {
				t.Errorf("event %d of %d has %d rows, reset %t, more %t", i+1, len(texts), n, part.Reset, part.More)
			}
			all.Reset = all.Reset || part.Reset
			all.Changed = append(all.Changed, part.Changed...)
			all.Gone = append(all.Gone, part.Gone...)
		}
		return all
	}
	if c := told(seen); c.Reset || len(c.Changed) != mostGone/4 || len(c.Gone) != mostGone/4*3 {
		t.Errorf("after 3 looks: reset %t, %d changed, %d gone", c.Reset, len(c.Changed), len(c.Gone))
	}
	for range 7 {
		turn()
	}
	if len(r.gone) > mostGone || len(r.all) != mostGone/4 {
		t.Errorf("%d are remembered as gone, and %d as there", len(r.gone), len(r.all))
	}
	if c := told(seen); !c.Reset || len(c.Changed) != mostGone/4 || len(c.Gone) != 0 {
		t.Errorf("after 10 looks: reset %t, %d changed, %d gone", c.Reset, len(c.Changed), len(c.Gone))
	}
	if c := told(r.n - 1); c.Reset || len(c.Changed) != mostGone/4 || len(c.Gone) != mostGone/4 {
		t.Errorf("whoever was told just before: reset %t, %d changed, %d gone", c.Reset, len(c.Changed), len(c.Gone))
	}
	r.take(&look{})
	r.take(&look{})
	if texts := r.since(r.n - 1); len(texts) != 1 || string(texts[0]) != `{"reset":false,"changed":[],"gone":[],"more":false}` {
		t.Errorf("when there is nothing: %s", texts)
	}
}

// What a second costs while somebody watches 10,000 connections, beside the walk through them.
func BenchmarkRows(b *testing.B) {
	for _, moving := range []int{0, 100, 10_000} {
		b.Run(fmt.Sprintf("moving=%d", moving), func(b *testing.B) {
			var r rows
			at := func(i int) *look {
				l := &look{}
				for n := range 10_000 {
					p := status.Pair{
						ID: strconv.Itoa(n), Service: "tcp/9000", Key: "nas", Client: "203.0.113.7:" + strconv.Itoa(40000+n), Target: "192.168.1.5:9904",
						Sent: 1 << 20, Received: 1 << 30, Since: time.Unix(int64(n), 0), State: status.PairOpen,
					}
					if n < moving {
						p.Sent += uint64(i)
					}
					l.snap.Pairs = append(l.snap.Pairs, p)
				}
				return l
			}
			looks := []*look{at(1), at(2)}
			r.take(looks[0])
			i, bytes := 0, 0
			for b.Loop() {
				i++
				r.take(looks[i%2])
				bytes = 0
				for _, text := range r.since(r.n - 1) {
					bytes += len(text)
				}
			}
			b.ReportMetric(float64(bytes), "text-bytes")
		})
	}
}
