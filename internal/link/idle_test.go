package link

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// meter counts what crosses one connection, both ways, as a line would bill it.
type meter struct {
	net.Conn
	mu      sync.Mutex
	bytes   int // with the headers of TCP and IPv6, and an acknowledgement of each segment
	packets int
}

// headers are those of IPv6 and of TCP with timestamps.
const headers = 40 + 32

func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += n + 2*headers
	m.packets++
}

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	if n > 0 {
		m.add(n)
	}
	return n, err
}

func (m *meter) Write(b []byte) (int, error) {
	m.add(len(b))
	return m.Conn.Write(b)
}

// meters are those of all connections of a bridge, in the order in which they were dialled.
type meters struct {
	mu  sync.Mutex
	all []*meter
}

func (ms *meters) take() (bytes, packets []int) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.all {
		m.mu.Lock()
		bytes, packets = append(bytes, m.bytes), append(packets, m.packets)
		m.bytes, m.packets = 0, 0
		m.mu.Unlock()
	}
	return bytes, packets
}

// newIdleWorld has ends that keep an idle link cheap, unless the proxy is an old one.
func newIdleWorld(t testing.TB, keepalive time.Duration, old bool, changes ...func(*DialerConfig)) (*world, *meters) {
	n := &memnet.Net{}
	ln, err := n.Listen("proxy:3010")
	if err != nil {
		t.Fatal(err)
	}
	ms := &meters{}
	features := wire.FeatureDialOpens
	if !old {
		features |= Features
	}
	w := startWorld(t, features, 0, 0, ln, func(ctx context.Context) (net.Conn, error) {
		conn, err := n.Dial(ctx, "proxy:3010")
		if err != nil {
			return nil, err
		}
		m := &meter{Conn: conn}
		ms.mu.Lock()
		ms.all = append(ms.all, m)
		ms.mu.Unlock()
		return m, nil
	}, append(changes, func(cfg *DialerConfig) { cfg.Keepalive = keepalive })...)
	w.net = n
	return w, ms
}

// up counts the carriers that are connected.
func (r *recorder) carriersUp() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for slot, up := range r.up {
		if slot > 0 && up {
			n++
		}
	}
	return n
}

// TestIdleLinkCosts: nothing but a PING and its answer crosses an idle link, on one connection, every 25 seconds or what the bridge
// was told; an open stream that says nothing changes nothing.
func TestIdleLinkCosts(t *testing.T) {
	for _, tt := range []struct {
		keepalive time.Duration
		streams   int
		most      int // bytes in a day
	}{
		{0, 0, 3_000_000},
		{0, 1, 3_000_000},
		{5 * time.Second, 0, 10_000_000},
		{10 * time.Minute, 0, 100_000},
	} {
		t.Run(fmt.Sprintf("keepalive %s, %d streams", tt.keepalive, tt.streams), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, ms := newIdleWorld(t, tt.keepalive, false)
				defer w.close()
				for range tt.streams {
					a, b := w.open()
					echo(t, a, b)
				}
				time.Sleep(20 * time.Minute)
				ms.take()
				time.Sleep(24 * time.Hour)
				bytes, packets := ms.take()
				if len(bytes) != 1+idleCarriers {
					t.Errorf("%d connections in a day, want %d", len(bytes), 1+idleCarriers)
				}
				if packets[1] != 0 {
					t.Errorf("%d packets on the carrier", packets[1])
				}
				if bytes[0] > tt.most {
					t.Errorf("%d bytes a day, want at most %d", bytes[0], tt.most)
				}
				if want := 2 * int(24*time.Hour/max(tt.keepalive, LeastKeepalive)); packets[0] > want+2 {
					t.Errorf("%d packets a day, want at most %d", packets[0], want)
				}
				t.Logf("%.2f MB a day", float64(bytes[0])/1e6)
			})
		})
	}
}

// TestRelayedCarriers: where something in between ends TCP, an idle carrier is asked as the control connection is. Nothing of it is
// silent for long enough to be cut there.
func TestRelayedCarriers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ms := newIdleWorld(t, time.Minute, false, func(cfg *DialerConfig) {
			dial := cfg.Dial
			cfg.Dial = func(ctx context.Context, carrier bool, transfer uint16, prove Prove) (*auth.Conn, error) {
				conn, err := dial(ctx, carrier, transfer, prove)
				if err == nil {
					conn.Relayed = true
				}
				return conn, err
			}
		})
		defer w.close()
		time.Sleep(20 * time.Minute)
		ms.take()
		for range 100 {
			time.Sleep(time.Minute + 10*time.Second)
			_, packets := ms.take()
			if len(packets) != 1+idleCarriers {
				t.Fatalf("%d connections, want %d", len(packets), 1+idleCarriers)
			}
			for slot, n := range packets {
				if n < 2 || n > 4 {
					t.Errorf("%d packets on connection %d within a minute, want a PING and its answer", n, slot)
				}
			}
		}
	})
}

