package link

import "bytes"

// handOver lets another process go on in the place of one: all that it gets is documents. To the other end this looks like a break of
// the connection.
func (w *sim) handOver() {
	e := w.pick("process to hand over", 2)
	old := w.procs[e]
	w.trace("the process of the %s is handed over", endNames[e])
	w.stats.handedOver++
	if e == atBridge && !old.begun {
		w.loseUnanswered()
	}
	for _, k := range w.conns {
		k.ends[e].leak = nil // no frame crosses this fence
		if k.ends[e].open {
			w.lose(k, e, "it is handed over")
		}
	}
	p := &process{end: e, budget: NewBudget(old.budget.pool.size).share([16]byte{1}), sid: old.sid, begun: old.begun, last: old.last, opened: old.opened, socks: map[*streamCore]*sock{}}
	w.procs[e] = p
	old.budget.pool.used.Add(-old.squeezed)
	before := old.budget.total() // what was lent is not lent any more

	finished := old.finished()
	doc := freezeFinished(nil, finished, w.now)
	thawed, err := thawFinished(doc, w.now, p.budget)
	if err != nil || len(thawed) != len(finished) {
		w.fail("the %d streams that still deliver: %d, %v", len(finished), len(thawed), err)
		return
	}
	if again := freezeFinished(nil, thawed, w.now); !bytes.Equal(doc, again) {
		w.fail("C11: the streams that still deliver are not what they were")
	}
	w.stats.finished += len(finished)
	for i, s := range finished {
		p.takeOver(old.socks[&s.streamCore], &thawed[i].streamCore, nil)
	}
	if old.core != nil && (e == atProxy || old.begun) {
		w.handOverCore(old, p)
	} else if e == atBridge {
		w.newSession() // nobody knows of the old one
	}
	if after := p.budget.pool.Used(); w.err == nil && after != before {
		w.fail("C11: the %s is charged %d bytes after it was handed over, and was charged %d before", endNames[e], after, before)
	}
}

func (w *sim) handOverCore(old, p *process) {
	var err error
	var thawed []*Stream
	doc, streams := old.core.freeze(nil, w.now)
	p.core, thawed, err = thawCore(doc, w.now, p.budget)
	if err != nil || len(thawed) != len(streams) {
		w.fail("the slot of the %s with %d streams: %d, %v", endNames[p.end], len(streams), len(thawed), err)
		return
	}
	if again, _ := p.core.freeze(nil, w.now); !bytes.Equal(doc, again) {
		w.fail("C11: the slot of the %s is not what it was", endNames[p.end])
	}
	w.stats.carried += len(streams)
	for i, s := range streams {
		if k := old.socks[&s.streamCore]; k != nil {
			p.takeOver(k, &thawed[i].streamCore, p.core)
		}
	}
}

// finished returns the streams that have a socket and that the core has forgotten, in the order of their pairs.
func (p *process) finished() (streams []*Stream) {
	for _, k := range p.sorted() {
		if k.s.forgotten {
			streams = append(streams, k.s.whole)
		}
	}
	return streams
}

// takeOver gives the socket to a new process, with its stream there. A stream that no core has needs one for its budget only.
func (p *process) takeOver(k *sock, s *streamCore, c *core) {
	if c == nil {
		c = newCore(p.end == atBridge, 1, p.budget)
	}
	k.proc, k.core, k.s = p, c, s
	p.socks[s] = k
}
