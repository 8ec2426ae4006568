package grammar

import (
	"net"
	"strings"
	"testing"
)

func TestListenNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		":3010": "tcp", "0.0.0.0:3010": "tcp4", "192.0.2.1:3010": "tcp4", "[::]:3010": "tcp6", "[2001:db8::1]:3010": "tcp6",
		"[fe80::1%eth0]:3010": "tcp6", "[::ffff:192.0.2.1]:3010": "tcp4", "localhost:3010": "tcp", "": "tcp",
	} {
		if got := ListenNetwork("tcp", addr); got != want {
			t.Errorf("ListenNetwork(%q) = %q, want %q", addr, got, want)
		}
	}
}

func TestListenOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{":1", ":1", true}, {":1", ":2", false}, {":1", "127.0.0.1:1", true}, {":1", "[::1]:1", true},
		{"0.0.0.0:1", "127.0.0.1:1", true}, {"0.0.0.0:1", "[::]:1", false}, {"0.0.0.0:1", "[::1]:1", false},
		{"[::]:1", "[::1]:1", true}, {"127.0.0.1:1", "127.0.0.2:1", false}, {"127.0.0.1:1", "127.0.0.1:1", true},
	} {
		if got := ListenOverlap(c.a, c.b); got != c.want {
			t.Errorf("ListenOverlap(%q, %q) = %t, want %t", c.a, c.b, got, c.want)
		}
		if got := ListenOverlap(c.b, c.a); got != c.want {
			t.Errorf("ListenOverlap(%q, %q) = %t, want %t", c.b, c.a, got, c.want)
		}
	}
}

// TestListenTakesAddressesLiterally asks the system.
func TestListenTakesAddressesLiterally(t *testing.T) {
	if ln, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skipf("no IPv6 here: %v", err)
	} else {
		ln.Close()
	}
	for host, want := range map[string][2]bool{"": {true, true}, "0.0.0.0": {true, false}, "::": {false, true}} {
		addr := net.JoinHostPort(host, "0")
		ln, err := net.Listen(ListenNetwork("tcp", addr), addr)
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		for i, to := range []string{"127.0.0.1", "::1"} {
			c, err := net.Dial("tcp", net.JoinHostPort(to, port))
			if err == nil {
				c.Close()
			}
			if got := err == nil; got != want[i] {
				t.Errorf("listening on %q: %s answers: %t, want %t", addr, to, got, want[i])
			}
		}
		ln.Close()
	}
}

func TestParseBind(t *testing.T) {
	for in, want := range map[string]string{
		"203.0.113.5": "203.0.113.5", "::ffff:203.0.113.5": "203.0.113.5", "2001:DB8::1": "2001:db8::1", "fe80::1%eth0": "fe80::1%eth0", "0.0.0.0": "0.0.0.0", "::": "::", "127.0.0.1": "127.0.0.1",
	} {
		got, err := ParseBind(in)
		if err != nil || got != want {
			t.Errorf("ParseBind(%q) = %q, %v; want %q", in, got, err, want)
		}
		if again, err := ParseBind(got); err != nil || again != got {
			t.Errorf("ParseBind(%q) = %q, %v; want the same again", got, again, err)
		}
	}
	for in, want := range map[string]string{
		"": "is no IP address", "eth0": "is no IP address", "203.0.113.5:9000": "without a port", "[::1]": "is no IP address", "203.0.113.0/24": "is no IP address",
		"224.0.0.1": "many machines", "255.255.255.255": "many machines", "ff02::1": "many machines", "fe80::1%a/b": "interface name", "rv1_AAAA": "a token stands where",
	} {
		if got, err := ParseBind(in); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "rv1_") {
			t.Errorf("ParseBind(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestAt(t *testing.T) {
	for in, want := range map[string]string{
		"tcp/9000": "tcp/10.0.0.1:9000", "udp/53": "udp/10.0.0.1:53", "tcp/127.0.0.1:9000": "tcp/127.0.0.1:9000", "http/*": "http/*", "private/db": "private/db", "offered": "offered",
	} {
		p, err := ParsePublic(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.At("10.0.0.1").String(); got != want {
			t.Errorf("%s at 10.0.0.1 = %s; want %s", in, got, want)
		}
		if got := p.At(""); got != p {
			t.Errorf("%s at every address = %s", in, got)
		}
	}
}
