package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"reverser/internal/sys"
)

// TestBind: with --bind, users find a port without an address of its own there alone, and one with an address where it says.
func TestBind(t *testing.T) {
	t.Parallel()
	const public = "127.0.0.2"
	p := startProxy(t, "--bind", public)
	port := freePort(t)
	echoed, own := fmt.Sprintf("tcp/%d", port), fmt.Sprintf("tcp/127.0.0.1:%d", port)
	b := startBridge(t, addKey(t, p.state, "nas", echoed), fmt.Sprintf("%d=%d", port, serve(t, echo)), "--proxy", loopback(p.link))
	b.awaitUp(echoed)
	exchange(t, dial(t, fmt.Sprintf("%s:%d", public, port)), "for the world")
	if c, err := net.Dial("tcp", loopback(port)); !sys.Refused(err) {
		t.Errorf("%s answers: %v, %v", loopback(port), c, err)
	}
	// Its link goes to 127.0.0.1, where the port is not open: it does not blame a firewall.
	if line := b.awaitLogged(`"service up"`, echoed); !strings.Contains(line, "not proven: the proxy asks for no probe: ") || !strings.Contains(line, "--bind") {
		t.Errorf("the bridge says %s; want that it has no proof, and why", line)
	}
	st, err := statusOf(t, p.state)
	if err != nil || len(st.Services) != 1 || st.Services[0].Public != echoed {
		t.Errorf("the proxy's services are %+v, %v; want %s", st.Services, err, echoed)
	}

	second := startBridge(t, addKey(t, p.state, "own", own), fmt.Sprintf("%s=%d", own, serve(t, echo)), "--proxy", loopback(p.link))
	second.awaitUp(own)
	exchange(t, dial(t, loopback(port)), "for this machine")
	exchange(t, dial(t, fmt.Sprintf("%s:%d", public, port)), "for the world, still")
}
