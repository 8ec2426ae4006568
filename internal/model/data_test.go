package model

import "testing"

// Frames of the data model.
const (
	fData     = 1 + iota // a: offset
	fAck                 // a: custody, b: credit
	fAttach              // a: generation, b: custody, c: credit
	fAttached            // a: generation, b: custody, c: credit
)

// dataState is one direction of one stream: units of data and, as the last one, END.
type dataState struct {
	net                 network
	una, nxt, max       uint8 // of the sender
	credit              uint8
	rcv                 uint8 // of the receiver: how many units it has
	ackSent, creditSent uint8
	fault               uint8 // index of faults
}

var dataFaults = []string{
	"", "a unit is delivered twice", "a unit is skipped", "a unit that is needed again is gone", "an honest ACK is refused",
	"the credit is exceeded", "acknowledged what is not there",
}

const (
	doubled = 1 + iota
	skipped
	lost
	refused
	exceeded
	untrue
)

// dataModel sends units from one end to the other over connections that break. The fields name the rules that a variant
// breaks.
type dataModel struct {
	sender int // P or B
	units  uint8
	window uint8
	max    supply

	relative       bool // units carry no offset: what comes is taken for the next one
	proxyKeepsOld  bool // the proxy does not fence the old connection when it accepts a new one
	bridgeKeepsOld bool // the bridge does not when it dials one
	countFirst     bool // the bridge counts what it has before it fences
	freeOnWrite    bool // a unit is freed when it was written
	anyGeneration  bool // the proxy does not compare generations
	ackAgainstNext bool // an ACK is compared with the next unit to send, not with the highest ever sent
}

func (m *dataModel) begin() dataState {
	return dataState{credit: m.window, creditSent: m.window}
}

func (m *dataModel) grant(s *dataState) uint8 { return s.rcv + m.window }

