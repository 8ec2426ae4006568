package link

import (
	"slices"

	"reverser/internal/wire"
)

// check looks at what must hold after every step. docs/ARCHITECTURE.md, "The proof of the core", explains the names.
func (w *sim) check() {
	for e, p := range w.procs {
		if p.core == nil {
			w.checkBudget(p)
			continue
		}
		var peer *core
		if o := w.procs[1-e]; o.sid == p.sid {
			peer = o.core
		}
		for _, s := range p.core.sorted() {
			w.checkSend(p, s, peer)
			w.checkRecv(p, s)
			if w.err != nil {
				return
			}
		}
		w.checkNumbers(p)
		w.checkBudget(p)
	}
	w.live = slices.DeleteFunc(w.live, (*pair).over)
}

func (w *sim) checkSend(p *process, s *streamCore, peer *core) {
	h, name := &s.send, endNames[p.end]
	held := uint64(0)
	for c := h.q.head; c != nil; c = c.next {
		held += uint64(c.n)
	}
	switch {
	case h.dropped:
		if held != 0 {
			w.fail("the %s holds %d bytes of stream %d that nobody wants", name, held, s.id)
		}
		return
	case h.una > h.nxt || h.nxt > h.max || h.max > h.total():
		w.fail("I2: stream %d at the %s: una %d, nxt %d, max %d, total %d", s.id, name, h.una, h.nxt, h.max, h.total())
	case h.q.base > min(h.una, h.q.end) || h.q.base+held != h.q.end:
		w.fail("I3: stream %d at the %s holds [%d,%d), acknowledged is %d", s.id, name, h.q.base, h.q.base+held, h.una)
	case h.q.end > h.credit && h.end != wire.RST || h.max > h.credit+2:
		w.fail("stream %d at the %s holds %d bytes, granted are %d", s.id, name, h.q.end, h.credit)
	case p.core.bound != 0 && s.openSent && h.pending() && !p.core.fresh.holds(s):
		w.fail("I11: stream %d at the %s has something to say and is not asked", s.id, name)
	case p.core.bound != 0 && !s.openSent && !p.core.opens.holds(s):
		w.fail("I11: stream %d will never be opened", s.id)
	}
	if k := p.socks[s]; k != nil {
		if h.una < k.una || h.credit < k.credit {
			w.fail("%v: acknowledged goes from %d to %d, credit from %d to %d", k, k.una, h.una, k.credit, h.credit)
		}
		k.una, k.credit = h.una, h.credit
	}
	if peer == nil {
		return
	}
	w.checkOpener(p, s, peer)
	if peer.streams[s.id] == nil {
		return
	}
	r := &peer.streams[s.id].recv
	switch {
	case h.una > r.acked() || r.acked() > h.max:
		w.fail("I2: stream %d at the %s: acknowledged %d of %d sent, and the peer has %d", s.id, name, h.una, h.max, r.acked())
	case h.credit > r.granted:
		w.fail("stream %d at the %s believes in %d bytes of credit, granted are %d", s.id, name, h.credit, r.granted)
	}
}

// checkOpener looks at the life of an id (I15), whose rules are the same for either opener.
func (w *sim) checkOpener(p *process, s *streamCore, peer *core) {
	name := endNames[p.end]
	switch own := p.core.mine(s.id); {
	case own != p.opened[s.id]:
		w.fail("I15: the %s takes stream %s for one of its own: %v", name, idName(s.id), own)
	case own && peer.ids.seen >= s.id && peer.streams[s.id] == nil:
		w.fail("I15: the %s has stream %s still, and the other end forgot it", name, idName(s.id))
	case !own && s.id > p.core.ids.seen:
		w.fail("I15: the %s has stream %s, and has seen no OPEN of it", name, idName(s.id))
	case !own && s.id >= peer.ids.next:
		w.fail("I15: the %s has stream %s, which was never opened", name, idName(s.id))
	}
}

// checkNumbers compares what an end counts with the streams that it has.
func (w *sim) checkNumbers(p *process) {
	own := 0
	for id := range p.core.streams {
		if p.opened[id] {
			own++
		}
	}
	if n := p.core.ids; n.own != own || n.others != len(p.core.streams)-own {
		w.fail("I15: the %s counts %d streams of its own and %d of the other end, and has %d and %d", endNames[p.end],
			n.own, n.others, own, len(p.core.streams)-own)
	}
}

func (w *sim) checkRecv(p *process, s *streamCore) {
	r, name := &s.recv, endNames[p.end]
	switch k := p.socks[s]; {
	case r.consumed > r.nxt || r.nxt > r.granted:
		w.fail("stream %d at the %s: consumed %d, received %d, granted %d", s.id, name, r.consumed, r.nxt, r.granted)
	case r.end == 0 && !r.discard && r.granted-r.consumed > floorWindow+uint64(r.charged):
		w.fail("I4: stream %d at the %s has %d bytes of credit out and %d charged", s.id, name, r.granted-r.consumed, r.charged)
	case k != nil && !r.discard && k.got != r.nxt:
		w.fail("I1: stream %d at the %s: %d bytes in custody, %d handed over", s.id, name, r.nxt, k.got)
	}
}

