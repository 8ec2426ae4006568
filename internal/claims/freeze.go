package claims

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/status"
)

// Frozen is the state of services and of all links as plain data, for a successor of this process.
type Frozen struct {
	Last    uint32
	Offered []frozenService
	Links   []frozenClaims
}

type frozenService struct {
	ID             uint32
	Public, Target string
	Options        grammar.Options
}

type frozenClaims struct {
	Known   []frozenClaim
	Retired []frozenRetired
	Slots   []frozenSlot
}

type frozenClaim struct {
	ID                    uint32
	Said, Pending, Proven bool
	State, Public, Reason string
	Drained               bool
	Answers               int
	Probe                 status.Probe
}

type frozenRetired struct {
	Service  frozenService
	Served   string
	Answered int // its place in the order of answers, from 1; 0: not answered
	Marks    []frozenMark
}

type frozenMark struct {
	Slot   uint8
	Stream uint64
	Until  time.Duration
}

type frozenSlot struct {
	Slot     uint8
	Stream   uint64
	Attached time.Duration
}

// Freeze returns the state. Frames that were not taken are not part of it: a hand-over looks like a break of every slot, so
// all of them are said again.
func (s *Services) Freeze() (f Frozen) {
	f.Last = s.last
	for _, id := range s.IDs() {
		f.Offered = append(f.Offered, s.offered[id].freeze())
	}
	for _, c := range s.links {
		f.Links = append(f.Links, c.freeze())
	}
	return f
}

func (svc *Offered) freeze() frozenService {
	return frozenService{svc.ID, svc.Public.String(), svc.Target.String(), svc.Options}
}

func (c *Link) freeze() (f frozenClaims) {
	for id, k := range c.known {
		f.Known = append(f.Known, frozenClaim{id, k.said, k.Pending, k.Proven, k.State, k.Public.String(), k.Reason, k.Drained, k.Answers, k.Probe})
	}
	slices.SortFunc(f.Known, func(a, b frozenClaim) int { return cmp.Compare(a.ID, b.ID) })
	for _, r := range c.retired {
		fr := frozenRetired{Service: r.Offered.freeze(), Served: r.public.String(), Answered: slices.Index(c.answered, r) + 1}
		for _, m := range r.marks {
			fr.Marks = append(fr.Marks, frozenMark{m.slot, m.stream, m.until})
		}
		f.Retired = append(f.Retired, fr)
	}
	slices.SortFunc(f.Retired, func(a, b frozenRetired) int {
		return cmp.Or(cmp.Compare(a.Answered, b.Answered), cmp.Compare(a.Service.ID, b.Service.ID))
	})
	for slot, at := range c.slots {
		f.Slots = append(f.Slots, frozenSlot{slot, at.stream, at.attached})
	}
	slices.SortFunc(f.Slots, func(a, b frozenSlot) int { return cmp.Compare(a.Slot, b.Slot) })
	return f
}

// Links returns the links in the order of AddLink.
func (s *Services) Links() []*Link { return s.links }

// Thaw is the reverse of freeze. Every link is without a control connection.
func Thaw(f Frozen) (*Services, error) {
	s := New()
	s.last = f.Last
	for _, fs := range f.Offered {
		svc, err := fs.thaw()
		if err != nil {
			return nil, err
		}
		s.offered[svc.ID], s.byName[svc.Public] = svc, svc
	}
	for _, fc := range f.Links {
		c := s.AddLink()
		for _, k := range fc.Known {
			if c.known[k.ID] == nil {
				return nil, fmt.Errorf("a claim of service %d, which is not offered", k.ID)
			}
			pub, err := grammar.ParsePublic(k.Public)
			if err != nil {
				return nil, err
			}
			c.known[k.ID] = &Claim{k.Said, k.Pending, k.State, pub, k.Reason, k.Drained, k.Answers, k.Proven, k.Probe}
		}
		for _, fr := range fc.Retired {
			svc, err := fr.Service.thaw()
			if err != nil {
				return nil, err
			}
			pub, err := grammar.ParsePublic(fr.Served)
			if err != nil {
				return nil, err
			}
			r := &retired{Offered: svc, public: pub, answered: fr.Answered > 0}
			for _, m := range fr.Marks {
				r.marks = append(r.marks, mark{m.Slot, m.Stream, m.Until})
			}
			c.retired[svc.ID] = r
			if r.answered {
				c.answered = append(c.answered, r)
			}
		}
		for _, at := range fc.Slots {
			c.slots[at.Slot] = slotTime{stream: at.Stream, attached: at.Attached}
		}
		c.drop()
	}
	return s, nil
}

func (fs frozenService) thaw() (*Offered, error) {
	pub, err := grammar.ParsePublic(fs.Public)
	if err != nil {
		return nil, err
	}
	target, err := grammar.ParseTarget(fs.Target)
	if err != nil {
		return nil, err
	}
	said, err := fs.Options.Proxy.Encode()
	if err != nil {
		return nil, err
	}
	return &Offered{fs.ID, Service{Public: pub, Target: target, Options: fs.Options}, said}, nil
}
