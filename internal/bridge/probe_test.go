package bridge

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"reverser/internal/claims"
	"reverser/internal/logtest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// TestProve: the bridge tries its public port as a user would, and says so when something else answers.
func TestProve(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(c net.Conn, nonce [16]byte)
		want   []string
	}{
		{"proxy", func(c net.Conn, nonce [16]byte) { a := link.ProbeAnswer(nonce); c.Write(a[:]) }, []string{"INFO service up", "answered_ms="}},
		{"stranger", func(c net.Conn, _ [16]byte) { c.Write([]byte("HTTP/1.1 400 Bad Request")) }, []string{"WARN service up, but its public port did not answer", "something else", "another machine or program"}},
		{"echo", func(c net.Conn, nonce [16]byte) { q := link.ProbeQuestion(nonce); c.Write(q[:]) }, []string{"WARN", "something else"}},
		{"closed", func(net.Conn, [16]byte) {}, []string{"WARN", "wait for the proxy's answer", "descriptor limit"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := serve(t, "tcp", "127.0.0.1:0")
			pub := "tcp/" + port.ln.Addr().String()
			nonce := [16]byte([]byte("nonce of 16 byte"))
			p := listen(t, "127.0.0.1:0", false)
			p.mu.Lock()
			p.answer = func(l *link.Link, id uint32, _ wire.Claim) {
				claimed(l, id, wire.Claimed{Status: wire.ClaimUp, Public: pub, Nonce: nonce})
			}
			p.mu.Unlock()
			b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, pub)}}}})
			conn := port.accept()
			var got [16]byte
			if _, err := io.ReadFull(conn, got[:]); err != nil || got != link.ProbeQuestion(nonce) {
				t.Errorf("the bridge showed %x, %v; want %x", got, err, link.ProbeQuestion(nonce))
			}
			c.answer(conn, nonce)
			conn.Close()
			eventually(t, "the log has the outcome", func() bool { return b.log.Count(append(c.want, "service="+pub)...) == 1 })
		})
	}
}

func TestProbeHint(t *testing.T) {
	b, err := New(Config{Token: tokenFor("h:1")})
	if err != nil {
		t.Fatal(err)
	}
	err = b.ask(t.Context(), nobody(t), [16]byte{1})
	if hint := probeHint(err); !strings.Contains(hint, "firewall") {
		t.Errorf("after %v the hint is %q, want one at the firewall: nothing was reached", err, hint)
	}
}

// TestProbeAddr: the bridge dials the address that its link goes to and the port of its own configuration, nothing that a proxy
// names.
func TestProbeAddr(t *testing.T) {
	loop, far := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1)}
	six := &net.TCPAddr{IP: net.ParseIP("2001:db8::1")}
	for _, c := range []struct {
		claimed string
		remote  net.Addr
		want    string // "": it is not probed
	}{
		{"9000", far, "198.51.100.1:9000"},
		{"tcp/0.0.0.0:9000", far, "198.51.100.1:9000"},
		{"tcp/0.0.0.0:9000", six, ""},
		{"tcp/[::]:9000", far, ""}, // would be blamed on a firewall
		{"tcp/[::]:9000", six, "[2001:db8::1]:9000"},
		{"tcp/127.0.0.1:9000", far, ""},
		{"tcp/[::1]:9000", nil, ""},
		{"tcp/127.0.0.1:9000", loop, "127.0.0.1:9000"},
		{"tcp/192.0.2.9:9000", far, "192.0.2.9:9000"},
		{"offered", far, ""}, // the proxy chooses the port
		{"offered", loop, ""},
	} {
		got, why := probeAddr(public(t, c.claimed), c.remote)
		if got != c.want || (why == "") != (c.want != "") {
			t.Errorf("probeAddr(%s, %v) = %q, %q; want %q", c.claimed, c.remote, got, why, c.want)
		}
	}
}

