package grammar

import (
	"net"
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
