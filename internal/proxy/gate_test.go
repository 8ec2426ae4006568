package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
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
	var conns []*stranger
	var in []*pass
	enter := func(addr string) {
		conns = append(conns, from(addr))
		in = append(in, g.enter(conns[len(conns)-1]))
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
	enter("192.0.2.2")
	for range maxPerAddress {
		enter("192.0.2.1")
	}
	wantClosed("as many as may wait")
	enter("192.0.2.1")
	enter("::ffff:192.0.2.1")
	wantClosed("two more of one address, as IPv4 and as IPv4 in IPv6", 1, 2)
	enter("192.0.2.2")
	wantClosed("another address", 1, 2)
	in[5].leave(false)
	in[5].leave(false) // once is enough
	enter("192.0.2.1")
	wantClosed("in the place of one who left", 1, 2)
	enter("192.0.2.1")
	wantClosed("one place came free, and two came", 1, 2, 3)
}

func TestGateIPv6CountsNetworks(t *testing.T) {
	g := newGate()
	first := from("2001:db8:1:2::ffff")
	g.enter(first)
	for i := range maxPerAddress - 1 {
		g.enter(from(fmt.Sprintf("2001:db8:1:2::%x", i)))
	}
	g.enter(from("2001:db8:1:3::1"))
	if first.closed {
		t.Error("an address of the next /64 took a place of this one")
	}
	g.enter(from("2001:db8:1:2:ffff::1"))
	if !first.closed {
		t.Error("a ninth address of one /64 was admitted beside the others")
	}
}

func TestGateKnownAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		g.enter(from("192.0.2.1")).leave(true)
		first := from("192.0.2.1")
		g.enter(first)
		for range 3 * maxPerAddress {
			g.enter(from("192.0.2.1"))
		}
		if first.closed {
			t.Error("of an address that authenticated one was closed: a bridge opens several connections at once")
		}
		time.Sleep(rememberAddress + time.Second)
		g.enter(from("192.0.2.1"))
		if !first.closed {
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
		for range maxPerAddress + 3 {
			g.enter(from("192.0.2.77"))
		}
		for range 3 { // the three oldest were closed
			g.report(log, from("192.0.2.77").from, fmt.Errorf("read: %w", net.ErrClosed))
		}
		time.Sleep(reportStrangersPer)
		g.report(log, from("192.0.2.99").from, errors.New("more noise"))
		g.report(log, from("192.0.2.77").from, fmt.Errorf("read: %w", net.ErrClosed))
		time.Sleep(reportStrangersPer)
		g.report(log, from("192.0.2.77").from, fmt.Errorf("read: %w", net.ErrClosed))
		if j.count(line, "count=2 ", "last_err=said nothing while others came") != 1 {
			t.Errorf("no line says that too many came: %q", *j.lines)
		}
		if j.count(line, "count=53 ", "last_remote=192.0.2.99:", "last_err=more noise") != 1 {
			t.Errorf("the next minute's line does not count what came since: %q", *j.lines)
		}
	})
}