// checkBudget compares what is charged with what is held, by streams that are forgotten and still deliver too.
func (w *sim) checkBudget(p *process) {
	charged, wantLent, recv := p.squeezed, int64(0), int64(0)
	count := func(s *streamCore) {
		charged += s.recv.charged + s.send.charged
		wantLent += s.recv.lent
		recv += s.recv.charged
		if s.recv.lent != 0 && p.core != nil && p.core.bound != 0 || s.recv.lent > s.recv.charged {
			w.fail("I4: the %s lent %d bytes of stream %d, charged %d", endNames[p.end], s.recv.lent, s.id, s.recv.charged)
		}
	}
	for s, k := range p.socks {
		count(s)
		if int64(k.wait) > floorWindow+s.recv.charged {
			w.fail("I4: %v: %d bytes wait and %d are charged", k, k.wait, s.recv.charged)
		}
	}
	if p.core != nil {
		for _, s := range p.core.streams {
			if p.socks[s] == nil {
				count(s)
			}
		}
	}
	w.checkShare(p, shareSeen{true, recv, charged - p.squeezed - recv, p.squeezed, wantLent})
	b := p.budget
	if used, lent := b.pool.Used(), b.pool.lent.Load(); used+lent != charged || lent != wantLent {
		w.fail("I4: the %s is charged %d bytes and lent %d, its streams %d and %d", endNames[p.end], used, lent, charged, wantLent)
	}
	if b.total() != charged-p.squeezed || b.lent.Load() != wantLent {
		w.fail("I4: the share of the %s holds %d bytes, its streams %d", endNames[p.end], b.total(), charged-p.squeezed)
	}
}

// shareSeen is what a share held after a step.
type shareSeen struct {
	any                        bool
	recv, send, squeezed, lent int64
}

// checkShare (I4) says that whoever grants credit has at most half of what others leave. What is to be sent is charged when it is there.
func (w *sim) checkShare(p *process, now shareSeen) {
	was := p.seen
	p.seen = now
	granted := was.any && now.recv > was.recv && now.squeezed == was.squeezed && now.lent == 0 && was.lent == 0
	rest := p.budget.pool.size - p.budget.pool.Used()
	if granted && (rest-now.recv-now.send)/2+max(now.send-was.send, 0) < 0 {
		w.fail("I4: the %s granted credit, and holds %d bytes where others leave %d", endNames[p.end], now.recv+now.send, rest+now.recv+now.send)
	}
}

// checksAgreed (I14) says that an end which has just resumed found out about wrong bytes that its peer took.
func (w *sim) checksAgreed(e int) {
	if !w.corrupt {
		return
	}
	p := w.procs[e]
	for s, k := range p.socks {
		if x := k.peer(); x != nil && x.wrong && !x.dead && p.core.streams[s.id] == s && !s.send.dropped && !s.send.reset() {
			w.fail("I14: %v resumed, and did not notice that the other side has wrong bytes", k)
		}
	}
}

// drain lets the network stay up and everybody finish (I11), and then looks at what is left (I10).
func (w *sim) drain() {
	w.trace("the faults end")
	for _, p := range w.procs {
		p.budget.pool.used.Add(-p.squeezed)
		p.squeezed = 0
	}
	for round := 0; w.err == nil; round++ {
		for _, k := range w.conns {
			for e := range k.ends {
				if k.dir[e].mute && k.ends[e].open {
					w.lose(k, e, "nothing was heard")
				}
			}
		}
		w.exchange()
		if b := w.procs[atBridge]; b.newest == nil || !b.newest.ends[atBridge].open {
			w.dial()
		}
		for _, pr := range w.pairs {
			for _, k := range pr.socks {
				if k == nil || k.over() {
					continue
				}
				k.lazy = false
				if k.wait > 0 {
					w.readSock(k, k.wait)
				}
				if k.mayWrite() {
					w.finSock(k)
				}
			}
		}
		w.check()
		if w.quiet() {
			w.atRest()
			return
		}
		if round > 200 {
			w.fail("I11: after %d rounds: %d streams at the proxy, %d at the bridge, %d pairs", round,
				w.streams(atProxy), w.streams(atBridge), len(w.live))
		}
	}
}

func (w *sim) streams(e int) int {
	if c := w.procs[e].core; c != nil {
		return len(c.streams)
	}
	return 0
}

func (w *sim) quiet() bool {
	b := w.procs[atBridge]
	return b.begun && w.procs[atProxy].sid == b.sid && b.core.bound != 0 && w.procs[atProxy].core.bound == b.core.bound &&
		w.streams(0)+w.streams(1)+len(w.live) == 0
}

// atRest looks at a world in which nothing is under way any more.
func (w *sim) atRest() {
	for e, p := range w.procs {
		if n := p.budget.pool.Used(); n != 0 {
			for s, k := range p.socks {
				if c := s.recv.charged + s.send.charged; c != 0 {
					w.trace("%v: %d and %d bytes charged; %+v", k, s.send.charged, s.recv.charged, *k)
				}
			}
			w.fail("I10: %d bytes stay charged at the %s", n, endNames[e])
		}
		if c := p.core; c.opens.head != nil || c.bulk.head != nil && c.bulk.head.send.pending() {
			w.fail("I10: the %s still has something to say", endNames[e])
		}
		if c := p.core; c.ChecksumFails != 0 && !w.corrupt {
			w.fail("I14: %d checksums failed at the %s", c.ChecksumFails, endNames[e])
		}
	}
	for _, pr := range w.pairs {
		for _, k := range pr.socks {
			if k == nil {
				continue
			}
			w.stats.bytes += int(k.got)
			if !k.over() {
				w.fail("I11: %v has not ended", k)
			}
			y := k.peer()
			heard := y == nil || y.told == wire.RST || y.rst || y.closed || y.told == wire.FIN && y.fin
			if k.rst && !heard && !pr.died && !pr.withdrawn && !w.corrupt {
				w.fail("I6: %v was reset, and the other side was told nothing", k)
			}
		}
	}
}
