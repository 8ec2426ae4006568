package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// hall is a room whose visitors have names.
type hall struct {
	*testing.T
	r     *room
	now   time.Time
	names map[*place]string
	at    map[string]*place
}

func newHall(t *testing.T, places, processors int) *hall {
	return &hall{T: t, r: newRoom(places, processors), now: time.Unix(1e9, 0), names: make(map[*place]string), at: make(map[string]*place)}
}

// come lets a connection in and wants that victim, "" for none, has to go for it, or "refused".
func (h *hall) come(name, from, victim string) {
	h.Helper()
	p, gone, why, ok := h.r.enter(netip.MustParseAddr(from), h.now)
	got := h.names[gone]
	switch {
	case !ok:
		got = "refused"
	default:
		h.names[p], h.at[name] = name, p
	}
	if got != victim || (got != "") != (why != nil) && ok {
		h.Errorf("%s came from %s: %q had to go (%v), want %q", name, from, got, why, victim)
	}
}

func (h *hall) says(name string, want error) {
	h.Helper()
	if err := h.r.heard(h.at[name], h.now); !errors.Is(err, want) {
		h.Errorf("%s said something: %v, want %v", name, err, want)
	}
}

// turns wants turns for these, in this order, and for nobody else.
func (h *hall) turns(want ...string) {
	h.Helper()
	var got []string
	for p := h.r.next(); p != nil; p = h.r.next() {
		got = append(got, h.names[p])
	}
	if !slices.Equal(got, want) {
		h.Errorf("it is the turn of %q, want %q", got, want)
	}
}

// knows makes addresses known.
func (h *hall) knows(from ...string) {
	for _, a := range from {
		h.r.known.add(netip.MustParseAddr(a), h.now)
	}
}

// greets has the turn of a connection come and pass.
func (h *hall) greets(name string) {
	h.Helper()
	h.says(name, nil)
	h.turns(name)
	h.r.rest(h.at[name])
}

func TestRoomSilentGoFirst(t *testing.T) {
	h := newHall(t, 8, 1) // 6 for strangers
	for i := range 3 {
		h.come(fmt.Sprint("a", i), fmt.Sprint("192.0.2.", i), "")
	}
	h.come("b0", "198.51.100.1", "")
	h.come("b1", "198.51.100.1", "")
	h.come("c0", "203.0.113.1", "")
	h.says("a0", nil)
	h.says("b0", nil)
	h.come("d0", "203.0.113.200", "a1") // of the block with most silent ones, the oldest; ties: which had so many first
	h.come("d1", "203.0.113.201", "c0")
	h.come("d2", "203.0.113.202", "d0")
	h.come("e0", "100.64.0.1", "d1")
}

func TestRoomWhoSpokeStaysAmongEquals(t *testing.T) {
	h := newHall(t, 8, 1)
	for i := range 6 {
		name := fmt.Sprint("a", i)
		h.come(name, fmt.Sprintf("10.0.%d.1", i), "")
		h.says(name, nil)
	}
	h.come("b0", "10.1.0.1", "refused")
	h.turns("a0")
	h.r.rest(h.at["a0"])
	h.come("b0", "10.1.0.1", "refused") // a0's peer may be far away
	h.r.leave(h.at["a0"])
	h.come("b0", "10.1.0.1", "")
	h.come("b1", "10.1.0.2", "b0")
	h.says("b1", nil)
	h.come("b2", "10.1.0.3", "refused")
}

func TestRoomSharesAmongBlocks(t *testing.T) {
	h := newHall(t, 8, 1)
	for i := range 4 { // one block waits for its turn
		name := fmt.Sprint("a", i)
		h.come(name, fmt.Sprint("192.0.2.", i), "")
		h.says(name, nil)
	}
	for i := range 2 { // another one was answered, and is waited for
		name := fmt.Sprint("b", i)
		h.come(name, "198.51.100.9", "")
		h.says(name, nil)
	}
	h.turns("a0")
	h.r.rest(h.at["a0"])
	h.turns("b0")
	h.r.rest(h.at["b0"])
	h.come("a4", "192.0.2.9", "refused") // its block has enough
	h.come("c0", "203.0.113.1", "a3")    // the newest of those that wait
	h.says("c0", nil)
	h.come("c1", "203.0.113.1", "refused")
	for _, name := range []string{"a1", "b1", "c0", "a2"} { // blocks in turn
		h.turns(name)
		h.r.rest(h.at[name])
	}
}

