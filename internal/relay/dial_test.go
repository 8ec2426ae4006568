package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/memnet"
	"reverser/internal/sys"
)

// lan is a network in memory with a resolver, and a limit on local ports.
type lan struct {
	memnet.Net
	names map[string][]string

	mu    sync.Mutex
	ports map[netip.Addr]int // left, by source; a source that is not there has no end of them. guarded by mu, as all below
	tried []string           // SOURCE>ADDR
}

func (n *lan) dialer() *Dialer {
	return &Dialer{
		lookup: func(_ context.Context, _, host string) (ips []netip.Addr, err error) {
			for _, a := range n.names[host] {
				ips = append(ips, netip.MustParseAddr(a))
			}
			return ips, nil
		},
		from: func(ctx context.Context, source netip.Addr, _, addr string) (net.Conn, error) {
			n.mu.Lock()
			from := ""
			if source.IsValid() {
				from = source.String() + ">"
			}
			n.tried = append(n.tried, from+addr)
			left, limited := n.ports[source]
			if limited {
				n.ports[source] = max(left-1, 0)
			}
			n.mu.Unlock()
			if limited && left == 0 {
				return nil, &sys.NoPortError{Addr: addr, Err: syscall.EADDRNOTAVAIL}
			}
			return n.Dial(ctx, addr)
		},
	}
}

func (n *lan) listen(t *testing.T, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		ln, err := n.Listen(a)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
	}
}

// reach dials and returns where it got, and how long that took.
func reach(t *testing.T, d *Dialer, addr string) (at string, took time.Duration, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	begin := time.Now()
	c, err := d.Dial(ctx, "tcp", addr)
	if err == nil {
		at = c.RemoteAddr().String()
		c.Close()
	}
	return at, time.Since(begin), err
}

// TestDialDeadAddress: the first address of a name is dead. It costs one connection a moment, and those behind it nothing for a minute.
func TestDialDeadAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &lan{names: map[string][]string{"nas": {"192.0.2.1", "192.0.2.2", "192.0.2.3"}}}
		n.listen(t, "192.0.2.2:80", "192.0.2.3:80")
		n.SetDials("192.0.2.1:80", memnet.DialHang)
		d := n.dialer()
		for _, want := range []struct{ sleep, took time.Duration }{{0, nextAddress}, {0, 0}, {30 * time.Second, 0}, {31 * time.Second, nextAddress}} {
			time.Sleep(want.sleep)
			if at, took, err := reach(t, d, "nas:80"); at != "192.0.2.2:80" || took != want.took {
				t.Errorf("reached %q after %s, %v; want the second address after %s", at, took, err, want.took)
			}
		}
		// It comes back, and is the first again once it is trusted.
		n.SetDials("192.0.2.1:80", memnet.DialConnect)
		n.listen(t, "192.0.2.1:80")
		time.Sleep(time.Minute)
		if at, took, err := reach(t, d, "nas:80"); at != "192.0.2.1:80" || took != 0 {
			t.Errorf("reached %q after %s, %v; want the first address at once", at, took, err)
		}
	})
}

// TestDialRaces: an address that refuses costs nothing, several dead ones a moment each, and the families take turns.
func TestDialRaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &lan{names: map[string][]string{
			"refuses": {"192.0.2.1", "192.0.2.9"},
			"dead":    {"2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.9", "192.0.2.8"},
			"none":    {"192.0.2.1", "192.0.2.4"},
			"nothing": nil,
		}}
		n.listen(t, "192.0.2.9:80")
		for _, a := range []string{"[2001:db8::1]:80", "[2001:db8::2]:80", "[2001:db8::3]:80"} {
			n.SetDials(a, memnet.DialHang)
		}
		if at, took, err := reach(t, n.dialer(), "refuses:80"); at != "192.0.2.9:80" || took != 0 {
			t.Errorf("reached %q after %s, %v; want the second address at once", at, took, err)
		}
		if at, took, err := reach(t, n.dialer(), "dead:80"); at != "192.0.2.9:80" || took != nextAddress {
			t.Errorf("reached %q after %s, %v; want the other family's after %s", at, took, err, nextAddress)
		}
		if _, took, err := reach(t, n.dialer(), "none:80"); !sys.Refused(err) || took != 0 {
			t.Errorf("dial = %v after %s; want refused at once", err, took)
		}
		var dns *net.DNSError
		if _, _, err := reach(t, n.dialer(), "nothing:80"); !errors.As(err, &dns) {
			t.Errorf("dial = %v; want a DNSError", err)
		}
		n.SetDials("192.0.2.4:80", memnet.DialHang)
		if _, took, err := reach(t, n.dialer(), "none:80"); !sys.Refused(err) || took != 10*time.Second {
			t.Errorf("dial = %v after %s; want what the first said, when the other had its time", err, took)
		}
	})
}

// TestDialForgets: what failed is remembered for a bounded number of addresses.
func TestDialForgets(t *testing.T) {
	d := &Dialer{}
	for i := range 3 * mostFailed {
		d.answered("", []string{fmt.Sprint(i)})
	}
	if len(d.failed) != mostFailed {
		t.Errorf("%d addresses are remembered, want %d", len(d.failed), mostFailed)
	}
	last := fmt.Sprint(3*mostFailed - 1)
	if got := d.failedLast([]string{last, "other"}); !slices.Equal(got, []string{"other", last}) {
		t.Errorf("order %v; want the one that failed last at the end", got)
	}
	d.answered(last, nil)
	if got := d.failedLast([]string{last, "other"}); !slices.Equal(got, []string{last, "other"}) {
		t.Errorf("order %v; want the one that answered where it was", got)
	}
}

