package traffic

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/logtest"
	"reverser/internal/relay"
	"reverser/internal/wire"
)

// TestEndThese: an operator's order ends the connections that it means, by each of its words and by several together, and nobody else's.
func TestEndThese(t *testing.T) {
	name := func(id [16]byte) string {
		if id == keyA {
			return "nas"
		}
		return ""
	}
	idB := fmt.Sprintf("%x", keyB)
	for _, c := range []struct {
		said string
		w    Which
		want string // of 1 to 5
	}{
		{"all", Which{}, "12345"},
		{"a service", Which{Service: func(s string) bool { return s == "tcp/9000" }}, "124"},
		{"a key", Which{Key: "nas"}, "123"},
		{"a key by its id", Which{Key: idB}, "45"},
		{"a key by the beginning of its id", Which{Key: idB[:8]}, "45"},
		{"too little of an id", Which{Key: idB[:7]}, ""},
		{"no key", Which{Key: "other"}, ""},
		{"a client", Which{Client: netip.MustParsePrefix("203.0.113.7/32")}, "14"},
		{"a network", Which{Client: netip.MustParsePrefix("203.0.113.0/24")}, "1245"},
		{"a network of IPv6", Which{Client: netip.MustParsePrefix("2001:db8::/32")}, "3"},
		{"key and client", Which{Key: "nas", Client: netip.MustParsePrefix("203.0.113.7/32")}, "1"},
		{"service, key and client", Which{Key: "nas", Client: netip.MustParsePrefix("203.0.113.8/32"), Service: func(s string) bool { return s == "tcp/9001" }}, ""},
	} {
		t.Run(c.said, func(t *testing.T) {
			bubble(t, Config{Name: name}, func(t *testing.T, co *Conns, log *logtest.Journal) {
				pairs := make([]fake, 5)
				for i, p := range []struct {
					key     [16]byte
					service string
					client  string
				}{
					{keyA, "tcp/9000", "203.0.113.7:1"}, {keyA, "tcp/9000", "203.0.113.8:1"}, {keyA, "tcp/9001", "[2001:db8::1]:1"},
					{keyB, "tcp/9000", "[::ffff:203.0.113.7]:1"}, {keyB, "tcp/9002", "203.0.113.9:1"},
				} {
					admit(t, co.Account(p.key, p.service), netip.MustParseAddrPort(p.client)).bind(&pairs[i], "")
				}
				n := co.EndThese(c.w)
				got := ""
				for i := range pairs {
					if reason, code := pairs[i].how(); reason == relay.ReasonEnded && code == wire.CodeEnded {
						got += strconv.Itoa(i + 1)
					}
				}
				if got != c.want || n != len(c.want) {
					t.Errorf("EndThese = %d, and %q ended; want %q", n, got, c.want)
				}
				synctest.Wait()
				if said := log.Count("pair released", "reason=ended"); said != n {
					t.Errorf("%d of %d ends are in the log", said, n)
				}
			})
		})
	}
}

// TestEndOne: the id of status names one connection, written as status writes it.
func TestEndOne(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		account := c.Account(keyA, "tcp/9000")
		var one, other fake
		a := admit(t, account, alice)
		a.bind(&one, "")
		admit(t, account, alice).bind(&other, "")
		id := a.Status().ID
		for _, wrong := range []string{"0", "99", "x", "-1", "+" + id, "0" + id, " " + id, strings.Repeat("9", 40)} {
			if n := c.EndThese(Which{ID: wrong}); n != 0 {
				t.Errorf("%q ended %d", wrong, n)
			}
		}
		if n := c.EndThese(Which{ID: id, Key: "somebody"}); n != 0 {
			t.Errorf("it is not somebody's, and %d ended", n)
		}
		if n := c.EndThese(Which{ID: id}); n != 1 {
			t.Errorf("EndThese = %d, want 1", n)
		}
		if reason, _ := one.how(); reason != relay.ReasonEnded {
			t.Errorf("it ended with %q", reason)
		}
		if reason, _ := other.how(); reason != "" {
			t.Errorf("the other one ended with %q", reason)
		}
		synctest.Wait()
		if n := c.EndThese(Which{ID: id}); n != 0 {
			t.Errorf("it ended twice")
		}
	})
}

// BenchmarkEndThese is what it costs to find and end 10,000 connections of a service among as many others.
func BenchmarkEndThese(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		c := New(Config{Max: 100_000, Clients: 16})
		worlds.Store(&c.ledger, c)
		c.LogPairs(false)
		pairs := make([]fake, 20_000)
		for i := range pairs {
			client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)
			admit(b, c.Account(keyA, fmt.Sprintf("tcp/%d", 9000+i%2)), client).bind(&pairs[i], "")
		}
		b.StartTimer()
		begun := time.Now()
		if n := c.EndThese(Which{Service: func(s string) bool { return s == "tcp/9000" }}); n != 10_000 {
			b.Fatalf("%d ended", n)
		}
		b.ReportMetric(float64(time.Since(begun).Milliseconds()), "ms/order")
		b.StopTimer()
		c.Close()
		worlds.Delete(&c.ledger)
		b.StartTimer()
	}
}
