package link

import (
	"bytes"
	"cmp"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"math"
	"slices"
	"time"

	"reverser/internal/wire"
)

// The network of the simulated world, and what the shell does around a core: it dials, reads whole frames, and tells the
// core of connections that ended.

// dial does what Dialer.attach does up to the point where it waits for the answer.
func (w *sim) dial() {
	b := w.procs[atBridge]
	if !b.begun && b.core.gen > 0 {
		// A session that nobody answered is given up for another one. What was under way for it is lost here: NEW carries
		// no order, and a proxy waits for an ATTACH no longer than the bridge does for its answer.
		w.loseUnanswered()
		w.newSession()
	}
	b.core.negotiate(wire.FeatureDialOpens)
	gen, raw, _ := b.core.dial()
	w.serial++
	k := &conn{id: w.serial, gen: gen, sid: b.sid}
	if w.lying && len(raw) > 0 && w.pick("lie", 3) == 0 {
		k.ends[atBridge].lie = w.falsify(raw, atProxy)
	}
	a := wire.Attach{
		Mode: wire.ModeResume, Slot: 1, Session: b.sid, Streams: uint32(len(raw) / wire.StreamStateLen),
		TableCRC: crc32.Checksum(raw, castagnoli), Window: floorWindow, MaxStreams: MaxStreams,
	}
	if !b.begun {
		a.Mode, a.Slot = wire.ModeNew, 0
	}
	k.hail = wire.AppendTable(wire.AppendAttach(nil, gen, a), raw)
	k.dir[atProxy].buf = slices.Clone(k.hail)
	k.ends[atProxy].open, k.ends[atBridge].open = true, true
	w.trace("the bridge dials connection %d, generation %d, %d streams", k.id, gen, a.Streams)
	w.fenceOthers(atBridge, k)
	w.conns = append(w.conns, k)
	b.newest = k
	w.leakAtOnce(atBridge)
}

// fenceOthers closes what the core does not take for current, as the shell does.
func (w *sim) fenceOthers(e int, keep *conn) {
	p := w.procs[e]
	for _, k := range w.conns {
		end := &k.ends[e]
		if k == keep || !end.open || e == atProxy && !end.attached {
			continue
		}
		if k.sid == p.sid && p.core.current(k.gen) {
			continue
		}
		w.keepLeak(k, e)
		w.shut(k, e)
	}
	w.conns = slices.DeleteFunc(w.conns, func(k *conn) bool {
		return !k.ends[0].open && !k.ends[1].open && len(k.ends[0].leak)+len(k.ends[1].leak) == 0 && w.serial-k.id > 3
	})
}

// keepLeak remembers what a leaky fence of the connection lets through.
func (w *sim) keepLeak(k *conn, e int) {
	end := &k.ends[e]
	if !w.leaky || !end.attached || k.sid != w.procs[e].sid {
		return
	}
	end.leak = slices.Concat(end.in, k.dir[e].buf)
}

// getAhead lets an end take more, and its sockets read it, so that it grants more than its ACKs on their way say, which may leak.
func (w *sim) getAhead(k *conn, e int) {
	for _, x := range w.procs[1-e].sorted() {
		if x.mayWrite() {
			w.writeSock(x, 20_000)
		}
	}
	for _, from := range []int{e, 1 - e} {
		if k.ends[from].open && k.ends[from].attached && w.carries(k, from) {
			w.fill(k, from, 60_000)
		}
	}
	if f := &k.dir[e]; k.ends[e].open && k.ends[e].attached && !f.mute && len(f.buf) > 0 {
		w.take(k, e, len(f.buf))
	}
	for _, x := range w.procs[e].sorted() {
		if x.wait > 0 && !x.over() {
			w.readSock(x, x.wait)
		}
	}
}

func (w *sim) loseUnanswered() {
	for _, k := range w.conns {
		if k.sid == w.procs[atBridge].sid && k.ends[atBridge].open {
			w.cutAt(k, 0, 0)
			w.shut(k, atBridge)
		}
	}
}