// TestOldProxyKeepsAll: a proxy that does not know of idle links has all connections, and all are asked.
func TestOldProxyKeepsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ms := newIdleWorld(t, 0, true)
		defer w.close()
		time.Sleep(time.Minute)
		ms.take()
		time.Sleep(time.Hour)
		_, packets := ms.take()
		if len(packets) != 1+testCarriers {
			t.Errorf("%d connections, want %d", len(packets), 1+testCarriers)
		}
		for slot, n := range packets {
			if n < 2*700 {
				t.Errorf("connection %d was asked %d times in an hour", slot, n/2)
			}
		}
	})
}

// TestSilentDeathOfAnIdleLink: connections that died without a sign while nothing moved. Who comes then is served soon, over a new
// connection: within two seconds where the control connection is alive or the bridge speaks first, and otherwise when the bridge
// has found out by itself. Nobody is lost.
func TestSilentDeathOfAnIdleLink(t *testing.T) {
	for _, tt := range []struct {
		name    string
		control bool // dead too
		bridge  bool // opens the stream
		within  time.Duration
	}{
		{"carrier, opened by the proxy", false, false, 2 * time.Second},
		{"both, opened by the proxy", true, false, Keepalive + 4*time.Second},
		{"carrier, opened by the bridge", false, true, 2 * time.Second},
		{"both, opened by the bridge", true, true, 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var longest time.Duration
				for i := range 26 {
					w, _ := newIdleWorld(t, 0, false)
					w.net.SetLatency(memnet.Both, 20*time.Millisecond)
					time.Sleep(10*time.Minute + time.Duration(i)*time.Second)
					conns := w.net.Conns()
					if len(conns) != 2 {
						t.Fatalf("%d connections", len(conns))
					}
					for slot, c := range conns {
						if slot == 1 || tt.control {
							c.BlackHole(memnet.Both)
						}
					}
					opener, other := w.px, w.br
					if tt.bridge {
						opener, other = w.br, w.px
					}
					begin := time.Now()
					a, b := w.openAt(opener, other)
					echo(t, a, b)
					echo(t, b, a)
					longest = max(longest, time.Since(begin))
					// Others come in the middle of it, and are not lost either.
					c, d := w.openAt(opener, other)
					echo(t, c, d)
					w.close()
				}
				if longest > tt.within {
					t.Errorf("served after %s, want at most %s", longest, tt.within)
				}
				t.Logf("longest: %s", longest)
			})
		})
	}
}

// TestUserOfAnIdleLink: a user who comes at any moment between two questions on the control connection costs no connection, also where
// the carrier had died.
func TestUserOfAnIdleLink(t *testing.T) {
	for _, dead := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			for i := range 60 {
				w, ms := newIdleWorld(t, 0, false)
				w.net.SetLatency(memnet.Both, 20*time.Millisecond)
				time.Sleep(10*time.Minute + time.Duration(i)*500*time.Millisecond)
				want := 2
				if dead {
					w.net.Conns()[1].BlackHole(memnet.Both)
					want++
				}
				a, b := w.openAt(w.px, w.br)
				echo(t, a, b)
				time.Sleep(time.Minute)
				ms.mu.Lock()
				n := len(ms.all)
				ms.mu.Unlock()
				if n != want {
					t.Errorf("user after %.1f s, carrier dead %t: %d connections were dialled, want %d", float64(i)/2, dead, n, want)
				}
				w.close()
			}
		})
	}
}

// TestUsersWhoComeWhileNobodyKnows: all who come to the proxy between the silent death of the link and the bridge's next question
// are served behind it.
func TestUsersWhoComeWhileNobodyKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := newIdleWorld(t, 0, false)
		defer w.close()
		time.Sleep(10 * time.Minute)
		w.hole(memnet.Both)
		var users sync.WaitGroup
		users.Go(func() {
			for s := range w.br.streams {
				users.Go(func() { io.Copy(s, s); s.Close() })
			}
		})
		var came sync.WaitGroup
		for range 60 {
			came.Go(func() {
				if !w.px.session().Connected() {
					t.Error("the proxy takes the link for lost")
					return
				}
				s, err := w.px.session().Open(wire.Open{})
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				s.Write([]byte("x"))
				s.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
					t.Errorf("lost: %v", err)
				}
			})
			time.Sleep(500 * time.Millisecond)
		}
		came.Wait()
		close(w.br.streams)
		users.Wait()
	})
}

