package proxy

import (
	"container/list"
	"net/netip"
	"slices"
	"time"

	"reverser/internal/share"
	"reverser/internal/traffic"
)

// How long an address counts as known after a bridge was last connected from it, or a user reached a service, and how many a gate remembers.
const (
	rememberAddress = 24 * time.Hour
	mostKnown       = 32_768
)

// Known is an address, or a customer's network in IPv6, that a bridge was connected from, or a user who reached a service by its name.
type Known struct {
	Block netip.Prefix
	Last  time.Time
}

// saveFirst is how soon what a proxy learns is saved for its next start, and saveKnown how often from then on: after a crash those who came
// since are strangers. saveAgain is how long after a save that failed the next one is tried.
const (
	saveFirst = 10 * time.Second
	saveKnown = time.Minute
	saveAgain = 10 * time.Minute
)

// keepKnown saves what is known now and then.
func (p *Proxy) keepKnown() {
	next := time.NewTimer(saveFirst)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			wait := saveKnown
			if !p.saveKnown() {
				wait = saveAgain
			}
			p.forgetInspected()
			next.Reset(wait)
		case <-p.life.drain:
			return
		case <-p.life.ctx.Done():
			return
		}
	}
}

// seeConnected notes where the bridges are that are connected now. A link may live for weeks without a new connection.
func (p *Proxy) seeConnected() {
	if p.port.host == nil {
		return
	}
	g := p.port.gate
	for _, l := range p.port.host.Links() {
		if a := l.RemoteAddr(); a != nil {
			g.mu.Lock()
			g.room.known.add(traffic.AddrPort(a).Addr(), time.Now())
			g.mu.Unlock()
		}
	}
}

// saveKnown saves what is known, if there is news; false: that failed. Where users come from is a list of its own, since it earns them no place
// at the link port. It is one list for all ports of names: who reached a service at one is no stranger at another.
func (p *Proxy) saveKnown() bool {
	p.seeConnected()
	bridges, users := saveNews(p.cfg.SaveKnown, p.port.gate), saveNews(p.cfg.SaveKnownUsers, p.namesGates()...)
	if bridges != nil {
		p.log.Warn("the addresses that bridges come from could not be saved: strangers may delay them after a restart", "err", bridges)
	}
	if users != nil {
		p.log.Warn("the addresses that users come from could not be saved: after a restart they are held to the rate of strangers until they have reached a service again", "err", users)
	}
	return bridges == nil && users == nil
}

// namesGates are those of the ports at which users reach services by name, as far as there are any.
func (p *Proxy) namesGates() (list []*gate) {
	for _, g := range []*gate{p.names.gate, p.web.gate} {
		if g != nil {
			list = append(list, g)
		}
	}
	return list
}

// saveNews saves what gates know together if one of them has news.
func saveNews(save func([]Known) error, gates ...*gate) error {
	if save == nil {
		return nil
	}
	var list []Known
	news := false
	for _, g := range gates {
		g.mu.Lock()
		news = news || g.room.known.news
		g.mu.Unlock()
	}
	if !news {
		return nil
	}
	for _, g := range gates {
		g.mu.Lock()
		list = append(list, g.room.known.all()...)
		g.room.known.news = false
		g.mu.Unlock()
	}
	err := save(latest(list))
	if err != nil {
		for _, g := range gates {
			g.mu.Lock()
			g.room.known.news = true
			g.mu.Unlock()
		}
	}
	return err
}

// latest sorts a list, what was longest ago first, and leaves of an address the last time.
func latest(list []Known) []Known {
	slices.SortStableFunc(list, func(a, b Known) int { return b.Last.Compare(a.Last) })
	seen := make(map[netip.Prefix]bool, len(list))
	list = slices.DeleteFunc(list, func(k Known) bool {
		again := seen[k.Block]
		seen[k.Block] = true
		return again
	})
	slices.Reverse(list)
	return list
}

// known remembers where bridges come from, or users who reached a service.
type known struct {
	most   int
	blocks recent[netip.Prefix, seen]
	news   bool // since it was saved
}

// seen is when somebody was last connected from an address.
type seen struct {
	at    time.Time
	saved time.Time // what all returned last; zero: nothing
}

func (k *known) has(a netip.Addr, now time.Time) bool {
	s, ok := k.blocks.get(share.Block(a))
	return ok && now.Sub(s.at) <= rememberAddress
}

// worthSaving is how old the saved time of an address gets before a newer one is worth a write.
const worthSaving = time.Hour

func (k *known) add(a netip.Addr, now time.Time) {
	block := share.Block(a)
	s, _ := k.blocks.get(block)
	s.at = now
	k.blocks.put(block, s, k.most)
	k.news = k.news || now.Sub(s.saved) >= worthSaving
}

// load takes over what another process knew.
func (k *known) load(list []Known, now time.Time) {
	for _, e := range list {
		if at := e.Last; !at.After(now.Add(time.Minute)) && now.Sub(at) <= rememberAddress {
			k.blocks.put(e.Block, seen{at: at, saved: at}, k.most)
		}
	}
}

// all returns what is known, what was longest ago first, to be saved.
func (k *known) all() (list []Known) {
	for e := k.blocks.order.Front(); e != nil; e = e.Next() {
		en := e.Value.(*entry[netip.Prefix, seen])
		en.value.saved = en.value.at
		list = append(list, Known{en.key, en.value.at})
	}
	return list
}

// recent is a map that is bounded: what was put least recently is forgotten.
type recent[K comparable, V any] struct {
	at    map[K]*list.Element
	order list.List // of *entry, what was put last at the end
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

func (r *recent[K, V]) get(k K) (v V, ok bool) {
	if e := r.at[k]; e != nil {
		return e.Value.(*entry[K, V]).value, true
	}
	return v, false
}

// ref returns where the value of k is; nil: nowhere. It is valid until the next put.
func (r *recent[K, V]) ref(k K) *V {
	if e := r.at[k]; e != nil {
		return &e.Value.(*entry[K, V]).value
	}
	return nil
}

func (r *recent[K, V]) put(k K, v V, most int) {
	if e := r.at[k]; e != nil {
		e.Value.(*entry[K, V]).value = v
		r.order.MoveToBack(e)
		return
	}
	if r.at == nil {
		r.at = make(map[K]*list.Element)
	}
	if r.order.Len() >= most {
		oldest := r.order.Front()
		delete(r.at, oldest.Value.(*entry[K, V]).key)
		r.order.Remove(oldest)
	}
	r.at[k] = r.order.PushBack(&entry[K, V]{k, v})
}