// falsify changes one entry of a table that end victim will apply, to what its peer cannot have.
func (w *sim) falsify(raw []byte, victim int) uint64 {
	table, err := wire.ParseTable(raw, wire.StreamStateLen)
	c := w.procs[victim].core
	if err != nil || c == nil || w.procs[0].sid != w.procs[1].sid {
		return 0
	}
	i := w.pick("entry", len(table))
	s := c.streams[table[i].Stream]
	if s == nil {
		return 0
	}
	if below := w.pick("below", 2) == 0; below && s.send.una > 0 {
		table[i].RcvNxt = s.send.una - 1
	} else {
		table[i].RcvNxt = s.send.max + 1 + uint64(w.pick("beyond", 100_000))
		if s.send.max == 0 {
			return 0 // it may still come to send so much
		}
		table[i].RcvNxt += 1 << 32
	}
	w.stats.lies++
	w.trace("the table lies about stream %d: %d", s.id, table[i].RcvNxt)
	copy(raw[i*wire.StreamStateLen:], wire.AppendStreamState(nil, table[i]))
	return s.id
}

// shut closes an end. What it sent may still arrive at the other one.
func (w *sim) shut(k *conn, e int) {
	k.ends[e].open = false
	k.ends[e].in = nil
	k.dir[e] = flow{cut: true}
	k.dir[1-e].cut = true
}

// lose is what an end does when its connection broke, or seems to have.
func (w *sim) lose(k *conn, e int, why string) {
	p := w.procs[e]
	w.trace("the %s loses connection %d: %s", endNames[e], k.id, why)
	if p.core != nil && k.sid == p.sid && k.ends[e].attached {
		p.core.lost(k.gen)
	}
	w.shut(k, e)
}

func (w *sim) cutAt(k *conn, p, b int) {
	for e, n := range [2]int{p, b} {
		f := &k.dir[e]
		f.cut = true
		f.buf = f.buf[:min(n, len(f.buf))]
	}
}

