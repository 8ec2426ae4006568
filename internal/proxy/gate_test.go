package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/logtest"
)

// stranger is a connection from an address.
type stranger struct {
	net.Conn
	from   net.Addr
	closed bool
}

func (s *stranger) RemoteAddr() net.Addr { return s.from }
func (s *stranger) Close() error         { s.closed = true; return nil }

func from(addr string) *stranger {
	return &stranger{from: &net.TCPAddr{IP: net.ParseIP(addr), Port: 1234}}
}

var quiet = slog.New(slog.DiscardHandler)

// TestGateCloses: whoever has to go is closed, and so is a newcomer who finds no place.
func TestGateCloses(t *testing.T) {
	g := newGate(1 << 20)
	g.room = *newRoom(4, 1) // at most 3 of either class
	var conns []*stranger
	var in []*pass
	enter := func(addr string) {
		conns = append(conns, from(addr))
		in = append(in, g.enter(quiet, conns[len(conns)-1]))
	}
	wantClosed := func(what string, want ...int) {
		t.Helper()
		var got []int
		for i, c := range conns {
			if c.closed {
				got = append(got, i)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v are closed, want %v", what, got, want)
		}
	}
	for i := range 4 {
		enter(fmt.Sprintf("192.0.%d.1", i))
		if i == 2 && len(g.appendTo(nil)) != 0 {
			t.Error("places are short before one is missing")
		}
	}
	wantClosed("one more than may be", 0)
	if short := g.appendTo(nil); len(short) != 1 || short[0].Used != 3 || short[0].Limit != 4 || short[0].Largest.Client == "" || short[0].Since.IsZero() {
		t.Errorf("what status says is short: %+v; want the places", short)
	}
	if why := in[0].leave(false); why != errSilent {
		t.Errorf("why it had to go: %v, want %v", why, errSilent)
	}
	for _, p := range in[1:] {
		g.room.heard(p.place, time.Now())
	}
	enter("198.51.100.1")
	wantClosed("all have spoken", 0, 4)
	if in[4] != nil {
		t.Error("a connection that found no place has a pass")
	}
	if why := in[1].leave(true); why != nil {
		t.Errorf("why it was sent away, which it was not: %v", why)
	}
	enter("192.0.1.1") // known now, so there is a place
	enter("198.51.100.1")
	wantClosed("one left", 0, 4)
	g.closeAll()
	wantClosed("the end", 0, 2, 3, 4, 5, 6)
	enter("192.0.1.1")
	wantClosed("after the end", 0, 2, 3, 4, 5, 6, 7)
	if len(g.inside) != 0 {
		t.Errorf("%d are left inside", len(g.inside))
	}
}

// dial makes a pair of sockets on loopback, the first of which is the proxy's.
func socketPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if far, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// TestGateTurns: a handshake is computed when its turn comes, the turn goes on when its peer is waited for, and who hung up
// meanwhile has none.
func TestGateTurns(t *testing.T) {
	k := key(t, "nas", "tcp/9000")
	cfg := &auth.ServerConfig{Identity: identity(), Lookup: func([16]byte) ([32]byte, bool) { return k.Secret, true }}
	pin := auth.Pin(identity().Leaf.RawSubjectPublicKeyInfo)
	g := newGate(1 << 20)
	g.room = *newRoom(100, 1)
	type result struct {
		conn *auth.Conn
		err  error
	}
	serve := func() (*pass, net.Conn, chan result) {
		near, far := socketPair(t)
		p, done := g.enter(quiet, near), make(chan result, 1)
		go func() {
			conn, err := auth.ServerSteps(near, cfg.TLS(), cfg, p.steps())
			p.leave(err == nil)
			done <- result{conn, err}
		}()
		return p, far, done
	}
	dial := func(sock net.Conn) chan result {
		done := make(chan result, 1)
		go func() {
			conn, err := auth.Client(context.Background(), sock, auth.ClientConfig{KeyID: k.ID, Secret: k.Secret, Pin: pin})
			done <- result{conn, err}
		}()
		return done
	}
	stageOf := func(p *pass) stage {
		g.mu.Lock()
		defer g.mu.Unlock()
		return p.place.stage
	}
	blocker := &pass{gate: g, turn: make(chan error, 1)}
	g.mu.Lock()
	blocker.place, _, _, _ = g.room.enter(network(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}).Addr(), time.Now())
	g.room.heard(blocker.place, time.Now())
	g.room.next()
	g.mu.Unlock()

	gone, goneSock, goneDone := serve()
	p, sock, served := serve()
	dialling := dial(goneSock)
	eventually(t, "the first one waits for its turn", func() bool { return stageOf(gone) == waiting })
	goneSock.Close()
	<-dialling
	dialled := dial(sock)
	eventually(t, "the second one waits for its turn", func() bool { return stageOf(p) == waiting })
	blocker.waits()
	for what, r := range map[string]result{"Server": <-served, "Client": <-dialled} {
		if r.err != nil {
			t.Errorf("%s = %v", what, r.err)
		}
	}
	if r := <-goneDone; !errors.Is(r.err, errGone) {
		t.Errorf("Server of a connection that hung up before its turn: %v, want %v", r.err, errGone)
	}
	if g.room.classes[strangers].turns != 0 || g.room.classes[acquainted].turns != 0 {
		t.Error("a turn was not given back")
	}
	if !g.room.known.has(network(sock.LocalAddr()).Addr(), time.Now()) {
		t.Error("the address of a bridge that authenticated is not known")
	}
}

func TestGateReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1 << 20)
		j := logtest.New(slog.LevelDebug)
		log := slog.New(j)
		const line = "connections to the link port that were no bridge with a valid key"
		g.report(log, from("192.0.2.50").from, fmt.Errorf("%w: connection reset by peer", auth.ErrHungUp))
		g.report(log, from("192.0.2.50").from, errGone)
		if n := j.Count(line); n != 0 {
			t.Errorf("%d lines about a connection that just ended, want none", n)
		}
		for i := range 50 {
			g.report(log, from(fmt.Sprintf("192.0.2.%d", i)).from, errors.New("noise"))
		}
		if n := j.Count(line); n != 1 || j.Count(line, "count=1 ", "last_remote=192.0.2.0:", "last_err=noise") != 1 {
			t.Errorf("%d lines for 50 failures within a minute, want one for the first", n)
		}
		time.Sleep(reportStrangersPer)
		g.room = *newRoom(6, 1)
		for i := range 3 {
			g.enter(log, from(fmt.Sprintf("198.51.100.%d", i)))
		}
		g.report(log, from("192.0.2.99").from, errSilent)
		if j.Count(line, "count=50 ", "last_remote=192.0.2.99:", "last_err=it said nothing while others came waiting=3 of=6 most_from=198.51.100.0/24") != 1 {
			t.Errorf("the next minute's line does not count what came since: %q", j.All())
		}
	})
}

// TestKnownOutlivesTheProcess: an address that a bridge came from is saved when the proxy stops or drains, and known to the next one.
func TestKnownOutlivesTheProcess(t *testing.T) {
	k := key(t, "nas", "tcp/1024-65535")
	host := netip.MustParsePrefix("127.0.0.1/32")
	for _, drain := range []bool{false, true} {
		var saved [][]Known
		w := start(t, Config{Settings: Settings{Keys: []Key{k}, Drain: -1}, SaveKnown: func(list []Known) error {
			saved = append(saved, list)
			return nil
		}})
		addr, pub := free(t)
		b := w.bridge(k, how{instance: 1}, pub)
		w.pair(b, addr)
		if drain {
			w.p.Drain()
		} else {
			w.stop()
		}
		<-w.done
		if len(saved) != 1 || len(saved[0]) != 1 || saved[0][0].Block != host {
			t.Fatalf("with drain %t, saved was %v; want %s, once", drain, saved, host)
		}
		list := append(saved[0], Known{netip.MustParsePrefix("192.0.2.1/32"), time.Now().Add(-rememberAddress - time.Hour)},
			Known{netip.MustParsePrefix("192.0.2.2/32"), time.Now().Add(time.Hour)})
		next := New(Config{Known: list})
		for at, want := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false, "192.0.2.1": false, "192.0.2.2": false} {
			if got := next.port.gate.room.known.has(netip.MustParseAddr(at), time.Now()); got != want {
				t.Errorf("%s is known to the next process: %t, want %t", at, got, want)
			}
		}
	}
}

