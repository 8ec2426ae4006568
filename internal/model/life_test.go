package model

import "testing"

// Frames of the life cycle model.
const (
	lOpen     = 1 + iota
	lEnd      // a: kind
	lAckEnd   //
	lForget   //
	lAttach   // a: generation, b: the bridge knows the stream (1) and there was one at all (2), c: the end it got
	lAttached // a: the proxy knows the stream, b: the end it got, c: there was a stream at all
)

// How a side ended.
const (
	open = iota
	fin
	rst
)

// half is what one end knows of the stream.
type half struct {
	known         bool
	own           uint8 // how its socket ended
	acked         bool  // the peer knows that
	got           uint8 // how the peer's socket ended
	told          uint8 // what its socket was told
	openSent      bool  // on this connection, as the next two
	endSent       bool
	ackSent       bool
	forgetPending bool
}

// lifeState is one user's connection from its OPEN to its FORGET, without data.
type lifeState struct {
	net   network
	came  bool // the user
	half  [2]half
	dials uint8 // of the service
}

// lifeModel has the ends of one stream, which either of them opens. The other fields name the rules that a variant breaks or adds.
type lifeModel struct {
	max               supply
	opener            int
	otherForgets      bool // the other end forgets a finished stream by itself
	unknownIsFinished bool // the opener takes a stream that the other end does not know for one that finished
	resetNotRetained  bool // the opener forgets a reset stream before the other end acknowledged the reset
	forgottenIsReset  bool // the other end resets a socket whose stream the opener forgot before it was finished
}

func (m *lifeModel) other() int { return 1 - m.opener }

func (m *lifeModel) begin() lifeState { return lifeState{} }

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

func (m *lifeModel) next(s lifeState, emit func(lifeState, label)) {
	add := func(t lifeState, l label) {
		m.collect(&t)
		emit(t, l)
	}
	if !s.came {
		t := s
		t.came, t.half[m.opener].known = true, true
		add(t, say("a user comes"))
	}
	for e := range 2 {
		m.ends(s, e, add)
		if k := int(s.net.cur[e]) - 1; s.net.ready[e] && k >= 0 {
			m.speak(s, e, k, add)
		}
	}
	if s.net.cur[B] == 0 {
		m.dial(s, add)
	}
	for k := range m.max.conns {
		for e := range 2 {
			if c := &s.net.conns[k]; c.open[e] && c.to[e].n > 0 {
				m.receive(s, e, k, add)
			}
		}
	}
	s.net.faults(m.max, func(n network, l label) {
		t := s
		t.net = n
		add(t, l)
	})
}

// ends lets the socket of e end.
func (m *lifeModel) ends(s lifeState, e int, add func(lifeState, label)) {
	if h := s.half[e]; !h.known || h.own != open || h.told == rst {
		return
	}
	for _, kind := range []uint8{fin, rst} {
		t := s
		t.half[e].own = kind
		add(t, say("the socket of end %d ends with %d (1 FIN, 2 RST)", e, int(kind)))
	}
}

// speak lets e write one frame.
func (m *lifeModel) speak(s lifeState, e, k int, add func(lifeState, label)) {
	try := func(f frame, mark func(*half), l label) {
		t := s
		if t.net.send(m.max, e, k, f) {
			mark(&t.half[e])
			add(t, l)
		}
	}
	h := s.half[e]
	if e == m.opener && h.known && !h.openSent {
		try(pack(lOpen, 0, 0, 0), func(h *half) { h.openSent = true }, say("the opener sends OPEN"))
	}
	if h.known && h.own != open && !h.acked && !h.endSent && (e != m.opener || h.openSent) {
		try(pack(lEnd, h.own, 0, 0), func(h *half) { h.endSent = true }, say("end %d sends END of kind %d", e, int(h.own)))
	}
	if h.known && h.got != open && !h.ackSent {
		try(pack(lAckEnd, 0, 0, 0), func(h *half) { h.ackSent = true }, say("end %d acknowledges the END", e))
	}
	if e == m.opener && h.forgetPending {
		try(pack(lForget, 0, 0, 0), func(h *half) { h.forgetPending = false }, say("the opener sends FORGET"))
	}
}

func (m *lifeModel) dial(s lifeState, add func(lifeState, label)) {
	k := s.net.dial(m.max)
	if k < 0 {
		return
	}
	for j := range k {
		if s.net.conns[j].open[B] {
			s.net.close(B, j)
		}
	}
	s.net.cur[B], s.net.ready[B] = uint8(k+1), false
	b := s.half[B]
	s.net.send(m.max, B, k, pack(lAttach, uint8(k+1), bit(b.known)|bit(m.opener == B && s.came)<<1, b.got))
	add(s, say("the bridge dials connection %d, knows the stream: %d", k+1, int(bit(b.known))))
}

func (m *lifeModel) receive(s lifeState, e, k int, add func(lifeState, label)) {
	f := s.net.receive(e, k)
	h := &s.half[e]
	switch f.kind() {
	case lOpen:
		if !h.known {
			*h = half{known: true}
			s.dials++
		}
		add(s, say("OPEN arrives, dials so far: %d", int(s.dials)))
	case lEnd:
		if h.known && h.got == open {
			h.got = f.a()
			if h.own != rst {
				h.told = f.a()
			}
		}
		h.ackSent = false
		add(s, say("END of kind %d arrives at end %d", int(f.a()), e))
	case lAckEnd:
		h.acked = h.acked || h.known && h.own != open
		add(s, say("the END of end %d is acknowledged", e))
	case lForget:
		m.forget(h)
		add(s, say("FORGET arrives"))
	case lAttach:
		m.attach(s, f, k, add)
	case lAttached:
		if int(s.net.cur[B]) == k+1 {
			s.net.ready[B] = true
			m.apply(h, B, k, f.a() == 1, f.b(), f.c() == 1)
		}
		add(s, say("the bridge goes on with connection %d", k+1))
	}
}