func (w *sim) pickConn(what string, ok func(*conn) bool) *conn {
	var fit []*conn
	for _, k := range w.conns {
		if ok(k) {
			fit = append(fit, k)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	return fit[w.pick(what, len(fit))]
}

func (w *sim) cut() {
	k := w.pickConn("connection to cut", func(k *conn) bool { return !k.dir[0].cut || !k.dir[1].cut })
	if k == nil {
		return
	}
	left := [2]int{}
	for e := range left {
		if n := len(k.dir[e].buf); n > 0 {
			left[e] = w.pick("bytes that still arrive", n+1)
		}
	}
	w.trace("connection %d is cut; %d bytes still reach the proxy, %d the bridge", k.id, left[0], left[1])
	w.cutAt(k, left[0], left[1])
}

func (w *sim) mute() {
	if k := w.pickConn("connection to silence", func(k *conn) bool { return true }); k != nil {
		f := &k.dir[w.pick("direction", 2)]
		f.mute = !f.mute
	}
}

// giveUp is a time-out, spurious or not.
func (w *sim) giveUp() {
	e := w.pick("end", 2)
	k := w.pickConn("connection to give up", func(k *conn) bool { return k.ends[e].open })
	if k == nil {
		return
	}
	if e == atBridge && !w.procs[e].begun {
		w.cutAt(k, 0, 0) // see dial
	}
	w.keepLeak(k, e)
	w.lose(k, e, "a time-out")
}

// lateEnd brings the end of an old connection after a new one took its place.
func (w *sim) lateEnd() {
	e := w.pick("end", 2)
	p := w.procs[e]
	k := w.pickConn("old connection", func(k *conn) bool {
		return !k.ends[e].open && k.ends[e].attached && k.sid == p.sid && k != p.newest
	})
	if k == nil || p.core == nil {
		return
	}
	was := p.core.bound
	if p.core.lost(k.gen); p.core.bound != was {
		w.fail("I9: the end of the old connection %d ended that of generation %d at the %s", k.id, was, endNames[e])
	}
}

func (w *sim) redial() {
	b := w.procs[atBridge]
	busy := b.newest != nil && b.newest.ends[atBridge].open
	often := 8
	if w.leaky { // what an old connection still holds is all that can leak
		often = 2
	}
	if !busy || w.pick("dial beside the old one", often) == 1 {
		if busy && w.leaky {
			w.getAhead(b.newest, w.pick("who gets ahead", 2))
		}
		w.dial()
	}
}

// replay brings an ATTACH a second time.
func (w *sim) replay() {
	old := w.pickConn("ATTACH to repeat", func(k *conn) bool { return k.hail[wire.HeaderLen] != byte(wire.ModeNew) })
	if old == nil {
		return
	}
	w.serial++
	k := &conn{id: w.serial, gen: old.gen, sid: old.sid, hail: old.hail}
	k.dir[atProxy] = flow{buf: slices.Clone(old.hail), cut: true}
	k.ends[atProxy].open = true
	k.ends[atBridge].lie = old.ends[atBridge].lie
	w.conns = append(w.conns, k)
	w.trace("the ATTACH of connection %d comes again as connection %d", old.id, k.id)
}

func (w *sim) deliver() {
	if w.leaky && w.pick("leak first", 4) == 0 {
		w.leak()
	}
	e := w.pick("direction", 2)
	k := w.pickConn("connection", func(k *conn) bool {
		f := &k.dir[e]
		return k.ends[e].open && !f.mute && (len(f.buf) > 0 || f.cut)
	})
	if k == nil {
		return
	}
	f := &k.dir[e]
	if len(f.buf) == 0 {
		w.lose(k, e, "end of file")
		return
	}
	n := len(f.buf)
	switch w.pick("how much", 4) {
	case 1:
		n = min(n, 1+w.pick("bytes", 64))
	case 2:
		n = 1 + w.pick("bytes", n)
	}
	w.take(k, e, n)
}

// take lets n bytes arrive and applies the whole frames among them.
func (w *sim) take(k *conn, e, n int) {
	f, end := &k.dir[e], &k.ends[e]
	end.in = append(end.in, f.buf[:n]...)
	f.buf = f.buf[n:]
	for w.err == nil && end.open && len(end.in) > 0 {
		if !end.attached {
			if !w.greet(k, e) {
				return
			}
			continue
		}
		p := w.procs[e]
		if p.core == nil || k.sid != p.sid || !p.core.current(k.gen) {
			w.shut(k, e)
			return
		}
		f, n, err := wire.Parse(end.in)
		if err == wire.ErrTruncated {
			return
		}
		if err != nil {
			w.fail("the %s cannot read connection %d: %v", endNames[e], k.id, err)
			return
		}
		if k != p.newest {
			w.fail("I9: %s of the old connection %d reaches the %s", f.Type, k.id, endNames[e])
		}
		if f.Stream == 0 {
			w.applyLink(k, e, f)
		} else {
			w.apply(k, e, f)
		}
		if end.open {
			end.in = end.in[n:]
		}
	}
}

func (w *sim) apply(k *conn, e int, f wire.Frame) {
	p := w.procs[e]
	ev, err := p.core.receive(f, w.now)
	if err != nil {
		w.violated(k, e, err)
		return
	}
	w.handle(p, ev)
}

// handle does what slot.handle and Stream.deliver do.
func (w *sim) handle(p *process, ev event) {
	s := ev.stream
	k := p.socks[s]
	switch ev.kind {
	case evOpened:
		w.connect(p, s)
	case evData:
		w.arrive(k, ev.data)
	case evEnd:
		if k == nil {
			return // there was no room for it
		}
		k.coming, k.code = s.recv.end, s.recv.code
		if s.recv.abort {
			k.coming = wire.RST
		}
		w.tell(k)
	case evReset:
		if k != nil {
			if !w.corrupt && !k.pair.withdrawn {
				w.fail("%v was aborted without a reason", k)
			}
			w.abort(k, "told by the core")
		}
	}
}

func (w *sim) applyLink(k *conn, e int, f wire.Frame) {
	c := w.procs[e].core
	switch f.Type {
	case wire.TypePing:
		c.answer(f.Offset)
	case wire.TypePong:
		if rtt := w.now - time.Duration(f.Offset); c.pingsOut > 0 && rtt >= 0 {
			c.pingsOut--
			c.measured(rtt, w.now)
		}
	case wire.TypeErr:
		w.lose(k, e, "the peer gave it up")
	default:
		w.fail("%s on connection %d", f.Type, k.id)
	}
}

// violated is a protocol error: the session ends, and the peer finds out.
func (w *sim) violated(k *conn, e int, err error) {
	p, ok := errors.AsType[*violationError](err)
	if !ok || !p.fatal || p.code != wire.ErrResume || !w.lying {
		w.fail("the %s takes its honest peer for a liar: %v", endNames[e], err)
		return
	}
	if f := &k.dir[1-e]; !f.cut {
		f.buf = wire.AppendErr(f.buf, wire.Err{Code: p.code})
	}
	w.endSession(e, err.Error())
}

// greet reads ATTACH or ATTACHED with its table. It reports false when more bytes are needed.
func (w *sim) greet(k *conn, e int) bool {
	end := &k.ends[e]
	r := bytes.NewReader(end.in)
	buf := make([]byte, wire.HeaderLen+wire.MaxPayload)
	f, err := readFrame(r, buf)
	var table []wire.StreamState
	var a wire.Attach
	var at wire.Attached
	if err == nil && e == atProxy {
		if a, err = wire.ParseAttach(f); err == nil {
			_, table, err = readTable(r, a.Streams, a.TableCRC, a.Entry, make([]byte, len(buf)))
		}
	} else if err == nil {
		if f.Type == wire.TypeErr {
			w.lose(k, e, "the peer gave it up")
			return false
		}
		if at, err = wire.ParseAttached(f); err == nil {
			_, table, err = readTable(r, at.Streams, at.TableCRC, at.Entry, make([]byte, len(buf)))
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false
	}
	if err != nil {
		w.fail("connection %d begins with %s: %v", k.id, f.Type, err)
		return false
	}
	end.in = end.in[len(end.in)-r.Len():]
	if e == atProxy {
		w.attach(k, f.Offset, a, table)
	} else {
		w.attached(k, f.Offset, at, table)
	}
	return true
}

// attach does what Host.Serve and Link.accept do.
func (w *sim) attach(k *conn, gen uint64, a wire.Attach, table []wire.StreamState) {
	p := w.procs[atProxy]
	answer := func(at wire.Attached, table []byte) {
		if f := &k.dir[atBridge]; !f.cut {
			f.buf = wire.AppendTable(wire.AppendAttached(f.buf, gen, at), table)
		}
	}
	if a.Mode == wire.ModeNew {
		if p.core != nil {
			w.endSession(atProxy, "a new session replaces it")
		}
		p.sid, p.core, p.last = a.Session, w.newCore(atProxy), 0
		p.core.limits.credit = min(uint64(a.Window), 1<<30)
		w.stats.sessions++
	}
	if p.core == nil || a.Session != p.sid {
		answer(wire.Attached{Status: wire.StatusGone, Slot: a.Slot}, nil)
		w.shut(k, atProxy)
		return
	}
	lie := w.lieFor(atProxy, k.ends[atBridge].lie)
	raw, crc, events, err := p.core.accept(gen, wire.FeatureDialOpens, table)
	if r, refused := errors.AsType[*ownRefusal](err); refused {
		w.trace("the proxy refuses connection %d: %v", k.id, err)
		if gen > p.last && gen-p.last <= math.MaxUint32 {
			w.fail("generation %d after %d was refused", gen, p.last)
		}
		w.stats.stale++
		answer(wire.Attached{Status: r.status, Slot: a.Slot}, nil)
		w.shut(k, atProxy)
		return
	}
	if gen <= p.last {
		w.fail("I8: generation %d was accepted after %d", gen, p.last)
	}
	p.last, p.newest = gen, k
	k.ends[atProxy].attached = true
	if err != nil {
		w.violated(k, atProxy, err)
		return
	}
	if lie {
		w.fail("the proxy accepted a position that the bridge cannot have")
	}
	w.trace("the proxy accepts connection %d, generation %d", k.id, gen)
	w.fenceOthers(atProxy, k)
	p.core.ping = true
	if w.lying && len(raw) > 0 && w.pick("lie", 3) == 0 {
		k.ends[atProxy].lie = w.falsify(raw, atBridge)
		crc = crc32.Checksum(raw, castagnoli)
	}
	answer(wire.Attached{
		Status: wire.StatusOK, Slot: a.Slot, Streams: uint32(len(raw) / wire.StreamStateLen), TableCRC: crc,
		Window: floorWindow, MaxStreams: MaxStreams,
	}, raw)
	for _, ev := range events {
		w.handle(p, ev)
	}
	w.checksAgreed(atProxy)
	w.leakAtOnce(atProxy)
}

// lieFor reports whether a lie about the stream must be noticed: nothing is checked of one that is over.
func (w *sim) lieFor(e int, id uint64) bool {
	c := w.procs[e].core
	return id != 0 && c.streams[id] != nil && !c.streams[id].send.dropped
}

// attached does what Dialer.attach does with the answer.
func (w *sim) attached(k *conn, gen uint64, at wire.Attached, table []wire.StreamState) {
	b := w.procs[atBridge]
	switch {
	case gen != k.gen || k.sid != b.sid:
		w.fail("the answer for generation %d on connection %d of generation %d", gen, k.id, k.gen)
		return
	case at.Status == wire.StatusStale:
		w.lose(k, atBridge, "stale")
		return
	case at.Status != wire.StatusOK:
		w.endSession(atBridge, "the proxy says "+at.Status.String())
		return
	}
	if !b.begun {
		b.core.limits.credit = min(uint64(at.Window), 1<<30)
	}
	lie := w.lieFor(atBridge, k.ends[atProxy].lie)
	events, err := b.core.resumed(gen, table)
	if err == errFenced {
		w.lose(k, atBridge, "overtaken")
		return
	}
	if err != nil {
		w.violated(k, atBridge, err)
		return
	}
	if lie {
		w.fail("the bridge accepted a position that the proxy cannot have")
	}
	w.trace("the bridge goes on with connection %d", k.id)
	w.stats.resumes++
	k.ends[atBridge].attached = true
	b.begun = true
	b.core.ping = true
	w.fenceOthers(atBridge, k)
	for _, ev := range events {
		w.handle(b, ev)
	}
	w.checksAgreed(atBridge)
	w.leakAtOnce(atBridge)
}

// flush does what the writer of the current connection does.
func (w *sim) flush(e int) {
	k := w.pickConn("connection to write to", func(k *conn) bool {
		return k.ends[e].open && k.ends[e].attached && len(k.dir[1-e].buf) < 256<<10 && w.carries(k, e)
	})
	if k != nil {
		w.fill(k, e, []int{100, 2000, 60_000}[w.pick("batch", 3)])
	}
}

// exchange lets everything arrive that is under way, and both ends say what they have to say.
func (w *sim) exchange() {
	w.now += 2 * ackDelay
	for _, k := range slices.Clone(w.conns) {
		for e := range k.ends {
			f, end := &k.dir[e], &k.ends[e]
			for end.open && len(f.buf) > 0 && !f.mute && w.err == nil {
				w.take(k, e, len(f.buf))
			}
			if end.open && f.cut && !f.mute {
				w.lose(k, e, "end of file")
			}
		}
	}
	for e := range w.procs {
		for _, k := range slices.Clone(w.conns) {
			if k.ends[e].open && k.ends[e].attached && w.carries(k, e) {
				w.fill(k, e, 1<<20)
			}
		}
	}
}

func (w *sim) carries(k *conn, e int) bool {
	p := w.procs[e]
	return p.core != nil && k.sid == p.sid && p.core.current(k.gen)
}

func (w *sim) fill(k *conn, e, limit int) {
	b := w.procs[e].core.bytes(nil, limit, w.now)
	if len(b) == 0 {
		return
	}
	w.traceFrames(k, e, b)
	if w.corrupt {
		w.flip(b)
	}
	if f := &k.dir[1-e]; !f.cut {
		f.buf = append(f.buf, b...)
	}
}

func (w *sim) traceFrames(k *conn, e int, b []byte) {
	for len(b) > 0 {
		f, n, err := wire.Parse(b)
		if err != nil {
			w.fail("the %s writes what nobody can read: %v", endNames[e], err)
			return
		}
		w.trace("the %s writes %s of stream %d, offset %d, %d bytes, to connection %d",
			endNames[e], f.Type, f.Stream, f.Offset, len(f.Payload), k.id)
		b = b[n:]
	}
}

// flip changes a byte of a payload now and then.
func (w *sim) flip(b []byte) {
	for len(b) > 0 {
		f, n, _ := wire.Parse(b)
		if f.Type == wire.TypeData && w.pick("flip", 12) == 1 {
			f.Payload[w.pick("at", len(f.Payload))] ^= 0x40
			w.stats.wrong++
		}
		b = b[n:]
	}
}

// leak lets a few frames through a fence.
func (w *sim) leak() {
	e := w.pick("end", 2)
	k := w.pickConn("old connection", func(k *conn) bool { return len(k.ends[e].leak) > 0 })
	if k == nil {
		return
	}
	for n := 1 + w.pick("frames", 6); n > 0 && len(k.ends[e].leak) > 0 && w.err == nil; n-- {
		w.leakFrame(k, e)
	}
}

// leakAtOnce lets frames through behind the table that an end has just made: this is where they could do harm.
func (w *sim) leakAtOnce(e int) {
	if !w.leaky || w.pick("leak at once", 2) == 0 {
		return
	}
	for _, k := range w.conns {
		for len(k.ends[e].leak) > 0 && w.err == nil {
			w.leakFrame(k, e)
		}
	}
}

func (w *sim) leakFrame(k *conn, e int) {
	p, end := w.procs[e], &k.ends[e]
	f, n, err := wire.Parse(end.leak)
	if err != nil || p.core == nil || p.sid != k.sid {
		end.leak = nil
		return
	}
	end.leak = end.leak[n:]
	if f.Type == wire.TypeForget || p.core.streams[f.Stream] == nil || end.missed[f.Stream] {
		if end.missed == nil {
			end.missed = map[uint64]bool{}
		}
		end.missed[f.Stream] = true
		return
	}
	if f.Type != wire.TypeData && f.Type != wire.TypeAck && f.Type != wire.TypeEnd {
		return
	}
	w.trace("%s of stream %d at %d leaks from connection %d into the %s", f.Type, f.Stream, f.Offset, k.id, endNames[e])
	w.stats.leaks++
	w.apply(k, e, f)
}

// ---- The ends of sessions and processes.

// sorted returns the sockets in the order of their pairs: a schedule has no room for chance.
func (p *process) sorted() []*sock {
	return slices.SortedFunc(maps.Values(p.socks), func(a, b *sock) int { return cmp.Compare(a.pair.n, b.pair.n) })
}

// endSession does what Link.Kill does.
func (w *sim) endSession(e int, why string) {
	p := w.procs[e]
	w.trace("the %s ends the session: %s", endNames[e], why)
	p.core.fence()
	for _, k := range p.sorted() {
		k.pair.died = true
		if !k.s.forgotten {
			w.abort(k, why)
		}
	}
	for _, s := range p.core.sorted() {
		p.core.remove(s)
	}
	sid := p.sid
	p.core, p.sid = nil, [16]byte{}
	for _, k := range w.conns {
		if k.sid == sid && k.ends[e].open && (e == atBridge || k.ends[e].attached) {
			w.shut(k, e)
		}
	}
	if e == atBridge {
		w.newSession()
	}
}

func (w *sim) crash() {
	if w.pick("crash after all", 4) != 1 {
		return
	}
	e := w.pick("process", 2)
	w.trace("the process of the %s dies", endNames[e])
	p := w.procs[e]
	for _, k := range p.sorted() {
		k.pair.died = true
		w.abort(k, "its process died")
	}
	if e == atBridge && !p.begun {
		w.loseUnanswered()
	}
	for _, k := range w.conns {
		if k.ends[e].open {
			w.shut(k, e)
		}
	}
	w.start(e)
}
