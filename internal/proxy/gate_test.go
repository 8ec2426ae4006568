package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
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

func TestGatePerAddress(t *testing.T) {
	g := newGate()
	var in []*pass
	for i := range maxPerAddress {
		p := g.enter(from("192.0.2.1"))
		if p == nil {
			t.Fatalf("connection %d of an address was refused, %d may wait", i+1, maxPerAddress)
		}
		in = append(in, p)
	}
	if g.enter(from("192.0.2.1")) != nil || g.enter(from("::ffff:192.0.2.1")) != nil {
		t.Error("one more connection of the address was admitted, as IPv4 or as IPv4 in IPv6")
	}
	if g.enter(from("192.0.2.2")) == nil {
		t.Error("another address was refused")
	}
	in[3].leave(false)
	in[3].leave(false) // once is enough
	if g.enter(from("192.0.2.1")) == nil {
		t.Error("the place of one who left is not free")
	}
	if g.enter(from("192.0.2.1")) != nil {
		t.Error("one place came free and two were admitted")
	}
}

func TestGateIPv6CountsNetworks(t *testing.T) {
	g := newGate()
	for i := range maxPerAddress {
		if g.enter(from(fmt.Sprintf("2001:db8:1:2::%x", i))) == nil {
			t.Fatal("refused too early")
		}
	}
	if g.enter(from("2001:db8:1:2:ffff::1")) != nil {
		t.Error("a ninth address of one /64 was admitted")
	}
	if g.enter(from("2001:db8:1:3::1")) == nil {
		t.Error("an address of the next /64 was refused")
	}
}

func TestGateKnownAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		g.enter(from("192.0.2.1")).leave(true)
		for range 3 * maxPerAddress {
			if g.enter(from("192.0.2.1")) == nil {
				t.Fatal("an address that authenticated was refused: a bridge opens several connections at once")
			}
		}
		if g.enter(from("192.0.2.2")) == nil {
			t.Fatal("refused")
		}
		time.Sleep(rememberAddress + time.Second)
		if g.enter(from("192.0.2.1")) != nil {
			t.Errorf("an address that authenticated more than %s ago is exempt", rememberAddress)
		}
	})
}

func TestGateRemembersABoundedNumber(t *testing.T) {
	g := newGate()
	for i := range rememberedMost + 100 {
		g.enter(from(fmt.Sprintf("10.0.%d.%d", i>>8, i&255))).leave(true)
	}
	if n := len(g.known); n > rememberedMost {
		t.Errorf("%d addresses are remembered, at most %d", n, rememberedMost)
	}
	if len(g.per) != 0 || g.waiting.Len() != 0 {
		t.Errorf("%d addresses and %d connections are counted after all left", len(g.per), g.waiting.Len())
	}
}

func TestGateOldestGoes(t *testing.T) {
	g := newGate()
	var conns []*stranger
	var in []*pass
	for i := range maxStrangers {
		c := from(fmt.Sprintf("10.0.0.%d", i))
		conns = append(conns, c)
		p := g.enter(c)
		if p == nil {
			t.Fatalf("stranger %d was refused", i)
		}
		in = append(in, p)
	}
	in[0].leave(false)
	g.enter(from("10.1.0.1"))
	for i, c := range conns {
		if c.closed {
			t.Errorf("connection %d was closed while there was room", i)
		}
	}
	if g.enter(from("10.1.0.2")) == nil {
		t.Fatal("a newcomer was refused: silent strangers lock bridges out")
	}
	if !conns[1].closed || conns[2].closed || g.waiting.Len() != maxStrangers {
		t.Errorf("oldest closed %t, next closed %t, %d wait; want true, false, %d", conns[1].closed, conns[2].closed, g.waiting.Len(), maxStrangers)
	}
	in[1].leave(true) // it authenticated at the very moment it was sent away
	if g.waiting.Len() != maxStrangers {
		t.Errorf("%d wait, want %d", g.waiting.Len(), maxStrangers)
	}
}

func TestGateClosed(t *testing.T) {
	g := newGate()
	c := from("10.0.0.1")
	g.enter(c)
	g.closeAll()
	if !c.closed {
		t.Error("a connection that waited was left open")
	}
	if g.enter(from("10.0.0.2")) != nil {
		t.Error("a connection was admitted after the end")
	}
}

func TestGateReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		j := newJournal()
		log := slog.New(j)
		const line = "connections to the link port that were no bridge with a valid key"
		g.report(log, from("192.0.2.50").from, fmt.Errorf("%w: connection reset by peer", auth.ErrHungUp))
		if n := j.count(line); n != 0 {
			t.Errorf("%d lines about a connection that just ended, want none", n)
		}
		for i := range 50 {
			g.report(log, from(fmt.Sprintf("192.0.2.%d", i)).from, errors.New("noise"))
		}
		if n := j.count(line); n != 1 || j.count(line, "count=1 ", "last_remote=192.0.2.0:", "last_err=noise") != 1 {
			t.Errorf("%d lines for 50 failures within a minute, want one for the first", n)
		}
		for range maxPerAddress + 3 { // three too many count too
			g.enter(from("192.0.2.77"))
		}
		time.Sleep(reportStrangersPer)
		g.report(log, from("192.0.2.99").from, errors.New("more noise"))
		if j.count(line, "count=53 ", "last_remote=192.0.2.99:", "last_err=more noise") != 1 {
			t.Errorf("the next minute's line does not count what came since: %q", *j.lines)
		}
	})
}