func TestRoomKnownAddresses(t *testing.T) {
	h := newHall(t, 8, 2)
	h.knows("192.0.2.1", "2001:db8:1:2::7")
	for i := range 6 {
		name := fmt.Sprint("s", i)
		h.come(name, fmt.Sprintf("10.0.%d.1", i), "")
		h.says(name, nil)
	}
	h.come("s6", "10.0.9.1", "refused")  // a part of the places is for known addresses only
	h.come("s6", "192.0.2.2", "refused") // a neighbour is another one
	h.come("k0", "192.0.2.1", "")
	h.come("k1", "::ffff:192.0.2.1", "")
	h.come("k2", "192.0.2.1", "s5")
	h.come("k3", "2001:db8:1:2:3::1", "s4")
	h.says("k3", nil)
	h.says("k1", nil)
	h.turns("k3", "k1") // known ones first; two are computed at once
	h.r.rest(h.at["k3"])
	h.turns("s0") // of strangers only one
	h.r.rest(h.at["k1"])
	h.turns()
	h.says("k0", nil)
	h.turns("k0")
}

func TestRoomKnownSilentGo(t *testing.T) {
	h := newHall(t, 8, 1)
	h.knows("192.0.2.1", "192.0.2.2")
	for i := range 6 {
		h.come(fmt.Sprint("k", i), "192.0.2.1", "")
	}
	h.come("b0", "192.0.2.2", "k0")
	h.come("k8", "192.0.2.1", "k1")
	h.says("k2", nil)
	h.come("k9", "192.0.2.1", "k3")
	h.come("s0", "10.0.0.1", "")
	h.come("s1", "10.0.1.1", "")
	h.says("s0", nil)
	h.says("s1", nil)
	h.come("s2", "10.0.2.1", "k4") // for a stranger, too: or nobody new could come
	for _, name := range []string{"b0", "k5", "k8", "k9"} {
		h.says(name, nil)
	}
	h.says("s2", nil)
	h.come("s3", "10.0.3.1", "refused") // but not who has sent something
	h.come("b1", "192.0.2.2", "s2")     // strangers have more than what is theirs
	h.come("b2", "192.0.2.2", "b1")
}

// TestRoomRate: a block of strangers has a burst of handshakes and then its rate; silence costs none of it, and a bridge of the
// block ends it.
func TestRoomRate(t *testing.T) {
	h := newHall(t, 1000, 1)
	n := 0
	speak := func(want error) {
		t.Helper()
		n++
		name := fmt.Sprint(n)
		h.come(name, fmt.Sprint("192.0.2.", n%200), "")
		h.says(name, want)
		if want == nil {
			h.turns(name)
		}
		h.r.leave(h.at[name])
	}
	for i := range 200 {
		h.come(fmt.Sprint("silent", i), "192.0.2.7", "")
	}
	for range strangerBurst {
		speak(nil)
	}
	speak(errOften)
	h.come("other", "198.51.100.1", "")
	h.greets("other")
	h.now = h.now.Add(time.Second)
	for range strangerRate {
		speak(nil)
	}
	speak(errOften)
	h.knows("192.0.2.7")
	h.says("silent0", nil) // was let in as a stranger
	h.turns("silent0")
	h.r.leave(h.at["silent0"])
	h.now = h.now.Add(time.Hour)
	for range strangerBurst {
		speak(nil)
	}
	speak(errOften)
	h.now = h.now.Add(rememberAddress)
	for range strangerBurst {
		h.says("silent1", nil)
		h.turns("silent1")
		h.r.leave(h.at["silent1"])
		h.come("silent1", "192.0.2.7", "")
	}
	h.says("silent1", errOften) // known no more
}

func TestRoomWhoLeftGetsNoTurn(t *testing.T) {
	h := newHall(t, 8, 1)
	h.come("a", "10.0.0.1", "")
	h.come("b", "10.0.1.1", "")
	h.says("a", nil)
	h.says("b", nil)
	h.r.leave(h.at["a"])
	h.r.leave(h.at["a"]) // once is enough
	h.turns("b")
	h.r.leave(h.at["b"]) // with its turn
	h.says("b", errGone)
	h.come("c", "10.0.2.1", "")
	h.says("c", nil)
	h.turns("c")
	h.r.rest(h.at["c"])
	h.r.rest(h.at["c"])
	if got := h.r.classes[strangers]; got.places != 1 || got.turns != 0 || len(got.blocks) != 1 {
		t.Errorf("%d places, %d turns, %d blocks are counted, want 1, 0, 1", got.places, got.turns, len(got.blocks))
	}
}

