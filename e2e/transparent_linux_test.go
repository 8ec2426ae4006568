package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"reverser/e2e/netlab"
)

// TestTransparent: without routes, the log says what leads a target's answers back. With exactly these routes, targets on the bridge's
// machine and behind it see each user's own address.
func TestTransparent(t *testing.T) {
	t.Parallel() // it mostly waits
	need(t, iptables)
	lab := needLab(t)
	behind, err := lab.Behind()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(behind.Close)
	if err := lab.LAN.Run("sysctl -q net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1"); err != nil {
		t.Fatal(err)
	}
	// A target tells whom it sees, then what it hears.
	sees := func(c *net.TCPConn) {
		fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).IP)
		io.Copy(c, c)
	}
	services := []struct {
		public int
		host   *netlab.Host
		at     string
		user   string
	}{{9001, lab.LAN, "127.0.0.1:0", "203.0.113.7"}, {9002, lab.LAN, "[::1]:0", "2001:db8::7"}, {9003, behind, netlab.BehindIP + ":0", "203.0.113.8"}}
	conf := "proxy = \"" + netlab.PublicIP + "\"\n"
	for _, s := range services {
		l, err := s.host.Listen(s.at)
		if err != nil {
			t.Fatal(err)
		}
		serveOn(t, l, sees)
		conf += fmt.Sprintf("[[expose]]\npublic = \"tcp/%d\"\ntarget = %q\ntransparent = true\n", s.public, l.Addr())
	}
	proxy := startOn(t, lab.Public, "proxy", "proxy", "--listen", netlab.PublicIP+":3010", "--proxy-protocol-from", "127.0.0.1", "--state", t.TempDir(), "--log-format", "json")
	proxy.awaitOutput("reverser bridge rv1_")
	bridge := startOn(t, lab.LAN, "bridge", "bridge", tokenPattern.FindString(proxy.Stdout.String()), "--config", writeFile(t, filepath.Join(t.TempDir(), "bridge.toml"), conf),
		"--state", t.TempDir(), "--log-format", "json")
	for _, s := range services {
		bridge.awaitRecord("service up", "service", fmt.Sprintf("tcp/%d", s.public))
	}
	// connect is a user who comes through a balancer on the proxy's machine.
	connect := func(port int, user string) *net.TCPConn {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := lab.Public.Dial(ctx, loopback(port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		family, local := "TCP4", "198.51.100.2"
		if strings.Contains(user, ":") {
			family, local = "TCP6", "2001:db8::2"
		}
		fmt.Fprintf(c, "PROXY %s %s %s 1234 %d\r\n", family, user, local, port)
		return c
	}
	var wg sync.WaitGroup
	for _, s := range services {
		c := connect(s.public, s.user)
		wg.Go(func() { wantReset(t, c, 0) })
	}
	wg.Wait()
	run := make(map[string]bool)
	for _, s := range services {
		why := bridge.awaitRecord("target cannot be reached, the client gets a reset", "service", fmt.Sprintf("tcp/%d", s.public)).Text("err")
		lines := regexp.MustCompile("`[^`]+`").FindAllString(why, -1)
		if len(lines) < 2 || !strings.Contains(why, "transparent = true") || !strings.Contains(why, s.user) {
			t.Fatalf("tcp/%d: the log says %q", s.public, why)
		}
		for _, line := range lines {
			if line = strings.Trim(line, "`"); run[line] {
				continue
			}
			run[line] = true
			if err := lab.LAN.Run(line); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, s := range services {
		for i := range 3 {
			user := fmt.Sprintf("%s%d", s.user, i)
			c := connect(s.public, user)
			got := make([]byte, len(user)+1)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != user+"\n" {
				t.Fatalf("tcp/%d: the target sees %q, %v; want %q", s.public, got, err, user)
			}
			const size = 1 << 20
			go func() {
				io.Copy(c, newPattern(size))
				c.CloseWrite()
			}()
			if n, err := readPattern(c); n != size || err != nil {
				t.Errorf("tcp/%d: %d bytes came back, %v; want %d", s.public, n, err, size)
			}
		}
	}
	// An address of the other family is said at once.
	wantReset(t, connect(9001, "2001:db8::9"), 0)
	bridge.awaitLogged("tcp/9001", "2001:db8::9", "the target has no ipv6 address")
}