// TestNamesGatePlaces: the places for strangers of a port that names share follow descriptors and memory, whichever leaves fewer.
func TestNamesGatePlaces(t *testing.T) {
	for _, c := range []struct{ descriptors, most, want int }{
		{1 << 20, 0, mostPlaces},
		{1 << 20, 1 << 20, mostPlaces},
		{1 << 20, 1000, 1000},
		{1024, 1000, 128},
		{1 << 20, 1, 16},
	} {
		g := newNamesGate(c.descriptors, c.most, func(netip.Addr) bool { return false })
		if g.room.most != c.want || cap(g.slots) < c.want {
			t.Errorf("%d descriptors, memory for %d: %d places and %d slots, want %d places", c.descriptors, c.most, g.room.most, cap(g.slots), c.want)
		}
	}
}

// TestUsersGateSlots: at a gate whose connections have descriptors for users, those who were sent away and have not left yet are bounded. The
// next one is accepted when one has left.
func TestUsersGateSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newUsersGate(1024)
		var inside []*pass
		come := func() *pass {
			c, _ := net.Pipe()
			return g.enter(slog.New(slog.DiscardHandler), c)
		}
		for len(inside) < cap(g.slots) {
			inside = append(inside, come())
		}
		sentAway := 0
		for _, p := range inside {
			if p.gone != nil {
				sentAway++
			}
		}
		if len(g.inside)+sentAway != cap(g.slots) || sentAway == 0 {
			t.Fatalf("%d slots: %d are inside, and %d were sent away", cap(g.slots), len(g.inside), sentAway)
		}
		late := make(chan *pass)
		go func() { late <- come() }()
		synctest.Wait()
		select {
		case <-late:
			t.Fatal("one more came in")
		default:
		}
		inside[0].leave(false)
		inside = append(inside, <-late)
		for _, p := range inside[1:] {
			if p != nil {
				p.leave(false)
			}
		}
		if n := len(g.slots); n != 0 {
			t.Errorf("%d slots are taken when all have left", n)
		}
		g.closeAll()
		if p := come(); p != nil || len(g.slots) != 0 {
			t.Errorf("a closed gate lets %v in, %d slots are taken", p, len(g.slots))
		}
	})
}

// TestKnownIsSavedAgain: what could not be saved is saved later, and nothing without news.
func TestKnownIsSavedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var saved atomic.Int64
		var full atomic.Bool
		full.Store(true)
		j := logtest.New(slog.LevelDebug)
		p := New(Config{Log: slog.New(j), SaveKnown: func([]Known) error {
			saved.Add(1)
			if full.Load() {
				return errors.New("no space left on device")
			}
			return nil
		}})
		done := make(chan struct{})
		go func() { defer close(done); p.keepKnown() }()
		learn := func(a string) {
			p.port.gate.mu.Lock()
			defer p.port.gate.mu.Unlock()
			p.port.gate.room.known.add(netip.MustParseAddr(a), time.Now())
		}
		after := func(d time.Duration, want int64) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if n := saved.Load(); n != want {
				t.Errorf("saved %d times, want %d", n, want)
			}
		}
		after(saveFirst, 0)
		learn("192.0.2.1")
		after(saveKnown, 1)
		if j.Count("could not be saved", "no space left") != 1 {
			t.Errorf("the log does not say that it failed: %q", j.All())
		}
		full.Store(false)
		after(saveKnown, 1)
		after(saveAgain, 2)
		learn("192.0.2.1") // a moment later, which is no news
		after(saveKnown, 2)
		p.life.stop()
		<-done
	})
}

// TestLatest: of what several gates know, an address has one line, with the last time, and what was longest ago is first.
func TestLatest(t *testing.T) {
	k := func(n byte, sec int64) Known {
		return Known{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 32), time.Unix(sec, 0)}
	}
	for _, c := range []struct{ list, want []Known }{
		{nil, nil},
		{[]Known{k(1, 10), k(2, 20), k(3, 15), k(1, 30), k(2, 5)}, []Known{k(3, 15), k(2, 20), k(1, 30)}},
	} {
		if got := latest(slices.Clone(c.list)); !slices.Equal(got, c.want) {
			t.Errorf("latest(%v) = %v, want %v", c.list, got, c.want)
		}
	}
}