func (m *dataModel) next(s dataState, add func(dataState, label)) {
	S, R := m.sender, 1-m.sender
	if k := int(s.net.cur[S]) - 1; s.net.ready[S] && k >= 0 && s.nxt <= m.units && (s.nxt < s.credit || s.nxt == m.units) {
		t := s
		if t.net.send(m.max, S, k, pack(fData, t.nxt, 0, 0)) {
			t.nxt++
			t.max = max(t.max, t.nxt)
			if m.freeOnWrite {
				t.una = t.nxt
			}
			if t.nxt <= m.units && t.nxt > t.credit {
				t.fault = exceeded
			}
			add(t, say("the sender sends unit %d on connection %d", int(s.nxt), k+1))
		}
	}
	if k := int(s.net.cur[R]) - 1; s.net.ready[R] && k >= 0 && (s.ackSent != s.rcv || s.creditSent != m.grant(&s)) {
		t := s
		if t.net.send(m.max, R, k, pack(fAck, t.rcv, m.grant(&t), 0)) {
			t.ackSent, t.creditSent = t.rcv, m.grant(&t)
			add(t, say("the receiver acknowledges %d on connection %d", int(t.rcv), k+1))
		}
	}
	if s.net.cur[B] == 0 || s.net.extra < m.max.extra {
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

func (m *dataModel) dial(s dataState, add func(dataState, label)) {
	if s.net.cur[B] != 0 {
		s.net.extra++
	}
	k := s.net.dial(m.max)
	if k < 0 {
		return
	}
	if !m.bridgeKeepsOld && !m.countFirst {
		m.closeOld(&s, B, k)
	}
	s.net.cur[B], s.net.ready[B] = uint8(k+1), false
	s.net.send(m.max, B, k, m.table(&s, fAttach, B, uint8(k+1)))
	add(s, say("the bridge dials connection %d, with %d received", k+1, int(s.rcv)))
}

// table says what end e has received, if it is the receiver.
func (m *dataModel) table(s *dataState, kind uint8, e int, gen uint8) frame {
	if e == m.sender {
		return pack(kind, gen, 0, 0)
	}
	s.ackSent, s.creditSent = s.rcv, m.grant(s)
	return pack(kind, gen, s.rcv, m.grant(s))
}

func (m *dataModel) closeOld(s *dataState, e, k int) {
	for j := range m.max.conns {
		c := &s.net.conns[j]
		if c.open[e] && (e == B && j < k || e == P && j != k && c.bound) {
			s.net.close(e, j)
		}
	}
}

func (m *dataModel) receive(s dataState, e, k int, add func(dataState, label)) {
	f := s.net.receive(e, k)
	switch f.kind() {
	case fData:
		switch {
		case m.relative && f.a() != s.rcv:
			s.fault = doubled
		case m.relative, f.a() == s.rcv:
			s.rcv++
		case f.a() > s.rcv:
			s.fault = skipped
		}
		add(s, say("unit %d arrives on connection %d", int(f.a()), k+1))
	case fAck:
		limit := s.max
		if m.ackAgainstNext {
			limit = s.nxt
		}
		if f.a() > limit {
			s.fault = refused
		} else {
			s.una = max(s.una, f.a())
			s.nxt = max(s.nxt, s.una)
			s.credit = max(s.credit, f.b())
		}
		add(s, say("an ACK of %d arrives on connection %d", int(f.a()), k+1))
	case fAttach:
		if f.a() <= s.net.last && !m.anyGeneration {
			s.net.close(P, k)
			add(s, say("the proxy refuses connection %d, the last was %d", k+1, int(s.net.last)))
			return
		}
		s.net.last = f.a()
		if !m.proxyKeepsOld {
			m.closeOld(&s, P, k)
		}
		s.net.cur[P], s.net.ready[P], s.net.conns[k].bound = uint8(k+1), true, true
		if m.sender == P {
			m.rewind(&s, f)
		}
		s.net.send(m.max, P, k, m.table(&s, fAttached, P, f.a()))
		add(s, say("the proxy accepts connection %d, the bridge has %d", k+1, int(f.b())))
	case fAttached:
		if !m.bridgeKeepsOld || m.countFirst {
			m.closeOld(&s, B, k)
		}
		if int(s.net.cur[B]) == k+1 {
			s.net.ready[B] = true
			if m.sender == B {
				m.rewind(&s, f)
			}
		}
		add(s, say("the bridge goes on with connection %d, the proxy has %d", k+1, int(f.b())))
	}
}

// rewind goes back to what the receiver's table says.
func (m *dataModel) rewind(s *dataState, f frame) {
	has := f.b()
	switch {
	case has < s.una && (m.freeOnWrite || m.relative):
		s.fault = lost
		return
	case has > s.max:
		s.fault = refused
		return
	}
	// With offsets a table that is older than an ACK does no harm.
	has = max(has, s.una)
	s.una, s.nxt = has, has
	s.credit = max(s.credit, f.c())
}

func (m *dataModel) wrong(s dataState) string {
	if s.fault == 0 && s.una > s.rcv && !m.freeOnWrite {
		return dataFaults[untrue]
	}
	return dataFaults[s.fault]
}

func (m *dataModel) done(s dataState) bool  { return s.rcv == m.units+1 && s.una == m.units+1 }
func (m *dataModel) spent(s dataState) bool { return s.net.spentAll(m.max) }

func TestData(t *testing.T) {
	skipUnderRace(t)
	// Two breaks for the protocol itself; one suffices to see what goes wrong without a rule.
	one := supply{conns: 4, frames: 2, breaks: 1, timeouts: 1, extra: 1}
	two := supply{conns: 5, frames: 2, breaks: 2, timeouts: 1, extra: 1}
	if *full {
		two = supply{conns: 6, frames: 3, breaks: 2, timeouts: 1, extra: 1}
		one = two
	}
	// What is expected of data from the proxy, and from the bridge. "": everything reachable is right and can finish.
	tests := []struct {
		name string
		make func(*dataModel)
		want [2]int
	}{
		{"the protocol", func(m *dataModel) { m.max = two }, [2]int{}},
		{"nobody fences", func(m *dataModel) {
			m.proxyKeepsOld, m.bridgeKeepsOld = true, true
		}, [2]int{}},
		{"nobody fences, an ACK is compared with the next unit", func(m *dataModel) {
			m.proxyKeepsOld, m.bridgeKeepsOld, m.ackAgainstNext = true, true, true
		}, [2]int{refused, refused}},
		{"no offsets", func(m *dataModel) { m.relative = true }, [2]int{}},
		{"no offsets, the proxy does not fence", func(m *dataModel) { m.relative, m.proxyKeepsOld = true, true }, [2]int{0, doubled}},
		{"no offsets, the bridge does not fence", func(m *dataModel) { m.relative, m.bridgeKeepsOld = true, true }, [2]int{doubled, 0}},
		{"no offsets, the bridge counts before it fences", func(m *dataModel) { m.relative, m.countFirst = true, true }, [2]int{doubled, 0}},
		{"free on write", func(m *dataModel) { m.freeOnWrite = true }, [2]int{lost, lost}},
		{"no generations", func(m *dataModel) { m.anyGeneration = true }, [2]int{}},
		{"no offsets, no generations", func(m *dataModel) { m.relative, m.anyGeneration = true, true }, [2]int{lost, 0}},
	}
	for _, tt := range tests {
		for sender, name := range []string{"from the proxy", "from the bridge"} {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				m := dataModel{sender: sender, units: 2, window: 1, max: one}
				tt.make(&m)
				v := search(&m, mostStates)
				report(t, v)
				if want := dataFaults[tt.want[sender]]; v.bad != want || v.stuck > 0 || v.capped {
					t.Errorf("violation %q, %d states cannot finish; want %q", v.bad, v.stuck, want)
				}
			})
		}
	}
}

func report(t *testing.T, v verdict) {
	if v.bad != "" || v.stuck > 0 {
		t.Logf("%d states; violation %q, %d states cannot finish; the shortest way:\n%s", v.states, v.bad, v.stuck, steps(v))
		return
	}
	t.Logf("%d states, %d of them ends, and %d cannot finish because no connection is left", v.states, v.ends, v.spent)
}

const mostStates = 5_000_000

func steps(v verdict) (s string) {
	for _, l := range v.way {
		s += "  " + l.String() + "\n"
	}
	return s
}
