package proxy

import (
	"container/list"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"reverser/internal/share"
)

// room decides who is let in to the handshake, who has to go for others, and whose handshake is computed next. It is deterministic:
// no clock, no lock, no I/O. The gate is its shell.
//
// Its rules, for connections that are not proven yet:
//
//  1. An address is known if a bridge was connected from it within a day, or, at a port for names, if a user reached a service from it.
//     Connections from other addresses are strangers.
//  2. A quarter of the places is for known addresses only, and a quarter for strangers only.
//  3. When no place is free for a known address, a stranger goes, unless strangers have only their quarter left: a silent one, else one
//     that waits for its peer, else one that waits for this process.
//  4. Otherwise a silent connection of the newcomer's class goes. If the newcomer is a stranger and no stranger is silent, a silent
//     known connection goes, unless known addresses have only their quarter left.
//  5. Of silent connections the oldest goes, of the block of addresses that has most of them.
//  6. Otherwise a connection of the newcomer's class goes that has sent something: one that waits for its peer before one that waits
//     for this process. Its block must have at least two places more in that stage than the newcomer's block has in all.
//  7. Otherwise the newcomer is refused.
//  8. As many handshakes are computed at once as there are processors, half as many of strangers. Known addresses go first, then blocks
//     in turn, and within a block the oldest connection.
//  9. A block of strangers has strangerRate turns a second. A connection that sends nothing takes none.
//
// Everything costs the same however many connections and blocks there are.
type room struct {
	most  int // places
	width int // handshakes computed at once

	classes [2]class
	known   known
	rates   rates
}

// class is the strangers, or the known.
type class struct {
	places  int
	blocks  map[netip.Prefix]int // how many of the places
	turns   int                  // handshakes being computed
	shelves [computing]shelf
}

const (
	strangers = iota
	acquainted
)

// stage is how far a connection has come.
type stage int

const (
	silent    stage = iota // has sent nothing, or no whole record
	greeted                // has our answer, and is waited for
	waiting                // waits for its turn
	computing              // has its turn; is on no shelf
	departed
)

// place is one connection that is not proven yet.
type place struct {
	from  netip.Addr
	class int
	stage stage
	pile  *pile         // where it stands; nil: on no shelf
	at    *list.Element // of pile.places
	conn  any           // the shell's
}

// Limits of what strangers can take.
const (
	mostPlaces    = 8192 // at once; fewer where few descriptors are to be had
	strangerRate  = 20   // handshakes a second of a block of addresses that is not known
	strangerBurst = 40
)

// Errors that end a connection before it is proven.
var (
	errSilent = errors.New("it said nothing while others came")
	errFull   = errors.New("as many wait for their handshake as may")
	errOften  = fmt.Errorf("more than %d handshakes a second from its part of the network, and no bridge among them", strangerRate)
	errGone   = errors.New("it hung up before its turn")
)

func newRoom(places, processors int) *room {
	r := &room{most: places, width: max(processors, 1)}
	r.known.most, r.rates.most = mostKnown, mostRates
	return r
}

// blockOf is the part of the network that counts as one. A known IPv4 address is itself: its neighbours are others.
func blockOf(a netip.Addr, class int) netip.Prefix {
	if class == acquainted || !a.Is4() {
		return share.Block(a)
	}
	p, _ := a.Prefix(24)
	return p
}

// enter takes a connection in. victim has to go for it, with the error why; ok is false when there is neither a place nor a victim.
func (r *room) enter(from netip.Addr, now time.Time) (p, victim *place, why error, ok bool) {
	p = &place{from: from.Unmap()}
	if r.known.has(p.from, now) {
		p.class = acquainted
	}
	if r.full(p.class) {
		if victim, why = r.victim(p); victim == nil {
			return nil, nil, errFull, false
		}
		r.leave(victim)
	}
	r.count(p, 1)
	r.put(p, silent)
	return p, victim, why, true
}

func (r *room) full(class int) bool {
	return r.classes[strangers].places+r.classes[acquainted].places >= r.most || r.classes[class].places >= r.most-r.spared()
}

// spared is how many places of a class are out of the other one's reach.
func (r *room) spared() int { return r.most / 4 }

// count changes how many places the class of p has.
func (r *room) count(p *place, by int) {
	c, block := &r.classes[p.class], blockOf(p.from, p.class)
	c.places += by
	if c.blocks == nil {
		c.blocks = make(map[netip.Prefix]int)
	}
	if c.blocks[block] += by; c.blocks[block] == 0 {
		delete(c.blocks, block)
	}
}

// victim returns who has to go for p; nil: nobody.
func (r *room) victim(p *place) (victim *place, why error) {
	own, other := &r.classes[p.class], &r.classes[1-p.class]
	others := other.places > r.spared() && own.places < r.most-r.spared()
	if p.class == acquainted && others {
		return other.victim(1)
	}
	fewer := own.blocks[blockOf(p.from, p.class)]
	if own.shelves[silent].largest() == nil && others {
		if most := other.shelves[silent].largest(); most != nil {
			return most.oldest(), errSilent
		}
	}
	return own.victim(fewer + 2)
}

// victim returns who has to go of a class: who has sent nothing, or is of a block with at least so many in a stage.
func (c *class) victim(enough int) (*place, error) {
	if most := c.shelves[silent].largest(); most != nil {
		return most.oldest(), errSilent
	}
	if most := c.shelves[greeted].largest(); most != nil && most.places.Len() >= enough {
		return most.oldest(), errSilent
	}
	if most := c.shelves[waiting].largestNow(); most != nil && most.places.Len() >= enough {
		return most.newest(), errFull
	}
	return nil, nil
}