// TestFalseProxyNamesAddresses: 4,000 answers that name others' addresses lead the bridge nowhere but to the ports of its own
// configuration at the address of its link, one dial at a time for each.
func TestFalseProxyNamesAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const answers = 4000
		var n memnet.Net
		var d dns
		d.set(false, nil, "192.0.2.1")
		p := newProxy(t)
		publics := map[uint32]grammar.Public{
			1: {Kind: grammar.KindTCP, Port: 9000}, 2: {Kind: grammar.KindTCP, Port: 9001}, 3: {Kind: grammar.KindOffered},
		}
		p.answer = func(l *link.Link, id uint32, _ wire.Claim) {
			if id != 3 { // the last one is claimed: it answers for all
				return
			}
			for i := range answers {
				id := uint32(i%3 + 1)
				for k, status := range []wire.ClaimStatus{wire.ClaimUp, wire.ClaimRetrying, wire.ClaimUp} { // it forgets what it knew
					c := wire.Claimed{Status: status, Public: fmt.Sprintf("tcp/10.0.%d.%d:%d", i/256, i%256, 1+i), Nonce: [16]byte{1, byte(i), byte(i >> 8)}}
					if i%2 == 0 {
						c.Public = fmt.Sprintf("tcp/192.0.2.1:%d", 1+i) // another port of the address that the link goes to
					}
					// A key of its own for each, or Say would send only the last.
					l.Say(uint64(i)<<8|uint64(k)<<4|1<<40, wire.AppendClaimed(nil, id, c))
				}
			}
		}
		stop := p.serveOnMemnet(&n, "192.0.2.1:3010")
		silent := make(map[string]net.Listener) // take connections and never answer
		for _, at := range []string{"192.0.2.1:9000", "192.0.2.1:9001"} {
			ln, err := n.Listen(at)
			if err != nil {
				t.Fatal(err)
			}
			silent[at] = ln
		}
		b := onMemnet(t, &n, &d)
		var mu sync.Mutex
		dials, now, most := make(map[string]int), make(map[string]int), make(map[string]int)
		dial := b.socket
		b.socket = func(ctx context.Context, network, addr string, segment int) (net.Conn, error) {
			c, err := dial(ctx, network, addr, segment)
			mu.Lock()
			defer mu.Unlock()
			dials[addr]++
			if _, ok := silent[addr]; !ok || err != nil {
				return c, err
			}
			now[addr]++
			most[addr] = max(most[addr], now[addr])
			return &counted{c, sync.OnceFunc(func() { mu.Lock(); now[addr]--; mu.Unlock() })}, nil
		}
		exposed := []Service{}
		for id := uint32(1); id <= 3; id++ {
			exposed = append(exposed, Service{Public: publics[id], Handle: func(c net.Conn) { c.Close() }})
		}
		if _, err := b.Apply(t.Context(), Settings{Services: exposed}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		time.Sleep(time.Minute)
		cancel()
		running.Wait()
		probes := 0
		for addr, times := range dials {
			switch _, ok := silent[addr]; {
			case ok:
				probes += times
			case addr != "192.0.2.1:3010":
				t.Errorf("%s was dialled, which only the proxy named", addr)
			}
		}
		if probes == 0 || probes > 60/int(probeLimit.Seconds())*len(silent) {
			t.Errorf("%d probes in a minute for %d answers; want some, one behind the other for each service", probes, answers)
		}
		for addr, times := range most {
			if times > 1 {
				t.Errorf("%d probes of %s at once, want one", times, addr)
			}
		}
		for _, ln := range silent {
			ln.Close()
		}
		stop()
	})
}

// counted is a connection whose end is counted.
type counted struct {
	net.Conn
	end func()
}

func (c *counted) Close() error {
	c.end()
	return c.Conn.Close()
}

// TestFewProbesAtOnce: a proxy with many services is not dialled for all of them at once, and not again when the control
// connection comes back.
func TestFewProbesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const services = 40
		var n memnet.Net
		var d dns
		d.set(false, nil, "192.0.2.1")
		p := newProxy(t)
		p.answer = func(l *link.Link, id uint32, c wire.Claim) {
			claimed(l, id, wire.Claimed{Status: wire.ClaimUp, Public: c.Public, Nonce: [16]byte{byte(id)}})
		}
		stop := p.serveOnMemnet(&n, "192.0.2.1:3010")
		var all atomic.Int32
		var mu sync.Mutex
		now, most := int32(0), int32(0) // guarded by mu
		count := func(n int32) {
			mu.Lock()
			defer mu.Unlock()
			now += n
			most = max(most, now)
		}
		var serving sync.WaitGroup
		var lns []net.Listener
		var exposed []Service
		for i := range services {
			ln, err := n.Listen(fmt.Sprintf("192.0.2.1:%d", 9000+i))
			if err != nil {
				t.Fatal(err)
			}
			lns = append(lns, ln)
			exposed = append(exposed, Service{Public: grammar.Public{Kind: grammar.KindTCP, Port: uint16(9000 + i)}, Handle: func(c net.Conn) { c.Close() }})
			serving.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					all.Add(1)
					count(1)
					time.Sleep(100 * time.Millisecond)
					var question [16]byte
					io.ReadFull(c, question[:])
					answer := link.ProbeAnswer([16]byte{byte(i + 1)})
					count(-1) // before the bridge can begin with the next one
					c.Write(answer[:])
					c.Close()
				}
			})
		}
		b := onMemnet(t, &n, &d)
		j := logtest.NewWithLevels(slog.LevelInfo)
		setLog(b, j)
		if _, err := b.Apply(t.Context(), Settings{Services: exposed}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		time.Sleep(10 * time.Second)
		mu.Lock()
		if got := j.Sum("INFO service up", "answered_ms=100"); got != services || most != maxProbes {
			t.Errorf("%d services are up, with at most %d probes at once; want %d with %d", got, most, services, maxProbes)
		}
		mu.Unlock()
		n.Reset()
		time.Sleep(10 * time.Second)
		if got := j.Count("connected to the proxy again"); got != 1 || all.Load() != services {
			t.Errorf("connected again %d times, with %d probes; want once, and %d", got, all.Load(), services)
		}
		cancel()
		running.Wait()
		for _, ln := range lns {
			ln.Close()
		}
		serving.Wait()
		stop()
	})
}

