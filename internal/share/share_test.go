package share

import (
	"net/netip"
	"testing"
)

// TestPool: however much one address wants, others find half of what is left, and what is given back is there for all.
func TestPool(t *testing.T) {
	p := Pool{Size: 1600}
	all := func(addr string) (n int64) {
		for p.Take(netip.MustParseAddr(addr), 100) {
			n += 100
		}
		return n
	}
	for _, c := range []struct {
		addr string
		want int64
	}{
		{"192.0.2.1", 800},
		{"192.0.2.2", 400},
		{"::ffff:192.0.2.1", 0}, // it has its share
		{"2001:db8::1", 200},
		{"2001:db8::2", 0}, // of the same customer
		{"2001:db8:0:1::1", 100},
		{"192.0.2.3", 0}, // half of the rest is too little
	} {
		if got := all(c.addr); got != c.want {
			t.Errorf("%s got %d, want %d", c.addr, got, c.want)
		}
	}
	if got, want := p.Taken(), (Taken{1500, 1600, netip.MustParsePrefix("192.0.2.1/32"), 800}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	p.Give(netip.MustParseAddr("192.0.2.1"), 800)
	if got := all("192.0.2.3"); got != 400 {
		t.Errorf("behind the end of the largest: %d, want 400", got)
	}
	for addr, n := range map[string]int64{"192.0.2.2": 400, "192.0.2.3": 400, "2001:db8::2": 200, "2001:db8:0:1::1": 100} {
		p.Give(netip.MustParseAddr(addr), n)
	}
	if got := p.Taken(); got.Used != 0 || len(p.by) != 0 {
		t.Errorf("when all is given back: %+v, %d blocks", got, len(p.by))
	}
}