// held returns how many connections are not proven yet, and a block of addresses that has most of those that keep this process waiting.
func (r *room) held() (n int, most netip.Prefix) {
	largest := 0
	for i := range r.classes {
		n += r.classes[i].places
		for _, st := range []stage{silent, greeted} {
			if l := r.classes[i].shelves[st].largest(); l != nil && l.places.Len() > largest {
				largest, most = l.places.Len(), l.block
			}
		}
	}
	return n, most
}

// put moves a place to a stage.
func (r *room) put(p *place, to stage) {
	r.take(p)
	p.stage = to
	if to < computing {
		r.classes[p.class].shelves[to].add(p)
	}
}

// take takes a place off its shelf.
func (r *room) take(p *place) {
	if p.pile != nil {
		r.classes[p.class].shelves[p.stage].remove(p)
	}
}

// heard says that the first record of p is there: it waits for its turn now. An error says that it gets none.
func (r *room) heard(p *place, now time.Time) error {
	if p.stage != silent {
		return errGone
	}
	if p.class == strangers && r.known.has(p.from, now) { // meanwhile
		r.take(p)
		r.count(p, -1)
		p.class = acquainted
		r.count(p, 1)
	}
	if p.class == strangers && !r.rates.take(blockOf(p.from, strangers), now) {
		return errOften
	}
	r.put(p, waiting)
	return nil
}

// next returns whose turn it is; nil: nobody's.
func (r *room) next() *place {
	if r.classes[strangers].turns+r.classes[acquainted].turns >= r.width {
		return nil
	}
	for _, class := range []int{acquainted, strangers} {
		c := &r.classes[class]
		if class == strangers && c.turns >= max(r.width/2, 1) {
			continue
		}
		if p := c.shelves[waiting].next(); p != nil {
			r.put(p, computing)
			c.turns++
			return p
		}
	}
	return nil
}

// rest says that p waits for its peer again.
func (r *room) rest(p *place) {
	if p.stage == computing {
		r.classes[p.class].turns--
		r.put(p, greeted)
	}
}

// leave takes p out.
func (r *room) leave(p *place) {
	switch p.stage {
	case departed:
		return
	case computing:
		r.classes[p.class].turns--
	}
	r.put(p, departed)
	r.count(p, -1)
}

// shelf has the places of one class in one stage, by block.
type shelf struct {
	piles  map[netip.Prefix]*pile
	levels []*list.List // levels[n]: the piles of n places; the last one is not empty
	turns  list.List    // of piles: whose turn it is next
}

// pile is a block's places, the oldest first. It is never empty.
type pile struct {
	block  netip.Prefix
	places list.List
	level  *list.Element // of shelf.levels
	turn   *list.Element // of shelf.turns
}

func (l *pile) oldest() *place { return l.places.Front().Value.(*place) }
func (l *pile) newest() *place { return l.places.Back().Value.(*place) }

func (s *shelf) add(p *place) {
	block := blockOf(p.from, p.class)
	l := s.piles[block]
	if l == nil {
		l = &pile{block: block}
		if s.piles == nil {
			s.piles = make(map[netip.Prefix]*pile)
		}
		s.piles[block] = l
		l.turn = s.turns.PushBack(l)
	}
	s.lower(l)
	p.pile, p.at = l, l.places.PushBack(p)
	s.raise(l)
}

func (s *shelf) remove(p *place) {
	l := p.pile
	s.lower(l)
	l.places.Remove(p.at)
	p.pile, p.at = nil, nil
	s.raise(l)
	if l.places.Len() == 0 {
		s.turns.Remove(l.turn)
		delete(s.piles, l.block)
	}
}

// lower takes a pile off its level, and raise puts it where it belongs now.
func (s *shelf) lower(l *pile) {
	if l.level != nil {
		s.levels[l.places.Len()].Remove(l.level)
		l.level = nil
	}
}

func (s *shelf) raise(l *pile) {
	n := l.places.Len()
	for len(s.levels) <= n {
		s.levels = append(s.levels, list.New())
	}
	if n > 0 {
		l.level = s.levels[n].PushBack(l)
	}
	for i := len(s.levels) - 1; i >= 0 && s.levels[i].Len() == 0; i-- {
		s.levels = s.levels[:i]
	}
}

// largest returns the pile with most places, of several the one that has had so many for longest; nil: there is none.
func (s *shelf) largest() *pile {
	if len(s.levels) == 0 {
		return nil
	}
	return s.levels[len(s.levels)-1].Front().Value.(*pile)
}

// largestNow is largest, but of several the one that has so many only since a moment ago.
func (s *shelf) largestNow() *pile {
	if len(s.levels) == 0 {
		return nil
	}
	return s.levels[len(s.levels)-1].Back().Value.(*pile)
}

// next returns the oldest place of the block whose turn it is; nil: there is none.
func (s *shelf) next() *place {
	if s.turns.Len() == 0 {
		return nil
	}
	s.turns.MoveToBack(s.turns.Front())
	return s.turns.Back().Value.(*pile).oldest()
}

// rates counts the handshakes of blocks that are not known. It forgets the block that was seen least recently when there are too many.
type rates struct {
	most   int
	blocks recent[netip.Prefix, time.Time] // when the block will have its whole burst again
}

const mostRates = 8192

// take reports whether a block may have a turn, and counts it.
func (r *rates) take(block netip.Prefix, now time.Time) bool {
	const each = time.Second / strangerRate
	whole, _ := r.blocks.get(block)
	if whole.Before(now) {
		whole = now
	}
	if whole.Sub(now) > (strangerBurst-1)*each {
		return false
	}
	r.blocks.put(block, whole.Add(each), r.most)
	return true
}
