package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"

	"reverser/e2e/netlab"
)

// A path swallows packets of more than 1,280 bytes, in one direction or in both, and tells nobody. The link comes up with small
// ones, users' bytes pass whole, and the bridge says what is wrong.
func TestAPathThatSwallowsLargePackets(t *testing.T) {
	t.Parallel()
	if err := netlab.Available(); err != nil {
		lacks(t, err.Error())
	}
	for name, directions := range map[string][]netlab.Direction{
		"to the proxy": {netlab.ToProxy}, "to the bridge": {netlab.ToBridge}, "both ways": {netlab.ToProxy, netlab.ToBridge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab, err := netlab.New()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(lab.Close) // after the programs
			const size, public = 1 << 20, 9000
			link := netlab.PublicIP + ":3010"
			proxy := startOn(t, lab.Public, "proxy", "proxy", "--listen", link, "--state", t.TempDir(), "--log-format", "json")
			proxy.awaitOutput("reverser bridge rv1_")
			token := tokenPattern.FindString(proxy.Stdout.String())
			var target *net.TCPListener
			if target, err = lab.LAN.Listen("127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
			serveOn(t, target, echo)
			for _, d := range directions {
				if err := lab.SetLargest(d, 1280); err != nil {
					t.Fatal(err)
				}
			}
			bridge := startOn(t, lab.LAN, "bridge", "bridge", token, "--state", t.TempDir(), "--log-format", "json",
				fmt.Sprintf("%d=%s", public, target.Addr()))
			bridge.awaitRecord("service up", "service", fmt.Sprintf("tcp/%d", public))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c, err := lab.Public.Dial(ctx, loopback(public))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			go func() {
				io.Copy(c, newPattern(size))
				c.CloseWrite()
			}()
			if n, err := readPattern(c); n != size || err != nil {
				t.Errorf("%d bytes came back, %v; want %d", n, err, size)
			}
			if n := len(bridge.Said("the proxy answers only when packets are small")); n != 1 {
				t.Errorf("the bridge says in %d lines that large packets are swallowed, want 1", n)
			}
		})
	}
}

// startOn starts reverser on a host of a lab, until the end of the test.
func startOn(t *testing.T, h *netlab.Host, name string, args ...string) *testProcess {
	t.Helper()
	p := prepare(t, name, reverser(t), nil, args...)
	if err := p.Start(h.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.cleanup)
	return p
}