// TestProbesRest: a proxy that asks for a probe again and again has one a second, and the last one is about its last word.
func TestProbesRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const answers = 60
		var n memnet.Net
		var d dns
		d.set(false, nil, "192.0.2.1")
		p := newProxy(t)
		var saying sync.WaitGroup
		p.answer = func(l *link.Link, id uint32, c wire.Claim) {
			saying.Go(func() {
				for i := range answers {
					claimed(l, id, wire.Claimed{Status: wire.ClaimUp, Public: c.Public, Nonce: [16]byte{1, byte(i)}})
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
		stop := p.serveOnMemnet(&n, "192.0.2.1:3010")
		ln, err := n.Listen("192.0.2.1:9000")
		if err != nil {
			t.Fatal(err)
		}
		var questions [][16]byte
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				var question [16]byte
				io.ReadFull(c, question[:])
				questions = append(questions, question)
				c.Close()
			}
		})
		b := onMemnet(t, &n, &d)
		if _, err := b.Apply(t.Context(), Settings{Services: []Service{{Public: grammar.Public{Kind: grammar.KindTCP, Port: 9000}, Handle: func(c net.Conn) { c.Close() }}}}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		time.Sleep(20 * time.Second)
		cancel()
		running.Wait()
		ln.Close()
		serving.Wait()
		saying.Wait()
		stop()
		if got := len(questions); got < 3 || got > 5 {
			t.Errorf("%d probes for %d answers in 3 s, want one a second", got, answers)
		}
		if want := link.ProbeQuestion([16]byte{1, answers - 1}); len(questions) == 0 || questions[len(questions)-1] != want {
			t.Errorf("the last question is about another answer than the last")
		}
	})
}

// TestProbesForget: what is remembered of services that were probed does not grow with those that came and went.
func TestProbesForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := &prober{waiting: make(map[*uplink][]*probe), queued: make(map[probed]*probe), asked: make(map[probed]asked), resting: make(map[probed]*probe)}
		for id := range uint32(1000) {
			pr.queueLocked(&probe{probed: probed{id: id}})
			time.Sleep(probeRest / 10)
		}
		if n := len(pr.asked); n > 2*(10+64) {
			t.Errorf("%d services are remembered, of 1,000 that were probed one after the other", n)
		}
	})
}

// TestProbesWait: those of services of an uplink without a carrier wait beside those of another one, and one of each service at most. The
// latest counts.
func TestProbesWait(t *testing.T) {
	s := claims.New()
	b := &Bridge{services: s}
	b.ctx, b.stop = context.WithCancel(t.Context())
	defer b.stop()
	for range 2 {
		b.uplinks = append(b.uplinks, &uplink{b: b, claims: s.AddLink()})
	}
	if _, err := s.Apply([]Service{{Public: public(t, "9000")}, {Public: public(t, "9001")}}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		for _, u := range b.uplinks {
			for id := uint32(1); id <= 2; id++ {
				u.claims.Known(id).Answers++
				b.probeSoonLocked(&probe{probed: probed{u, id}, answers: i + 1})
			}
		}
	}
	u := b.uplinks[1]
	if p := b.nextProbeLocked(); p != nil || len(b.probes.queued) != 4 || len(b.probes.waiting[u]) != 2 {
		t.Fatalf("next = %v, %d wait; want none without a carrier, and one for each service of each proxy", p, len(b.probes.queued))
	}
	u.carriers = map[int]bool{1: true}
	first := b.nextProbeLocked()
	if first == nil || first.probed != (probed{u, 1}) || first.answers != 3 {
		t.Fatalf("next = %+v, want the latest for service 1", first)
	}
	u.claims.Known(1).Answers++
	b.probes.queued[probed{u, 1}], b.probes.waiting[u] = &probe{probed: probed{u, 1}, answers: 4}, append([]*probe{{probed: probed{u, 1}, answers: 4}}, b.probes.waiting[u]...)
	if p := b.nextProbeLocked(); p == nil || p.id != 2 {
		t.Fatalf("next = %+v, want that of service 2 while one of service 1 runs", p)
	}
	if p := b.nextProbeLocked(); p != nil {
		t.Fatalf("next = %+v, want none", p)
	}
	delete(b.probes.running, first.probed)
	if p := b.nextProbeLocked(); p == nil || p.id != 1 || len(b.probes.queued) != 2 {
		t.Errorf("next = %+v, want that of service 1, which is not being probed any more", p)
	}
}