// TestNoPortIsWaitedFor: dials wait for a local port and are all served when there are some; whoever got none says what is missing.
func TestNoPortIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &lan{ports: map[netip.Addr]int{{}: 0}}
		n.listen(t, "192.0.2.1:80")
		var warnings []string
		var mu sync.Mutex
		d := n.dialer()
		d.Warn = func(err error) {
			mu.Lock()
			defer mu.Unlock()
			warnings = append(warnings, err.Error())
		}
		const dials = 50
		var wg sync.WaitGroup
		for range dials {
			wg.Go(func() {
				if _, took, err := reach(t, d, "192.0.2.1:80"); err != nil || took > 6*time.Second {
					t.Errorf("dial = %v after %s; want a connection soon after there are ports", err, took)
				}
			})
		}
		time.Sleep(5 * time.Second)
		n.mu.Lock()
		if len(n.tried) > dials+int(5*time.Second/portPause) {
			t.Errorf("%d attempts in 5 s: all that wait try again, not one", len(n.tried))
		}
		n.ports[netip.Addr{}] = dials
		n.mu.Unlock()
		wg.Wait()
		_, took, err := reach(t, d, "192.0.2.1:80")
		if noPort, ok := errors.AsType[*sys.NoPortError](err); !ok || took != 10*time.Second || noPort.Addr != "192.0.2.1:80" {
			t.Errorf("dial = %v after %s; want NoPortError when the time is over", err, took)
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0], "192.0.2.1:80") {
			t.Errorf("warnings %q; want one", warnings)
		}
		time.Sleep(time.Minute)
		reach(t, d, "192.0.2.1:80")
		if len(warnings) != 2 {
			t.Errorf("%d warnings a minute later; want another one", len(warnings))
		}
		if len(d.queues) != 0 {
			t.Errorf("%d queues are left", len(d.queues))
		}
	})
}

// TestSourceOfAnotherMachine: the error names the source. The system does not choose another one by itself.
func TestSourceOfAnotherMachine(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var d Dialer
	d.SetSources([]netip.Addr{netip.MustParseAddr("192.0.2.77")}) // RFC 5737: nobody's
	if c, err := d.Dial(t.Context(), "tcp", ln.Addr().String()); err == nil || !strings.Contains(err.Error(), "source 192.0.2.77: is it an address of this machine?") {
		t.Errorf("Dial = %v, %v; want an error that names the source", c, err)
	}
	d.SetSources(nil)
	c, err := d.Dial(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatalf("Dial without sources: %v", err)
	}
	c.Close()
}

// TestSources: connections come from each source in turn, and from the others where one has no port left.
func TestSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
		n := &lan{ports: map[netip.Addr]int{a: 2, b: 4}}
		n.listen(t, "192.0.2.1:80", "[2001:db8::1]:80")
		d := n.dialer()
		d.SetSources([]netip.Addr{a, netip.MustParseAddr("2001:db8::7"), b})
		for i := range 6 {
			if _, took, err := reach(t, d, "192.0.2.1:80"); err != nil || took != 0 {
				t.Errorf("connection %d: %v after %s; want it at once", i, err, took)
			}
		}
		if n.ports[a] != 0 || n.ports[b] != 0 {
			t.Errorf("ports are left: %v", n.ports)
		}
		n.tried = nil
		if _, _, err := reach(t, d, "[2001:db8::1]:80"); err != nil || !slices.Equal(n.tried, []string{"2001:db8::7>[2001:db8::1]:80"}) {
			t.Errorf("tried %v, %v; want the source of the target's family", n.tried, err)
		}
	})
}

// TestDialAs: a user's address leads to the target's addresses of the same family, and to no other.
func TestDialAs(t *testing.T) {
	n := &lan{names: map[string][]string{"both.lan": {"2001:db8::5", "192.0.2.5"}, "four.lan": {"192.0.2.5"}}}
	n.listen(t, "192.0.2.5:80", "[2001:db8::5]:80")
	d := n.dialer()
	var from []string
	d.as = func(ctx context.Context, user netip.Addr, _, addr string) (net.Conn, error) {
		from = append(from, user.String()+">"+addr)
		return n.Dial(ctx, addr)
	}
	for _, c := range []struct{ user, addr, want string }{
		{"198.51.100.7", "both.lan:80", "198.51.100.7>192.0.2.5:80"},
		{"2001:db8::7", "both.lan:80", "2001:db8::7>[2001:db8::5]:80"},
		{"::ffff:198.51.100.7", "192.0.2.5:80", "198.51.100.7>192.0.2.5:80"},
		{"2001:db8::7", "192.0.2.5:80", "the target has no IPv6 address"},
		{"2001:db8::7", "four.lan:80", "the target has no IPv6 address"},
		{"198.51.100.7", "[2001:db8::5]:80", "the target has no IPv4 address"},
	} {
		from = nil
		conn, err := d.DialAs(t.Context(), netip.MustParseAddr(c.user), "tcp", c.addr)
		if err == nil {
			conn.Close()
			if len(from) != 1 || from[0] != c.want {
				t.Errorf("from %s to %s: dialled %q, want %q", c.user, c.addr, from, c.want)
			}
		} else if _, family := errors.AsType[*FamilyError](err); !family || !strings.Contains(err.Error(), c.want) || len(from) > 0 {
			t.Errorf("from %s to %s: %v, want %q", c.user, c.addr, err, c.want)
		}
	}
	if n.tried != nil {
		t.Errorf("dialled %q from an address of its own", n.tried)
	}
}