// TestFurtherCarriersComeAndGo: with the second stream, or much traffic, the bridge dials all carriers; a minute after the last
// stream has left them they are gone, and the link costs what it did before.
func TestFurtherCarriersComeAndGo(t *testing.T) {
	for _, bulk := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, ms := newIdleWorld(t, 0, false)
			defer w.close()
			for round := range 3 {
				a, b := w.open()
				echo(t, a, b)
				time.Sleep(time.Minute)
				if n := w.br.carriersUp(); n != idleCarriers {
					t.Errorf("%d carriers with one stream that says little, want %d", n, idleCarriers)
				}
				var c, d *Stream
				if bulk {
					go func() { a.Write(make([]byte, 8<<20)) }()
					for range 8 {
						io.ReadFull(b, make([]byte, 1<<20))
						time.Sleep(100 * time.Millisecond)
					}
					time.Sleep(3 * time.Second)
				} else {
					c, d = w.open()
					echo(t, c, d)
					time.Sleep(time.Second)
				}
				if n := w.br.carriersUp(); n != testCarriers {
					t.Errorf("round %d, bulk %v: %d carriers, want %d", round, bulk, n, testCarriers)
				}
				e, f := w.open() // on a further one
				echo(t, e, f)
				for _, s := range []*Stream{a, b, c, d, e, f} {
					if s != nil {
						s.Close()
					}
				}
				time.Sleep(2*restAfter + time.Second)
				if p, b := w.px.carriersUp(), w.br.carriersUp(); p != idleCarriers || b != idleCarriers {
					t.Errorf("round %d: %d and %d carriers behind a minute of rest, want %d", round, p, b, idleCarriers)
				}
			}
			time.Sleep(20 * time.Minute)
			ms.take()
			time.Sleep(24 * time.Hour)
			bytes, _ := ms.take()
			sum := 0
			for _, n := range bytes {
				sum += n
			}
			if sum > 3_000_000 {
				t.Errorf("%d bytes a day behind it", sum)
			}
			if err := w.br.session().Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOpenCrossesRetire: a stream that is opened on a carrier at the moment when the bridge retires it is served.
func TestOpenCrossesRetire(t *testing.T) {
	crossed := 0
	for i := range 60 {
		synctest.Test(t, func(t *testing.T) {
			w, _ := newIdleWorld(t, 0, false)
			defer w.close()
			w.net.SetLatency(memnet.Both, 50*time.Millisecond)
			a, b := w.open()
			c, d := w.open()
			echo(t, a, b)
			echo(t, c, d)
			time.Sleep(time.Second)
			l, sl := w.px.session(), w.px.session().slots[2]
			c.Close()
			d.Close()
			time.Sleep(restAfter - 2*time.Second)
			for retiring := false; !retiring; time.Sleep(5 * time.Millisecond) {
				other := w.br.session().slots[2]
				other.mu.Lock()
				retiring = other.cur != nil && other.cur.retiredAt != 0
				other.mu.Unlock()
			}
			time.Sleep(time.Duration(i) * 2 * time.Millisecond)
			sl.mu.Lock()
			connected := sl.cur != nil
			s, err := l.openLocked(sl, wire.Open{})
			sl.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			l.check(sl)
			if connected {
				crossed++
			}
			begin := time.Now()
			echo(t, s, <-w.br.streams)
			if took := time.Since(begin); took > time.Second {
				t.Errorf("served after %s", took)
			}
		})
	}
	if crossed == 0 || crossed == 60 {
		t.Errorf("%d of 60 OPENs crossed a RETIRE", crossed)
	}
}

// TestKeepaliveOf: what a bridge may say.
func TestKeepaliveOf(t *testing.T) {
	for _, tt := range []struct {
		ms   uint32
		want time.Duration
	}{{0, Keepalive}, {1, LeastKeepalive}, {5000, LeastKeepalive}, {60_000, time.Minute}, {3_600_000, time.Hour}, {1<<32 - 1, MostKeepalive}} {
		if got := keepaliveOf(tt.ms); got != tt.want {
			t.Errorf("keepaliveOf(%d) = %s, want %s", tt.ms, got, tt.want)
		}
	}
}
