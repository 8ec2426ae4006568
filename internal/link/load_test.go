package link

import (
	"crypto/tls"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/record"
	"reverser/internal/wire"
)

// TestNewStreamsAvoidBulk: a carrier that moves much gets no new stream while another moves little, and is one of all again
// when that is over.
func TestNewStreamsAvoidBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(false, nil, nil, NewBudget(0).only(), 4)
		open := func() uint8 {
			s, err := l.Open(wire.Open{})
			if err != nil {
				t.Fatal(err)
			}
			return s.slot.index
		}
		bulk := l.slots[2].core
		for range 10 {
			time.Sleep(trafficPeriod / 2)
			bulk.traffic.add(bulkStep, l.now())
		}
		count := map[uint8]int{}
		for range 9 {
			count[open()]++
		}
		if count[2] > 0 || count[1] != 3 || count[3] != 3 || count[4] != 3 {
			t.Errorf("new streams beside bulk on carrier 2: %v, want three on each other", count)
		}
		for i := range l.slots {
			l.slots[i].core.traffic.add(2*bulkStep-i*100, l.now())
		}
		if got := open(); got == 2 {
			t.Error("where all are busy, the busiest got the new stream")
		}
		time.Sleep(2 * trafficPeriod)
		if got := open(); got != 2 {
			t.Errorf("after the bulk, carrier %d got the new stream, want 2, which has none", got)
		}
	})
}

// TestNewStreamsAvoidTheFull: a carrier that may not have more streams is no choice while another has room, be it busy or away.
func TestNewStreamsAvoidTheFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(false, nil, nil, NewBudget(0).only(), 3)
		for _, sl := range l.slots[:3] { // the bridge has two carriers, and never a third
			sl.core.limits.open, sl.attached = 10, true
		}
		for i := range 20 {
			l.slots[1].core.traffic.add(4*bulkStep, l.now())
			if _, err := l.Open(wire.Open{}); err != nil {
				t.Fatalf("connection %d: %v; the carriers have %d and %d", i+1, err, len(l.slots[1].core.streams), len(l.slots[2].core.streams))
			}
		}
		if _, err := l.Open(wire.Open{}); err == nil {
			t.Error("one more than both may have was opened")
		}
	})
}

func TestTraffic(t *testing.T) {
	var c traffic
	now := time.Second
	for _, tt := range []struct {
		after time.Duration
		add   int
		want  uint64
	}{
		{0, 100, 100},
		{trafficPeriod / 2, 10, 110},
		{trafficPeriod / 2, 1, 111},
		{trafficPeriod, 0, 1},
		{trafficPeriod, 0, 0},
		{time.Hour, 5, 5},
		{2 * trafficPeriod, 0, 0},
	} {
		now += tt.after
		c.add(tt.add, now)
		if got := c.lately(now); got != tt.want {
			t.Errorf("after %v more and %d bytes: %d lately, want %d", tt.after, tt.add, got, tt.want)
		}
	}
}

// TestNewStreamsAvoidTheDead: the reset of a bridge's connection counts before anybody has read that far.
func TestNewStreamsAvoidTheDead(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the proxy cannot ask there")
	}
	l := newLink(false, nil, nil, NewBudget(0).only(), 2)
	var bridge []*net.TCPConn
	for _, sl := range l.slots[1:] {
		near, far := recordOverTCP(t)
		bridge = append(bridge, far)
		sl.install(newCarrier(sl, near))
	}
	open := func() uint8 {
		s, err := l.Open(wire.Open{})
		if err != nil {
			t.Fatal(err)
		}
		return s.slot.index
	}
	kill := func(i int) {
		bridge[i].Write([]byte("unread"))
		bridge[i].SetLinger(0)
		bridge[i].Close()
		for near, late := l.slots[i+1].cur.conn, time.Now().Add(time.Minute); !near.HungUp(); time.Sleep(time.Millisecond) {
			if time.Now().After(late) {
				t.Fatal("the reset did not arrive")
			}
		}
	}
	if first, second := open(), open(); first == second {
		t.Errorf("both new streams are on carrier %d", first)
	}
	kill(0)
	if first, second := open(), open(); first != 2 || second != 2 {
		t.Errorf("new streams are on carriers %d and %d, want the living one", first, second)
	}
	if !l.Up() {
		t.Error("a link of which one carrier lives is not up")
	}
	kill(1)
	if l.Up() {
		t.Error("a link all of whose carriers were reset is up")
	}
	open() // waits for one to come back
}

// recordOverTCP returns the near end of a connection after its handshake, and the far one's socket.
func recordOverTCP(t *testing.T) (near *record.Conn, far *net.TCPConn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{testIdentity()}, InsecureSkipVerify: true, SessionTicketsDisabled: true}
	var other sync.WaitGroup
	other.Go(func() { record.Client(t.Context(), b, cfg) })
	near, err = record.Server(t.Context(), a, cfg, record.Steps{})
	other.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return near, b.(*net.TCPConn)
}