func (m *lifeModel) attach(s lifeState, f frame, k int, add func(lifeState, label)) {
	if f.a() <= s.net.last {
		s.net.close(P, k)
		add(s, say("the proxy refuses connection %d", k+1))
		return
	}
	s.net.last = f.a()
	for j := range m.max.conns {
		if c := &s.net.conns[j]; j != k && c.open[P] && c.bound {
			s.net.close(P, j)
		}
	}
	s.net.cur[P], s.net.ready[P], s.net.conns[k].bound = uint8(k+1), true, true
	h := &s.half[P]
	m.apply(h, P, k, f.b()&1 == 1, f.c(), f.b()&2 != 0)
	s.net.send(m.max, P, k, pack(lAttached, bit(h.known), h.got, bit(m.opener == P && s.came)))
	add(s, say("the proxy accepts connection %d, knows the stream: %d", k+1, int(bit(h.known))))
}

// apply applies the peer's table at end e: whether the peer knows the stream, the end that it got, and, of an opener, whether there
// was a stream at all.
func (m *lifeModel) apply(h *half, e, k int, known bool, got uint8, came bool) {
	h.endSent, h.ackSent = false, false
	if e == m.opener {
		h.openSent = known
	}
	switch {
	case known && got != open && h.own != open:
		h.acked = true
	case known:
	case e == m.opener && h.known && m.unknownIsFinished && k > 0:
		if h.told == open && h.own != rst {
			h.told = fin
		}
		h.known = false
	case e != m.opener && came:
		m.forget(h)
	}
}

// forget is what the other end does when the opener has forgotten the stream.
func (m *lifeModel) forget(h *half) {
	if h.known && m.forgottenIsReset && (h.own == open || h.got == open) && h.own != rst && h.got != rst {
		h.told = rst
	}
	h.known = false
}

// collect lets each end forget what it may.
func (m *lifeModel) collect(s *lifeState) {
	if p := &s.half[m.opener]; p.known {
		if p.acked && p.got != open || p.own == rst && (p.acked || m.resetNotRetained) || p.got == rst {
			p.known, p.forgetPending = false, true
		}
	}
	if b := &s.half[m.other()]; b.known && m.otherForgets {
		if b.got != open && b.acked || b.got == rst || b.own == rst && b.acked {
			b.known = false
		}
	}
}

const (
	dialledTwice = "the service was dialled twice"
	cleanEnd     = "a clean end that the other side did not send"
	falseReset   = "a reset that the other side did not send"
)

func (m *lifeModel) wrong(s lifeState) string {
	if s.dials > 1 {
		return dialledTwice
	}
	for e := range 2 {
		switch told, peer := s.half[e].told, s.half[1-e].own; {
		case told == fin && peer != fin:
			return cleanEnd
		case told == rst && peer != rst:
			return falseReset
		}
	}
	return ""
}

// done: both ends have forgotten the stream, and each socket ended or was told an end.
func (m *lifeModel) done(s lifeState) bool {
	p, b := s.half[m.opener], s.half[m.other()]
	if !s.came || p.known || b.known {
		return false
	}
	if s.dials == 0 {
		return p.own == rst // the other end never heard of it
	}
	return (p.own == rst || p.told != open) && (b.own == rst || b.told != open)
}

func (m *lifeModel) spent(s lifeState) bool { return s.net.spentAll(m.max) }

func TestLife(t *testing.T) {
	skipUnderRace(t)
	all := supply{conns: 4, frames: 3, breaks: 1, timeouts: 1}
	if *full {
		all = supply{conns: 5, frames: 4, breaks: 2, timeouts: 1}
	}
	tests := []struct {
		name  string
		m     lifeModel
		want  string
		stuck bool
	}{
		{"the other end keeps a finished stream until the opener forgot it", lifeModel{}, "", false},
		{"the other end forgets a finished stream", lifeModel{otherForgets: true}, dialledTwice, false},
		{"and the opener takes an unknown one for finished", lifeModel{otherForgets: true, unknownIsFinished: true}, cleanEnd, false},
		{"a reset is not retained", lifeModel{resetNotRetained: true}, "", true},
		{"a reset is not retained, and forgotten means reset", lifeModel{resetNotRetained: true, forgottenIsReset: true}, "", false},
		{"the protocol: the first, and forgotten means reset", lifeModel{forgottenIsReset: true}, "", false},
	}
	for i := range 2 * len(tests) {
		tt, opener := tests[i/2], i%2
		t.Run(tt.name+", opened by the "+[]string{"proxy", "bridge"}[opener], func(t *testing.T) {
			tt.m.max, tt.m.opener = all, opener
			v := search(&tt.m, mostStates)
			report(t, v)
			if v.bad != tt.want || v.stuck > 0 != tt.stuck || v.capped {
				t.Errorf("violation %q, %d states cannot finish; want %q, some that cannot: %v", v.bad, v.stuck, tt.want, tt.stuck)
			}
		})
	}
}
