package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestClaimsAgainstDescriptors: a key that claims more ports than the proxy has descriptors gets half of them, and hears why the others
// are not opened; another key's service comes up and serves, and status says who has them.
func TestClaimsAgainstDescriptors(t *testing.T) {
	t.Parallel()
	const claims, limit = 1024, 1024
	p := startProxyWithin(t, limit)
	service := serve(t, echo)
	greedy := freePort(t)
	var file strings.Builder
	for i := range claims {
		fmt.Fprintf(&file, "[[expose]]\npublic = \"tcp/127.1.%d.%d:%d\"\ntarget = \"%d\"\n", i/200, 1+i%200, greedy, service)
	}
	path := filepath.Join(t.TempDir(), "bridge.toml")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	hog := startBridge(t, addKey(t, p.state, "greedy", fmt.Sprintf("tcp/%d", greedy)), "--config", path)
	count := func() (up, short int) {
		for _, s := range mustStatus(t, p.state).Services {
			switch {
			case s.State == "up":
				up++
			case strings.Contains(s.Reason, `no descriptor of the proxy's is left`) && strings.Contains(s.Reason, `key "greedy" has `) &&
				strings.Contains(s.Reason, "LimitNOFILE"):
				short++
			}
		}
		return up, short
	}
	eventually(t, "all claims are answered", func() bool {
		up, short := count()
		return up+short == claims
	})
	up, _ := count()
	if up < limit/8 || up > limit/2 {
		t.Errorf("the first key has %d of %d descriptors", up, limit)
	}
	eventually(t, "its bridge has heard the reason for the others", func() bool { // which is told one after the other
		heard := 0
		for _, s := range mustStatus(t, hog.state).Services {
			if strings.Contains(s.Reason, `no descriptor of the proxy's is left`) {
				heard++
			}
		}
		return heard == claims-up
	})

	port := freePort(t)
	small := startBridge(t, addKey(t, p.state, "small", fmt.Sprintf("tcp/%d", port)), fmt.Sprintf("%d=%d", port, service))
	small.awaitUp(fmt.Sprintf("tcp/%d", port))
	for range 3 {
		exchange(t, dial(t, loopback(port)), "a small key")
	}
	if n := p.open(); n > limit-16 {
		t.Errorf("%d of %d descriptors are open, want 16 to be left for the operator", n, limit)
	}
	if out := quick(t, "status", "--state", p.state); !strings.Contains(out, "descriptors for public ports") || !strings.Contains(out, "greedy") {
		t.Errorf("status does not say what runs short:\n%.1000s", out)
	}
	quick(t, "key", "remove", "greedy", "--state", p.state)
	eventually(t, "the greedy key's ports are closed", func() bool { return p.open() < 64 })
	exchange(t, dial(t, loopback(port)), "afterwards")
}
