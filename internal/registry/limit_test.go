package registry

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"reverser/internal/wire"
)

// TestLine: of the names in line those within the limit are the earliest that it allows, and whoever moved over the limit or below it
// is settled, nobody else.
func TestLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &tenant{key: &Key{MaxServices: 5}}
		var in map[*name]bool // before the change
		touched := make(map[*name]bool)
		changed := func(n *name) { touched[n] = true }
		places := rapid.Permutation([]uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}).Draw(t, "places")
		var mine *name
		t.Repeat(map[string]func(*rapid.T){
			"come": func(t *rapid.T) {
				if len(places) == 0 {
					t.Skip()
				}
				ws := &wish{name: new(name), place: places[0], size: rapid.IntRange(1, 4).Draw(t, "size")}
				places, mine = places[1:], ws.name
				r.queue(ws, changed)
			},
			"go": func(t *rapid.T) {
				if len(r.order) == 0 {
					t.Skip()
				}
				ws := rapid.SampledFrom(r.order).Draw(t, "wish")
				places, mine = append(places, ws.place), ws.name
				r.dequeue(ws, changed)
			},
			"another limit": func(t *rapid.T) {
				r.key = &Key{MaxServices: rapid.IntRange(0, 12).Draw(t, "limit")}
				r.fit(changed)
			},
			"": func(t *rapid.T) {
				if !slices.IsSortedFunc(r.order, func(a, b *wish) int { return cmp.Compare(a.place, b.place) }) {
					t.Fatal("not in order")
				}
				sum, now := 0, make(map[*name]bool)
				for i, ws := range r.order {
					sum += ws.size
					fits := r.key.MaxServices == 0 || sum <= r.key.MaxServices
					if now[ws.name] = fits; fits != (i < r.within) {
						t.Fatalf("%d of %d are within the limit %d, and place %d makes %d", r.within, len(r.order), r.key.MaxServices, i, sum)
					}
				}
				for n, fits := range now {
					if n != mine && fits != in[n] && !touched[n] {
						t.Fatal("a name crossed the limit, and is not settled")
					}
				}
				for n := range touched {
					if n != mine && now[n] == in[n] {
						t.Fatal("a name is settled that did not cross the limit")
					}
				}
				in = now
				mine = nil
				clear(touched)
			},
		})
	})
}

// TestLimitChanges: another limit takes the latest services out or lets the earliest of the others in; those that stay keep their
// route and socket, and the bridge hears the limit that holds now.
func TestLimitChanges(t *testing.T) {
	k := testKey(0, "tcp/9000-9010")
	w := newWorld(t, k)
	s, _ := w.begin(k, 0)
	for i := range 5 {
		w.claim(s, uint32(i+1), fmt.Sprint("tcp/", 9000+i))
	}
	w.do()
	route, opens := w.find("tcp/9000"), 0
	up := func(most, n int) {
		t.Helper()
		k.MaxServices = most
		w.Configure(Policy{Keys: []Key{k}})
		for _, done := range w.do() {
			if done == "open tcp/9000" {
				opens++
			}
		}
		for i := range 5 {
			status, reason := wire.ClaimUp, ""
			if i >= n {
				status = wire.ClaimRetrying
				reason = fmt.Sprintf(`tcp/%d is more than the limit max-services of key "key0", %d`, 9000+i, most)
			}
			w.want(uint32(i+1), status, reason, reason)
		}
		if w.find("tcp/9000") != route {
			t.Errorf("with the limit %d tcp/9000 has another route", most)
		}
	}
	up(2, 2)
	up(1, 1)
	up(3, 3)
	up(0, 5)
	if opens != 0 {
		t.Errorf("tcp/9000 was opened %d times again", opens)
	}
}
