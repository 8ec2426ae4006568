package admin

import (
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
	if text := string(r.since(seen)); text[:14] != `{"reset":false` {
		t.Errorf("after 3 looks: %.40s", text)
	}
	for range 7 {
		turn()
	}
	if len(r.gone) > mostGone || len(r.all) != mostGone/4 {
		t.Errorf("%d are remembered as gone, and %d as there", len(r.gone), len(r.all))
	}
	if text := string(r.since(seen)); text[:13] != `{"reset":true` {
		t.Errorf("after 10 looks: %.40s", text)
	}
	if text := string(r.since(r.n - 1)); text[:14] != `{"reset":false` {
		t.Errorf("whoever was told just before: %.40s", text)
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
				bytes = len(r.since(r.n - 1))
			}
			b.ReportMetric(float64(bytes), "text-bytes")
		})
	}
}