// TestRoomMemoryIsBounded: as many blocks as there may be are remembered, the latest ones.
func TestRoomMemoryIsBounded(t *testing.T) {
	h := newHall(t, 8, 1)
	h.r.known.most, h.r.rates.most = 100, 50
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}) }
	for i := range 300 {
		h.r.known.add(addr(i), h.now)
		h.r.rates.take(blockOf(addr(i), strangers), h.now)
	}
	if k, r := h.r.known.blocks.order.Len(), h.r.rates.blocks.order.Len(); k != 100 || r != 50 || len(h.r.known.blocks.at) != 100 || len(h.r.rates.blocks.at) != 50 {
		t.Errorf("%d addresses are known and %d counted, want 100 and 50", k, r)
	}
	if h.r.known.has(addr(199), h.now) || !h.r.known.has(addr(200), h.now) {
		t.Error("not the latest addresses are known")
	}
}

// TestRoomAnything lets anything happen and checks what must always hold.
func TestRoomAnything(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := newRoom(4+rnd.IntN(40), 1+rnd.IntN(4))
		now := time.Unix(1e9, 0)
		var in []*place
		for range 1000 {
			now = now.Add(time.Duration(rnd.IntN(5)) * time.Millisecond)
			switch some := rnd.IntN(10); {
			case some < 4 || len(in) == 0:
				from := netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(6)), byte(rnd.IntN(3))})
				p, victim, why, ok := r.enter(from, now)
				switch {
				case !ok && why != errFull, ok && (victim == nil) != (why == nil):
					t.Fatalf("seed %d: enter = %v, %v, %t", seed, victim, why, ok)
				case !ok:
					continue
				}
				if victim != nil {
					if victim.class > p.class && why != errSilent || victim.stage != departed {
						t.Fatalf("seed %d: a victim of class %d for a newcomer of class %d, at stage %d", seed, victim.class, p.class, victim.stage)
					}
					in = slices.DeleteFunc(in, func(o *place) bool { return o == victim })
				}
				in = append(in, p)
			case some < 7:
				r.heard(in[rnd.IntN(len(in))], now)
			case some < 8:
				r.next()
			case some < 9:
				r.rest(in[rnd.IntN(len(in))])
			default:
				i := rnd.IntN(len(in))
				if rnd.IntN(8) == 0 {
					r.known.add(in[i].from, now)
				}
				r.leave(in[i])
				in = slices.Delete(in, i, i+1)
			}
			checkRoom(t, seed, r, in)
		}
	}
}

func checkRoom(t *testing.T, seed uint64, r *room, in []*place) {
	t.Helper()
	for class := range r.classes {
		c := &r.classes[class]
		places, turns := 0, 0
		for _, p := range in {
			if p.class != class {
				continue
			}
			places++
			if p.stage == computing {
				turns++
			}
			if (p.pile != nil) != (p.stage < computing) {
				t.Fatalf("seed %d: on a shelf: %t, at stage %d", seed, p.pile != nil, p.stage)
			}
		}
		blocks := 0
		for _, n := range c.blocks {
			blocks += n
		}
		if c.places != places || c.turns != turns || blocks != places {
			t.Fatalf("seed %d: class %d counts %d places, %d by block, %d turns; there are %d, %d", seed, class, c.places, blocks, c.turns, places, turns)
		}
		for st := range c.shelves {
			s := &c.shelves[st]
			n, largest := 0, 0
			for _, l := range s.piles {
				n += l.places.Len()
				largest = max(largest, l.places.Len())
			}
			for _, p := range in {
				if p.class == class && p.stage == stage(st) {
					n--
				}
			}
			most := 0
			if l := s.largest(); l != nil {
				most = l.places.Len()
			}
			if n != 0 || most != largest || s.turns.Len() != len(s.piles) {
				t.Fatalf("seed %d: shelf %d of class %d: %d too many; largest %d, want %d; %d turns for %d piles", seed, st, class, n, most, largest, s.turns.Len(), len(s.piles))
			}
		}
	}
	k, s := r.classes[acquainted], r.classes[strangers]
	if s.places > r.most-r.most/4 || s.places+k.places > r.most || s.turns+k.turns > r.width {
		t.Fatalf("seed %d: %d strangers and %d known ones, %d computed", seed, s.places, k.places, s.turns+k.turns)
	}
}
