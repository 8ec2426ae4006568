package proxy

import (
	"fmt"
	"net/netip"
	"time"

	"reverser/internal/traffic"
)

// wasted counts the connections of strangers that reached no service, and decides whose next one is sent away before anything is read of it.
// It is deterministic, as the room is; the gate is its shell.
//
// Its rules:
//
//  1. A connection counts when it ends, or gets an answer of the proxy's own, before a service has let it in. So a crowd of new users behind
//     one address is not limited: the first one who is let in makes the address known.
//  2. A network of strangers, which is a /24, in IPv6 a /48, may have strangerRate of them a second, and strangerBurst at once.
//  3. All strangers together may have strangersRate a second, without the first one of each network within wastedMemory. Beyond that, only
//     such first ones are let in: who comes from elsewhere than a flood is served, from however many networks it comes. They do not count,
//     or a crowd of users whose service is away would be sent away when it is back.
//  4. Of the pages on one connection, only each pagesCount-th counts as one, from the first on.
//  5. Known addresses are not counted.
//
// It remembers as many networks as mostWasted, and forgets the one that was counted least recently.
type wasted struct {
	most   int
	blocks recent[netip.Prefix, waste]
	all    time.Time // when strangers will have their whole burst again
}

// waste is what a network of strangers had.
type waste struct {
	whole time.Time // when it will have its whole burst again
	last  time.Time

	second uint32   // of away, in which
	sent   [2]int64 // were sent away, by the rate
}

const (
	strangersRate = 100 // connections a second of all strangers that reach no service; each costs as much as ten that are sent away
	pagesCount    = 8
	wastedMemory  = time.Minute
	mostOwed      = 3 * time.Second // a crowd that was let in at once, and reached nothing, may come again soon
	mostWasted    = 32_768
)

var (
	errWastes  = fmt.Errorf("more than %d connections a second from its part of the network reach no service", strangerRate)
	errWastage = fmt.Errorf("more than %d connections a second in all reach no service, and some from its part of the network", strangersRate)
)

const (
	wasteEach = time.Second / strangerRate
	wasteOne  = time.Second / strangersRate
)

// wastedBlock is the part of the network that counts as one. A customer has up to 65,536 of the networks that share.Block tells apart.
func wastedBlock(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := 48
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits)
	return p
}

// over returns why the next connection of a stranger is sent away; nil: it is not.
func (w *wasted) over(from netip.Addr, now time.Time) error {
	had, ok := w.blocks.get(wastedBlock(from))
	switch {
	case !ok:
		return nil
	case had.whole.Sub(now) > (strangerBurst-1)*wasteEach:
		return errWastes
	case now.Sub(had.last) < wastedMemory && w.all.Sub(now) > (strangersRate-1)*wasteOne:
		return errWastage
	}
	return nil
}

// add counts one.
func (w *wasted) add(from netip.Addr, now time.Time) {
	block := wastedBlock(from)
	had, ok := w.blocks.get(block)
	if ok && now.Sub(had.last) < wastedMemory {
		w.all = owed(w.all, wasteOne, now)
	}
	had.whole, had.last = owed(had.whole, wasteEach, now), now
	w.blocks.put(block, had, w.most)
}

// owed adds one to what is owed until whole. Many may have come in before the first of them was counted: what they owe is bounded.
func owed(whole time.Time, each time.Duration, now time.Time) time.Time {
	if whole.Before(now) {
		whole = now
	}
	if most := now.Add(mostOwed); whole.Add(each).After(most) {
		return most
	}
	return whole.Add(each)
}

// judge is what the gate of a port at which many services are reached by name knows of those who come.
type judge struct {
	wasted wasted
	spared func(netip.Addr) bool // whether an address stands for many, as a balancer's does, and is not counted

	away   away            // guarded by gate.mu
	strain *traffic.Strain // for those who were sent away; nil: nobody was yet. Guarded by gate.mu
}

// away counts who was sent away, by the second: for the rate of a network and for that of all.
type away struct {
	begun       time.Time
	second      uint32 // counts them; waste.second is compared with it
	now, before [2]sent
	seen        sent // what was worst in the last second in which somebody was sent away
}

const (
	ofNetwork = iota
	ofAll
)

// sent is how many were sent away in a second for one of the rates.
type sent struct {
	rate   int
	n      int64
	most   netip.Prefix // of which network most were
	ofMost int64
}

// add counts one. had is what its network had.
func (a *away) add(block netip.Prefix, had *waste, why error, now time.Time) {
	a.tick(now)
	if had.second != a.second {
		had.second, had.sent = a.second, [2]int64{}
	}
	rate := ofNetwork
	if why == errWastage {
		rate = ofAll
	}
	s := &a.now[rate]
	s.rate = rate
	s.n++
	if had.sent[rate]++; had.sent[rate] > s.ofMost {
		s.most, s.ofMost = block, had.sent[rate]
	}
}

func (a *away) tick(now time.Time) {
	d := now.Sub(a.begun)
	if d < time.Second {
		return
	}
	if s := worst(a.now); s.n > 0 {
		a.seen = s
	}
	a.second++
	a.before, a.begun = a.now, a.begun.Add(time.Second)
	if d >= 2*time.Second {
		a.before, a.begun = [2]sent{}, now
	}
	a.now = [2]sent{}
}

// worst returns what is worst at present; if nobody was sent away lately, what was worst, without numbers.
func (a *away) worst(now time.Time) sent {
	a.tick(now)
	s, b := worst(a.now), worst(a.before)
	if b.n > s.n {
		s = b
	}
	if s.n == 0 {
		return sent{rate: a.seen.rate, most: a.seen.most}
	}
	return s
}

func worst(second [2]sent) sent {
	if second[ofAll].n > second[ofNetwork].n {
		return second[ofAll]
	}
	return second[ofNetwork]
}
